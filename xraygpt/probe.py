"""Fit a linear probe to an encoder: python -m xraygpt.probe --cfg-path eval_configs/x.yaml.

Fits one logistic regression per finding on frozen features (mean and maximum over patches) of the
training split, and reports the AUROC on val with its 95 % interval over studies. Further encoders
are compared with the first in pairs:

    … --vit-model efficientnet_lite0@256 run/output/encoder run/output/encoder+base

`--save FILE` stores the regressions for `model.finding_head`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xraygpt.common.cli import above_zero, add_overrides, at_least, readable_file, run_main
from xraygpt.common.errors import InputError


def main() -> None:
    """Parse the command line, encode images, fit and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--cfg-path",
        type=readable_file,
        required=True,
        help="evaluation YAML file, which selects the corpus and the split",
    )
    add("--vit-model", nargs="+", type=_encoder, help="encoders; the first is the baseline")
    add("--strength", type=above_zero, default=1e-3, help="C of the logistic regression")
    add(
        "--min-positives", type=at_least(1), default=8, help="positives in val that a finding needs"
    )
    add("--save", type=Path, default=None, help="file to create for model.finding_head")
    add(
        "--held-out-run",
        type=Path,
        default=None,
        help="with --save, for an encoder that was trained on these images: run of the same recipe "
        "that held part of them out (its val split); calibration and thresholds are set on those",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add_overrides(parser)
    args = parser.parse_args()
    if args.save is not None and len(args.vit_model or ()) > 1:
        raise InputError("--save stores the head of a single encoder; pass only one --vit-model")
    # Torch takes seconds to import; help and argument errors do not wait for it.
    from xraygpt.common.config import load
    from xraygpt.common.model_keys import config_value
    from xraygpt.experiment import Evaluation
    from xraygpt.jobs.probe import run_probe

    experiment = load(Evaluation, args.cfg_path, args.options)
    names = args.vit_model or [config_value(experiment.model, "vit_model") or ""]
    if not names[0]:
        raise InputError("the model in this YAML file has no vision encoder; pass --vit-model")
    table = run_probe(
        experiment,
        names,
        args.device,
        strength=args.strength,
        min_positives=args.min_positives,
        save=args.save,
        held_out_run=args.held_out_run,
    )
    sys.stdout.write(f"Split `{experiment.run.split}`. Research use only, not for diagnosis.\n\n")
    sys.stdout.write(table)


def _encoder(text: str) -> str:
    """Check an encoder argument, such as `efficientnet_lite0` or `efficientnet_lite0@256`."""
    _, at, size = text.partition("@")
    if at and not size.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: @ must be followed by a number of pixels")
    return text


if __name__ == "__main__":
    sys.exit(run_main(main))
