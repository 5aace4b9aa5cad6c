"""Training of stock models: what is trained, cached, saved, resumed and exported."""

from __future__ import annotations

import json
import logging
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests import processes
from tests.conftest import REPO
from tests.killing import finish, killed_at, same, weights
from tests.models.stock_vlm.stock_batches import build, our_batch, samples
from tests.models.stock_vlm.toy import ANSWERS, evaluation, runner, tree, write_toy, write_yaml
from xraygpt.common.config import load
from xraygpt.common.errors import ConfigError, WeightsError
from xraygpt.datasets import base as datasets_base
from xraygpt.experiment import Training, build_evaluator, build_model
from xraygpt.models.capabilities import ExportSettings
from xraygpt.processors.plain import PlainPixels
from xraygpt.runners.logs import read_rows

LORA = {"r": 4, "dropout": 0.0}


def losses(folder):
    (path,) = folder.glob("*/metrics.jsonl")
    return [r["train/loss"] for r in read_rows(path) if "train/loss" in r]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path / "cache"))


def trained_parts(model):
    return {
        model.family.part_of(n.removeprefix("network.")) for n, _ in model.trainable_parameters()
    }


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({}, {"language"}),
        ({"freeze_projector": False}, {"language", "projector"}),
        ({"freeze_vision": False, "freeze_language": True}, {"vision"}),
        ({"freeze_projector": False, "freeze_language": True}, {"projector"}),
        ({"adapters": LORA}, {"language"}),
        ({"adapters": {**LORA, "parts": ["vision"]}}, {"vision"}),
        ({"adapters": LORA, "freeze_projector": False}, {"language", "projector"}),
    ],
)
def test_the_chosen_parts_are_trained(tiny, family, keys, parts):
    model = build(tiny(family), **keys)
    assert trained_parts(model) == parts


def test_adapters_leave_the_towers_alone_and_are_listed(tiny, family, caplog):
    """Both towers have layers called q_proj or gate_proj; names alone would adapt both."""
    with caplog.at_level(logging.INFO):
        model = build(tiny(family), adapters={**LORA, "target": ["q_proj", "gate_proj"]})
    adapted = [n for n, _ in model.trainable_parameters()]
    assert len(adapted) == 3 * 2 * 2  # layers, names, two matrices
    assert all(".language_model." in name for name in adapted)
    assert "LoRA in 6 layers of language: gate_proj, q_proj" in caplog.text


def test_an_adapter_target_that_matches_nothing_is_an_error(tiny):
    with pytest.raises(WeightsError, match=r"matches no linear layer .* which has .*q_proj"):
        build(tiny("qwen2_5_vl"), adapters={"target": ["query_key_value"]})


def test_dora_changes_nothing_at_first_and_merges(tiny):
    plain = build(tiny("qwen2_5_vl")).eval()
    model = build(tiny("qwen2_5_vl"), adapters={"r": 2, "dora": True}).eval()
    batch = our_batch(plain, [samples()["one"]])
    with torch.no_grad():
        assert torch.allclose(plain(batch).loss, model(batch).loss, atol=1e-4)
        for name, weight in model.trainable_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
        before = float(model(batch).loss)
        model.merge_lora()
        assert float(model(batch).loss) == pytest.approx(before, abs=1e-3)


def test_an_adapter_of_peft_is_merged_and_a_foreign_one_is_refused(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    folder = tiny("qwen2_5_vl")
    network = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    names = r".*language_model.*\.(q_proj|v_proj)"
    adapted = get_peft_model(network, LoraConfig(r=2, target_modules=names))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    plain, model = (
        build(folder).eval(),
        build(folder, adapter_path=str(tmp_path / "adapter")).eval(),
    )
    batch = our_batch(model, [samples()["one"]])
    inputs = {"inputs_embeds": model.embed(batch), "position_ids": model.positions(batch)}
    with torch.no_grad():
        expected = adapted(**inputs).logits
        assert torch.allclose(model(batch, True).logits, expected, atol=1e-4)
        assert not torch.allclose(plain(batch, True).logits, expected, atol=1e-2)
    state = load_file(tmp_path / "adapter/adapter_model.safetensors")
    renamed = {k.replace("language_model", "text_model"): v for k, v in state.items()}
    from safetensors.torch import save_file

    save_file(renamed, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(WeightsError, match="which this model does not have"):
        build(folder, adapter_path=str(tmp_path / "adapter"))


def test_each_part_has_its_learning_rate(tiny):
    model = build(
        tiny("qwen2_5_vl"), freeze_vision=False, freeze_projector=False,
        lr_scale={"vision": 0.1, "projector": 5.0},
    )  # fmt: skip
    scales = {group["name"]: group["lr_scale"] for group in model.param_groups()}
    assert scales == {"vision": 0.1, "projector": 5.0, "language": 1.0}
    count = sum(len(group["params"]) for group in model.param_groups())
    assert count == len(model.trainable_parameters())


def test_only_some_layers_are_trained(tiny):
    model = build(tiny("qwen2_5_vl"), trained_layers=1)
    assert {n.split(".")[4] for n, _ in model.trainable_parameters()} == {"2"}
    with pytest.raises(Exception, match="has 3 layers"):
        build(tiny("qwen2_5_vl"), trained_layers=4)


def test_quantized_weights_need_adapters_to_be_trained(tiny):
    with pytest.raises(ConfigError, match="quantized weights cannot be trained"):
        build(tiny("qwen2_5_vl"), bits=4, trained_layers=1)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"model__freeze_projector": False}], ids=["tokens", "tower"])
