"""Missing corpora, weights and devices are listed together before anything is built."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPO
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.common.registry import ENCODERS
from xraygpt.common.requirements import FrozenParts, may_contain
from xraygpt.experiment import Evaluation, Training
from xraygpt.models.vision.encoders import has_weights
from xraygpt.requirements_check import (
    UNWEIGHTED,
    load_complete,
    missing_parts,
    names_analysis,
    quick_check,
    refuse,
)

YAMLS = [
    path
    for path in sorted([*REPO.glob("train_configs/*.yaml"), *REPO.glob("eval_configs/*.yaml")])
    if not names_analysis(path, [])
]


def schema(path: Path) -> type:
    return Training if path.parent.name == "train_configs" else Evaluation


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A project folder with recipes and prompts, but no weights, runs or corpora."""
    for name in ("train_configs", "eval_configs", "prompts"):
        (tmp_path / name).symlink_to(REPO / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XRAYGPT_DATA", "data")
    monkeypatch.setenv("XRAYGPT_OWN", "data/own")
    return tmp_path


def keys(missing):
    return {m.key for m in missing}


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_recipe_lists_all_that_an_empty_folder_lacks(path, empty):
    experiment = load(schema(path), path)
    began = time.perf_counter()
    found = missing_parts(experiment)
    assert time.perf_counter() - began < 0.1
    text = re.sub(r"#.*", "", path.read_text())
    expected = {
        f"model.{key}"
        for key in ("ckpt", "q_former_model", "finding_head", "vit_ckpt")
        if re.search(rf"\n  {key}: (?!weights/)", text)  # weights/ is in the project
    }
    expected |= (
        {"model.llama_model"}
        if re.search(r"\n  llama_model: (?:o|weights/vicuna)", text)
        else set()
    )
    expected |= {"model.path"} if "\n  path: weights/" in text else set()
    expected |= {"model.vit_model"} if "vit_model: run/output" in text else set()
    if "pretrain_vicuna" in text:
        expected |= {"model.vit_ckpt"}
        if "freeze_qformer: true" in text and "\n  ckpt: " not in text:
            expected |= {"model.q_former_model"}
    for label, corpus in experiment.datasets.items():
        if "synthetic_cxr" not in type(corpus).__module__:
            expected.add(f"datasets.{label}.storage")
    assert keys(found) - {"run.device"} == expected
    assert all(m.remedy for m in found)
    # The same without the models, except for those that only their Configs know.
    unknown = re.search(r"arch: (stock_vlm|openai_endpoint|prefix_lm)", text)
    quick = set() if unknown else set(found)
    assert set(quick_check(path, [], "all", "")) == quick


def test_a_complete_recipe_lists_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    monkeypatch.setenv("XRAYGPT_DATA", str(tmp_path))
    path = REPO / "eval_configs" / "xraygpt_mini.yaml"
    experiment = load(Evaluation, path)
    assert keys(missing_parts(experiment)) == {"datasets.iu_xray.storage"}
    assert missing_parts(experiment, "model") == []  # prediction does not read the corpus
    (tmp_path / "iu_xray").mkdir()
    assert keys(missing_parts(experiment)) == {"datasets.iu_xray.annotations"}
    (tmp_path / "iu_xray" / "reports.jsonl").touch()
    assert missing_parts(experiment) == quick_check(path, [], "all", "") == []


def test_the_lineage_recipe_says_how_to_get_each_part(empty):
    path = Path("train_configs/xraygpt_openi_finetune.yaml")
    with pytest.raises(InputError) as error:
        load_complete("Training", path, [])
    text = str(error.value)
    for remedy in (
        "python train.py --cfg-path train_configs/xraygpt_mimic_pretrain.yaml",
        "python -m xraygpt.download vicuna-7b",
        "python -m xraygpt.curate openi --reports … --images … --out data/openi",
        "docs/weights.md",
    ):
        assert remedy in text
    assert error.value.exit_code == 2


def test_what_several_datasets_lack_is_listed_once_with_the_variable_that_names_it(empty):
    path = Path("train_configs/own_lm.yaml")
    found = quick_check(path, [], "all", "")
    assert len(found) == 3
    with pytest.raises(InputError) as error:
        refuse(path, found)
    first, line = str(error.value).splitlines()
    assert first.startswith("1 thing is missing")
    assert all(f"datasets.{label}.storage" in line for label in ("reports", "codes", "questions"))
    assert "XRAYGPT_OWN" in line


def test_random_parts_of_small_models_are_not_missing(empty):
    options = ["model.model_type=tiny", "model.llama_model=null", "model.ckpt=null"]
    path = Path("train_configs/iu_xray_stage1.yaml")
    assert keys(quick_check(path, options, "all", "")) == {
        "datasets.codes.storage",
        "datasets.questions.storage",
    }


def test_validation_needs_only_the_corpus(empty):
    path = Path("train_configs/own_stage1.yaml")
    (empty / "data" / "own").mkdir(parents=True)
    (empty / "data" / "own" / "table.csv").touch()
    found = quick_check(path, [], "corpus", "")
    assert keys(found) == {"model.llama_model"}  # written by a later command
    refuse(path, found)
    with pytest.raises(InputError, match=r"own_lm\.yaml writes it"):
        refuse(path, quick_check(path, [], "all", ""))


def test_a_missing_gpu_stops_only_commands_that_were_asked_for_it(empty, monkeypatch):
    monkeypatch.setattr("xraygpt.requirements_check._GPU_FILES", ("no_such_file",))
    path = Path("train_configs/xraygpt_openi_finetune.yaml")
    assert "run.device" in keys(quick_check(path, [], "all", ""))
    assert "run.device" not in keys(quick_check(path, ["run.device=cpu"], "all", ""))
    blocking = {m.key: m.blocking for m in quick_check(path, [], "all", "")}
    assert not blocking["run.device"]  # training falls back to the CPU
    found = {m.key: m.blocking for m in quick_check(path, [], "model", "cuda:0")}
    assert found["--device"]
    monkeypatch.setattr("xraygpt.requirements_check._GPU_FILES", ("null",))
    assert "run.device" not in keys(quick_check(path, [], "all", ""))


def test_the_list_of_encoders_without_weights_equals_the_registry():
    for name in ENCODERS:
        example = name.replace("<name>", "resnet18")
        if example != "precomputed" and "<" not in example:
            assert example.startswith(UNWEIGHTED) != has_weights(example), name


def test_a_checkpoint_without_the_encoder_does_not_replace_its_weights():
    bundle = REPO / "weights" / "xraygpt_mini"  # has the Q-Former, but no encoder
    assert may_contain(bundle, "qformer.")
    assert not may_contain(bundle, "vision.")
    assert may_contain(bundle / "encoder", "vision.")
    sources = {"vision.": ("model.vit_ckpt", None), "qformer.": ("model.q_former_model", None)}
    assert keys(FrozenParts("eva_clip_g", bundle, sources).missing()) == {"model.vit_ckpt"}


def test_an_empty_run_folder_is_missing(empty):
    (empty / "output/iu_xray/lm").mkdir(parents=True)
    path = Path("train_configs/iu_xray_stage1.yaml")
    assert "model.llama_model" in keys(quick_check(path, [], "all", ""))


def test_the_quick_check_leaves_plugins_and_invalid_files_to_their_configs(empty, tmp_path):
    source = (REPO / "train_configs/iu_xray_stage1.yaml").read_text()
    own = tmp_path / "own.yaml"
    for text in (
        f"imports: [my_plugins]\n{source}",
        source.replace("arch: xraygpt", "arch: x"),
        "a: [",
        "model: 3",
    ):
        own.write_text(text)
        assert quick_check(own, [], "all", "") == []


def test_commands_stop_before_they_import_torch(empty):
    code = (
        "import runpy, sys; "
        "sys.argv = ['train.py', '--cfg-path', 'train_configs/xraygpt_openi_finetune.yaml']\n"
        f"try: runpy.run_path({str(REPO / 'train.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.split() == ["2", "False"]
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") >= 5
