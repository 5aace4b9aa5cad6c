"""De-identify ultrasound clips, and list them in a table for training.

    python -m xraygpt.prepare_ultrasound STUDIES OUT

Reads DICOM cine and still images, mp4, AVI, MOV, MKV and WebM videos, and NIfTI. Writes lossless
clips in which everything outside the ultrasound sector is black, the table clips.csv, and pages
about each clip: depth, frame times, Doppler, text that repeats the header. Repeat the command to
continue after an interruption.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xraygpt.common.cli import at_least, existing_path, run_main
from xraygpt.common.errors import InputError

if TYPE_CHECKING:
    from xraygpt.jobs.ultrasound import Summary
    from xraygpt.ultrasound.text import TextFinder

log = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line and de-identify the clips."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=existing_path, metavar="IN", help="a file, or a folder with studies")
    add("out", type=Path, metavar="OUT", help="folder for the results")
    add("--mask-text", choices=["all", "matches", "none"], default="all",
        help="text to blacken inside the sector: all, or only dates and what repeats the header; "
        "default: all")  # fmt: skip
    add("--study-from", choices=["uid", "folder"], default="uid",
        help="id of a study: a keyed hash of its UID, or its folder; default: uid, and the folder "
        "for files without a header")  # fmt: skip
    add("--text-frames", type=at_least(1), default=5, metavar="N",
        help="frames of each clip in which text is looked for; default: 5")  # fmt: skip
    add("--key", type=Path, metavar="FILE",
        help="file with the key of the hashes, made if absent; default: in OUT")  # fmt: skip
    args = parser.parse_args()

    from xraygpt.jobs.ultrasound import Intake, SomeFilesFailed
    from xraygpt.ultrasound.intake import Settings

    settings = Settings(
        mask_text=args.mask_text, study_from=args.study_from, text_frames=args.text_frames
    )
    intake = Intake(args.source, args.out, settings, _text_finder(), args.key)
    summary = intake.run()
    sys.stdout.write(_report(args.out, summary))
    if summary.damaged:
        raise SomeFilesFailed(
            f"{len(summary.damaged)} of {summary.clips + len(summary.damaged)} files could not be "
            "read; the others are done"
        )


def _text_finder() -> TextFinder | None:
    """Return rapidocr's text finder; None if it is not installed, which is logged later."""
    from xraygpt.ultrasound.text import load_rapidocr

    try:
        return load_rapidocr()
    except InputError:
        return None


def _report(out: Path, summary: Summary) -> str:
    lines = [f"{file.source}: {file.reason}" for file in summary.skipped]
    lines.append(
        f"{out}: {summary.clips} clips, {summary.new} of them new; look at {out / 'report.html'} "
        "before you share them"
    )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(run_main(main))
