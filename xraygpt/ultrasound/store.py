"""The output folder: lossless clips, still images and the state from which a run continues.

Clips are FFV1 (RFC 9043) in mp4: every pixel is kept, every frame can be decoded alone, and time
stamps are in microseconds. A masked echocardiogram takes about a fifteenth of its raw size. Still
images are PNG. The readers of images and videos in `media/` read both, so that tables need only
name the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.common.errors import DataError, InputError
from xraygpt.media.video import import_av

STATE_FILE, KEY_FILE = "state.jsonl", "pseudonym.key"
CLIPS, FIGURES = "clips", "figures"
ASSUMED_FPS = 25.0
_TICKS = 1_000_000  # per second


def write_pixels(
    folder: Path, name: str, pixels: np.ndarray, times: tuple[float, ...] | None
) -> Path:
    """Write a clip or a still image, completely or not at all.

    Args:
        folder: The output folder.
        name: Id of the clip.
        pixels: uint8 (F, H, W) or (F, H, W, 3).
        times: Times of the frames in seconds, increasing; None writes 25 frames per second.

    Returns:
        The file, relative to the folder.
    """
    file = Path(CLIPS) / f"{name}{'.png' if len(pixels) == 1 else '.mp4'}"
    temporary = folder / CLIPS / f"{name}.part{file.suffix}"
    temporary.parent.mkdir(parents=True, exist_ok=True)
    if len(pixels) == 1:
        from PIL import Image

        Image.fromarray(pixels[0]).save(temporary)
    else:
        _write_ffv1(temporary, pixels, times or [i / ASSUMED_FPS for i in range(len(pixels))])
    temporary.replace(folder / file)
    return file


def _write_ffv1(file: Path, pixels: np.ndarray, times: Any) -> None:
    av = import_av()
    layout, coded = ("gray", "gray") if pixels.ndim == 3 else ("rgb24", "bgr0")
    base = Fraction(1, _TICKS)
    with av.open(str(file), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = coded
        stream.options = {"level": "3", "g": "1", "slicecrc": "1"}
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = base
        for values, time in zip(pixels, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format=layout)
            frame.pts, frame.time_base = round((time - times[0]) * _TICKS), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# ---- state ---------------------------------------------------------------------------------------


class State:
    """Which files are done, in a file to which a line is added for each.

    Args:
        folder: The output folder. It is created.
        settings: What the results depend on.

    Raises:
        InputError: The folder has other files, or results of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / STATE_FILE
        self.done: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self._read(folder, settings)
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} has other files already; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._append({"settings": dict(settings)})

    def _read(self, folder: Path, settings: Mapping[str, Any]) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines()
        entries = list[dict[str, Any]]()
        for line in lines:
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:  # the run was stopped while it wrote this line
                continue
        before = entries[0].get("settings") if entries else None
        if before is None:
            raise DataError(f"{self.path} is damaged; choose another folder, or remove this one")
        if before != dict(settings):
            changed = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
            raise InputError(
                f"{folder} has results of other settings ({', '.join(changed)}); choose another "
                "folder, or remove this one"
            )
        self.done = {entry["file"]: entry for entry in entries[1:]}
        self.path.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")

    def find(self, file: str, stamp: list[int]) -> dict[str, Any] | None:
        """Return the result of a file if it has not changed since; None otherwise.

        Args:
            file: Id of the file.
            stamp: Its size in bytes and its time of modification.
        """
        entry = self.done.get(file)
        return entry["result"] if entry is not None and entry["stamp"] == stamp else None

    def add(self, file: str, stamp: list[int], result: dict[str, Any]) -> None:
        """Store the result of a file."""
        self.done[file] = {"file": file, "stamp": stamp, "result": result}
        self._append(self.done[file])

    def _append(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
