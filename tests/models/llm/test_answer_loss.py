"""Packed rows give the losses and gradients of padded ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from xraygpt.models.llm import answer_loss as module
from xraygpt.models.llm.answer_loss import answer_loss, plan_packing
from xraygpt.models.llm.small_llm import LoraSettings, SmallLLM, add_lora, new_llm, new_tokenizer
from xraygpt.prompting.renderer import IGNORE_INDEX

LENGTHS = [3, 31, 12, 1, 40, 7, 22, 5]


@pytest.fixture(scope="module")
def llm() -> Any:
    sizes = {"hidden": 64, "layers": 2, "heads": 4, "context": 128, "vocab_size": 260}
    llm = new_llm(SmallLLM(**sizes, init_std=0.2, embedding_std=1.0), new_tokenizer([], 260), 0)
    return llm.train()


def batch(lengths: list[int], left: bool = False, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """(B, T, 64) embeddings, mask, and labels in the second half of each row."""
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


def padded_loss(llm: Any, embeds: Any, mask: Any, labels: Any) -> torch.Tensor:
    """(B,) loss computed on the padded batch."""
    logits = llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
    return functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=IGNORE_INDEX
    ).sum(dim=1)


def gradients(llm: Any, loss: torch.Tensor, embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = {n: p for n, p in llm.named_parameters() if p.requires_grad}
    values = torch.autograd.grad(loss, [embeds, *weights.values()])
    return dict(zip(["embeds", *weights], values, strict=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, [40] * 4, [1, 2, 300, 4], [5]])
def test_losses_and_gradients_equal_those_of_padded_rows(
    llm: Any, lengths: list[int], left: bool, attention: str
) -> None:
    llm.set_attn_implementation(attention)
    embeds, mask, labels = batch(lengths, left)
    embeds.requires_grad_(True)
    expected = padded_loss(llm, embeds, mask, labels)
    output = answer_loss(llm, embeds, mask, labels, False)
    assert torch.allclose(output.row_loss, expected, atol=1e-4, rtol=1e-5)
    assert output.num_targets.tolist() == (labels[:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
    actual = gradients(llm, output.loss, embeds)
    for name, gradient in gradients(llm, expected.sum(), embeds).items():
        assert torch.allclose(actual[name], gradient, atol=2e-4, rtol=1e-3), name
    llm.set_attn_implementation("sdpa")


def test_returned_logits_are_the_llms(llm: Any) -> None:
    embeds, mask, labels = batch(LENGTHS)
    output = answer_loss(llm, embeds, mask, labels, True)
    expected = llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
    assert torch.equal(output.logits, expected)
    assert torch.allclose(output.row_loss, padded_loss(llm, embeds, mask, labels), atol=1e-4)


def test_rows_are_independent(llm: Any) -> None:
    embeds, mask, labels = batch(LENGTHS)
    before = answer_loss(llm, embeds, mask, labels, False).row_loss
    embeds[4] += 1.0
    after = answer_loss(llm, embeds, mask, labels, False).row_loss
    others = [i for i in range(len(LENGTHS)) if i != 4]
    assert torch.equal(before[others], after[others])
    assert before[4] != after[4]


def test_logits_are_computed_for_answers_only_and_padding_is_skipped(llm: Any) -> None:
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
    assert seen["rows"] == (1, sum(LENGTHS))  # all fit into one row


def test_a_batch_without_an_answer_keeps_the_graph(llm: Any) -> None:
    embeds, mask, labels = batch(LENGTHS)
    embeds.requires_grad_(True)
    output = answer_loss(llm, embeds, mask, torch.full_like(labels, IGNORE_INDEX), False)
    assert float(output.loss) == 0
    (grad,) = torch.autograd.grad(output.loss, [embeds])
    assert not grad.any()


def test_gradients_of_adapters_equal_those_of_padded_rows() -> None:
    sizes = {"hidden": 64, "layers": 2, "heads": 4, "context": 128, "vocab_size": 260}
    llm = new_llm(SmallLLM(**sizes), new_tokenizer([], 260), 0).requires_grad_(False)
    add_lora(llm, LoraSettings(r=4, alpha=4, dropout=0.0, target=["q_proj", "v_proj"]))
    embeds, mask, labels = batch(LENGTHS)
    embeds.requires_grad_(True)
    actual = gradients(llm, answer_loss(llm, embeds, mask, labels, False).loss, embeds)
    expected = gradients(llm, padded_loss(llm, embeds, mask, labels).sum(), embeds)
    assert len(actual) == 9
    for name in expected:
        assert torch.allclose(actual[name], expected[name], atol=1e-4, rtol=1e-3), name


def test_flash_attention_gets_one_row(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, single in (("flash_attention_2", True), ("sdpa", False), (None, False)):
        stub = SimpleNamespace(config=SimpleNamespace(_attn_implementation=name))
        assert module._needs_single_row(stub) is single
    lengths = [200, 150, 120, 90]  # too many tokens for one packed row
    embeds, mask, labels = batch(lengths)
    rows = []
    hook = llm.model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(tuple(args[0].shape[:2])), with_kwargs=True
    )
    several = answer_loss(llm, embeds, mask, labels, False)
    monkeypatch.setattr(module, "_needs_single_row", lambda _: True)
    single_row = answer_loss(llm, embeds, mask, labels, False)
    hook.remove()
    assert rows[0][0] > 1 and rows[1] == (1, sum(lengths))
    torch.testing.assert_close(single_row.row_loss, several.row_loss)


def test_packing_places_every_token_once() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        lengths = torch.randint(1, 60, (17,), generator=generator).tolist()
        mask = batch(lengths)[1]
        layout = plan_packing(mask, min_capacity=64)
        assert len(set(layout.target.tolist())) == sum(lengths) == len(layout.source)
        flat = layout.positions.flatten()
        rows = (layout.source // mask.shape[1]).tolist()
        for i, n in enumerate(lengths):
            target = layout.target[[k for k, row in enumerate(rows) if row == i]]
            assert target.tolist() == list(range(int(target[0]), int(target[0]) + n))
            assert flat[target].tolist() == list(range(n))
            assert target[0] // layout.shape[1] == target[-1] // layout.shape[1]
        # First-fit decreasing needs at most 11/9 of the minimum number of rows, plus one.
        assert layout.shape[0] <= 11 / 9 * -(-sum(lengths) // 30) + 1
    assert plan_packing(torch.ones(3, 300, dtype=torch.long)).shape == (3, 300)
