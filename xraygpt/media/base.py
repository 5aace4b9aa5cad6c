"""Media of a study (images, clips, volumes and embeddings), on disk and in memory.

A `MediaRef` identifies a medium on disk, `read_media_file` reads it, and the resulting `Media`
contains the pixels together with the file's metadata (spacing, window, frame times).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from xraygpt.common.errors import DataError
from xraygpt.media.arrays import ARRAY_SUFFIXES, load_array
from xraygpt.media.clips import FrameSelector, read_frame_files
from xraygpt.media.content import ContentDigest, digest_values
from xraygpt.media.frame_sampling import ClipSource, FrameSampling
from xraygpt.media.geometry import MIRRORED, Geometry
from xraygpt.media.picture import DEFAULT_LIMITS, MetaValue, PixelImage, ReadLimits
from xraygpt.media.pixels import frame_count, read_image
from xraygpt.media.video import read_video
from xraygpt.media.video_containers import has_video_suffix, is_video

Kind = Literal["image", "clip", "volume", "embedding"]
KINDS: tuple[Kind, ...] = get_args(Kind)


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
    sampling: FrameSampling | None
    frame_files: tuple[str, ...]


_ADDED = (None, ())  # what `sampling` and `frame_files` are in references made before they existed


class MediaRef(_Fields):
    """Reference to one medium on disk.

    Args:
        path: The file. It is stored as a string, which is ten times faster than a `Path` for a
            large corpus. With `frame_files`, the first of them.
        view: PA, LATERAL, A4C …, or the name of a series, spelled as in the corpus. For several
            rows of embeddings, also one label for each row; see `media.row_labels`.
        index: Frame of an image, or row of an embedding matrix, counted from 0; None reads all
            rows.
        kind: Kind of medium; None infers it: arrays are embeddings; videos, and files with
            `frames`, `sampling` or `frame_files`, are clips; everything else is an image.
        frames: (start, stop, step) for a clip's frames, a volume's slices or the rows of
            embeddings; None reads all.
        tensor: Name of the tensor in a `.safetensors` file that contains several, of the array in
            an `.npz` file, or of the column in a Parquet file.
        spacing: Pixel spacing in mm, (row, column) or (slice, row, column); None reads it from the
            file.
        fps: Frames per second; None reads them from the file.
        mirrored: Whether to flip left and right, as a control.
        sampling: Which frames of a clip to read, of those that `frames` selects; None reads all.
        frame_files: Image files that make up a clip, in order.
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
        sampling: FrameSampling | None = None,
        frame_files: Iterable[Path | str] = (),
    ) -> MediaRef:
        """Create a reference, filling in `kind` and `index` if they are not given."""
        file = os.fspath(path)
        files = tuple(os.fspath(f) for f in frame_files)
        if kind is None and file.endswith(ARRAY_SUFFIXES):
            kind = "embedding"
        elif kind is None:
            is_clip = frames or sampling or files or has_video_suffix(file)
            kind = "clip" if is_clip else "image"
        if kind == "image" and index is None:
            index = 0
        return super().__new__(
            cls, file, view, kind, index, frames, tensor, spacing, fps, mirrored, sampling, files
        )  # fmt: skip

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> MediaRef:  # type: ignore[override]
        """Create a reference from all fields, or from those of older versions."""
        values = tuple(iterable)
        missing = len(cls._fields) - len(values)
        added = _ADDED[len(_ADDED) - missing :] if 0 < missing <= len(_ADDED) else ()
        return super()._make((*values, *added))

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
        fields = self._asdict()
        if files := self.frame_files:
            sha = hashlib.sha256("\0".join(files).encode()).hexdigest()[:8]
            fields["frame_files"] = f"{len(files)} ({sha})"
        return ", ".join(
            f"{name} {value}" for name, value in fields.items() if value != getattr(default, name)
        )

    @property
    def identity(self) -> list[object]:
        """All fields, for digests; those added later only if they are set."""
        return list(self) if self[-len(_ADDED) :] != _ADDED else list(self[: -len(_ADDED)])


