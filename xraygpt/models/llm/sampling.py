"""Greedy decoding and sampling of many rows at once.

A prompt is processed once for all its candidates, and rows that have ended are dropped. `sample`
works with every LLM; `sample_branches` is faster for many answers to one prompt, if the LLM is one
for which `has_llama_steps` holds.

Notation: B prompts, R rows being decoded (at first B times the answers per prompt), T tokens; V is
the size of the vocabulary, A the number of position axes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TopPLogitsWarper,
)

from xraygpt.models.base import Generation
from xraygpt.models.llm.branches import Branches
from xraygpt.models.llm.kv_cache import preallocated_cache
from xraygpt.models.llm.llama_steps import LlamaSteps
from xraygpt.models.llm.positions import count_positions, expand_axes, next_positions

DROP_FRACTION = 0.125  # of rows that must have ended before dropping them is worth a copy

# Settings in an LLM's own generation_config that `sample` does not implement.
UNSUPPORTED_SETTINGS = """suppress_tokens begin_suppress_tokens bad_words_ids sequence_bias
min_length min_new_tokens forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty
remove_invalid_values min_p typical_p top_h epsilon_cutoff eta_cutoff watermarking_config
stop_strings max_time"""


def has_unsupported_settings(llm: Any) -> bool:
    """Return whether an LLM's generation_config has any of the `UNSUPPORTED_SETTINGS`."""
    return any(getattr(llm.generation_config, name, None) for name in UNSUPPORTED_SETTINGS.split())


class RowProcessor(Protocol):
    """A logits processor that keeps a state for each row."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Process (R, V) logits that follow the (R, T) new tokens."""

    def select(self, rows: Tensor) -> None:
        """Continue with these rows only."""


class NoRepeat(LogitsProcessor):
    """Works like transformers' `NoRepeatNGramLogitsProcessor`, but is vectorised over rows."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Process (R, V) logits that follow the (R, T) new tokens."""
        prefix = self.size - 1
        if input_ids.shape[1] < self.size:
            return scores
        ngrams = input_ids.unfold(1, self.size, 1)
        last = input_ids[:, None, input_ids.shape[1] - prefix :]
        rows, starts = (ngrams[..., :prefix] == last).all(dim=-1).nonzero(as_tuple=True)
        scores = scores.clone()
        scores[rows, ngrams[rows, starts, -1]] = -torch.inf
        return scores


class Temperature(LogitsProcessor):
    """Divides logits by each row's temperature, which is 1 for references.

    Args:
        generation: The temperature and the numbers of candidates and references.
        prompts: B; each prompt's rows are its candidates followed by its references.
        device: Device of the logits.
    """

    def __init__(self, generation: Generation, prompts: int, device: Any) -> None:
        candidates = [generation.temperature] * generation.candidates
        values = candidates + [1.0] * generation.references
        self.values = torch.tensor(values * prompts, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Process (R, V) logits that follow the (R, T) new tokens."""
        return scores / self.values[:, None]

    def select(self, rows: Tensor) -> None:
        """Continue with these rows only."""
        self.values = self.values[rows]


def score_processors(
    generation: Generation, guidance: RowProcessor | None, temperature: RowProcessor | None
) -> LogitsProcessorList:
    """Return the logits processors in the order in which transformers' `generate` applies them."""
    processors = LogitsProcessorList()
    if generation.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(generation.repetition_penalty))
    if generation.no_repeat_ngram_size:
        processors.append(NoRepeat(generation.no_repeat_ngram_size))
    if guidance is not None:
        processors.append(guidance)
    if temperature is not None:
        processors.append(temperature)
    if generation.do_sample and generation.top_p < 1.0:
        processors.append(TopPLogitsWarper(generation.top_p))
    return processors


