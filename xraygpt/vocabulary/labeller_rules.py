"""Patterns for the rule-based labeller, compiled from ``xraygpt/data/finding_rules.yaml``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

import yaml

_MACRO = re.compile(r"<(\w+)>")
_BARE_SPACE = re.compile(r" (?![?*+{])")
_TERM_KINDS = ("void", "absent", "present")


@dataclass(frozen=True, slots=True)
class LabellerRules:
    """Compiled patterns for the labeller.

    Attributes:
        terms: Pattern for each finding, with the groups ``void``, ``absent`` and ``present``.
        lasting: Findings that are still present if mentioned as past, such as a granuloma.
        midline: Findings without a side.
        cues: Words that negate, doubt, date or delimit a finding, with one group per kind.
        headings: Section headings, in the group ``read`` or ``skip``.
        normality: Statements that the chest is normal.
    """

    terms: Mapping[str, re.Pattern[str]]
    lasting: frozenset[str]
    midline: frozenset[str]
    cues: re.Pattern[str]
    headings: re.Pattern[str]
    normality: re.Pattern[str]


def _expand(pattern: str, macros: Mapping[str, str]) -> str:
    """Expand the macros and make each space match one or more spaces."""
    for _ in range(5):
        expanded = _MACRO.sub(lambda match: macros[match[1]], pattern)
        if expanded == pattern:
            break
        pattern = expanded
    return _BARE_SPACE.sub(" +", pattern)


def _group(name: str, patterns: Sequence[str], macros: Mapping[str, str]) -> str:
    """Build a named group of alternative patterns."""
    return f"(?P<{name}>{'|'.join(_expand(pattern, macros) for pattern in patterns)})"


def _compile_words(groups: Iterable[str]) -> re.Pattern[str]:
    """Compile alternatives that begin and end at word boundaries."""
    return re.compile(rf"(?<![a-z0-9])(?:{'|'.join(groups)})(?![a-z0-9])")


def _compile_terms(
    findings: Mapping[str, Mapping[str, Any]], macros: Mapping[str, str]
) -> dict[str, re.Pattern[str]]:
    terms: dict[str, re.Pattern[str]] = {}
    for finding, entry in findings.items():
        sources = [entry, *(findings[other] for other in entry.get("include", ()))]
        merged = {kind: [p for s in sources for p in s.get(kind, ())] for kind in _TERM_KINDS}
        terms[finding] = _compile_words(
            _group(kind, patterns, macros) for kind, patterns in merged.items() if patterns
        )
    return terms


def _compile(raw: Mapping[str, Any]) -> LabellerRules:
    """Compile the content of the YAML file."""
    macros: Mapping[str, str] = raw["macros"]
    findings: Mapping[str, Mapping[str, Any]] = raw["findings"]
    headings = raw["headings"]
    cues = "|".join(_group(kind, patterns, macros) for kind, patterns in raw["cues"].items())
    return LabellerRules(
        terms=MappingProxyType(_compile_terms(findings, macros)),
        lasting=frozenset(name for name, entry in findings.items() if entry.get("lasting")),
        midline=frozenset(name for name, entry in findings.items() if entry.get("midline")),
        cues=re.compile(
            rf"(?<![a-z0-9])(?:{cues})(?![a-z0-9])|(?P<doubt_mark>\?)|(?P<colon>:)",
        ),
        headings=re.compile(
            r"(?:^|(?<=\n)|(?<=[.] )) *(?:\d+[.)] *)?"
            rf"(?:(?P<read>{headings['read']})|(?P<skip>{headings['skip']}))[a-z ]{{0,12}}:"
        ),
        normality=_compile_words(_expand(pattern, macros) for pattern in raw["normality"]),
    )


def _load() -> LabellerRules:
    path = resources.files("xraygpt").joinpath("data/finding_rules.yaml")
    return _compile(yaml.safe_load(path.read_text("utf-8")))


RULES = _load()
