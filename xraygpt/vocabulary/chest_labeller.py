"""Rule-based labels of English chest X-ray reports.

The labeller reads a report and says which findings it names, and whether it affirms, denies or
doubts them. It is deterministic, needs no model, and works in three steps: the vocabulary of each
finding is looked up in the text, cues (negation, doubt, history, turns such as "but") are looked up
in the sentences that hold a hit, and each hit takes its status from the cues whose scope covers
it. The vocabulary lives in ``xraygpt/data/finding_rules.yaml``.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import yaml

Status = Literal["positive", "negative", "uncertain"]
Laterality = Literal["left", "right", "bilateral"]
UncertainPolicy = Literal["positive", "negative", "ignore"]

#: The 14 findings of CheXpert, in their customary order.
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

#: Devices and traces of surgery: present or not, the chest may still be normal.
DEVICE_FINDINGS: frozenset[str] = frozenset({"support_devices", "catheter", "surgical_hardware"})


@dataclass(frozen=True, slots=True)
class Mention:
    """One place in a report that speaks of a finding.

    Attributes:
        finding: Name of the finding, for example ``pleural_effusion``.
        status: Affirmed, denied or doubted.
        laterality: Side named with it, or None.
        historical: True for "history of", "status post", "old" and the like.
        sentence: The sentence it stands in.
        span: Start and end of the words in the text.
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
    start: int
    end: int
    finding: str
    base: str


@dataclass(frozen=True, slots=True)
class _Rules:
    """The compiled vocabulary."""

    terms: Mapping[str, re.Pattern[str]]
    lasting: frozenset[str]
    midline: frozenset[str]
    cues: re.Pattern[str]
    headings: re.Pattern[str]
    normality: re.Pattern[str]


_MACRO = re.compile(r"<(\w+)>")
_BARE_SPACE = re.compile(r" (?![?*+{])")


def _expand(pattern: str, macros: Mapping[str, str]) -> str:
    """Insert the macros and let one space stand for any run of spaces."""
    for _ in range(5):
        grown = _MACRO.sub(lambda found: macros[found[1]], pattern)
        if grown == pattern:
            break
        pattern = grown
    return _BARE_SPACE.sub(" +", pattern)


def _group(name: str, patterns: Sequence[str], macros: Mapping[str, str]) -> str:
    """Join patterns into one named group."""
    return f"(?P<{name}>{'|'.join(_expand(pattern, macros) for pattern in patterns)})"


def _alternation(groups: Iterable[str]) -> re.Pattern[str]:
    """Compile groups that begin and end at a word boundary."""
    return re.compile(rf"(?<![a-z0-9])(?:{'|'.join(groups)})(?![a-z0-9])")


def _load(raw: Mapping[str, Any]) -> _Rules:
    """Compile the vocabulary read from YAML."""
    macros: Mapping[str, str] = raw["macros"]
    terms: dict[str, re.Pattern[str]] = {}
    for finding, entry in raw["findings"].items():
        merged = {kind: list(entry.get(kind, ())) for kind in ("void", "absent", "present")}
        for other in entry.get("include", ()):
            for kind, patterns in merged.items():
                patterns.extend(raw["findings"][other].get(kind, ()))
        terms[finding] = _alternation(
            _group(kind, patterns, macros) for kind, patterns in merged.items() if patterns
        )
    heads = raw["headings"]
    cues = "|".join(_group(kind, patterns, macros) for kind, patterns in raw["cues"].items())
    return _Rules(
        terms=MappingProxyType(terms),
        lasting=frozenset(name for name, entry in raw["findings"].items() if entry.get("lasting")),
        midline=frozenset(name for name, entry in raw["findings"].items() if entry.get("midline")),
        cues=re.compile(
            rf"(?<![a-z0-9])(?:{cues})(?![a-z0-9])|(?P<doubt_mark>\?)|(?P<colon>:)",
        ),
        headings=re.compile(
            r"(?:^|(?<=\n)|(?<=[.] )) *(?:\d+[.)] *)?"
            rf"(?:(?P<read>{heads['read']})|(?P<skip>{heads['skip']}))[a-z ]{{0,12}}:"
        ),
        normality=_alternation(_expand(pattern, macros) for pattern in raw["normality"]),
    )


