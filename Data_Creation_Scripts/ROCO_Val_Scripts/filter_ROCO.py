"""A script with XrayGPT's name that runs `python -m xraygpt.curate filter roco`.

python Data_Creation_Scripts/ROCO_Val_Scripts/filter_ROCO.py --reports … --out selected.jsonl
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run `xraygpt.curate` for this step and corpus."""
    from xraygpt.curate import main as curate

    sys.argv[1:1] = ["filter", "roco"]
    curate()


if __name__ == "__main__":
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
