"""The tasks of an instruction set: from an image's record to questions and answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeVar

from xraygpt.boxes.parsing import parse_boxes
from xraygpt.common.keyed_random import keyed_int
from xraygpt.instructions.records import ImageRecord, Located
from xraygpt.instructions.wording import (
    Wording,
    enumerate_words,
    is_plural,
    lower_first,
    upper_first,
)
from xraygpt.media.geometry import Box

TaskName = Literal[
    "report", "classification", "region_grounding", "abnormality_grounding", "phrase_grounding",
    "detection", "grounded_report", "conversation", "grounded_conversation", "stored",
]  # fmt: skip
MARK = "<boxes:{}>"
_SPACES = re.compile(r"\s+")
_T = TypeVar("_T", str, Located)


@dataclass(frozen=True)
class TaskOptions:
    """What a mixture entry may change about its task.

    Attributes:
        per_image: Number of regions, findings or phrases that are asked of one image, drawn by a
            hash; None asks all.
        negatives: Mean number of questions per image about something that is absent.
        uncertain: What an uncertain label counts as in classification; ``skip`` leaves the image
            out.
        pathologies: Findings that classification is about; empty: all that are labelled.
    """

    per_image: int | None = None
    negatives: float = 0.0
    uncertain: Literal["positive", "negative", "skip"] = "positive"
    pathologies: tuple[str, ...] = ()


class Draft(NamedTuple):
    """An item without ids.

    Attributes:
        part: Tells apart the items of one image: "" or the name of what is asked.
        turns: See `Item.turns`.
        boxes: See `Item.boxes`.
        labels: See `Item.labels`.
        pathologies: See `Item.pathologies`.
        facts: See `Item.facts`.
    """

    part: str
    turns: tuple[tuple[str, str], ...]
    boxes: tuple[Located, ...] = ()
    labels: tuple[str, ...] | None = None
    pathologies: tuple[str, ...] = ()
    facts: Mapping[str, str] = MappingProxyType({})


class Asked(NamedTuple):
    """What a task is given.

    Attributes:
        record: The image.
        options: Options of the mixture entry.
        wording: Templates and names.
        key: Seeds the choice of what is asked: seed, collection, image.
        repeat: Number of the repeat, which changes the wording only.
    """

    record: ImageRecord
    options: TaskOptions
    wording: Wording
    key: str
    repeat: int = 0

    def draw(self, task: str, kind: str, part: str = "") -> str:
        """Draw a template for a part of the image."""
        return self.wording.draw(task, kind, self.key, task, part, self.repeat)


def write_report(asked: Asked) -> Iterator[Draft]:
    """Ask for the report."""
    if asked.record.report:
        yield Draft("", ((asked.draw("report", "questions"), one_line(asked.record.report)),))


def classify(asked: Asked) -> Iterator[Draft]:
    """Ask for the positive labels; an image that nobody called healthy is not called healthy."""
    labels, wording = asked.record.labels, asked.wording
    wanted = asked.options.pathologies or tuple(sorted(labels))
    known = {name: labels[name] for name in wanted if name in labels}
    if "uncertain" in known.values() and asked.options.uncertain == "skip":
        return
    positive_values = {"positive"} | (
        {"uncertain"} if asked.options.uncertain == "positive" else set()
    )
    positive = tuple(name for name, value in known.items() if value in positive_values)
    # Without some findings, an image may still be abnormal in another way.
    all_negative = asked.record.complete and set(known.values()) == {"negative"}
    if positive:
        names = [wording.name(name).stated(1) for name in positive]
        answer = asked.draw("classification", "answers").format(list=enumerate_words(names))
    elif asked.record.healthy or all_negative:
        answer = asked.draw("classification", "none")
    else:
        return
    question = asked.draw("classification", "questions")
    yield Draft("", ((question, answer),), labels=positive, pathologies=tuple(known))


def ground_regions(asked: Asked) -> Iterator[Draft]:
    """Ask where anatomical regions are."""
    for region in _chosen(asked, asked.record.regions):
        name = lower_first(region.text)
        question = asked.draw("region_grounding", "questions", region.text).format(name=name)
        answer = asked.draw("region_grounding", "answers", region.text).format_map(
            {"name": name, "is": "are" if is_plural(name) else "is", "boxes": MARK.format(0)}
        )
        yield Draft(region.text, ((question, answer),), (region,))


def ground_findings(asked: Asked) -> Iterator[Draft]:
    """Ask where findings are, also those that are absent (`TaskOptions.negatives`)."""
    record = asked.record
    present = [each for each in record.findings if each.boxes]
    for finding in _chosen(asked, present):
        yield _ask_finding(asked, finding)
    known = {each.text for each in record.findings}
    absent = [name for name in record.searched if name not in known]
    for name in _draw_some(absent, asked, "negatives"):
        yield _ask_finding(asked, Located(name, ()))


def _ask_finding(asked: Asked, finding: Located) -> Draft:
    name, count = asked.wording.name(finding.text), len(finding.boxes)
    words = {
        "name": name.noun, "any_name": name.asked(), "a_name": name.stated(count),
        "A_name": upper_first(name.stated(count)), "is": name.verb(count), "boxes": MARK.format(0),
    }  # fmt: skip
    kind = "answers" if count else "none"
    question = asked.draw("abnormality_grounding", "questions", finding.text).format_map(words)
    answer = asked.draw("abnormality_grounding", kind, finding.text).format_map(words)
    return Draft(finding.text, ((question, answer),), (finding,))


def ground_phrases(asked: Asked) -> Iterator[Draft]:
    """Ask where sentences of the report are seen, also those without a place."""
    phrases = [phrase for phrase in asked.record.phrases if phrase.text.strip()]
    with_boxes = _chosen(asked, [each for each in phrases if each.boxes])
    without = _draw_some([each for each in phrases if not each.boxes], asked, "negatives")
    for phrase in [*with_boxes, *without]:
        text = one_line(phrase.text)
        question = asked.draw("phrase_grounding", "questions", text).format(phrase=text)
        kind = "answers" if phrase.boxes else "none"
        answer = asked.draw("phrase_grounding", kind, text).format(boxes=MARK.format(0))
        yield Draft(text, ((question, answer),), (phrase,))


def detect(asked: Asked) -> Iterator[Draft]:
    """Ask for all findings with their boxes; names that share their boxes are listed together.

    An image is left out if its readers did not look for all findings, or drew no box for one; and
    an image without findings, unless someone called it healthy.
    """
    record, wording = asked.record, asked.wording
    complete = record.complete and all(each.boxes for each in record.findings)
    if not (complete if record.findings else record.healthy):
        return
    question = asked.draw("detection", "questions")
    if not record.findings:
        yield Draft("", ((question, asked.draw("detection", "none")),), labels=())
        return
    groups: dict[tuple[Box, ...], list[str]] = {}
    for finding in record.findings:
        groups.setdefault(finding.boxes, []).append(finding.text)
    item = wording.template("detection", "item")
    located: list[Located] = []
    parts: list[str] = []
    for boxes, names in groups.items():
        stated = enumerate_words([wording.name(name).stated(len(boxes)) for name in names])
        parts.append(item.format(a_name=stated, boxes=MARK.format(len(located))))
        located.append(Located(enumerate_words(names), boxes))
    answer = asked.draw("detection", "answers").format(list="; ".join(parts))
    labels = tuple(each.text for each in record.findings)
    yield Draft("", ((question, answer),), tuple(located), labels=labels)


def report_with_boxes(asked: Asked) -> Iterator[Draft]:
    """Ask for the report as sentences, each followed by its boxes."""
    phrases = [phrase for phrase in asked.record.phrases if phrase.text.strip()]
    if not any(phrase.boxes for phrase in phrases):
        return
    located: list[Located] = []
    parts: list[str] = []
    for phrase in phrases:
        text = one_line(phrase.text)
        if not phrase.boxes:
            parts.append(text if text.endswith((".", "!", "?")) else f"{text}.")
            continue
        parts.append(f"{text.rstrip('.')} {MARK.format(len(located))}.")
        located.append(phrase)
    question = asked.draw("grounded_report", "questions")
    yield Draft("", ((question, " ".join(parts)),), tuple(located))


def _converse(kind: str) -> Callable[[Asked], Iterator[Draft]]:
    def converse(asked: Asked) -> Iterator[Draft]:
        """Repeat a stored conversation; its boxes become marks."""
        turns = asked.record.conversations.get(kind)
        if not turns:
            return
        located: list[Located] = []
        marked = tuple((_mark(q, located), _mark(a, located)) for q, a in turns)
        labels = tuple(n for n, value in asked.record.labels.items() if value == "positive")
        known, image = asked.record.labels, asked.record.image
        facts = {"report": one_line(asked.record.report), "view": image.view, "sex": image.sex}
        yield Draft(
            "", marked, tuple(located), labels if known else None, tuple(known) if known else (),
            {name: text for name, text in facts.items() if text},
        )  # fmt: skip

    return converse


def _mark(text: str, located: list[Located]) -> str:
    """Replace the boxes in a text, which are fractions, by marks."""
    parts, end = [], 0
    for found in parse_boxes(text, "unit").found:
        parts.append(text[end : found.start])
        parts.append(MARK.format(len(located)))
        located.append(Located(found.label, (found.box,)))
        end = found.end
    return "".join([*parts, text[end:]])


def _chosen(asked: Asked, options: Sequence[Located]) -> list[Located]:
    """Return `per_image` of the options, drawn by a hash, in their order; None returns all."""
    limit = asked.options.per_image
    if limit is None or len(options) <= limit:
        return list(options)
    ranks = sorted(options, key=lambda each: keyed_int(asked.key, "chosen", each.text))
    kept = {id(each) for each in ranks[:limit]}
    return [each for each in options if id(each) in kept]


def _draw_some(options: Sequence[_T], asked: Asked, name: str) -> list[_T]:
    """Return on average `negatives` of the options, drawn by a hash."""
    mean = asked.options.negatives
    if not mean or not options:
        return []
    fraction = (keyed_int(asked.key, name) % 1_000_003) / 1_000_003
    count = int(mean) + (fraction < mean % 1)
    ranks = sorted(
        options, key=lambda e: keyed_int(asked.key, name, e if isinstance(e, str) else e.text)
    )
    return ranks[:count]


def one_line(text: str) -> str:
    """Return a text on one line: line breaks become spaces."""
    return _SPACES.sub(" ", text).strip()


TASKS: dict[TaskName, Callable[[Asked], Iterator[Draft]]] = {
    "report": write_report,
    "classification": classify,
    "region_grounding": ground_regions,
    "abnormality_grounding": ground_findings,
    "phrase_grounding": ground_phrases,
    "detection": detect,
    "grounded_report": report_with_boxes,
    "conversation": _converse("standard"),
    "grounded_conversation": _converse("grounding"),
    "stored": _converse("stored"),
}
