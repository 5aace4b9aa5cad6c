"""Checked paths and media references from the rows of an annotation file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from xraygpt.common.checks import SettingsError
from xraygpt.common.paths import is_plain_file_within, is_within
from xraygpt.common.registry import did_you_mean
from xraygpt.media.base import ARRAY_SUFFIXES, KINDS, Kind, MediaRef
from xraygpt.media.frame_sampling import FrameSampling

In = TypeVar("In")
Out = TypeVar("Out")

_KEYS = (
    *("path", "view", "kind", "index", "frame", "frames", "tensor", "spacing", "fps"),
    "sampling",
)


class RecordError(ValueError):
    """A record that cannot be used; `on_error` decides whether it stops the program."""


def resolve_within(root: Path, name: object) -> Path:
    """Return the path `name` under `root`.

    Raises:
        RecordError: `name` is not a path, or it leaves `root`, directly or through a link.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise RecordError(f"{name!r} is not a valid image path")
    path = root / name
    if not is_within(path, root):
        raise RecordError(f"image path {name!r} points outside the image folder")
    return path


def resolve_image(root: Path, name: object) -> str:
    """Return `require_file(resolve_within(root, name))` as a string; faster for valid paths.

    Raises:
        RecordError: See `resolve_within` and `require_file`.
    """
    if isinstance(name, str):
        path = os.path.join(root, name)  # noqa: PTH118 (faster)
        if is_plain_file_within(path, str(root)):
            is_normalised = "/." not in path and "//" not in path
            return path if is_normalised else str(Path(path))  # one name per file
    return str(require_file(resolve_within(root, name)))


def require_file(path: Path) -> Path:
    """Return `path` if it is a non-empty file.

    Raises:
        RecordError: The file does not exist or is empty.
    """
    try:
        size = path.stat().st_size
    except OSError:
        raise RecordError(f"image not found ({path})") from None
    if size == 0:
        raise RecordError(f"image file is empty ({path})")
    return path


def parse_media_ref(
    item: object, resolve: Callable[[object], Path | str], default_view: str = ""
) -> MediaRef:
    """Parse one entry of a record's `images`.

    Args:
        item: ``{path, view?, kind?, index?, frames?, tensor?, spacing?, fps?, sampling?}``, see
            `MediaRef`; `frame` is an alias of `index`, and `frame: null` means a clip of all
            frames. A list of paths is a clip with one image file for each frame.
        resolve: Returns the file for the entry's path.
        default_view: Used if the entry has no view.

    Raises:
        RecordError: The entry is invalid.
    """
    if not isinstance(item, dict):
        raise RecordError(f"an image must be a path or an object with a path, got {item!r}")
    unknown = sorted(set(item) - set(_KEYS))
    if unknown:
        raise RecordError(
            f"unknown key {unknown[0]!r} in an image entry{did_you_mean(unknown[0], _KEYS)}"
        )
    kind = _parse_kind(item)
    path = item.get("path")
    names = list(path) if isinstance(path, list | tuple) else []
    if names == [] and isinstance(path, list | tuple):
        raise RecordError("an image entry has an empty list of paths; list one file per frame")
    try:
        files = [resolve(name) for name in names]
        return MediaRef(
            files[0] if files else resolve(path),
            str(item.get("view") or default_view),
            _parse_index(item),
            kind=kind,
            frames=_optional(_parse_frames, item.get("frames")),
            tensor=str(item.get("tensor") or ""),
            spacing=_optional(_parse_spacing, item.get("spacing")),
            fps=_optional(float, item.get("fps")),
            sampling=_optional(_parse_sampling, item.get("sampling")),
            frame_files=files,
        )
    except RecordError:
        raise
    except (TypeError, ValueError) as error:
        raise RecordError(
            "an image entry has an invalid index, frames ([start, stop, step]), spacing or fps: "
            f"{error}"
        ) from None


def _parse_kind(item: Mapping[str, object]) -> Kind | None:
    kind = item.get("kind")
    if "frame" in item and item["frame"] is None:
        kind = kind or "clip"
    for known_kind in KINDS:
        if kind == known_kind:
            return known_kind
    if kind is None:
        return None
    raise RecordError(f"unknown kind {kind!r}; choose one of {', '.join(KINDS)}")


def _parse_index(item: Mapping[str, object]) -> int | None:
    """Return `index`, or `frame` unless the entry is an embedding, which has no frames."""
    is_array = str(item.get("path")).endswith(ARRAY_SUFFIXES)
    has_no_frames = is_array and item.get("kind") in (None, "embedding")
    value = item.get("index", None if has_no_frames else item.get("frame"))
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r} is not a whole number")


def _parse_frames(value: Iterable[str | float]) -> tuple[int, int, int]:
    start, stop, *rest = (int(v) for v in value)
    (step,) = rest or (1,)
    return start, stop, step


def _parse_sampling(value: object) -> FrameSampling:
    """Build the settings from a mapping such as ``{fps: 4, max_frames: 128}``.

    Raises:
        RecordError: It is not a mapping, or has unknown keys or invalid values.
    """
    known = [field.name for field in fields(FrameSampling)]
    if not isinstance(value, Mapping):
        raise RecordError(f"sampling must be a mapping such as {{fps: 4}}, got {value!r}")
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise RecordError(
            f"unknown key {unknown[0]!r} in sampling{did_you_mean(unknown[0], known)}"
        )
    try:
        return FrameSampling(**value)
    except SettingsError as error:
        raise RecordError(f"invalid sampling: {error}".replace("\n", "; ")) from None


def _parse_spacing(value: Iterable[str | float]) -> tuple[float, ...]:
    return tuple(float(v) for v in value)


def _optional(parse: Callable[[In], Out], value: In | None) -> Out | None:
    return None if value is None else parse(value)
