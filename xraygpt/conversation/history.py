"""Questions and answers of a conversation, and their conversion to turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xraygpt.answering.routes import Kind
from xraygpt.models.base import Bonus
from xraygpt.models.findings import PredictedFinding
from xraygpt.prompting.content import (
    IMAGE,
    VIDEO,
    MediaPart,
    Part,
    Turn,
    build_turn,
    plain_text,
)
from xraygpt.tasks.payload import Payload


@dataclass
class QuestionAnswer:
    """A question and its answer in a conversation."""

    question: str  # without media marks
    num_media: int = 0  # number of media attached to the question
    caption: str = ""  # text next to the last of these media
    bonus: Bonus | None = None  # scores candidates, in addition to their agreement
    kind: Kind = Kind.FREE  # which part of the model answers
    text_asked: str = ""  # the question as asked, if the model's own prompt replaces it
    findings: Sequence[PredictedFinding] = ()  # predicted from the images, for a report
    payload: Payload = field(default_factory=Payload)  # of the answer
    answer: str = ""
    answer_ids: list[int] = field(default_factory=list)  # with the end of turn
    first_in_context: int = 0  # older pairs were omitted from the prompt of this answer
    total_media: int = 0  # number of media in the conversation up to this question

    def turn(self, dropped_media: int = 0) -> Turn:
        """Return the question as a user turn.

        Args:
            dropped_media: Number of media of dropped older pairs, which precede this question's.
        """
        media = [MediaPart() for _ in range(dropped_media + self.num_media)]
        if self.num_media and self.caption:
            media[-1] = MediaPart(caption=self.caption)
        # One space after each medium, as in training.
        parts: list[Part] = [part for medium in media for part in (medium, " ")]
        if self.caption and not self.num_media:
            parts.append(f"{self.caption} ")
        if self.question:
            return build_turn("user", [*parts, self.question])
        return build_turn("user", parts[:-1])

    @property
    def shown_question(self) -> str:
        """The question as asked."""
        return self.text_asked or self.question

    @property
    def question_text(self) -> str:
        """The question with its caption, without media."""
        return plain_text(self.turn())


def build_turns(system: str, pairs: Sequence[QuestionAnswer], total_media: int) -> list[Turn]:
    """Build the turns for the renderer; media of dropped pairs precede the first question.

    Args:
        system: System prompt; may be empty.
        pairs: The pairs in the prompt.
        total_media: Number of media in the conversation, including those of dropped pairs.
    """
    turns = [Turn(role="system", text=system)] if system else []
    dropped_media = total_media - sum(pair.num_media for pair in pairs)
    for i, pair in enumerate(pairs):
        turns.append(pair.turn(dropped_media if i == 0 else 0))
        if pair.answer_ids:
            turns.append(Turn(role="assistant", text=pair.answer))
    return turns


def remove_marks(question: str) -> str:
    """Remove the media marks from a question and collapse its whitespace."""
    return " ".join(question.replace(IMAGE, " ").replace(VIDEO, " ").split())


def join_questions(pairs: Sequence[QuestionAnswer]) -> str:
    """Join all questions into one text, for a Q-Former that is conditioned on the question."""
    return " ".join(" ".join(pair.question_text for pair in pairs).split())
