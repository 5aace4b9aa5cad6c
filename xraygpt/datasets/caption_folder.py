"""XrayGPT's folder layout, used for OpenI, MIMIC-CXR and ROCO: `image/` and `filter_cap.json`.

Two formats of the file are supported: XrayGPT's ``{"annotations": [{"image_id", "caption"}]}``, in
which ids are file names with or without suffix, and the list of ``{"image", "prompt", "caption"}``
used by its fork.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from xraygpt.common.annotation_files import load_json
from xraygpt.common.errors import DataError
from xraygpt.common.registry import registry
from xraygpt.common.requirements import CAPTIONS, CorpusLayout
from xraygpt.datasets.base import Record
from xraygpt.datasets.builder import BaseBuilder
from xraygpt.datasets.media_paths import RecordError, require_file, resolve_within
from xraygpt.media.base import MediaRef
from xraygpt.prompting.renderer import IMAGE, Turn
from xraygpt.vocabulary.openi import openi_study

_SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".dcm")


@registry.register_builder("caption_folder", "openi", "mimic", "roco")
class CaptionFolder(BaseBuilder):
    """One image and one caption per record."""

    @dataclass(kw_only=True)
    class Config(BaseBuilder.Config):
        """The common settings of all corpora."""

        layout: ClassVar[CorpusLayout] = CAPTIONS

    config: Config

    def records(self, clean: Callable[[str], str]) -> Iterator[tuple[str | None, Record | str]]:
        """Yield each annotation with its split."""
        storage = self.storage_folder(
            "caption folder", "It must contain image/ and filter_cap.json; see docs/data.md"
        )
        path = storage / (self.config.annotations or str(CAPTIONS.annotations))
        root = storage / (self.config.images or str(CAPTIONS.images))
        if not root.is_dir():
            raise DataError(f"there is no image folder {root} ({self.key('images')})")
        for number, row in enumerate(_load_rows(path)):
            try:
                record = _parse_record(row, root, clean)
                yield self._split(row, record.study_id), record
            except RecordError as error:
                yield None, f"{path.name}, record {number}: {error}"

    def _split(self, row: dict[str, Any], study_id: str) -> str | None:
        split = row.get("split")
        listed_split = split if isinstance(split, str) else None
        return self.config.split.assign_grouped(study_id, row.get("patient"), listed_split)


def _parse_record(row: Any, root: Path, clean: Callable[[str], str]) -> Record:
    if not isinstance(row, dict):
        raise RecordError(f"expected an object, got {type(row).__name__}")
    name = row.get("image_id", row.get("image"))
    if isinstance(name, int):
        name = str(name)
    caption = row.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        raise RecordError(f"the caption is empty or not a string (image {name!r})")
    path = _find_image(root, name)
    sample_id = _strip_image_suffixes(path.name)
    prompt = row.get("prompt")
    question = f"{IMAGE} {prompt}" if isinstance(prompt, str) and prompt.strip() else IMAGE
    return Record(
        sample_id=sample_id,
        study_id=openi_study(path.name) or str(row.get("study", sample_id)),
        media=(MediaRef(path, str(row.get("view", ""))),),
        turns=(
            Turn(role="user", text=question),
            Turn(role="assistant", text=clean(caption)),
        ),
    )


def _find_image(root: Path, name: Any) -> Path:
    """Return the path of the image called `name`, which may lack the suffix."""
    path = resolve_within(root, name)
    for suffix in _SUFFIXES:
        candidate = resolve_within(root, f"{name}{suffix}")  # may be a link that leaves the folder
        if candidate.is_file():
            return require_file(candidate)
    raise RecordError(f"image not found ({path}, with or without {' '.join(_SUFFIXES[1:])})")


def _strip_image_suffixes(name: str) -> str:
    """Remove all image suffixes: ``1.2.840.5.dcm.png`` becomes ``1.2.840.5``."""
    while name.lower().endswith(_SUFFIXES[1:]):
        name = name[: name.rindex(".")]
    return name


def _load_rows(path: Path) -> list[Any]:
    content = load_json(path)
    rows = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(
            f"{path}: expected a list of records, or an object with the list 'annotations'"
        )
    return rows
