"""Convert DICOM and 16-bit images to JPEG or PNG once, before training.

    python -m xraygpt.prepare_images vindr-cxr/train vindr-cxr/train_jpg --side 1024

Images are read as everywhere in this project: VOI LUT or window, rescale, MONOCHROME1, 8 to 16
bits. The aspect ratio is kept, and no image is enlarged. The folders of IN are kept in OUT.
OUT/sizes.csv lists the original size of every image, in which the boxes of annotation files are
given. Repeat the command to continue: only missing and changed files are converted.

Exit codes: 0: done. 3: some files could not be read; failed.csv names them. 2: a mistake in the
command. 130, 143: interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from xraygpt.common.cli import at_least, existing_path, run_main
from xraygpt.common.errors import InputError


def main() -> None:
    """Parse the command line and convert the images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=existing_path, metavar="IN", help="folder with images")
    add("out", type=Path, metavar="OUT", help="folder for the converted images")
    add("--format", choices=("jpg", "png"), default="jpg", help="default: jpg")
    add("--side", type=at_least(16), help="longer side in pixels; default: as the original")
    add("--quality", type=at_least(1), default=95, help="quality of JPEG, 1 to 100; default: 95")
    add(
        "--workers", type=at_least(1), default=os.cpu_count() or 1,
        help="number of processes; default: one per core",
    )  # fmt: skip
    add(
        "--resolutions", type=Path, metavar="JSON",
        help="also write RadVLM's file of sizes, {image: [rows, columns]}",
    )  # fmt: skip
    args = parser.parse_args()
    if not args.source.is_dir():
        raise InputError(f"{args.source} is a file; name a folder")
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"{args.out} is a file; name a folder")
    if args.out.resolve() == args.source.resolve():
        raise InputError("IN and OUT are the same folder")
    if args.quality > 100:
        raise InputError("--quality must be at most 100")

    from xraygpt.jobs.images import FAILED, Conversion, SomeImagesFailed, convert_images

    settings = Conversion(suffix=f".{args.format}", side=args.side, quality=args.quality)
    summary = convert_images(args.source, args.out, settings, args.workers, args.resolutions)
    sys.stdout.write(f"{args.out}: {summary.images} images, {summary.converted} of them new\n")
    if summary.failed:
        raise SomeImagesFailed(f"{summary.failed} files could not be read: see {args.out / FAILED}")


if __name__ == "__main__":
    sys.exit(run_main(main))
