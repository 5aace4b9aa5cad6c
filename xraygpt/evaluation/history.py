"""The training runs behind a model, read from the checkpoints that its configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xraygpt.common import checkpoint
from xraygpt.common.errors import WeightsError
from xraygpt.common.model_keys import read_key
from xraygpt.common.project_paths import InProject, find_project

SYNTHETIC_BUILDER = "synthetic_cxr"
SYNTHETIC_ONLY_WARNING = (
    "The model was trained on SYNTHETIC images only and has never seen a patient's X-ray."
)
_UNKNOWN = "?"


@dataclass(frozen=True)
class History:
    """The known history of a model's training.

    Attributes:
        runs: Existing folders of the runs in which the model was trained, oldest first.
        trained_on_synthetic_only: Whether all training images are known to be phantoms.
    """

    runs: tuple[Path, ...] = ()
    trained_on_synthetic_only: bool = False


def load_history(model: Mapping[str, Any]) -> History:
    """Read the history of a model from the `model` section of a configuration."""
    return History(tuple(dict.fromkeys(_runs(model))), _builders(model) == {SYNTHETIC_BUILDER})


def _runs(model: Mapping[str, Any], visited: tuple[Path, ...] = ()) -> list[Path]:
    """Return the run folders, each after the runs in which its parts were trained."""
    runs: list[Path] = []
    for key in ("q_former_model", "llama_model", "ckpt"):
        run = _find_run(read_key(model, key), visited)
        if run is not None and run not in visited:  # a run may start from its own folder
            runs += [*_runs(read_run_config(run).get("model") or {}, (*visited, run)), run]
    return runs


def _builders(model: Mapping[str, Any], visited: tuple[Path, ...] = ()) -> set[str]:
    """Return the names of the dataset builders whose images the model was trained on."""
    builders = {_UNKNOWN} if read_key(model, "vit_ckpt") else set()
    for key in ("q_former_model", "ckpt"):  # the LLM is trained without images
        if not read_key(model, key):
            continue
        run = _find_run(read_key(model, key), visited)
        config = read_run_config(run) if run is not None else {}
        datasets = config.get("datasets") or {"": {}}
        builders |= {str((d or {}).get("builder") or _UNKNOWN) for d in datasets.values()}
        if run is not None and run not in visited:
            builders |= _builders(config.get("model") or {}, (*visited, run))
    return builders


def _find_run(source: Any, visited: tuple[Path, ...]) -> Path | None:
    """Return the run folder that contains a path, or None if there is none.

    Args:
        source: The path, as in the configuration of the last of the runs in `visited`.
        visited: The runs that led to this path; empty for a resolved path.
    """
    if source and visited:
        source = InProject().resolve(source, find_project(visited[-1] / "config.yaml"))
    if not source or not checkpoint.is_run_or_checkpoint(Path(str(source))):
        return None
    try:
        return checkpoint.run_of(checkpoint.find_checkpoint(Path(str(source))))
    except WeightsError:
        return None


def read_run_config(run: Path) -> dict[str, Any]:
    """Read a run's configuration; empty if it is missing or damaged."""
    try:
        tree = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    sections = ("model", "datasets", "run")
    valid = isinstance(tree, dict) and all(isinstance(tree.get(s) or {}, dict) for s in sections)
    return tree if valid else {}
