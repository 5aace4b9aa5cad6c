"""OpenI: pictures of the reports that pass: `python -m xraygpt.curate images openi`.

python Data_Creation_Scripts/OpenI_Scripts/filter_images.py --reports … --images … --out …
python Data_Creation_Scripts/OpenI_Scripts/filter_images.py --kaggle --reports … --images … --out …
"""

from __future__ import annotations

import sys


def main() -> None:
    """Put step and corpus before the arguments and curate."""
    from xraygpt.curate import main as curate

    tables = "--kaggle" in sys.argv
    rest = [a for a in sys.argv[1:] if a != "--kaggle"]
    sys.argv = [sys.argv[0], "images", "openi_kaggle" if tables else "openi", *rest]
    curate()


if __name__ == "__main__":
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
