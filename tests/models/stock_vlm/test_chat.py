"""Conversations with stock models: answers as of transformers, caches, and added media."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.models.stock_vlm.stock_batches import (
    build,
    clip,
    image,
    load_stock,
    our_batch,
    sample,
    samples,
    stock_batch,
)
from tests.models.stock_vlm.tiny_models import FAMILIES
from xraygpt.conversation import ChatEngine, Conversation
from xraygpt.media.base import Media
from xraygpt.models.base import Generation
from xraygpt.prompting.content import strip_marks

GREEDY = Generation(max_new_tokens=10)
TURNS = ["one", "nine", "clip", "both", "text"]


@pytest.fixture(scope="module")
def engines(tiny):
    """A function from a family to a chat engine."""
    cache: dict[str, ChatEngine] = {}

    def load(family):
        if family not in cache:
            cache[family] = ChatEngine(build(tiny(family)).eval())
        return cache[family]

    return load


def media_of(*arrays: np.ndarray) -> list[Media]:
    return sample("x", "", "", arrays)["media"]


def start(engine: ChatEngine, media: list[Media]) -> Conversation:
    conversation = engine.start()
    for medium in media:
        conversation.add_image(medium)
    return conversation


def ask_afresh(engine: ChatEngine, conversation: Conversation) -> str:
    """The last answer of a conversation, computed without any cache."""
    *before, last = conversation.history
    fresh, media = engine.start(), list(conversation._media)
    for pair in before:
        for _ in range(pair.num_media):
            fresh.add_image(media.pop(0).media)
        fresh.restore(pair.question, pair.answer)
        fresh.history[-1].answer_ids = pair.answer_ids
    for medium in media:
        fresh.add_image(medium.media)
    answer = fresh.ask(last.question, GREEDY)
    text = answer.text()
    assert answer.cached_tokens == 0
    return text


@pytest.mark.slow
@pytest.mark.parametrize("name", TURNS)
def test_answers_equal_those_of_transformers_and_turns_reuse_the_cache(tiny, engines, family, name):
    engine, chosen = engines(family), samples()[name]
    network, processor = load_stock(tiny(family))
    stock = stock_batch(processor, [chosen], prompt=True)
    ids = network.generate(**stock, max_new_tokens=10, do_sample=False)
    expected = processor.decode(ids[0, stock["input_ids"].shape[1] :], skip_special_tokens=True)

    conversation = start(engine, chosen["media"])
    prefilled = conversation.prefill() if chosen["media"] else 0
    first = conversation.ask(strip_marks(chosen["turns"][0]["text"]), GREEDY)
    pieces = list(first)
    assert first.text() == "".join(pieces) == expected.strip()
    batch = our_batch(engine.model, [chosen], prompt=True)
    assert engine.model.generate(batch, GREEDY) == [first.text()]
    assert first.cached_tokens == prefilled
    assert first.prompt_tokens == stock["input_ids"].shape[1]

    second = conversation.ask("Sure?", GREEDY)
    text = second.text()
    written = len(conversation.history[0].answer_ids)
    assert second.cached_tokens >= first.prompt_tokens + written - 2
    assert text == ask_afresh(engine, conversation)


def test_answers_stream_piece_by_piece(engines, family):
    answer = start(engines(family), media_of(image(0))).ask("What is there?", GREEDY)
    pieces = [piece for piece in answer if piece]
    assert len(pieces) > 1
    assert "".join(pieces) == answer.text()


def test_media_added_later_equal_a_fresh_conversation(engines, family):
    """The first image of LLaVA-OneVision is tiled until there is a second one."""
    engine = engines(family)
    conversation = start(engine, media_of(image(0)))
    conversation.ask("What is there?", GREEDY).text()
    first_run = conversation.engine.token_runs(conversation._media)[0].length
    steps = []
    for medium in media_of(image(1, 60, 60), image(2, 50, 80)):
        conversation.add_image(medium)
        steps.append(conversation.ask("And now?", GREEDY))
        assert steps[-1].text() == ask_afresh(engine, conversation)
    shrunk = conversation.engine.token_runs(conversation._media)[0].length < first_run
    assert shrunk == (family == "llava_onevision")
    before_image = conversation.engine.renderer.render(
        [{"role": "user", "text": ""}], [], "prefix"
    )["input_ids"]
    if family == "llava_onevision":  # nothing behind the first image can be reused, then all can
        assert steps[0].cached_tokens < len(before_image)
    else:
        assert steps[0].cached_tokens > first_run
    assert steps[1].cached_tokens >= steps[0].prompt_tokens


def test_a_clip_is_added_to_an_image(engines, family):
    engine = engines(family)
    conversation = start(engine, media_of(image(0)))
    first = conversation.ask("What is there?", GREEDY)
    first.text()
    conversation.add_image(media_of(clip(1))[0])
    second = conversation.ask("Does it move?", GREEDY)
    assert second.text() == ask_afresh(engine, conversation)
    assert second.cached_tokens >= first.prompt_tokens


def test_answers_depend_on_the_media(engines, family):
    engine = engines(family)
    answers = {start(engine, media_of(image(i))).ask("What?", GREEDY).text() for i in range(6)}
    assert len(answers) > 1


def test_pixels_are_processed_and_encoded_once(engines, family, monkeypatch):
    engine = engines(family)
    stock = engine.model.family
    calls: list[Any] = []
    pixels = stock.pixels

    def counted(medium: Media, layout: Any) -> Any:
        calls.append(layout.grid)
        return pixels(medium, layout)

    monkeypatch.setattr(stock, "pixels", counted)
    conversation = start(engine, media_of(image(0), image(1)))
    conversation.prefill()
    conversation.ask("What?", GREEDY).text()
    conversation.ask("Why?", GREEDY).text()
    assert len(calls) == 2
    conversation.add_image(media_of(clip(0))[0])
    conversation.ask("Does it move?", GREEDY).text()
    assert len(calls) == 3
    conversation.free_cache()
    conversation.ask("Sure?", GREEDY).text()
    assert len(calls) == 6


def test_sampling_and_candidates_work(engines, family):
    engine = engines(family)
    settings = Generation(max_new_tokens=6, do_sample=True, candidates=3, seed=3)
    conversation = start(engine, media_of(image(0)))
    first = conversation.ask("What is there?", settings).text()
    assert first == start(engine, media_of(image(0))).ask("What is there?", settings).text()
    assert conversation.ask("Sure?", GREEDY).text() == ask_afresh(engine, conversation)


@pytest.mark.parametrize("family", FAMILIES[:3])
def test_an_answer_may_contain_the_tokens_of_media(engines, family):
    """Such tokens are text, and do not count as further images."""
    engine = engines(family)
    conversation = start(engine, media_of(image(0)))
    conversation.ask("What?", GREEDY).text()
    stock = engine.model.family
    conversation.history[0].answer_ids[:0] = [stock.image_id, stock.video_id]
    assert conversation.ask("Sure?", GREEDY).text() == ask_afresh(engine, conversation)
