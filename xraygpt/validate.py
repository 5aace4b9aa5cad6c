"""Check a corpus before training: python -m xraygpt.validate --cfg-path train_configs/my.yaml."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xraygpt.common.cli import add_overrides, guarded, readable
from xraygpt.common.errors import InputError

SHOWN = 20  # problems that are printed


def main() -> None:
    """Parse, check, report.

    Raises:
        InputError: Something must be mended.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg-path", type=readable, required=True, help="the YAML of a run")
    add_overrides(parser)
    parser.add_argument("--sheet", type=Path, default=Path("output/contact_sheet.png"))
    args = parser.parse_args()
    # Torch takes seconds: help and typing errors do not wait for it.
    from xraygpt.common.config import load
    from xraygpt.experiment import Training
    from xraygpt.jobs.validate import check

    problems = check(load(Training, args.cfg_path, args.options), args.sheet)
    if problems:
        more = f"\n… and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError(f"{len(problems)} problems:\n" + "\n".join(problems[:SHOWN]) + more)
    print("nothing to mend")


if __name__ == "__main__":
    sys.exit(guarded(main))
