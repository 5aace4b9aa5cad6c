"""What a study holds beside text: images, clips, volumes and embeddings, on disk and in memory.

A `MediaRef` says where a medium lies, `read` reads it, and the `Media` it returns carries what the
file says of it (spacing, window, frame times) up to the model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from xraygpt.common.errors import DataError
from xraygpt.media.geometry import MIRRORED, Geometry
from xraygpt.media.picture import DEFAULT_LIMITS, PixelImage, ReadLimits
from xraygpt.media.pixels import read_image

Kind = Literal["image", "clip", "volume", "embedding"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ARRAYS = (".npy", ".safetensors")
_DIMS: dict[Kind, tuple[int, ...]] = {
    "image": (2, 3), "clip": (3, 4), "volume": (3,), "embedding": (1, 2),
}  # fmt: skip


class _Fields(NamedTuple):
    file: str
    view: str
    kind: Kind
    index: int | None  # type: ignore[assignment]  # hides tuple.index
    frames: tuple[int, int, int] | None
    tensor: str
    spacing: tuple[float, ...] | None
    fps: float | None
    mirrored: bool


class MediaRef(_Fields):
    """Where one medium lies, not yet read.

    Args:
        path: The file. Kept as text, which takes a tenth of a `Path`'s time in a large corpus.
        view: PA, LATERAL, A4C …, or the name of a series, as the corpus spells it.
        index: The frame of an image, from 0; the row of an embedding matrix (None takes all rows).
        kind: None decides by the file: arrays are embeddings, everything else is an image.
        frames: (start, stop, step) of a clip or the slices of a volume; None takes all.
        tensor: Name in a `.safetensors` file that holds several.
        spacing: mm from pixel to pixel, (row, column) or (slice, row, column); None takes what the
            file says.
        fps: Frames per second; None takes what the file says.
        mirrored: Read it with left and right exchanged, as a control.
    """

    __slots__ = ()

    def __new__(
        cls,
        path: Path | str,
        view: str = "",
        index: int | None = None,
        *,
        kind: Kind | None = None,
        frames: tuple[int, int, int] | None = None,
        tensor: str = "",
        spacing: tuple[float, ...] | None = None,
        fps: float | None = None,
        mirrored: bool = False,
    ) -> MediaRef:
        """Made from a path of either kind."""
        file = os.fspath(path)
        if kind is None:
            kind = "embedding" if file.endswith(ARRAYS) else "clip" if frames else "image"
        if kind == "image" and index is None:
            index = 0
        return super().__new__(
            cls, file, view, kind, index, frames, tensor, spacing, fps, mirrored
        )  # fmt: skip

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as its fields."""
        return MediaRef._make, (tuple(self),)

    @property
    def path(self) -> Path:
        """`file` as a path."""
        return Path(self.file)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.file.rpartition(os.sep)[2]

    @property
    def part(self) -> str:
        """What of the file is meant, and how it is read, beside the usual: "index 17, tensor a"."""
        plain = MediaRef(self.file, self.view)
        said = [
            f"{name} {value}"
            for name, value in self._asdict().items()
            if value != getattr(plain, name)
        ]
        return ", ".join(said)


