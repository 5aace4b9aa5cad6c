"""Traits and patterns for echocardiogram reports, from ``xraygpt/data/echo_traits.yaml``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from xraygpt.vocabulary.traits import GRADES, Trait

#: The systolic function of the left ventricle, which is compared with the ejection fraction.
LV_FUNCTION = "lv_function"
EJECTION_FRACTION = "ejection_fraction"
PULMONARY_PRESSURE = "pulmonary_artery_pressure_continuous"

_SPACE = re.compile(r"\[[^\]]*\]| \?| ")
_SPACES = {" ?": r"[\s-]?", " ": r"[\s-]+"}


@dataclass(frozen=True)
class TokenRule:
    """A pattern and what its matches mean.

    Attributes:
        kind: Kind of token, such as ``structure`` or ``quality``.
        value: Names of structures; a quality, a trait or a noun; empty for cues.
        polarity: ``present`` or ``absent``; ``only`` for what does not deny its trait if negated.
        form: ``noun`` or ``adjective``, for qualities.
    """

    kind: str
    value: tuple[str, ...] = ()
    polarity: str = "present"
    form: str = "noun"


@dataclass(frozen=True)
class Measure:
    """A measurement that implies a grade.

    Attributes:
        trait: The trait it grades.
        term: Pattern of its name.
        unit: Unit of the limits.
        limits: Limits of mild, moderate and severe.
        range: Smallest and largest possible value.
        falling: Whether smaller values are worse.
    """

    trait: str
    term: re.Pattern[str]
    unit: str
    limits: tuple[float, ...]
    range: tuple[float, float]
    falling: bool

    def grade(self, value: float) -> str:
        """Return the grade of a value in `unit`."""
        reached = [value < limit if self.falling else value >= limit for limit in self.limits]
        return ("none", "mild", "moderate", "severe")[sum(reached)]


@dataclass(frozen=True)
class EchoRules:
    """Compiled content of the YAML file.

    Attributes:
        traits: The traits in the order of tables.
        sources: Papers and guidelines by short name.
        combinations: Trait by structure and quality.
        domains: By quality, the structures that can have it.
        tokens: Patterns of tokens, in the order in which they are tried.
        pattern: All of them; group ``t3`` is that of ``tokens[3]``.
        abbreviations: What abbreviations in capitals mean.
        headings: Section headings, one group per structure, ``skip`` and ``other``.
        walls: Walls of the left ventricle.
        measures: Measurements that imply a grade.
    """

    traits: tuple[Trait, ...]
    sources: Mapping[str, str]
    combinations: Mapping[tuple[str, str], str]
    domains: Mapping[str, frozenset[str]]
    tokens: tuple[TokenRule, ...]
    pattern: re.Pattern[str]
    abbreviations: Mapping[str, TokenRule]
    headings: re.Pattern[str]
    walls: re.Pattern[str]
    measures: tuple[Measure, ...]


def spaced(pattern: str) -> str:
    """Let each space of a pattern match white space and hyphens, except in character classes."""
    return _SPACE.sub(lambda match: _SPACES.get(match[0], match[0]), pattern)


def whole_words(pattern: str) -> str:
    """Return a pattern that matches only whole words."""
    return rf"(?<![a-z0-9])(?:{spaced(pattern)})(?![a-z0-9])"


_GRADE_WORDS = {
    "trace": "trace|trivial|minimal(?:ly)?|physiologic(?:al)?|borderline|tiny",
    "mild": r"mild(?:ly)?|slight(?:ly)?|1\+|grade (?:1|i)|small",
    "moderate": r"moderate(?:ly)?|mod|2\+|grade (?:2|ii)",
    "moderate-severe": r"3\+|grade (?:3|iii)",
    "severe": r"severe(?:ly)?|marked(?:ly)?|massive(?:ly)?|torrential|critical(?:ly)?|4\+"
    r"|grade (?:4|iv)|giant|heavy|heavily|(?:very )?large",
}
GRADE = spaced("|".join(_GRADE_WORDS.values()))
"""Pattern of one word of severity."""
GRADE_TOKEN = spaced(
    r"(?:at least|at most|up to|no more than|not more than|no greater than|less than|no worse than"
    rf"|more than)? ?(?:(?:no|none)[\s-]+(?:to|or)[\s-]+)?(?:very )?(?:{GRADE})"
    rf"(?:[\s-]*(?:to|or|/|-)[\s-]*(?:very )?(?:{GRADE}))?"
    r"|(?:hemo ?dynamically |haemo ?dynamically |clinically )?(?:significant|important)(?:ly)?"
)
_UPPER = re.compile(r"at most|(?:no|not) (?:more|greater|worse) than|less than")


def parse_grade(text: str) -> tuple[int, int]:
    """Return the lowest and highest index in `GRADES` that words of severity allow."""
    if "significant" in text or "important" in text:
        return GRADES.index("moderate"), GRADES.index("severe")
    found = [
        GRADES.index(grade)
        for word in re.findall(GRADE, text)
        for grade, words in _GRADE_WORDS.items()
        if re.fullmatch(spaced(words), word)
    ]
    low, high = min(found), max(found)
    if re.match(r"no(?:ne)?[\s-]+(?:to|or)", text):
        return 0, high
    if _UPPER.match(text):
        return min(1, high), high
    return low, GRADES.index("severe") if text.startswith("at least") else high


def _token_rules(raw: Mapping[str, Any]) -> list[tuple[str, TokenRule]]:
    """Return patterns with their meaning; earlier ones are tried first."""
    rules = [(raw["void"], TokenRule("void"))]
    cues = raw["cues"]
    for polarity in ("absent", "present", "only"):
        for trait, patterns in raw["terms"].items():
            if polarity in patterns:
                rules.append((patterns[polarity], TokenRule("term", (trait,), polarity)))
    for form in ("absent", "noun", "adjective"):
        for quality, patterns in raw["qualities"].items():
            if form in patterns:
                polarity = "absent" if form == "absent" else "present"
                rule = TokenRule("quality", (quality,), polarity, form)
                rules.append((patterns[form], rule))
    rules.append((raw["walls"], TokenRule("structure", ("left_ventricle",), form="wall")))
    rules += [(p, TokenRule("structure", tuple(names))) for names, p in raw["structures"]]
    rules += [(p, TokenRule("noun", (quality,))) for quality, p in raw["nouns"].items()]
    order = ("hedge", "void_after", "void_before", "neg_after", "insignificant", "not_graded")
    rules += [(cues[kind], TokenRule(kind)) for kind in order]
    rules.append((GRADE_TOKEN, TokenRule("grade")))
    rules += [(cues[kind], TokenRule(kind)) for kind in ("neg", "break", "with", "and", "or")]
    rules += [(p, TokenRule("predicate", (kind,))) for kind, p in raw["predicates"].items()]
    return rules


def _abbreviations(raw: Mapping[str, Any]) -> dict[str, TokenRule]:
    names = {short: TokenRule("structure", (name,)) for short, name in raw["structures"].items()}
    return names | {short: TokenRule("term", (trait,)) for short, trait in raw["terms"].items()}


def _traits(raw: Mapping[str, Any], sources: Mapping[str, str]) -> tuple[Trait, ...]:
    return tuple(
        Trait(
            name,
            **{
                **entry,
                "source": sources[entry["source"]],
                "views": tuple(entry["views"]),
                "modes": tuple(entry["modes"]),
                "limits": tuple(entry.get("limits", (0.0, 0.0))),
            },
        )
        for name, entry in raw.items()
    )


def _measures(raw: Iterable[Mapping[str, Any]]) -> tuple[Measure, ...]:
    return tuple(
        Measure(
            entry["trait"],
            re.compile(whole_words(entry["term"])),
            entry["unit"],
            tuple(entry["limits"]),
            tuple(entry["range"]),
            entry.get("falling", False),
        )
        for entry in raw
    )


@cache
def echo_rules() -> EchoRules:
    """Return the traits and patterns; the file is read once, when they are first needed."""
    path = resources.files("xraygpt").joinpath("data/echo_traits.yaml")
    raw: Mapping[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    rules = _token_rules(raw)
    groups = "|".join(f"(?P<t{i}>{spaced(pattern)})" for i, (pattern, _) in enumerate(rules))
    headings = "|".join(f"(?P<{name}>{spaced(p)})" for name, p in raw["headings"].items())
    return EchoRules(
        traits=_traits(raw["traits"], raw["sources"]),
        sources=raw["sources"],
        combinations={
            (structure, quality): trait
            for structure, qualities in raw["combinations"].items()
            for quality, trait in qualities.items()
        },
        domains={quality: frozenset(names) for quality, names in raw["domains"].items()},
        tokens=tuple(rule for _, rule in rules),
        pattern=re.compile(rf"(?<![a-z0-9])(?:{groups})(?![a-z0-9])|(?P<comma>,)|(?P<stop>;)"),
        abbreviations=_abbreviations(raw["abbreviations"]),
        headings=re.compile(rf"\s*(?:[-*\u2022]|\d+[.)])?\s*(?:{headings})\s*(?::|$)"),
        walls=re.compile(whole_words(raw["walls"])),
        measures=_measures(raw["measures"]),
    )
