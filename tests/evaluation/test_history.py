"""Where a model comes from: known only if every part of it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from xraygpt.common.checkpoint import publish
from xraygpt.evaluation.history import history_of


def write_run(folder: Path, builder: str, **model: str) -> str:
    run = folder / "20260101-000000-aaaa"
    config = {"model": model, "datasets": {"one": {"builder": builder}}}
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    publish(run, 1, lambda aside: (aside / "model.safetensors").write_bytes(b""))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    lm = write_run(tmp_path / "lm", "records")
    real = write_run(tmp_path / "real", "records", llama_model=lm)
    one = write_run(tmp_path / "one", "synthetic_cxr", llama_model=lm)
    two = write_run(tmp_path / "two", "synthetic_cxr", llama_model=lm, ckpt=one)
    return {"lm": lm, "real": real, "one": one, "two": two, "gone": str(tmp_path / "gone")}


def test_runs_come_oldest_first_each_once(runs):
    model = {"llama_model": runs["lm"], "q_former_model": runs["one"], "ckpt": runs["two"]}
    folders = [run.parent.name for run in history_of(model).runs]
    assert folders == ["lm", "one", "two"]


def test_a_run_that_went_on_from_its_own_folder_ends(tmp_path):
    again = write_run(tmp_path / "again", "synthetic_cxr", ckpt=str(tmp_path / "again"))
    history = history_of({"ckpt": again})
    assert len(history.runs) == 1 and history.drawings_alone


@pytest.mark.parametrize(
    ("parts", "drawn"),
    [
        ({"ckpt": "two", "llama_model": "lm"}, True),  # the LLM's texts are no images
        ({"ckpt": "two", "llama_model": "gone"}, True),
        ({"ckpt": "real"}, False),
        ({"ckpt": "two", "q_former_model": "real"}, False),
        ({"ckpt": "two", "q_former_model": "gone"}, False),
        ({"ckpt": "two", "vit_ckpt": "gone"}, False),
        ({"ckpt": "gone"}, False),
        ({}, False),
    ],
)
def test_drawings_alone_is_said_only_of_what_is_known(runs, parts, drawn):
    assert history_of({key: runs[name] for key, name in parts.items()}).drawings_alone == drawn


@pytest.mark.parametrize("content", ["{", "- 1", "datasets: [1]", "", "\udcff"])
def test_a_damaged_configuration_is_nothing_known(runs, content):
    config = next(Path(runs["one"]).glob("*/config.yaml"))  # stage 2 began with it
    config.write_text(content, errors="surrogateescape")
    history = history_of({"ckpt": runs["two"]})
    assert not history.drawings_alone
    assert [run.parent.name for run in history.runs] == ["lm", "one", "two"]
