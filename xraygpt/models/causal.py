"""A causal language model that reads text and the tokens of media: what all such models share.

A subclass sets `llm`, `renderer` and `context_len`, and says what tokens its media become
(`media_tokens`). Loss, answers, chat, compiling and sharding follow from these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xraygpt.datasets.base import Batch
from xraygpt.models.base import BaseModel, Bonus, Generation, Output
from xraygpt.models.llm.answer_loss import answer_loss
from xraygpt.models.llm.decoding import Decoder
from xraygpt.models.media_tokens import place_media
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID


class CausalModel(BaseModel):
    """Media -> tokens among embedded text -> language model -> answer.

    Attributes:
        llm: A transformers causal language model, or one that is called like it.
    """

    llm: Any

    def __init__(self, config: BaseModel.Config) -> None:
        super().__init__(config)
        self._decoder: Decoder | None = None

    def media_tokens(self, batch: Batch) -> list[Tensor]:
        """(L, H) of each medium of a batch, in the order of its runs."""
        raise NotImplementedError

    def embed(self, batch: Batch, tokens: Sequence[Tensor] | None = None) -> Tensor:
        """(B, T) ids with placeholders -> (B, T, H) embeddings with the media in place.

        Args:
            batch: Ids and media.
            tokens: As `media_tokens` gives them, where they are known already.
        """
        ids = batch["input_ids"]
        embeds: Tensor = self.llm.get_input_embeddings()(ids.masked_fill(ids == IMAGE_TOKEN_ID, 0))
        if tokens is None:
            tokens = self.media_tokens(batch) if batch["media_inputs"] else []
        return place_media(embeds, batch["runs"], tokens, batch["sample_id"])

    def embed_average(self, batch: Batch) -> Tensor | None:
        """As `embed`, with an average medium in every medium's place; None where there is none."""
        return None

    def forward(self, batch: Batch, return_logits: bool = False) -> Output:
        """Loss of the answers."""
        return answer_loss(
            self.llm,
            self.embed(batch),
            batch["attention_mask"],
            batch["labels"],
            return_logits,
            self.positions(batch),
        )

    @torch.no_grad()
    def generate(self, batch: Batch, how: Generation, bonus: Bonus | None = None) -> list[str]:
        """One answer per row of a left-padded batch."""
        if self._decoder is None:
            self._decoder = Decoder(self.llm, self.renderer)
        return self._decoder(
            self.embed(batch),
            batch["attention_mask"],
            how,
            self.embed_average(batch) if how.guidance else None,
            bonus,
            batch["sample_id"],
            self.positions(batch),
        )

    def decoder_layers(self) -> nn.ModuleList:
        """The layers of the language model, in order."""
        layers: nn.ModuleList = self.llm.get_decoder().layers
        return layers
