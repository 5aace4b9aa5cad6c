"""What a language model is asked for: the form of its answer, and when an answer may stand."""

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


class Summary(_Answer):
    """Findings and impression as one text."""

    summary: str


class Description(_Answer):
    """What an image shows, in line with its notes."""

    description: str


class QuestionAnswer(_Answer):
    """One turn."""

    question: str
    answer: str


class Conversation(_Answer):
    """Questions about a picture with their answers."""

    turns: list[QuestionAnswer]


@dataclass(frozen=True)
class Task:
    """One thing to ask of a language model.

    Attributes:
        name: As on the command line.
        answer: The form of the answer.
        sees_picture: Whether the picture goes along; then each picture is asked about, else each
            report once.
        problems: Source text and answer -> why it cannot stand; empty if it can. No report text.
        output_tokens: Most tokens of an answer; more is a length stop.
        guess: Tokens of an answer for each token of the source, and beside these.
    """

    name: str
    answer: type[BaseModel]
    sees_picture: bool
    problems: Callable[[str, Any], list[str]]
    output_tokens: int
    guess: tuple[float, int]

    def schema(self) -> dict[str, Any]:
        """JSON schema in the strict form of structured outputs: all fields, and no others."""
        return _schema(self.answer)

    def read(self, content: str) -> tuple[Any, list[str]]:
        """An answer's JSON as its pydantic model, or what is wrong with it (without its text)."""
        try:
            return self.answer.model_validate_json(content), []
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
            places = {f"{_place(e['loc'], self.schema())} {e['type']}" for e in found}
            return None, [f"not of the form that was asked for: {', '.join(sorted(places))}"]


@functools.cache
def _schema(answer: type[BaseModel]) -> dict[str, Any]:
    return answer.model_json_schema()


def _place(where: tuple[int | str, ...], schema: dict[str, Any]) -> str:
    """Place of a fault; a name the schema does not know may be report text and is not said."""
    known = json.dumps(schema)
    parts = [str(p) if isinstance(p, int) or f'"{p}"' in known else "(unknown)" for p in where]
    return ".".join(parts) or "the answer"


def _summary(source: str, answer: Summary) -> list[str]:
    return checks.problems(source, answer.summary)


def _description(source: str, answer: Description) -> list[str]:
    return checks.problems(source, answer.description, max_ratio=12.0)


def _conversation(source: str, answer: Conversation) -> list[str]:
    turns = answer.turns
    found = []
    if not 1 <= len(turns) <= 12:
        found.append(f"{len(turns)} turns, 1 to 12 are wanted")
    if any(not t.question.strip().endswith("?") for t in turns):
        found.append("a question without a question mark")
    if any(len(t.answer.split()) < 2 for t in turns):
        found.append("an answer that is no sentence")
    questions = [" ".join(t.question.lower().split()) for t in turns]
    if len(set(questions)) < len(questions):
        found.append("a question asked twice")
    asked = checks.problems(source, " ".join(t.question for t in turns), findings=False)
    said = checks.problems(source, " ".join(t.answer for t in turns), complete=False)
    return list(dict.fromkeys([*found, *asked, *said]))


TASKS = {
    "summarise": Task("summarise", Summary, False, _summary, 600, (1.0, 12)),
    "describe": Task("describe", Description, True, _description, 600, (1.0, 80)),
    "vqa": Task("vqa", Conversation, False, _conversation, 900, (1.5, 60)),
}
