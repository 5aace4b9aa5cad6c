"""What a study can be asked, and the answers its coding gives.

Human codes such as ``Pulmonary Atelectasis/base/left`` are short and nearly all of their words
depend on the image: a Q-Former that starts at random learns from them what a whole report would
hide.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from xraygpt.common.keyed_random import keyed_random
from xraygpt.prompting.content import MARK, MediaPart, Part, Turn, parts_of
from xraygpt.vocabulary import Vocabulary

MARK_AFTER = re.compile(f" {MARK.pattern}")
LIST_QUESTION = "List the coded findings."
NORMAL = "normal"  # the code of a study with nothing to find
BOTH = "bilateral"
SIDES = frozenset({"left", "right", BOTH})
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
    return pair(f"{marks} {LIST_QUESTION}", f"{'; '.join(spoken(codes)) or 'none'}.")


def spoken(codes: Iterable[str]) -> list[str]:
    """Codes in words, in alphabetical order: ``["pulmonary atelectasis, base, left"]``."""
    words = {", ".join(p.strip() for p in c.lower().split("/")) for c in codes}
    return sorted(w for w in words if w and w not in NOT_CODED)


def sides(codes: Iterable[str]) -> dict[str, str]:
    """Headings coded with a side: ``{"pneumothorax": "left", "opacity": "left and right"}``.

    A finding coded as bilateral, or once on either side, is left and right.
    """
    found: dict[str, set[str]] = {}
    for code in codes:
        heading, *places = (part.strip().lower() for part in code.split("/"))
        for side in SIDES.intersection(places):
            found.setdefault(heading, set()).update(SIDES - {side} if side == BOTH else {side})
    return {heading: " and ".join(sorted(named)) for heading, named in found.items()}


def code_question(heading: str) -> str:
    """The yes/no question about a heading."""
    return f"Is this coded: {heading}?"


class CodeQuestions:
    """Yes/no questions about headings, drawn anew for each epoch, one turn each.

    Each is about something that is there in half of the draws, as long as anything is left: drawn
    evenly, nearly all answers would be no, whatever the image.

    Args:
        marks: ``<image>`` for each image.
        codes: The study's codes.
        vocabulary: Headings that may be asked about.
        count: Questions in one sample, each about another heading.
        with_sides: Answer "yes, left." where a side is coded, instead of "yes.".
        findings: Ask about the findings of this vocabulary, which `vocabulary` then names, instead
            of coded headings.
    """

    def __init__(
        self,
        marks: str,
        codes: Iterable[str],
        vocabulary: list[str],
        count: int = 1,
        *,
        with_sides: bool = False,
        findings: Vocabulary | None = None,
    ) -> None:
        codes = list(codes)
        self.present = findings.coded_findings(codes) if findings else headings(codes)
        self.ask = findings.question if findings else code_question
        self.marks, self.vocabulary = marks, vocabulary
        self.count, self.sides = count, sides(codes) if with_sides else {}

    def __call__(self, draw: str) -> list[Turn]:
        """The questions and answers of one draw."""
        turns: list[Turn] = []
        for i, heading in enumerate(self._asked(keyed_random(draw, "code"))):
            marks = f"{self.marks} " if i == 0 else ""
            answer = ["yes" if heading in self.present else "no", self.sides.get(heading, "")]
            said = ", ".join(filter(None, answer))
            turns += pair(f"{marks}{self.ask(heading)}", f"{said}.")
        return turns

    def _asked(self, rng: random.Random) -> list[str]:
        here = sorted(self.present.intersection(self.vocabulary))
        absent = [h for h in self.vocabulary if h not in self.present]
        rng.shuffle(here)
        rng.shuffle(absent)
        asked: list[str] = []
        while len(asked) < self.count and (here or absent):
            from_here = bool(here) and (rng.random() < 0.5 or not absent)
            asked.append(here.pop() if from_here else absent.pop())
        return asked or [NORMAL]


class PromptFindings:
    """A question with what is to be found told, anew for each epoch.

    So learns a model to write up what it, or somebody else, has found (`run.task.plan`). In a share
    of the draws nothing is told, so that it can do without; a tenth is left out of the others, for
    no list is complete.

    Args:
        turns: The question and the report.
        codes: The study's codes.
        alone: Share of draws with nothing told.
        where: ``image`` tells the codes beside the image, in an order that is drawn; ``question``
            tells the vocabulary's names of them in a question of its own.
        vocabulary: Of the names.
    """

    left_out = 0.1

    def __init__(
        self,
        turns: Sequence[Turn],
        codes: Iterable[str],
        alone: float,
        where: Literal["image", "question"] = "image",
        *,
        vocabulary: Vocabulary,
    ) -> None:
        codes = list(codes)
        self.turns, self.alone, self.where = list(turns), alone, where
        self.vocabulary = vocabulary
        self.words = spoken(codes) if where == "image" else sorted(vocabulary.coded_findings(codes))

    def __call__(self, draw: str) -> list[Turn]:
        """The turns of one draw."""
        rng = keyed_random(draw, "findings")
        if rng.random() < self.alone:
            return list(self.turns)
        words = [w for w in self.words if rng.random() >= self.left_out]
        if self.where == "question":
            marks = " ".join(MARK.findall(self.turns[0]["text"]))
            return [
                Turn(role="user", text=seen_question(marks, words, self.vocabulary)),
                *self.turns[1:],
            ]
        rng.shuffle(words)
        return with_findings(self.turns, words)


def seen_question(marks: str, names: Iterable[str], vocabulary: Vocabulary) -> str:
    """Ask for a report with what was found in the question."""
    words = [vocabulary.in_words(n) for n in sorted(set(names) - {vocabulary.no_finding})]
    return f"{marks} Write the report. Seen: {', '.join(words) or 'nothing abnormal'}."


def with_findings(turns: Sequence[Turn], words: Sequence[str]) -> list[Turn]:
    """Turns that tell findings beside the last image of the first question.

    Their text has them as ``<findings>…</findings>``, where a tokenizer learns them.
    """
    marks = list(MARK.finditer(turns[0]["text"])) if turns else []
    if not marks or not words:
        return list(turns)
    caption = "; ".join(w.replace("<", "") for w in words)
    text, last = turns[0]["text"], marks[-1]
    before, after = text[: last.start()], text[last.end() :]
    (part,) = parts_of(last[0])
    assert isinstance(part, MediaPart)
    return [
        Turn(
            role=turns[0]["role"],
            text=f"{before}{last[0]}<findings>{caption}</findings>{after}",
            content=[*parts_of(before), replace(part, caption=caption), *parts_of(after)],
        ),
        *turns[1:],
    ]


class CodesAsImage:
    """Turns in which a study's codes stand where its first image would, anew for each epoch.

    A language model that has read such text writes what stands at that place; the Q-Former, trained
    afterwards with this LLM frozen, then has only to say it. Order is drawn, a tenth of the codes
    is left out, and in a tenth of the draws all are: the list is neither complete nor needed.

    Args:
        turns: The turns, or what draws them.
        codes: The study's codes.
    """

    left_out = 0.1

    def __init__(
        self, turns: Sequence[Turn] | Callable[[str], Sequence[Turn]], codes: Iterable[str]
    ) -> None:
        self.turns, self.words = turns, [w.replace("<", "") for w in spoken(codes)]

    def __call__(self, draw: str) -> list[Turn]:
        """The turns of one draw."""
        rng = keyed_random(draw, "told")
        all_left_out = rng.random() < self.left_out
        words = [w for w in self.words if rng.random() >= self.left_out and not all_left_out]
        rng.shuffle(words)
        turns = self.turns(draw) if callable(self.turns) else self.turns
        caption = "; ".join(words)
        first = next((i for i, t in enumerate(turns) if MARK.search(t["text"])), None)
        told = [Turn(role=t["role"], text=t["text"]) for t in turns]
        if first is not None:
            before, _, after = MARK.split(told[first]["text"], maxsplit=1)
            after = MARK_AFTER.sub("", after)
            content: list[Part] = [before, MediaPart(caption=caption, shown=False), after]
            text = f"{before}<image>{caption}</image>{after}"
            told[first] = Turn(role=told[first]["role"], text=text, content=content)
        return told
