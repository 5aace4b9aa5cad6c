"""What a language model writes for an instruction set: filtered reports, and conversations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from xraygpt.boxes.parsing import parse_boxes
from xraygpt.boxes.spelling import write_boxes
from xraygpt.common.keyed_random import keyed_int
from xraygpt.curation import checks
from xraygpt.curation.llm.tasks import Task
from xraygpt.curation.rules import COMPARISON, clean, resolve_masks
from xraygpt.instructions.records import ImageRecord, Located
from xraygpt.instructions.tasks import one_line
from xraygpt.instructions.wording import load_wording, upper_first
from xraygpt.media.geometry import Box
from xraygpt.vocabulary.chest_labeller import label

BOX_TOLERANCE = 0.011  # boxes are shown with two decimals
ROUNDS = (2, 10)
_SOURCE = re.compile(
    r"\b(?:the|this|your|provided|given) (?:report|notes?|labels?|list|text)\b|according to the",
    re.IGNORECASE,
)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


# Names and docstrings of these classes are part of the JSON schema that the model is sent.


class FilteredReport(_Answer):
    """What can be seen on this image."""

    text: str


class Round(_Answer):
    """A question with its answer."""

    question: str
    answer: str


class Rounds(_Answer):
    """A conversation about an image."""

    rounds: list[Round]


# ---- Checks --------------------------------------------------------------------------------------


def check_filtered(source: str, answer: FilteredReport) -> list[str]:
    """Return why a filtered report is rejected; an empty one is accepted if nothing is left.

    Args:
        source: The report.
        answer: The filtered report.
    """
    if answer.text.strip():
        return checks.rejection_reasons(source, answer.text, complete=False)
    kept = clean([source])
    return ["findings of this image are missing"] if _affirmed(kept.text) else []


def _affirmed(text: str) -> set[str]:
    return {n for n, status in label(text).items() if status == "positive" and n != "no_finding"}


def check_conversation(source: str, answer: Rounds) -> list[str]:
    """Return why a conversation is rejected.

    Args:
        source: JSON with ``report`` (text), ``labels`` (label by finding) and ``boxes`` (list).
        answer: The conversation.
    """
    facts = json.loads(source)
    rounds = answer.rounds
    reasons = []
    low, high = ROUNDS
    if not low <= len(rounds) <= high:
        reasons.append(f"{len(rounds)} rounds, {low} to {high} are wanted")
    if any(not r.question.strip() or not r.answer.strip() for r in rounds):
        reasons.append("an empty question or answer")
    text = " ".join(f"{r.question} {r.answer}" for r in rounds)
    if _SOURCE.search(text):
        reasons.append("it mentions the notes")
    if COMPARISON.search(text):
        reasons.append("it compares with an earlier study")
    reasons += _check_boxes(rounds, [tuple(box) for box in facts["boxes"]])
    answers = " ".join(r.answer for r in rounds)
    reasons += _check_labels(facts["report"], facts["labels"], answers)
    return list(dict.fromkeys(reasons))


def _check_boxes(rounds: list[Round], boxes: list[Box]) -> list[str]:
    reasons = []
    for each in rounds:
        if parse_boxes(each.question, "unit").found:
            reasons.append("a question contains a box")
        parsed = parse_boxes(each.answer, "unit")
        if parsed.dropped or parsed.repaired:
            reasons.append("a damaged box")
        for box in parsed.boxes:
            if not any(_close(box, other) for other in boxes):
                reasons.append("a box that is not in the notes")
    return reasons


def _close(first: Box, second: Box) -> bool:
    return all(abs(a - b) <= BOX_TOLERANCE for a, b in zip(first, second, strict=True))


def _check_labels(report: str, labels: dict[str, str], answers: str) -> list[str]:
    """Return findings that the answers affirm although report and labels deny them, or reverse."""
    said = label(answers)
    known = label(report) if report else {}
    reasons = []
    for name, status in said.items():
        if name == "no_finding":
            continue
        key = name.replace("_", " ").casefold()
        given = {known.get(name), *(v for k, v in labels.items() if k.casefold() == key)} - {None}
        if status == "positive" and given == {"negative"}:
            reasons.append(f"{key} is affirmed, but the notes deny it")
        if status == "negative" and given == {"positive"}:
            reasons.append(f"{key} is denied, but the notes affirm it")
        if status == "positive" and not given and report and not labels:
            reasons.append(f"{key} is not in the notes")
    return reasons


FILTER = Task("filter", FilteredReport, False, check_filtered, 800, (0.9, 10))
CONVERSE = Task("converse", Rounds, False, check_conversation, 2048, (1.0, 700))


# ---- What the model is shown ---------------------------------------------------------------------


def notes(record: ImageRecord, *, grounded: bool) -> tuple[dict[str, str], str]:
    """Return the notes about an image, by heading, and the facts that answers are checked against.

    Args:
        record: The image.
        grounded: Whether to show boxes.
    """
    wording = load_wording()
    sections: dict[str, str] = {}
    if record.report:
        sections["report"] = one_line(resolve_masks(record.report))
    for title, value in (("findings", "positive"), ("doubtful", "uncertain")):
        names = [wording.name(name).noun for name, v in record.labels.items() if v == value]
        if names:
            sections[title] = ", ".join(names)
    if record.image.view:
        sections["view"] = record.image.view
    if record.image.sex:
        sections["sex"] = {"F": "female", "M": "male"}[record.image.sex]
    places = located(record) if grounded else []
    if places:
        lines = [f"{one_line(p.text)}: {write_boxes(p.boxes, 'unit')}" for p in places]
        sections["places"] = "\n".join(lines)
    facts = {
        "report": sections.get("report", ""),
        "labels": dict(record.labels),
        "boxes": [list(box) for place in places for box in place.boxes],
    }
    return sections, json.dumps(facts)


def located(record: ImageRecord) -> list[Located]:
    """Return the phrases with boxes, or else the findings, or else the regions."""
    for group in (record.phrases, record.findings, record.regions):
        found = [each for each in group if each.boxes]
        if found:
            return found
    return []


# ---- By rules ------------------------------------------------------------------------------------


def filter_by_rules(report: str) -> tuple[str, list[str]]:
    """Return a report without what needs other studies, and why it is held back, if it is."""
    source = resolve_masks(one_line(report))
    text = clean([source]).text
    if not text:
        return "", []
    return text, checks.rejection_reasons(source, text, complete=False)


def converse_by_rules(
    record: ImageRecord, *, grounded: bool, seed: int = 0
) -> list[tuple[str, str]]:
    """Return a conversation that is true of the record; fewer than two rounds if little is known.

    Args:
        record: The image.
        grounded: Whether to ask for places. A grounded conversation needs boxes.
        seed: Seeds the choice of words and findings.
    """
    places = located(record) if grounded else []
    if grounded and not places:
        return []
    writer = _Writer(f"{seed}/{record.image.image_id}")
    turns = [*writer.view(record), *writer.presence(record), *writer.places(places)]
    if record.report and not COMPARISON.search(record.report):
        question = writer.draw("report", "questions")
        turns.append((question, one_line(resolve_masks(record.report))))
    return turns[: ROUNDS[1]]


class _Writer:
    """Fills templates, chosen by a hash."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.count = 0

    def draw(self, section: str, kind: str) -> str:
        options = _templates()[section][kind]
        self.count += 1
        chosen: str = options[keyed_int(self.key, section, kind, self.count) % len(options)]
        return chosen

    def view(self, record: ImageRecord) -> Iterator[tuple[str, str]]:
        if record.image.view in _templates()["view"]:
            yield self.draw("view", "questions"), self.draw("view", record.image.view)

    def presence(self, record: ImageRecord) -> Iterator[tuple[str, str]]:
        wording = load_wording()
        if record.healthy:
            yield self.draw("normal", "questions"), self.draw("normal", "answers")
        order = sorted(record.labels, key=lambda name: keyed_int(self.key, "order", name))
        chosen = [name for name in order if record.labels[name] == "positive"][:3]
        chosen += [name for name in order if record.labels[name] == "uncertain"][:1]
        chosen += [name for name in order if record.labels[name] == "negative"][:2]
        for name in sorted(chosen, key=lambda name: keyed_int(self.key, "mixed", name)):
            words = {"a_name": wording.name(name).stated(1), "name": wording.name(name).noun}
            answer = self.draw("presence", record.labels[name])
            yield self.draw("presence", "questions").format(**words), answer.format(**words)

    def places(self, places: list[Located]) -> Iterator[tuple[str, str]]:
        order = sorted(places, key=lambda place: keyed_int(self.key, "place", place.text))
        for place in order[:3]:
            phrase = one_line(place.text).rstrip(".").replace("_", " ")
            question = self.draw("place", "questions").format(phrase=upper_first(phrase))
            boxes = _enumerate_boxes(place.boxes)
            yield question, self.draw("place", "answers").format(boxes=boxes)


def _enumerate_boxes(boxes: tuple[Box, ...]) -> str:
    """Return boxes as fractions with four decimals, which items are read from."""
    texts = [f"[{', '.join(f'{value:.4f}' for value in box)}]" for box in boxes]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


@lru_cache(maxsize=1)
def _templates() -> dict[str, Any]:
    source = resources.files("xraygpt").joinpath("data/instructions_conversations.yaml")
    content: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
    return content
