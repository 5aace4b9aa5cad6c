"""Display pixels in a batch, and as the data URLs that are sent.

Only pixels leave the machine: the files are encoded anew, so that no header, file name or id of
the original is sent.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError
from xraygpt.datasets.base import Batch
from xraygpt.media.base import Kind, Media
from xraygpt.prompting.renderer import Run


@dataclass(frozen=True, kw_only=True)
class PictureFormat:
    """How images are sent."""

    format: Literal["png", "jpeg"] = "png"
    """`png` is exact (8 bits per channel); `jpeg` is smaller."""
    max_side: int = 1024
    """Longest side in pixels; larger images are reduced to it."""
    quality: int = 90
    """Quality of JPEG, 1 to 95."""
    max_frames: int = 8
    """Maximum number of frames of a clip, or slices of a volume, spaced evenly; each is an image
    with its number before it."""
    detail: Literal["auto", "low", "high"] | None = None
    """The field `detail` of OpenAI's API; null does not send it."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(8, "max_side")
            check.at_least(1, "max_frames")
            wrong = not 1 <= self.quality <= 95
            check.refuse(wrong, "quality", f"must be in [1, 95], got {self.quality}")


class PictureCollator:
    """Keeps the pixels of each medium at their own size, as 8-bit values.

    Args:
        max_frames: Maximum number of frames or slices of a medium.
        refuse_burned_in: Whether to refuse DICOM files that declare burned-in text.
    """

    def __init__(self, max_frames: int, refuse_burned_in: bool) -> None:
        self.max_frames, self.refuse_burned_in = max_frames, refuse_burned_in

    def token_runs(self, media: Sequence[Media]) -> list[Run]:
        """Return one placeholder for each medium.

        Raises:
            DataError: A medium is not a picture, or declares burned-in text and may not be sent.
        """
        for medium in media:
            if medium.kind == "embedding":
                raise DataError("an endpoint reads images, clips and volumes, not embeddings")
            if self.refuse_burned_in and medium.meta.get("burned_in") == "YES":
                raise DataError(
                    "the image declares burned-in text (BurnedInAnnotation), which may identify "
                    "the patient; it is only sent to this machine"
                )
        return [Run(1, medium.kind) for medium in media]

    def stack(self, samples: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        """Concatenate the pixels of N media with M frames in total.

        Returns:
            ``pixels``: all frames one after another, uint8, flat. ``shapes``: (N, 4) int64, each
            medium's frames, channels, height and width. ``totals``: (N,) int64, the frames before
            `max_frames` was applied. ``numbers``: (M,) int64, counted from 1. ``seconds``: (M,)
            float64, time of each frame, or NaN.
        """
        pixels, shapes, totals, numbers, seconds = [], [], [], [], []
        for medium in (m for sample in samples for m in sample):
            data = medium.data if medium.data.dim() == 4 else medium.data[None]
            count = min(len(data), self.max_frames)
            kept = torch.linspace(0, len(data) - 1, count).round().long()
            data = (data[kept].clamp(0, 1) * 255).round().to(torch.uint8)
            times = medium.frame_times or (math.nan,) * len(medium.data)
            pixels.append(data.flatten())
            shapes.append(data.shape)
            totals.append(len(medium.data) if medium.data.dim() == 4 else 1)
            numbers.append(kept + 1)
            seconds += [times[i] if medium.frame_times else math.nan for i in kept.tolist()]
        return {
            "pixels": torch.cat(pixels),
            "shapes": torch.tensor([list(shape) for shape in shapes]),
            "totals": torch.tensor(totals),
            "numbers": torch.cat(numbers),
            "seconds": torch.tensor(seconds, dtype=torch.float64),
        }


@dataclass(frozen=True)
class Picture:
    """One image to send.

    Attributes:
        pixels: (H, W) or (H, W, 3) uint8.
        label: Text before the image, such as "Frame 3 of 16:"; empty for none.
    """

    pixels: np.ndarray
    label: str = ""


def read_pictures(batch: Batch) -> list[list[Picture]]:
    """Return the pictures of each medium of a batch, in the order of its runs."""
    if not batch["runs"]:
        return []
    inputs = {name: tensor.cpu() for name, tensor in batch["media_inputs"].items()}
    shapes = inputs["shapes"].tolist()
    flat = inputs["pixels"].split([math.prod(shape) for shape in shapes])
    first, media = 0, []
    for i, (run, shape) in enumerate(zip(batch["runs"], shapes, strict=True)):
        frames = flat[i].reshape(shape).movedim(1, -1).numpy()
        frames = frames[..., 0] if shape[1] == 1 else frames
        labels = _labels(run.kind, inputs, int(inputs["totals"][i]), range(first, first + shape[0]))
        media.append([Picture(*pair) for pair in zip(frames, labels, strict=True)])
        first += shape[0]
    return media


def _labels(kind: Kind, inputs: Mapping[str, Tensor], total: int, rows: range) -> list[str]:
    if kind == "image":
        return [""]
    name = "Frame" if kind == "clip" else "Slice"
    labels = []
    for row in rows:
        time = float(inputs["seconds"][row])
        after = "" if math.isnan(time) else f" ({time:.2f} s)"
        labels.append(f"{name} {int(inputs['numbers'][row])} of {total}{after}:")
    return labels


def picture_part(pixels: np.ndarray, how: PictureFormat) -> dict[str, Any]:
    """Encode pixels, (H, W) or (H, W, 3) uint8, as the part of a chat message."""
    file = io.BytesIO()
    options = {"quality": how.quality} if how.format == "jpeg" else {}
    Image.fromarray(pixels).save(file, how.format, **options)
    url = f"data:image/{how.format};base64,{base64.b64encode(file.getvalue()).decode()}"
    image_url = {"url": url} if how.detail is None else {"url": url, "detail": how.detail}
    return {"type": "image_url", "image_url": image_url}
