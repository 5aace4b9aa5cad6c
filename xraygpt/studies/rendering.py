"""A study's report as HTML, Markdown, JSON or PDF."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

from xraygpt.studies.base import Format
from xraygpt.studies.pdf import PdfDocument, encode_png
from xraygpt.studies.report import StudyReport

_HEADER = ("Measurement", "Value", "Unit", "Reference range", "Remark")
_PDF_WIDTHS = (130, 45, 50, 80, 178)  # points
_PDF_PICTURE = 483.0


def render(report: StudyReport, kind: Format) -> bytes:
    """Return the content of a report's file.

    Raises:
        InputError: A PDF file is asked for, and reportlab is not installed.
    """
    if kind == "json":
        return json.dumps(as_dict(report), indent=1, ensure_ascii=False, allow_nan=False).encode()
    if kind == "md":
        return "\n".join(_markdown(report)).encode()
    return _html(report).encode() if kind == "html" else _pdf(report)


def as_dict(report: StudyReport) -> dict[str, Any]:
    """Return a report as a plain dict, without its figures."""
    return {
        "notice": report.banner(),
        "title": report.title,
        "study": report.study,
        "synthetic": report.synthetic,
        "date": report.date,
        "patient": dict(report.patient),
        "findings": list(report.findings),
        "measurements": {
            m.key: {"name": m.name, "value": m.value, "unit": m.unit, "reference": m.reference,
                    "remark": m.remark}
            for m in report.measurements
        },
        "warnings": list(report.warnings),
        "notices": list(report.notices),
        "tables": [
            {"title": t.title, "header": list(t.header), "rows": [list(row) for row in t.rows]}
            for t in report.tables
        ],
        "references": list(report.references),
        "facts": dict(report.facts),
        **report.data,
    }  # fmt: skip


def _rows(report: StudyReport) -> Iterator[tuple[str, ...]]:
    yield _HEADER
    for m in report.measurements:
        yield m.name, m.text, m.unit, m.reference, m.remark


def _markdown(report: StudyReport) -> Iterator[str]:
    def safe(text: str) -> str:
        return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", text)

    def table(rows: list[tuple[str, ...]]) -> Iterator[str]:
        for i, row in enumerate(rows):
            yield f"| {' | '.join(map(safe, row))} |"
            if i == 0:
                yield f"|{'---|' * len(row)}"
        yield ""

    def bullets(heading: str, texts: tuple[str, ...]) -> Iterator[str]:
        if texts:
            yield from (f"## {heading}", "", *(f"- {safe(text)}" for text in texts), "")

    yield from (f"# {safe(report.title)}", "", f"**{report.banner()}**", "")
    facts = [f"Study {safe(report.study)}", *(f"{k} {v}" for k, v in report.patient.items())]
    yield from (" · ".join([*facts, report.date]), "")
    yield from bullets("Findings", report.findings)
    yield from ("## Measurements", "")
    yield from table(list(_rows(report)))
    yield from bullets("About this study", report.warnings)
    for figure in report.figures:
        yield from (f"![{safe(figure.caption)}](figures/{figure.name}.png)", "")
    for extra in report.tables:
        yield from (f"## {extra.title}", "", *table([extra.header, *extra.rows]))
    yield from bullets("About the methods", report.notices)
    yield from bullets("References", report.references)
    yield from ("## Settings", "", *table([("", ""), *report.facts.items()]))
    yield from (f"**{report.banner()}**", "")


def _html(report: StudyReport) -> str:
    import jinja2

    source = resources.files("xraygpt").joinpath("data/study_page.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    images = {f.name: _embed("image/png", encode_png(f.pixels).read()) for f in report.figures}
    videos = {video.name: _embed("video/mp4", video.content) for video in report.videos}
    template = environment.from_string(source)
    return template.render(report=report, banner=report.banner(), images=images, videos=videos)


def _embed(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _pdf(report: StudyReport) -> bytes:
    document = PdfDocument(report.banner())
    document.heading(report.title)
    facts = [f"Study {report.study}", *(f"{k} {v}" for k, v in report.patient.items())]
    document.text(" · ".join([*facts, report.date]), small=True)
    for heading, texts in (("Findings", report.findings),):
        document.heading(heading)
        for text in texts:
            document.text(text)
    document.heading("Measurements")
    document.table(list(_rows(report)), _PDF_WIDTHS)
    if report.warnings:
        document.heading("About this study")
        for text in report.warnings:
            document.text(text, small=True)
    for figure in report.figures:
        width = _PDF_PICTURE if figure.wide else _PDF_PICTURE * 0.45
        document.picture(figure.pixels, figure.caption, width)
    for extra in report.tables:
        document.heading(extra.title)
        columns = len(extra.header)
        document.table([extra.header, *extra.rows], [_PDF_PICTURE / columns] * columns)
    document.heading("About the methods")
    for text in (*report.notices, *report.references):
        document.text(text, small=True)
    document.table([("Settings", ""), *report.facts.items()], (110, 373))
    return document.build()
