"""Generate answers from a conversation's prompt with the model's key-value cache."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from xraygpt.conversation.answer import Answer, AnswerStreamer, FinishReason, StepCriteria
from xraygpt.conversation.engine import EncodedMedium, Engine, TokenKey
from xraygpt.conversation.history import QuestionAnswer, join_questions
from xraygpt.conversation.prefix_cache import PrefixCache
from xraygpt.media.content import content_key
from xraygpt.models.base import Generation
from xraygpt.prompting.renderer import Rendered


@dataclass(frozen=True)
class Request:
    """A question and everything needed to answer it.

    Attributes:
        pair: The question; the answer is added later.
        rendered: The prompt.
        media: All media in the prompt.
        generation: Decoding settings.
        answer: Object that receives the text.
        previous: Older questions and answers, including those dropped from the prompt.
        num_new_media: Number of media attached to this question.
    """

    pair: QuestionAnswer
    rendered: Rendered
    media: Sequence[EncodedMedium]
    generation: Generation
    answer: Answer
    previous: list[QuestionAnswer]
    num_new_media: int

    @property
    def prompt_pairs(self) -> list[QuestionAnswer]:
        """The pairs in the prompt, ending with this question."""
        return [*self.previous[self.pair.first_in_context :], self.pair]


def generate_answer(
    engine: Engine, request: Request, cache: PrefixCache, cancel: threading.Event
) -> tuple[str, list[int], FinishReason]:
    """Answer a question, reusing and extending the cache.

    Args:
        engine: The chat model; the caller holds its lock.
        request: Question to answer.
        cache: Cache of the conversation.
        cancel: Event that stops the generation.

    Returns:
        The answer's text, its token ids with the end of turn, and the reason why it ended.
    """
    generation, rendered, media = request.generation, request.rendered, request.media
    question = join_questions(request.prompt_pairs)
    embeds, positions, average = engine.embed(rendered, media, question)
    token_keys = engine.token_keys(rendered, media)
    # Several beams or candidates cannot share a cache of one row, and are not streamed.
    single = max(generation.num_beams, generation.candidates) <= 1
    if single:
        cache.crop_to_prefix(token_keys)
        request.answer.cached_tokens = len(cache)
    streamer = AnswerStreamer(engine.decoder, request.answer)
    rows = engine.decoder.generate_ids(
        embeds,
        torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
        generation,
        average() if generation.guidance else None,
        names=[content_key([medium.media.content_digest for medium in media])],
        positions=positions,
        past_key_values=cache.kv if single else None,
        streamer=streamer if single else None,
        stop=StepCriteria(cancel, request.answer, generation.max_new_tokens),
    )
    candidates = [engine.decoder.finalize(row, cancel.is_set()) for row in rows]
    texts = [text for text, _, _ in candidates]
    bonus = None if request.pair.bonus is None else partial(request.pair.bonus, 0)
    if cancel.is_set():  # the candidates end in the middle of a sentence
        generation = replace(generation, recombine=False)
    text = engine.decoder.choose_answer(texts, generation, bonus)
    if text in texts:
        _, ids, reason = candidates[texts.index(text)]
    else:  # a recombination
        ids, reason = engine.decoder.answer_ids(text), "end"
    streamer.send(text)
    if single:
        cache.record([*token_keys, *ids])
    elif positions is None and not cancel.is_set():
        _cache_conversation(engine, embeds, [*token_keys, *ids], cache)
    return text, ids, reason


def _cache_conversation(
    engine: Engine, embeds: Tensor, token_keys: Sequence[TokenKey], cache: PrefixCache
) -> None:
    """Run a prompt and its chosen answer through the model, so that follow-up questions are fast.

    Args:
        engine: The chat model; the caller holds its lock.
        embeds: (1, T, H) embedded prompt.
        token_keys: Keys of the prompt's T tokens, followed by the token ids of the answer.
        cache: Cache to extend to the answer's last token but one.
    """
    cache.crop_to_prefix(token_keys)
    ids = torch.tensor([token_keys[embeds.shape[1] :]], device=embeds.device)
    answer = engine.chats.llm.get_input_embeddings()(ids).to(embeds.dtype)
    new = torch.cat([embeds, answer], dim=1)[:, len(cache) : -1]
    if new.shape[1]:
        engine.chats.llm(
            inputs_embeds=new, past_key_values=cache.kv, use_cache=True, logits_to_keep=1
        )
    cache.record(token_keys)


def prefill_media(
    engine: Engine, rendered: Rendered, media: Sequence[EncodedMedium], cache: PrefixCache
) -> None:
    """Run a prompt up to its last medium through the model.

    Args:
        engine: The chat model; the caller holds its lock.
        rendered: Prompt with at least one medium.
        media: All media in the prompt.
        cache: Cache to extend to the end of the last medium.
    """
    last = rendered["runs"][-1]
    end = last.start + last.length
    embeds, positions, _ = engine.embed(rendered, media, "")
    token_keys = engine.token_keys(rendered, media)[:end]
    cache.crop_to_prefix(token_keys)
    new = slice(len(cache), end)
    if embeds[:, new].shape[1]:
        position_ids = {} if positions is None else {"position_ids": positions[..., new]}
        engine.chats.llm(
            inputs_embeds=embeds[:, new], past_key_values=cache.kv, use_cache=True,
            logits_to_keep=1, **position_ids,
        )  # fmt: skip
        cache.record(token_keys)
