"""Configuration: precedence, and a message for every kind of mistake."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

import pytest

from tests import processes
from tests.conftest import REPO
from xraygpt.common.cli import run_main
from xraygpt.common.config import load, to_yaml
from xraygpt.common.errors import ConfigError, InputError
from xraygpt.common.model_keys import MODEL_KEYS
from xraygpt.experiment import Evaluation, Training
from xraygpt.requirements_check import names_analysis
from xraygpt.studies.base import StudyAnalysis

GOOD = """
model:
  arch: xraygpt
  model_type: tiny
datasets:
  toy:
    builder: records
    storage: somewhere
run:
  task: report_generation
  max_steps: 5
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str, *options: str, schema: type = Training) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(schema, write(tmp_path, text), options)
    return caught.value.problems


def test_precedence(tmp_path):
    path = write(tmp_path, GOOD + "  batch_size_train: 7\n")
    config = load(Training, path, ["run.init_lr=0.5", "model.num_query_token=9"])
    assert config.run.batch_size_eval == 32  # dataclass default
    assert config.model.vision.image_size == 32  # preset over default
    assert config.run.batch_size_train == 7  # user over default
    assert config.model.qformer.num_queries == 9  # option over preset (4)
    assert config.run.init_lr == 0.5


def test_an_option_changes_the_preset(tmp_path):
    config = load(Training, write(tmp_path, GOOD), ["model.model_type=nano"])
    assert config.model.vision.encoder == "efficientnet_lite0"


def test_seven_mistakes_are_seven_lines(tmp_path):
    text = """
model:
  arch: xraygpt
  model_type: tini
  num_query_tokens: 8
datasets:
  toy:
    builder: recrods
    storage: somewhere
  other:
    builder: records
    storage: x
    weight: -1
run:
  task: report_generation
  max_steps: many
  lr_sched: linear_warmup_cosin_lr
logging: true
"""
    messages = problems(tmp_path, text)
    assert messages == [
        "line 4: model.model_type: xraygpt has no preset 'tini'; did you mean 'tiny'?",
        "line 5: model.num_query_tokens: unknown key; did you mean 'num_query_token'?",
        "line 8: datasets.toy.builder: unknown dataset builder 'recrods'; did you mean 'records'?",
        "line 13: datasets.other.weight: must be at least 0, got -1.0",
        "line 16: run.max_steps: Input should be a valid integer, unable to parse string as an "
        "integer, got 'many'",
        "line 17: run.lr_sched: unknown lr scheduler 'linear_warmup_cosin_lr'; did you mean "
        "'linear_warmup_cosine_lr'?",
        "line 18: logging: unknown key (available: model, datasets, imports, run)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD + "  output_dir: ${oc.env:XRAYGPT_NOT_SET}\n",
            "line 12: run.output_dir: Environment",
        ),
        (GOOD + "  seed: ${run.nowhere}\n", "line 12: run.seed: Interpolation key"),
        (GOOD + "  seed: ${run.seed}\n", "line 12: run.seed"),
        (GOOD + "  seed: ???\n", "line 12: run.seed: needs a value"),
        (
            GOOD + "  max_steps: 6\n",
            "line 12: run.max_steps: duplicate key, first given in line 11",
        ),
        (GOOD + "  seed: [1\n", "YAML syntax"),
        (GOOD + "  amp: 3\n", "line 12: run.amp"),
        (GOOD + "  seed: true\n", "line 12: run.seed: True is not a number"),
        (GOOD + "  seed: 1.5\n", "line 12: run.seed"),
        (GOOD + "  max_epoch: 3\n", "line 12: run.max_epoch: max_steps is also set; set only one"),
        (GOOD + "  train_splits: [train, tset]\n", "line 12: run.train_splits.1"),
        (GOOD + "  task2: x\n", "unknown key; did you mean 'task'?"),
        ("just text", "expected the sections"),
        (GOOD.replace("max_steps: 5", "seed: 1"), "run: set max_epoch or max_steps"),
        (GOOD.replace("arch: xraygpt", "arch: xraygtp"), "unknown model 'xraygtp'; did you mean"),
        (GOOD.replace("report_generation", "vqaa"), "unknown task 'vqaa'; did you mean 'vqa'?"),
        (GOOD + "imports: [no_such_module_here]\n", "cannot import 'no_such_module_here'"),
        (
            GOOD.replace("storage: somewhere", "views: [a, '${nope}']"),
            "datasets.toy.views.1: Interpolation key",
        ),
        (
            GOOD.replace("storage: somewhere", "fields: {id: '${nope}'}"),
            "datasets.toy.fields.id: Interpolation key",
        ),
        (GOOD.replace("storage: somewhere", "views: 3"), "datasets.toy.views"),
        (
            GOOD.replace("storage: somewhere", "vis_processor: {trian: {name: xray_image}}"),
            "line 8: datasets.toy.vis_processor.trian: unknown key; did you mean 'train'?",
        ),
        (GOOD + "  output_dir: ${oc.env:HOME\n", "cannot be read"),
        (GOOD + "  seed: !!int abc\n", ""),
    ],
)
def test_each_kind_of_mistake(tmp_path, text, message):
    messages = problems(tmp_path, text)
    assert len(messages) == 1, messages
    assert message in messages[0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("run.max_stesp=1", "--options: run.max_stesp: unknown key; did you mean 'max_steps'?"),
        ("run.max_steps=1.5", "--options: run.max_steps"),
        ("run.weight_decay=-1", "--options: run.weight_decay: must be at least 0, got -1.0"),
        ("run.init_lr=-1", "--options: run.init_lr: must be above 0, got -1.0"),
        ("run.init_lr=.nan", "run.init_lr: must be above 0, got nan"),
        ("run.grad_clip=.inf", "run.grad_clip: must be at least 0 and finite, got inf"),
        ("run.max_steps=0", "--options: run.max_steps: must be at least 1, got 0"),
        ("run.device=gpu", "--options: run.device"),
        ("model.lora.r=4 model.freeze_llm=false", "model.lora: needs freeze_llm: true; an LLM"),
        ("nonsense", "--options: nonsense: expected key.path=value"),
        ("run.task.generate.top_p=0.5", "generate.top_p: only affects sampling; set do_sample"),
    ],
)
def test_each_bad_option(tmp_path, option, message):
    messages = problems(tmp_path, GOOD, *option.split(" "))
    assert len(messages) == 1, messages
    assert message in messages[0]


