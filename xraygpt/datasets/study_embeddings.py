"""Finds the embeddings of a study: one file for each study, or rows of a file of many studies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from xraygpt.common.errors import DataError
from xraygpt.datasets.media_paths import RecordError, resolve_image
from xraygpt.datasets.study_rows import parse_labels, parse_rows
from xraygpt.datasets.table_fields import Row
from xraygpt.media.array_files import ARRAY_SUFFIXES, array_shape
from xraygpt.media.base import MediaRef
from xraygpt.media.row_labels import join_row_labels

if TYPE_CHECKING:
    from xraygpt.datasets.studies import StudiesBuilder

STUDY_MARK = "{study}"
_KEPT_SHAPES = 4096  # files whose shape is kept

Labels = list[tuple[str, str]]


@dataclass
class _Part:
    """Rows of one file, with their labels.

    Attributes:
        file: The file.
        rows: The rows, or None for all rows of the file.
        views: View of each row; one for all; or none.
        types: Type of each row; one for all; or none.
    """

    file: str
    rows: list[int] | None
    views: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)


class EmbeddingFinder:
    """Builds the media of studies from their rows in the table.

    Args:
        config: Settings of the table.
        root: Folder that contains all embeddings.
    """

    def __init__(self, config: StudiesBuilder.Config, root: Path) -> None:
        self.config, self.names, self.root = config, config.fields, root
        self._width: tuple[int, str] | None = None  # of the first study, and its name
        self._aligned_file: str | None = None  # its row k belongs to row k of the table
        self._describe = lru_cache(_KEPT_SHAPES)(self._read_shape)

    def media(
        self, study: str, rows: Sequence[tuple[int, Row]]
    ) -> tuple[tuple[MediaRef, ...], Labels]:
        """Return the media of a study and the labels of all of their rows.

        Args:
            study: Id of the study.
            rows: Its rows in the table, with their indices.

        Returns:
            The media, without the rows whose view is not among `views`; and view and type of each
            remaining row.

        Raises:
            RecordError: There are no embeddings, or they cannot be used.
        """
        parts: list[_Part] = []
        for index, row in rows:
            part = self._part(study, index, row)
            if parts and parts[-1].file == part.file:
                _extend(parts[-1], part)
            else:
                parts.append(part)
        refs: list[MediaRef] = []
        labels: Labels = []
        for part in parts:
            for ref, names in self._refs(study, part):
                refs.append(ref)
                labels += names
        return tuple(refs), labels

    def check_aligned(self, table_rows: int) -> None:
        """Check a file whose rows belong to the rows of the table.

        Raises:
            DataError: Their numbers differ.
        """
        if self._aligned_file is None:
            return
        count = self._describe(self._aligned_file)[0]
        if count != table_rows:
            raise DataError(
                f"{self._aligned_file} has {count} rows, but the table has {table_rows}; without a "
                f"column '{self.names.row}', or '{self.names.start}' and '{self.names.count}', row "
                "k of one belongs to row k of the other"
            )

    def _part(self, study: str, index: int, row: Row) -> _Part:
        """Return what one row of the table refers to."""
        names = self.names
        name = row.get(names.file) or self.config.embeddings.replace(STUDY_MARK, study)
        if not name:
            raise RecordError(
                f"there is no file of embeddings: set embeddings, or fill the column {names.file}"
            )
        file = self._file(name)
        views = parse_labels(row.get(names.view), names.view)
        types = parse_labels(row.get(names.type), names.type)
        rows = self._listed_rows(row)
        if rows is None and not row.get(names.file) and STUDY_MARK not in self.config.embeddings:
            self._aligned_file, rows = file, [index]
        return _Part(file, rows, views, types)

    def _file(self, name: object) -> str:
        if not str(name).endswith(ARRAY_SUFFIXES):
            raise RecordError(
                f"{name}: embeddings are only read from {', '.join(ARRAY_SUFFIXES)} files "
                "(python -m xraygpt.convert_echo converts .pt files)"
            )
        try:
            return resolve_image(self.root, name)
        except RecordError as error:
            message = str(error).replace("image folder", "folder").replace("image file", "file")
            raise RecordError(message.replace("image", "embeddings")) from None

    def _listed_rows(self, row: Row) -> list[int] | None:
        names = self.names
        cell, start, count = (row.get(n) for n in (names.row, names.start, names.count))
        if cell not in (None, ""):
            return parse_rows(cell, names.row)
        if start in (None, "") and count in (None, ""):
            return None
        if start in (None, "") or count in (None, ""):
            raise RecordError(f"{names.start} and {names.count} must both be given, or neither")
        first, length = parse_rows(start, names.start)[0], parse_rows(count, names.count)[0]
        if length < 1:
            raise RecordError(f"{names.count} is {length}, so the study has no embeddings")
        return list(range(first, first + length))

    def _refs(self, study: str, part: _Part) -> Iterator[tuple[MediaRef, Labels]]:
        """Yield the media of a part, with the labels of their rows."""
        shape = self._describe(part.file)
        count = self._count_rows(part, shape)
        self._check_width(study, part.file, shape[-1])
        views = _for_each_row(part.views, count, self.names.view)
        types = _for_each_row(part.types, count, self.names.type)
        labels = list(zip(views, types, strict=True))
        rows = part.rows
        if self.config.views is not None:
            kept = [i for i, view in enumerate(views) if view in self.config.views]
            if len(kept) < count:
                if len(shape) == 3:
                    raise RecordError(
                        f"{part.file}: rows of a three-dimensional array cannot be left out (views)"
                    )
                labels = [labels[i] for i in kept]
                rows = [i if rows is None else rows[i] for i in kept]
        yield from self._build_refs(part.file, rows, labels)

    def _build_refs(
        self, file: str, rows: list[int] | None, labels: Labels
    ) -> Iterator[tuple[MediaRef, Labels]]:
        tensor = self.config.tensor
        if not labels:
            return
        if rows is None:
            yield MediaRef(file, _join(labels), kind="embedding", tensor=tensor), labels
        elif len(rows) > 1 and rows == list(range(rows[0], rows[-1] + 1)):
            frames = rows[0], rows[-1] + 1, 1
            view = _join(labels)
            yield MediaRef(file, view, kind="embedding", frames=frames, tensor=tensor), labels
        elif len(rows) == 1:
            yield MediaRef(file, _join(labels), rows[0], kind="embedding", tensor=tensor), labels
        else:
            for row, label in zip(rows, labels, strict=True):
                view = _join([label])
                yield MediaRef(file, view, row, kind="embedding", tensor=tensor), [label]

    def _read_shape(self, file: str) -> tuple[int, ...]:
        try:
            shape = array_shape(file, self.config.tensor)
        except DataError as error:
            raise RecordError(str(error)) from None
        if not 1 <= len(shape) <= 3:
            raise RecordError(f"{file}: embeddings must be (n, D) or (D,), but these are {shape}")
        if 0 in shape:
            raise RecordError(f"{file}: there are no embeddings; the array's shape is {shape}")
        return shape

    def _count_rows(self, part: _Part, shape: tuple[int, ...]) -> int:
        """Return the number of embedding rows of a part, and check that they exist."""
        if part.rows is None:
            if len(shape) == 3:
                raise RecordError(f"{part.file}: embeddings must be (n, D), but these are {shape}")
            return shape[0] if len(shape) == 2 else 1
        if len(shape) == 1:
            raise RecordError(f"{part.file}: contains one embedding, which has no rows to select")
        wrong = [row for row in part.rows if not 0 <= row < shape[0]]
        if wrong:
            raise RecordError(
                f"{part.file}: row {wrong[0]} does not exist; the file has {shape[0]} rows, "
                "counted from 0"
            )
        if len(set(part.rows)) < len(part.rows):
            raise RecordError(f"{part.file}: a row is listed twice in {part.rows}")
        if len(shape) == 3 and len(part.rows) > 1:
            raise RecordError(
                f"{part.file} is three-dimensional, so a study has one row of it, not "
                f"{len(part.rows)}"
            )
        return shape[1] if len(shape) == 3 else len(part.rows)

    def _check_width(self, study: str, file: str, width: int) -> None:
        if self._width is None:
            self._width = width, study
        expected, first = self._width
        if width != expected:
            raise RecordError(
                f"{file}: the embeddings have width {width}, but those of study {first} have "
                f"{expected}; all studies must come from one encoder"
            )


def _extend(part: _Part, more: _Part) -> None:
    """Add a further row of the table to a part with the same file."""
    if (part.rows is None) != (more.rows is None):
        raise RecordError(f"{part.file}: some of the study's rows name a row of it, others do not")
    if part.rows is not None and more.rows is not None:
        part.rows += more.rows
    part.views += more.views or [""]
    part.types += more.types or [""]


def _for_each_row(labels: Sequence[str], count: int, name: str) -> list[str]:
    if len(labels) in (0, 1):
        return list(labels or [""]) * count
    if len(labels) != count:
        raise RecordError(
            f"there are {len(labels)} labels in {name}, but the study has {count} rows of "
            "embeddings"
        )
    return list(labels)


def _join(labels: Labels) -> str:
    try:
        return join_row_labels([view for view, _ in labels], [kind for _, kind in labels])
    except DataError as error:
        raise RecordError(str(error)) from None
