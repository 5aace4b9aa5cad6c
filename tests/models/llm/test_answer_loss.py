"""Packed rows have the losses and gradients of padded ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from xraygpt.models.llm import answer_loss as module
from xraygpt.models.llm.answer_loss import answer_loss, packed
from xraygpt.models.llm.small_llm import LoraSettings, SmallLLM, add_lora, new_llm, new_tokenizer
from xraygpt.prompting.renderer import IGNORE_INDEX

LENGTHS = [3, 31, 12, 1, 40, 7, 22, 5]


@pytest.fixture(scope="module")
def llm() -> Any:
    sizes = {"hidden": 64, "layers": 2, "heads": 4, "context": 128, "vocab_size": 260}
    made = new_llm(SmallLLM(**sizes, init_std=0.2, embedding_std=1.0), new_tokenizer([], 260), 0)
    return made.train()


def batch(lengths: list[int], left: bool = False, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """(B, T, 64) embeddings, mask, and labels on each row's second half."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    embeds = torch.randn(len(lengths), width, 64, generator=generator)
    labels = torch.randint(0, 200, (len(lengths), width), generator=generator)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for i, n in enumerate(lengths):
        begin = width - n if left else 0
        mask[i, begin : begin + n] = 1
        labels[i, : begin + max(n // 2, 1)] = IGNORE_INDEX
        labels[i, begin + n :] = IGNORE_INDEX
    return embeds, mask, labels


def padded(llm: Any, embeds: Any, mask: Any, labels: Any) -> torch.Tensor:
    """(B,) the same loss as simply as can be."""
    logits = llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
    return functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=IGNORE_INDEX
    ).sum(dim=1)


def gradients(llm: Any, loss: torch.Tensor, embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = {n: p for n, p in llm.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, [embeds, *weights.values()])
    return dict(zip(["embeds", *weights], found, strict=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, [40] * 4, [1, 2, 300, 4], [5]])
def test_losses_and_gradients_are_those_of_padded_rows(
    llm: Any, lengths: list[int], left: bool, attention: str
) -> None:
    llm.set_attn_implementation(attention)
    embeds, mask, labels = batch(lengths, left)
    embeds.requires_grad_(True)
    expected = padded(llm, embeds, mask, labels)
    found = answer_loss(llm, embeds, mask, labels, False)
    assert torch.allclose(found.row_loss, expected, atol=1e-4, rtol=1e-5)
    assert found.num_targets.tolist() == (labels[:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
    ours = gradients(llm, found.loss, embeds)
    for name, theirs in gradients(llm, expected.sum(), embeds).items():
        assert torch.allclose(ours[name], theirs, atol=2e-4, rtol=1e-3), name
    llm.set_attn_implementation("sdpa")


def test_all_logits_are_those_of_the_llm(llm: Any) -> None:
    embeds, mask, labels = batch(LENGTHS)
    found = answer_loss(llm, embeds, mask, labels, True)
    expected = llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
    assert torch.equal(found.logits, expected)
    assert torch.allclose(found.row_loss, padded(llm, embeds, mask, labels), atol=1e-4)


def test_rows_do_not_see_each_other(llm: Any) -> None:
    embeds, mask, labels = batch(LENGTHS)
    before = answer_loss(llm, embeds, mask, labels, False).row_loss
    embeds[4] += 1.0
    after = answer_loss(llm, embeds, mask, labels, False).row_loss
    others = [i for i in range(len(LENGTHS)) if i != 4]
    assert torch.equal(before[others], after[others])
    assert before[4] != after[4]


def test_only_answers_get_logits_and_only_tokens_are_read(llm: Any) -> None:
    embeds, mask, labels = batch(LENGTHS)
    seen = {}
    hooks = [
        llm.get_output_embeddings().register_forward_hook(
            lambda _, __, out: seen.update(logits=out.shape)
        ),
        llm.model.layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: seen.update(rows=args[0].shape[:2]), with_kwargs=True
        ),
    ]
    answer_loss(llm, embeds, mask, labels, False)
    for hook in hooks:
        hook.remove()
    assert seen["logits"] == (1, int((labels[:, 1:] != IGNORE_INDEX).sum()), llm.config.vocab_size)
    assert seen["rows"] == (1, sum(LENGTHS))  # all of them fit into one row


def test_a_batch_without_an_answer_keeps_the_graph(llm: Any) -> None:
    embeds, mask, labels = batch(LENGTHS)
    embeds.requires_grad_(True)
    found = answer_loss(llm, embeds, mask, torch.full_like(labels, IGNORE_INDEX), False)
    assert float(found.loss) == 0
    (grad,) = torch.autograd.grad(found.loss, [embeds])
    assert not grad.any()


def test_adapters_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden": 64, "layers": 2, "heads": 4, "context": 128, "vocab_size": 260}
    llm = new_llm(SmallLLM(**sizes), new_tokenizer([], 260), 0).requires_grad_(False)
    add_lora(llm, LoraSettings(r=4, alpha=4, dropout=0.0, target=["q_proj", "v_proj"]))
    embeds, mask, labels = batch(LENGTHS)
    embeds.requires_grad_(True)
    ours = gradients(llm, answer_loss(llm, embeds, mask, labels, False).loss, embeds)
    theirs = gradients(llm, padded(llm, embeds, mask, labels).sum(), embeds)
    assert len(ours) == 9
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], atol=1e-4, rtol=1e-3), name


def test_flash_attention_gets_one_row(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, one in (("flash_attention_2", True), ("sdpa", False), (None, False)):
        seen = SimpleNamespace(config=SimpleNamespace(_attn_implementation=name))
        assert module._wants_one_row(seen) is one
    lengths = [200, 150, 120, 90]  # more than one packed row holds
    embeds, mask, labels = batch(lengths)
    rows = []
    hook = llm.model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(tuple(args[0].shape[:2])), with_kwargs=True
    )
    several = answer_loss(llm, embeds, mask, labels, False)
    monkeypatch.setattr(module, "_wants_one_row", lambda _: True)
    one_row = answer_loss(llm, embeds, mask, labels, False)
    hook.remove()
    assert rows[0][0] > 1 and rows[1] == (1, sum(lengths))
    torch.testing.assert_close(one_row.row_loss, several.row_loss)


def test_every_token_has_one_place() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        lengths = torch.randint(1, 60, (17,), generator=generator).tolist()
        mask = batch(lengths)[1]
        pack = packed(mask, least=64)
        assert len(set(pack.target.tolist())) == sum(lengths) == len(pack.source)
        flat = pack.positions.flatten()
        rows = (pack.source // mask.shape[1]).tolist()
        for i, n in enumerate(lengths):
            places = pack.target[[k for k, row in enumerate(rows) if row == i]]
            assert places.tolist() == list(range(int(places[0]), int(places[0]) + n))
            assert flat[places].tolist() == list(range(n))
            assert places[0] // pack.shape[1] == places[-1] // pack.shape[1]
        # First-fit decreasing needs at most 11/9 of the fewest possible rows, and one more.
        assert pack.shape[0] <= 11 / 9 * -(-sum(lengths) // 30) + 1
    assert module.packed(torch.ones(3, 300, dtype=torch.long)).shape == (3, 300)
