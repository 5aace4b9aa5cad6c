"""Map stored values to display values, in the order of DICOM's grey-scale pipeline.

    stored value --modality LUT (C.11.1)--> modality value --VOI LUT or window (C.11.2)--> [0, 1]
                 --MONOCHROME1 or INVERSE--> 1 - x --padding--> 0

Section numbers refer to DICOM PS3.3. A frame of up to 16 bits is processed once per possible value
rather than per pixel: exactly, in float64, followed by one look-up.

pydicom's `apply_modality_lut` and `apply_voi_lut` are not used, since they fail or wrap around on
headers that occur in practice (8-bit tables of more than 256 entries, tables after a rescale,
negative first values, short tables). A test compares the results where pydicom is correct.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xraygpt.common.errors import ImageError
from xraygpt.media.dicom_header import Layout, numbers
from xraygpt.media.dicom_lut import apply_lut, palette_colors
from xraygpt.media.grey import (
    apply_window,
    display_range,
    gather_levels,
    split_levels,
    value_range,
)
from xraygpt.media.picture import MetaValue, Window

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def render_frame(
    stored: np.ndarray, dataset: Dataset, layout: Layout, index: int, window: Window | None
) -> tuple[np.ndarray, dict[str, MetaValue]]:
    """Map the stored values of one frame to display values.

    Args:
        stored: Stored values of shape (rows, columns[, 3]).
        dataset: The file's elements.
        layout: The file's pixel layout.
        index: Index of the frame, counted from 0.
        window: (center, width) to use instead of the file's window, in modality values.

    Returns:
        Display values in [0, 1], as float32, and the entries `voi`, `window` and `values` for
        `PixelImage.meta`.
    """
    if layout.samples == 3:
        # RGB, or YBR that the decoder turned into RGB (C.7.6.3.1.2): full scale is 2**bits - 1.
        return np.clip(stored / np.float32(2**layout.bits_stored - 1), 0, 1), {"voi": "identity"}
    levels, indices = split_levels(stored)
    if layout.photometric == "PALETTE COLOR":
        return gather_levels(palette_colors(levels, dataset), indices), {"voi": "identity"}
    scopes = _attribute_scopes(dataset, index)
    modality = modality_values(levels.astype(np.float64), scopes)
    padding = _padding_mask(levels, dataset, layout)
    display, voi, used_window = voi_values(modality, scopes, window)
    lowest, highest = low, high = value_range(modality, indices, padding)
    if display is None:
        low, high = display_range(modality, indices, padding)
        if low == high:
            low, high = _full_range(layout, scopes)
        display = np.clip((modality - low) / ((high - low) or 1.0), 0, 1)
    # C.7.6.3.1.2: MONOCHROME1 shows its lowest value as white, after the VOI step. INVERSE in
    # (2050,0020) says the same about such a file (C.8.11.3), so the file is inverted only once;
    # IDENTITY there is a known vendor mistake and is ignored. INVERSE inverts MONOCHROME2.
    shape = str(dataset.get("PresentationLUTShape", "")).strip().upper()
    if layout.photometric == "MONOCHROME1" or shape == "INVERSE":
        display = 1 - display
    display[padding] = 0  # C.7.5.1.1.2: padding is not part of the image; background is black
    # The LINEAR window (C.11.2.1.2.1) with black at `low` and white at `high`.
    used_window = used_window or ((low + high + 1) / 2, high - low + 1)
    meta: dict[str, MetaValue] = {"voi": voi, "window": used_window, "values": (lowest, highest)}
    return gather_levels(display.astype(np.float32), indices), meta


def _full_range(layout: Layout, scopes: list[Dataset]) -> tuple[float, float]:
    """Return the modality values of the lowest and highest storable value, for a flat frame."""
    half = 2.0 ** (layout.bits_stored - 1)
    ends = np.array([-half, half - 1] if layout.signed else [0, 2 * half - 1])
    low, high = sorted(modality_values(ends, scopes).tolist())
    return low, high


def _attribute_scopes(dataset: Dataset, index: int) -> list[Dataset]:
    """Return the datasets that may contain a frame's display attributes, most specific first.

    Enhanced objects store them in functional groups, per frame or shared (C.7.6.16.2.9 pixel value
    transformation, C.7.6.16.2.10 frame VOI LUT); all others store them in the dataset itself.
    """
    scopes: list[Dataset] = []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in (*per_frame[index : index + 1], *shared[:1]):
        for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            scopes += (group.get(keyword) or [])[:1]
    return [*scopes, dataset]


def modality_values(stored: np.ndarray, scopes: list[Dataset]) -> np.ndarray:
    """Map stored to modality values, in float64: by table (C.11.1.1.1) or slope and intercept."""
    for scope in scopes:
        if items := scope.get("ModalityLUTSequence"):
            return apply_lut(stored, items[0])[0]
    for scope in scopes:
        if "RescaleSlope" in scope or "RescaleIntercept" in scope:  # C.11.1.1.2
            slope = [*numbers(scope, "RescaleSlope"), 1.0][0]
            if slope == 0:
                raise ImageError(
                    "the file has a RescaleSlope of 0, which makes all pixels equal; fix the header"
                )
            return stored * slope + [*numbers(scope, "RescaleIntercept"), 0.0][0]
    return stored


def voi_values(
    modality: np.ndarray, scopes: list[Dataset], window: Window | None
) -> tuple[np.ndarray | None, str, Window | None]:
    """Map modality values to [0, 1] (C.11.2).

    The caller's window takes precedence over the file's table, and the table over the file's
    window. If the file offers several alternatives, only the first is used. A window that the
    standard forbids (not a number, or a placeholder of width 0) is ignored.

    Returns:
        The display values (None if the file has neither a table nor a window), the step used, as
        in `PixelImage.meta["voi"]`, and the window used, if any.
    """
    functions = [scope.VOILUTFunction for scope in scopes if scope.get("VOILUTFunction")]
    function = str([*functions, "LINEAR"][0]).strip().upper()  # C.11.2.1.3
    min_width = 1 if function == "LINEAR" else np.finfo(float).tiny
    if window:
        return apply_window(modality, *window, function), "argument", window
    for scope in scopes:
        for item in (scope.get("VOILUTSequence") or [])[:1]:  # C.11.2.1.1
            entries, bits = apply_lut(modality, item)
            return np.clip(entries / (2**bits - 1), 0, 1), "lut", None
        center, width = numbers(scope, "WindowCenter"), numbers(scope, "WindowWidth")
        if center and width and width[0] >= min_width:
            file_window = (center[0], width[0])
            return apply_window(modality, *file_window, function), "window", file_window
    return None, "range", None


def _padding_mask(levels: np.ndarray, dataset: Dataset, layout: Layout) -> np.ndarray:
    """Return a mask of the levels from Pixel Padding Value to Range Limit (C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(levels.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [value, limit if isinstance(limit, int) else value]
    if layout.signed and layout.bits_allocated <= 16:  # as US, -n reads as 2**16 - n
        ends = [end - 65536 if end >= 32768 else end for end in ends]
    return (levels >= min(ends)) & (levels <= max(ends))
