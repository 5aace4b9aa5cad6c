"""Decoding with a causal LLM, to a stop string.

Notation: B rows, T tokens, H the LLM's width.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Hashable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from xraygpt.common.errors import InputError
from xraygpt.models.base import Bonus, Generation
from xraygpt.models.llm.sampling import (
    Temperature,
    axes_of,
    draw,
    has_rules,
    next_positions,
    roomy_cache,
)
from xraygpt.prompting.renderer import PromptRenderer


class Guidance(LogitsProcessor):
    """Count what this image makes likelier than an average one does.

    A token's score is log p(token | image) + g · (log p(token | image) − log p(token | average)),
    as in classifier-free guidance of language models (Sanchez et al. 2023), among the tokens at
    least `plausible` times as likely as the likeliest, as in contrastive decoding (Li et al. 2023).

    Args:
        llm: The LLM.
        plain: (B, T, H) the same rows with the average image in each image's place.
        mask: (B, T) 1 on tokens; left-padded.
        guidance: g, at least 0.
        positions: (B, T) or (A, B, T) position ids of the prompts; None counts tokens.
    """

    plausible = 0.1

    def __init__(
        self,
        llm: Any,
        plain: Tensor,
        mask: Tensor,
        guidance: float,
        positions: Tensor | None = None,
    ) -> None:
        self.llm, self.embeds, self.mask, self.guidance = llm, plain, mask, guidance
        self.positions = positions
        self.cache: Any = None
        self.after: Tensor | None = None  # (R,) places of the next tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, new) tokens said so far and the (B, V) logits after them -> (B, V) scores."""
        if self.after is None:
            self.cache = roomy_cache(self.llm)
            places = self.positions
            if places is None:
                places = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
            self.after = next_positions(places)
        else:
            self.embeds = self.llm.get_input_embeddings()(input_ids[:, -1:])
            self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
            places = axes_of(self.after[:, None], self.positions)
            self.after = self.after + 1
        out = self.llm(
            inputs_embeds=self.embeds,
            attention_mask=self.mask,
            position_ids=places,
            past_key_values=self.cache,
            logits_to_keep=1,
            use_cache=True,
        )
        self.cache = out.past_key_values
        seen = scores.float().log_softmax(dim=-1)
        plain = out.logits[:, -1].float().log_softmax(dim=-1)
        least = seen.max(dim=-1, keepdim=True).values + math.log(self.plausible)
        guided: Tensor = seen + self.guidance * (seen - plain)
        return guided.masked_fill(seen < least, -math.inf)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.mask = self.mask[rows]
        self.after = None if self.after is None else self.after[rows]
        self.cache.batch_select_indices(rows)


# What the question says may be said again: the rule holds for the answer, as is meant here.
warnings.filterwarnings("ignore", message="Passing `no_repeat_ngram_size` with `inputs_embeds`")


