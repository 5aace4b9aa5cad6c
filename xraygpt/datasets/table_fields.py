"""Names of a table's fields, and their validation against the rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from xraygpt.common.errors import DataError
from xraygpt.common.registry import did_you_mean

log = logging.getLogger(__name__)

Row = dict[str, Any]
OPENI_FIELDS = {"uid", "MeSH", "Problems"}


@dataclass(kw_only=True)
class FieldMap:
    """Names of the fields in a corpus; fields that the corpus does not have are ignored."""

    id: str = "id"
    """Id of the record; defaults to the name of the image."""
    study: str = "study"
    """Id of the study; splits are by study, not by image."""
    patient: str = "patient"
    """Id of the patient; if there is one, splits are by patient instead of by study."""
    image: str = "image"
    """Path of the image, or a list of paths."""
    images: str = "images"
    """List of `{path, view}`; docs/data.md lists the other keys, for clips, volumes and rows of
    embeddings."""
    view: str = "view"
    """View of the single image."""
    codes: str = "codes"
    """Human codes, a list of `heading/place/side/degree`."""
    question: str = "question"
    """Question of a question–answer pair."""
    answer: str = "answer"
    """Answer of a question–answer pair."""
    options: list[str] = field(default_factory=list)
    """Columns with the options of a multiple-choice question, or one column with a list of them.
    The answer is then an option's letter, text, or number, counted from 0."""
    turns: str = "turns"
    """List of `{role, text}`."""
    keep: list[str] = field(default_factory=lambda: ["labels", "boxes", "source", "licence"])
    """Fields copied to `Sample.meta`."""
    files: list[str] = field(default_factory=list)
    """Fields that name a file under `storage`, such as a mask; its path is copied to
    `Sample.meta`."""


def check_fields(
    path: Path, rows: Sequence[tuple[int, Row]], names: FieldMap, study_prefix: str
) -> None:
    """Check for misspelt fields: every field that the user mapped must occur in some row.

    Args:
        path: Path of the table, for messages.
        rows: Its rows with their numbers.
        names: The user's settings.
        study_prefix: Prefix of study ids.

    Raises:
        DataError: A field does not occur, or OpenI's table is read without the prefix ``CXR``.
    """
    present = sorted({key for _, row in rows for key in row})
    if set(present) >= OPENI_FIELDS and not study_prefix:
        raise DataError(
            f"{path} is OpenI's table with bare study numbers; set study_prefix: CXR, so "
            "that the studies in the published test split are recognised"
        )
    if rows and names.study not in present:
        log.warning(
            "%s: no record has the field '%s', so each image counts as a study of its own, and two "
            "images of one patient may be in different splits; set fields.study to the right field",
            path,
            names.study,
        )
    for setting, name in _required_fields(names, has_rows=bool(rows)):
        if name not in present:
            hint = did_you_mean(name, present)
            raise DataError(f"{path}: no record has the field '{name}' (fields.{setting}){hint}")


def _required_fields(names: FieldMap, *, has_rows: bool) -> list[tuple[str, str]]:
    """Return setting and name of the fields in lists and of all fields that were changed."""
    default = FieldMap()
    settings = [(f.name, getattr(names, f.name)) for f in fields(FieldMap)]
    listed = [("files", name) for name in names.files if has_rows]
    listed += [("options", name) for name in names.options if has_rows]
    return listed + [
        (setting, name)
        for setting, name in settings
        if isinstance(name, str) and name != getattr(default, setting)
    ]
