"""Find text in the frames of a clip, compare it with the header, and mask it.

What a text says stays in memory: results name the elements of the header that it repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.ultrasound.clip import luminance
from xraygpt.ultrasound.identity import Identity, looks_like_date

Box = tuple[int, int, int, int]
MaskText = Literal["all", "matches", "none"]

INSTALL_DEID = "type pip install -c constraints.txt -e '.[deid]' (Python 3.11 or 3.12)"
NOT_SEARCHED = f"text in the pixels was not looked for, since rapidocr is missing; {INSTALL_DEID}"
_CONFIDENCE = 0.5
_SHORTEST = 2  # letters and digits; single ones are mostly misread speckle and icons
_SAME_BOX = 0.5  # intersection over union of one text in two frames
_STILL_FRAMES = 25  # of which the median picture is searched too
_UNCHANGED = 12.0  # mean difference of grey levels in a box where the text is the same
_PAD = 0.2  # of a box's height, added on all sides when it is masked
_LINE_GAP = 2.0  # heights of a letter between two words of one line


@dataclass(frozen=True)
class FoundText:
    """A text in one picture; `repr` hides what it says.

    Attributes:
        box: (x0, y0, x1, y1) in pixels; x1 and y1 are the first column and row outside.
        text: What it says.
    """

    box: Box
    text: str = field(repr=False)


TextFinder = Callable[[np.ndarray], Sequence[FoundText]]
"""Finds text in a uint8 RGB picture of shape (H, W, 3)."""


@dataclass(frozen=True)
class TextBox:
    """A place with text, and how long it is there.

    Attributes:
        box: (x0, y0, x1, y1) in pixels; x1 and y1 are the first column and row outside.
        frames: Frames with the text, counted from 0, increasing.
        matches: Elements of the header that the text repeats, such as PatientName.
        is_date: Whether it looks like a calendar date.
        in_sector: Whether most of it is inside the sector.
    """

    box: Box
    frames: tuple[int, ...]
    matches: tuple[str, ...] = ()
    is_date: bool = False
    in_sector: bool = False

    @property
    def identifies(self) -> bool:
        """Whether the text repeats the header or is a date."""
        return bool(self.matches) or self.is_date

    def as_dict(self) -> dict[str, object]:
        """Return what the report says about it."""
        return {
            "box": list(self.box),
            "first_frame": self.frames[0],
            "last_frame": self.frames[-1],
            "matches": list(self.matches),
            "looks_like_a_date": self.is_date,
            "region": "inside the sector" if self.in_sector else "outside the sector",
        }


def load_rapidocr() -> TextFinder:
    """Return a text finder that uses rapidocr, whose models are in its wheel.

    Raises:
        InputError: rapidocr is not installed.
    """
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError as error:
        raise InputError(f"rapidocr cannot be imported ({error}); {INSTALL_DEID}") from None
    engine = RapidOCR()

    def find(picture: np.ndarray) -> list[FoundText]:
        found, _ = engine(np.ascontiguousarray(picture[..., ::-1]), use_cls=False)
        texts = [
            FoundText(_bounds(corners, picture.shape), str(text))
            for corners, text, confidence in found or []
            if float(confidence) >= _CONFIDENCE
        ]
        return [t for t in texts if sum(c.isalnum() for c in t.text) >= _SHORTEST]

    return find


def _bounds(corners: Sequence[Sequence[float]], shape: Sequence[int]) -> Box:
    points = np.asarray(corners, np.float64)
    x0, y0 = np.floor(points.min(0)).astype(int)
    x1, y1 = np.ceil(points.max(0)).astype(int)
    height, width = shape[:2]
    return max(0, int(x0)), max(0, int(y0)), min(width, int(x1)), min(height, int(y1))


# ---- search --------------------------------------------------------------------------------------


def search_text(
    pixels: np.ndarray,
    find: TextFinder,
    identity: Identity,
    sector: np.ndarray,
    frames: int = 5,
) -> list[TextBox]:
    """Find the places with text in a clip.

    Some frames and the median picture of the clip are searched; moving speckle vanishes in the
    median, so that text on it can be read. A text is taken to be in a frame that was not searched
    if it was found in the searched frame before or after, or if the pixels in its box are those of
    a frame where it was found.

    Args:
        pixels: uint8 (F, H, W) or (F, H, W, 3).
        find: Finds text in a picture.
        identity: What the header says.
        sector: Bool (H, W), true inside the sector.
        frames: Number of frames to search, spread evenly from the first to the last.
    """
    count = len(pixels)
    searched = sorted({int(i) for i in np.linspace(0, count - 1, min(frames, count))})
    found = [(i, text) for i in searched for text in _find_lines(find, _rgb(pixels[i]), identity)]
    if count > 2:
        median = _median_picture(pixels)
        found += [(-1, text) for text in _find_lines(find, _rgb(median), identity)]
    places: list[tuple[_Line, set[int]]] = []
    for i, line in found:
        for place, (known, seen) in enumerate(places):
            if _overlap(known.box, line.box) >= _SAME_BOX:
                places[place] = (known.joined_with(line), seen | {i})
                break
        else:
            places.append((line, {i}))
    grey = luminance(pixels)
    return [
        TextBox(
            line.box,
            _frames_with(grey, line.box, seen, searched),
            line.matches,
            line.is_date,
            _is_inside(sector, line.box),
        )
        for line, seen in places
    ]


@dataclass(frozen=True)
class _Line:
    """A text without what it says."""

    box: Box
    matches: tuple[str, ...]
    is_date: bool

    def joined_with(self, other: _Line) -> _Line:
        matches = tuple(dict.fromkeys((*self.matches, *other.matches)))
        return _Line(_union(self.box, other.box), matches, self.is_date or other.is_date)


def _find_lines(find: TextFinder, picture: np.ndarray, identity: Identity) -> list[_Line]:
    """Return the texts of a picture; words of one line are also compared together."""
    texts = sorted(find(picture), key=lambda t: (t.box[1], t.box[0]))
    texts = [t for t in texts if t.box[2] > t.box[0] and t.box[3] > t.box[1]]
    lines = [_Line(t.box, identity.matches(t.text), looks_like_date(t.text)) for t in texts]
    for i, first in enumerate(texts):
        for j, second in enumerate(texts):
            if i == j or not _follows(first.box, second.box):
                continue
            together = identity.matches(f"{first.text} {second.text}")
            new = set(together) - set(lines[i].matches) - set(lines[j].matches)
            for k in (i, j):
                lines[k] = replace(lines[k], matches=(*lines[k].matches, *sorted(new)))
    return lines


def _follows(a: Box, b: Box) -> bool:
    """Return whether b is to the right of a in the same line."""
    height = min(a[3] - a[1], b[3] - b[1])
    same_line = min(a[3], b[3]) - max(a[1], b[1]) >= height / 2
    return same_line and -height <= b[0] - a[2] <= _LINE_GAP * height


def _rgb(picture: np.ndarray) -> np.ndarray:
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)


def _median_picture(pixels: np.ndarray) -> np.ndarray:
    chosen = np.unique(np.linspace(0, len(pixels) - 1, min(_STILL_FRAMES, len(pixels))).astype(int))
    return np.median(pixels[chosen], axis=0).astype(np.uint8)


def _frames_with(
    grey: np.ndarray, box: Box, seen: set[int], searched: Sequence[int]
) -> tuple[int, ...]:
    """Return the frames that show a text which was found in some of those searched.

    Args:
        grey: uint8 (F, H, W).
        box: Where the text is.
        seen: Searched frames with the text; -1 is the median of all frames.
        searched: All searched frames, increasing.
    """
    if -1 in seen:
        return tuple(range(len(grey)))
    x0, y0, x1, y1 = box
    part = grey[:, y0:y1, x0:x1].astype(np.int16)
    shown = set[int]()
    for i in seen:
        place = searched.index(i)
        before = searched[place - 1] + 1 if place else 0
        after = searched[place + 1] if place + 1 < len(searched) else len(grey)
        shown.update(range(before, after))
        difference = np.abs(part - part[i]).mean(axis=(1, 2))
        shown.update(np.flatnonzero(difference <= _UNCHANGED).tolist())
    return tuple(sorted(shown))


def _overlap(a: Box, b: Box) -> float:
    """Return the intersection over the union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    return width * height / (areas - width * height)


