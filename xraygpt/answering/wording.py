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
    r"\b(?:normal|clear|unremarkable|intact|healthy|okay|ok|fine|not|no|without|excluded?"
    r"|rule[ds]? out|free of)\b"
)
_LIMITS: tuple[tuple[str, str], ...] = (
    (r"how (?:large|big|wide|much|long)|\bsize\b|measure\w*|ratio|\bcm\b|\bmm\b", "measure sizes"),
    (r"chang\w*|compar\w*|progress\w*|wors\w*|better|improv\w*|grown|since|previous|prior|last film"
     r"|\bnew\b|interval", "compare with earlier images"),
    (r"how (?:severe|bad)|sever\w*|grade|degree|mild|moderate", "grade severity"),
    (r"\bwhy\b|caus\w*|because|due to", "explain causes"),
    (r"which (?:kind|type|tubes?|lines?|devices?)|what (?:kind|type)|\btips?\b|posit\w*",
     "tell kinds of devices or their position"),
    (r"how many|number of|count", "count"),
)  # fmt: skip
_MAX_LISTED = 8
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
    text = " ".join([_yes_or_no(question, findings), *sentences]).strip()
    limits = [limit for pattern, limit in _LIMITS if re.search(pattern, question)]
    return f"{text} This model cannot {' or '.join(limits)}." if limits else text


def _yes_or_no(question: str, findings: Sequence[PredictedFinding]) -> str:
    """Return the first word of the answer; empty if the question does not ask for yes or no."""
    if not _YES_NO.search(question):
        return ""
    words = {finding.likelihood for finding in findings}
    absence = bool(_ABSENCE.search(question))
    if "likely" in words:
        return "No." if absence else "Yes."
    if "possible" in words:
        return "Possibly not." if absence else "Possibly."
    return "Yes." if absence else "No."


def _sentence(finding: PredictedFinding, side: str, vocabulary: Vocabulary) -> str:
    name = vocabulary.in_words(finding.name)
    word = finding.likelihood
    where = f", most likely {side}" if side else ""
    note = ""
    if word == "possible":
        note = f"; the model reports it from {percent(finding.threshold)}"
    verb = "are" if name.endswith("devices") else "is"
    return (
        f"{name[:1].upper()}{name[1:]} {verb} {word}: {percent(finding.probability)}{where}{note}."
    )


def overview(
    findings: Sequence[PredictedFinding], sides: Mapping[str, str], vocabulary: Vocabulary
) -> str:
    """List the findings that are present, likeliest first."""
    present = [f for f in findings if f.is_present]
    if not present:
        top = max(findings, key=lambda f: f.probability / max(f.threshold, 1e-6))
        name = vocabulary.in_words(top.name)
        return (
            f"None of the {len(findings)} findings that the model knows reaches its threshold; the "
            f"closest is {name} ({percent(top.probability)}). This does not mean that the image is "
            "normal."
        )
    present.sort(key=lambda f: -f.probability)
    return " ".join(_sentence(f, sides.get(f.name, ""), vocabulary) for f in present)


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


def unsupported(abilities: Abilities, predictable: Sequence[str], vocabulary: Vocabulary) -> str:
    """Say what the model can answer instead."""
    offers = ["write a report"] if abilities.reports else []
    if predictable:
        words = [vocabulary.in_words(name) for name in predictable]
        more = f" and {len(words) - _MAX_LISTED} more findings" if len(words) > _MAX_LISTED else ""
        offers.append(f"say how likely findings are ({', '.join(words[:_MAX_LISTED])}{more})")
    return f"This model was not trained to answer that. It can {' and '.join(offers)}."


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
