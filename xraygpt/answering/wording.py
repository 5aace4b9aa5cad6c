"""Answers in words from probabilities of findings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from xraygpt.models.abilities import Abilities
from xraygpt.models.findings import PredictedFinding, percent
from xraygpt.processors.text import split_sentences
from xraygpt.tasks.payload import Payload
from xraygpt.vocabulary import Vocabulary

_YES_NO = re.compile(r"^(?:is|are|was|were|do|does|did|has|have|can|could|any|would)\b")
_ABSENCE = re.compile(
    r"\b(?:normal|clear|sharp|unremarkable|intact|healthy|okay|ok|fine|not|no|without|free of)\b"
)
#: Words that ask for a finding, if the question does not name one.
_PRESENCE = re.compile(
    r"\b(?:there|any|see|seen|show|shows|sign|signs|evidence|suspicious|abnormal\w*|enlarged|broken"
    r"|dilated|widened|blunted|elevated|collapsed|tortuous|calcified|infected|wet|wrong)\b"
)
_RULE_OUT = re.compile(r"\b(?:rule[ds]?|ruling) out\b|\bexclud\w+")
_LIMITS: tuple[tuple[str, str], ...] = (
    (r"how (?:large|big|wide|much|long)|\bsize\b|measure\w*|ratio|\bcm\b|\bmm\b", "measure sizes"),
    (r"chang\w*|compar\w*|progress\w*|wors\w*|better|improv\w*|grown|since|previous|prior|last film"
     r"|\bnew\b|interval", "compare with earlier images"),
    (r"how (?:severe|bad)|sever\w*|grade|degree|mild|moderate", "grade severity"),
    (r"\bwhy\b|caus\w*|because|due to", "explain causes"),
    (r"which (?:kind|type|tubes?|lines?|devices?)|what (?:kind|type)|\btips?\b|posit\w*",
     "tell kinds of devices or their position"),
    (r"how many|number of|count", "count"),
    (_RULE_OUT.pattern, "rule out findings"),
)  # fmt: skip
_MAX_LISTED = 4
_ON_HELD_OUT = " on held-out images"
_MAX_SENTENCES = 2


def finding_answer(
    question: str,
    findings: Sequence[PredictedFinding],
    sides: Mapping[str, str],
    vocabulary: Vocabulary,
) -> str:
    """Answer a question about findings.

    Args:
        question: The question, in lower case.
        findings: The findings that it is about.
        sides: The likeliest side of findings that are present, where it is known.
        vocabulary: Vocabulary of the findings.
    """
    present = sorted((f for f in findings if f.is_present), key=lambda f: -f.probability)
    absent = sorted((f for f in findings if not f.is_present), key=lambda f: -f.probability)
    sentences = [_sentence(f, sides.get(f.name, ""), vocabulary) for f in present]
    if len(absent) > _MAX_SENTENCES:
        listed = (f"{vocabulary.in_words(f.name)} ({percent(f.probability)})" for f in absent)
        sentences.append(f"Unlikely: {', '.join(listed)}.")
    else:
        sentences += [_sentence(f, "", vocabulary) for f in absent]
    first = _yes_or_no(question, findings, names_finding=bool(vocabulary.positive(question)))
    return " ".join(part for part in (first, *sentences, _limits(question)) if part)


def _limits(question: str) -> str:
    """Say what the model cannot tell of what is asked; empty if there is nothing."""
    limits = [limit for pattern, limit in _LIMITS if re.search(pattern, question)]
    return f"This model cannot {' or '.join(limits)}." if limits else ""


def _yes_or_no(question: str, findings: Sequence[PredictedFinding], *, names_finding: bool) -> str:
    """Return the first word of the answer; empty if it could be wrong.

    That is the case if the question does not ask for yes or no, or if it does not say whether yes
    would mean that the findings are present or absent. It is also the case if the findings are
    unlikely, but the model misses more than half of one of them.
    """
    if not _YES_NO.search(question) or _RULE_OUT.search(question):
        return ""
    words = {finding.likelihood for finding in findings}
    absence = bool(_ABSENCE.search(question))
    if not (absence or names_finding or _PRESENCE.search(question)):
        return ""
    if "likely" in words:
        return "No." if absence else "Yes."
    if "possible" in words:
        return "Possibly not." if absence else "Possibly."
    if any(f.counts and 2 * f.counts.correct < f.counts.present for f in findings):
        return ""
    return "Yes." if absence else "No."


def _sentence(finding: PredictedFinding, side: str, vocabulary: Vocabulary) -> str:
    name = vocabulary.in_words(finding.name)
    word, counts = finding.likelihood, finding.counts
    where = f", most likely {side}" if side else ""
    notes = [f"the model reports it from {percent(finding.threshold)}"] * (word == "possible")
    if counts and finding.is_present and counts.reported:
        notes.append(
            f"{counts.correct} of {counts.reported} such predictions were right{_ON_HELD_OUT}"
        )
    elif counts and not finding.is_present and counts.present:
        notes.append(f"the model found {counts.correct} of {counts.present} cases{_ON_HELD_OUT}")
    verb = "are" if name.endswith("devices") else "is"
    note = f" ({'; '.join(notes)})" if notes else ""
    return (
        f"{name[:1].upper()}{name[1:]} {verb} {word}: {percent(finding.probability)}{where}{note}."
    )


def overview(
    question: str,
    findings: Sequence[PredictedFinding],
    sides: Mapping[str, str],
    vocabulary: Vocabulary,
) -> str:
    """List the findings that are present, likeliest first.

    An image without any is not called normal, and yes or no comes first only if there is one.

    Args:
        question: The question, in lower case.
        findings: All findings that the model knows.
        sides: As in `finding_answer`.
        vocabulary: Vocabulary of the findings.
    """
    present, limits = [f for f in findings if f.is_present], _limits(question)
    if not present:
        top = max(findings, key=lambda f: f.probability / max(f.threshold, 1e-6))
        name = vocabulary.in_words(top.name)
        text = (
            f"None of the {len(findings)} findings that the model knows reaches its threshold; the "
            f"closest is {name} ({percent(top.probability)}). This does not mean that the image is "
            "normal."
        )
        return f"{limits} {text}".strip()
    present.sort(key=lambda f: -f.probability)
    first = _yes_or_no(question, present, names_finding=False)
    sentences = [_sentence(f, sides.get(f.name, ""), vocabulary) for f in present]
    return " ".join(part for part in (limits, first, *sentences) if part)


class PredictedRow(NamedTuple):
    """A predicted finding for display.

    Attributes:
        name: In words.
        likelihood: "likely", "possible" or "unlikely".
        probability: In whole percent, as text.
        present: Whether the model reports the finding.
    """

    name: str
    likelihood: str
    probability: str
    present: bool


def predicted_rows(payload: Payload, vocabulary: Vocabulary) -> list[PredictedRow]:
    """Return the predicted findings of an answer: first those present, then by probability."""
    present = set(payload.get("findings", ()))
    items = payload.get("probabilities", {}).items()
    return [
        PredictedRow(
            vocabulary.in_words(name),
            PredictedFinding(name, p, 0.0 if name in present else 2.0).likelihood,
            percent(p),
            name in present,
        )
        for name, p in sorted(items, key=lambda item: (item[0] not in present, -item[1]))
    ]


def unsupported(
    question: str, abilities: Abilities, predictable: Sequence[str], vocabulary: Vocabulary
) -> str:
    """Say what the model can answer instead, with common findings as examples."""
    offers = ["write a report"] if abilities.reports else []
    if predictable:
        asked = (n for q in vocabulary.example_questions for n in vocabulary.asked_findings(q))
        common = [name for name in dict.fromkeys((*asked, *predictable)) if name in predictable]
        words = [vocabulary.in_words(name) for name in common[:_MAX_LISTED]]
        more = len(common) - len(words)
        listed = f"{', '.join(words)} and {more} more" if more else ", ".join(words)
        offers.append(f"say how likely findings are ({listed})")
    first = _limits(question) or "This model was not trained to answer that."
    return f"{first} It can {' and '.join(offers)}."


def no_image(abilities: Abilities) -> str:
    """Ask for an image."""
    views = " or ".join(abilities.views)
    kind = f" ({views} view)" if views else ""
    return f"There is no image yet. This model answers about images: add one{kind} and ask again."


def from_report(findings: Sequence[str], report: str, vocabulary: Vocabulary) -> str:
    """Answer a question about findings with the sentences of a report that mention them."""
    quotes = [s for s in split_sentences(report) if set(findings) & set(vocabulary.label(s))]
    words = " or ".join(vocabulary.in_words(name) for name in findings)
    if not quotes:
        return f"The model's report of this image does not mention {words}."
    return f"The model's report of this image says: “{' '.join(quotes)}”"
