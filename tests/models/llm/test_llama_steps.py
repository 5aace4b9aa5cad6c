"""The faster forward pass for many answers to one prompt, compared with transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as AutoModel
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from xraygpt.models.base import Generation
from xraygpt.models.llm import decoding, small_llm
from xraygpt.models.llm.branches import Branches
from xraygpt.models.llm.decoding import Decoder
from xraygpt.models.llm.llama_steps import LlamaSteps, has_llama_steps
from xraygpt.models.llm.small_llm import new_tokenizer
from xraygpt.prompting.renderer import PromptRenderer

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
ROPE = {"rope_theta": 10000.0}
CONFIGS = {
    "plain": LlamaConfig(**SIZES),
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "grouped": LlamaConfig(**{**SIZES, "num_key_value_heads": 2}),
    "wide heads": LlamaConfig(**SIZES, head_dim=16),
    "biases": LlamaConfig(**SIZES, attention_bias=True),
    "linear": LlamaConfig(**SIZES, rope_parameters={**ROPE, "rope_type": "linear", "factor": 2.0}),
    "yarn": LlamaConfig(
        **SIZES,
        rope_parameters={
            **ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
        },
    ),
    "llama3": LlamaConfig(
        **SIZES,
        rope_parameters={
            **ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
}  # fmt: skip
OTHERS = {
    "dynamic": LlamaConfig(
        **SIZES, rope_parameters={**ROPE, "rope_type": "dynamic", "factor": 2.0}
    ),
    "window": MistralConfig(**SIZES, sliding_window=8),
    "gelu": LlamaConfig(**SIZES, hidden_act="gelu"),
    "qwen3": Qwen3Config(**SIZES),
}


def new_llm(config: Any) -> Any:
    """A model with random weights, including biases and norms."""
    torch.manual_seed(0)
    llm = AutoModel.from_config(config, dtype=torch.float32).eval()
    for name, parameter in llm.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return llm.requires_grad_(False)


def logits_of(llm: Any, embeds: torch.Tensor, ids: list[list[int]]) -> torch.Tensor:
    """The next token's logits after a prompt and each of several continuations."""
    embed = llm.get_input_embeddings()
    rows = torch.cat([embeds.expand(len(ids), -1, -1), embed(torch.tensor(ids))], dim=1)
    return llm(inputs_embeds=rows).logits[:, -1]


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_equal_transformers(name: str) -> None:
    llm = new_llm(CONFIGS[name])
    assert has_llama_steps(llm)
    embeds = torch.randn(1, 7, 32)
    steps = LlamaSteps(llm)
    expected = llm(inputs_embeds=embeds).logits[:, -1]
    continuations, logits = steps.start(embeds, 5, 200)
    assert torch.allclose(logits, expected, atol=1e-5)
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(3, 0, dtype=torch.long)
    for step in range(140):  # the cache grows after 128 tokens
        tokens = torch.randint(300, (3,), generator=generator)
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        ours = steps.step([tokens], [continuations])
        if step % 23 == 0 or step == 135:
            theirs = logits_of(llm, embeds, ids.tolist())
            assert torch.allclose(ours, theirs, atol=1e-4), step
    assert ours.std() > 0.1


def test_copies_continue_like_their_source() -> None:
    llm = new_llm(CONFIGS["grouped"])
    embeds, steps = torch.randn(1, 5, 32), LlamaSteps(llm)
    continuations, _ = steps.start(embeds, 4, 10)
    steps.step([torch.tensor([3, 4])], [continuations])
    continuations.copy(torch.tensor([1, 0]), torch.tensor([2, 3]))
    ours = steps.step([torch.tensor([5, 6, 7, 8])], [continuations])
    theirs = logits_of(llm, embeds, [[3, 5], [4, 6], [4, 7], [3, 8]])
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, logits_of(llm, embeds, [[3, 5], [4, 6], [3, 7], [4, 8]]))


def test_prompts_of_different_lengths_are_continued_together() -> None:
    llm = new_llm(CONFIGS["grouped"])
    prompts, steps = [torch.randn(1, 5, 32), torch.randn(1, 8, 32)], LlamaSteps(llm)
    continuations = [steps.start(embeds, 4, 10)[0] for embeds in prompts]
    steps.step([torch.tensor([3]), torch.tensor([4, 5])], continuations)
    ours = steps.step([torch.tensor([6]), torch.tensor([7, 8])], continuations)
    assert torch.allclose(ours[:1], logits_of(llm, prompts[0], [[3, 6]]), atol=1e-4)
    assert torch.allclose(ours[1:], logits_of(llm, prompts[1], [[4, 7], [5, 8]]), atol=1e-4)
    alone = steps.start(prompts[0], 4, 10)[0]
    steps.step([torch.tensor([3])], [alone])
    assert torch.equal(steps.step([torch.tensor([6])], [alone]), ours[:1])
    assert steps.prompts_at_once(10**9, 10) == 1 < steps.prompts_at_once(10, 10)


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_left_to_transformers(name: str) -> None:
    assert not has_llama_steps(new_llm(OTHERS[name]))