@dataclass(frozen=True, slots=True)
class Media:
    """One medium in memory, as read from its file or as returned by a processor.

    Attributes:
        data: float32. As read: display values in [0, 1] with bright bones, of shape (H, W) or
            (H, W, 3) for an image, (F, H, W) or (F, H, W, 3) for a clip and (D, H, W) for a volume;
            (L, W) for embeddings. After a processor: (C, H, W), or (F, C, H, W) for a clip.
            uint8 in 0..255 only if `read_media_file` was asked for that.
        kind: Image, clip, volume or embedding.
        view: PA, LATERAL, A4C …, spelled as in the corpus.
        spacing: Pixel spacing in the file in mm, (row, column) or (slice, row, column).
        window: (center, width) of the display window, in the file's own units.
        frame_times: Time of each frame in a clip, in seconds after the first frame of the file.
        size: Height and width of the image in the file, in pixels.
        geometry: Map from normalised coordinates in the file's image to those in `data`; None if
            the processor does not provide a geometry.
        meta: The reader's facts about the file, see `PixelImage.meta`; empty for arrays.
        warnings: Reasons to doubt that a model can read this medium, one sentence each.
        content: Digest of the values as read, or a function that computes it; None means that
            of `data`. Random numbers for answers depend on it.
        clip: The clip in the file, and which of its frames `data` contains; None for other kinds.
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
    clip: ClipSource | None = None

    @property
    def content_digest(self) -> ContentDigest:
        """The digest of the content, or a function that computes it."""
        return digest_values(self.data) if self.content is None else self.content

    def with_data(self, data: Tensor, geometry: Geometry | None = None) -> Media:
        """Return a copy with different data and geometry."""
        return replace(self, data=data, geometry=geometry)

    def display_values(self) -> np.ndarray:
        """Return `data` as float32, with 8-bit values mapped from 0..255 to [0, 1]."""
        return _as_float(self.data).numpy()

    def video_metadata(self) -> dict[str, Any]:
        """Return the arguments of `transformers.video_utils.VideoMetadata` for an unprocessed clip.

        That class computes the time of frame i as i / fps. If the frames in the file do not follow
        each other at a constant rate, the arguments therefore count milliseconds instead of frames:
        fps is 1000, and frames_indices are the true times in ms. The mean rate of the frames read
        is the same either way.

        Raises:
            ValueError: The medium is not a clip read from a file.
        """
        if self.clip is None or self.size is None:
            raise ValueError("only a clip that was read from a file has video metadata")
        total, fps, indices = self.clip.total_frames, self.clip.fps, list(self.clip.indices)
        if not self.clip.constant_rate and self.frame_times and self.clip.duration:
            total, fps = max(1, round(self.clip.duration * 1000)), 1000.0
            indices = [round(t * 1000) for t in self.frame_times]
        return {
            "total_num_frames": total,
            "fps": fps,
            "width": self.size[1],
            "height": self.size[0],
            "duration": self.clip.duration,
            "frames_indices": indices,
        }

    def still_image(self) -> np.ndarray:
        """Return one image from an unprocessed medium: of a clip or volume, the middle one.

        Returns:
            Display values in [0, 1], of shape (H, W) or (H, W, 3).

        Raises:
            ValueError: The medium is an embedding.
        """
        if self.kind == "embedding":
            raise ValueError("embeddings cannot be shown as an image")
        data = self.data if self.kind == "image" else self.data[len(self.data) // 2]
        return _as_float(data).numpy()

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
    ref: MediaRef,
    *,
    limits: ReadLimits = DEFAULT_LIMITS,
    min_side: int | None = None,
    uint8: bool = False,
) -> Media:
    """Read a medium and the metadata of its file.

    Args:
        ref: The medium to read.
        limits: Size limits for images and clips.
        min_side: See `pixels.read_image`.
        uint8: Whether to return images, clips and volumes as uint8 in 0..255, which takes a quarter
            of the memory. Videos have these values in the file; others are rounded to them.

    Raises:
        DataError: The file is missing, damaged, over a limit or of the wrong kind, or does not
            contain the requested frame, row or tensor.
        InputError: The file is a video, and PyAV is not installed.
    """
    if ref.sampling is not None and ref.kind != "clip":
        raise DataError(f"{ref.file}: sampling selects frames of a clip; set kind: clip")
    if ref.file.endswith(ARRAY_SUFFIXES):
        media = _read_array(ref)
    elif ref.frame_files:
        media = _read_frame_files(ref, limits, min_side)
    elif is_video_file(ref):
        media = _read_video(ref, limits)
    else:
        media = _read_picture(ref, limits, min_side)
    media = _mirrored(media, ref.file) if ref.mirrored else media
    content = digest_values(media.data)
    if media.kind != "embedding":
        media = media.with_data(
            _as_bytes(media.data) if uint8 else _as_float(media.data), media.geometry
        )
    return replace(media, content=content)


def read_digest(ref: MediaRef, min_side: int | None = None) -> str:
    """Return the digest of a file's content; see `read_media_file`."""
    return digest_values(read_media_file(ref, min_side=min_side).data)


def _as_float(data: Tensor) -> Tensor:
    return data.float().div_(255) if data.dtype == torch.uint8 else data


def _as_bytes(data: Tensor) -> Tensor:
    return data if data.dtype == torch.uint8 else (data * 255).round_().clamp_(0, 255).byte()


