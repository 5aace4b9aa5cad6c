"""Building of conversations from the rows of a table of studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from xraygpt.datasets.base import Record
from xraygpt.datasets.choices import choice_question
from xraygpt.datasets.media_paths import RecordError
from xraygpt.datasets.row_reader import RowReader
from xraygpt.datasets.table_fields import Row
from xraygpt.prompting.content import IMAGE, VIDEO, Turn
from xraygpt.vocabulary import questions

Turns = tuple[Turn, ...] | Callable[[str], Sequence[Turn]]


class TurnBuilder:
    """Builds the turns of a row for the configured target.

    Args:
        reader: Reads the other fields of the row.
        askable_names: Headings or findings that questions may be about.
        clean: Processes report text.
    """

    def __init__(
        self, reader: RowReader, askable_names: list[str], clean: Callable[[str], str]
    ) -> None:
        self.reader, self.config, self.names = reader, reader.config, reader.config.fields
        self.askable_names, self.clean = askable_names, clean

    def build(self, row: Row, image_count: int) -> Turns:
        """Build the turns of the row, or a function that samples them for an RNG key.

        Raises:
            RecordError: The row lacks the text that the target needs.
        """
        turns = self._target_turns(row, image_count)
        if not callable(turns) and self._has_prompt_findings(row):
            assert self.config.findings_in_prompt is not None
            turns = questions.PromptFindings(
                turns,
                self.reader.codes(row),
                self.config.findings_in_prompt,
                self.config.locations_in_prompt,
                vocabulary=self.reader.vocabulary,
            )
        if self.config.codes_as_image:
            return questions.CodesAsImage(turns, self.reader.codes(row))
        return turns

    def question_records(self, record: Record, row: Row) -> Iterator[Record]:
        """Yield one copy of the record for each yes/no question."""
        marks = image_marks(len(record.media))
        by_finding = self.config.ask == "findings"
        question = self.reader.vocabulary.question if by_finding else questions.code_question
        present = self.reader.askable_names(self.reader.codes(row))
        for name in self.askable_names:
            answer = "yes." if name in present else "no."
            turns = questions.qa_turns(f"{marks} {question(name)}", answer)
            yield replace(record, sample_id=f"{record.sample_id}/{name}", turns=turns)

    def _has_prompt_findings(self, row: Row) -> bool:
        """Return whether the row is a coded training study whose prompt may contain findings."""
        if self.config.findings_in_prompt is None or self.config.target not in ("auto", "report"):
            return False
        is_coded = questions.is_coded(self.reader.codes(row))
        return is_coded and self.reader.split_of_study(self.reader.study_id(row), row) == "train"

    def _target_turns(self, row: Row, image_count: int) -> Turns:
        target, marks = self._resolve_target(row), image_marks(image_count)
        if target == "turns":
            return parse_turns(row[self.names.turns], image_count)
        if target == "none":
            return (Turn(role="user", text=marks),)
        if target == "codes":
            return questions.code_list_turns(marks, self.reader.codes(row))
        if target == "every_code_question":
            return ()  # replaced by `question_records`
        if target == "code_questions":
            return self._code_questions(row, marks)
        if target == "question":
            return self._question_turns(row, marks)
        return questions.qa_turns(marks, self._report(row))

    def _resolve_target(self, row: Row) -> str:
        """Return the configured target, with `auto` resolved by what the row contains."""
        if self.config.target != "auto":
            return self.config.target
        if row.get(self.names.turns):
            return "turns"
        return "question" if row.get(self.names.question) else "report"

    def _code_questions(self, row: Row, marks: str) -> questions.CodeQuestions:
        return questions.CodeQuestions(
            marks,
            self.reader.codes(row),
            self.askable_names,
            self.config.questions,
            with_sides=self.config.question_sides,
            findings=self.reader.vocabulary if self.config.ask == "findings" else None,
        )

    def _question_turns(self, row: Row, marks: str) -> tuple[Turn, ...]:
        names = self.names
        question, answer = row.get(names.question), row.get(names.answer)
        if not isinstance(question, str) or answer in (None, ""):
            raise RecordError(
                f"the question ({names.question}) or the answer ({names.answer}) is missing"
            )
        if names.options:
            question, answer = choice_question(question, answer, row, names.options)
        return questions.qa_turns(f"{marks} {question.strip()}", self.clean(str(answer)))

    def _report(self, row: Row) -> str:
        sections = []
        for name in self.config.sections:
            text = row.get(name)
            if text is None or text == "":
                continue
            if not isinstance(text, str):
                raise RecordError(f"{name} must be a string, got {type(text).__name__}")
            text = self.clean(text)
            if text:
                sections.append(f"{name.capitalize()}: {text}" if self.config.headings else text)
        if not sections:
            raise RecordError(f"the report is empty (sections: {', '.join(self.config.sections)})")
        return " ".join(sections)


def image_marks(count: int) -> str:
    """Return the marks of `count` images, such as ``<image> <image>``."""
    return " ".join([IMAGE] * count)


def parse_turns(rows: Any, image_count: int) -> tuple[Turn, ...]:
    """Check a row's conversation; if its text has no marks, put them before the first question.

    Args:
        rows: A list of ``{role, text}``.
        image_count: Number of images in the row.

    Raises:
        RecordError: A turn is invalid, or there is no question or no answer.
    """
    turns = [_parse_turn(row) for row in rows] if isinstance(rows, list) else []
    roles = [turn["role"] for turn in turns]
    if "user" not in roles or "assistant" not in roles:
        raise RecordError("the turns are missing a question or an answer")
    if image_count and not any(IMAGE in t["text"] or VIDEO in t["text"] for t in turns):
        first = roles.index("user")
        text = f"{image_marks(image_count)} {turns[first]['text']}"
        turns[first] = Turn(role="user", text=text)
    return tuple(turns)


def _parse_turn(row: Any) -> Turn:
    role, text = (row.get("role"), row.get("text")) if isinstance(row, dict) else (None, None)
    if role not in ("system", "user", "assistant") or not isinstance(text, str):
        raise RecordError("each turn must be {role: system|user|assistant, text: some text}")
    return Turn(role=role, text=text)
