"""LLaMA-Factory's YAML files are translated to this project's sections, or refused with reasons."""

from __future__ import annotations

import pytest
import yaml

from tests.conftest import REPO
from xraygpt.common import llama_factory
from xraygpt.common.config import load
from xraygpt.common.errors import ConfigError
from xraygpt.common.llama_factory import known_keys, translate
from xraygpt.common.llama_factory_keys import unsupported
from xraygpt.experiment import Evaluation, Training

BASE = {"model_name_or_path": "m", "stage": "sft", "dataset": "a"}
FILES = "cmr/cmr_vl/qwen2_5vl_sft_"


def translated(predict=False, **keys):
    """The tree of a file without problems, and its notes."""
    problems = []
    tree, notes = translate({**BASE, **keys}, lambda *p: problems.append(p), predict=predict)
    assert not problems
    return tree, notes


def problem(predict=False, **keys):
    problems = []
    translate({**BASE, **keys}, lambda *p: problems.append(p), predict=predict)
    (found,) = problems
    return found


def get(tree, path):
    for name in path.split("."):
        tree = tree[name]
    return tree


# ---- CMR-VL --------------------------------------------------------------------------------------


@pytest.mark.data
def test_the_training_file_of_cmr_vl(real_data):
    keys = yaml.safe_load((real_data / f"{FILES}train.yaml").read_text())
    problems = []
    tree, notes = translate(keys, lambda *p: problems.append(p), predict=False)
    assert not problems
    tree["model"].pop("attention", None)  # depends on the machine
    assert tree["model"] == {
        "path": "Qwen/Qwen2.5-VL-7B-Instruct", "arch": "stock_vlm", "context": 5120,
        "media": {"image_max_pixels": 147456, "video_max_pixels": 65536},
        "freeze_vision": True, "freeze_projector": True, "grad_checkpoint": True,
        "text": {"end_sym": "<|im_end|>\n"},
    }  # fmt: skip
    assert tree["datasets"] == {
        "llama_factory": {
            "builder": "llama_factory", "storage": "data", "dataset": ["cmr_train_sharegpt"],
            "eval_dataset": ["cmr_val_sharegpt"], "frames": {"fps": 4.0, "max_frames": 128},
        }
    }  # fmt: skip
    run = tree["run"]
    generation = run.pop("task")
    assert generation == {"name": "free_text", "generate": {"max_new_tokens": 1024}}
    assert run == {
        "runner": "llama_factory", "optimizer": {"name": "adamw", "fused": True},
        "output_dir": "../../../llamafactory-models/qwen2.5_vl-7b/full/"
        "final", "init_lr": 1e-5, "batch_size_train": 1, "batch_size_eval": 1, "weight_decay": 0.0,
        "log_every": 10, "accum_grad_iters": 2, "max_epoch": 15,
        "lr_sched": "linear_warmup_cosine_lr", "warmup_ratio": 0.1, "amp": "bf16",
        "eval_every": 500, "save_every": 500,
    }  # fmt: skip
    assert any("deepspeed" in note and "trust_remote_code" in note for note in notes)


@pytest.mark.data
def test_the_prediction_file_of_cmr_vl(real_data):
    keys = yaml.safe_load((real_data / f"{FILES}val.yaml").read_text())
    assert llama_factory.wants_prediction(keys)
    problems = []
    tree, _ = translate(keys, lambda *p: problems.append(p), predict=True)
    assert not problems
    tree["model"].pop("attention", None)
    assert tree["model"] == {
        "path": "Qwen/Qwen2.5-VL-7B-Instruct", "arch": "stock_vlm", "context": 5120,
        "media": {"image_max_pixels": 147456, "video_max_pixels": 65536},
        "text": {"end_sym": "<|im_end|>\n"},
    }  # fmt: skip
    corpus = tree["datasets"]["llama_factory"]
    assert corpus["dataset"] == [] and corpus["eval_dataset"] == ["cmr_test_sharegpt"]
    assert corpus["eval_split"] == "test" and corpus["frames"]["fps"] == 4.0
    assert tree["run"] == {
        "output_dir": "../../../llamafactory-models/qwen2.5_vl-7b/full/raw-test/",
        "batch_size_eval": 8, "split": "test", "shuffles": 1,
        "task": {"name": "free_text", "generate": {"max_new_tokens": 1024}},
    }  # fmt: skip


@pytest.mark.data
def test_both_files_load_as_configurations(real_data):
    training = load(Training, real_data / f"{FILES}train.yaml")
    assert training.model.media.image_max_pixels == 147456 and training.run.max_epoch == 15
    prediction = load(Evaluation, real_data / f"{FILES}val.yaml")
    assert prediction.run.batch_size_eval == 8 and prediction.run.split == "test"


