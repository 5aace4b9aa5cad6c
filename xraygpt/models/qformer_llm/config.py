"""The configuration sections that belong to the Q-Former family."""

from __future__ import annotations

from dataclasses import dataclass

from xraygpt.common.checks import Checks
from xraygpt.common.project_paths import ProjectPath
from xraygpt.models.qformer_llm.qformer import QFormerConfig


@dataclass(kw_only=True)
class BridgeConfig(QFormerConfig):
    """The Q-Former between a vision encoder and an LLM."""

    init_from: ProjectPath | None = None
    """Run or BLIP-2 file to load the Q-Former from, for example for another LLM; the projection is
    initialised anew. Has no effect if `ckpt` contains a Q-Former."""
    freeze: bool = False

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.include(super().__post_init__)
            random = self.freeze and self.new_cross_attention
            why = "would leave qformer.new_cross_attention at its random initial weights"
            check.refuse(random, "freeze", why, "new_cross_attention")
