"""Decoding with a causal LLM until a stop string.

Notation: B rows, T tokens; H is the LLM's width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from xraygpt.common.errors import InputError
from xraygpt.common.threads import in_threads
from xraygpt.models.base import Bonus, Generation
from xraygpt.models.llm.candidates import minimum_bayes_risk, split_words
from xraygpt.models.llm.guidance import Guidance
from xraygpt.models.llm.llama_steps import LlamaSteps, has_llama_steps
from xraygpt.models.llm.recombination import recombine
from xraygpt.models.llm.sampling import (
    Temperature,
    has_unsupported_settings,
    keyed_seed,
    sample,
    sample_branches,
)
from xraygpt.prompting.renderer import PromptRenderer

# The rule applies to the answer only, as intended: n-grams of the question may occur in it.
warnings.filterwarnings("ignore", message="Passing `no_repeat_ngram_size` with `inputs_embeds`")


class Decoder:
    """Greedy decoding, beam search and sampling that end at the template's stop strings.

    Attributes:
        stop_strings: Strings that end an answer.
        text_stops: Those stop strings that are not special tokens.
        markers: Words of the template at which an answer is cut.
        end_ids: Token ids that end an answer.
    """

    def __init__(self, llm: Any, renderer: PromptRenderer) -> None:
        self.llm, self.tokenizer = llm, renderer.tokenizer
        self.stop_strings = renderer.stop_strings
        self._stop_criteria: StopStringCriteria | None = None  # building one takes half a second
        ends = llm.generation_config.eos_token_id
        self.end_ids = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self.end_ids.add(self.tokenizer.eos_token_id)
        specials = dict(
            zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True)
        )
        self.text_stops = [s for s in self.stop_strings if s not in specials]
        self.end_ids |= {specials[s] for s in self.stop_strings if s in specials}
        self.markers = [m for m in renderer.template.markers if m not in specials]

    def __call__(
        self,
        embeds: Tensor,
        attention_mask: Tensor,
        generation: Generation,
        average_embeds: Tensor | None = None,
        bonus: Bonus | None = None,
        names: Sequence[str] = (),
        positions: Tensor | None = None,
    ) -> list[str]:
        """Generate answers to B embedded prompts of shape (B, T, H).

        Args:
            embeds: The prompts, left-padded.
            attention_mask: (B, T), 1 for tokens.
            generation: The decoding settings.
            average_embeds: `embeds` with an average image in place of each image, for guidance.
            bonus: A value added to each candidate's similarity to the others; see
                `minimum_bayes_risk`.
            names: Names of the rows, which seed their random numbers.
            positions: (B, T) or (A, B, T) position ids of the prompts; None numbers the tokens.

        Raises:
            InputError: Guidance is requested, but there is no average image.
        """
        ids = self.generate_ids(
            embeds, attention_mask, generation, average_embeds, names=names, positions=positions
        )
        texts, count = [self._decode(row) for row in ids], generation.answers_per_prompt
        candidates = [texts[i : i + count] for i in range(0, len(texts), count)]
        return [
            self.choose_answer(answers, generation, None if bonus is None else partial(bonus, row))
            for row, answers in enumerate(candidates)
        ]

    def generate_ids(
        self,
        embeds: Tensor,
        attention_mask: Tensor,
        generation: Generation,
        average_embeds: Tensor | None = None,
        *,
        stop: StoppingCriteria | None = None,
        names: Sequence[str] = (),
        positions: Tensor | None = None,
        past_key_values: Any = None,
        streamer: Any = None,
    ) -> list[list[int]]:
        """Generate like `__call__`, but return the new ids of every row and candidate.

        Args:
            embeds: As in `__call__`.
            attention_mask: As in `__call__`.
            generation: As in `__call__`.
            average_embeds: As in `__call__`.
            stop: A stopping criterion in addition to the stop strings.
            names: As in `__call__`.
            positions: As in `__call__`.
            past_key_values: A cache of the first tokens of `embeds`, which must have a single row.
            streamer: Receives the prompt's mask, then every token.

        Raises:
            InputError: As in `__call__`, or beam search is combined with `positions`.
        """
        settings: dict[str, Any] = {
            "stop": stop, "past_key_values": past_key_values, "streamer": streamer,
        }  # fmt: skip
        if generation.answers_per_prompt == 1 or embeds.device.type != "cpu":
            return self._generate(
                embeds, attention_mask, generation, average_embeds, names, positions, **settings
            )
        # The answers to one prompt fill a CPU, and no answer may depend on the other prompts in the
        # batch, not even through rounding.
        rows = list(_prompts(embeds, attention_mask, average_embeds, names, positions))
        plain = past_key_values is None and positions is None and streamer is None
        if plain and not generation.guidance and _has_steps(self.llm):
            return _sample_together(self.llm, rows, generation, self._end_test(stop, embeds.device))
        parts = [
            self._generate(
                row.embeds, row.mask, generation, row.average, row.names, row.positions, **settings
            )
            for row in rows
        ]
        return [ids for part in parts for ids in part]

    def _generate(
        self,
        embeds: Tensor,
        attention_mask: Tensor,
        generation: Generation,
        average_embeds: Tensor | None,
        names: Sequence[str],
        positions: Tensor | None,
        *,
        stop: StoppingCriteria | None,
        past_key_values: Any,
        streamer: Any,
    ) -> list[list[int]]:
        """Generate answers to prompts that are decoded together; see `generate_ids`."""
        guidance = self._guidance(attention_mask, generation, average_embeds, positions)
        name = names[0] if names else ""
        if positions is not None and generation.num_beams > 1:
            raise InputError(
                "beam search numbers positions itself, but this model computes its own: set "
                "num_beams: 1"
            )
        incremental = past_key_values is not None or streamer is not None
        special = generation.num_beams > 1 or incremental or has_unsupported_settings(self.llm)
        if positions is None and special:
            copies = generation.answers_per_prompt
            return self._generate_with_transformers(
                embeds.repeat_interleave(copies, dim=0),
                attention_mask.repeat_interleave(copies, dim=0),
                generation,
                guidance,
                self._stops(stop),
                name,
                past_key_values=past_key_values,
                streamer=streamer,
            )
        if past_key_values is not None:
            embeds = embeds[:, int(past_key_values.get_seq_length()) :]
        if streamer is not None:
            streamer.put(attention_mask)  # stands for the prompt, which streamers skip
        has_ended = self._end_test(stop, embeds.device)
        on_token = None if streamer is None else streamer.put
        return sample(
            self.llm, embeds, attention_mask, generation, has_ended, guidance, names,
            positions=positions, cache=past_key_values, on_token=on_token,
        )  # fmt: skip

    def _guidance(
        self,
        mask: Tensor,
        generation: Generation,
        average_embeds: Tensor | None,
        positions: Tensor | None,
    ) -> Guidance | None:
        if not generation.guidance:
            return None
        if average_embeds is None:
            raise InputError(
                "generate.guidance compares with the average training image, which this model "
                "does not have: train one more step if the model supports it, or set guidance: 0"
            )
        copies = generation.answers_per_prompt
        return Guidance(
            self.llm,
            average_embeds.repeat_interleave(copies, dim=0),
            mask.repeat_interleave(copies, dim=0),
            generation.guidance,
            None if positions is None else positions.repeat_interleave(copies, dim=-2),
        )

    def _stops(self, stop: StoppingCriteria | None) -> StoppingCriteriaList:
        return StoppingCriteriaList([*self._criteria(), *([stop] if stop else [])])

    def _end_test(
        self, stop: StoppingCriteria | None, device: torch.device
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function that tells which rows end with their last token."""
        stops = self._stops(stop)
        ends = torch.tensor(sorted(self.end_ids), device=device)

        def has_ended(ids: Tensor, scores: Tensor) -> Tensor:
            ended: Tensor = torch.isin(ids[:, -1], ends)
            return ended | stops(ids, scores) if stops else ended

        return has_ended

    def _generate_with_transformers(
        self,
        embeds: Tensor,
        attention_mask: Tensor,
        generation: Generation,
        guidance: Guidance | None,
        stops: StoppingCriteriaList,
        name: str = "",
        **inputs: Any,
    ) -> list[list[int]]:
        """Decode with transformers' `generate`: beams, caches, streamers, special LLM settings."""
        pad = self.tokenizer.pad_token_id
        processors = LogitsProcessorList([] if guidance is None else [guidance])
        options: dict[str, Any] = {
            "do_sample": generation.do_sample,
            "num_beams": generation.num_beams,
        }
        if generation.do_sample:
            prompts = len(embeds) // generation.answers_per_prompt
            processors.append(Temperature(generation, prompts, embeds.device))
            options |= {"temperature": 1.0, "top_p": generation.top_p, "top_k": 0}
        if generation.num_beams > 1:
            options["length_penalty"] = generation.length_penalty
        # Set explicitly even if neutral; otherwise the LLM's own generation_config would apply.
        options["repetition_penalty"] = generation.repetition_penalty
        options["no_repeat_ngram_size"] = generation.no_repeat_ngram_size
        with torch.random.fork_rng(devices=[], enabled=generation.do_sample):
            if generation.do_sample:
                torch.manual_seed(keyed_seed(generation.seed, name))
            output = self.llm.generate(
                inputs_embeds=embeds,
                attention_mask=attention_mask,
                max_new_tokens=generation.max_new_tokens,
                eos_token_id=sorted(self.end_ids),
                pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
                stopping_criteria=stops,
                logits_processor=processors,
                **options,
                **inputs,
            )
        ids: list[list[int]] = output.tolist()
        return ids

    def finalize(self, ids: list[int], cancelled: bool) -> tuple[str, list[int], Any]:
        """Return an answer's text, its ids with the end used in training, and why it ended.

        Args:
            ids: The generated ids, possibly followed by padding.
            cancelled: Whether generation was stopped by the user.

        Returns:
            The text, the ids, and ``end``, ``cancelled`` or ``length``.
        """
        end_index = next((i for i, token in enumerate(ids) if token in self.end_ids), None)
        raw = self.tokenizer.decode(ids[:end_index], skip_special_tokens=True)
        text = self._decode(ids[:end_index])
        if any(marker in raw for marker in self.markers):
            return text, self.answer_ids(text), "end"
        if end_index is not None:
            return text, ids[: end_index + 1], "end"
        ended = any(stop in raw for stop in self.text_stops)
        exact = any(raw.endswith(stop) and raw.count(stop) == 1 for stop in self.text_stops)
        if ended and exact:
            return text, ids, "end"
        end = self.tokenizer(self.stop_strings[0], add_special_tokens=False)["input_ids"]
        if ended:  # the last token extends beyond the stop string: encode the text again
            text_ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            return text, [*text_ids, *end], "end"
        return text, [*ids, *end], "cancelled" if cancelled else "length"

    def answer_ids(self, text: str) -> list[int]:
        """Return the ids of an answer given as text, with the end used in training."""
        ids: list[int] = self.tokenizer(f"{text}{self.stop_strings[0]}", add_special_tokens=False)[
            "input_ids"
        ]
        return ids

    def safe_text(self, ids: Sequence[int]) -> str:
        """Return the part of an unfinished answer's text that later tokens cannot change."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        cuts = [*self.text_stops, *self.markers]
        for cut in cuts:
            text = text.split(cut)[0]
        partial = [n for s in cuts for n in range(1, len(s)) if text.endswith(s[:n])]
        if partial:
            text = text[: -max(partial)]
        # An incomplete character decodes to U+FFFD, and white space may belong to a stop string.
        return text.rstrip("\ufffd").strip()

    def choose_answer(
        self,
        answers: Sequence[str],
        generation: Generation,
        bonus: Callable[[str], float] | None = None,
    ) -> str:
        """Return the answer that is most similar to the others, or a recombination of them.

        Args:
            answers: The texts of one row's candidates and references.
            generation: The decoding settings.
            bonus: A value added to a text's similarity to the others; see `minimum_bayes_risk`.
        """
        if len(answers) == 1:
            return answers[0]
        words = [split_words(answer) for answer in answers]
        bonuses = [bonus(answer) for answer in answers] if bonus else ()
        chosen = minimum_bayes_risk(words, bonuses, generation.references)
        if not generation.recombine:
            return answers[chosen]
        return recombine(answers, chosen, bonus, generation.references)

    def _criteria(self) -> StoppingCriteriaList:
        if not self.text_stops:
            return StoppingCriteriaList()
        if self._stop_criteria is None:
            self._stop_criteria = StopStringCriteria(cast(Any, self.tokenizer), self.text_stops)
        return StoppingCriteriaList([self._stop_criteria])

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        for cut in (*self.text_stops, *self.markers):
            text = text.split(cut)[0]
        return text.strip()


class _Prompt(NamedTuple):
    """The inputs of one prompt, (1, T, …) without padding; see `Decoder.__call__`."""

    embeds: Tensor
    mask: Tensor
    average: Tensor | None
    names: Sequence[str]
    positions: Tensor | None


def _prompts(
    embeds: Tensor,
    mask: Tensor,
    average: Tensor | None,
    names: Sequence[str],
    positions: Tensor | None,
) -> Iterator[_Prompt]:
    """Yield each prompt of a left-padded batch by itself."""
    for i, padding in enumerate((mask == 0).sum(dim=1).tolist()):
        row = slice(i, i + 1)
        yield _Prompt(
            embeds[row, padding:],
            mask[row, padding:],
            None if average is None else average[row, padding:],
            names[row],
            None if positions is None else positions[..., row, padding:],
        )


def _has_steps(llm: Any) -> bool:
    return has_llama_steps(llm) and not has_unsupported_settings(llm)


def _sample_together(
    llm: Any,
    rows: Sequence[_Prompt],
    generation: Generation,
    has_ended: Callable[[Tensor, Tensor], Tensor],
) -> list[list[int]]:
    """Sample answers to several prompts with `LlamaSteps`; each thread takes some of them."""
    steps = LlamaSteps(llm)
    size = steps.prompts_at_once(generation.answers_per_prompt, generation.max_new_tokens)
    if steps.is_small:
        size = min(size, math.ceil(len(rows) / torch.get_num_threads()))

    def job(part: Sequence[_Prompt]) -> list[list[int]]:
        embeds = [row.embeds for row in part]
        names = [name for row in part for name in row.names]
        return sample_branches(steps, embeds, generation, has_ended, names)

    jobs = [partial(job, rows[i : i + size]) for i in range(0, len(rows), size)]
    parts = in_threads(jobs) if steps.is_small else [run() for run in jobs]
    return [ids for part in parts for ids in part]
