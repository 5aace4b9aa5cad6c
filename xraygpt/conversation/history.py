"""The questions and answers of a conversation, and their form as turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xraygpt.models.base import Bonus
from xraygpt.prompting.content import (
    IMAGE,
    VIDEO,
    MediaPart,
    Part,
    Turn,
    build_turn,
    plain_text,
)


@dataclass
class QuestionAnswer:
    """A question and its answer."""

    question: str  # without marks of media
    num_media: int = 0  # media that come with the question
    caption: str = ""  # text next to the last of these media
    bonus: Bonus | None = None  # scores candidates, in addition to their agreement
    answer: str = ""
    answer_ids: list[int] = field(default_factory=list)  # with the end of turn
    first_in_context: int = 0  # older pairs were left out of the prompt of this answer
    total_media: int = 0  # media of the conversation up to this question

    def turn(self, dropped_media: int = 0) -> Turn:
        """The question as a user turn.

        Args:
            dropped_media: Media of older pairs that were dropped; they precede this question's.
        """
        parts: list[Part] = [MediaPart() for _ in range(dropped_media)]
        new: list[Part] = [MediaPart() for _ in range(self.num_media)]
        if new and self.caption:
            new[-1] = MediaPart(caption=self.caption)
        parts += new
        if self.caption and not new:
            parts.append(f" {self.caption}")
        if parts and self.question:
            parts.append(" ")
        return build_turn("user", [*parts, self.question] if self.question else parts)

    @property
    def question_text(self) -> str:
        """The question with its caption, without media."""
        return plain_text(self.turn())


def build_turns(system: str, pairs: Sequence[QuestionAnswer], total_media: int) -> list[Turn]:
    """Turns for the renderer; media of dropped pairs are placed before the first question.

    Args:
        system: System prompt; may be empty.
        pairs: The pairs that are in the prompt.
        total_media: Media of the conversation, including those of dropped pairs.
    """
    turns = [Turn(role="system", text=system)] if system else []
    dropped_media = total_media - sum(pair.num_media for pair in pairs)
    for i, pair in enumerate(pairs):
        turns.append(pair.turn(dropped_media if i == 0 else 0))
        if pair.answer_ids:
            turns.append(Turn(role="assistant", text=pair.answer))
    return turns


def remove_marks(question: str) -> str:
    """A question without marks of media, with single spaces."""
    return " ".join(question.replace(IMAGE, " ").replace(VIDEO, " ").split())


def join_questions(pairs: Sequence[QuestionAnswer]) -> str:
    """All questions in one text, for a Q-Former that is conditioned on the question."""
    return " ".join(" ".join(pair.question_text for pair in pairs).split())