class _Rows:
    """The rows being decoded, with their cache, attention mask and positions.

    Attributes:
        index: (R,) int64, the index of each row in the output.
        ended: (R,) bool, whether a row has ended.
    """

    index: Tensor
    ended: Tensor

    def __init__(self, llm: Any, mask: Tensor, positions: Tensor | None, cache: Any) -> None:
        self.llm, self.mask, self.axes = llm, mask, positions
        self.cache = preallocated_cache(llm) if cache is None else cache
        self.padded = not bool(mask.all())
        self.positions = count_positions(mask) if positions is None else positions
        self.next = next_positions(self.positions)

    def process_prompts(self, embeds: Tensor, copies: int) -> Tensor:
        """Process (B, T, H) prompts, repeat each row, and return (B · copies, V) logits."""
        logits = self._forward(self.positions[..., -embeds.shape[1] :], inputs_embeds=embeds)
        if copies > 1:
            self.cache.batch_repeat_interleave(copies)
        self.mask = self.mask.repeat_interleave(copies, dim=0)
        self.next = self.next.repeat_interleave(copies)
        self.index = torch.arange(len(self.mask), device=embeds.device)
        self.ended = torch.zeros(len(self.mask), dtype=torch.bool, device=embeds.device)
        return logits.repeat_interleave(copies, dim=0)

    def process_tokens(self, tokens: Tensor) -> Tensor:
        """Process the next (R,) tokens and return (R, V) logits."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        positions = expand_axes(self.next[:, None], self.axes)
        self.next = self.next + 1
        return self._forward(positions, input_ids=tokens[:, None])

    def drop_ended(self) -> Tensor:
        """Drop rows that have ended and return the indices of the remaining rows."""
        remaining = (~self.ended).nonzero().squeeze(1)
        self.index, self.mask = self.index[remaining], self.mask[remaining]
        self.ended, self.next = self.ended[remaining], self.next[remaining]
        self.cache.batch_select_indices(remaining)
        return remaining

    def _forward(self, positions: Tensor, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.llm(
            **inputs,
            attention_mask=self.mask if self.padded else None,
            position_ids=positions,
            past_key_values=self.cache,
            logits_to_keep=1,
            use_cache=True,
        ).logits
        return logits[:, -1]


def sample(
    llm: Any,
    embeds: Tensor,
    mask: Tensor,
    generation: Generation,
    has_ended: Callable[[Tensor, Tensor], Tensor],
    guidance: RowProcessor | None = None,
    names: Sequence[str] = (),
    *,
    positions: Tensor | None = None,
    cache: Any = None,
    on_token: Callable[[Tensor], None] | None = None,
) -> list[list[int]]:
    """Generate answers greedily or by sampling.

    A prompt's random numbers depend on `generation.seed` and the prompt's name, not on its batch.

    Args:
        llm: A transformers causal LM.
        embeds: (B, T, H) prompts, left-padded.
        mask: (B, T), 1 for tokens.
        generation: The decoding settings, with one beam.
        has_ended: Maps the (R, T) new tokens and the (R, V) logits of the last to (R,) bool.
        guidance: An additional logits processor.
        names: Names of the prompts; without names, all prompts use the same random numbers.
        positions: (B, T) or (A, B, T) position ids of the prompts; None numbers the tokens.
        cache: A cache of one row's tokens before `embeds`, which `mask` and `positions` include.
        on_token: Called with the (R,) tokens of every step.

    Returns:
        The new ids of each prompt's candidates and then its references, including the id that
        ended an answer.
    """
    rows = _Rows(llm, mask, positions, cache)
    logits = rows.process_prompts(embeds, generation.answers_per_prompt)
    device, max_new = embeds.device, generation.max_new_tokens
    temperature = Temperature(generation, len(embeds), device) if generation.do_sample else None
    processors = score_processors(generation, guidance, temperature)
    uniform = _uniform_numbers(generation, names or [""] * len(embeds)).to(device)
    ids = torch.zeros(len(rows.index), max_new, dtype=torch.long, device=device)
    length = torch.full((len(rows.index),), max_new, device=device)
    for step in range(max_new):
        scores: Any = processors(ids[rows.index, :step], logits.float())  # type: ignore[arg-type]
        sampled = generation.do_sample
        tokens = _pick(scores, uniform[rows.index, step]) if sampled else scores.argmax(dim=-1)
        ids[rows.index, step] = tokens
        if on_token is not None:
            on_token(tokens)
        ended = has_ended(ids[rows.index, : step + 1], scores) & ~rows.ended
        length[rows.index[ended]] = step + 1
        rows.ended |= ended
        if rows.ended.all() or step + 1 == max_new:
            break
        if rows.ended.float().mean() >= DROP_FRACTION:
            remaining = rows.drop_ended()
            tokens = tokens[remaining]
            for processor in (guidance, temperature):
                if processor is not None:
                    processor.select(remaining)
        logits = rows.process_tokens(tokens)
    return [row[:n] for row, n in zip(ids.tolist(), length.tolist(), strict=True)]


def sample_branches(
    steps: LlamaSteps,
    prompts: Sequence[Tensor],
    generation: Generation,
    has_ended: Callable[[Tensor, Tensor], Tensor],
    names: Sequence[str] = (),
) -> list[list[int]]:
    """Sample many answers to each of several prompts, computing equal beginnings once.

    The answers are those of `sample`, up to rounding, and do not depend on the other prompts.

    Args:
        steps: The LLM.
        prompts: (1, T, H) for each prompt, without padding.
        generation: The decoding settings; `do_sample` is set.
        has_ended: As in `sample`.
        names: Names of the prompts, on which the random numbers depend.

    Returns:
        The new ids of each prompt's candidates and then its references, as in `sample`.
    """
    names = names or [""] * len(prompts)
    samplers = [
        _BranchSampler(steps, embeds, generation, has_ended, name)
        for embeds, name in zip(prompts, names, strict=True)
    ]
    for step in range(generation.max_new_tokens):
        for sampler in samplers:
            if not sampler.is_done:
                sampler.pick_tokens(step)
        live = [sampler for sampler in samplers if not sampler.is_done]
        if not live or step + 1 == generation.max_new_tokens:
            break
        tokens = [sampler.branches.ids[:, -1] for sampler in live]
        logits = steps.step(tokens, [sampler.continuations for sampler in live])
        for sampler, part in zip(live, logits.split([len(t) for t in tokens]), strict=True):
            sampler.logits = part
    return [row for sampler in samplers for row in sampler.answers()]


class _BranchSampler:
    """The answers to one prompt while they are sampled.

    Attributes:
        continuations: The cache.
        logits: (U, V) logits after each branch.
        branches: The distinct beginnings.
    """

    def __init__(
        self,
        steps: LlamaSteps,
        embeds: Tensor,
        generation: Generation,
        has_ended: Callable[[Tensor, Tensor], Tensor],
        name: str,
    ) -> None:
        count, max_new = generation.answers_per_prompt, generation.max_new_tokens
        self._by_branch = score_processors(replace(generation, top_p=1.0), None, None)
        self._temperature = Temperature(generation, 1, embeds.device)
        by_row = replace(generation, repetition_penalty=1.0, no_repeat_ngram_size=0)
        self._by_row = score_processors(by_row, None, self._temperature)
        self._uniform = _uniform_numbers(generation, [name])
        self._ids = torch.zeros(count, max_new, dtype=torch.long)
        self._length = torch.full((count,), max_new)
        self._index, self._has_ended = torch.arange(count), has_ended
        self.branches = Branches(count)
        self.continuations, self.logits = steps.start(embeds, count, max_new)

    @property
    def is_done(self) -> bool:
        """Whether all answers have ended."""
        return not len(self._index)

    def pick_tokens(self, step: int) -> None:
        """Sample the next token of every answer from `logits`, and update the branches."""
        branches, index = self.branches, self._index
        scores: Any = self._by_branch(branches.ids, self.logits.float())  # type: ignore[arg-type]
        rows = branches.of_row
        scores = self._by_row(branches.ids[rows], scores[rows])  # type: ignore[arg-type]
        tokens = _pick(scores, self._uniform[index, step])
        self._ids[index, step] = tokens
        ended, sources, targets = branches.extend(tokens, scores, self._has_ended)
        self._length[index[ended]] = step + 1
        self._index = index[~ended]
        self._temperature.select(~ended)
        self.continuations.copy(sources, targets)

    def answers(self) -> list[list[int]]:
        """Return the new ids of each answer."""
        lengths = self._length.tolist()
        return [row[:n] for row, n in zip(self._ids.tolist(), lengths, strict=True)]


def keyed_seed(seed: int, name: str) -> int:
    """Return a seed for torch that depends on a seed and the name of a prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "little")


def _uniform_numbers(generation: Generation, names: Sequence[str]) -> Tensor:
    """Return (R, T) uniform random numbers in [0, 1) that depend on the seed and each name."""
    rows = []
    for name in names:
        generator = torch.Generator().manual_seed(keyed_seed(generation.seed, name))
        shape = (generation.answers_per_prompt, generation.max_new_tokens)
        rows.append(torch.rand(*shape, generator=generator))
    return torch.cat(rows)


def _pick(scores: Tensor, uniform: Tensor) -> Tensor:
    """Sample (R,) tokens from the softmax of (R, V) logits with (R,) uniform random numbers."""
    sums = scores.softmax(dim=-1).cumsum(dim=-1)
    # The first cumulative sum above the number is never at a token of probability 0.
    tokens = torch.searchsorted(sums, (uniform * sums[:, -1])[:, None], right=True).squeeze(1)
    return tokens.clamp(max=scores.shape[-1] - 1)
