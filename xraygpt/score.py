"""Recompute the scores of stored predictions: python -m xraygpt.score output/evaluate/val-0123456789ab.

Needs no model, images or GPU, and always returns the same scores. The folder is the one printed by
evaluate.py; its ``scores.json`` and ``scores.md`` are replaced.
"""  # noqa: E501

from __future__ import annotations

import argparse
import sys


def main() -> None:
    """Parse the command line, score and print the table and the verdict."""
    from xraygpt.common.cli import add_imports, existing_path, import_plugins

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=existing_path, help="folder that contains predictions_true.jsonl"
    )
    parser.add_argument(
        "--rexrank",
        action="store_true",
        help="also write gt_reports.csv and predicted_reports.csv for ReXrank's metrics",
    )
    add_imports(parser)
    args = parser.parse_args()
    import_plugins(args.imports)
    # Torch takes seconds to import; help and argument errors do not wait for it.
    from xraygpt.evaluation.score_table import as_markdown
    from xraygpt.evaluation.scoring import score_folder, verdict_text, write_rexrank

    result = score_folder(args.folder)
    sys.stdout.write(f"{as_markdown(result)}\n{verdict_text(result)}\n")
    if args.rexrank:
        for path in write_rexrank(args.folder):
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
