"""Media of a study (images, clips, volumes and embeddings), on disk and in memory.

A `MediaRef` identifies a medium on disk, `read_media_file` reads it, and the resulting `Media`
contains the pixels together with the file's metadata (spacing, window, frame times).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from xraygpt.common.errors import DataError
from xraygpt.media.content import ContentDigest, digest_values
from xraygpt.media.geometry import MIRRORED, Geometry
from xraygpt.media.picture import DEFAULT_LIMITS, MetaValue, PixelImage, ReadLimits
from xraygpt.media.pixels import read_image

Kind = Literal["image", "clip", "volume", "embedding"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ARRAY_SUFFIXES = (".npy", ".safetensors")
_ARRAY_DIMS: dict[Kind, tuple[int, ...]] = {
    "image": (2, 3), "clip": (3, 4), "volume": (3,), "embedding": (1, 2),
}  # fmt: skip
_ARRAY_SHAPES: dict[Kind, str] = {
    "image": "an image is (H, W) or (H, W, 3)",
    "clip": "a clip is (F, H, W) or (F, H, W, 3)",
    "volume": "a volume is (D, H, W)",
    "embedding": "features must be (L, D) or (D,)",
}


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
    """Reference to one medium on disk.

    Args:
        path: The file. It is stored as a string, which is ten times faster than a `Path` for a
            large corpus.
        view: PA, LATERAL, A4C …, or the name of a series, spelled as in the corpus.
        index: Frame of an image, or row of an embedding matrix, counted from 0; None reads all
            rows.
        kind: Kind of medium; None infers it from the file name (arrays are embeddings, everything
            else is an image).
        frames: (start, stop, step) for a clip's frames or a volume's slices; None reads all.
        tensor: Name of the tensor in a `.safetensors` file that contains several.
        spacing: Pixel spacing in mm, (row, column) or (slice, row, column); None reads it from the
            file.
        fps: Frames per second; None reads them from the file.
        mirrored: Whether to flip left and right, as a control.
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
        """Create a reference, filling in `kind` and `index` if they are not given."""
        file = os.fspath(path)
        if kind is None:
            kind = "embedding" if file.endswith(ARRAY_SUFFIXES) else "clip" if frames else "image"
        if kind == "image" and index is None:
            index = 0
        return super().__new__(
            cls, file, view, kind, index, frames, tensor, spacing, fps, mirrored
        )  # fmt: skip

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the fields, since `__new__` accepts different arguments."""
        return MediaRef._make, (tuple(self),)

    @property
    def path(self) -> Path:
        """`file` as a `Path`."""
        return Path(self.file)

    @property
    def name(self) -> str:
        """The file name without its folder."""
        return self.file.rpartition(os.sep)[2]

    @property
    def selection(self) -> str:
        """All fields that differ from the defaults for this file, such as "index 17, tensor a"."""
        default = MediaRef(self.file, self.view)
        return ", ".join(
            f"{name} {value}"
            for name, value in self._asdict().items()
            if value != getattr(default, name)
        )


@dataclass(frozen=True, slots=True)
class Media:
    """One medium in memory, as read from its file or as returned by a processor.

    Attributes:
        data: float32. As read: display values in [0, 1] with bright bones, of shape (H, W) or
            (H, W, 3) for an image, (F, H, W) or (F, H, W, 3) for a clip and (D, H, W) for a volume;
            (L, W) for embeddings. After a processor: (C, H, W), or (F, C, H, W) for a clip.
        kind: Image, clip, volume or embedding.
        view: PA, LATERAL, A4C …, spelled as in the corpus.
        spacing: Pixel spacing in the file in mm, (row, column) or (slice, row, column).
        window: (center, width) of the display window, in the file's own units.
        frame_times: Time of each frame in a clip, in seconds after the first frame.
        size: Height and width of the image in the file, in pixels.
        geometry: Map from normalised coordinates in the file's image to those in `data`; None if
            the processor does not provide a geometry.
        meta: The reader's facts about the file, see `PixelImage.meta`; empty for arrays.
        warnings: Reasons to doubt that a model can read this medium, one sentence each.
        content: Digest of the values as read, or a function that computes it; None means that
            of `data`. Random numbers for answers depend on it.
    """

    data: Tensor
    kind: Kind = "image"
    view: str = ""
    spacing: tuple[float, ...] | None = None
    window: tuple[float, float] | None = None
    frame_times: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    geometry: Geometry | None = None
    meta: Mapping[str, MetaValue] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    content: ContentDigest | None = None

    @property
    def content_digest(self) -> ContentDigest:
        """The digest of the content, or a function that computes it."""
        return digest_values(self.data) if self.content is None else self.content

    def with_data(self, data: Tensor, geometry: Geometry | None = None) -> Media:
        """Return a copy with different data and geometry."""
        return replace(self, data=data, geometry=geometry)

    def still_image(self) -> np.ndarray:
        """Return one image from an unprocessed medium: of a clip or volume, the middle one.

        Returns:
            Display values in [0, 1], of shape (H, W) or (H, W, 3).

        Raises:
            ValueError: The medium is an embedding.
        """
        if self.kind == "embedding":
            raise ValueError("embeddings cannot be shown as an image")
        array: np.ndarray = self.data.numpy()
        return array if self.kind == "image" else array[len(array) // 2]

    @property
    def fps(self) -> float | None:
        """Frames per second, from the mean interval between the frame times; None if unknown."""
        times = self.frame_times
        if times is None or len(times) < 2 or times[-1] <= times[0]:
            return None
        return (len(times) - 1) / (times[-1] - times[0])


def media_from_tensor(data: Tensor) -> Media:
    """Wrap a processed tensor: an image (C, H, W), a clip (F, C, H, W) or embeddings (L, W).

    Raises:
        ValueError: The tensor has none of these numbers of dimensions.
    """
    kinds: dict[int, Kind] = {2: "embedding", 3: "image", 4: "clip"}
    if data.dim() not in kinds:
        raise ValueError(
            f"a tensor of shape {tuple(data.shape)} is not an image, clip or embedding"
        )
    return Media(data, kinds[data.dim()])


def read_media_file(
    ref: MediaRef, *, limits: ReadLimits = DEFAULT_LIMITS, min_side: int | None = None
) -> Media:
    """Read a medium and the metadata of its file.

    Args:
        ref: The medium to read.
        limits: Size limits for images.
        min_side: See `pixels.read_image`.

    Raises:
        DataError: The file is missing, damaged, over a limit or of the wrong kind, or does not
            contain the requested frame, row or tensor.
    """
    is_array = ref.file.endswith(ARRAY_SUFFIXES)
    media = _read_array(ref) if is_array else _read_picture(ref, limits, min_side)
    media = _mirrored(media, ref.file) if ref.mirrored else media
    return replace(media, content=digest_values(media.data))


def read_digest(ref: MediaRef, min_side: int | None = None) -> str:
    """Return the digest of a file's content; see `read_media_file`."""
    return digest_values(read_media_file(ref, min_side=min_side).data)


