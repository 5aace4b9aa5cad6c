"""Files of LAVIS, MiniGPT-4 and XrayGPT: all keys are accounted for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from xraygpt.common.errors import WeightsError
from xraygpt.models.llm.small_llm import SmallLLM
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.models.weights.lavis import convert_state
from xraygpt.runners.state import load_weights

LAYERS = 4
TEXT_SIDE = {
    f"Qformer.bert.encoder.layer.{i}.{name}": torch.ones(2)
    for i in range(LAYERS)
    for name in ("intermediate.dense.weight", "output.dense.bias", "output.LayerNorm.weight")
} | {
    "Qformer.bert.embeddings.word_embeddings.weight": torch.ones(3, 2),
    "Qformer.bert.embeddings.position_embeddings.weight": torch.ones(3, 2),
    "Qformer.bert.embeddings.position_ids": torch.arange(3)[None],
    "Qformer.cls.predictions.bias": torch.ones(3),
    "vision_proj.weight": torch.ones(2, 2),
    "itm_head.bias": torch.ones(2),
    "temp": torch.ones(()),
    "t5_proj.weight": torch.ones(2, 2),
}


def tiny(seed: int = 0, **settings) -> XrayGPT:
    """A small ViT and a Q-Former of layers with and without cross-attention."""
    settings = {
        "vit_model": "timm/vit_tiny_patch16_224",
        "image_size": 32,
        "num_query_token": 4,
        "qformer": QFormerConfig(layers=LAYERS, hidden=64),
        "llm": SmallLLM(vocab_size=260, hidden=32, layers=1, heads=2),
        **settings,
    }
    torch.manual_seed(seed)
    model = XrayGPT(XrayGPT.Config.from_keys(seed=seed, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def old_names(model: XrayGPT) -> dict[str, torch.Tensor]:
    """The model's weights under XrayGPT's original names."""
    rules = (
        (r"vision\.net\.(.+)", r"visual_encoder.\1"),
        (r"proj\.(.+)", r"llama_proj.\1"),
        (r"qformer\.(query_tokens|ln_vision\..+)", r"\1"),
        (r"qformer\.qformer\.layernorm\.(.+)", r"Qformer.bert.embeddings.LayerNorm.\1"),
        (r"qformer\.qformer\.(.+attention)\.attention\.(.+)", r"Qformer.bert.\1.self.\2"),
        (r"qformer\.qformer\.(.+)", r"Qformer.bert.\1"),
    )
    named = {}
    for name, tensor in model.state_dict().items():
        for pattern, to in rules:
            match = re.fullmatch(pattern, name)
            if match:
                named[match.expand(to)] = tensor
                break
    return named


def save(path: Path, state: dict[str, torch.Tensor], **more) -> Path:
    """Save like the original trainers: an old-format pickle with optimizer and configuration."""
    content = {"model": state, "optimizer": {}, "config": {"run": {}}, "epoch": 3, **more}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def part(state: dict[str, torch.Tensor], *prefixes: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if k.startswith(prefixes)}


def tokens(model: XrayGPT) -> torch.Tensor:
    with torch.no_grad():
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
        return model.image_tokens(pixels)


@pytest.fixture
def theirs() -> XrayGPT:
    return tiny(seed=1)


@pytest.mark.slow
def test_a_full_checkpoint_gives_the_same_model(theirs, tmp_path, caplog):
    caplog.set_level("DEBUG")
    state = {f"module.{k}": v for k, v in (old_names(theirs) | TEXT_SIDE).items()}
    ours = tiny(seed=2)
    assert not torch.equal(tokens(ours), tokens(theirs))
    load_weights(ours, save(tmp_path / "checkpoint_3.pth", state))
    assert torch.equal(tokens(ours), tokens(theirs))
    assert "14 skipped (the Q-Former's text side)" in caplog.text
    assert "4 skipped (heads of BLIP-2's first stage)" in caplog.text


@pytest.mark.slow
def test_the_separate_files_give_the_same_model(theirs, tmp_path):
    names = old_names(theirs)
    vit = {k.removeprefix("visual_encoder."): v for k, v in part(names, "visual_enc").items()}
    torch.save(vit, tmp_path / "vit.pth")
    blip2 = part(names, "Qformer", "query_tokens", "ln_vision") | TEXT_SIDE
    inv = {"llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    ours = tiny(
        seed=2,
        q_former_model=save(tmp_path / "blip2.pth", blip2),
        vit_ckpt=tmp_path / "vit.pth",
        ckpt=tmp_path / "xraygpt.pth",
    )
    ours = XrayGPT(ours.config).eval()  # `tiny` randomises all weights
    save(tmp_path / "xraygpt.pth", part(names, "llama_proj") | inv)
    _, fresh = load_weights(ours, tmp_path / "xraygpt.pth")
    assert torch.equal(tokens(ours), tokens(theirs))
    assert fresh == []


WRONG = {
    "a missing tensor": (
        lambda s: s.pop("Qformer.bert.encoder.layer.2.crossattention.self.key.bias"),
        "missing",
    ),
    "an unknown tensor": (
        lambda s: s.update({"Qformer.bert.pooler.weight": torch.ones(1)}),
        "unknown in files of LAVIS",
    ),
    "another width": (
        lambda s: s.update({"ln_vision.weight": torch.ones(1408)}),
        r"width 1408, but .* outputs 192",
    ),
    "another LLM": (
        lambda s: s.update({"llama_proj.weight": torch.ones(5120, 64)}),
        "width 5120, but .* has 32",
    ),
    "MiniGPT-4 for Llama 2": (
        lambda s: s.update({"llama_proj.weight": torch.ones(32, 5632)}),
        "Llama 2",
    ),
    "only a projection": (
        lambda s: [s.pop(k) for k in [*s] if not k.startswith("llama_proj")],
        "no Q-Former.*q_former_model",
    ),
    "no vision encoder": (
        lambda s: [s.pop(k) for k in [*s] if k.startswith("visual_encoder")],
        "no vision encoder.*vit_ckpt",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_unsuitable_files_are_rejected(theirs, tmp_path, name):
    change, message = WRONG[name]
    state = old_names(theirs)
    change(state)
    ours = tiny(seed=2)
    before = tokens(ours)
    with pytest.raises(WeightsError, match=message):
        load_weights(ours, save(tmp_path / "x.pth", state))
    assert torch.equal(tokens(ours), before)


def test_the_last_block_of_eva_is_dropped_as_in_blip2():
    names = ["cls_token", "blocks.38.norm1.weight", "blocks.39.norm1.weight", "norm.bias"]
    converted = convert_state({n: torch.ones(1) for n in [*names, "head.weight"]}, Path("eva.pth"))
    assert sorted(converted.state) == ["vision.net.blocks.38.norm1.weight", "vision.net.cls_token"]
    assert converted.dropped == {
        "the encoder's last block, norm and head": [*names[2:], "head.weight"]
    }


def blip2_of_width(width: int, tmp_path: Path) -> tuple[XrayGPT, Path]:
    """A Q-Former's file for an encoder of `width`, and the model it is from."""
    model = tiny(seed=1, vit_model="precomputed", vit_width=width, image_size=None)
    state = part(old_names(model), "Qformer", "query_tokens", "ln_vision")
    return model, save(tmp_path / "blip2.pth", state)


