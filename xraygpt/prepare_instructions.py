"""Turn collections of chest X-rays into one instruction set.

    python -m xraygpt.prepare_instructions --cfg-path instruction_configs/vindr.yaml --out OUT
    python -m xraygpt.prepare_instructions --cfg-path … --out OUT --check

The YAML file names the collections, the mixture of tasks, and the files to write: RadVLM's and
LLaVA's JSON, JSON lines, LLaMA-Factory's sharegpt, ms-swift's grounding format, COCO, Parquet,
WebDataset, and pages with boxes drawn on random images.

--check writes nothing but OUT/check.html and check.json: which files, columns and counts there are,
what joins lose, which patients are in two splits, and how many items each entry of the mixture
yields beside RadVLM's published numbers.

The output does not depend on the number of processes. Repeat the command to continue after an
interruption.

Exit codes: 0: done. 3: written, but image files are missing (missing_images.txt); or the check
found problems. 2: the command, the YAML file or the data contains a mistake. 130, 143: interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xraygpt.common.cli import add_overrides, at_least, readable_file, run_main
from xraygpt.common.errors import InputError

if TYPE_CHECKING:
    from xraygpt.jobs.instructions import Writer


def main() -> None:
    """Parse the command line, and write or check the instruction set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cfg-path", type=readable_file, required=True, metavar="YAML", help="instruction set")
    add("--out", type=Path, required=True, help="folder for the files")
    add("--check", action="store_true", help="only check the collections and the mixture")
    add(
        "--workers", type=at_least(1), default=os.cpu_count() or 1,
        help="number of processes; default: one per core",
    )  # fmt: skip
    add_overrides(parser)
    args = parser.parse_args()
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out {args.out} is a file; name a folder")

    from xraygpt.common.config import load
    from xraygpt.instructions.settings import InstructionSet
    from xraygpt.jobs.instructions import Writer

    settings = load(InstructionSet, args.cfg_path, args.options)
    writer = Writer(settings, args.out, args.workers)
    if args.check:
        _check(writer)
    else:
        _write(writer)


def _check(writer: Writer) -> None:
    from xraygpt.instructions.checking import PAGE, as_text
    from xraygpt.jobs.instructions import CheckFailed

    check = writer.check()
    sys.stdout.write(f"{as_text(check)}\n{writer.out / PAGE}\n")
    if check.problems:
        count = f"{check.problems} problem{'' if check.problems == 1 else 's'}"
        raise CheckFailed(f"{count}: see {writer.out / PAGE}")


def _write(writer: Writer) -> None:
    from xraygpt.jobs.instructions import MISSING, ImagesMissing

    result = writer.write()
    for i, entry in enumerate(writer.settings.mixture):
        left_out = ", ".join(f"{n:,} {reason}" for reason, n in result.left_out.get(i, {}).items())
        note = f" (images without an item: {left_out})" if left_out else ""
        sys.stdout.write(f"{entry.title()}: {result.items[i]:,} items{note}\n")
    total = sum(result.items.values())
    sys.stdout.write(f"{writer.out}: {total:,} items. Research use only.\n")
    if result.missing:
        raise ImagesMissing(
            f"{len(result.missing)} image files are missing: see {writer.out / MISSING}"
        )


if __name__ == "__main__":
    sys.exit(run_main(main))
