"""Checkpoints of LLaVA-NeXT's training code open in transformers and compute the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

from tests.models.stock_vlm import llava_writer as writer
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.convert import main
from xraygpt.models.stock_vlm import shards
from xraygpt.models.stock_vlm.llava_config import aspect_ratio, read_pinpoints
from xraygpt.models.stock_vlm.llava_import import convert_llava_checkpoint, is_llava_checkpoint


def load(folder: Path) -> tuple[Any, Any]:
    model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[kind]
    return model.eval(), AutoProcessor.from_pretrained(folder)


def logits(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def assert_same(folder: Path, model: Any, names: tuple[str, ...] = ("image", "text")) -> None:
    """The converted folder and `model` give the same logits for the old vocabulary."""
    converted, processor = load(folder)
    rows = model.config.text_config.vocab_size
    for name in names:
        sample = writer.samples()[name]
        inputs = processor(**sample, return_tensors="pt")
        expected = logits(model, writer.reference_processor()(**sample, return_tensors="pt"))
        assert torch.equal(logits(converted, inputs)[..., :rows], expected), name


@pytest.fixture(scope="module")
def model() -> Any:
    return writer.reference()


@pytest.fixture
def tower(tmp_path: Path, model: Any) -> Path:
    return writer.write_tower(tmp_path / "tiny-siglip", model)


def checkpoint(tmp_path: Path, model: Any, **options: Any) -> Path:
    state = options.pop("state", None) or writer.original_state(model)
    config = writer.original_config(model, **options.pop("config", {}))
    return writer.write_checkpoint(tmp_path / "llava", state, config, **options)


def test_logits_are_identical(tmp_path: Path, model: Any, tower: Path) -> None:
    source = checkpoint(tmp_path, model)
    assert is_llava_checkpoint(source)
    message = convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    assert "qwen2 (2 layers, head apart from the embedding, 320 rows)" in message
    assert "siglip (2 layers)" in message
    assert not is_llava_checkpoint(tmp_path / "out")
    assert_same(tmp_path / "out", model, ("image", "images", "video", "text"))


def test_files_have_the_published_names(tmp_path: Path, model: Any, tower: Path) -> None:
    source = checkpoint(tmp_path, model)
    convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert {
        "language_model.model.layers.1.mlp.up_proj.weight", "language_model.lm_head.weight",
        "vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias", "image_newline",
        "multi_modal_projector.linear_2.weight",
    } <= names  # fmt: skip
    manifest = json.loads((tmp_path / "out" / "MANIFEST.json").read_text())
    assert manifest["converted"][0]["name"] == "model.safetensors"


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path: Path, model: Any, tower: Path, kind: str, monkeypatch: Any) -> None:
    source = checkpoint(tmp_path, model, kind=kind, shards=3)
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    tensors = {n: t for f in files for n, t in load_file(tmp_path / "out" / f).items()}
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert_same(tmp_path / "out", model)


def test_frozen_tower_comes_from_its_folder(tmp_path: Path, model: Any, tower: Path) -> None:
    """LLaVA takes the last but one layer, so that one is left out, with the head."""
    state = writer.original_state(model)
    state = {n: t for n, t in state.items() if not n.startswith(writer.TOWER)}
    source = checkpoint(tmp_path, model, state=state)
    message = convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    assert "16 skipped (layers of the vision tower after" in message
    assert "1 skipped (pooling of the vision tower" in message
    assert_same(tmp_path / "out", model, ("image", "images", "video"))


def test_a_complete_tower_in_the_checkpoint_is_cut(tmp_path: Path, tower: Path) -> None:
    whole = writer.reference(layers=3)
    source = checkpoint(tmp_path, whole)
    convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    converted, _ = load(tmp_path / "out")
    assert converted.config.vision_config.num_hidden_layers == 2
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        states = whole.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        expected = whole.model.multi_modal_projector(states[-2])
        states = converted.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        assert torch.equal(converted.model.multi_modal_projector(states[-1]), expected)


@pytest.mark.parametrize("said", [False, True])
def test_head_apart_from_the_embedding_stays_apart(
    tmp_path: Path, model: Any, tower: Path, said: bool
) -> None:
    """Even if config.json says that they are tied: the weights decide."""
    source = checkpoint(tmp_path, model, config={"tie_word_embeddings": said})
    convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["text_config"]["tie_word_embeddings"] is False
    assert_same(tmp_path / "out", model)


@pytest.mark.parametrize("stored", [True, False])
def test_tied_head(tmp_path: Path, tower: Path, stored: bool) -> None:
    tied = writer.reference(tied=True)
    state = writer.original_state(tied)
    state = {n: t for n, t in state.items() if stored or n != "lm_head.weight"}
    source = checkpoint(tmp_path, tied, state=state)
    message = convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    assert "head tied to the embedding" in message
    assert_same(tmp_path / "out", tied)


def test_embedding_grows_for_the_new_tokens(tmp_path: Path, tower: Path) -> None:
    """As many rows as tokens: the two new tokens get rows, up to a multiple of 64."""
    rows = len(writer.tokenizer())
    reference = writer.reference()
    state = writer.original_state(reference)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:rows].clone()
    source = checkpoint(tmp_path, reference, state=state, config={"vocab_size": rows})
    convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    converted, processor = load(tmp_path / "out")
    weight = converted.get_input_embeddings().weight
    assert weight.shape[0] == -(-(rows + 2) // 64) * 64
    assert torch.allclose(weight[rows:], weight[:rows].mean(dim=0), atol=1e-6)
    assert processor.tokenizer.convert_tokens_to_ids(["<image>", "<video>"]) == [rows, rows + 1]
    inputs = processor(**writer.samples()["image"], return_tensors="pt")
    expected = logits(reference, inputs)[..., :rows]
    assert torch.allclose(logits(converted, inputs)[..., :rows], expected, atol=1e-5)


@pytest.mark.parametrize("backbone", ["llama", "mistral"])
def test_other_language_models(tmp_path: Path, tower: Path, backbone: str) -> None:
    reference = writer.reference(text=backbone)
    source = checkpoint(tmp_path, reference, config={"model_type": f"llava_{backbone}"})
    convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    assert_same(tmp_path / "out", reference)


def test_chat_template(tmp_path: Path, model: Any, tower: Path) -> None:
    source = checkpoint(tmp_path, model)
    convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    user = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "Any effusion?"}]
    turns = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": [{"type": "text", "text": "A small effusion."}]},
        {"role": "user", "content": "Any effusion?"},
    ]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\n<video>\nAny effusion?<|im_end|>\n"
        "<|im_start|>assistant\nA small effusion.<|im_end|>\n"
        "<|im_start|>user\nAny effusion?<|im_end|>\n<|im_start|>assistant\n"
    )
    system = [{"role": "system", "content": "Be brief."}]
    assert processor.apply_chat_template(system) == "<|im_start|>system\nBe brief.<|im_end|>\n"
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert processor.tokenizer.convert_tokens_to_ids("<|im_end|>") in generation["eos_token_id"]


def test_null_is_not_a_default(tmp_path: Path, tower: Path) -> None:
    """Mistral attends to 4,096 tokens by default, but to all if `sliding_window` is null."""
    reference = writer.reference(text="mistral")
    changes = {"model_type": "llava_mistral", "sliding_window": None}
    source = checkpoint(tmp_path, reference, config=changes)
    convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["sliding_window"] is None


def test_clip(tmp_path: Path) -> None:
    """A CLIP keeps all layers in the checkpoint; LLaVA reads the last but one, without class token.

    The reference reads that layer (-2) of the complete tower.
    """
    reference = writer.reference(clip=True)
    tower = tmp_path / "clip"
    tower.mkdir()
    vision = reference.config.vision_config.to_dict()
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    changes = {"model_type": "llava_llama", "mm_vision_tower": "lab/clip"}
    source = checkpoint(tmp_path, reference, config=changes)
    message = convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    assert "clip (1 layers)" in message
    converted, processor = load(tmp_path / "out")
    assert processor.num_image_tokens == 17
    assert processor.image_processor.image_mean[0] == pytest.approx(0.48145466)
    for name in ("image", "images", "video"):
        inputs = processor(**writer.samples()[name], return_tensors="pt")
        assert torch.equal(logits(converted, inputs), logits(reference, inputs)), name


# --- only what was trained --------------------------------------------------------------------

QUERY = "model.layers.0.self_attn.q_proj"


def write_adapter(folder: Path, config: dict, tensors: dict, **settings: Any) -> Path:
    folder.mkdir()
    adapter = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_lora_is_merged(tmp_path: Path, tower: Path) -> None:
    torch.manual_seed(5)
    model = writer.reference()
    state = writer.original_state(model)
    base = checkpoint(tmp_path, model)
    a, b = torch.randn(4, 64), torch.randn(64, 4)
    prefix = f"base_model.model.{QUERY}.lora_"
    adapter = write_adapter(
        tmp_path / "lora", writer.original_config(model),
        {f"{prefix}A.weight": a, f"{prefix}B.weight": b}, base_model_name_or_path=str(base),
    )  # fmt: skip
    projector = torch.randn_like(state["model.mm_projector.0.weight"])
    non_lora = {"base_model.model.model.mm_projector.0.weight": projector}
    torch.save(non_lora, adapter / "non_lora_trainables.bin")
    writer.tokenizer().save_pretrained(adapter)
    convert_llava_checkpoint(adapter, tmp_path / "out", vision_tower=tower)
    core = model.model
    core.language_model.layers[0].self_attn.q_proj.weight.data += 8 / 4 * b @ a
    core.multi_modal_projector.linear_1.weight.data = projector
    assert_same(tmp_path / "out", model, ("image",))


def test_projector_and_its_language_model(tmp_path: Path, model: Any, tower: Path) -> None:
    state = writer.original_state(model)
    visual = ("model.mm_projector", "model.image_newline", "model.vision_tower")
    text = {n: t for n, t in state.items() if not n.startswith(visual)}
    config = writer.original_config(model)
    base = writer.write_checkpoint(tmp_path / "llm", text, {**config, "model_type": "qwen2"})
    source = tmp_path / "projector"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    trained = {n: t for n, t in state.items() if n.startswith(visual[:2])}
    torch.save(trained, source / "mm_projector.bin")
    with pytest.raises(WeightsError, match=r"only trained parts; pass the model .* --base FOLDER"):
        convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower, base=base)
    assert_same(tmp_path / "out", model)


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, model: Any, tower: Path) -> None:
    base = checkpoint(tmp_path, model)
    config = writer.original_config(model)

    def refuse(number: int, message: str, tensors: dict, **settings: Any) -> None:
        folder = write_adapter(tmp_path / f"lora{number}", config, tensors, **settings)
        with pytest.raises(WeightsError, match=message):
            convert_llava_checkpoint(folder, tmp_path / "out", vision_tower=tower, base=base)

    def pair(name: str) -> dict:
        return {
            f"{name}.lora_A.weight": torch.ones(4, 64),
            f"{name}.lora_B.weight": torch.ones(9, 4),
        }

    refuse(0, r"q_proj\.weight: \(9, 64\) in the adapter, \(64, 64\) in the base", pair(QUERY))
    refuse(1, r"the base model has no model\.layers\.7", pair("model.layers.7.mlp.up_proj"))
    refuse(2, "it has no LoRA weights", {"lm_head.weight": torch.ones(2, 2)})
    refuse(3, "use_dora cannot be merged here", pair(QUERY), use_dora=True)
    half = {f"{QUERY}.lora_A.weight": torch.ones(4, 64)}
    refuse(4, "has only one of lora_A and lora_B", half)


# --- mistakes ---------------------------------------------------------------------------------


def refused(tmp_path: Path, source: Path, tower: Path | None, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        convert_llava_checkpoint(source, tmp_path / "out", vision_tower=tower)
    assert not list(tmp_path.glob("out*"))


def test_a_renamed_tensor_is_an_error(tmp_path: Path, model: Any, tower: Path) -> None:
    state = writer.original_state(model)
    state["model.mm_projector.1.weight"] = state.pop("model.mm_projector.2.weight")
    source = checkpoint(tmp_path, model, state=state)
    message = r"unknown model\.mm_projector\.1\.weight; missing model\.mm_projector\.2\.weight"
    refused(tmp_path, source, tower, message)


def test_a_tensor_of_another_shape_is_an_error(tmp_path: Path, model: Any, tower: Path) -> None:
    state = writer.original_state(model)
    state["model.image_newline"] = torch.ones(65)
    state["lm_head.weight"] = torch.ones(300, 64)
    source = checkpoint(tmp_path, model, state=state)
    message = r"image_newline: \(65,\) instead of \(64,\)|lm_head\.weight: \(300, 64\) instead of"
    refused(tmp_path, source, tower, message)


def test_a_missing_shard_is_an_error(tmp_path: Path, model: Any, tower: Path) -> None:
    source = checkpoint(tmp_path, model, shards=3)
    (source / "model-00002-of-00003.safetensors").unlink()
    refused(tmp_path, source, tower, "lacks 1 of 3 files .* model-00002-of-00003")


def test_a_missing_tower_is_an_error(tmp_path: Path, model: Any) -> None:
    state = writer.original_state(model)
    state = {n: t for n, t in state.items() if not n.startswith(writer.TOWER)}
    name = "google/siglip-so400m-patch14-384"
    source = checkpoint(tmp_path, model, state=state, config={"mm_vision_tower": name})
    message = f"does not contain its vision tower .* xraygpt.download {name} .* --vision-tower"
    refused(tmp_path, source, None, message)


def test_an_unknown_tower_is_an_error(tmp_path: Path, model: Any) -> None:
    source = checkpoint(tmp_path, model)
    refused(tmp_path, source, None, "lab/tiny-siglip, whose configuration is unknown; pass its")


def test_unsupported_settings_are_listed_together(tmp_path: Path, model: Any, tower: Path) -> None:
    changes = {"image_aspect_ratio": "pad", "mm_patch_merge_type": "flat", "mm_projector_type": "x"}
    source = checkpoint(tmp_path, model, config=changes)
    message = "mm_projector_type x: .*mm_patch_merge_type flat: .*image_aspect_ratio pad"
    refused(tmp_path, source, tower, message)


def test_another_tokenizer_is_an_error(tmp_path: Path, model: Any, tower: Path) -> None:
    source = checkpoint(tmp_path, model)
    many = writer.tokenizer(*(f"<extra_{n}>" for n in range(60)))
    many.save_pretrained(source)
    refused(tmp_path, source, tower, "tokens, but the embedding has 320 rows")


def test_a_pickle_with_code_is_refused(tmp_path: Path, model: Any, tower: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("code ran",)

    source = checkpoint(tmp_path, model, kind="bin")
    torch.save({"model.norm.weight": Evil()}, source / "pytorch_model.bin")
    refused(tmp_path, source, tower, "would run code")


# --- settings and the command -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("(1x1),...,(2x1)", [[384, 384], [384, 768]]),  # width x height -> (height, width)
        ([[384, 768], [768, 384]], [[768, 384], [384, 768]]),
        ("[[384, 768]]", [[768, 384]]),
    ],
)
def test_pinpoints(value: Any, expected: list) -> None:
    assert read_pinpoints({"image_grid_pinpoints": value}, 384, Path()) == expected


@pytest.mark.parametrize("value", [None, [], "6x6", [[384, 500]], [384, 768], "import os"])
def test_wrong_pinpoints(value: Any) -> None:
    with pytest.raises(WeightsError, match="image_grid_pinpoints must be a list of"):
        read_pinpoints({"image_grid_pinpoints": value}, 384, Path())


def test_range_of_the_published_checkpoints() -> None:
    config = {"image_grid_pinpoints": "(1x1),...,(6x6)", "image_aspect_ratio": "anyres"}
    sizes = read_pinpoints(config, 384, Path())
    assert len(sizes) == 36
    assert sizes[-1] == [2304, 2304]
    assert aspect_ratio(config, sizes, 384) == "anyres_max_36"
    assert aspect_ratio({"image_aspect_ratio": "anyres_max_9"}, sizes, 384) == "anyres_max_9"


@pytest.mark.parametrize("options", [["--from", "llava"], []])
def test_command(
    tmp_path: Path, model: Any, tower: Path, monkeypatch: Any, options: list[str]
) -> None:
    """`--from llava` may be left out, since config.json says who wrote it."""
    source = checkpoint(tmp_path, model)
    arguments = [str(source), str(tmp_path / "out"), *options, "--vision-tower", str(tower)]
    monkeypatch.setattr(sys, "argv", ["convert", *arguments])
    main()
    assert_same(tmp_path / "out", model)
    with pytest.raises(InputError, match="already exists"):
        main()


def test_other_folders_are_not_llava(tmp_path: Path, model: Any) -> None:
    assert not is_llava_checkpoint(tmp_path)
    model.config.save_pretrained(tmp_path)
    assert not is_llava_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match="was not written by LLaVA-NeXT"):
        convert_llava_checkpoint(tmp_path, tmp_path / "out")
