"""What a language model is asked to write: the form of the answer and checks of its content."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from xraygpt.curation import checks


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


# Names and docstrings of these classes are part of the JSON schema: they are sent to the model and
# enter `row_key`. The reasons that checks return are sent in the repair prompt.


class Summary(_Answer):
    """Findings and impression as one text."""

    summary: str


class Description(_Answer):
    """What an image shows, in line with its notes."""

    description: str


class QuestionAnswer(_Answer):
    """A question with its answer."""

    model_config = ConfigDict(json_schema_extra={"description": "One turn."})

    question: str
    answer: str


class Conversation(_Answer):
    """Questions about a picture with their answers."""

    turns: list[QuestionAnswer]


@dataclass(frozen=True)
class Task:
    """A text to request from a language model.

    Attributes:
        name: Name on the command line.
        answer_type: Form of the answer.
        uses_picture: Whether the picture is sent. If so, there is one answer per picture, otherwise
            one per report.
        check: A function of the source text and the answer, which returns the reasons to reject
            the answer, without report text.
        output_tokens: Maximum length of an answer, in tokens.
        expected_length: Expected answer tokens per source token, and a constant to add to them.
    """

    name: str
    answer_type: type[BaseModel]
    uses_picture: bool
    check: Callable[[str, Any], list[str]]
    output_tokens: int
    expected_length: tuple[float, int]

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema in the strict form for structured outputs: these fields only."""
        return _schema(self.answer_type)

    def parse(self, content: str) -> tuple[Any, list[str]]:
        """Parse the JSON of an answer.

        Returns:
            The pydantic model and no reasons, or None and why the answer is invalid (without text).
        """
        try:
            return self.answer_type.model_validate_json(content), []
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False, include_context=False)
            places = {f"{_location(f['loc'], self.schema())} {f['type']}" for f in faults}
            return None, [f"not of the form that was asked for: {', '.join(sorted(places))}"]


@functools.cache
def _schema(answer_type: type[BaseModel]) -> dict[str, Any]:
    return answer_type.model_json_schema()


def _location(path: tuple[int | str, ...], schema: dict[str, Any]) -> str:
    """Format the location of a fault; a name that is not in the schema may be report text."""
    names = json.dumps(schema)
    parts = [str(p) if isinstance(p, int) or f'"{p}"' in names else "(unknown)" for p in path]
    return ".".join(parts) or "the answer"


def _check_summary(source: str, answer: Summary) -> list[str]:
    return checks.rejection_reasons(source, answer.summary)


def _check_description(source: str, answer: Description) -> list[str]:
    return checks.rejection_reasons(source, answer.description, max_ratio=12.0)


def _check_conversation(source: str, answer: Conversation) -> list[str]:
    turns = answer.turns
    reasons = []
    if not 1 <= len(turns) <= 12:
        reasons.append(f"{len(turns)} turns, 1 to 12 are wanted")
    if any(not t.question.strip().endswith("?") for t in turns):
        reasons.append("a question without a question mark")
    if any(len(t.answer.split()) < 2 for t in turns):
        reasons.append("an answer that is no sentence")
    questions = [" ".join(t.question.lower().split()) for t in turns]
    if len(set(questions)) < len(questions):
        reasons.append("a question asked twice")
    reasons += checks.rejection_reasons(source, " ".join(t.question for t in turns), findings=False)
    reasons += checks.rejection_reasons(source, " ".join(t.answer for t in turns), complete=False)
    return list(dict.fromkeys(reasons))


TASKS = {
    "summarise": Task("summarise", Summary, False, _check_summary, 600, (1.0, 12)),
    "describe": Task("describe", Description, True, _check_description, 600, (1.0, 80)),
    "vqa": Task("vqa", Conversation, False, _check_conversation, 900, (1.5, 60)),
}
