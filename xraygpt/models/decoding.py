"""Decoding with a causal LLM, to a stop string.

Notation: B rows, T tokens, H the LLM's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList, StopStringCriteria

from xraygpt.models.base import Generation
from xraygpt.processors.prompts import PromptRenderer


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
        # Neutral values are said outright, or those of the LLM's own generation_config would act.
        options["repetition_penalty"] = how.repetition_penalty
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