def test_null_is_a_value_and_env_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYGPT_SEED", "9")
    path = write(tmp_path, GOOD + "  seed: ${oc.env:XRAYGPT_SEED}\n  save_every: null\n")
    config = load(Training, path)
    assert config.run.seed == 9
    assert config.run.save_every is None


def test_options_for_a_task_given_as_a_plain_name(tmp_path):
    config = load(Training, write(tmp_path, GOOD), ["run.task.generate.num_beams=3"])
    assert config.run.task.generate.num_beams == 3


def test_the_resolved_yaml_loads_to_the_same(tmp_path):
    config = load(Training, write(tmp_path, GOOD), ["run.task.generate.num_beams=3"])
    text = to_yaml(config)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(text)
    assert to_yaml(load(Training, resolved)) == text


def test_missing_file():
    with pytest.raises(InputError, match=r"cannot read the configuration nowhere\.yaml"):
        load(Training, "nowhere.yaml")


def original_yaml(stage: str) -> str:
    """Keys and values of the YAML files of XrayGPT's original."""
    prompts = {
        "mimic": "",
        "openi": "  max_txt_len: 160\n  end_sym: '###'\n  prompt_path: prompts/alignment.txt\n"
        "  prompt_template: '###Patient: {} ###Doctor: '\n  ckpt: /p/x.pth\n",
        "fork": "  max_txt_len: 160\n  end_sym: '###'\n  prompt_path: null\n"
        "  prompt_template: '###Patient: {} ###Doctor: '\n  ckpt: /p/x.pth\n",
    }[stage]
    label = "mimic" if stage == "mimic" else "openi"
    return f"""
model:
  arch: mini_gpt4
  model_type: pretrain_vicuna
  freeze_vit: True
  freeze_qformer: True
{prompts}
datasets:
  {label}:
    vis_processor:
      train:
        name: "blip2_image_train"
        image_size: 224
    text_processor:
      train:
        name: "blip_caption"
run:
  task: image_text_pretrain
  lr_sched: "linear_warmup_cosine_lr"
  init_lr: 1e-4
  min_lr: 8e-5
  warmup_lr: 1e-6
  weight_decay: 0.05
  max_epoch: 4
  iters_per_epoch: 5000
  batch_size_train: 3
  batch_size_eval: 3
  num_workers: 4
  warmup_steps: 500
  seed: 42
  output_dir: "output/xraygpt_mimic_pretrain"
  amp: True
  resume_ckpt_path: null
  evaluate: False
  train_splits: ["train"]
  device: "cuda"
  world_size: 1
  dist_url: "env://"
  distributed: True
"""


@pytest.mark.parametrize("stage", ["mimic", "openi", "fork"])
def test_an_original_training_yaml_loads(tmp_path, stage, caplog):
    config = load(Training, write(tmp_path, original_yaml(stage)))
    assert config.run.iters_per_epoch == 5000
    assert config.run.init_lr == 1e-4
    assert config.model.qformer.num_queries == 32
    assert config.model.text.prompt_template == (
        "none" if stage == "mimic" else "###Patient: {} ###Doctor: "
    )
    warnings = [r.message for r in caplog.records if "no longer have an effect" in r.message]
    assert len(warnings) == 1
    for key in ("run.evaluate", "run.world_size", "run.dist_url", "run.distributed"):
        assert key in warnings[0]


