"""Token after token for many rows at once.

A prompt is read once for all its candidates, and rows that have ended drop out.

Notation: B prompts, R rows under way (B times the candidates at first), T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer

from xraygpt.models.base import Generation

LEAVE_AT = 0.125  # share of rows that have ended from which they are worth the copy without them


class Guide(Protocol):
    """A logits processor that keeps something of each row."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, T) tokens said so far and the (R, V) logits after them -> (R, V) scores."""

    def select(self, rows: Tensor) -> None:
        """Go on with these rows alone."""


class RoomyLayer(DynamicLayer):
    """Keys and values with room behind them.

    Its parent copies all that was cached for every token; this one once in `room` tokens.
    """

    room = 64

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.held: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """As the parent's: append (R, heads, T, D) each, return all of either."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if self.held is None or self.held[0].shape[-2] < after:
            old = (self.keys, self.values) if before else (None, None)
            self.held = (
                self._roomier(old[0], key_states, after),
                self._roomier(old[1], value_states, after),
            )
        keys, values = self.held
        keys[..., before:after, :] = key_states
        values[..., before:after, :] = value_states
        self.keys, self.values = keys[..., :after, :], values[..., :after, :]
        return self.keys, self.values

    def _roomier(self, old: Tensor | None, new: Tensor, length: int) -> Tensor:
        held = new.new_empty((*new.shape[:-2], length + self.room, new.shape[-1]))
        if old is not None:
            held[..., : old.shape[-2], :] = old
        return held

    def batch_repeat_interleave(self, repeats: int) -> None:
        """As the parent's."""
        super().batch_repeat_interleave(repeats)
        self.held = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """As the parent's."""
        super().batch_select_indices(indices)
        self.held = None


def roomy_cache(llm: Any) -> DynamicCache:
    """An empty cache for an LLM; layers with a sliding window are transformers' own."""
    cache = DynamicCache(config=llm.config)
    cache.layers = [RoomyLayer() if type(x) is DynamicLayer else x for x in cache.layers]
    return cache


class NoRepeat(LogitsProcessor):
    """As transformers' `NoRepeatNGramLogitsProcessor`, for all rows at once."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, T) tokens said so far and the (R, V) logits after them -> (R, V) scores."""
        before = self.size - 1
        if input_ids.shape[1] < self.size:
            return scores
        runs = input_ids.unfold(1, self.size, 1)
        last = input_ids[:, None, input_ids.shape[1] - before :]
        rows, places = (runs[..., :before] == last).all(dim=-1).nonzero(as_tuple=True)
        scores = scores.clone()
        scores[rows, runs[rows, places, -1]] = -torch.inf
        return scores


# What an LLM's own generation_config may ask for that `draw` does not do.
RULES = """suppress_tokens begin_suppress_tokens bad_words_ids sequence_bias min_length
min_new_tokens forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty
remove_invalid_values min_p typical_p top_h epsilon_cutoff eta_cutoff watermarking_config
stop_strings max_time"""


def has_rules(llm: Any) -> bool:
    """Whether an LLM's generation_config asks for one of `RULES`: suppressed tokens, say."""
    return any(getattr(llm.generation_config, name, None) for name in RULES.split())