def test_cached_features_give_the_same_losses_and_nothing_is_decoded_twice(
    tiny, family, tmp_path, monkeypatch, more
):
    corpus = write_toy(tmp_path / "corpus", 8, clips=True)
    keys = {"run__max_steps": 6, "run__batch_size_train": 3, **more}
    plain = tree(tiny(family), corpus, tmp_path / "plain", **keys, run__feature_cache=False)
    runner(tmp_path / "plain.yaml", plain).train()
    reads = []
    original = datasets_base.read_media_file
    monkeypatch.setattr(
        datasets_base, "read_media_file", lambda ref, **k: reads.append(ref) or original(ref, **k)
    )
    runner(tmp_path / "a.yaml", tree(tiny(family), corpus, tmp_path / "a", **keys)).train()
    first = len(reads)
    runner(tmp_path / "b.yaml", tree(tiny(family), corpus, tmp_path / "b", **keys)).train()
    caches = family != "qwen3_vl" or not more  # DeepStack cannot be cached without its projector
    assert first == (8 if caches else 18)
    assert len(reads) - first == (0 if caches else 18)
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    if caches:  # read or computed, features are the same to the bit
        assert losses(tmp_path / "b") == losses(tmp_path / "a")
        assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_changed_image_or_limit_is_not_read_from_the_cache(tiny, tmp_path):
    corpus = write_toy(tmp_path / "corpus", 4)
    config = tree(tiny("qwen2_5_vl"), corpus, tmp_path / "a", run__max_steps=2)
    runner(tmp_path / "a.yaml", config).train()
    stores = set((tmp_path / "cache/features").iterdir())
    config["model"]["media"] = {"image_max_pixels": 28 * 28}
    config["run"]["output_dir"] = str(tmp_path / "b")
    runner(tmp_path / "b.yaml", config).train()
    assert len(set((tmp_path / "cache/features").iterdir()) - stores) == 1
    assert losses(tmp_path / "a") != losses(tmp_path / "b")


def test_a_full_store_only_costs_speed(tiny, tmp_path, caplog):
    corpus = write_toy(tmp_path / "corpus", 8)
    keys = {"run__max_steps": 4, "run__feature_store": {"max_gb": 1e-6}}
    config = tree(tiny("qwen2_5_vl"), corpus, tmp_path / "a", **keys)
    runner(tmp_path / "a.yaml", config).train()
    assert caplog.text.count("is full: the features of further media are not stored") == 1


def test_a_sample_that_is_too_long_is_shrunk_and_never_cut(tiny, tmp_path):
    """LLaMA-Factory cuts through the tokens of an image; the model then fails."""
    model = build(tiny("qwen2_5_vl"), context=100)
    nine = samples()["nine"]
    batch = our_batch(model, [nine])
    assert batch["input_ids"].shape[1] <= 100
    assert len(batch["runs"]) == 9
    assert all(run.length >= 1 for run in batch["runs"])
    with torch.no_grad():
        model(batch)
    from xraygpt.common.errors import DataError

    with pytest.raises(DataError, match=r"sample nine has \d+ tokens"):
        our_batch(build(tiny("qwen2_5_vl"), context=100, media={"shrink": False}), [nine])
    with pytest.raises(DataError, match=r"sample nine has \d+ tokens"):
        our_batch(build(tiny("llava_onevision"), context=100), [nine])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
def test_lora_and_projector_survive_a_kill_to_the_bit(tiny, name, tmp_path):
    """transformers' Trainer loads neither after a resumption of these models (#43701)."""
    corpus = write_toy(tmp_path / "corpus", 8)
    outputs = {}
    for part in ("straight", "killed"):
        config = tree(
            tiny(name), corpus, tmp_path / part, model__adapters={"r": 4, "dropout": 0.1},
            model__freeze_projector=False, run__max_steps=6, run__save_every=2,
            run__resume_ckpt_path="auto",
        )  # fmt: skip
        path = write_yaml(tmp_path / f"{part}.yaml", config)
        command = [sys.executable, str(REPO / "train.py"), "--cfg-path", str(path)]
        env = {**processes.os.environ, "XRAYGPT_CACHE": str(tmp_path / f"cache_{part}")}
        if part == "killed":
            killed_at("gradients", 4, command, env)
        finish(command, env)
        outputs[part] = weights(tmp_path / part)
    assert same(outputs["straight"], outputs["killed"])
    names = outputs["straight"]
    assert any(".lora_B." in n for n in names)
    assert any("merger" in n or "multi_modal_projector" in n for n in names)
    assert not any("embed_tokens" in n for n in names)  # frozen weights are not repeated


