"""History of a model: its training images are known only if those of every part are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from xraygpt.common.checkpoint import save_checkpoint
from xraygpt.evaluation.history import load_history


def write_run(folder: Path, builder: str, **model: str) -> str:
    run = folder / "20260101-000000-aaaa"
    config = {"model": model, "datasets": {"one": {"builder": builder}}}
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    save_checkpoint(run, 1, lambda aside: (aside / "model.safetensors").write_bytes(b""))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    lm = write_run(tmp_path / "lm", "records")
    real = write_run(tmp_path / "real", "records", llama_model=lm)
    one = write_run(tmp_path / "one", "synthetic_cxr", llama_model=lm)
    two = write_run(tmp_path / "two", "synthetic_cxr", llama_model=lm, ckpt=one)
    return {"lm": lm, "real": real, "one": one, "two": two, "gone": str(tmp_path / "gone")}


def test_runs_are_listed_once_and_oldest_first(runs):
    model = {"llama_model": runs["lm"], "q_former_model": runs["one"], "ckpt": runs["two"]}
    folders = [run.parent.name for run in load_history(model).runs]
    assert folders == ["lm", "one", "two"]


def test_a_run_that_started_from_its_own_folder_is_listed_once(tmp_path):
    again = write_run(tmp_path / "again", "synthetic_cxr", ckpt=str(tmp_path / "again"))
    history = load_history({"ckpt": again})
    assert len(history.runs) == 1 and history.trained_on_synthetic_only


@pytest.mark.parametrize(
    ("parts", "synthetic_only"),
    [
        ({"ckpt": "two", "llama_model": "lm"}, True),  # the LLM sees no images
        ({"ckpt": "two", "llama_model": "gone"}, True),
        ({"ckpt": "real"}, False),
        ({"ckpt": "two", "q_former_model": "real"}, False),
        ({"ckpt": "two", "q_former_model": "gone"}, False),
        ({"ckpt": "two", "vit_ckpt": "gone"}, False),
        ({"ckpt": "gone"}, False),
        ({}, False),
    ],
)
def test_synthetic_only_needs_known_training_images(runs, parts, synthetic_only):
    assert (
        load_history({key: runs[name] for key, name in parts.items()}).trained_on_synthetic_only
        == synthetic_only
    )


@pytest.mark.parametrize("content", ["{", "- 1", "datasets: [1]", "", "\udcff"])
def test_a_damaged_configuration_is_ignored(runs, content):
    config = next(Path(runs["one"]).glob("*/config.yaml"))  # where run two started
    config.write_text(content, errors="surrogateescape")
    history = load_history({"ckpt": runs["two"]})
    assert not history.trained_on_synthetic_only
    assert [run.parent.name for run in history.runs] == ["lm", "one", "two"]