class Temperature(LogitsProcessor):
    """Of each row its own: that of `how` for candidates, 1 for references.

    Args:
        how: Settings.
        prompts: B; rows are the candidates and then the references of each.
        device: Where scores are.
    """

    def __init__(self, how: Generation, prompts: int, device: Any) -> None:
        each = [how.temperature] * how.candidates + [1.0] * how.references
        self.each = torch.tensor(each * prompts, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, T) tokens said so far and the (R, V) logits after them -> (R, V) scores."""
        return scores / self.each[:, None]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.each = self.each[rows]


def rules_of(how: Generation, guide: Guide | None, warmth: Guide | None) -> LogitsProcessorList:
    """What changes scores, in the order in which transformers' `generate` has it."""
    rules = LogitsProcessorList()
    if how.repetition_penalty != 1.0:
        rules.append(RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    if how.no_repeat_ngram_size:
        rules.append(NoRepeat(how.no_repeat_ngram_size))
    if guide is not None:
        rules.append(guide)
    if warmth is not None:
        rules.append(warmth)
    if how.do_sample and how.top_p < 1.0:
        rules.append(TopPLogitsWarper(how.top_p))
    return rules


def draw(
    llm: Any,
    embeds: Tensor,
    mask: Tensor,
    how: Generation,
    ended: Callable[[Tensor, Tensor], Tensor],
    guide: Guide | None = None,
    names: Sequence[str] = (),
    *,
    positions: Tensor | None = None,
    cache: Any = None,
    heard: Callable[[Tensor], None] | None = None,
) -> list[list[int]]:
    """Greedy or sampled answers.

    The draws of a prompt depend on `how.seed` and its name, not on what else is in its batch.

    Args:
        llm: A transformers causal LM.
        embeds: (B, T, H), left-padded.
        mask: (B, T) 1 on tokens.
        how: Settings; one beam.
        ended: (R, T) new tokens so far and the (R, V) scores of the last -> (R,) whether rows are
            over.
        guide: Another view of the rows.
        names: Of each prompt; empty names all alike.
        positions: (B, T) or (A, B, T) position ids of the prompts; None counts tokens.
        cache: Of what comes before `embeds`, which `mask` and `positions` hold as well; one row.
        heard: Told every (R,) token as it comes.

    Returns:
        New ids of each prompt's candidates and then its references, with the last, that ended them.
    """
    whole = bool(mask.all())
    cache = roomy_cache(llm) if cache is None else cache
    places = _places(mask) if positions is None else positions
    after = next_positions(places).repeat_interleave(how.draws)
    new = places[..., -embeds.shape[1] :]
    logits = _read(llm, cache, None if whole else mask, new, inputs_embeds=embeds)
    if how.draws > 1:
        cache.batch_repeat_interleave(how.draws)
    logits = logits.repeat_interleave(how.draws, dim=0)
    mask = mask.repeat_interleave(how.draws, dim=0)
    warmth = Temperature(how, len(embeds), embeds.device) if how.do_sample else None
    rules = rules_of(how, guide, warmth)
    luck = _luck(how, names or [""] * len(embeds)).to(embeds.device)
    count = len(mask)
    said = torch.zeros(count, how.max_new_tokens, dtype=torch.long, device=embeds.device)
    length = torch.full((count,), how.max_new_tokens, device=embeds.device)
    going = torch.arange(count, device=embeds.device)  # rows under way, and some that are over
    over = torch.zeros(count, dtype=torch.bool, device=embeds.device)
    for step in range(how.max_new_tokens):
        scores: Any = rules(said[going, :step], logits.float())  # type: ignore[arg-type]
        token = _pick(scores, luck[going, step]) if how.do_sample else scores.argmax(dim=-1)
        said[going, step] = token
        if heard is not None:
            heard(token)
        ends = ended(said[going, : step + 1], scores) & ~over
        length[going[ends]] = step + 1
        over |= ends
        if over.all() or step + 1 == how.max_new_tokens:
            break
        if over.float().mean() >= LEAVE_AT:
            stay = (~over).nonzero().squeeze(1)
            going, mask, token, over = going[stay], mask[stay], token[stay], over[stay]
            after = after[stay]
            cache.batch_select_indices(stay)
            for kept in (guide, warmth):
                if kept is not None:
                    kept.select(stay)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        places = axes_of((after + step)[:, None], positions)
        logits = _read(llm, cache, None if whole else mask, places, input_ids=token[:, None])
    return [row[:n] for row, n in zip(said.tolist(), length.tolist(), strict=True)]


def next_positions(positions: Tensor) -> Tensor:
    """(B,) the place after the last of (B, T) or (A, B, T) position ids."""
    last = positions.amax(dim=-1)
    return (last if last.dim() == 1 else last.amax(dim=0)) + 1


def axes_of(places: Tensor, positions: Tensor | None) -> Tensor:
    """(B, T) places as every axis has them: (A, B, T) where `positions` has A axes."""
    if positions is None or positions.dim() == 2:
        return places
    return torch.stack([places] * len(positions))


def _places(mask: Tensor) -> Tensor:
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _read(llm: Any, cache: Any, mask: Tensor | None, places: Tensor, **what: Tensor) -> Tensor:
    """The (R, V) logits after the last token."""
    logits: Tensor = llm(
        **what,
        attention_mask=mask,
        position_ids=places,
        past_key_values=cache,
        logits_to_keep=1,
        use_cache=True,
    ).logits
    return logits[:, -1]


def _luck(how: Generation, names: Sequence[str]) -> Tensor:
    """(R, T) uniform in [0, 1)."""
    rows = []
    for name in names:
        key = hashlib.sha256(f"{how.seed} {name}".encode()).digest()[:7]
        generator = torch.Generator().manual_seed(int.from_bytes(key, "little"))
        rows.append(torch.rand(how.draws, how.max_new_tokens, generator=generator))
    return torch.cat(rows)


def _pick(scores: Tensor, luck: Tensor) -> Tensor:
    """(R, V) scores and (R,) uniform numbers -> (R,) tokens drawn with softmax's probabilities."""
    sums = scores.softmax(dim=-1).cumsum(dim=-1)
    # The first sum above the number: a token of probability 0 never is.
    found = torch.searchsorted(sums, (luck * sums[:, -1])[:, None], right=True).squeeze(1)
    return found.clamp(max=scores.shape[-1] - 1)
