"""What a model was trained on, with licences: the key `trained_on` in its MANIFEST.json."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from xraygpt.common.checkpoint import peek_checkpoint, read_manifest
from xraygpt.common.model_keys import config_value
from xraygpt.common.requirements import BASE_SUFFIX, RUN_PREFIX

log = logging.getLogger(__name__)

KEY = "trained_on"
PHANTOMS = "SYNTHETIC phantoms"
_NAMES = {"iu_xray": "IU X-ray", "openi": "OpenI", "vqa_rad": "VQA-RAD", "mimic": "MIMIC-CXR"}
_SOURCES = ("ckpt", "q_former_model", "llama_model")


@dataclass(frozen=True)
class TrainingData:
    """A corpus whose training split a model, or one of its parts, was trained on.

    Attributes:
        name: Name of the corpus.
        licence: Its licence; empty if it is not known.
        images: Number of different images; 0 if only texts were used.
        synthetic: Whether all images are phantoms.
    """

    name: str
    licence: str
    images: int
    synthetic: bool

    def as_row(self) -> dict[str, Any]:
        """Return the entry for a manifest."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Read an entry of a manifest.

        Raises:
            KeyError: A value is missing.
        """
        name, licence, images = str(row["name"]), str(row["licence"]), int(row["images"])
        return cls(name, licence, images, bool(row["synthetic"]))

    def __str__(self) -> str:
        licence = [] if self.synthetic or not self.licence else [self.licence]
        images = f"{self.images:,}{'' if self.synthetic else ' images'}"
        return f"{self.name} ({', '.join([*licence, images if self.images else 'texts only'])})"


def corpus_name(storage: Path, label: str) -> str:
    """Return the name of a corpus: that of a known folder, else the folder's own or the label."""
    return _NAMES.get(storage.name, storage.name) or label


def read_training_data(folder: Path | None) -> tuple[TrainingData, ...]:
    """Read what a model was trained on; empty if it is not known.

    Args:
        folder: A run, a checkpoint, a bundle, or a part of one, such as its LLM's folder.
    """
    if folder is None:
        return ()
    found = peek_checkpoint(folder) or folder
    for place in (found, found.parent) if found.exists() else ():
        rows = read_manifest(place).get(KEY)
        if isinstance(rows, list):
            return tuple(_valid(rows, place))
    return ()


def _valid(rows: Sequence[Any], place: Path) -> Iterable[TrainingData]:
    for row in rows:
        try:
            yield TrainingData.from_row(row)
        except (KeyError, TypeError, ValueError):
            log.warning("%s: the manifest's key %s has an invalid row", place, KEY)


def merge(rows: Iterable[TrainingData]) -> tuple[TrainingData, ...]:
    """Return each corpus once, with the largest number of images and the first known licence."""
    merged: dict[str, TrainingData] = {}
    for row in rows:
        before = merged.setdefault(row.name, row)
        images, licence = max(before.images, row.images), before.licence or row.licence
        merged[row.name] = replace(before, images=images, licence=licence)
    return tuple(merged.values())


def training_data_of_parts(model: Any) -> tuple[TrainingData, ...]:
    """Return what the parts named in a model's Config were trained on.

    Args:
        model: The Config, whose checkpoint, Q-Former, LLM and trained encoder are looked up.
    """
    sources = [str(value) for key in _SOURCES if (value := config_value(model, key))]
    encoder = config_value(model, "vit_model") or ""
    if encoder.startswith(RUN_PREFIX):
        sources.append(encoder.removeprefix(RUN_PREFIX).removesuffix(BASE_SUFFIX))
    return merge(row for source in sources for row in read_training_data(Path(source)))


def manifest_entry(data: Sequence[TrainingData]) -> dict[str, Any]:
    """Return the manifest's entry `trained_on`; empty if nothing is known."""
    return {KEY: [row.as_row() for row in data]} if data else {}


def log_training_data(data: Sequence[TrainingData]) -> None:
    """Log what a model was trained on in one line; nothing if it is not known."""
    if data:
        log.info("trained on: %s", ", ".join(map(str, data)))
