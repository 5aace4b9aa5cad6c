"""The input check of a corpus: reads each image once and lists those with a warning."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from xraygpt.common import checkpoint
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.logging import progress
from xraygpt.media.base import Media, MediaRef, read_media_file

CHECK_FILE = "input_check.json"
NUM_NAMED = 3
"""Number of images that a message names."""
_MIN_SIDE = 256  # allows JPEG files to be decoded at a fraction of their size

ImageWarnings = dict[MediaRef, tuple[str, ...]]


def check_images(
    refs: Sequence[MediaRef], check: Callable[[Media], tuple[str, ...]], folder: Path | None = None
) -> ImageWarnings:
    """Check images that are in files; embeddings, clips, volumes and unreadable files are skipped.

    Args:
        refs: The media.
        check: Returns the warnings about a medium as read.
        folder: Folder in which the results are stored, so that a repeated command does not read
            the images again; None stores nothing.

    Returns:
        The warnings by image, for all images that were checked.
    """
    path = None if folder is None else folder / CHECK_FILE
    stored = _read_stored(path)
    images = [ref for ref in dict.fromkeys(refs) if ref.kind == "image"]
    todo = [ref for ref in images if _key(ref) not in stored]

    def warnings_of(ref: MediaRef) -> tuple[str, ...] | None:
        try:
            return check(read_media_file(ref, min_side=_MIN_SIDE))
        except DataError:
            return None

    if not todo:
        return {ref: tuple(stored[_key(ref)]) for ref in images}
    with (
        ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool,
        progress(total=len(todo), desc="input check", unit="image") as bar,
    ):
        for ref, warnings in zip(todo, pool.map(warnings_of, todo), strict=True):
            bar.update()
            if warnings is not None:
                stored[_key(ref)] = list(warnings)
    if path is not None:
        checkpoint.write_text_atomic(path, json.dumps(stored, indent=1) + "\n")
    return {ref: tuple(stored[_key(ref)]) for ref in images if _key(ref) in stored}


def refuse_warned(warned: Mapping[str, Sequence[str]], total: int) -> None:
    """Refuse images with a warning, for `--strict`.

    Args:
        warned: Warnings by the name of the image; images without a warning may be included.
        total: Number of images that were checked.

    Raises:
        InputError: An image has a warning.
    """
    names = [name for name, warnings in warned.items() if warnings]
    if names:
        raise InputError(f"--strict: {summary(warned, total)}")


def summary(warned: Mapping[str, Sequence[str]], total: int) -> str:
    """Summarise the warnings in one sentence, with the first names; empty without warnings."""
    names = [name for name, warnings in warned.items() if warnings]
    if not names:
        return ""
    kinds = Counter(w for warnings in warned.values() for w in warnings)
    reasons = "; ".join(f"{n} × {text.rstrip('.')}" for text, n in kinds.most_common(3))
    more = ", …" if len(names) > NUM_NAMED else ""
    return (
        f"{len(names)} of {total} images may not be what the model expects "
        f"({', '.join(names[:NUM_NAMED])}{more}): {reasons}"
    )


def _key(ref: MediaRef) -> str:
    return f"{ref.file} {ref.selection} {ref.view}"


def _read_stored(path: Path | None) -> dict[str, list[str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
