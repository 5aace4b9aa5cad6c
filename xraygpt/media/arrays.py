"""Read images, clips, volumes and embeddings from array files; see `array_files`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xraygpt.common.errors import DataError
from xraygpt.media.array_files import ARRAY_SUFFIXES, open_array
from xraygpt.media.clips import FrameSelector, frame_slice

if TYPE_CHECKING:
    from xraygpt.media.base import MediaRef

__all__ = ["ARRAY_SUFFIXES", "load_array"]

_DIMS: dict[str, tuple[int, ...]] = {
    "image": (2, 3), "clip": (3, 4), "volume": (3,), "embedding": (1, 2),
}  # fmt: skip
_SHAPES: dict[str, str] = {
    "image": "an image is (H, W) or (H, W, 3)",
    "clip": "a clip is (F, H, W) or (F, H, W, 3)",
    "volume": "a volume is (D, H, W)",
    "embedding": "features must be (L, D) or (D,)",
}


def load_array(ref: MediaRef, select: FrameSelector | None) -> Tensor:
    """Read the requested rows or frames of an array.

    Args:
        ref: The reference.
        select: Selects the frames of a clip; None for other kinds.

    Returns:
        uint8 for pictures stored as uint8 (0..255), otherwise float32.

    Raises:
        DataError: The file is missing or damaged, or its array does not have the requested rows or
            a shape that suits its kind; or embeddings have no rows, or are NaN or infinite.
    """
    try:
        with open_array(ref.file, ref.tensor) as array:
            rows = array.read(_select_rows(ref, array.shape, select) if array.shape else 0)
        keeps_bytes = rows.dtype == np.uint8 and ref.kind != "embedding"
        data = torch.from_numpy(np.array(rows, dtype=np.uint8 if keeps_bytes else np.float32))
    except DataError:
        raise
    except Exception as error:  # damaged files fail in many ways
        raise DataError(f"{ref.file}: cannot be read as an array ({error})") from None
    _check_shape(ref, data)
    if ref.kind == "embedding":
        _check_embeddings(ref, data)
    return data


def _check_embeddings(ref: MediaRef, data: Tensor) -> None:
    if not data.numel():
        raise DataError(f"{ref.file}: there are no embeddings; its shape is {tuple(data.shape)}")
    wrong = int((~torch.isfinite(data)).sum())
    if wrong:
        rows = f", {ref.selection}" if ref.selection else ""
        raise DataError(
            f"{ref.file}{rows}: {wrong} of {data.numel()} values are NaN or infinite; compute "
            "these embeddings again"
        )


def _check_shape(ref: MediaRef, data: Tensor) -> None:
    dims = _DIMS[ref.kind]
    in_colour = ref.kind in ("image", "clip") and data.dim() == max(dims)
    if data.dim() not in dims or (in_colour and data.shape[-1] != 3):
        hint = "; use `index` to select one row" if ref.kind == "embedding" else ""
        raise DataError(
            f"{ref.file}: {_SHAPES[ref.kind]}, but this array is {tuple(data.shape)}{hint}"
        )


def _select_rows(
    ref: MediaRef, shape: Sequence[int], select: FrameSelector | None
) -> int | slice | list[int]:
    """Return the index into the first axis; for an image, the frame in an array with several.

    Raises:
        DataError: The array does not have the requested row or frame.
    """
    count = shape[0]
    if select is not None and ref.index is None:
        return select(count)
    has_frames = len(shape) == 4 or (len(shape) == 3 and shape[-1] != 3)
    if ref.index is None or (ref.kind == "image" and not has_frames and ref.index == 0):
        unit = "rows" if ref.kind == "embedding" else "frames"
        return frame_slice(ref.file, ref.frames, count, unit)
    if not 0 <= ref.index < count:
        raise DataError(
            f"{ref.file}: row {ref.index} was requested, but the file has {count} rows, counted "
            "from 0"
        )
    return ref.index
