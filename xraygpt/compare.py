"""Two systems on the same samples, in pairs: python -m xraygpt.compare A B.

Takes two folders of evaluations, or two files of predictions, and prints for every score of their
task both values, the difference with its 95 % bootstrap interval over studies, and the p-value of
an approximate randomisation test (Noreen 1989): how often a difference as large comes about when it
is a coin toss, study by study, which of the two answers was whose. Many scores are compared at
once; the last column holds p after Holm's correction (1979) over all lines printed.
"""

from __future__ import annotations

import argparse
import sys

from xraygpt.common.cli import add_imports, existing, guarded, import_plugins


def main() -> None:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=existing)
    parser.add_argument("second", type=existing)
    add_imports(parser)
    args = parser.parse_args()
    from xraygpt.evaluation.compare import compare
    from xraygpt.metrics.paired import as_markdown

    import_plugins(args.imports)
    sys.stdout.write(as_markdown(compare(args.first, args.second)))


if __name__ == "__main__":
    sys.exit(guarded(main))
