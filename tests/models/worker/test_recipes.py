"""The recipes of published models: their help needs no packages, and versions are pinned."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests.conftest import REPO
from xraygpt.common.registry import TASKS

RECIPES = sorted(path.parent for path in (REPO / "workers").glob("*/worker.py"))
PUBLISHED = [folder for folder in RECIPES if folder.name != "stub"]


def run(folder, monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["worker.py", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    runpy.run_path(str(folder / "worker.py"), run_name="__main__")


def test_there_is_a_recipe_for_each_baseline():
    assert {folder.name for folder in PUBLISHED} == {
        "chexagent2", "llava_med", "llava_onevision", "maira2", "medgemma", "radialog"
    }  # fmt: skip


@pytest.mark.parametrize("folder", RECIPES, ids=lambda folder: folder.name)
def test_help_needs_no_packages_and_tasks_are_registered(folder, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run(folder, monkeypatch, "--help")
    assert stop.value.code == 0 and "usage" in capsys.readouterr().out
    tasks = runpy.run_path(str(folder / "worker.py"))["TASKS"]
    assert tasks and set(tasks) <= set(TASKS)


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_versions_are_pinned_and_remote_code_is_asked_for(folder, monkeypatch):
    lines = (folder / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    assert pins and all("==" in line or "@" in line for line in pins)
    assert any(line.startswith("torch==") for line in pins)
    text = (folder / "worker.py").read_text()
    if "trust_remote_code" in text:
        with pytest.raises(SystemExit, match="--trust-remote-code"):
            run(folder, monkeypatch)
