"""A script with XrayGPT's name that runs `python -m xraygpt.curate images mimic`.

python Data_Creation_Scripts/MIMIC_Scripts/filter_images.py --reports … --images … --out …
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run `xraygpt.curate` for this step and corpus."""
    from xraygpt.curate import main as curate

    sys.argv[1:1] = ["images", "mimic"]
    curate()


if __name__ == "__main__":
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
