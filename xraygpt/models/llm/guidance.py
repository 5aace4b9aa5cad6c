"""Guidance: decoding that favours tokens more likely with this image than with an average one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from xraygpt.models.llm.kv_cache import preallocated_cache
from xraygpt.models.llm.positions import count_positions, expand_axes, next_positions


class Guidance(LogitsProcessor):
    """Adds to each token's logit how much more likely this image makes it than an average image.

    The new logit is log p(token | image) + g · (log p(token | image) − log p(token | average)), as
    in classifier-free guidance for language models (Sanchez et al. 2023). Only tokens at least
    `plausibility` times as likely as the most likely one are kept, as in contrastive decoding (Li
    et al. 2023).

    Args:
        llm: The LLM.
        average_embeds: (B, T, H) prompts with the average image in place of each image.
        mask: (B, T), 1 for tokens; the prompts are left-padded.
        guidance: g, at least 0.
        positions: (B, T) or (A, B, T) position ids of the prompts; None numbers the tokens.
    """

    plausibility = 0.1

    def __init__(
        self,
        llm: Any,
        average_embeds: Tensor,
        mask: Tensor,
        guidance: float,
        positions: Tensor | None = None,
    ) -> None:
        self.llm, self.embeds, self.mask, self.guidance = llm, average_embeds, mask, guidance
        self.positions = positions
        self.cache: Any = None
        self.next: Tensor | None = None  # (R,) positions of the next tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Process (R, V) logits that follow the (R, T) new tokens."""
        if self.next is None:
            self.cache = preallocated_cache(self.llm)
            positions = self.positions
            if positions is None:
                positions = count_positions(self.mask)
            self.next = next_positions(positions)
        else:
            self.embeds = self.llm.get_input_embeddings()(input_ids[:, -1:])
            self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
            positions = expand_axes(self.next[:, None], self.positions)
            self.next = self.next + 1
        output = self.llm(
            inputs_embeds=self.embeds,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            logits_to_keep=1,
            use_cache=True,
        )
        self.cache = output.past_key_values
        with_image = scores.float().log_softmax(dim=-1)
        with_average = output.logits[:, -1].float().log_softmax(dim=-1)
        cutoff = with_image.max(dim=-1, keepdim=True).values + math.log(self.plausibility)
        guided: Tensor = with_image + self.guidance * (with_image - with_average)
        return guided.masked_fill(with_image < cutoff, -math.inf)

    def select(self, rows: Tensor) -> None:
        """Continue with these rows only."""
        self.mask = self.mask[rows]
        self.next = None if self.next is None else self.next[rows]
        self.cache.batch_select_indices(rows)
