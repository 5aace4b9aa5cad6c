"""Questions about a study's codes, and the answers that the codes imply.

Human codes such as ``Pulmonary Atelectasis/base/left`` are short and depend almost entirely on the
image. From them, a randomly initialised Q-Former learns what it cannot learn from whole reports,
in which this signal is too sparse.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from xraygpt.common.keyed_random import keyed_random
from xraygpt.prompting.content import MARK_PATTERN, MediaPart, Part, Turn, parse_parts
from xraygpt.vocabulary import Vocabulary

SPACED_MARK_PATTERN = re.compile(f" {MARK_PATTERN.pattern}")
LIST_QUESTION = "List the coded findings."
_REPORT_WITH_FINDINGS = "Write the report. Seen:"
NORMAL = "normal"  # the code of a study without findings
BOTH = "bilateral"
SIDES = frozenset({"left", "right", BOTH})
NOT_CODED = frozenset({"no indexing"})  # not coded at all: neither normal nor abnormal
DROPOUT = 0.1  # probability of omitting a code, since no list of codes is complete


def qa_turns(question: str, answer: str) -> tuple[Turn, Turn]:
    """Build the turns for a question and its answer."""
    return Turn(role="user", text=question), Turn(role="assistant", text=answer)


def headings(codes: Iterable[str]) -> set[str]:
    """Return the codes' headings without place, side and degree: ``{"pulmonary atelectasis"}``."""
    names = {code.split("/")[0].strip().lower() for code in codes}
    return {name for name in names if name} - NOT_CODED


def is_coded(codes: Iterable[str]) -> bool:
    """Return whether there is any code; "normal" is a code, but "No Indexing" is not."""
    return bool(headings(codes))


def code_list_turns(marks: str, codes: Iterable[str]) -> tuple[Turn, Turn]:
    """Build a question about all codes; the answer lists them alphabetically, or is ``none``."""
    return qa_turns(f"{marks} {LIST_QUESTION}", f"{'; '.join(codes_in_words(codes)) or 'none'}.")


def codes_in_words(codes: Iterable[str]) -> list[str]:
    """Write codes as text, in alphabetical order: ``["pulmonary atelectasis, base, left"]``."""
    texts = {", ".join(p.strip() for p in c.lower().split("/")) for c in codes}
    return sorted(t for t in texts if t and t not in NOT_CODED)


def coded_sides(codes: Iterable[str]) -> dict[str, str]:
    """Return sides by heading: ``{"pneumothorax": "left", "opacity": "left and right"}``.

    A finding coded as bilateral, or once on each side, is "left and right".
    """
    sides: dict[str, set[str]] = {}
    for code in codes:
        heading, *qualifiers = (part.strip().lower() for part in code.split("/"))
        for side in SIDES.intersection(qualifiers):
            sides.setdefault(heading, set()).update(SIDES - {side} if side == BOTH else {side})
    return {heading: " and ".join(sorted(names)) for heading, names in sides.items()}


def code_question(heading: str) -> str:
    """Return the yes/no question about a heading."""
    return f"Is this coded: {heading}?"


def is_code_question(question: str) -> bool:
    """Return whether a question is about the human codes themselves."""
    return question == LIST_QUESTION or question.startswith(code_question("").removesuffix("?"))


def asks_for_report_with_findings(question: str) -> bool:
    """Return whether a question was written by `question_with_findings`."""
    return question.startswith(_REPORT_WITH_FINDINGS)


class CodeQuestions:
    """Yes/no questions about headings, one turn each, sampled anew for each epoch.

    As far as possible, half of the questions are about something that is present. With uniform
    sampling, nearly all answers would be no, whatever the image shows.

    Args:
        marks: One ``<image>`` for each image.
        codes: The study's codes.
        askable_names: Headings or findings that may be asked about.
        count: Number of questions in one sample, each about a different heading.
        with_sides: Whether to answer "yes, left." instead of "yes." if a side is coded.
        findings: Vocabulary whose findings are asked about instead of coded headings.
    """

    def __init__(
        self,
        marks: str,
        codes: Iterable[str],
        askable_names: list[str],
        count: int = 1,
        *,
        with_sides: bool = False,
        findings: Vocabulary | None = None,
    ) -> None:
        codes = list(codes)
        self.present = findings.coded_findings(codes) if findings else headings(codes)
        self.question = findings.question if findings else code_question
        self.marks, self.askable_names = marks, askable_names
        self.count, self.sides = count, coded_sides(codes) if with_sides else {}

    def __call__(self, rng_key: str) -> list[Turn]:
        """Return the questions and answers for one RNG key."""
        turns: list[Turn] = []
        for i, name in enumerate(self._sample_names(keyed_random(rng_key, "code"))):
            marks = f"{self.marks} " if i == 0 else ""
            answer = "yes" if name in self.present else "no"
            if side := self.sides.get(name, ""):
                answer += f", {side}"
            turns += qa_turns(f"{marks}{self.question(name)}", f"{answer}.")
        return turns

    def _sample_names(self, rng: random.Random) -> list[str]:
        present = sorted(self.present.intersection(self.askable_names))
        absent = [name for name in self.askable_names if name not in self.present]
        rng.shuffle(present)
        rng.shuffle(absent)
        names: list[str] = []
        while len(names) < self.count and (present or absent):
            use_present = bool(present) and (rng.random() < 0.5 or not absent)
            names.append(present.pop() if use_present else absent.pop())
        return names or [NORMAL]


