"""Relative paths of a YAML file are found in its project from any working directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from xraygpt.common.project_paths import (
    EncoderName,
    ProjectName,
    ProjectPath,
    find_project,
    resolve_paths,
)


@dataclass
class Inner:
    """A nested section."""

    source: ProjectName | None = None
    encoder: EncoderName = "tiny"


@dataclass
class Outer:
    """Fields with and without a mark."""

    ckpt: ProjectPath | None = None
    output: Path = Path("output")
    inner: Inner = field(default_factory=Inner)
    by_name: dict[str, Inner] = field(default_factory=dict)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project, and an empty working directory elsewhere."""
    for folder in ("eval_configs", "weights/a", "output/run"):
        (tmp_path / "project" / folder).mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "project"


def test_marked_paths_are_found_in_the_project(project):
    config = Outer(
        Path("weights/a"),
        inner=Inner("weights/a", "run/weights/a+base"),
        by_name={"x": Inner("output/run/best")},
    )
    resolve_paths(config, project)
    weights = project / "weights/a"
    assert config.ckpt == weights and config.inner.source == str(weights)
    assert config.inner.encoder == f"run/{weights}+base"
    assert config.by_name["x"].source == str(project / "output/run/best")
    assert config.output == Path("output")  # where a run writes does not depend on the project


def test_the_working_directory_comes_first_and_names_stay(project):
    Path("weights/a").mkdir(parents=True)
    config = Outer(Path("weights/a"), inner=Inner("package:name", "timm/resnet18"))
    resolve_paths(config, project)
    assert config.ckpt == Path("weights/a")
    assert config.inner == Inner("package:name", "timm/resnet18")
    missing = Outer(Path("weights/none"), inner=Inner("org/model"))
    resolve_paths(missing, project)
    assert missing.ckpt == Path("weights/none") and missing.inner.source == "org/model"


def test_the_project_is_the_nearest_folder_with_configurations(project, tmp_path):
    assert find_project(project / "eval_configs/a.yaml") == project
    assert find_project(project / "output/run/step-1/config.yaml") == project
    assert find_project(tmp_path / "empty/my.yaml") == tmp_path / "empty"
