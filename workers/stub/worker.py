"""A worker without a model, which shows the protocol and tests it.

It points at the middle of every image and reports its mean grey value, so that its answers depend
on the image. It needs only Pillow.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from protocol import last_question, serve

TASKS = ["report_generation", "region_grounding", "abnormality_classification"]


def answer_one(request: dict) -> dict:
    """Describe the mean grey value, or return the middle of the image."""
    from PIL import Image, ImageStat

    if "fail" in last_question(request):
        raise ValueError("asked to fail")
    if not request["images"]:
        return {"text": "there is no image."}
    with Image.open(request["images"][0]) as image:
        grey = ImageStat.Stat(image.convert("L")).mean[0]
    if request["task"] == "region_grounding":
        return {"text": "In the middle.", "boxes": [[0.25, 0.25, 0.75, 0.75]]}
    return {"text": "Cardiomegaly." if grey > 100 else f"No finding. Mean grey {grey:.0f}."}


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    args = parser.parse_args()
    serve(
        {"model": "stub", "revision": "1", "tasks": args.tasks},
        lambda batch: [answer_one(request) for request in batch],
        batch_size=4,
    )


if __name__ == "__main__":
    main()