# ---- keys ----------------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_with_the_nearest():
    assert problem(lora_rnak=8) == ("lora_rnak", "unknown key; did you mean 'lora_rank'?")
    assert problem(zzz=1)[1].startswith("unknown key")


@pytest.mark.parametrize("stage", ["pt", "rm", "ppo", "dpo", "kto"])
def test_other_stages_are_refused_by_name(stage):
    key, reason = problem(stage=stage)
    assert key == "stage" and reason.startswith(f"'{stage}' is not supported")


def test_a_misspelled_stage_has_the_nearest():
    assert problem(stage="stf")[1] == "unknown stage 'stf'; did you mean 'sft'?"


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("image_resolution", "image_max_pixels", "model.media.image_max_pixels"),
        ("video_resolution", "video_max_pixels", "model.media.video_max_pixels"),
    ],
)
def test_old_names_mean_the_new_ones(old, new, path):
    assert get(translated(**{old: 5000})[0], path) == get(translated(**{new: 5000})[0], path)
    key, reason = problem(**{old: 5000, new: 6000})
    assert key == new and "is given too" in reason


def test_the_old_name_of_eval_strategy():
    keys = {"eval_steps": 7}
    assert translated(evaluation_strategy="steps", **keys)[0]["run"]["eval_every"] == 7


def test_only_the_projector_may_be_trained_with_the_old_key():
    model = translated(train_mm_proj_only=True, finetuning_type="full")[0]["model"]
    assert model["freeze_projector"] is False and model["freeze_language"] is True
    assert "freeze_language" not in translated(train_mm_proj_only=False)[0]["model"]


@pytest.mark.parametrize("key", ["eval_strategy", "save_strategy"])
def test_a_strategy_of_no_is_read_by_yaml_as_false(key):
    name = key.replace("strategy", "every")
    for text, value in (("no", 0), ("'no'", 0), ("epoch", None), ("steps", 500)):
        tree = translated(**yaml.safe_load(f"{key}: {text}"))[0]
        assert tree["run"][name] == value, text
    assert problem(**{key: "best"}) == (key, "must be no, steps or epoch, got best")


def test_defaults_are_those_of_llama_factory():
    tree = translated()[0]
    assert tree["model"]["adapters"] == {"target": "all"}
    assert get(tree, "datasets.llama_factory.frames") == {"fps": 2.0, "max_frames": 128}
    run = tree["run"]
    expected = {
        "init_lr": 5e-5, "batch_size_train": 8, "batch_size_eval": 8, "max_epoch": 3,
        "lr_sched": "linear_warmup_linear_lr", "warmup_steps": 0, "amp": False, "eval_every": 0,
        "save_every": 500, "log_every": 500, "weight_decay": 0.0,
    }  # fmt: skip
    assert {key: run[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("keys", "path", "value"),
    [
        ({"lora_target": "q_proj, v_proj"}, "model.adapters.target", ["q_proj", "v_proj"]),
        ({"lora_target": ["q_proj"]}, "model.adapters.target", ["q_proj"]),
        ({"lora_rank": 16, "lora_alpha": 8}, "model.adapters.r", 16),
        ({"finetuning_type": "freeze"}, "model.trained_layers", 2),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": -3}, "model.trained_layers", -3),
        ({"dataset": "a, b"}, "datasets.llama_factory.dataset", ["a", "b"]),
        ({"dataset": ["a", "b"]}, "datasets.llama_factory.dataset", ["a", "b"]),
        ({"val_size": 0.1}, "datasets.llama_factory.val_fraction", 0.1),
        ({"max_samples": 9}, "datasets.llama_factory.max_records", 9),
        ({"max_steps": 30, "num_train_epochs": 2}, "run.max_steps", 30),
        ({"warmup_steps": 20}, "run.warmup_steps", 20),
        ({"warmup_steps": 0.1}, "run.warmup_ratio", 0.1),
        ({"resume_from_checkpoint": True}, "run.resume_ckpt_path", "auto"),
        ({"resume_from_checkpoint": "out/run"}, "run.resume_ckpt_path", "out/run"),
        ({"disable_shuffling": True}, "run.shuffle", False),
        ({"mask_history": True}, "model.text.last_answer_only", True),
        ({"pure_bf16": True}, "model.dtype", "bfloat16"),
        ({"disable_gradient_checkpointing": True}, "model.grad_checkpoint", False),
        ({"flash_attn": "disabled"}, "model.attention", "eager"),
        ({"do_sample": True, "top_p": 0.7}, "run.task.generate.top_p", 0.7),
        ({"dataset_dir": "d", "media_dir": "d/media"}, "datasets.llama_factory.images", "media"),
        ({"media_dir": "other"}, "datasets.llama_factory.images", "../other"),
        ({"media_dir": "/abs"}, "datasets.llama_factory.images", "/abs"),
    ],
)  # fmt: skip
def test_each_key_has_its_counterpart(keys, path, value):
    assert get(translated(**keys)[0], path) == value


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"finetuning_type": "oft"}, "'oft' is not supported; use full, lora or freeze"),
        ({"train_on_prompt": True}, "is not supported: the loss is on answers"),
        ({"lr_scheduler_type": "polynomial"}, "'polynomial' is none of cosine, linear"),
        ({"val_size": 10}, "must be a share in (0, 1), got 10"),
        ({"dataset_dir": "ONLINE"}, "must be a folder; nothing is downloaded"),
        ({"dataset_dir": "REMOTE:x/y"}, "must be a folder; nothing is downloaded"),
        ({"dataset": ""}, "missing: it names what to train on"),
    ],
)
def test_values_that_are_not_supported_are_refused(keys, reason):
    key, found = problem(**keys)
    assert key in keys and reason in found


