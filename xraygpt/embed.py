"""Encode the images of a corpus as embeddings: python -m xraygpt.embed --cfg-path YAML OUT.

Writes OUT/embeddings.safetensors and OUT/studies.jsonl, a corpus for `arch: prefix_lm`. Each image
becomes the mean and the maximum of its features, and with --grid 4 also the means of 4 x 4 cells,
with their names as views. They are standardized by the mean and the standard deviation over the
training split, which --statistics takes from an earlier run:

    … --vit-model efficientnet_lite0+mid --grid 4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xraygpt.common.cli import add_overrides, at_least, readable_file, run_main
from xraygpt.common.errors import InputError
from xraygpt.common.publishing import require_new_folder


def main() -> None:
    """Parse the command line and encode."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--cfg-path",
        type=readable_file,
        required=True,
        help="training or evaluation YAML file with the corpus",
    )
    add("out", type=Path, help="folder to create")
    add("--vit-model", help="encoder, with @pixels to set the image size (default: the model's)")
    add("--grid", type=at_least(0), default=0, help="cells on a side; 0 adds none (default: 0)")
    add(
        "--statistics", type=readable_file,
        help="statistics.safetensors of the embeddings that the model was trained on",
    )  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add_overrides(parser)
    args = parser.parse_args()
    require_new_folder(args.out)
    # Torch takes seconds to import; help and argument errors do not wait for it.
    from xraygpt.common.errors import ConfigError
    from xraygpt.common.model_keys import config_value
    from xraygpt.requirements_check import load_complete

    try:
        experiment = load_complete("Training", args.cfg_path, args.options, need="corpus")
    except ConfigError:
        experiment = load_complete("Evaluation", args.cfg_path, args.options, need="corpus")
    from xraygpt.jobs.embed import embed_corpus

    name = args.vit_model or config_value(experiment.model, "vit_model")
    if not name:
        raise InputError("the model in this YAML file has no vision encoder; pass --vit-model")
    sys.stdout.write(
        embed_corpus(
            experiment, name, args.out, grid=args.grid, statistics=args.statistics,
            device=args.device,
        )
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_main(main))
