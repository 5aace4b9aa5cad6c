"""Names of tensors on the hub and in transformers 5: both layouts are written and read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.stock_vlm.tiny import tiny_vlm
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.models.stock_vlm.key_layouts import normalise_keys, to_layout

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision"]
# One name of each part: as a module of transformers 5, and in the published checkpoints.
QWEN2 = {
    "model.language_model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
    "model.language_model.embed_tokens.weight": "model.embed_tokens.weight",
    "model.language_model.norm.weight": "model.norm.weight",
    "model.visual.blocks.0.attn.qkv.weight": "visual.blocks.0.attn.qkv.weight",
    "model.visual.merger.mlp.0.weight": "visual.merger.mlp.0.weight",
    "lm_head.weight": "lm_head.weight",
}
QWEN3 = [
    "model.language_model.layers.0.mlp.up_proj.weight",
    "model.visual.blocks.0.attn.qkv.weight",
    "model.visual.deepstack_merger_list.0.linear_fc1.weight",
    "lm_head.weight",
]
LLAVA = {
    "model.language_model.layers.0.mlp.up_proj.weight": (
        "language_model.model.layers.0.mlp.up_proj.weight"
    ),
    "model.language_model.embed_tokens.weight": "language_model.model.embed_tokens.weight",
    "lm_head.weight": "language_model.lm_head.weight",
    "model.vision_tower.encoder.layers.0.mlp.fc1.weight": (
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
    ),
    "model.vision_tower.embeddings.patch_embedding.weight": (
        "vision_tower.vision_model.embeddings.patch_embedding.weight"
    ),
    "model.multi_modal_projector.linear_1.weight": "multi_modal_projector.linear_1.weight",
    "model.image_newline": "image_newline",
}
PUBLISHED = {
    "qwen2_vl": QWEN2, "qwen2_5_vl": QWEN2, "qwen3_vl": {n: n for n in QWEN3},
    "llava_onevision": LLAVA,
}  # fmt: skip


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_hub_layout_has_the_published_names(family: str) -> None:
    model = tiny_vlm(family)
    state = model.state_dict()
    hub = to_layout(state, "hub", model)
    assert len(hub) == len(state)
    for module, published in PUBLISHED[family].items():
        assert torch.equal(hub[published], state[module])
    assert same(to_layout(hub, "transformers", model), state)
    assert same(to_layout(hub, "hub", model), hub)  # renaming twice changes nothing


@pytest.mark.parametrize("layout", ["hub", "transformers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_normalise_keys_accepts_both_layouts(family: str, layout: str) -> None:
    model = tiny_vlm(family)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert same(normalise_keys(to_layout(state, layout, model), empty), state)


@pytest.mark.parametrize("family", FAMILIES)
def test_llamafactory_8338_saved_keys_load_in_earlier_releases(family: str, tmp_path: Path) -> None:
    """LLaMA-Factory #8338: a saved Qwen2.5-VL had names that its next reader did not know.

    What `save_pretrained` writes depends on the file that the model was loaded from. `to_layout`
    writes the published names in each case.
    """
    model = tiny_vlm(family)
    expected = set(to_layout(model.state_dict(), "hub", model))
    model.save_pretrained(tmp_path / "modules", save_original_format=False)
    reloaded = type(model).from_pretrained(tmp_path / "modules")
    reloaded.save_pretrained(tmp_path / "again")
    saved = load_file(tmp_path / "again" / "model.safetensors")
    if family != "qwen3_vl":
        assert set(saved) != expected  # the reason for this module
    assert set(to_layout(reloaded.state_dict(), "hub", reloaded)) == expected
    assert set(to_layout(saved, "hub", reloaded)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_43701_a_resumed_model_gets_every_saved_weight(
    family: str, tmp_path: Path
) -> None:
    """transformers #43701: its Trainer loads a checkpoint by module names and keeps old weights.

    Checkpoints have the names on the hub, so that ``load_state_dict(strict=False)`` changes next
    to nothing. `normalise_keys` loads everything.
    """
    trained = tiny_vlm(family)
    trained.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = type(trained)(trained.config)
    if family != "qwen3_vl":
        assert not set(saved) - {"lm_head.weight"} & set(model.state_dict())
    model.load_state_dict(normalise_keys(saved, model), assign=True)
    assert same(model.state_dict(), trained.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_hub_layout(family: str, tmp_path: Path) -> None:
    model = tiny_vlm(family)
    model.config.save_pretrained(tmp_path)
    hub = {n: t.contiguous() for n, t in to_layout(model.state_dict(), "hub", model).items()}
    save_file(hub, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert same(loaded.state_dict(), model.state_dict())


def test_names_of_transformers_4_52_are_accepted() -> None:
    model = tiny_vlm("llava_onevision")
    state = model.state_dict()
    tower = "model.vision_tower."
    renamed = {n.replace(tower, f"{tower}vision_model."): t for n, t in state.items()}
    assert same(normalise_keys(renamed, model), state)


@pytest.mark.parametrize("family", FAMILIES)
def test_leftovers_are_errors(family: str) -> None:
    model = tiny_vlm(family)
    hub = to_layout(model.state_dict(), "hub", model)
    norm = next(name for name in hub if name.endswith("model.norm.weight"))
    with pytest.raises(WeightsError, match=r"missing model\.language_model\.norm\.weight"):
        normalise_keys({n: t for n, t in hub.items() if n != norm}, model)
    with pytest.raises(WeightsError, match=r"unknown .*mystery"):
        normalise_keys({**hub, f"{norm}.mystery": hub[norm]}, model)
    with pytest.raises(WeightsError, match=r"norm\.weight: \(3,\) instead of \(64,\)"):
        normalise_keys({**hub, norm: torch.ones(3)}, model)


def test_one_tensor_under_two_names_is_an_error() -> None:
    model = tiny_vlm("qwen2_5_vl")
    state = model.state_dict()
    both = {**state, "model.norm.weight": state["model.language_model.norm.weight"]}
    with pytest.raises(WeightsError, match=r"under two names: .*norm\.weight and"):
        normalise_keys(both, model)


def test_a_tied_head_may_be_missing() -> None:
    model = tiny_vlm("qwen2_5_vl")
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    tied = type(model)(model.config)
    state = {n: t for n, t in tied.state_dict().items() if n != "lm_head.weight"}
    assert "lm_head.weight" not in normalise_keys(state, tied)
    with pytest.raises(WeightsError, match=r"missing lm_head\.weight"):
        normalise_keys(state, tiny_vlm("qwen2_5_vl"))


def test_unknown_layout_is_an_error() -> None:
    model = tiny_vlm("qwen3_vl")
    with pytest.raises(InputError, match="must be one of hub, transformers"):
        to_layout(model.state_dict(), "gguf", model)
