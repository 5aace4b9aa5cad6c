"""The XrayGPT folder: `image/` beside `filter_cap.json`, for OpenI, MIMIC-CXR and ROCO.

Two shapes of the file are read: XrayGPT's ``{"annotations": [{"image_id", "caption"}]}``, whose ids
are file names without or with their ending, and its fork's list of ``{"image", "prompt",
"caption"}``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xraygpt.common.errors import DataError
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Record
from xraygpt.datasets.builder import BaseBuilder, RecordError, existing, inside
from xraygpt.media.base import MediaRef
from xraygpt.prompting.renderer import IMAGE, Turn
from xraygpt.vocabulary.openi import is_published_test, openi_study

_ENDINGS = ("", ".png", ".jpg", ".jpeg", ".dcm")


@registry.register_builder("caption_folder", "openi", "mimic", "roco")
class CaptionFolder(BaseBuilder):
    """One image and one caption per record."""

    @dataclass(kw_only=True)
    class Config(BaseBuilder.Config):
        """Settings of a caption folder: those of every corpus."""

    config: Config

    def records(self, clean: Callable[[str], str]) -> Iterator[tuple[str | None, Record | str]]:
        """Each annotation with its split."""
        storage = self.folder(
            "caption folder", "It holds image/ and filter_cap.json; docs/data.md describes both"
        )
        path = storage / (self.config.annotations or "filter_cap.json")
        root = storage / (self.config.images or "image")
        if not root.is_dir():
            raise DataError(f"no image folder {root} (datasets.<label>.images)")
        for number, row in enumerate(_rows(path)):
            try:
                record, unit, said = self._record(row, root, clean)
                yield self.config.split.of(unit, said), record
            except RecordError as error:
                yield None, f"{path.name}, record {number}: {error}"

    def _record(
        self, row: Any, root: Path, clean: Callable[[str], str]
    ) -> tuple[Record, str, str | None]:
        """A record, what is split (its patient where one is named, else its study), its split."""
        if not isinstance(row, dict):
            raise RecordError(f"expected an object, got {type(row).__name__}")
        name = row.get("image_id", row.get("image"))
        if isinstance(name, int):
            name = str(name)
        caption = row.get("caption")
        if not isinstance(caption, str) or not caption.strip():
            raise RecordError(f"caption is empty or no text (image {name!r})")
        path = _find(root, name)
        stem = _without_ending(path.name)
        prompt = row.get("prompt")
        question = f"{IMAGE} {prompt}" if isinstance(prompt, str) and prompt.strip() else IMAGE
        record = Record(
            sample_id=stem,
            study_id=openi_study(path.name) or str(row.get("study", stem)),
            media=(MediaRef(path, str(row.get("view", ""))),),
            turns=(
                Turn(role="user", text=question),
                Turn(role="assistant", text=clean(caption)),
            ),
        )
        said, patient = row.get("split"), row.get("patient")
        study = record.study_id
        unit = study if patient in (None, "") or is_published_test(study) else f"patient {patient}"
        return record, unit, said if isinstance(said, str) else None


def _find(root: Path, name: Any) -> Path:
    """The image called `name`, with whichever ending it has on disk."""
    first = inside(root, name)
    for ending in _ENDINGS:
        candidate = inside(root, f"{name}{ending}")  # the file itself may be a link that leads out
        if candidate.is_file():
            return existing(candidate)
    raise RecordError(f"image not found ({first}, with or without {' '.join(_ENDINGS[1:])})")


def _without_ending(name: str) -> str:
    """A file name without the endings of images; ``1.2.840.5.dcm.png`` is ``1.2.840.5``."""
    while name.lower().endswith(_ENDINGS[1:]):
        name = name[: name.rindex(".")]
    return name


def _rows(path: Path) -> list[Any]:
    content = load_json(path)
    rows = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(
            f"{path}: expected a list of records, or an object with the list 'annotations'"
        )
    return rows


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: Absent, or not JSON; says the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the annotations {path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
