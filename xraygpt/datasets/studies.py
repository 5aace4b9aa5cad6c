"""Corpora of studies whose media are embeddings: a table with reports, and arrays of any width.

A study is a set of embeddings, often one for each of its videos. They are one file for each study,
or rows of one file. docs/echo_data.md has examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from xraygpt.common.checks import Checks
from xraygpt.common.config import Choice
from xraygpt.common.errors import DataError
from xraygpt.common.json_stream import iter_records
from xraygpt.common.registry import VOCABULARIES, registry
from xraygpt.common.requirements import Missing
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Record
from xraygpt.datasets.builder import BaseBuilder
from xraygpt.datasets.media_paths import RecordError
from xraygpt.datasets.seen_names import SeenNames
from xraygpt.datasets.study_embeddings import STUDY_MARK, EmbeddingFinder
from xraygpt.datasets.study_rows import StudyFields, StudyRowReader
from xraygpt.datasets.study_splits import StudyRow, StudySplitRule, StudySplits
from xraygpt.datasets.table_fields import Row

SUFFIXES = ("jsonl", "json", "csv", "parquet")


class _Group(NamedTuple):
    """Rows of the table that make up one sample; `study` is "" if its id is missing."""

    study: str
    rows: list[tuple[int, Row]]


@registry.register_builder("studies")
class StudiesBuilder(BaseBuilder):
    """A table of studies with reports, and their embeddings."""

    @dataclass(kw_only=True)
    class Config(BaseBuilder.Config):
        """Settings of a table of studies; `images` is the folder of the embeddings."""

        fields: StudyFields = field(default_factory=StudyFields)
        """Names of the columns."""
        embeddings: str = ""
        """File of the embeddings: with `{study}` in its name, such as `{study}.npy`, one for each
        study; otherwise one for all studies, such as `embeddings.safetensors`. The column
        `fields.file` overrides it."""
        tensor: str = ""
        """Name of the tensor, array or Parquet column, if a file contains several."""
        one_row_per: Literal["study", "video"] = "study"
        """What a row of the table is. `video`: the rows of a study follow each other; the first of
        them has its report."""
        sections: list[str] = field(default_factory=list)
        """Columns with the sections of the report, in this order; missing ones are skipped. Empty
        means the column `fields.report`."""
        headings: bool = False
        """Write "Findings:" and so on before each section."""
        target: Literal["auto", "report", "question", "none"] = "auto"
        """What the model has to answer: the report, the row's question, or nothing. `auto`: the
        question if the row has one, else the report."""
        vocabulary: Annotated[str, Choice(VOCABULARIES)] = DEFAULT_VOCABULARY
        """Vocabulary of findings or traits of the reports, such as `echo`."""
        split: StudySplitRule = field(default_factory=StudySplitRule)
        """Which studies belong to train, val, test and lockbox."""
        input_check: bool = False
        """Warn about images that do not look like chest radiographs; there are none here."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.include(super().__post_init__)
                unknown = self.embeddings.replace(STUDY_MARK, "")
                message = f"may contain {STUDY_MARK}, but no other mark, got {self.embeddings!r}"
                check.refuse("{" in unknown or "}" in unknown, "embeddings", message)
                message = "is for columns that `sections` lists"
                check.refuse(self.headings and not self.sections, "headings", message, "sections")

        def missing(self, where: str) -> list[Missing]:
            """List the folder, the table, or the file of all embeddings, if missing."""
            found = super().missing(where)
            path = Path(self.storage) / (self.images or ".") / self.embeddings
            is_shared = self.embeddings and STUDY_MARK not in self.embeddings
            if not found and is_shared and not path.is_file():
                remedy = "docs/echo_data.md describes the folder"
                found.append(Missing(f"{where}.embeddings", f"{path} does not exist", remedy))
            return found

    config: Config

    def records(self, clean: Callable[[str], str]) -> Iterator[tuple[str | None, Record | str]]:
        """Yield each study with its split; see `BaseBuilder.records`."""
        path, root = self._paths()
        reader = StudyRowReader(self.config, clean)
        finder = EmbeddingFinder(self.config, root)
        splits = self._near_duplicate_splits(path, reader)
        seen = SeenNames()
        table_rows = 0
        for number, group in enumerate(self._groups(path, reader)):
            table_rows += len(group.rows)
            try:
                self._check_new(group, seen, reader)
                record = self._build_record(group, reader, finder)
            except RecordError as error:
                study = f" (study {group.study})" if group.study else ""
                yield None, f"{path.name}, record {group.rows[0][0]}{study}: {error}"
                continue
            if record is None:  # no row has one of the `views`
                continue
            patient, listed = reader.split_fields(group.rows[0][1])
            if splits is not None:
                yield splits[number], record
            else:
                rule = self.config.split
                yield rule.assign_grouped(record.study_id, patient, listed), record
        finder.check_aligned(table_rows)

    def _paths(self) -> tuple[Path, Path]:
        """Return the paths of the table and of the folder with the embeddings."""
        storage = self.storage_folder("studies", "docs/echo_data.md describes its content")
        root = storage / (self.config.images or ".")
        if self.config.annotations is not None:
            return storage / self.config.annotations, root
        tables = sorted(p for suffix in SUFFIXES for p in storage.glob(f"*.{suffix}"))
        others = [p for p in tables if p.name != self.config.embeddings]
        chosen = others or tables  # a Parquet file may contain both
        if len(chosen) == 1:
            return chosen[0], root
        names = ", ".join(p.name for p in chosen) or "none"
        raise DataError(
            f"{storage}: expected one table, found {names}; set annotations to one of them"
        )

    def _groups(self, path: Path, reader: StudyRowReader) -> Iterator[_Group]:
        """Yield the rows of each sample, one by one from the file."""
        rule, sections = self.config.split, self.config.sections
        columns = {*reader.names.columns(), *sections, *([rule.field] if rule.field else [])}
        by_video = self.config.one_row_per == "video"

        def name(item: tuple[int, Row]) -> tuple[str, int]:
            try:
                return reader.study_id(item[1]), -1 if by_video else item[0]
            except RecordError:
                return "", item[0]

        rows = _checked(iter_records(path, columns), path, reader)
        for (study, _), group in groupby(rows, name):
            yield _Group(study, list(group))

    def _check_new(self, group: _Group, seen: SeenNames, reader: StudyRowReader) -> None:
        """Check that a study occurs once, unless its rows are questions."""
        _, row = group.rows[0]
        study = reader.study_id(row)
        is_again = seen.add(study) > 1
        asks = self.config.target in ("auto", "question") and row.get(reader.names.question)
        if is_again and self.config.one_row_per == "video":
            raise RecordError(
                "the rows of this study do not follow each other; sort the table by study"
            )
        if is_again and not asks:
            raise RecordError(
                "this study is in the table twice; for one row per video, set one_row_per: video"
            )

    def _build_record(
        self, group: _Group, reader: StudyRowReader, finder: EmbeddingFinder
    ) -> Record | None:
        """Build the record of a study, or None if none of its rows has one of the `views`."""
        _, row = group.rows[0]
        if len(group.rows) > 1:
            self._check_group([r for _, r in group.rows], reader)
        media, labels = finder.media(group.study, group.rows)
        if not media:
            return None
        return Record(
            sample_id=group.study,
            study_id=group.study,
            media=media,
            turns=reader.turns(row, len(media)),
            meta=reader.meta(row, labels),
        )

    def _check_group(self, rows: Sequence[Row], reader: StudyRowReader) -> None:
        """Check that the rows of the videos of a study agree."""
        if len({reader.split_fields(row) for row in rows}) > 1:
            raise RecordError("the rows of this study name different splits or patients")
        if any(row.get(reader.names.question) for row in rows):
            raise RecordError("one_row_per: video cannot be combined with questions")
        if len({reader.report(row) for row in rows} - {""}) > 1:
            raise RecordError("the rows of this study have different reports")

    def _near_duplicate_splits(self, path: Path, reader: StudyRowReader) -> StudySplits | None:
        """Return the split of each group of rows, if near copies of reports share a split."""
        rule = self.config.split
        if rule.near_duplicates is None:
            return None

        def study_rows() -> Iterator[StudyRow]:
            for group in self._groups(path, reader):
                _, row = group.rows[0]
                try:
                    report = reader.report(row)
                except RecordError:  # reported when records are built
                    report = ""
                yield StudyRow(group.study, *reader.split_fields(row), report)

        return StudySplits(rule, study_rows())


def _checked(
    rows: Iterator[tuple[int, Row]], path: Path, reader: StudyRowReader
) -> Iterator[tuple[int, Row]]:
    """Yield rows after checking that each is an object and that all named columns occur.

    The first row of a table in JSON may lack some, but not that of CSV or Parquet.
    """
    missing = reader.required_columns()
    has_header = path.suffix.lower() in (".csv", ".parquet")
    for index, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{path}, record {index}: expected an object, got {row!r:.40}")
        if missing:
            missing = [(setting, name) for setting, name in missing if name not in row]
            if missing and has_header:
                raise reader.missing_column(missing[0], row, path)
        yield index, row
    if missing:
        raise reader.missing_column(missing[0], {}, path)
