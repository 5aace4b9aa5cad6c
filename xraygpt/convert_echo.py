"""Convert studies of echovlm or EchoPrime to the layout of the builder `studies`.

an echovlm run:         python -m xraygpt.convert_echo echovlm/assets data/echo
your EchoPrime assets:  python -m xraygpt.convert_echo EchoPrime data/echo

Pickles are read by a reader that accepts plain data only. EchoPrime's licence forbids passing its
data on, also in this layout.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xraygpt.common.cli import existing_path, readable_file, run_main
from xraygpt.common.publishing import require_new_folder


def main() -> None:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=existing_path, help="folder with the files, also in its subfolders")
    add("out", type=Path, help="folder to create")
    add("--from", dest="origin", choices=("auto", "echovlm", "echoprime"), default="auto",
        help="what the source is; default: found by its files")  # fmt: skip
    add("--phrases", type=readable_file, metavar="JSON",
        help="EchoPrime: bank of phrases; default: all_phr.json in the source")  # fmt: skip
    add("--embeddings", type=readable_file, nargs="+", default=[], metavar="PT",
        help="EchoPrime: files of embeddings in their order; default: "
        "candidate_embeddings_p*.pt in the source")  # fmt: skip
    add("--number-slot", default="<#>", metavar="MARK",
        help="EchoPrime: slot for a number in the phrases; default: <#>")  # fmt: skip
    add("--text-slots", nargs="*", default=["<string>"], metavar="MARK",
        help="EchoPrime: slots for text in the phrases; default: <string>")  # fmt: skip
    add("--single-value", choices=("once", "mark"), default="once",
        help="EchoPrime: one value for a range of two slots: write it once, or mark the "
        "second slot as unknown")  # fmt: skip
    add("--skip-faulty", action="store_true",
        help="leave out studies that cannot be used, instead of refusing all")  # fmt: skip
    args = parser.parse_args()
    require_new_folder(args.out)
    # Torch takes seconds to import; help and argument errors do not wait for it.
    from xraygpt.jobs.convert_echo import convert

    sys.stdout.write(f"{convert(args)}\n")


if __name__ == "__main__":
    sys.exit(run_main(main))
