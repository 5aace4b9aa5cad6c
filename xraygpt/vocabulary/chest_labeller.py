"""Rule-based labels for English chest X-ray reports.

The labeller determines which findings a report mentions and whether it affirms, denies or doubts
them. It is deterministic, needs no model, and works in three steps: it searches the text for the
terms of each finding, then searches the sentences with a hit for cues (negation, doubt, history,
conjunctions such as "but"), and derives the status of each hit from the cues whose scope includes
the hit. The patterns are in ``xraygpt/data/finding_rules.yaml``.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from xraygpt.vocabulary.labeller_rules import RULES

Status = Literal["positive", "negative", "uncertain"]
Laterality = Literal["left", "right", "bilateral"]

#: The 14 findings of CheXpert, in their usual order.
CHEXPERT_FINDINGS: tuple[str, ...] = (
    "no_finding",
    "enlarged_cardiomediastinum",
    "cardiomegaly",
    "lung_lesion",
    "lung_opacity",
    "edema",
    "consolidation",
    "pneumonia",
    "atelectasis",
    "pneumothorax",
    "pleural_effusion",
    "pleural_other",
    "fracture",
    "support_devices",
)

#: Devices and traces of surgery; a chest with only these may still be normal.
DEVICE_FINDINGS: frozenset[str] = frozenset({"support_devices", "catheter", "surgical_hardware"})

#: Findings that are still present if mentioned as past, such as a granuloma.
LASTING_FINDINGS: frozenset[str] = RULES.lasting

#: Every finding that the labeller knows, ``no_finding`` first.
FINDINGS: tuple[str, ...] = ("no_finding", *RULES.terms)


@dataclass(frozen=True, slots=True)
class Mention:
    """One mention of a finding in a report.

    Attributes:
        finding: Name of the finding, for example ``pleural_effusion``.
        status: Whether the report affirms, denies or doubts the finding.
        laterality: The side named with the finding, or None.
        historical: True for "history of", "status post", "old" and the like.
        sentence: The sentence that contains the mention.
        span: Start and end of the term in the text.
    """

    finding: str
    status: Status
    laterality: Laterality | None
    historical: bool
    sentence: str
    span: tuple[int, int]


class _Cue(NamedTuple):
    start: int
    end: int
    kind: str


class _Hit(NamedTuple):
    """A term of a finding, at offsets in the text; `kind` is ``absent`` or ``present``."""

    start: int
    end: int
    finding: str
    kind: str


class _Context(NamedTuple):
    """A sentence, its offset in the text, and its cues at offsets in the sentence."""

    sentence: str
    offset: int
    cues: Sequence[_Cue]


_TO_SPACES = str.maketrans(
    {"-": " ", "\t": " ", "\r": " ", "\u2013": " ", "\u2014": " ", "\u00a0": " "}
)
_SOFT_BREAK = re.compile(r"\n(?! *(?:\n|[-*\u2022]|\d+[.)]))")
_SENTENCE_END = re.compile(r"[.!;](?=\s|$)|(?<=[a-z]{3})\.(?=[a-z])|\n|\? +(?=[a-z])")
_SIDES = re.compile(
    r"\b(?:(?P<compared>(?:left|right) (?:greater|more|worse|less|larger|smaller) than (?:the )?"
    r"(?:left|right))|(?P<bilateral>bilateral\w*|both|bi(?:basilar|apical|basal|basic)\w*"
    r"|(?:left|right)(?: sided)? (?:and|or) (?:the )?(?:left|right))"
    r"|(?P<left>left|lt)|(?P<right>right|rt))\b"
)
_PREPOSITION = re.compile(
    r"\b(?:in|on|at|of|within|over\w*|near|to|along|involving|the)(?: the)? $"
)
_CLAUSE_BREAK = re.compile(r"[,:;]|\b(?:but|except|however|although|and no|with|without)\b")
_MAX_GAP = 45  # characters between a finding and its side or its word of history
_MAX_CUES = 40  # cues considered on each side of a hit; keeps very long sentences fast


def _normalise(text: str) -> str:
    """Convert to lower case and unify spaces without changing any offset."""
    lower = text.lower()
    if len(lower) != len(text):
        lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    if "\n" in lower:
        lower = _SOFT_BREAK.sub(" ", lower.replace("\r\n", " \n"))
    return lower.translate(_TO_SPACES)


def _skipped_sections(text: str) -> list[tuple[int, int]]:
    """Return the spans of sections that do not describe the image, such as the indication."""
    spans: list[tuple[int, int]] = []
    start: int | None = None
    for heading in RULES.headings.finditer(text):
        if start is not None:
            spans.append((start, heading.start()))
        start = heading.start() if heading.lastgroup == "skip" else None
    if start is not None:
        spans.append((start, len(text)))
    return spans


def _find_hits(text: str) -> list[_Hit]:
    hits = [
        _Hit(match.start(), match.end(), finding, match.lastgroup or "present")
        for finding, pattern in RULES.terms.items()
        for match in pattern.finditer(text)
        if match.lastgroup != "void"
    ]
    if ":" in text:
        for start, end in _skipped_sections(text):
            hits = [hit for hit in hits if not start <= hit.start < end]
    return hits


def _find_cues(sentence: str) -> list[_Cue]:
    return [
        _Cue(match.start(), match.end(), match.lastgroup or "ignore")
        for match in RULES.cues.finditer(sentence)
    ]


def _active_before(cues: Sequence[_Cue]) -> set[str]:
    """Return the kinds of those cues before a hit whose forward scope includes the hit."""
    active: set[str] = set()
    for cue in cues:
        if cue.kind in {"stop", "colon"}:
            active.clear()
        elif cue.kind == "close":
            active.discard("deny_before")
        elif cue.kind.endswith("_before"):
            active.add(cue.kind)
        elif cue.kind == "doubt_around":
            active.add("doubt_before")
    return active


def _active_after(cues: Sequence[_Cue], end: int, sentence: str) -> set[str]:
    """Return the kinds of those cues after a hit whose backward scope includes its `end`."""
    active: set[str] = set()
    for cue in cues:
        if cue.kind == "stop":
            break
        if cue.kind.endswith("_after"):
            active.add(cue.kind)
        elif cue.kind == "skip_around":
            active.add("skip_after")
        elif cue.kind in {"doubt_around", "doubt_mark"}:
            gap = sentence[end : cue.start]
            if len(gap) <= _MAX_GAP // 2 and "," not in gap:
                active.add("doubt_after")
    return active


def _status(hit: _Hit, context: _Context) -> Status | None:
    """Return the status of a hit, or None if it is not a statement about the patient."""
    if hit.kind == "absent":
        return "negative"
    sentence, offset, cues = context
    end = hit.end - offset
    middle = bisect_left(cues, end, key=lambda cue: cue.start)
    active = _active_before(cues[max(0, middle - _MAX_CUES) : middle])
    active |= _active_after(cues[middle : middle + _MAX_CUES], end, sentence)
    if active & {"skip_before", "skip_after"}:
        return None
    if active & {"deny_before", "deny_after"}:
        return "negative"
    return "uncertain" if active else "positive"


def _is_historical(hit: _Hit, context: _Context) -> bool:
    """Return whether a word of history belongs to the hit."""
    sentence, offset, cues = context
    start, end = hit.start - offset, hit.end - offset
    for cue in cues:
        if cue.kind != "past" or not start - 2 * _MAX_GAP < cue.end < end + 2 * _MAX_GAP:
            continue
        if cue.start < end:
            gap = sentence[cue.end : start]
            if len(gap) <= _MAX_GAP and not _CLAUSE_BREAK.search(gap):
                return True
        elif not sentence[end : cue.start].strip(" ,") and sentence[cue.end : cue.end + 1] in ".,;":
            return True
    return False


def _side_distance(side: re.Match[str], start: int, end: int, last: int) -> int | None:
    """Return a side's distance from the hit at ``start:end``; None if it is another finding's side.

    A side after the hit without a preposition describes the next finding if there is one, that is,
    if the last hit in the sentence begins after the side.
    """
    distance = max(side.start() - end, start - side.end(), 0)
    if distance > 2 * _MAX_GAP:
        return None
    if side.start() < end:
        return None if _CLAUSE_BREAK.search(side.string, side.end(), start) else distance
    if side.lastgroup == "compared":
        return distance
    has_preposition = _PREPOSITION.search(side.string[: side.start()][-20:])
    if _CLAUSE_BREAK.search(side.string, end, side.start()) or (
        not has_preposition and last >= side.end()
    ):
        return None
    return distance


def _laterality(hit: _Hit, context: _Context, last: int) -> Laterality | None:
    """Return the side nearest to a hit; `last` is the start of the last hit in the sentence."""
    if hit.finding in RULES.midline:
        return None
    sentence, offset, _ = context
    nearest: tuple[int, str] | None = None
    for side in _SIDES.finditer(sentence):
        distance = _side_distance(side, hit.start - offset, hit.end - offset, last - offset)
        if distance is not None and (nearest is None or distance < nearest[0]):
            nearest = (distance, side.lastgroup or "")
    if nearest is None:
        return None
    return "left" if nearest[1] == "left" else "right" if nearest[1] == "right" else "bilateral"


def _scan(text: str) -> Iterator[tuple[_Hit, Status, _Context]]:
    """Yield each hit with its status and the sentence around it."""
    starts = [0, *(end.end() for end in _SENTENCE_END.finditer(text))]
    contexts: dict[int, _Context] = {}
    for hit in _find_hits(text):
        index = bisect_right(starts, hit.start) - 1
        if index not in contexts:
            stop = starts[index + 1] if index + 1 < len(starts) else len(text)
            sentence = text[starts[index] : stop]
            contexts[index] = _Context(sentence, starts[index], _find_cues(sentence))
        status = _status(hit, contexts[index])
        if status is not None:
            yield hit, status, contexts[index]


def mentions(text: str) -> list[Mention]:
    """List every mention of a finding.

    Args:
        text: A report or a sentence.

    Returns:
        The mentions in the order in which the text contains them.
    """
    scanned = list(_scan(_normalise(text)))
    last: dict[int, int] = {}  # offset of a sentence -> start of its last hit
    for hit, _, context in scanned:
        last[context.offset] = max(hit.start, last.get(context.offset, 0))
    result = [
        Mention(
            finding=hit.finding,
            status=status,
            laterality=_laterality(hit, context, last[context.offset]),
            historical=_is_historical(hit, context),
            sentence=text[context.offset : context.offset + len(context.sentence)].strip(),
            span=(hit.start, hit.end),
        )
        for hit, status, context in scanned
    ]
    return sorted(result, key=lambda mention: (mention.span, FINDINGS.index(mention.finding)))


_RANK: Mapping[str, int] = MappingProxyType({"negative": 0, "uncertain": 1, "positive": 2})


def label(text: str) -> dict[str, Status]:
    """Label a report.

    A finding is positive if any mention affirms it, otherwise uncertain if any mention doubts it,
    and otherwise negative. Mentions of the past count only for findings that last (a healed
    fracture, a granuloma), not for transient ones (a pneumonia).

    Args:
        text: A report or a sentence.

    Returns:
        The status by finding; findings that are not mentioned have no key. ``no_finding`` is
        positive if the text is about the chest and nothing but devices is positive or uncertain.
    """
    text = _normalise(text)
    labels = _strongest_statuses(text)
    abnormal = any(
        status != "negative" and finding not in DEVICE_FINDINGS
        for finding, status in labels.items()
    )
    if not abnormal and (labels or RULES.normality.search(text)):
        labels["no_finding"] = "positive"
    return {finding: labels[finding] for finding in FINDINGS if finding in labels}


def _strongest_statuses(text: str) -> dict[str, Status]:
    """Return each finding's status in a normalised text, ignoring past transient findings."""
    labels: dict[str, Status] = {}
    for hit, status, context in _scan(text):
        if hit.finding in labels and _RANK[status] <= _RANK[labels[hit.finding]]:
            continue
        may_be_past = status != "negative" and hit.finding not in RULES.lasting
        if may_be_past and _is_historical(hit, context):
            continue
        labels[hit.finding] = status
    return labels
