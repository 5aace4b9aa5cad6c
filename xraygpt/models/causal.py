"""What every model here does with a causal LLM: loss at the answers, and decoding to a stop string.

Notation: B rows, T tokens, H the LLM's width, V its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import StoppingCriteriaList, StopStringCriteria

from xraygpt.models.base import Generation, Output
from xraygpt.processors.prompts import IGNORE_INDEX, PromptRenderer


def answer_loss(
    llm: nn.Module, embeds: Tensor, attention_mask: Tensor, labels: Tensor, return_logits: bool
) -> Output:
    """Cross-entropy of the labelled tokens.

    Logits are computed only at positions where some row has a target, in float32.

    Args:
        llm: A transformers causal LM.
        embeds: (B, T, H).
        attention_mask: (B, T) int64.
        labels: (B, T) int64, not shifted; IGNORE_INDEX carries no loss.
        return_logits: Compute all (B, T, V) logits and return them.
    """
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # what position t should say
    wanted = (shifted != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)
    if not len(wanted):
        wanted = wanted.new_zeros(1)  # keeps the graph; its labels are all ignored
    keep: Any = 0 if return_logits else wanted
    logits = llm(
        inputs_embeds=embeds, attention_mask=attention_mask, logits_to_keep=keep, use_cache=False
    ).logits
    scored = logits[:, wanted] if return_logits else logits
    targets = shifted[:, wanted]
    each = F.cross_entropy(
        scored.float().flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    ).view(targets.shape)
    row_loss = each.sum(dim=1)
    return Output(
        loss=row_loss.sum(),
        row_loss=row_loss.detach(),
        num_targets=(targets != IGNORE_INDEX).sum(dim=1),
        logits=logits if return_logits else None,
    )


class Decoder:
    """Greedy, beam or sampled decoding that ends at the template's stop strings.

    The table behind a stop string takes half a second to build and is built once.
    """

    def __init__(self, llm: Any, renderer: PromptRenderer) -> None:
        self.llm, self.tokenizer = llm, renderer.tokenizer
        self.stop_strings = renderer.stop_strings
        self._table: StopStringCriteria | None = None
        ends = llm.generation_config.eos_token_id
        self.end_ids = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self.end_ids.add(self.tokenizer.eos_token_id)
        specials = dict(
            zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True)
        )
        self.text_stops = [s for s in self.stop_strings if s not in specials]
        self.end_ids |= {specials[s] for s in self.stop_strings if s in specials}

    def __call__(self, embeds: Tensor, attention_mask: Tensor, how: Generation) -> list[str]:
        """(B, T, H) embeddings, left-padded, with their (B, T) mask -> B answers."""
        pad = self.tokenizer.pad_token_id
        options: dict[str, Any] = {"do_sample": how.do_sample, "num_beams": how.num_beams}
        if how.do_sample:
            options |= {"temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
        if how.num_beams > 1:
            options["length_penalty"] = how.length_penalty
        if how.repetition_penalty != 1.0:
            options["repetition_penalty"] = how.repetition_penalty
        if how.no_repeat_ngram_size:
            options["no_repeat_ngram_size"] = how.no_repeat_ngram_size
        with torch.random.fork_rng(devices=[], enabled=how.do_sample):
            if how.do_sample:
                torch.manual_seed(how.seed)
            ids = self.llm.generate(
                inputs_embeds=embeds,
                attention_mask=attention_mask,
                max_new_tokens=how.max_new_tokens,
                eos_token_id=sorted(self.end_ids),
                pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
                stopping_criteria=self._criteria(),
                **options,
            )
        return [self._text(row) for row in ids.tolist()]

    def _criteria(self) -> StoppingCriteriaList:
        if not self.text_stops:
            return StoppingCriteriaList()
        if self._table is None:
            self._table = StopStringCriteria(self.tokenizer, self.text_stops)
        return StoppingCriteriaList([self._table])

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        for stop in self.text_stops:
            text = text.split(stop)[0]
        return text.strip()