_WORDS = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Small-lettered words and marks; of Chinese and Japanese each character."""
    return _WORDS.findall(text.lower())


def consensus(
    answers: Sequence[Sequence[Hashable]], bonus: Sequence[float] = (), references: int = 0
) -> int:
    """The place of the answer most like the others: minimum Bayes risk (Kumar and Byrne 2004).

    Likeness is the F1 of ROUGE-L (Lin 2004).

    Args:
        answers: Their words.
        bonus: Of each what is added to its mean likeness to the others, which lies in [0, 1].
        references: The last so many are the others; 0 takes all.
    """
    bonus = bonus or [0.0] * len(answers)
    if len(answers) < 3:
        return bonus.index(max(bonus))

    def likeness(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
        """2 P R / (P + R), written with the lengths."""
        return 2 * common_length(a, b) / max(len(a) + len(b), 1)

    first = len(answers) - references if references else 0
    gains = []
    for i, (a, extra) in enumerate(zip(answers, bonus, strict=True)):
        others = [b for j, b in enumerate(answers[first:], first) if i != j]
        gains.append(sum(likeness(a, b) for b in others) / max(len(others), 1) + extra)
    return gains.index(max(gains))


def common_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, a row of the table at once (Hyyrö 2004)."""
    places: dict[Hashable, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    row = every = (1 << len(a)) - 1
    for token in b:
        hits = row & places.get(token, 0)
        row = (row + hits | row - hits) & every
    return len(a) - row.bit_count()


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

    def __call__(
        self,
        embeds: Tensor,
        attention_mask: Tensor,
        how: Generation,
        plain: Tensor | None = None,
        bonus: Bonus | None = None,
        names: Sequence[str] = (),
        positions: Tensor | None = None,
    ) -> list[str]:
        """(B, T, H) embeddings, left-padded, with their (B, T) mask -> B answers.

        Args:
            embeds: What to go on from.
            attention_mask: 1 on tokens.
            how: Settings.
            plain: `embeds` with an average image in each image's place, for `how.guidance`.
            bonus: Row and text of a candidate -> what speaks for it beside the others; see
                `consensus`.
            names: Of the rows; the draws of sampling hang on them, and not on the other rows.
            positions: (B, T) or (A, B, T) position ids of the prompts; None counts tokens.

        Raises:
            InputError: Guidance is asked for and there is no average image.
        """
        ids = self.generate_ids(
            embeds, attention_mask, how, plain, names=names, positions=positions
        )
        texts = [self._text(row) for row in ids]
        drawn = [texts[i : i + how.draws] for i in range(0, len(texts), how.draws)]
        return [
            answers[self.chosen(answers, bonus, row, how.references)]
            for row, answers in enumerate(drawn)
        ]

    def generate_ids(
        self,
        embeds: Tensor,
        attention_mask: Tensor,
        how: Generation,
        plain: Tensor | None = None,
        stop: StoppingCriteria | None = None,
        names: Sequence[str] = (),
        positions: Tensor | None = None,
        **more: Any,
    ) -> list[list[int]]:
        """As `__call__`, but the new ids of every row and candidate.

        Args:
            embeds: What to go on from.
            attention_mask: 1 on tokens.
            how: Settings.
            plain: As in `__call__`.
            stop: Beside the stop strings.
            names: As in `__call__`.
            positions: As in `__call__`.
            more: `past_key_values`, of what comes before the last of `embeds`, and a `streamer`.

        Raises:
            InputError: As in `__call__`.
        """
        guide = None
        if how.guidance:
            if plain is None:
                raise InputError(
                    "generate.guidance compares with the average training image, which this model "
                    "has not: train it one step more if it keeps one, or set guidance: 0"
                )
            mask = attention_mask.repeat_interleave(how.draws, dim=0)
            plain = plain.repeat_interleave(how.draws, dim=0)
            places = None
            if positions is not None:
                places = positions.repeat_interleave(how.draws, dim=-2)
            guide = Guidance(self.llm, plain, mask, how.guidance, places)
        stops = StoppingCriteriaList([*self._criteria(), *([stop] if stop else [])])
        given = any(value is not None for value in more.values())
        if positions is not None and how.num_beams > 1:
            raise InputError(
                "beam search counts positions itself, and this model's are its own: num_beams: 1"
            )
        if positions is None and (how.num_beams > 1 or given or has_rules(self.llm)):
            embeds = embeds.repeat_interleave(how.draws, dim=0)
            attention_mask = attention_mask.repeat_interleave(how.draws, dim=0)
            return self._by_transformers(embeds, attention_mask, how, guide, stops, **more)
        ends = torch.tensor(sorted(self.end_ids), device=embeds.device)

        def ended(ids: Tensor, scores: Tensor) -> Tensor:
            over: Tensor = torch.isin(ids[:, -1], ends)
            return over | stops(ids, scores) if stops else over

        cache, streamer = more.get("past_key_values"), more.get("streamer")
        if cache is not None:
            embeds = embeds[:, int(cache.get_seq_length()) :]
        if streamer is not None:
            streamer.put(attention_mask)  # the prompt, which it passes over
        return draw(
            self.llm, embeds, attention_mask, how, ended, guide, names,
            positions=positions, cache=cache, heard=None if streamer is None else streamer.put,
        )  # fmt: skip

    def _by_transformers(
        self,
        embeds: Tensor,
        attention_mask: Tensor,
        how: Generation,
        guide: Guidance | None,
        stops: StoppingCriteriaList,
        **more: Any,
    ) -> list[list[int]]:
        """Beams, what comes with a cache or a streamer, and an LLM with rules of its own."""
        pad = self.tokenizer.pad_token_id
        guides = LogitsProcessorList([] if guide is None else [guide])
        options: dict[str, Any] = {"do_sample": how.do_sample, "num_beams": how.num_beams}
        if how.do_sample:
            guides.append(Temperature(how, len(embeds) // how.draws, embeds.device))
            options |= {"temperature": 1.0, "top_p": how.top_p, "top_k": 0}
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
                stopping_criteria=stops,
                logits_processor=guides,
                **options,
                **more,
            )
        found: list[list[int]] = ids.tolist()
        return found

    def closed(self, ids: list[int], cancelled: bool) -> tuple[str, list[int], Any]:
        """An answer's text, its ids with the end that training showed, and how it ended.

        Args:
            ids: As generated; padding after the end may follow.
            cancelled: Whether somebody stopped it.

        Returns:
            Text; ids; ``end``, ``cancelled`` or ``length``.
        """
        at = next((i for i, token in enumerate(ids) if token in self.end_ids), None)
        if at is not None:
            return self._text(ids[:at]), ids[: at + 1], "end"
        text = self._text(ids)
        raw = self.tokenizer.decode(ids, skip_special_tokens=True)
        ended = any(stop in raw for stop in self.text_stops)
        exact = any(raw.endswith(stop) and raw.count(stop) == 1 for stop in self.text_stops)
        if ended and exact:
            return text, ids, "end"
        end = self.tokenizer(self.stop_strings[0], add_special_tokens=False)["input_ids"]
        if ended:  # the last token ran past the stop string: the ids of the text alone
            kept = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            return text, [*kept, *end], "end"
        return text, [*ids, *end], "cancelled" if cancelled else "length"

    def said(self, text: str) -> list[int]:
        """Ids of an answer that came as text, with the end that training showed."""
        ids: list[int] = self.tokenizer(f"{text}{self.stop_strings[0]}", add_special_tokens=False)[
            "input_ids"
        ]
        return ids

    def safe_text(self, ids: Sequence[int]) -> str:
        """Text of an unfinished answer, as far as no later token can take it back."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        for stop in self.text_stops:
            text = text.split(stop)[0]
        held = [n for s in self.text_stops for n in range(1, len(s)) if text.endswith(s[:n])]
        if held:
            text = text[: -max(held)]
        # Half a character decodes to the replacement character, and white space may be an end's.
        return text.rstrip("\ufffd").strip()

    def chosen(
        self,
        answers: list[str],
        bonus: Bonus | None = None,
        row: int = 0,
        references: int = 0,
    ) -> int:
        """The place of the candidate to give: the one most like the others, see `consensus`.

        By its text alone, whatever padded it in its batch.

        Args:
            answers: Candidates of one row.
            bonus: As in `__call__`.
            row: Which.
            references: How many, the last, the others are compared with; 0 takes all.
        """
        if len(answers) == 1:
            return 0
        words = [words_of(answer) for answer in answers]
        extra = [bonus(row, a) for a in answers] if bonus else ()
        return consensus(words, extra, references)

    def _criteria(self) -> StoppingCriteriaList:
        if not self.text_stops:
            return StoppingCriteriaList()
        if self._table is None:
            self._table = StopStringCriteria(cast(Any, self.tokenizer), self.text_stops)
        return StoppingCriteriaList([self._table])

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        for stop in self.text_stops:
            text = text.split(stop)[0]
        return text.strip()