def test_an_original_evaluation_yaml_loads(tmp_path):
    text = """
model:
  arch: mini_gpt4
  model_type: pretrain_vicuna
  freeze_vit: True
  freeze_qformer: True
  max_txt_len: 160
  end_sym: "###"
  low_resource: True
  prompt_path: "prompts/alignment.txt"
  prompt_template: '###Patient: {} ###Doctor: '
  ckpt: '/path/to/pretrained_xraygpt'
datasets:
  openi:
    vis_processor:
      train:
        name: "blip2_image_eval"
        image_size: 224
    text_processor:
      train:
        name: "blip_caption"
run:
  task: image_text_pretrain
"""
    assert load(Evaluation, write(tmp_path, text)).model.llm.low_resource is True


def test_every_yaml_of_the_project_loads(monkeypatch):
    monkeypatch.chdir(REPO)
    training = sorted((REPO / "train_configs").rglob("*.yaml"))
    evaluation = sorted((REPO / "eval_configs").rglob("*.yaml"))
    analyses = [path for path in evaluation if names_analysis(path, [])]
    presets = sorted((REPO / "xraygpt" / "configs" / "models").rglob("*.yaml"))
    assert (len(training), len(evaluation), len(presets)) == (29, 20, 6)
    for path in training:
        load(Training, path)
    for path in evaluation:
        load(StudyAnalysis if path in analyses else Evaluation, path)
    assert [path.name for path in analyses] == ["cardiac_mr.yaml", "cardiac_mr_masks.yaml"]
    for path in presets:
        options = [f"model.arch={path.parent.name}", f"model.model_type={path.stem}"]
        options += ["run={task: language_modeling, max_steps: 1}", "datasets={openi: {}}"]
        empty = REPO / "tests" / "common" / "empty.yaml"
        load(Training, empty, options)


@pytest.mark.slow
def test_the_command_line_reports_it_without_a_traceback(tmp_path):
    (tmp_path / "somewhere").mkdir()  # a missing corpus would be reported first
    path = write(tmp_path, GOOD.replace("max_steps", "max_step"))
    result = processes.run(
        [sys.executable, "train.py", "--cfg-path", str(path)],
        cwd=REPO,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 2
    assert "run.max_step: unknown key; did you mean 'max_steps'?" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EROFS, "run.output_dir"),
        (errno.EACCES, "XRAYGPT_CACHE"),
        (errno.ENOSPC, "free some space"),
    ],
)
def test_write_errors_are_explained(number, remedy, caplog):
    def fail() -> None:
        raise OSError(number, os.strerror(number), "/somewhere/output")

    assert run_main(fail) == 1
    assert "/somewhere/output" in caplog.text and remedy in caplog.text


def test_agreement_is_read_from_its_old_place(tmp_path, caplog):
    """`run.task.generate.agreement` of earlier versions is a setting of the plan."""
    file = tmp_path / "old.yaml"
    file.write_text(
        "model: {arch: xraygpt, model_type: tiny}\ndatasets: {x: {builder: records}}\n"
        "run: {task: {name: report_generation, plan: {by: head}, generate: {agreement: 0.12}}}\n"
    )
    task = load(Evaluation, file).run.task
    assert task.plan.agreement == 0.12 and "is now run.task.plan.agreement" in caplog.text
    both = load(Evaluation, file, ["run.task.plan.agreement=0.5"]).run.task
    assert both.plan.agreement == 0.5


def test_the_table_of_model_keys_is_the_one_in_the_docs():
    page = (REPO / "docs" / "weights.md").read_text().split("## Model keys")[1].split("\n## ")[0]
    assert dict(re.findall(r"^\| `(\S+)` \| `(\S+)` \|$", page, re.M)) == MODEL_KEYS


def test_both_spellings_of_model_keys_override_each_other(tmp_path):
    nested = GOOD.replace("datasets:", "  vision: {encoder: eva_tiny}\ndatasets:")
    config = load(Training, write(tmp_path, nested), ["model.num_query_token=9"])
    assert (config.model.vision.encoder, config.model.qformer.num_queries) == ("eva_tiny", 9)
    config = load(Training, write(tmp_path, nested), ["model.vit_model=tiny"])
    assert config.model.vision.encoder == "tiny"
    (message,) = problems(tmp_path, nested, "model.vision.image_size=none")
    assert message.startswith("--options: model.vision.image_size: ")
    twice = nested.replace("  vision", "  vit_model: tiny\n  vision")
    assert "also given as model.vision.encoder; remove one" in problems(tmp_path, twice)[0]
    assert "did you mean 'vit_model'" in problems(tmp_path, GOOD, "model.vit_modle=tiny")[0]


def test_a_configuration_is_read_back_as_it_was_saved(tmp_path):
    config = load(Training, write(tmp_path, GOOD), ["model.vit_model=eva_tiny"])
    path = tmp_path / "saved.yaml"
    path.write_text(to_yaml(config))
    assert load(Training, path) == config