def test_changed_models_are_left_to_transformers() -> None:
    llm = new_llm(CONFIGS["plain"])
    handle = llm.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert not has_llama_steps(llm)
    handle.remove()
    assert has_llama_steps(llm)
    assert not has_llama_steps(llm.half())
    lora = new_llm(CONFIGS["plain"])
    small_llm.add_lora(lora, small_llm.LoraSettings(r=2, alpha=2, target=["q_proj", "v_proj"]))
    assert not has_llama_steps(lora)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    embeds = torch.randn(1, 5, 32)
    before = lora(inputs_embeds=embeds).logits[:, -1]
    small_llm.merge_lora_weights(lora)
    assert has_llama_steps(lora)
    steps = LlamaSteps(lora)
    steps.start(embeds[:, :4], 1, 4)
    assert torch.allclose(lora(inputs_embeds=embeds).logits[:, -1], before, atol=1e-4)


SAMPLED = {"max_new_tokens": 30, "do_sample": True, "candidates": 12, "references": 12}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """A random LLM some of whose answers begin alike and end early."""
    tokenizer = new_tokenizer([], 260)
    llm = new_llm(LlamaConfig(**{**SIZES, "vocab_size": len(tokenizer)}, eos_token_id=2))
    return Decoder(llm, PromptRenderer(tokenizer, "xraygpt", prompts=["?"]))


def prompts(decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Three left-padded prompts of different lengths, and their mask."""
    embeds, mask = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(5)), None
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, :4] = mask[2, :1] = 0
    return embeds, mask


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.3}, {"temperature": 0.5, "no_repeat_ngram_size": 2, "top_p": 0.8},
     {"temperature": 0.25, "repetition_penalty": 1.3}],
)  # fmt: skip
def test_branches_give_the_answers_of_sample(
    decoder: Decoder, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = Generation(**SAMPLED, **settings)
    names = ["a", "b", "c"]
    fast = decoder.generate_ids(*prompts(decoder), generation, names=names)
    monkeypatch.setattr(decoding, "has_llama_steps", lambda _: False)
    slow = decoder.generate_ids(*prompts(decoder), generation, names=names)
    assert fast == slow
    beginnings = {tuple(row[:2]) for row in fast[:12]}
    assert 1 < len(beginnings) < 12, "the test needs answers that begin alike"
    assert fast != decoder.generate_ids(*prompts(decoder), generation, names=names[::-1])


def test_answers_do_not_depend_on_the_batch(decoder: Decoder) -> None:
    """Bit for bit: each prompt is decoded by itself, without its padding."""
    generation = Generation(**SAMPLED, temperature=0.3)
    embeds, mask = prompts(decoder)
    together = decoder.generate_ids(embeds, mask, generation, names=["a", "b", "c"])
    alone = [
        decoder.generate_ids(embeds[i : i + 1, p:], mask[i : i + 1, p:], generation, names=[n])
        for i, (p, n) in enumerate([(4, "a"), (0, "b"), (1, "c")])
    ]
    assert together == [row for rows in alone for row in rows]
    same = decoder.generate_ids(embeds[[1, 1]], mask[[1, 1]], generation, names=["x", "x"])
    assert same[:24] == same[24:]


def test_branches_follow_their_answers() -> None:
    """Whatever the tokens, slots hold each branch's tokens after the copies."""
    generator = torch.Generator().manual_seed(0)
    branches, slots = Branches(20), [[] for _ in range(20)]
    rows: list[list[int]] = [[] for _ in range(20)]
    for _ in range(12):
        tokens = torch.randint(4, (len(rows),), generator=generator)
        rows = [[*row, t] for row, t in zip(rows, tokens.tolist(), strict=True)]
        scores = torch.zeros(len(rows), 4)
        ended, sources, targets = branches.extend(tokens, scores, lambda ids, _: ids[:, -1] == 3)
        rows = [row for row, end in zip(rows, ended.tolist(), strict=True) if not end]
        assert all(row[-1] != 3 for row in rows)
        copied = [list(slots[i]) for i in sources.tolist()]
        for target, content in zip(targets.tolist(), copied, strict=True):
            slots[target] = content
        for i, row in enumerate(branches.ids.tolist()):
            slots[i] = [*slots[i], row[-1]]
            assert slots[i] == row
        assert [branches.ids[i].tolist() for i in branches.of_row] == rows
        assert len({tuple(row) for row in rows}) == len(branches.ids)
        if not rows:
            break
    assert not rows
