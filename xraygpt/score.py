"""Scores of stored predictions, anew: python -m xraygpt.score output/evaluate/val-0123456789ab.

Needs no model, no image and no GPU, and gives the same numbers whenever it is run. The folder is
the one evaluate.py printed; ``scores.json`` and ``scores.md`` in it are replaced.
"""

from __future__ import annotations

import argparse
import sys


def main() -> None:
    """Parse, score, print."""
    from xraygpt.common.cli import add_imports, existing, import_plugins

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=existing, help="holds predictions_true.jsonl")
    add_imports(parser)
    args = parser.parse_args()
    import_plugins(args.imports)
    # Torch takes seconds: help and typing errors do not wait for it.
    from xraygpt.evaluation.scoring import as_markdown, score_folder

    sys.stdout.write(as_markdown(score_folder(args.folder)))


if __name__ == "__main__":
    from xraygpt.common.cli import guarded

    sys.exit(guarded(main))