_RULES = _load(
    yaml.safe_load(
        resources.files("xraygpt").joinpath("data/finding_rules.yaml").read_text("utf-8")
    )
)
LASTING_FINDINGS = _RULES.lasting  # those that an old mention still affirms, as a granuloma

#: Every finding that the labeller can name, ``no_finding`` first.
FINDINGS: tuple[str, ...] = ("no_finding", *_RULES.terms)

_LOOSE = str.maketrans(
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
_TURN = re.compile(r"[,:;]|\b(?:but|except|however|although|and no|with|without)\b")
_NEAR = 45  # characters over which a word of history or a side still belongs to a finding
_CUES_AROUND = 40  # cues looked at on each side of a hit: keeps endless sentences cheap


def _normalise(text: str) -> str:
    """Lower-case the text and unify its blanks, keeping every offset."""
    low = text.lower()
    if len(low) != len(text):
        low = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    if "\n" in low:
        low = _SOFT_BREAK.sub(" ", low.replace("\r\n", " \n"))
    return low.translate(_LOOSE)


def _skipped(text: str) -> list[tuple[int, int]]:
    """Find the sections that do not describe the image, such as the indication."""
    spans: list[tuple[int, int]] = []
    open_at: int | None = None
    for head in _RULES.headings.finditer(text):
        if open_at is not None:
            spans.append((open_at, head.start()))
        open_at = head.start() if head.lastgroup == "skip" else None
    if open_at is not None:
        spans.append((open_at, len(text)))
    return spans


def _hits(text: str) -> list[_Hit]:
    """Look up the vocabulary of every finding."""
    hits = [
        _Hit(found.start(), found.end(), finding, found.lastgroup or "present")
        for finding, pattern in _RULES.terms.items()
        for found in pattern.finditer(text)
        if found.lastgroup != "void"
    ]
    if ":" in text:
        for start, end in _skipped(text):
            hits = [hit for hit in hits if not start <= hit.start < end]
    return hits


def _cues(sentence: str) -> list[_Cue]:
    """Look up the cues of one sentence, in order."""
    return [
        _Cue(found.start(), found.end(), found.lastgroup or "ignore")
        for found in _RULES.cues.finditer(sentence)
    ]


def _before(cues: Sequence[_Cue]) -> set[str]:
    """Name the cues before a hit whose forward scope reaches it."""
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


def _after(cues: Sequence[_Cue], end: int, sentence: str) -> set[str]:
    """Name the cues after a hit that ends at ``end`` whose backward scope reaches it."""
    active: set[str] = set()
    for cue in cues:
        if cue.kind == "stop":
            break
        if cue.kind.endswith("_after"):
            active.add(cue.kind)
        elif cue.kind == "skip_around":
            active.add("skip_after")
        elif cue.kind in {"doubt_around", "doubt_mark"}:
            between = sentence[end : cue.start]
            if len(between) <= _NEAR // 2 and "," not in between:
                active.add("doubt_after")
    return active


def _status(hit: _Hit, cues: Sequence[_Cue], sentence: str, offset: int) -> Status | None:
    """Weigh the cues around a hit; None where the hit is no statement about the patient."""
    if hit.base == "absent":
        return "negative"
    end = hit.end - offset
    middle = bisect_left(cues, end, key=lambda cue: cue.start)
    active = _before(cues[max(0, middle - _CUES_AROUND) : middle])
    active |= _after(cues[middle : middle + _CUES_AROUND], end, sentence)
    if active & {"skip_before", "skip_after"}:
        return None
    if active & {"deny_before", "deny_after"}:
        return "negative"
    return "uncertain" if active else "positive"


def _historical(hit: _Hit, cues: Sequence[_Cue], sentence: str, offset: int) -> bool:
    """Tell whether a word of history belongs to the hit."""
    start, end = hit.start - offset, hit.end - offset
    for cue in cues:
        if cue.kind != "past" or not start - 2 * _NEAR < cue.end < end + 2 * _NEAR:
            continue
        if cue.start < end:
            gap = sentence[cue.end : start]
            if len(gap) <= _NEAR and not _TURN.search(gap):
                return True
        elif not sentence[end : cue.start].strip(" ,") and sentence[cue.end : cue.end + 1] in ".,;":
            return True
    return False


def _reaches(side: re.Match[str], start: int, end: int, last: int) -> int | None:
    """Measure how far a side stands from the hit at ``start:end``; None where it belongs elsewhere.

    A side after the hit that no preposition ties to it describes the next finding if there is one,
    that is, if the last hit of the sentence begins behind it.
    """
    distance = max(side.start() - end, start - side.end(), 0)
    if distance > 2 * _NEAR:
        return None
    if side.start() < end:
        return None if _TURN.search(side.string, side.end(), start) else distance
    if side.lastgroup == "compared":
        return distance
    tied = _PREPOSITION.search(side.string[: side.start()][-20:])
    if _TURN.search(side.string, end, side.start()) or (not tied and last >= side.end()):
        return None
    return distance


def _laterality(hit: _Hit, sentence: str, offset: int, last: int) -> Laterality | None:
    """Find the side named nearest to a hit; ``last`` is where the sentence's last hit begins."""
    if hit.finding in _RULES.midline:
        return None
    best: tuple[int, str] | None = None
    for side in _SIDES.finditer(sentence):
        distance = _reaches(side, hit.start - offset, hit.end - offset, last - offset)
        if distance is not None and (best is None or distance < best[0]):
            best = (distance, side.lastgroup or "")
    if best is None:
        return None
    return "left" if best[1] == "left" else "right" if best[1] == "right" else "bilateral"


def _bounds(text: str) -> list[int]:
    """Return the offsets at which sentences begin."""
    return [0, *(end.end() for end in _SENTENCE_END.finditer(text))]


def _scan(text: str) -> Iterator[tuple[_Hit, Status, list[_Cue], str, int]]:
    """Yield each hit with its status, the cues and the sentence around it."""
    starts = _bounds(text)
    cache: dict[int, tuple[str, list[_Cue]]] = {}
    for hit in _hits(text):
        index = bisect_right(starts, hit.start) - 1
        if index not in cache:
            stop = starts[index + 1] if index + 1 < len(starts) else len(text)
            sentence = text[starts[index] : stop]
            cache[index] = (sentence, _cues(sentence))
        sentence, cues = cache[index]
        status = _status(hit, cues, sentence, starts[index])
        if status is not None:
            yield hit, status, cues, sentence, starts[index]


def mentions(text: str) -> list[Mention]:
    """List every mention of a finding.

    Args:
        text: A report or a sentence.

    Returns:
        The mentions in the order of the text.
    """
    scanned = list(_scan(_normalise(text)))
    last: dict[int, int] = {}
    for hit, _, _, _, offset in scanned:
        last[offset] = max(hit.start, last.get(offset, 0))
    found = [
        Mention(
            finding=hit.finding,
            status=status,
            laterality=_laterality(hit, sentence, offset, last[offset]),
            historical=_historical(hit, cues, sentence, offset),
            sentence=text[offset : offset + len(sentence)].strip(),
            span=(hit.start, hit.end),
        )
        for hit, status, cues, sentence, offset in scanned
    ]
    return sorted(found, key=lambda mention: (mention.span, FINDINGS.index(mention.finding)))


_RANK: Mapping[str, int] = MappingProxyType({"negative": 0, "uncertain": 1, "positive": 2})


def label(text: str) -> dict[str, Status]:
    """Label a report.

    A finding is positive if any mention affirms it, else uncertain if any doubts it, else negative.
    Mentions of the past count only for findings that last (a healed fracture, a granuloma), not for
    those that pass (a pneumonia).

    Args:
        text: A report or a sentence.

    Returns:
        Status by finding; a finding that is not mentioned has no key. ``no_finding`` is positive
        when the text says something of the chest and nothing but devices is positive or uncertain.
    """
    norm = _normalise(text)
    labels: dict[str, Status] = {}
    for hit, status, cues, sentence, offset in _scan(norm):
        rank = _RANK[labels[hit.finding]] if hit.finding in labels else -1
        if _RANK[status] <= rank:
            continue
        if (
            status != "negative"
            and hit.finding not in _RULES.lasting
            and _historical(hit, cues, sentence, offset)
        ):
            continue
        labels[hit.finding] = status
    abnormal = any(
        status != "negative" and finding not in DEVICE_FINDINGS
        for finding, status in labels.items()
    )
    if not abnormal and (labels or _RULES.normality.search(norm)):
        labels["no_finding"] = "positive"
    return {finding: labels[finding] for finding in FINDINGS if finding in labels}


def _positives(
    item: str | Mapping[str, Status] | Collection[str], uncertain: UncertainPolicy
) -> tuple[frozenset[str], frozenset[str]]:
    """Split an item into the findings it holds and those on which it is to be passed over."""
    if isinstance(item, str):
        item = label(item)
    if not isinstance(item, Mapping):
        return frozenset(item), frozenset()
    doubted = frozenset(name for name, status in item.items() if status == "uncertain")
    held = frozenset(name for name, status in item.items() if status == "positive")
    if uncertain == "positive":
        return held | doubted, frozenset()
    return held, doubted if uncertain == "ignore" else frozenset()


def _rates(hits: int, predicted: int, support: int) -> dict[str, float]:
    """Turn counts into precision, recall and F1, all 0 where nothing was hit."""
    return {
        "precision": hits / predicted if predicted else 0.0,
        "recall": hits / support if support else 0.0,
        "f1": 2 * hits / (predicted + support) if predicted + support else 0.0,
        "support": support,
        "predicted": predicted,
    }


def finding_scores(
    predictions: Sequence[str | Mapping[str, Status] | Collection[str]],
    references: Sequence[str | Mapping[str, Status] | Collection[str]],
    *,
    uncertain: UncertainPolicy = "positive",
    findings: Sequence[str] = FINDINGS,
    min_support: int = 1,
) -> dict[str, Any]:
    """Score the findings of predictions against those of references.

    Only affirmed findings count: a denial that both sides share earns nothing.

    Args:
        predictions: Per report its text, its labels (as from :func:`label`) or the set of its
            findings.
        references: The same for the truth.
        uncertain: Whether a doubted finding counts as positive or as negative, or whether the
            report is left out for that finding ("ignore").
        findings: The findings to score.
        min_support: Findings with fewer references stay out of the averages.

    Returns:
        ``findings`` (per finding ``precision``, ``recall``, ``f1``, ``support`` and ``predicted``),
        ``micro`` (the same over all counts), ``macro`` (unweighted means), ``averaged`` (the names
        that entered the averages) and ``n`` (reports).

    Raises:
        ValueError: If the two sequences differ in length.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    pairs = [
        (_positives(guess, uncertain), _positives(truth, uncertain))
        for guess, truth in zip(predictions, references, strict=True)
    ]
    counts: dict[str, tuple[int, int, int]] = {}
    for name in findings:
        kept = [
            (name in guess, name in truth)
            for (guess, unsure_guess), (truth, unsure_truth) in pairs
            if name not in unsure_guess and name not in unsure_truth
        ]
        counts[name] = (
            sum(guess and truth for guess, truth in kept),
            sum(guess for guess, _ in kept),
            sum(truth for _, truth in kept),
        )
    scores = {name: _rates(*count) for name, count in counts.items()}
    averaged = [name for name in findings if counts[name][2] >= min_support]
    macro = {
        rate: sum(scores[name][rate] for name in averaged) / len(averaged) if averaged else 0.0
        for rate in ("precision", "recall", "f1")
    }
    totals = [sum(counts[name][place] for name in averaged) for place in range(3)]
    return {
        "findings": scores,
        "micro": _rates(*totals),
        "macro": macro,
        "averaged": averaged,
        "n": len(pairs),
    }
