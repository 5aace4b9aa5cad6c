"""Decoding of many rows at once, compared with transformers' `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from xraygpt.models.base import Generation
from xraygpt.models.llm import kv_cache, sampling
from xraygpt.models.llm.decoding import Decoder
from xraygpt.models.llm.guidance import Guidance
from xraygpt.models.llm.small_llm import SmallLLM, new_llm, new_tokenizer
from xraygpt.prompting.renderer import PromptRenderer

PROMPTS = ["heart", "the left lung is", "no acute disease of the chest", "clear"]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """A random LLM with varied answers, some of which end early."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer([], 260)
    sizes = {"hidden": 32, "layers": 2, "heads": 2, "context": 256}
    llm = new_llm(SmallLLM(**sizes, init_std=0.3, embedding_std=1.0), tokenizer, 0)
    decoder = Decoder(llm.eval(), PromptRenderer(tokenizer, "xraygpt", prompts=["?"]))
    ids = decoder.generate_ids(*prompts(decoder), Generation(max_new_tokens=40))
    decoder.end_ids.add(ids[0][7])  # a token in the middle of some answers now ends them
    return decoder


def prompts(decoder: Decoder, texts: list[str] = PROMPTS) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, H) left-padded embeddings and their mask."""
    rows = [decoder.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return decoder.llm.get_input_embeddings()(ids).detach(), mask


def by_transformers(
    decoder: Decoder, embeds: Any, mask: Any, generation: Generation, guidance: Any
) -> list[list[int]]:
    """Output of transformers' `generate` without padding."""
    stops = StoppingCriteriaList(decoder._criteria())
    rows = decoder._generate_with_transformers(embeds, mask, generation, guidance, stops)
    ends = [next((i for i, t in enumerate(r) if t in decoder.end_ids), len(r)) for r in rows]
    return [row[: end + 1] for row, end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize("settings", [{}, {"no_repeat_ngram_size": 2}, {"guidance": 1.5}])
@torch.no_grad()
def test_greedy_equals_transformers(decoder: Decoder, settings: dict[str, Any]) -> None:
    generation = Generation(max_new_tokens=60, **settings)
    embeds, mask = prompts(decoder)
    average = prompts(decoder, [t[::-1] for t in PROMPTS])[0] if generation.guidance else None
    ours = decoder.generate_ids(embeds, mask, generation, average)
    guidance = None
    if average is not None:
        guidance = Guidance(decoder.llm, average, mask, generation.guidance)
    assert ours == by_transformers(decoder, embeds, mask, generation, guidance)
    lengths = {len(row) for row in ours}
    assert len(lengths) > 1, "the test needs rows that end at different times"


@torch.no_grad()
def test_repetition_penalty_equals_transformers(decoder: Decoder) -> None:
    """Unpadded, as transformers ignores as many first tokens as there is padding."""
    generation = Generation(max_new_tokens=40, repetition_penalty=1.4)
    single = [prompts(decoder, [text]) for text in PROMPTS]
    expected = [by_transformers(decoder, *prompt, generation, None)[0] for prompt in single]
    assert decoder.generate_ids(*prompts(decoder), generation) == expected
    assert expected != decoder.generate_ids(*prompts(decoder), Generation(max_new_tokens=40))


@torch.no_grad()
def test_the_llms_own_settings_apply(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = Generation(max_new_tokens=10)
    before = decoder.generate_ids(*prompts(decoder), generation)
    first = before[0][0]
    monkeypatch.setattr(decoder.llm.generation_config, "suppress_tokens", [first])
    after = decoder.generate_ids(*prompts(decoder), generation)
    assert all(first not in row for row in after) and after != before


@pytest.mark.slow
@torch.no_grad()
def test_samples_do_not_depend_on_the_batch(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = Generation(max_new_tokens=40, do_sample=True, candidates=5, top_p=0.95, seed=3)
    together = decoder.generate_ids(*prompts(decoder), generation, names=PROMPTS)
    single = [decoder.generate_ids(*prompts(decoder, [t]), generation, names=[t]) for t in PROMPTS]
    assert together == [row for rows in single for row in rows]
    assert len({tuple(row) for row in together}) > 15
    for fraction in (0.0, 2.0):  # rows that have ended are dropped at once, or never
        monkeypatch.setattr(sampling, "DROP_FRACTION", fraction)
        assert decoder.generate_ids(*prompts(decoder), generation, names=PROMPTS) == together
    other_seed = Generation(max_new_tokens=40, do_sample=True, candidates=5, top_p=0.95, seed=4)
    assert decoder.generate_ids(*prompts(decoder), other_seed, names=PROMPTS) != together
    other_names = decoder.generate_ids(*prompts(decoder), generation, names=PROMPTS[::-1])
    assert other_names != together, "random numbers must depend on the names"


@pytest.mark.parametrize("by_transformers", [False, True])
@torch.no_grad()
def test_references_are_sampled_at_temperature_one(
    decoder: Decoder, by_transformers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder.llm.generation_config, "suppress_tokens", [0] * by_transformers)
    settings = {"max_new_tokens": 20, "do_sample": True, "candidates": 3}
    cold = Generation(**settings, temperature=1e-3, references=4)
    embeds, mask = prompts(decoder, PROMPTS[:2])
    greedy = decoder.generate_ids(embeds, mask, Generation(max_new_tokens=20))
    sampled = decoder.generate_ids(embeds, mask, cold)
    assert len(sampled) == 14
    for i in range(2):
        texts = [decoder._decode(row) for row in sampled[7 * i : 7 * i + 7]]
        assert texts[:3] == [decoder._decode(greedy[i])] * 3
        assert len(set(texts[3:])) > 1


def test_tokens_are_sampled_with_their_probabilities() -> None:
    scores = torch.tensor([[2.0, -torch.inf, 0.0, 1.0, -1.0]])
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    tokens = sampling._pick(scores.expand(len(uniform), -1), uniform)
    frequencies = torch.bincount(tokens, minlength=5) / len(uniform)
    assert torch.allclose(frequencies, scores[0].softmax(dim=0), atol=2e-4)
    assert frequencies[1] == 0
    assert sampling._pick(scores, torch.tensor([0.0])).item() == 0
    assert sampling._pick(scores.flip(1), torch.tensor([1 - 2**-24])).item() == 4


def test_a_preallocated_layer_equals_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache.PreallocatedLayer, "spare_tokens", 3)
    ours, parent = kv_cache.PreallocatedLayer(), DynamicLayer()
    for step, tokens in enumerate([5, 1, 1, 2, 1, 4, 1, 1]):
        keys, values = torch.randn(2, len(ours.keys) if step else 4, 2, tokens, 8)
        pairs = zip(ours.update(keys, values), parent.update(keys, values), strict=True)
        assert all(torch.equal(actual, expected) for actual, expected in pairs)
        for layer in (ours, parent):
            if step == 2:
                layer.batch_repeat_interleave(3)
            if step == 4:
                layer.batch_select_indices(torch.tensor([0, 5, 11]))
            if step == 5:
                layer.crop(-3)
