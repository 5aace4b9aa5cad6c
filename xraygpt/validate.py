"""Check a corpus before training: python -m xraygpt.validate --cfg-path train_configs/my.yaml."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal

from xraygpt.common.cli import add_overrides, add_strict, readable_file, run_main
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
    add_strict(parser)
    parser.add_argument("--sheet", type=Path, default=Path("output/contact_sheet.png"))
    args = parser.parse_args()
    # Torch takes seconds to import; help, argument errors and missing files do not wait for it.
    from xraygpt.requirements_check import load_complete, names_prediction

    predicts = names_prediction(args.cfg_path, args.options)
    schema: Literal["Training", "Evaluation"] = "Evaluation" if predicts else "Training"
    experiment = load_complete(schema, args.cfg_path, args.options, need="corpus")
    from xraygpt.jobs.validate import check

    problems = check(experiment, args.sheet, strict=args.strict)
    if problems:
        more = f"\n… and {len(problems) - MAX_PRINTED} more" if len(problems) > MAX_PRINTED else ""
        raise InputError(f"{len(problems)} problems:\n" + "\n".join(problems[:MAX_PRINTED]) + more)
    print("no problems found")


if __name__ == "__main__":
    sys.exit(run_main(main))
