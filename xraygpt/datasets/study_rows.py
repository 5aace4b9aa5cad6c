"""Reading of the rows of a table of studies whose media are embeddings: ids, text, labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xraygpt.common.errors import DataError
from xraygpt.common.registry import did_you_mean
from xraygpt.datasets.choices import choice_question
from xraygpt.datasets.media_paths import RecordError
from xraygpt.datasets.row_turns import image_marks
from xraygpt.datasets.table_fields import Row
from xraygpt.prompting.content import Turn
from xraygpt.vocabulary import questions

if TYPE_CHECKING:
    from xraygpt.datasets.studies import StudiesBuilder


@dataclass(kw_only=True)
class StudyFields:
    """Names of the columns; columns that the table does not have are ignored."""

    study: str = "study"
    """Id of the study."""
    patient: str = "patient"
    """Id of the patient; if there is one, splits are by patient instead of by study."""
    report: str = "report"
    """The report, unless `sections` are set."""
    question: str = "question"
    """Question of a question–answer pair."""
    answer: str = "answer"
    """Answer of a question–answer pair."""
    options: list[str] = field(default_factory=list)
    """Columns with the options of a multiple-choice question, or one column with a list of them.
    The answer is then an option's letter, text, or number, counted from 0."""
    file: str = "file"
    """File with the embeddings of the study, relative to the folder of the embeddings."""
    row: str = "row"
    """Row of the study in the file, counted from 0, or a list of rows."""
    start: str = "start"
    """First row of the study in the file, if its rows follow each other."""
    count: str = "count"
    """Number of rows from `start`."""
    view: str = "view"
    """View, such as A4C: one for the study, or a list with one for each row of its embeddings."""
    type: str = "type"
    """Type, such as colour, like `view`."""
    keep: list[str] = field(default_factory=lambda: ["labels", "source", "licence"])
    """Columns copied to `Sample.meta`."""

    def columns(self) -> set[str]:
        """Return the names of all columns."""
        values = [getattr(self, f.name) for f in fields(self) if f.name not in _LISTS]
        return {*values, *self.options, *self.keep}

    def renamed(self) -> list[tuple[str, str]]:
        """Return the settings that differ from their default, with the column's name."""
        default = type(self)()
        pairs = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name not in _LISTS]
        pairs += [("options", name) for name in self.options]
        return [(name, value) for name, value in pairs if value != getattr(default, name, None)]


_LISTS = ("keep", "options")  # settings with several columns


class StudyRowReader:
    """Reads rows as the settings describe them.

    Args:
        config: Settings of the table.
        clean: Processes report text.
    """

    def __init__(self, config: StudiesBuilder.Config, clean: Callable[[str], str]) -> None:
        self.config, self.names, self.clean = config, config.fields, clean

    def required_columns(self) -> list[tuple[str, str]]:
        """Return the settings and names of columns that must occur: study, and renamed ones."""
        return list(dict.fromkeys([("study", self.names.study), *self.names.renamed()]))

    def missing_column(self, column: tuple[str, str], row: Row, path: Path) -> DataError:
        """Return the error for a column that does not occur."""
        setting, name = column
        hint = did_you_mean(name, sorted(row))
        return DataError(f"{path}: no row has the column '{name}' (fields.{setting}){hint}")

    def study_id(self, row: Row) -> str:
        """Return the id of the row's study.

        Raises:
            RecordError: The cell is empty, or neither text nor a whole number.
        """
        study = row.get(self.names.study)
        if study in (None, ""):
            raise RecordError(f"the study id is missing (fields.study: {self.names.study})")
        if isinstance(study, bool) or not isinstance(study, str | int):
            raise RecordError(f"the study id must be text or a whole number, got {study!r}")
        return str(study)

    def split_fields(self, row: Row) -> tuple[str | None, str | None]:
        """Return the patient and the listed split of a row, if they are known."""
        rule = self.config.split
        split = row.get(rule.field) if rule.field else None
        patient = row.get(self.names.patient)
        return _text_or_none(patient), _text_or_none(split)

    def turns(self, row: Row, marks: int) -> tuple[Turn, ...]:
        """Build the turns of a study with a number of media.

        Raises:
            RecordError: The report, the question or the answer is empty.
        """
        target, images = self.config.target, image_marks(marks)
        if target == "none":
            return (Turn(role="user", text=images),)
        if target == "question" or (target == "auto" and row.get(self.names.question)):
            question, answer = row.get(self.names.question), row.get(self.names.answer)
            if not isinstance(question, str) or not question.strip() or answer in (None, ""):
                raise RecordError(
                    f"the question ({self.names.question}) or the answer ({self.names.answer}) is "
                    "empty"
                )
            if self.names.options:
                question, answer = choice_question(question, answer, row, self.names.options)
            return questions.qa_turns(f"{images} {question.strip()}", self.clean(str(answer)))
        report = self.clean(self.report(row))
        if not report.strip():
            raise RecordError(f"the report is empty ({', '.join(self._report_columns())})")
        return questions.qa_turns(images, report)

    def report(self, row: Row) -> str:
        """Return the report as it is in the table, or its sections joined; "" if empty.

        Raises:
            RecordError: A cell is not text.
        """
        texts = []
        for name in self._report_columns():
            text = row.get(name)
            if text is None or text == "":
                continue
            if not isinstance(text, str):
                raise RecordError(f"{name} must be text, got {type(text).__name__}")
            if text.strip():
                heading = f"{name.capitalize()}: " if self.config.headings else ""
                texts.append(f"{heading}{text.strip()}")
        return "\n".join(texts)

    def _report_columns(self) -> list[str]:
        return self.config.sections or [self.names.report]

    def meta(self, row: Row, labels: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Return the `Sample.meta` of a study with the view and type of each embedding row."""
        meta = {key: row[key] for key in self.names.keep if row.get(key) not in (None, "")}
        views, types = [view for view, _ in labels], [kind for _, kind in labels]
        return meta | {"views": views, "types": types}


def _text_or_none(cell: object) -> str | None:
    return None if cell in (None, "") else str(cell)


def parse_labels(cell: object, name: str) -> list[str]:
    """Parse the views or types in a cell: text, a list, or text with ``;`` between labels.

    Raises:
        RecordError: The cell contains something else.
    """
    if cell in (None, ""):
        return []
    if isinstance(cell, str):
        cell = _parse_json_list(cell, name) if cell.startswith("[") else cell.split(";")
    if not isinstance(cell, list) or not all(isinstance(c, str) or c is None for c in cell):
        raise RecordError(f"{name} must be text or a list of texts, got {cell!r}")
    return [(c or "").strip() for c in cell]


def parse_rows(cell: object, name: str) -> list[int]:
    """Parse the row numbers in a cell: a number, a list, or text with ``;`` between numbers.

    Raises:
        RecordError: The cell contains something else.
    """
    if isinstance(cell, str):
        cell = _parse_json_list(cell, name) if cell.startswith("[") else cell.split(";")
    values = cell if isinstance(cell, list) else [cell]
    rows = [_parse_int(value, name) for value in values]
    if not rows:
        raise RecordError(f"{name} is an empty list, so the study has no embeddings")
    return rows


def _parse_json_list(text: str, name: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(f"{name}: {text!r} is not a list: {error.msg}") from None


def _parse_int(value: object, name: str) -> int:
    try:
        if isinstance(value, str):
            return int(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise RecordError(f"{name} must be a whole number or a list of them, got {value!r}")
