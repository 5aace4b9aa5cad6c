"""Writes small videos and DICOM cines."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.media.dicom_files import dataset, save


def frames_of(seed: int, count: int, height: int = 64, width: int = 80) -> np.ndarray:
    """(F, H, W, 3) uint8: a bright bar on noise that moves down."""
    frames = np.random.default_rng(seed).integers(0, 90, (count, height, width, 3), dtype=np.uint8)
    for i, frame in enumerate(frames):
        frame[i * height // count :][:8] = 230
    return frames


def write_video(path: Path, frames: np.ndarray, fps: int = 10) -> Path:
    """Write an MP4 or AVI file, depending on the suffix."""
    codec = {".mp4": "mpeg4", ".avi": "mjpeg"}[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_cine(path: Path, frames: np.ndarray, milliseconds: float = 50.0) -> Path:
    """Write a DICOM file with several grey frames."""
    grey = np.ascontiguousarray(frames[..., 0])
    return save(path, dataset(grey, Modality="US", FrameTime=milliseconds))
