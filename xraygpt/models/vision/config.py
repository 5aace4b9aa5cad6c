"""The `vision` section of a model's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xraygpt.common.checks import Checks
from xraygpt.common.project_paths import EncoderName, ProjectPath
from xraygpt.common.requirements import Missing, missing_encoder, missing_paths


@dataclass(kw_only=True)
class EncoderConfig:
    """Which vision encoder a model uses."""

    encoder: EncoderName = "eva_clip_g"
    """One of the names in `registry.list_encoders()`."""
    ckpt: ProjectPath | None = None
    """The encoder's weights: a file, or a downloaded folder."""
    image_size: int | None = None
    """Side of the square input in pixels; null uses the encoder's own size."""

    def missing(self, where: str) -> list[Missing]:
        """List the weight file, and the run or folder that the encoder's name refers to."""
        return missing_encoder(f"{where}.encoder", self.encoder) + missing_paths(self, where)


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
