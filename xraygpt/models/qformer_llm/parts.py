"""The parts of an `xraygpt` model, as code that loads, packs or exports them sees them."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.vision.finding_head import FindingHead
from xraygpt.prompting.renderer import PromptRenderer


class Composition(Protocol):
    """Vision encoder, Q-Former, projection, LLM."""

    config: Any
    vision: VisionEncoder | None
    qformer: nn.Module
    proj: nn.Linear
    llm: Any
    tokenizer: Any
    renderer: PromptRenderer
    finding_head: FindingHead | None
    loaded_keys: set[str]

    def state_dict(self) -> dict[str, Tensor]:
        """All weights by name."""

    def encode(self, pixel_values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, L, D)."""
