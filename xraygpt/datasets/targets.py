"""What a study can be asked, and the answers its coding gives.

Human codes such as ``Pulmonary Atelectasis/base/left`` are short and nearly all of their words
depend on the image: a Q-Former that starts at random learns from them what a whole report would
hide.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from xraygpt.common.draws import keyed_random
from xraygpt.processors.prompts import Turn

LIST_QUESTION = "List the coded findings."
NOT_CODED = frozenset({"no indexing"})  # the indexers gave no code: neither normal nor abnormal


def pair(question: str, answer: str) -> tuple[Turn, Turn]:
    """One question and its answer."""
    return Turn(role="user", text=question), Turn(role="assistant", text=answer)


def headings(codes: Iterable[str]) -> set[str]:
    """What is coded, without place, side and degree: ``{"pulmonary atelectasis"}``."""
    found = {code.split("/")[0].strip().lower() for code in codes}
    return {h for h in found if h} - NOT_CODED


def is_coded(codes: Iterable[str]) -> bool:
    """Whether the indexers gave any code; "normal" is one, "No Indexing" is none."""
    return bool(headings(codes))


def code_list(marks: str, codes: Iterable[str]) -> tuple[Turn, Turn]:
    """Ask for all codes; they are answered in alphabetical order, ``none`` if nothing was coded."""
    spoken = sorted({", ".join(p.strip() for p in c.lower().split("/")) for c in codes})
    answer = "; ".join(c for c in spoken if c and c not in NOT_CODED) or "none"
    return pair(f"{marks} {LIST_QUESTION}", f"{answer}.")


class CodeQuestions:
    """Yes/no questions about headings, drawn anew for each epoch, one turn each.

    A single question is about something that is there in half of the draws, if anything is. Several
    are drawn evenly from the vocabulary, so that answers have the corpus's own frequencies. They
    tell a Q-Former from scratch far more about an image than one does, for a few tokens each.

    Args:
        marks: ``<image>`` for each image.
        codes: The study's codes.
        vocabulary: Headings that may be asked about.
        count: Questions in one sample.
    """

    def __init__(
        self, marks: str, codes: Iterable[str], vocabulary: list[str], count: int = 1
    ) -> None:
        self.marks, self.present, self.vocabulary = marks, headings(codes), vocabulary
        self.count = count

    def __call__(self, draw: str) -> list[Turn]:
        """The questions and answers of one draw."""
        rng = keyed_random(draw, "code")
        if self.count == 1:
            asked = [self._balanced(rng)]
        else:
            asked = rng.sample(self.vocabulary, min(self.count, len(self.vocabulary)))
        turns: list[Turn] = []
        for i, heading in enumerate(asked):
            marks = f"{self.marks} " if i == 0 else ""
            answer = "yes." if heading in self.present else "no."
            turns += pair(f"{marks}Is this coded: {heading}?", answer)
        return turns

    def _balanced(self, rng: random.Random) -> str:
        here = sorted(self.present.intersection(self.vocabulary))
        absent = [h for h in self.vocabulary if h not in self.present]
        if here and (rng.random() < 0.5 or not absent):
            return rng.choice(here)
        return rng.choice(absent or ["normal"])
