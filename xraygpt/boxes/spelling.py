"""Boxes in the text of questions and answers, in the spelling that each model was trained with.

================ ============================================= ==================================
spelling         example                                       models
================ ============================================= ==================================
``unit``         ``[0.25, 0.10, 0.50, 0.40]``                  RadVLM in conversations, LLaVA
``unit_short``   ``[0.25, 0.1, 0.5, 0.4]``                     RadVLM in single questions
``percent``      ``<|box|>(25,10),(50,40)<|/box|>``            CheXagent-2
``thousand``     ``[250, 100, 500, 400]``                      Qwen3-VL; the default here
``grid999``      ``<|box_start|>(250,100),(500,400)<|box_end|>``  Qwen2-VL
``pixels``       ``[77, 20, 154, 78]``                         Qwen2.5-VL
``loc``          ``<loc0102><loc0256><loc0409><loc0511>``      PaliGemma: y before x
``maira``        ``<box><x25><y10><x50><y40></box>``           MAIRA-2
``json``         ``{"bbox_2d": [250, 100, 500, 400]}``         Qwen3-VL
``json_pixels``  ``{"bbox_2d": [77, 20, 154, 78]}``            Qwen2.5-VL
================ ============================================= ==================================

Two decimals move each edge by up to 0.005: 5 pixels of 1,024. Thousandths move it by half a pixel.
``pixels`` are those of the image that the tower reads, after the processor's resize; the others do
not depend on any resize.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from xraygpt.boxes.units import check_box
from xraygpt.common.errors import InputError
from xraygpt.common.registry import did_you_mean
from xraygpt.media.geometry import Box, Geometry, crop_geometry

Size = tuple[int, int]
"""Height and width in pixels."""

SpellingName = Literal[
    "unit", "unit_short", "percent", "thousand", "grid999", "pixels", "loc", "maira", "json",
    "json_pixels",
]  # fmt: skip


@dataclass(frozen=True)
class Spelling:
    """How boxes are written.

    Attributes:
        name: Its name.
        steps: The number that stands for the right or lower border: 1, 100, 999, 1000 or 1024; for
            bins, their number. None stands for pixels.
        decimals: Decimals of the numbers.
        binned: Whether a number n is a bin, which stands for its centre, n + 0.5.
        last: The largest number, if it is not `steps`.
        write: Writes the numbers x_min, y_min, x_max, y_max of one box, and its label.
        join: Joins the texts of several boxes.
    """

    name: str
    steps: int | None
    write: Callable[[Sequence[float], str], str]
    decimals: int = 0
    binned: bool = False
    last: int | None = None
    join: Callable[[Sequence[str]], str] = lambda texts: _enumerate(texts)

    def scales(self, size: Size | None) -> tuple[float, float]:
        """Return the numbers that stand for the right and the lower border.

        Args:
            size: Height and width of the image that the tower reads; needed for pixels.

        Raises:
            InputError: The size is missing.
        """
        if self.steps is not None:
            return float(self.steps), float(self.steps)
        if size is None:
            raise InputError(
                f"boxes in {self.name} need the size of the image that the tower reads; use the "
                "spelling thousand, or give the sizes of the images"
            )
        return float(size[1]), float(size[0])

    @property
    def accuracy(self) -> float:
        """Largest shift of an edge by writing and reading, as a fraction of the side; 0: pixels."""
        return (1.0 if self.last else 0.5) * 10**-self.decimals / self.steps if self.steps else 0.0


def _brackets(decimals: int) -> Callable[[Sequence[float], str], str]:
    return lambda values, _: f"[{', '.join(f'{v:.{decimals}f}' for v in values)}]"


def _short(values: Sequence[float], _: str) -> str:
    return str([round(value, 2) for value in values])


def _pair(opening: str, closing: str) -> Callable[[Sequence[float], str], str]:
    return lambda v, _: f"{opening}({v[0]:.0f},{v[1]:.0f}),({v[2]:.0f},{v[3]:.0f}){closing}"


def _loc(values: Sequence[float], _: str) -> str:
    x_min, y_min, x_max, y_max = values
    return "".join(f"<loc{value:04.0f}>" for value in (y_min, x_min, y_max, x_max))


def _maira(v: Sequence[float], _: str) -> str:
    return f"<box><x{v[0]:.0f}><y{v[1]:.0f}><x{v[2]:.0f}><y{v[3]:.0f}></box>"


def _json(values: Sequence[float], label: str) -> str:
    row: dict[str, object] = {"bbox_2d": [round(value) for value in values]}
    return json.dumps(row | ({"label": label} if label else {}), ensure_ascii=False)


def _enumerate(texts: Sequence[str]) -> str:
    """Join with commas and a final "and"."""
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def _json_list(texts: Sequence[str]) -> str:
    return f"[{', '.join(texts)}]"


SPELLINGS: dict[str, Spelling] = {
    spelling.name: spelling
    for spelling in (
        Spelling("unit", 1, _brackets(2), decimals=2),
        Spelling("unit_short", 1, _short, decimals=2),
        Spelling("percent", 100, _pair("<|box|>", "<|/box|>"), join="".join),
        Spelling("thousand", 1000, _brackets(0)),
        Spelling("grid999", 999, _pair("<|box_start|>", "<|box_end|>"), join="".join),
        Spelling("pixels", None, _brackets(0)),
        Spelling("loc", 1024, _loc, last=1023, join=" ; ".join),
        Spelling("maira", 100, _maira, binned=True, last=99, join="".join),
        Spelling("json", 1000, _json, join=_json_list),
        Spelling("json_pixels", None, _json, join=_json_list),
    )
}


def get_spelling(name: str) -> Spelling:
    """Return a spelling by name.

    Raises:
        InputError: There is none.
    """
    if name not in SPELLINGS:
        raise InputError(f"unknown spelling of boxes '{name}'{did_you_mean(name, SPELLINGS)}")
    return SPELLINGS[name]


def write_box(
    box: Sequence[float], spelling: str, size: Size | None = None, label: str = ""
) -> str:
    """Write a box as text, such as ``[250, 100, 500, 400]``.

    A box that is narrower than one step is widened to one, so that it does not vanish.

    Args:
        box: (x_min, y_min, x_max, y_max) in [0, 1] of the original image.
        spelling: A key of `SPELLINGS`.
        size: Height and width of the image that the tower reads, for pixels.
        label: The label of the box, which only JSON contains.

    Raises:
        DataError: The box is empty or leaves the image.
        InputError: The spelling is unknown, or the size is missing.
    """
    form = get_spelling(spelling)
    checked = check_box(box)
    width, height = form.scales(size)
    columns = _round(checked[0], checked[2], width, form)
    rows = _round(checked[1], checked[3], height, form)
    return form.write((columns[0], rows[0], columns[1], rows[1]), label)


def write_boxes(
    boxes: Sequence[Sequence[float]], spelling: str, size: Size | None = None, label: str = ""
) -> str:
    """Write several boxes, such as ``[…], […] and […]``; see `write_box`."""
    form = get_spelling(spelling)
    return form.join([write_box(box, spelling, size, label) for box in boxes])


def _round(low: float, high: float, scale: float, form: Spelling) -> tuple[float, float]:
    """Return two edges as numbers of the spelling, at least one step apart."""
    step = 10**-form.decimals
    last = scale if form.last is None else form.last
    if form.binned:
        first, second = float(math.floor(low * scale)), float(math.floor(high * scale))
    else:
        first, second = (round(edge * scale / step) * step for edge in (low, high))
    first, second = min(first, last), min(second, last)
    if second - first < step / 2:
        first, second = (first, first + step) if first + step <= last else (last - step, last)
    return first, second


# ---- What image processors do with an image ------------------------------------------------------


def qwen_resize(
    height: int, width: int, *, factor: int = 28, min_pixels: int = 3136, max_pixels: int = 12845056
) -> Size:
    """Return the size to which Qwen2-VL's and Qwen2.5-VL's processors resize an image.

    Both sides become multiples of the factor, and the area lies within the limits, as in
    transformers' `smart_resize`.

    Args:
        height: Height of the image in pixels.
        width: Its width.
        factor: Patch size times merge size.
        min_pixels: Smallest area in pixels.
        max_pixels: Largest area.
    """
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (
            max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
        )
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def centre_square(height: int, width: int) -> Geometry:
    """Return the map from an image to its central square, which MAIRA-2's processor reads."""
    side = min(height, width)
    return crop_geometry(
        (width - side) / 2 / width, (height - side) / 2 / height, side / width, side / height
    )


def padded_square(height: int, width: int) -> Geometry:
    """Return the map from an image to the square that results from padding both sides equally."""
    side = max(height, width)
    return crop_geometry(
        (width - side) / 2 / width, (height - side) / 2 / height, side / width, side / height
    )


def map_boxes_into(boxes: Sequence[Box], geometry: Geometry, min_visible: float = 0.0) -> list[Box]:
    """Map boxes and leave out those of which less than `min_visible` remains."""
    return [box for box in geometry.map_boxes(boxes, min_visible) if box is not None]
