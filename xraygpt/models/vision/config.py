"""The `vision` section of a model's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xraygpt.common.checks import Checks


@dataclass(kw_only=True)
class EncoderConfig:
    """Which vision encoder a model uses."""

    encoder: str = "eva_clip_g"
    """One of the names in `registry.list_encoders()`."""
    ckpt: Path | None = None
    """The encoder's weights: a file, or a downloaded folder."""
    image_size: int | None = None
    """Side of the square input in pixels; null uses the encoder's own size."""


@dataclass(kw_only=True)
class VisionConfig(EncoderConfig):
    """The vision encoder of a model that reads images into an LLM."""

    width: int | None = None
    """Width of pre-computed features; set it only with `encoder: precomputed`."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision on a GPU; a CPU always computes in fp32."""
    on_cpu: bool = False
    """Keep a frozen encoder on the CPU to save GPU memory; one process only."""
    freeze: bool = True

    def __post_init__(self) -> None:
        has_width = self.width is not None
        with Checks(self) as check:
            check.refuse(
                has_width != (self.encoder == "precomputed"),
                "width" if has_width else "encoder",
                "vit_model: precomputed and vit_width require each other",
                *("encoder", "width"),
            )
            check.needs("freeze", "on_cpu", why="for frozen encoders", key="freeze_vit")
