"""Where a model comes from: the training runs behind it, read from the checkpoints it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xraygpt.common import checkpoint
from xraygpt.common.errors import WeightsError

DRAWINGS = "synthetic_cxr"
DRAWINGS_ALONE = "The model learned to read from SYNTHETIC drawings and knows no patient's X-ray."
_UNKNOWN = "?"


@dataclass(frozen=True)
class History:
    """What is known of a model's training.

    Attributes:
        runs: Folders of the runs that made it, oldest first; those that are gone are left out.
        drawings_alone: Whether all images that taught it are known to be SYNTHETIC phantoms.
    """

    runs: tuple[Path, ...] = ()
    drawings_alone: bool = False


def history_of(model: Mapping[str, Any]) -> History:
    """The history of a model with this `model:` part of a YAML."""
    return History(tuple(dict.fromkeys(_runs(model))), _corpora(model) == {DRAWINGS})


def _runs(model: Mapping[str, Any], known: tuple[Path, ...] = ()) -> list[Path]:
    """Each run after those that made its parts."""
    found: list[Path] = []
    for key in ("q_former_model", "llama_model", "ckpt"):
        run = _run_at(model.get(key))
        if run is not None and run not in known:  # a run may have gone on from its own folder
            found += [*_runs(_read(run).get("model") or {}, (*known, run)), run]
    return found


def _corpora(model: Mapping[str, Any], known: tuple[Path, ...] = ()) -> set[str]:
    """Builders of the corpora whose images the model was trained on."""
    seen = {_UNKNOWN} if model.get("vit_ckpt") else set()
    for key in ("q_former_model", "ckpt"):  # the LLM sees no image
        if not model.get(key):
            continue
        run = _run_at(model[key])
        config = _read(run) if run is not None else {}
        datasets = config.get("datasets") or {"": {}}
        seen |= {str((d or {}).get("builder") or _UNKNOWN) for d in datasets.values()}
        if run is not None and run not in known:
            seen |= _corpora(config.get("model") or {}, (*known, run))
    return seen


def _run_at(source: Any) -> Path | None:
    """The run a path leads to; None if there is none, or it is no run of ours."""
    if not source or not checkpoint.is_run_like(Path(str(source))):
        return None
    try:
        return checkpoint.run_of(checkpoint.find_checkpoint(Path(str(source))))
    except WeightsError:
        return None


def _read(run: Path) -> dict[str, Any]:
    """A run's configuration; nothing if it is gone or damaged."""
    try:
        tree = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    parts = ("model", "datasets")
    sound = isinstance(tree, dict) and all(isinstance(tree.get(p) or {}, dict) for p in parts)
    return tree if sound else {}
