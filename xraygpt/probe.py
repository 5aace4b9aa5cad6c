"""What stands in an encoder's features: python -m xraygpt.probe --cfg-path eval_configs/x.yaml.

A linear probe: logistic regression on frozen features (mean and greatest over patches), one for
each finding, fitted on the training split and measured on val: AUROC with its 95 % interval over
studies. Several encoders are compared with the first, in pairs:

    … --vit-model efficientnet_lite0@256 run/output/encoder run/output/encoder+base

With `--save FILE` the fitted regressions are kept, for `model.finding_head`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xraygpt.common.cli import above_zero, add_overrides, at_least, guarded, readable
from xraygpt.common.errors import InputError


def main() -> None:
    """Parse, encode, fit, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cfg-path", type=readable, required=True, help="names corpus and split")
    add("--vit-model", nargs="+", type=_encoder, help="encoders; the first is base")
    add("--strength", type=above_zero, default=1e-3, help="C of the regression")
    add("--min-positives", type=at_least(1), default=8, help="a finding needs on val")
    add("--save", type=Path, default=None, help="file for model.finding_head")
    add(
        "--over",
        type=above_zero,
        default=1.5,
        help="with --save: times as often as in training that a finding is named on the split",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add_overrides(parser)
    args = parser.parse_args()
    if args.save is not None and len(args.vit_model or ()) > 1:
        raise InputError("--save keeps the head of one encoder: name one with --vit-model")
    # Torch takes seconds: help and typing errors do not wait for it.
    from xraygpt.common.config import load
    from xraygpt.experiment import Evaluation
    from xraygpt.jobs.probe import measure

    experiment = load(Evaluation, args.cfg_path, args.options)
    names = args.vit_model or [getattr(experiment.model, "vit_model", "")]
    if not names[0]:
        raise InputError("this YAML's model has no vision encoder: name one with --vit-model")
    table = measure(
        experiment,
        names,
        args.device,
        strength=args.strength,
        min_positives=args.min_positives,
        save=args.save,
        over=args.over,
    )
    sys.stdout.write(f"Split `{experiment.run.split}`. Research use only, not for diagnosis.\n\n")
    sys.stdout.write(table)


def _encoder(text: str) -> str:
    """`efficientnet_lite0`, or with another size `efficientnet_lite0@256`."""
    _, at, size = text.partition("@")
    if at and not size.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: after @ stands a number of pixels")
    return text


if __name__ == "__main__":
    sys.exit(guarded(main))
