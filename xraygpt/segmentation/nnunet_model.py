"""The folder of a model that nnU-Net v2 has trained: its labels, channels and folds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xraygpt.common.errors import WeightsError
from xraygpt.segmentation.labels import CONVENTIONS

_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "background": ("background", "bg"),
    "rv": (
        "rv", "rvc", "rvbp", "rvcavity", "rvbloodpool", "rvcav", "rightventricle",
        "rightventriclecavity", "rightventricularcavity",
    ),
    "myocardium": (
        "myo", "myocardium", "lvm", "mlv", "lvmyo", "myolv", "lvmyocardium", "myocardiumlv",
        "normalmyocardium", "leftventricularmyocardium", "leftventriclemyocardium",
    ),
    "lv": (
        "lv", "lvc", "lvbp", "lvcavity", "lvbloodpool", "lvcav", "cavity", "leftventricle",
        "leftventriclecavity", "leftventricularcavity",
    ),
    "infarct": ("infarct", "infarction", "mi", "scar", "myocardialinfarction"),
    "no_reflow": ("noreflow", "nrf", "mvo", "microvascularobstruction"),
}  # fmt: skip
_STRUCTURE_OF = {word: name for name, words in _SYNONYMS.items() for word in words}


@dataclass(frozen=True)
class Model:
    """What is known of a model without loading its weights.

    Attributes:
        labels: Names of the labels by value, without the label that is ignored in training;
            empty for a model that was trained with regions.
        channels: Number of input channels.
        file_ending: Of its images, such as ``.nii.gz``.
        configuration: Such as ``2d`` or ``3d_fullres``; empty if the folder was renamed.
        needs_earlier_stage: Whether it refines the result of another model.
        turns_images: Whether its reader turns images as their coordinates in the scanner say.
    """

    labels: Mapping[int, str]
    channels: int
    file_ending: str
    configuration: str
    needs_earlier_stage: bool
    turns_images: bool


def read_model(folder: Path) -> Model:
    """Read the descriptions in a model folder.

    Raises:
        WeightsError: It is not the folder of a trained model.
    """
    described, plans = _read_json(folder / "dataset.json"), _read_json(folder / "plans.json")
    configuration = folder.resolve().name.split("__")[-1]
    planned = plans.get("configurations", {}).get(configuration)
    try:
        named = {k: v for k, v in described["labels"].items() if k != "ignore"}
        is_plain = all(isinstance(value, int) for value in named.values())
        return Model(
            labels={value: name for name, value in named.items()} if is_plain else {},
            channels=len(described["channel_names"]),
            file_ending=str(described["file_ending"]),
            configuration=configuration if planned is not None else "",
            needs_earlier_stage=bool((planned or {}).get("previous_stage")),
            turns_images=str(plans.get("image_reader_writer", "")).endswith("Reorient"),
        )
    except (KeyError, AttributeError, TypeError):
        raise WeightsError(
            f"{folder / 'dataset.json'}: labels, channel_names or file_ending is missing or "
            "unreadable; use the dataset.json that nnU-Net wrote"
        ) from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise WeightsError(
            f"{file}: there is no such file; give the folder of a trained model, which is named "
            "<trainer>__<plans>__<configuration>"
        ) from None
    except ValueError as error:
        raise WeightsError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: expected names with values")
    return content


def find_folds(folder: Path, checkpoint: str) -> tuple[int, ...]:
    """Return the numbers of the folds that have a checkpoint, ascending."""
    found = (
        re.fullmatch(r"fold_(\d+)", path.parent.name)
        for path in folder.glob(f"fold_*/{checkpoint}")
    )
    return tuple(sorted(int(match[1]) for match in found if match))


def derive_convention(labels: Mapping[int, str]) -> str | None:
    """Return the key of `labels.CONVENTIONS` that agrees with the names of labels, if one does.

    The convention may have further labels.

    Args:
        labels: Names by value; case, spaces and punctuation do not matter.
    """
    structures = _structures(labels[value] for value in sorted(labels))
    if len(labels) < 2 or sorted(labels) != list(range(len(labels))):
        return None
    fitting = [key for key, names in CONVENTIONS.items() if names[: len(labels)] == structures]
    return min(fitting, key=lambda key: len(CONVENTIONS[key]), default=None)


def _structures(names: Iterable[str]) -> tuple[str, ...]:
    """Return the structures with these names; a name without meaning becomes empty."""
    return tuple(_STRUCTURE_OF.get(re.sub(r"[\W_]", "", name.lower()), "") for name in names)
