"""What a study can be asked, and the answers its coding gives.

Human codes such as ``Pulmonary Atelectasis/base/left`` are short and nearly all of their words
depend on the image: a Q-Former that starts at random learns from them what a whole report would
hide.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Literal

from xraygpt.common.draws import keyed_random
from xraygpt.metrics.findings import FINDINGS, LASTING_FINDINGS, label, mentions
from xraygpt.metrics.mesh import findings_of
from xraygpt.processors.prompts import IMAGE, Turn, findings_mark

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


@lru_cache(maxsize=65536)
def codes_of_report(text: str) -> tuple[str, ...]:
    """What the rule-based labeller reads in a report, written as a person would code it.

    Args:
        text: Findings and impression.

    Returns:
        ``("pleural effusion/left",)`` with every side named, ``("normal",)`` if there is nothing to
        find, and nothing at all for a text that does not speak of a chest. Doubted findings count.
    """
    held = [name for name, status in label(text).items() if status != "negative"]
    placed: dict[str, set[str]] = {}
    for mention in mentions(text):
        past = mention.historical and mention.finding not in LASTING_FINDINGS
        if mention.status != "negative" and mention.laterality and not past:
            placed.setdefault(mention.finding, set()).add(mention.laterality)
    return tuple(
        "/".join(["normal" if name == "no_finding" else spaced, *sorted(placed.get(name, ()))])
        for name, spaced in ((name, name.replace("_", " ")) for name in held)
    )


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


def finding_question(name: str) -> str:
    """The yes/no question about a finding of the labeller, e.g. ``pleural_effusion``."""
    return f"Is there {name.replace('_', ' ')}?"


def coded_findings(codes: Iterable[str]) -> set[str]:
    """What codes mean in the labeller's names; what it has no name for is left out.

    Codes that it wrote itself (`codes_of_report`) are these names already.
    """
    own, rest = set(), []
    for code in codes:
        name = code.split("/")[0].strip().replace(" ", "_")
        if name in FINDINGS:  # the labeller writes small letters, people do not
            own.add(name)
        else:
            rest.append(code)
    if own:
        return own | findings_of(rest) & set(FINDINGS) - {"other_finding", "no_finding"}
    return set(findings_of(rest)) & set(FINDINGS) - {"other_finding"}


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
        findings: Ask about the labeller's findings, which the vocabulary then holds, instead of
            coded headings.
    """

    def __init__(
        self,
        marks: str,
        codes: Iterable[str],
        vocabulary: list[str],
        count: int = 1,
        *,
        with_sides: bool = False,
        findings: bool = False,
    ) -> None:
        codes = list(codes)
        self.present = coded_findings(codes) if findings else headings(codes)
        self.ask = finding_question if findings else code_question
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
        return asked or ["normal"]


class ToldFindings:
    """A question with what is to be found told, anew for each epoch.

    So learns a model to write up what it, or somebody else, has found (`run.task.plan`). In a share
    of the draws nothing is told, so that it can do without; a tenth is left out of the others, for
    no list is complete.

    Args:
        turns: The question and the report.
        codes: The study's codes.
        alone: Share of draws with nothing told.
        where: ``image`` tells the codes beside the image, in an order that is drawn; ``question``
            tells the labeller's names of them in a question of its own.
    """

    left_out = 0.1

    def __init__(
        self,
        turns: Sequence[Turn],
        codes: Iterable[str],
        alone: float,
        where: Literal["image", "question"] = "image",
    ) -> None:
        codes = list(codes)
        self.turns, self.alone, self.where = list(turns), alone, where
        self.words = spoken(codes) if where == "image" else sorted(coded_findings(codes))

    def __call__(self, draw: str) -> list[Turn]:
        """The turns of one draw."""
        rng = keyed_random(draw, "findings")
        if rng.random() < self.alone:
            return list(self.turns)
        words = [w for w in self.words if rng.random() >= self.left_out]
        if self.where == "question":
            marks = " ".join([IMAGE] * self.turns[0]["text"].count(IMAGE))
            return [Turn(role="user", text=seen_question(marks, words)), *self.turns[1:]]
        rng.shuffle(words)
        return with_findings(self.turns, words)


def seen_question(marks: str, names: Iterable[str]) -> str:
    """Ask for a report with what was found in the question."""
    words = [n.replace("_", " ") for n in sorted(set(names) - {"no_finding"})]
    return f"{marks} Write the report. Seen: {', '.join(words) or 'nothing abnormal'}."


def with_findings(turns: Sequence[Turn], words: Sequence[str]) -> list[Turn]:
    """Turns that tell findings beside the last image of the first question."""
    if not turns or IMAGE not in turns[0]["text"]:
        return list(turns)
    before, mark, after = turns[0]["text"].rpartition(IMAGE)
    text = f"{before}{mark}{findings_mark(words)}{after}"
    return [Turn(role=turns[0]["role"], text=text), *turns[1:]]


class ToldImages:
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
        told = f"<image>{'; '.join(words)}</image>"
        first = next((i for i, t in enumerate(turns) if IMAGE in t["text"]), None)
        said = [Turn(role=t["role"], text=t["text"]) for t in turns]
        if first is not None:
            before, _, after = said[first]["text"].partition(IMAGE)
            said[first]["text"] = before + told + after.replace(f" {IMAGE}", "")
        return said
