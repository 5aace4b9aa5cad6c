"""Create a corpus of phantoms: python -m xraygpt.synthesize --out phantoms --studies 500."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from xraygpt.common.checks import SettingsError
from xraygpt.common.cli import run_main
from xraygpt.common.errors import InputError
from xraygpt.phantom.corpus import SOURCE, Recipe, write_corpus
from xraygpt.phantom.grounded import GroundedRecipe
from xraygpt.phantom.render import VIEWS


def main() -> None:
    """Parse the command line and write the corpus."""
    default = Recipe()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the corpus")
    parser.add_argument("--studies", type=int, default=default.studies)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--size", type=int, default=default.size, help="image size in pixels")
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=list(default.views))
    parser.add_argument(
        "--workers", type=int, default=None, help="number of processes; default: one per core"
    )
    parser.add_argument("--design", choices=("balanced", "openi"), default=default.design)
    parser.add_argument("--texts", choices=("grammar", "openi"), default=default.texts)
    parser.add_argument(
        "--grounded",
        action="store_true",
        help="random crops and flips, with boxes of regions, findings and sentences",
    )
    args = parser.parse_args()
    kind = GroundedRecipe if args.grounded else Recipe
    try:
        options = {f.name: getattr(args, f.name) for f in fields(kind) if f.name in args}
        recipe = kind(**options | {"views": tuple(args.views)})
    except SettingsError as error:
        raise InputError(error.as_options()) from None
    rows = write_corpus(args.out, recipe, workers=args.workers)
    sys.stdout.write(f"{rows}: {args.studies} studies. {SOURCE}. Research use only.\n")


if __name__ == "__main__":
    sys.exit(run_main(main))