def _mirrored(media: Media, file: str) -> Media:
    if media.kind == "embedding":
        raise DataError(f"{file}: embeddings cannot be mirrored; mirror the images instead")
    in_colour = media.data.dim() > {"image": 2, "clip": 3, "volume": 3}[media.kind]
    return replace(media, data=media.data.flip(-2 if in_colour else -1), geometry=MIRRORED)


def _picture_size(kind: Kind, pixels: np.ndarray) -> tuple[int, int]:
    """Return the height and width of an image, or of each frame or slice."""
    height, width = pixels.shape[:2] if kind == "image" else pixels.shape[1:3]
    return int(height), int(width)


def _frame_slice(ref: MediaRef, count: int) -> slice:
    """Return the slice that selects the requested frames from a file with `count` frames.

    Raises:
        DataError: The file does not contain all requested frames.
    """
    if ref.frames is None:
        return slice(None)
    start, stop, step = ref.frames
    if not 0 <= start < stop <= count or step < 1:
        raise DataError(
            f"{ref.file}: frames {start} to {stop} in steps of {step} were requested, but the file "
            f"has {count} frames, counted from 0"
        )
    return slice(start, stop, step)


# ---- PNG, JPEG and DICOM -------------------------------------------------------------------------


def _read_picture(ref: MediaRef, limits: ReadLimits, min_side: int | None) -> Media:
    if ref.kind == "embedding":
        raise DataError(
            f"{ref.file}: embeddings are only read from {' or '.join(ARRAY_SUFFIXES)} files"
        )
    has_frames = ref.kind != "image"
    picture = read_image(
        ref.file, frame=None if has_frames else ref.index, limits=limits, min_side=min_side
    )
    pixels = picture.pixels
    times = _frame_times(ref, picture)
    if has_frames:
        frames = _frame_slice(ref, len(pixels))
        pixels = pixels[frames]
        times = times and times[frames]
        if ref.kind == "volume" and pixels.ndim != 3:
            raise DataError(f"{ref.file}: a volume must be grey-scale, but this file is in colour")
    window = picture.meta.get("window")
    return Media(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        ref.kind,
        ref.view,
        spacing=ref.spacing or _spacing(ref, picture),
        window=window if isinstance(window, tuple) and len(window) == 2 else None,
        frame_times=times,
        size=_picture_size(ref.kind, pixels),
        geometry=Geometry(),
        meta=dict(picture.meta),
    )


