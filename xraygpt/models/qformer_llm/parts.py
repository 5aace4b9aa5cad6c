"""The parts of an `xraygpt` model as seen by code that loads, packs or exports them."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from xraygpt.common.training_data import TrainingData
from xraygpt.models.abilities import Abilities
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.vision.finding_head import FindingHead
from xraygpt.prompting.renderer import PromptRenderer


class Composition(Protocol):
    """A model composed of a vision encoder, a Q-Former, a projection and an LLM."""

    config: Any
    vision: VisionEncoder | None
    qformer: nn.Module
    proj: nn.Linear
    llm: Any
    tokenizer: Any
    renderer: PromptRenderer
    abilities: Abilities
    trained_on: tuple[TrainingData, ...]
    finding_head: FindingHead | None
    loaded_keys: set[str]

    def state_dict(self) -> dict[str, Tensor]:
        """Return all weights by name."""

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Encode images of shape (N, C, H, W) as features of shape (N, L, D)."""