def test_prediction_needs_data_and_nothing_of_training():
    key, reason = problem(predict=True, do_predict=True)
    assert key == "eval_dataset" and "names what to predict" in reason
    keys = {"finetuning_type": "freeze", "do_predict": True, "eval_dataset": "a", "max_steps": 3}
    tree, _ = translated(predict=True, **keys)
    assert "trained_layers" not in tree["model"] and "max_steps" not in tree["run"]


def test_a_file_that_trains_and_predicts_trains_and_says_so():
    keys = {"do_train": True, "do_predict": True, "eval_dataset": "a"}
    assert not llama_factory.wants_prediction(keys)
    _, notes = translated(**keys)
    assert any(note.startswith("do_predict: ") for note in notes)


def test_sections_of_this_project_override_the_translation():
    tree, _ = translated(run={"compile": True, "init_lr": 1.0}, learning_rate=2.0)
    assert tree["run"]["compile"] is True and tree["run"]["init_lr"] == 1.0
    assert tree["run"]["batch_size_train"] == 8


# ---- every key of LLaMA-Factory ------------------------------------------------------------------


def test_keys_without_counterpart_are_refused_with_the_reason_unless_they_change_nothing():
    assert problem(use_galore=True) == (
        "use_galore", "is not supported; run.optimizer chooses the optimizer",
    )  # fmt: skip
    assert problem(pref_beta=0.3)[1] == "belongs to a stage other than sft"
    assert problem(neftune_noise_alpha=5)[1] == "is not supported; remove it"
    assert problem(push_to_hub=True)[1].startswith(
        "is not supported: nothing is downloaded or sent"
    )
    assert problem(vllm_maxlen=99)[1].startswith("has no effect on training or prediction")
    translated(use_galore=False, pref_beta=0.1, double_quantization=True, top_k=50, debug="")


def test_no_key_is_both_known_and_unsupported():
    assert not [key for key in known_keys() if unsupported(key, True) is not None]
    assert len(known_keys()) == len(set(known_keys()))


# ---- the file and the command line ---------------------------------------------------------------

FILE = """\
model_name_or_path: m
stage: sft
dataset: a
lora_rank: 4
learning_rate: 1e-4
eval_strategy: no
max_steps: 5
"""


def test_options_of_both_spellings(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(FILE)
    config = load(Training, path)
    assert config.run.init_lr == 1e-4 and config.model.adapters.r == 4
    assert config.run.eval_every == 0
    options = ["lora_rank=32", "run.init_lr=3e-5", "eval_strategy=steps", "eval_steps=3"]
    config = load(Training, path, options)
    assert config.model.adapters.r == 32 and config.run.init_lr == 3e-5
    assert config.run.eval_every == 3
    assert load(Training, path, ["eval_strategy=no"]).run.eval_every == 0


def test_problems_name_the_line_and_the_key_of_the_file(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(FILE + "lora_alhpa: 3\nper_device_train_batch_size: 0\nuse_muon: true\n")
    with pytest.raises(ConfigError) as caught:
        load(Training, path, ["lora_rnak=3"])
    message = str(caught.value)
    assert "line 8: lora_alhpa: unknown key; did you mean 'lora_alpha'?" in message
    assert "--options: lora_rnak: unknown key; did you mean 'lora_rank'?" in message
    assert "line 10: use_muon: is not supported; run.optimizer" in message


def test_the_documentation_lists_every_key_that_has_a_meaning_of_its_own():
    text = (REPO / "docs/llama_factory.md").read_text(encoding="utf-8")
    for key in llama_factory.known_keys():
        assert f"| `{key}` |" in text, key