@pytest.mark.parametrize("layout", ["transformers", "transformers5"])
def test_an_export_opens_in_transformers(tiny, family, tmp_path, layout):
    """With LoRA merged and the trained projector, whatever the names (LlamaFactory #8338)."""
    corpus = write_toy(tmp_path / "corpus", 8)
    config = tree(
        tiny(family), corpus, tmp_path / "run", model__adapters={"r": 4},
        model__freeze_projector=False, run__max_steps=3, run__init_lr=0.02,
    )  # fmt: skip
    done = runner(tmp_path / "run.yaml", config)
    done.train()
    model = done.model.eval()
    batch = our_batch(model, [samples()["one"]])
    with torch.no_grad():
        expected = float(model(batch).loss)
        untrained = float(build(tiny(family)).eval()(batch).loss)
    settings = ExportSettings(processor=PlainPixels(PlainPixels.Config()))
    model.export(layout, tmp_path / "out", settings)
    network, info = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    again = build(tmp_path / "out").eval()
    with torch.no_grad():
        assert float(again(batch).loss) == pytest.approx(expected, abs=1e-4)
    assert abs(untrained - expected) > 0.01
    assert (
        type(network).__name__
        == json.loads((tmp_path / "out/config.json").read_text())["architectures"][0]
    )


def test_weights_of_another_model_are_refused(tiny, tmp_path):
    from tests.models.stock_vlm.tiny_models import write_model

    corpus = write_toy(tmp_path / "corpus", 4)
    config = tree(tiny("qwen2_5_vl"), corpus, tmp_path / "run", run__max_steps=1)
    done = runner(tmp_path / "run.yaml", config)
    done.train()
    other = write_model("qwen2_5_vl", tmp_path / "other", seed=7)
    config["model"] |= {"path": str(other), "ckpt": str(done.run_folder)}
    experiment = load(Training, write_yaml(tmp_path / "b.yaml", config))
    with pytest.raises(WeightsError, match="was trained from another model"):
        build_model(experiment, 0)


@pytest.mark.slow
@pytest.mark.parametrize("family_name", ["qwen2_5_vl", "llava_onevision"])
def test_two_processes_are_one_even_if_one_has_no_image(tiny, tmp_path, family_name):
    corpus = write_toy(tmp_path / "corpus", 6, text_only=10)
    found = {}
    for world, rows in ((1, 2), (2, 1)):
        config = tree(
            tiny(family_name), corpus, tmp_path / f"w{world}", run__batch_size_train=rows,
            run__max_steps=8, model__freeze_projector=False, model__freeze_vision=False,
        )  # fmt: skip
        path = write_yaml(tmp_path / f"w{world}.yaml", config)
        line = [sys.executable, str(REPO / "train.py"), "--cfg-path", str(path)]
        if world == 1:
            finish(line, dict(processes.os.environ))
        else:
            processes.run_world(world, line, env=dict(processes.os.environ), timeout=600)
        found[world] = losses(tmp_path / f"w{world}")
    assert len(found[1]) == len(found[2]) == 8
    assert np.allclose(found[1], found[2], rtol=1e-5, atol=0)


@pytest.mark.slow
def test_a_model_that_learns_to_look_answers_right_and_not_with_another_image(tiny, tmp_path):
    corpus = write_toy(tmp_path / "corpus", 24)
    config = tree(
        tiny("qwen2_5_vl"), corpus, tmp_path / "run", run__max_steps=80, run__batch_size_train=8,
        run__init_lr=5e-3,
    )  # fmt: skip
    done = runner(tmp_path / "run.yaml", config)
    done.train()
    chosen = evaluation(tmp_path / "e.yaml", config, done.run_folder, shuffles=2)
    result = build_evaluator(chosen).run()
    accuracy = {s["condition"]: s["value"] for s in result["scores"] if s["name"] == "accuracy"}
    assert accuracy["true"] == 1.0
    assert accuracy["shuffled"] == 0.0
    assert set(ANSWERS)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_learn_on_quantized_weights_and_the_tower_stays_whole(tiny, tmp_path, bits):
    corpus = write_toy(tmp_path / "corpus", 8)
    config = tree(
        tiny("qwen2_5_vl"), corpus, tmp_path / "run", model__bits=bits,
        model__adapters={"r": 4}, run__max_steps=12, run__init_lr=0.02,
    )  # fmt: skip
    done = runner(tmp_path / "run.yaml", config)
    network = done.model.network
    up = network.model.language_model.layers[0].mlp.up_proj.base_layer
    before = up.weight.clone()
    done.train()
    assert not before.is_floating_point() and torch.equal(before, up.weight)
    assert next(network.model.visual.parameters()).is_floating_point()
    found = losses(tmp_path / "run")
    assert found[-1] < found[0] - 0.1
