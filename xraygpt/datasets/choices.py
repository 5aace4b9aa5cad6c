"""Multiple-choice questions in tables: the options in columns of their own, or in one as a list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from xraygpt.datasets.media_paths import RecordError
from xraygpt.prompting.choices import LETTERS, write_options


def choice_question(
    question: str, answer: object, row: dict[str, Any], columns: Sequence[str]
) -> tuple[str, str]:
    """Return a question with its lettered options, and the letter of the answer.

    Args:
        question: The question.
        answer: The right option: its letter, its text, or its number, counted from 0.
        row: The row of the table.
        columns: The columns of the options, of which empty ones are left out; or one column with a
            list of them.

    Raises:
        RecordError: There are fewer than two options or too many, two are the same, or the answer
            is none of them.
    """
    options = _options(row, columns)
    if not 2 <= len(options) <= len(LETTERS):
        raise RecordError(
            f"a multiple-choice question needs 2 to {len(LETTERS)} options, but there are "
            f"{len(options)} ({', '.join(columns)})"
        )
    if len(set(options)) < len(options):
        raise RecordError(f"two options are the same: {options}")
    return write_options(question, options), LETTERS[_index(answer, options)]


def _options(row: dict[str, Any], columns: Sequence[str]) -> list[str]:
    cells: Any = [row.get(column) for column in columns]
    if len(columns) == 1:
        (cell,) = cells
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            try:
                cell = json.loads(cell)
            except json.JSONDecodeError as error:
                raise RecordError(f"{columns[0]}: {cell!r} is not a list: {error.msg}") from None
        if not isinstance(cell, list):
            raise RecordError(f"{columns[0]} must be a list of options, got {cell!r}")
        cells = cell
    return [str(cell).strip() for cell in cells if cell is not None and str(cell).strip()]


def _index(answer: object, options: Sequence[str]) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return answer
    text = str(answer).strip()
    if text in options:
        return options.index(text)
    letters = LETTERS[: len(options)]
    letter = text.rstrip(".)").upper()
    if len(letter) == 1 and letter in letters:
        return letters.index(letter)
    if text.isdecimal() and int(text) < len(options):
        return int(text)
    raise RecordError(f"the answer {text!r} is none of the options {list(options)}")
