"""Reads the traits of an echocardiogram report, sentence by sentence.

The report's value of a trait is that of its most severe statement in words, or its first number.
Doubted statements count only if there are no others. Measurements count where no words grade the
trait. `echo_parser` reads the words of a sentence, `echo_numbers` its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from xraygpt.vocabulary.echo_contradictions import contradictions
from xraygpt.vocabulary.echo_numbers import measured_grades, number_values
from xraygpt.vocabulary.echo_parser import SentenceParser, Statement
from xraygpt.vocabulary.echo_rules import LV_FUNCTION, echo_rules
from xraygpt.vocabulary.echo_sentences import Sentence, sentences
from xraygpt.vocabulary.traits import TraitReading, TraitValue


@lru_cache(maxsize=65536)
def read_report(text: str) -> TraitReading:
    """Return the traits that a report states and its contradictions."""
    statements: list[Statement] = []
    subject, heading = "", ""
    for sentence in sentences(text):
        subject = subject if sentence.heading == heading else ""
        heading = sentence.heading
        parser = SentenceParser(sentence, subject)
        statements += read_sentence(sentence, parser)
        subject = parser.first_structure or subject
    by_trait: dict[str, list[Statement]] = {}
    for statement in statements:
        by_trait.setdefault(statement.trait, []).append(statement)
    names = [trait.name for trait in echo_rules().traits]
    values = {name: _combined(by_trait[name]) for name in names if name in by_trait}
    return TraitReading(
        values,
        contradictions(
            [(s.trait, s.value, s.local) for s in statements],
            [n for n in (*names, LV_FUNCTION) if n in by_trait],
        ),
    )


def read_sentence(sentence: Sentence, parser: SentenceParser) -> list[Statement]:
    """Return what a sentence says about traits, in numbers and in words."""
    traits = {t.name: t for t in echo_rules().traits if t.is_number}
    found = [Statement(name, value) for name, value in number_values(sentence, traits)]
    worded = list(parser.statements())
    found += worded
    named = {s.trait for s in worded if s.value.high - s.value.low <= 2}
    for measure, value in measured_grades(sentence):
        conflict = measure.trait in named
        found.append(Statement(measure.trait, value, measured=True, local=False))
        if conflict and not _opposed(measure.trait, worded, value):
            found.pop()
    return found


def _opposed(trait: str, worded: Sequence[Statement], measured: TraitValue) -> bool:
    """Return whether a measurement denies what the words affirm, or the reverse."""
    return any(
        s.trait == trait and (s.value.status == "negative") != (measured.status == "negative")
        for s in worded
    )


def _combined(statements: Sequence[Statement]) -> TraitValue:
    """Return a report's value of a trait: the first number, or the most severe statement."""
    if statements[0].value.number is not None:
        return statements[0].value
    worded = [s for s in statements if not s.measured] or list(statements)
    if all(s.value.grade is None and s.value.status != "negative" for s in worded):
        worded = list(statements)  # a measurement gives the grade that the words leave open
    order = {"negative": 1, "uncertain": 0, "positive": 2}
    firm = [s for s in worded if s.value.status == "positive"]
    rest = [s for s in worded if s.value.status == "negative" and not s.local]
    chosen = firm or [s for s in worded if s.value.status == "uncertain"] or rest or list(worded)
    graded = [s for s in chosen if s.value.grade is not None] or chosen
    return max(graded, key=lambda s: (order[s.value.status], s.value.low, s.value.high)).value
