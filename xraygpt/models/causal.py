"""Base class of causal language models that read text and media tokens.

A subclass sets `llm`, `renderer` and `context_len` and implements `media_tokens`. Loss, generation,
chat, compilation and sharding are implemented here.
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
from xraygpt.models.llm.token_bytes import count_token_bytes
from xraygpt.models.media_tokens import place_media
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID


class CausalModel(BaseModel):
    """Inserts media tokens into embedded text and passes both to a language model.

    Attributes:
        llm: A transformers causal language model, or one with the same interface.
    """

    llm: Any

    def __init__(self, config: BaseModel.Config) -> None:
        super().__init__(config)
        self._decoder: Decoder | None = None
        self._token_bytes: tuple[Tensor | None] | None = None

    def media_tokens(self, batch: Batch) -> list[Tensor]:
        """Compute the (L, H) tokens of each medium in a batch, in the order of the token runs."""
        raise NotImplementedError

    def embed(self, batch: Batch, tokens: Sequence[Tensor] | None = None) -> Tensor:
        """Embed (B, T) ids as (B, T, H), with media tokens in place of the placeholders.

        Args:
            batch: The token ids and media.
            tokens: The result of `media_tokens`, if it has already been computed.
        """
        ids = batch["input_ids"]
        embeds: Tensor = self.llm.get_input_embeddings()(ids.masked_fill(ids == IMAGE_TOKEN_ID, 0))
        if tokens is None:
            tokens = self.media_tokens(batch) if batch["media_inputs"] else []
        return place_media(embeds, batch["runs"], tokens, batch["sample_id"])

    def token_bytes(self) -> Tensor | None:
        """Return the (V,) bytes of text that each token stands for; see `count_token_bytes`."""
        if self._token_bytes is None:
            self._token_bytes = (count_token_bytes(self.renderer.tokenizer),)
        return self._token_bytes[0]

    def embed_average(self, batch: Batch) -> Tensor | None:
        """Embed with an average medium in place of each medium; None if there is no average."""
        return None

    def forward(self, batch: Batch, return_logits: bool = False) -> Output:
        """Compute the cross-entropy in nats, summed over the labels that are not IGNORE_INDEX.

        Labels are shifted by one here: each token is predicted from those before it.
        """
        return answer_loss(
            self.llm,
            self.embed(batch),
            batch["attention_mask"],
            batch["labels"],
            return_logits,
            self.positions(batch),
            None if self.training else self.token_bytes(),
        )

    @torch.no_grad()
    def generate(
        self, batch: Batch, generation: Generation, bonus: Bonus | None = None
    ) -> list[str]:
        """Generate one answer per row of a left-padded batch."""
        if self._decoder is None:
            self._decoder = Decoder(self.llm, self.renderer)
        return self._decoder(
            self.embed(batch),
            batch["attention_mask"],
            generation,
            self.embed_average(batch) if generation.guidance else None,
            bonus,
            [key() for key in batch["content_key"]] if generation.do_sample else (),
            self.positions(batch),
        )

    def decoder_layers(self) -> nn.ModuleList:
        """Return the transformer layers of the language model, in order."""
        layers: nn.ModuleList = self.llm.get_decoder().layers
        return layers
