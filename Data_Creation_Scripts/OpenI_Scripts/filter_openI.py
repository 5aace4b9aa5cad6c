"""A script with XrayGPT's name that runs `python -m xraygpt.curate filter openi`.

python Data_Creation_Scripts/OpenI_Scripts/filter_openI.py --reports … --out selected.jsonl
python Data_Creation_Scripts/OpenI_Scripts/filter_openI.py --kaggle --reports … --out selected.jsonl
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run `xraygpt.curate` for this step and corpus."""
    from xraygpt.curate import main as curate

    is_kaggle = "--kaggle" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--kaggle"]
    corpus = "openi_kaggle" if is_kaggle else "openi"
    sys.argv = [sys.argv[0], "filter", corpus, *arguments]
    curate()


if __name__ == "__main__":
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
