"""Draw a corpus of phantoms: python -m xraygpt.synthesize --out phantoms --studies 500."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from xraygpt.common.checks import SettingsError
from xraygpt.common.cli import guarded
from xraygpt.common.errors import InputError
from xraygpt.phantom.corpus import SOURCE, Recipe, write_corpus
from xraygpt.phantom.render import VIEWS


def main() -> None:
    """Read the command line and draw."""
    default = Recipe()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--studies", type=int, default=default.studies)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--size", type=int, default=default.size, help="pixels")
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=list(default.views))
    parser.add_argument(
        "--workers", type=int, default=None, help="processes; one per core if absent"
    )
    parser.add_argument("--design", choices=("balanced", "openi"), default=default.design)
    parser.add_argument("--texts", choices=("grammar", "openi"), default=default.texts)
    given = parser.parse_args()
    try:
        named = {f.name: getattr(given, f.name) for f in fields(Recipe) if f.name in given}
        recipe = Recipe(**named | {"views": tuple(given.views)})
    except SettingsError as error:
        raise InputError(error.as_options()) from None
    rows = write_corpus(given.out, recipe, workers=given.workers)
    sys.stdout.write(f"{rows}: {given.studies} studies. {SOURCE}. Research use only.\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