class PromptFindings:
    """A report request with the study's findings in the prompt, sampled anew for each epoch.

    This teaches a model to write up findings, its own or given ones (`run.task.plan`). In some
    epochs the prompt contains no findings, so that the model also works without them; in the other
    epochs, each finding is omitted with probability `DROPOUT`.

    Args:
        turns: The question and the report.
        codes: The study's codes.
        without: Fraction of epochs without findings in the prompt.
        location: ``image`` puts the codes next to the image, in random order; ``question`` puts
            the names of the coded findings into the question.
        vocabulary: Vocabulary with the findings' names.
    """

    def __init__(
        self,
        turns: Sequence[Turn],
        codes: Iterable[str],
        without: float,
        location: Literal["image", "question"] = "image",
        *,
        vocabulary: Vocabulary,
    ) -> None:
        codes = list(codes)
        self.turns, self.without, self.location = list(turns), without, location
        self.vocabulary = vocabulary
        self.findings = (
            codes_in_words(codes)
            if location == "image"
            else sorted(vocabulary.coded_findings(codes))
        )

    def __call__(self, rng_key: str) -> list[Turn]:
        """Return the turns for one RNG key."""
        rng = keyed_random(rng_key, "findings")
        if rng.random() < self.without:
            return list(self.turns)
        findings = [f for f in self.findings if rng.random() >= DROPOUT]
        if self.location == "question":
            marks = " ".join(MARK_PATTERN.findall(self.turns[0]["text"]))
            question = question_with_findings(marks, findings, self.vocabulary)
            return [Turn(role="user", text=question), *self.turns[1:]]
        rng.shuffle(findings)
        return add_caption(self.turns, findings)


def question_with_findings(marks: str, names: Iterable[str], vocabulary: Vocabulary) -> str:
    """Return a report request that lists findings."""
    texts = [vocabulary.in_words(n) for n in sorted(set(names) - {vocabulary.no_finding})]
    return f"{marks} {_REPORT_WITH_FINDINGS} {', '.join(texts) or 'nothing abnormal'}."


def add_caption(turns: Sequence[Turn], findings: Sequence[str]) -> list[Turn]:
    """Add findings as a caption to the last image of the first turn.

    The turn's text contains the findings as ``<findings>…</findings>``, so that tokenizers learn
    their words.
    """
    marks = list(MARK_PATTERN.finditer(turns[0]["text"])) if turns else []
    if not marks or not findings:
        return list(turns)
    caption = "; ".join(f.replace("<", "") for f in findings)
    text, mark = turns[0]["text"], marks[-1]
    before, after = text[: mark.start()], text[mark.end() :]
    (part,) = parse_parts(mark[0])
    assert isinstance(part, MediaPart)
    return [
        Turn(
            role=turns[0]["role"],
            text=f"{before}{mark[0]}<findings>{caption}</findings>{after}",
            content=[*parse_parts(before), replace(part, caption=caption), *parse_parts(after)],
        ),
        *turns[1:],
    ]


class CodesAsImage:
    """Turns with a study's codes in place of its images, sampled anew for each epoch.

    A language model trained on such text writes reports from the content at that position. The
    Q-Former, which is trained afterwards with this LLM frozen, then only has to produce that
    content. Codes are in random order. Each code, and also the whole list, is omitted with
    probability `DROPOUT`, because the LLM must not depend on a complete list.

    Args:
        turns: The turns, or a function that samples them for an RNG key.
        codes: The study's codes.
    """

    def __init__(
        self, turns: Sequence[Turn] | Callable[[str], Sequence[Turn]], codes: Iterable[str]
    ) -> None:
        self.turns, self.codes = turns, [c.replace("<", "") for c in codes_in_words(codes)]

    def __call__(self, rng_key: str) -> list[Turn]:
        """Return the turns for one RNG key."""
        caption = self._sample_caption(rng_key)
        turns = self.turns(rng_key) if callable(self.turns) else self.turns
        first = next((i for i, t in enumerate(turns) if MARK_PATTERN.search(t["text"])), None)
        new_turns = [Turn(role=t["role"], text=t["text"]) for t in turns]
        if first is not None:
            before, _, after = MARK_PATTERN.split(turns[first]["text"], maxsplit=1)
            after = SPACED_MARK_PATTERN.sub("", after)
            content: list[Part] = [before, MediaPart(caption=caption, shown=False), after]
            text = f"{before}<image>{caption}</image>{after}"
            new_turns[first] = Turn(role=turns[first]["role"], text=text, content=content)
        return new_turns

    def _sample_caption(self, rng_key: str) -> str:
        rng = keyed_random(rng_key, "told")
        leave_out_all = rng.random() < DROPOUT
        codes = [c for c in self.codes if rng.random() >= DROPOUT and not leave_out_all]
        rng.shuffle(codes)
        return "; ".join(codes)
