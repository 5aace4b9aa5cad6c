"""What a study can be asked, and the answers its coding gives.

Human codes such as ``Pulmonary Atelectasis/base/left`` are short and nearly all of their words
depend on the image: a Q-Former that starts at random learns from them what a whole report would
hide.
"""

from __future__ import annotations

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
    """A yes/no question about one heading, drawn anew for each epoch.

    Half of the draws ask about something that is there, if anything is, so that neither answer can
    be guessed from the question's frequency alone.

    Args:
        marks: ``<image>`` for each image.
        codes: The study's codes.
        vocabulary: Headings that may be asked about.
    """

    def __init__(self, marks: str, codes: Iterable[str], vocabulary: list[str]) -> None:
        self.marks, self.present, self.vocabulary = marks, headings(codes), vocabulary

    def __call__(self, draw: str) -> list[Turn]:
        """The question and answer of one draw."""
        rng = keyed_random(draw, "code")
        here = sorted(self.present.intersection(self.vocabulary))
        absent = [h for h in self.vocabulary if h not in self.present]
        if here and (rng.random() < 0.5 or not absent):
            heading, answer = rng.choice(here), "yes."
        else:
            heading, answer = (rng.choice(absent), "no.") if absent else ("normal", "yes.")
        return list(pair(f"{self.marks} Is this coded: {heading}?", answer))
