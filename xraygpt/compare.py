"""Compare two systems on the same samples: python -m xraygpt.compare A B.

Reads two evaluation folders or two files of predictions. For every score of their task it prints
both values, the difference with its 95 % bootstrap interval over studies, and the p-value of an
approximate randomisation test (Noreen 1989): how often a difference this large occurs when the two
systems' answers are swapped at random for each study. The last column is the p-value after Holm's
correction (1979) over all printed lines.
"""

from __future__ import annotations

import argparse
import sys

from xraygpt.common.cli import add_imports, existing_path, import_plugins, run_main


def main() -> None:
    """Parse the command line, compare and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=existing_path)
    parser.add_argument("second", type=existing_path)
    add_imports(parser)
    args = parser.parse_args()
    from xraygpt.evaluation.compare import compare
    from xraygpt.metrics.paired import as_markdown

    import_plugins(args.imports)
    sys.stdout.write(as_markdown(compare(args.first, args.second)))


if __name__ == "__main__":
    sys.exit(run_main(main))