def _union(a: Box, b: Box) -> Box:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _is_inside(sector: np.ndarray, box: Box) -> bool:
    x0, y0, x1, y1 = box
    return bool(sector[y0:y1, x0:x1].mean() > 0.5)


# ---- masking -------------------------------------------------------------------------------------


def to_mask(boxes: Sequence[TextBox], mode: MaskText) -> list[TextBox]:
    """Return the texts that are to be masked; `matches` includes dates."""
    if mode == "none":
        return []
    return [box for box in boxes if mode == "all" or box.identifies]


def mask_boxes(pixels: np.ndarray, boxes: Sequence[TextBox], sector: np.ndarray) -> int:
    """Blacken texts in place, in the frames that show them.

    Args:
        pixels: uint8 (F, H, W) or (F, H, W, 3).
        boxes: The texts.
        sector: Bool (H, W), true inside the sector.

    Returns:
        The number of pixels of the sector, over all frames, that were blackened.
    """
    count, height, width = pixels.shape[:3]
    masked = np.zeros((count, height, width), bool)
    for text in boxes:
        x0, y0, x1, y1 = text.box
        pad = 1 + round(_PAD * (y1 - y0))
        rows = slice(max(0, y0 - pad), min(height, y1 + pad))
        columns = slice(max(0, x0 - pad), min(width, x1 + pad))
        masked[np.asarray(text.frames, np.intp), rows, columns] = True
    pixels[masked] = 0
    return int((masked & sector).sum())
