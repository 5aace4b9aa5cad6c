"""Boxes in the text of questions and answers, in the convention that each family was trained with.

This project stores boxes normalised to the original image, (x_min, y_min, x_max, y_max) in [0, 1].
Nothing has to be converted when an image is resized:

============== ========================================================================
convention     numbers in the text
============== ========================================================================
``unit``       fractions of width and height with two decimals: LLaVA-OneVision, RadVLM
``thousand``   whole thousandths of width and height: Qwen2-VL, Qwen3-VL
``pixels``     whole pixels of the *resized* image that the tower reads: Qwen2.5-VL
============== ========================================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from xraygpt.common.errors import DataError

Convention = Literal["unit", "thousand", "pixels"]
Box = tuple[float, float, float, float]
_NUMBER = r"-?\d+(?:\.\d+)?"
_BOX = re.compile(
    rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])]"
)


def write_box(box: Sequence[float], convention: Convention, size: tuple[int, int]) -> str:
    """Write a box as text, such as ``[0.25, 0.10, 0.50, 0.40]``.

    Args:
        box: (x_min, y_min, x_max, y_max) in [0, 1] of the original image.
        convention: The model's convention.
        size: Height and width in pixels of the image that the tower reads; used by ``pixels``.

    Raises:
        DataError: The box is empty or leaves the image.
    """
    x_min, y_min, x_max, y_max = box
    if not (0 <= x_min < x_max <= 1 and 0 <= y_min < y_max <= 1):
        raise DataError(
            f"the box {tuple(box)} is empty or leaves the image; boxes are (x_min, y_min, x_max, "
            "y_max) in [0, 1] of the original image"
        )
    if convention == "unit":
        return f"[{', '.join(f'{v:.2f}' for v in box)}]"
    scales = _scales(convention, size)
    return str([round(value * scale) for value, scale in zip(box, scales, strict=True)])


def read_boxes(text: str, convention: Convention, size: tuple[int, int]) -> list[Box]:
    """Return the boxes in a text, normalised to the original image and cut at its borders.

    Args:
        text: An answer.
        convention: The model's convention.
        size: See `write_box`.
    """
    scales = _scales(convention, size)
    boxes: list[Box] = []
    for match in _BOX.finditer(text):
        values = [
            min(max(float(v) / s, 0.0), 1.0) for v, s in zip(match.groups(), scales, strict=True)
        ]
        x_min, y_min, x_max, y_max = values
        if x_min < x_max and y_min < y_max:
            boxes.append((x_min, y_min, x_max, y_max))
    return boxes


def _scales(convention: Convention, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the number in the text that corresponds to 1, for each coordinate."""
    if convention == "unit":
        return (1.0,) * 4
    if convention == "thousand":
        return (1000.0,) * 4
    height, width = size
    return float(width), float(height), float(width), float(height)