def wider(tmp_path: Path, **qformer) -> XrayGPT:
    sizes = QFormerConfig(layers=LAYERS, hidden=64, **qformer)
    return tiny(q_former_model=tmp_path / "blip2.pth", qformer=sizes)


def test_the_error_for_another_width_suggests_two_fixes(tmp_path):
    blip2_of_width(96, tmp_path)
    with pytest.raises(WeightsError, match=r"width 96, but .* outputs 192") as error:
        wider(tmp_path)
    assert "adapter: 96" in str(error.value)
    assert "new_cross_attention: true" in str(error.value)


def test_an_adapter_keeps_the_whole_qformer(tmp_path):
    sizes = QFormerConfig(layers=LAYERS, hidden=64, adapter=96)
    model, file = blip2_of_width(96, tmp_path)
    config = XrayGPT.Config.from_keys(
        vit_model="timm/vit_tiny_patch16_224", image_size=32, num_query_token=4, qformer=sizes,
        q_former_model=file, freeze_qformer=True, llm=model.config.llm,
    )  # fmt: skip
    ours = XrayGPT(config)
    theirs = model.qformer.state_dict()
    own = ours.qformer.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in theirs.items())
    assert set(own) - set(theirs) == {"adapter.weight", "adapter.bias"}
    trained = {n for n, _ in ours.trainable_parameters() if n.startswith("qformer")}
    assert trained == {"qformer.adapter.weight", "qformer.adapter.bias"}


def test_new_cross_attention_keeps_the_rest(tmp_path):
    model, file = blip2_of_width(96, tmp_path)
    config = XrayGPT.Config.from_keys(
        vit_model="timm/vit_tiny_patch16_224", image_size=32, num_query_token=4,
        qformer=QFormerConfig(layers=LAYERS, hidden=64, new_cross_attention=True),
        q_former_model=file, llm=model.config.llm,
    )  # fmt: skip
    own, theirs = XrayGPT(config).qformer.state_dict(), model.qformer.state_dict()
    reset = {n for n, t in theirs.items() if not torch.equal(own[n].flatten(), t.flatten())}
    cross_attention = [
        f"layer.{i}.crossattention.attention.{k}.weight" for i in (0, 2) for k in ("key", "value")
    ]
    expected = {f"qformer.encoder.{n}" for n in cross_attention} | {
        "ln_vision.weight",
        "ln_vision.bias",
    }
    assert reset == expected
    with pytest.raises(ValueError, match="random initial weights"):
        XrayGPT.Config.from_keys(
            freeze_qformer=True, qformer=QFormerConfig(layers=LAYERS, new_cross_attention=True)
        )