@dataclass(frozen=True, slots=True)
class Media:
    """One medium in memory, as read or as a processor made it.

    Attributes:
        data: float32. As read: (H, W) or (H, W, 3) display values in [0, 1], bones bright;
            (F, H, W) or (F, H, W, 3) for a clip; (D, H, W) for a volume; (L, W) for embeddings. As
            a processor makes it: (C, H, W); (F, C, H, W) for a clip.
        kind: What it is.
        view: PA, LATERAL, A4C …, as the corpus spells it.
        spacing: mm from pixel to pixel of the file, (row, column) or (slice, row, column).
        window: (center, width) that became black and white, in the file's own units.
        frame_times: Seconds of each frame of a clip after the first.
        size: Height and width of the file's picture in pixels.
        geometry: Normalised coordinates of the file's picture -> those of `data`; None where a
            processor does not say.
    """

    data: Tensor
    kind: Kind = "image"
    view: str = ""
    spacing: tuple[float, ...] | None = None
    window: tuple[float, float] | None = None
    frame_times: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    geometry: Geometry | None = None

    def with_data(self, data: Tensor, geometry: Geometry | None = None) -> Media:
        """The same with other data, and where its pixels come from."""
        return replace(self, data=data, geometry=geometry)

    def still(self) -> np.ndarray:
        """A picture of it as read: (H, W) or (H, W, 3) in [0, 1]; the middle frame or slice.

        Raises:
            ValueError: Embeddings are no picture.
        """
        if self.kind == "embedding":
            raise ValueError("embeddings are no picture")
        array: np.ndarray = self.data.numpy()
        return array if self.kind == "image" else array[len(array) // 2]

    @property
    def fps(self) -> float | None:
        """Frames per second, by the mean distance of the frame times; None where unknown."""
        times = self.frame_times
        if times is None or len(times) < 2 or times[-1] <= times[0]:
            return None
        return (len(times) - 1) / (times[-1] - times[0])


def of_tensor(data: Tensor) -> Media:
    """A processed tensor as a medium: (C, H, W) an image, (F, C, H, W) a clip, (L, W) embeddings.

    Raises:
        ValueError: It has other axes.
    """
    kinds: dict[int, Kind] = {2: "embedding", 3: "image", 4: "clip"}
    if data.dim() not in kinds:
        raise ValueError(f"a tensor of shape {tuple(data.shape)} is no image, clip or embedding")
    return Media(data, kinds[data.dim()])


def read(
    ref: MediaRef, *, limits: ReadLimits = DEFAULT_LIMITS, at_least: int | None = None
) -> Media:
    """Read a medium, with what its file says of it.

    Args:
        ref: Which.
        limits: Size limits of pictures.
        at_least: See `pixels.read_image`.

    Raises:
        DataError: The file is missing, damaged, over a limit or of another kind, or holds no such
            frame, row or tensor.
    """
    arrays = ref.file.endswith(ARRAYS)
    media = _from_array(ref) if arrays else _from_picture(ref, limits, at_least)
    if not ref.mirrored:
        return media
    if media.kind == "embedding":
        raise DataError(f"{ref.file}: embeddings cannot be mirrored; mirror the pictures instead")
    colour = media.data.dim() > {"image": 2, "clip": 3, "volume": 3}[media.kind]
    mirrored = media.data.flip(-2 if colour else -1)
    return replace(media, data=mirrored, geometry=MIRRORED)


def _from_picture(ref: MediaRef, limits: ReadLimits, at_least: int | None) -> Media:
    if ref.kind == "embedding":
        raise DataError(f"{ref.file}: embeddings are read from {' or '.join(ARRAYS)} files")
    several = ref.kind != "image"
    picture = read_image(
        ref.file, frame=None if several else ref.index, limits=limits, at_least=at_least
    )
    pixels, meta = picture.pixels, picture.meta
    times = _times(ref, picture)
    if several:
        chosen = _chosen(ref, len(pixels))
        pixels = pixels[chosen]
        times = times and times[chosen]
        if ref.kind == "volume" and pixels.ndim != 3:
            raise DataError(f"{ref.file}: a volume is grey, and this is in colour")
    window = meta.get("window")
    return Media(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        ref.kind,
        ref.view,
        spacing=ref.spacing or _spacing(ref, picture),
        window=window if isinstance(window, tuple) and len(window) == 2 else None,
        frame_times=times,
        size=_size(ref.kind, pixels),
        geometry=Geometry(),
    )


def _size(kind: Kind, pixels: np.ndarray) -> tuple[int, int]:
    """Height and width of a picture, or of the frames or slices of several."""
    height, width = pixels.shape[:2] if kind == "image" else pixels.shape[1:3]
    return int(height), int(width)


def _chosen(ref: MediaRef, count: int) -> slice:
    """The frames that are wanted.

    Raises:
        DataError: They are not all there.
    """
    if ref.frames is None:
        return slice(None)
    start, stop, step = ref.frames
    if not 0 <= start < stop <= count or step < 1:
        raise DataError(
            f"{ref.file}: frames {start} to {stop} in steps of {step} were asked for, and it has "
            f"{count}, counted from 0"
        )
    return slice(start, stop, step)


def _spacing(ref: MediaRef, picture: PixelImage) -> tuple[float, ...] | None:
    found = picture.meta.get("pixel_spacing") or picture.meta.get("imager_pixel_spacing")
    if not isinstance(found, tuple):
        return None
    between = picture.meta.get("slice_spacing")
    return (*between, *found) if ref.kind == "volume" and isinstance(between, tuple) else found


def _times(ref: MediaRef, picture: PixelImage) -> tuple[float, ...] | None:
    """Seconds of all frames of the file."""
    if ref.kind != "clip":
        return None
    if ref.fps:
        return tuple(i / ref.fps for i in range(len(picture.pixels)))
    found = picture.meta.get("frame_times")
    return found if isinstance(found, tuple) else None


def _from_array(ref: MediaRef) -> Media:
    """A `.npy` or `.safetensors` array; only the wanted rows are read."""
    try:
        array = _safetensors(ref) if ref.file.endswith(".safetensors") else _npy(ref)
    except DataError:
        raise
    except Exception as error:  # damaged files fail in many ways
        raise DataError(f"{ref.file}: cannot be read as an array ({error})") from None
    data = torch.from_numpy(np.array(array, dtype=np.float32))  # a copy: files are mapped
    wanted = _DIMS[ref.kind]
    coloured = ref.kind in ("image", "clip") and data.dim() == max(wanted)
    if data.dim() not in wanted or (coloured and data.shape[-1] != 3):
        raise DataError(
            f"{ref.file}: {_SHAPES[ref.kind]}, and this is {tuple(data.shape)}"
            + ("; `index` names one row" if ref.kind == "embedding" else "")
        )
    if ref.kind == "embedding":
        return Media(data[None] if data.dim() == 1 else data, "embedding", ref.view)
    times = None
    if ref.kind == "clip" and ref.fps:
        first, _, step = ref.frames or (0, 0, 1)
        times = tuple((first + i * step) / ref.fps for i in range(len(data)))
    size = _size(ref.kind, data.numpy())
    return Media(data, ref.kind, ref.view, ref.spacing, None, times, size, Geometry())


_SHAPES: dict[Kind, str] = {
    "image": "an image is (H, W) or (H, W, 3)",
    "clip": "a clip is (F, H, W) or (F, H, W, 3)",
    "volume": "a volume is (D, H, W)",
    "embedding": "features must be (L, D) or (D,)",
}


def _rows(ref: MediaRef, shape: Sequence[int]) -> int | slice:
    """What to take of the first axis; of an image, a frame where there are several.

    Raises:
        DataError: It is not there.
    """
    count = shape[0]
    several = len(shape) == 4 or (len(shape) == 3 and shape[-1] != 3)
    if ref.index is None or (ref.kind == "image" and not several and ref.index == 0):
        return _chosen(ref, count)
    if not 0 <= ref.index < count:
        raise DataError(f"{ref.file}: row {ref.index} was asked for, and it has {count}, from 0")
    return ref.index


def _npy(ref: MediaRef) -> np.ndarray:
    array = np.load(ref.file, mmap_mode="r", allow_pickle=False)
    rows: np.ndarray = array[_rows(ref, array.shape)] if array.ndim else array
    return rows


def _safetensors(ref: MediaRef) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(ref.file, framework="pt") as file:
        names = sorted(file.keys())
        if not ref.tensor and len(names) != 1:
            raise DataError(f"{ref.file}: name one tensor of it (`tensor`): {', '.join(names)}")
        name = ref.tensor or names[0]
        if name not in names:
            raise DataError(f"{ref.file}: no tensor '{name}'; it has {', '.join(names)}")
        piece = file.get_slice(name)
        rows = _rows(ref, piece.get_shape())
        found: Tensor = piece[rows]
        array: np.ndarray = found.float().numpy()
        return array
