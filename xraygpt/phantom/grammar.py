"""The report of a phantom: what is there, what is normal, and the impression, in many wordings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from random import Random
from typing import Any

import yaml

from xraygpt.phantom.findings import Finding

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"<(\w+)(?::(\w+))?>")
# Findings that a reader would still call no acute disease.
_QUIET = frozenset({"calcified_granuloma", "hyperinflation", "pacemaker", "catheter"})


def report(findings: Sequence[Finding], rng: Random) -> dict[str, str]:
    """A report of `findings`.

    Args:
        findings: What the study shows.
        rng: Draws the wording.

    Returns:
        ``{"findings": …, "impression": …}``.
    """
    grammar = _grammar()
    shown = {f.name for f in findings}
    lines = [_say(grammar, finding, "say", rng) for finding in findings]
    rng.shuffle(lines)
    normal = []
    for row in grammar["normal"]:
        absent = not shown.intersection(row["denies"])
        wanted = "unless" not in row or shown.intersection(row["unless"])
        if absent and wanted and rng.random() < 0.85:
            normal.append(expand(rng.choice(row["say"]), rng))
    if rng.random() < 0.5:  # some readers begin with what is wrong, some with what is right
        normal, lines = lines, normal
    said = [line for line in [*lines, *normal] if line]
    if not findings:
        ends = [expand(rng.choice(grammar["conclude_normal"]), rng)]
    else:
        ends = [_say(grammar, finding, "conclude", rng) for finding in findings]
        if shown <= _QUIET:
            ends.append(expand(rng.choice(grammar["conclude_stable"]), rng))
    return {"findings": " ".join(said), "impression": " ".join(e for e in ends if e)}


def expand(pattern: str, rng: Random) -> str:
    """Draw every ``[a|b]`` from the inside out, then tidy blanks and the first letter."""
    while match := _CHOICE.search(pattern):
        choice = rng.choice(match[1].split("|"))
        pattern = pattern[: match.start()] + choice + pattern[match.end() :]
    text = re.sub(r"\s+", " ", pattern).replace(" ,", ",").replace(" .", ".").strip()
    return text[:1].upper() + text[1:]


def _say(grammar: dict[str, Any], finding: Finding, which: str, rng: Random) -> str:
    entry = grammar["findings"][finding.name]
    if finding.side == "bilateral" and "both" in entry:
        entry = entry["both"]
    degrees = grammar["degrees"]
    words = {
        "side": finding.side,
        "zone": grammar["zones"].get(finding.zone, ""),
        "degree": degrees.get(finding.name, degrees["default"]).get(finding.degree, ""),
        "size": f"{finding.size_mm:.0f}",
    }

    def slot(match: re.Match[str]) -> str:
        name, ending = match[1], match[2]
        word = expand(words[name.lower()], rng).lower()
        if ending and word:
            word += ending
        return word[:1].upper() + word[1:] if name[0].isupper() else word

    text = expand(_SLOT.sub(slot, rng.choice(entry[which])), rng)
    return re.sub(r"\b([Aa]) (?=[aeiou]|8\b|11\b|18\b)", r"\1n ", text)


@cache
def _grammar() -> dict[str, Any]:
    text = (resources.files("xraygpt") / "data" / "phantom_reports.yaml").read_text("utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
