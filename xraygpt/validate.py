"""Check a corpus before training: python -m xraygpt.validate --cfg-path train_configs/my.yaml."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xraygpt.common.cli import add_overrides, readable_file, run_main
from xraygpt.common.errors import InputError

MAX_PRINTED = 20  # problems


def main() -> None:
    """Parse the command line, check the corpora and print the result.

    Raises:
        InputError: There are problems; the message lists them.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cfg-path", type=readable_file, required=True, help="a training YAML file"
    )
    add_overrides(parser)
    parser.add_argument("--sheet", type=Path, default=Path("output/contact_sheet.png"))
    args = parser.parse_args()
    # Torch takes seconds to import; help and argument errors do not wait for it.
    from xraygpt.common.config import load
    from xraygpt.experiment import Training
    from xraygpt.jobs.validate import check

    problems = check(load(Training, args.cfg_path, args.options), args.sheet)
    if problems:
        more = f"\n… and {len(problems) - MAX_PRINTED} more" if len(problems) > MAX_PRINTED else ""
        raise InputError(f"{len(problems)} problems:\n" + "\n".join(problems[:MAX_PRINTED]) + more)
    print("no problems found")


if __name__ == "__main__":
    sys.exit(run_main(main))
