"""ROCO: the reports that pass the filters: `python -m xraygpt.curate filter roco`.

python Data_Creation_Scripts/ROCO_Val_Scripts/filter_ROCO.py --reports … --out kept.jsonl
"""

from __future__ import annotations

import sys


def main() -> None:
    """Put step and corpus before the arguments and curate."""
    from xraygpt.curate import main as curate

    sys.argv[1:1] = ["filter", "roco"]
    curate()


if __name__ == "__main__":
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
