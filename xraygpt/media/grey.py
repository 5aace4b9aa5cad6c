"""Grey-scale arithmetic on arrays: stored values, windows and value ranges."""

from __future__ import annotations

import numpy as np

from xraygpt.common.errors import ImageError

TAIL = 0.001
"""Fraction of pixels that `display_range` may clip at each end, so that one hot pixel does not
darken the image. In images of up to 1,000 pixels, none are clipped."""
_BLOCK = 256  # rows processed at a time


def apply_window(
    values: np.ndarray, center: float, width: float, function: str = "LINEAR"
) -> np.ndarray:
    """Apply a window (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: Modality values of any shape.
        center: Window Center, in the units of `values`.
        width: Window Width, in the same units; at least 1 for LINEAR, otherwise positive.
        function: VOI LUT Function: LINEAR, LINEAR_EXACT or SIGMOID.

    Returns:
        Display values in [0, 1], as float64, of the same shape.

    Raises:
        ImageError: The function is unknown, or it does not allow this width.
    """
    if function == "LINEAR":  # C.11.2.1.2.1: shifted by half a step, so 0..w-1 fills 0..1
        if width < 1:
            raise ImageError(f"window width {width:g} is below 1, the minimum for LINEAR; widen it")
        center, width = center - 0.5, width - 1
    elif function not in ("LINEAR_EXACT", "SIGMOID"):
        raise ImageError("the VOI LUT Function is not one that DICOM defines; fix the header")
    if function == "SIGMOID":  # C.11.2.1.3.1; beyond +-700 the result is 0 or 1 and exp overflows
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if width == 0:  # LINEAR of width 1 is a step
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)  # LINEAR_EXACT: C.11.2.1.3.2


def split_levels(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split a frame into its distinct values and the index of each pixel's value.

    A transformation can then run once per level, in float64; `gather_levels` maps the result back
    to the pixels. For values of up to 16 bits, the levels are all values of the data type.

    Returns:
        One-dimensional levels, and indices of the same shape as `stored`, such that
        `levels[indices] == stored`.
    """
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if stored.itemsize > 2:
        levels, indices = np.unique(stored, return_inverse=True)
        return levels, indices.reshape(stored.shape)
    unsigned = np.dtype(f"u{stored.itemsize}")
    levels = np.arange(256**stored.itemsize, dtype=unsigned).view(stored.dtype)
    return levels, stored.view(unsigned)


def gather_levels(table: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return `table[indices]`, computed in blocks because numpy widens indices to 8 bytes."""
    out = np.empty((*indices.shape, *table.shape[1:]), table.dtype)
    for row in range(0, len(indices), _BLOCK):
        out[row : row + _BLOCK] = table[indices[row : row + _BLOCK]]
    return out


def value_range(
    values: np.ndarray, indices: np.ndarray, ignored: np.ndarray
) -> tuple[float, float]:
    """Return the lowest and highest value in a frame, or (0, 0) if every pixel is ignored.

    Args:
        values: Value of each level.
        indices: Level of each pixel, (H, W).
        ignored: Mask of levels to exclude, such as padding.
    """
    used = np.zeros(len(values), bool)
    for row in range(0, len(indices), _BLOCK):
        used[indices[row : row + _BLOCK].ravel()] = True
    remaining = values[used & ~ignored]
    return (float(remaining.min()), float(remaining.max())) if len(remaining) else (0.0, 0.0)


def display_range(
    values: np.ndarray, indices: np.ndarray, padding: np.ndarray
) -> tuple[float, float]:
    """Return the values to show as black and as white in a frame without a window.

    These are the lowest and highest values after removing padding and the fraction `TAIL` of the
    pixels at each end. If the two values are equal, only padding is removed.

    Args:
        values: Value of each level.
        indices: Level of each pixel, (H, W).
        padding: Mask of padding levels.

    Returns:
        The black and white values, in the units of `values`; (0, 0) if every pixel is padding.
    """
    counts = np.zeros(len(values), np.int64)
    for row in range(0, len(indices), _BLOCK):
        counts += np.bincount(indices[row : row + _BLOCK].ravel(), minlength=len(values))
    counts[padding] = 0
    order = np.argsort(values, kind="stable")
    order = order[counts[order] > 0]
    if not len(order):
        return 0.0, 0.0
    ranked, cumulative = values[order], np.cumsum(counts[order])
    last = int(cumulative[-1]) - 1
    ranks = [int(TAIL * last), last - int(TAIL * last)]
    low, high = ranked[np.searchsorted(cumulative, ranks, side="right")].tolist()
    return (low, high) if low < high else (float(ranked[0]), float(ranked[-1]))