def _mirrored(media: Media, file: str) -> Media:
    if media.kind == "embedding":
        raise DataError(f"{file}: embeddings cannot be mirrored; mirror the images instead")
    in_colour = media.data.dim() > {"image": 2, "clip": 3, "volume": 3}[media.kind]
    return replace(media, data=media.data.flip(-2 if in_colour else -1), geometry=MIRRORED)


def _picture_size(kind: Kind, pixels: np.ndarray) -> tuple[int, int]:
    """Return the height and width of an image, or of each frame or slice."""
    height, width = pixels.shape[:2] if kind == "image" else pixels.shape[1:3]
    return int(height), int(width)


# ---- PNG, JPEG and DICOM -------------------------------------------------------------------------


def _read_picture(ref: MediaRef, limits: ReadLimits, min_side: int | None) -> Media:
    if ref.kind == "embedding":
        raise DataError(
            f"{ref.file}: embeddings are only read from {' or '.join(ARRAY_SUFFIXES)} files"
        )
    has_frames = ref.kind != "image"
    select = FrameSelector.of(ref) if has_frames else None
    frame = None if has_frames else ref.index
    picture = read_image(ref.file, frame=frame, limits=limits, min_side=min_side, select=select)
    pixels = picture.pixels
    if ref.kind == "volume" and pixels.ndim != 3:
        raise DataError(f"{ref.file}: a volume must be grey-scale, but this file is in colour")
    return _picture_media(ref, picture, pixels, select)


def _picture_media(
    ref: MediaRef, picture: PixelImage, pixels: np.ndarray, select: FrameSelector | None
) -> Media:
    is_clip = ref.kind == "clip" and select is not None
    window = picture.meta.get("window")
    return Media(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        ref.kind,
        ref.view,
        spacing=ref.spacing or _spacing(ref, picture),
        window=window if isinstance(window, tuple) and len(window) == 2 else None,
        frame_times=select.times if is_clip and select else None,
        size=_picture_size(ref.kind, pixels),
        geometry=Geometry(),
        meta=dict(picture.meta),
        clip=select.source if is_clip and select else None,
    )


def _spacing(ref: MediaRef, picture: PixelImage) -> tuple[float, ...] | None:
    in_plane = picture.meta.get("pixel_spacing") or picture.meta.get("imager_pixel_spacing")
    if not isinstance(in_plane, tuple):
        return None
    between = picture.meta.get("slice_spacing")
    if ref.kind == "volume" and isinstance(between, tuple):
        return (*between, *in_plane)
    return in_plane


# ---- videos and lists of images ------------------------------------------------------------------


def is_video_file(ref: MediaRef) -> bool:
    """Return whether a file is read as a video: by its content, or by its name if that is none."""
    return is_video(ref.path) or (has_video_suffix(ref.file) and not _is_picture(ref.path))


def _is_picture(path: Path) -> bool:
    """Return whether a file is a PNG, JPEG or DICOM file, whatever its name."""
    try:
        frame_count(path)
    except DataError:
        return False
    return True


def _read_video(ref: MediaRef, limits: ReadLimits) -> Media:
    if ref.kind not in ("clip", "image"):
        raise DataError(f"{ref.file}: a video is read as a clip or image, not as {ref.kind}")
    select = FrameSelector.of(ref)
    if ref.kind == "image":
        index = ref.index or 0
        select.frames = (index, index + 1, 1)
    data = torch.from_numpy(read_video(ref.file, select, limits=limits))
    is_clip = ref.kind == "clip"
    total = 0 if select.source is None else select.source.total_frames
    return Media(
        data if is_clip else data[0],
        ref.kind,
        ref.view,
        spacing=ref.spacing,
        frame_times=select.times if is_clip else None,
        size=(data.shape[1], data.shape[2]),
        geometry=Geometry(),
        meta={"rows": data.shape[1], "columns": data.shape[2], "frames": total, "voi": "identity"},
        clip=select.source if is_clip else None,
    )


def _read_frame_files(ref: MediaRef, limits: ReadLimits, min_side: int | None) -> Media:
    if ref.kind != "clip":
        raise DataError(f"{ref.file}: a list of images is read as a clip, not as {ref.kind}")
    pixels, select, first = read_frame_files(ref, limits, min_side)
    return _picture_media(ref, first, pixels, select)


# ---- Arrays --------------------------------------------------------------------------------------


def _read_array(ref: MediaRef) -> Media:
    """Read only the requested rows or frames of an array file."""
    select = FrameSelector.of(ref) if ref.kind == "clip" else None
    data = load_array(ref, select)
    if ref.kind == "embedding":
        return Media(data[None] if data.dim() == 1 else data, "embedding", ref.view)
    times, clip = (select.times, select.source) if select else (None, None)
    size = _picture_size(ref.kind, data.numpy())
    return Media(data, ref.kind, ref.view, ref.spacing, None, times, size, Geometry(), clip=clip)
