"""Raw reports and pictures -> a training folder, by rules alone: python -m xraygpt.curate openi ….

    openi         --reports ecgen-radiology (or the .tgz)   --images NLMCXR_png
    openi_kaggle  --reports FOLDER (the pair of CSV files)  --images FOLDER/images_normalized
    roco          --reports captions.txt (or a .csv)        --images images
    mimic         --reports mimic-cxr-reports               --images mimic-cxr-jpg

No key, no network, no text leaves this machine. Priors, masks and views go, findings stay; a report
whose findings, sides or numbers would change is held back and named.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xraygpt.common.cli import guarded
from xraygpt.common.errors import InputError
from xraygpt.curation.pipeline import Filters, curate
from xraygpt.curation.sources import CORPORA


def main() -> None:
    """Read the command line and curate."""
    default = Filters()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", choices=CORPORA)
    parser.add_argument("--reports", type=Path, required=True, help="as downloaded")
    parser.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--out", type=Path, required=True, help="the training folder")
    parser.add_argument("--min-findings-words", type=int, default=default.min_findings_words)
    parser.add_argument("--min-impression-words", type=int, default=default.min_impression_words)
    parser.add_argument("--views", choices=("frontal", "all"), default=default.views)
    parser.add_argument("--copy", action="store_true", help="copy pictures instead of linking them")
    given = parser.parse_args()
    if min(given.min_findings_words, given.min_impression_words) < 0:
        raise InputError("--min-findings-words and --min-impression-words must not be negative")
    filters = Filters(
        min_findings_words=given.min_findings_words,
        min_impression_words=given.min_impression_words,
        views=given.views,
    )
    made = curate(given.corpus, given.reports, given.images, given.out, filters, copy=given.copy)
    left = " > ".join(f"{count} {name}" for name, count in made["left_after"].items())
    rate = made["acceptance"]
    sys.stdout.write(
        f"{left} > {made['accepted']} accepted ({rate['rate']:.1%}, {rate['low']:.1%} to "
        f"{rate['high']:.1%}), {made['held_back']} held back, {made['unreadable']} unreadable\n"
        f"{given.out}: {made['pictures']} pictures, {made['pictures_of_published_test_split']} of "
        "the published test split. held_back.csv names what was left out\n"
    )


if __name__ == "__main__":
    sys.exit(guarded(main))
