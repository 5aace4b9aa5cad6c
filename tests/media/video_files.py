"""Helpers that write video files whose frames say their number by their brightness."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

STEP = 6  # grey levels from one frame to the next
LOSSLESS = {"codec": "ffv1", "pix_fmt": "bgr0"}


def numbered(i: int, shape: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Frame i: grey level STEP x i, with a white mark at the top left."""
    pixels = np.full((*shape, 3), STEP * i % 256, np.uint8)
    pixels[: shape[0] // 4, : shape[1] // 4] = 255
    return pixels


def write_video(
    path: Path,
    frames: Sequence[np.ndarray] | int,
    *,
    rate: int = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    display: dict[str, Any] | None = None,
) -> Path:
    """Write frames, or that many numbered ones, at a rate or at the given times (seconds)."""
    frames = [numbered(i) for i in range(frames)] if isinstance(frames, int) else frames
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2] if frames else (48, 64)
        stream.pix_fmt, stream.options = pix_fmt, options or {}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if display:
            stream.set_display_rotation(**display)
        container.start_encoding()
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[i] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """Write a tenth of a second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers_shown(pixels: Any) -> list[int]:
    """The number of each frame of (F, H, W, 3), from the brightness of its centre."""
    array = np.asarray(pixels, np.float64) * (1 if pixels.dtype.is_floating_point is False else 255)
    h, w = array.shape[1:3]
    centre = array[:, h // 2 - 4 : h // 2 + 4, w // 2 - 4 : w // 2 + 4]
    return [round(v / STEP) for v in centre.mean(axis=(1, 2, 3))]
