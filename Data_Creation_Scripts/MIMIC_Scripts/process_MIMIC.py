"""MIMIC-CXR into a training folder: `python -m xraygpt.curate mimic` under the name its users know.

python Data_Creation_Scripts/MIMIC_Scripts/process_MIMIC.py --reports … --images … --out …
"""

from __future__ import annotations

import sys


def main() -> None:
    """Put step and corpus before the arguments and curate."""
    from xraygpt.curate import main as curate

    sys.argv[1:1] = ["mimic"]
    curate()


if __name__ == "__main__":
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
