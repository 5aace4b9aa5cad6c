"""Try vocabularies and sizes of a decoder on a corpus: python -m xraygpt.sweep --cfg-path YAML OUT.

For each size of the vocabulary, a tokenizer is trained on the training split, and measured on val:
characters per token, tokens per report, and reports that do not fit into a context. With --depth, a
decoder of each depth is then trained for some steps with each tokenizer, and compared by its bits
per byte on val:

    … --vocab-size 500 1000 2000 --depth 2 4 8 --steps 500

Finished trainings are kept in OUT; the same command continues an interrupted sweep.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xraygpt.common.cli import add_overrides, at_least, readable_file, run_main
from xraygpt.common.errors import InputError


def main() -> None:
    """Parse the command line, run the sweep and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cfg-path", type=readable_file, required=True, help="training YAML file of a prefix_lm")
    add("out", type=Path, help="folder for the trainings and the tables")
    add(
        "--vocab-size", type=at_least(272), nargs="+", default=[500, 1000, 2000, 4000],
        help="sizes of the vocabulary (default: 500 1000 2000 4000)",
    )  # fmt: skip
    add(
        "--context", type=at_least(2), nargs="+", default=[256, 512, 1024],
        help="lengths of a context in tokens (default: 256 512 1024)",
    )  # fmt: skip
    add("--depth", type=at_least(1), nargs="*", default=[], help="depths of decoders to train")
    add("--steps", type=at_least(1), default=200, help="steps of each training (default: 200)")
    add_overrides(parser)
    args = parser.parse_args()
    if args.out.is_file():
        raise InputError(f"{args.out} is a file; pass a folder")
    # Torch takes seconds to import; help and argument errors do not wait for it.
    from xraygpt.jobs.sweep import run_sweep

    sys.stdout.write(run_sweep(args))


if __name__ == "__main__":
    sys.exit(run_main(main))