def _spacing(ref: MediaRef, picture: PixelImage) -> tuple[float, ...] | None:
    in_plane = picture.meta.get("pixel_spacing") or picture.meta.get("imager_pixel_spacing")
    if not isinstance(in_plane, tuple):
        return None
    between = picture.meta.get("slice_spacing")
    if ref.kind == "volume" and isinstance(between, tuple):
        return (*between, *in_plane)
    return in_plane


def _frame_times(ref: MediaRef, picture: PixelImage) -> tuple[float, ...] | None:
    """Return the time of every frame in the file, in seconds, or None if unknown."""
    if ref.kind != "clip":
        return None
    if ref.fps:
        return tuple(i / ref.fps for i in range(len(picture.pixels)))
    times = picture.meta.get("frame_times")
    return times if isinstance(times, tuple) else None


# ---- .npy and .safetensors -----------------------------------------------------------------------


def _read_array(ref: MediaRef) -> Media:
    """Read only the requested rows or frames of an array file."""
    data = torch.from_numpy(np.array(_load_array(ref), dtype=np.float32))  # copies mapped files
    _check_array_shape(ref, data)
    if ref.kind == "embedding":
        return Media(data[None] if data.dim() == 1 else data, "embedding", ref.view)
    times = None
    if ref.kind == "clip" and ref.fps:
        first, _, step = ref.frames or (0, 0, 1)
        times = tuple((first + i * step) / ref.fps for i in range(len(data)))
    size = _picture_size(ref.kind, data.numpy())
    return Media(data, ref.kind, ref.view, ref.spacing, None, times, size, Geometry())


def _load_array(ref: MediaRef) -> np.ndarray:
    try:
        return _load_safetensors(ref) if ref.file.endswith(".safetensors") else _load_npy(ref)
    except DataError:
        raise
    except Exception as error:  # damaged files fail in many ways
        raise DataError(f"{ref.file}: cannot be read as an array ({error})") from None


def _check_array_shape(ref: MediaRef, data: Tensor) -> None:
    dims = _ARRAY_DIMS[ref.kind]
    in_colour = ref.kind in ("image", "clip") and data.dim() == max(dims)
    if data.dim() not in dims or (in_colour and data.shape[-1] != 3):
        hint = "; use `index` to select one row" if ref.kind == "embedding" else ""
        raise DataError(
            f"{ref.file}: {_ARRAY_SHAPES[ref.kind]}, but this array is {tuple(data.shape)}{hint}"
        )


def _select_rows(ref: MediaRef, shape: Sequence[int]) -> int | slice:
    """Return the index into the first axis; for an image, the frame in an array with several.

    Raises:
        DataError: The array does not have the requested row or frame.
    """
    count = shape[0]
    has_frames = len(shape) == 4 or (len(shape) == 3 and shape[-1] != 3)
    if ref.index is None or (ref.kind == "image" and not has_frames and ref.index == 0):
        return _frame_slice(ref, count)
    if not 0 <= ref.index < count:
        raise DataError(
            f"{ref.file}: row {ref.index} was requested, but the file has {count} rows, counted "
            "from 0"
        )
    return ref.index


def _load_npy(ref: MediaRef) -> np.ndarray:
    array = np.load(ref.file, mmap_mode="r", allow_pickle=False)
    rows: np.ndarray = array[_select_rows(ref, array.shape)] if array.ndim else array
    return rows


def _load_safetensors(ref: MediaRef) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(ref.file, framework="pt") as file:
        names = sorted(file.keys())
        if not ref.tensor and len(names) != 1:
            raise DataError(
                f"{ref.file} does not contain exactly one tensor; set `tensor` to one of: "
                f"{', '.join(names)}"
            )
        name = ref.tensor or names[0]
        if name not in names:
            raise DataError(f"{ref.file} has no tensor '{name}'; it contains {', '.join(names)}")
        lazy_tensor = file.get_slice(name)
        rows: Tensor = lazy_tensor[_select_rows(ref, lazy_tensor.get_shape())]
        array: np.ndarray = rows.float().numpy()
        return array
