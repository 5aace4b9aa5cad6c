"""A plug-in: a decoder and tokenizer trained from scratch on stored embeddings and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.media.base import Media
from xraygpt.models.base import TextSource, build_renderer
from xraygpt.models.causal import CausalModel
from xraygpt.models.llm import small_llm as language
from xraygpt.models.text_assets import saved_tokenizer
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import Run


class RowCollator:
    """Every row of an embedding becomes one token."""

    def token_runs(self, media: Sequence[Media]) -> list[Run]:
        return [Run(len(medium.data), medium.kind) for medium in media]

    def stack(self, samples: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        return {"rows": torch.cat([media.data for sample in samples for media in sample])}


@registry.register_model("prefix_plugin")
class PrefixPlugin(CausalModel):
    """A linear projection of embeddings into a small decoder."""

    @dataclass(kw_only=True)
    class Config(CausalModel.Config):
        """Width of the embeddings, and size of the decoder."""

        width: int = 16
        llm: language.SmallLLM = field(default_factory=language.SmallLLM)
        prompt_template: str = "none"
        prompt_path: Path | None = None
        end_sym: str | None = None
        max_txt_len: int | None = 256
        seed: int = 0

    def __init__(
        self, config: Any, *, texts: TextSource = list, assets: Path | None = None, **_: Any
    ) -> None:
        super().__init__(config)
        self.tokenizer = saved_tokenizer(assets) or language.new_tokenizer(
            texts(), config.llm.vocab_size
        )
        self.llm = language.new_llm(config.llm, self.tokenizer, config.seed)
        self.proj = nn.Linear(config.width, config.llm.hidden)
        self.media_collator, self.context_len = RowCollator(), config.llm.context
        self.renderer = build_renderer(config, self.tokenizer, assets=assets)
        self.image_spec = ImageSpec(image_size=8, mean=(0.5,), std=(0.5,), tokens_per_image=1)

    def media_tokens(self, batch: Batch) -> list[Tensor]:
        rows = self.proj(batch["media_inputs"]["rows"])
        return list(rows.split([run.length for run in batch["runs"]]))

    def checkpoint_state(self) -> dict[str, Tensor]:
        return {n: t for n, t in self.state_dict().items() if n != "llm.lm_head.weight"}

    def save_assets(self, folder: Path) -> None:
        super().save_assets(folder)
        self.tokenizer.save_pretrained(folder / "tokenizer")
