"""Decoding many rows at once, against transformers' own `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from xraygpt.models.base import Generation
from xraygpt.models.llm import sampling
from xraygpt.models.llm.decoding import Decoder, Guidance
from xraygpt.models.llm.small_llm import SmallLLM, new_llm, new_tokenizer
from xraygpt.prompting.renderer import PromptRenderer

PROMPTS = ["heart", "the left lung is", "no acute disease of the chest", "clear"]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """A random LLM that says different things, and some of them end early."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer([], 260)
    sizes = {"hidden": 32, "layers": 2, "heads": 2, "context": 256}
    llm = new_llm(SmallLLM(**sizes, init_std=0.3, embedding_std=1.0), tokenizer, 0)
    made = Decoder(llm.eval(), PromptRenderer(tokenizer, "xraygpt", prompts=["?"]))
    usual = made.generate_ids(*prompts(made), Generation(max_new_tokens=40))
    # What some answers say in their midst ends them from now on.
    made.end_ids.add(usual[0][7])
    return made


def prompts(decoder: Decoder, texts: list[str] = PROMPTS) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, H) left-padded embeddings and their mask."""
    rows = [decoder.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return decoder.llm.get_input_embeddings()(ids).detach(), mask


def by_transformers(
    decoder: Decoder, embeds: Any, mask: Any, how: Generation, guide: Any
) -> list[list[int]]:
    """The same by `generate`, without its padding."""
    stops = StoppingCriteriaList(decoder._criteria())
    rows = decoder._by_transformers(embeds, mask, how, guide, stops)
    ends = [next((i for i, t in enumerate(r) if t in decoder.end_ids), len(r)) for r in rows]
    return [row[: end + 1] for row, end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize("settings", [{}, {"no_repeat_ngram_size": 2}, {"guidance": 1.5}])
@torch.no_grad()
def test_greedy_is_that_of_transformers(decoder: Decoder, settings: dict[str, Any]) -> None:
    how = Generation(max_new_tokens=60, **settings)
    embeds, mask = prompts(decoder)
    plain = prompts(decoder, [t[::-1] for t in PROMPTS])[0] if how.guidance else None
    ours = decoder.generate_ids(embeds, mask, how, plain)
    guide = None if plain is None else Guidance(decoder.llm, plain, mask, how.guidance)
    assert ours == by_transformers(decoder, embeds, mask, how, guide)
    lengths = {len(row) for row in ours}
    assert len(lengths) > 1, "some rows must end before others, or nothing was shown"


@torch.no_grad()
def test_a_repetition_costs_what_it_does_in_transformers(decoder: Decoder) -> None:
    """Unpadded: padded, transformers counts none of as many first tokens as there is padding."""
    how = Generation(max_new_tokens=40, repetition_penalty=1.4)
    alone = [prompts(decoder, [text]) for text in PROMPTS]
    theirs = [by_transformers(decoder, *one, how, None)[0] for one in alone]
    assert decoder.generate_ids(*prompts(decoder), how) == theirs
    assert theirs != decoder.generate_ids(*prompts(decoder), Generation(max_new_tokens=40))


@torch.no_grad()
def test_rules_of_the_llm_itself_hold(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    how = Generation(max_new_tokens=10)
    before = decoder.generate_ids(*prompts(decoder), how)
    first = before[0][0]
    monkeypatch.setattr(decoder.llm.generation_config, "suppress_tokens", [first])
    after = decoder.generate_ids(*prompts(decoder), how)
    assert all(first not in row for row in after) and after != before


@pytest.mark.slow
@torch.no_grad()
def test_draws_are_the_same_in_any_batch(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    how = Generation(max_new_tokens=40, do_sample=True, candidates=5, top_p=0.95, seed=3)
    together = decoder.generate_ids(*prompts(decoder), how, names=PROMPTS)
    alone = [decoder.generate_ids(*prompts(decoder, [t]), how, names=[t]) for t in PROMPTS]
    assert together == [row for rows in alone for row in rows]
    assert len({tuple(row) for row in together}) > 15
    for share in (0.0, 2.0):  # rows that are over leave at once, or never
        monkeypatch.setattr(sampling, "LEAVE_AT", share)
        assert decoder.generate_ids(*prompts(decoder), how, names=PROMPTS) == together
    other = Generation(max_new_tokens=40, do_sample=True, candidates=5, top_p=0.95, seed=4)
    assert decoder.generate_ids(*prompts(decoder), other, names=PROMPTS) != together
    unlike = decoder.generate_ids(*prompts(decoder), how, names=PROMPTS[::-1])
    assert unlike != together, "names must have their own draws"


@pytest.mark.parametrize("by_transformers", [False, True])
@torch.no_grad()
def test_references_are_drawn_at_temperature_one(
    decoder: Decoder, by_transformers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder.llm.generation_config, "suppress_tokens", [0] * by_transformers)
    settings = {"max_new_tokens": 20, "do_sample": True, "candidates": 3}
    cold = Generation(**settings, temperature=1e-3, references=4)
    embeds, mask = prompts(decoder, PROMPTS[:2])
    greedy = decoder.generate_ids(embeds, mask, Generation(max_new_tokens=20))
    drawn = decoder.generate_ids(embeds, mask, cold)
    assert len(drawn) == 14
    for i in range(2):
        said = [decoder._text(row) for row in drawn[7 * i : 7 * i + 7]]
        assert said[:3] == [decoder._text(greedy[i])] * 3
        assert len(set(said[3:])) > 1


def test_tokens_are_drawn_as_likely_as_they_are() -> None:
    scores = torch.tensor([[2.0, -torch.inf, 0.0, 1.0, -1.0]])
    luck = (torch.arange(10_000) + 0.5) / 10_000
    drawn = sampling._pick(scores.expand(len(luck), -1), luck)
    shares = torch.bincount(drawn, minlength=5) / len(luck)
    assert torch.allclose(shares, scores[0].softmax(dim=0), atol=2e-4)
    assert shares[1] == 0
    assert sampling._pick(scores, torch.tensor([0.0])).item() == 0
    assert sampling._pick(scores.flip(1), torch.tensor([1 - 2**-24])).item() == 4


def test_a_roomy_layer_holds_what_the_parent_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling.RoomyLayer, "room", 3)
    ours, theirs = sampling.RoomyLayer(), DynamicLayer()
    for step, tokens in enumerate([5, 1, 1, 2, 1, 4, 1, 1]):
        keys, values = torch.randn(2, len(ours.keys) if step else 4, 2, tokens, 8)
        for mine, their in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(mine, their)
        for layer in (ours, theirs):
            if step == 2:
                layer.batch_repeat_interleave(3)
            if step == 4:
                layer.batch_select_indices(torch.tensor([0, 5, 11]))
            if step == 5:
                layer.crop(-3)
