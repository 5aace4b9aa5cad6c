"""Export of a report as Markdown, JSON or PDF, with its provenance and a notice."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from xraygpt.studies.pdf import PdfDocument

NOTICE = "AI draft, not verified, research use only"
SYNTHETIC_WARNING = (
    "This model was trained on SYNTHETIC phantoms: its output for real X-rays is meaningless."
)
MAX_REPORT = 20_000
"""Maximum number of characters in Findings, and in Impression."""
Format = Literal["md", "json", "pdf"]
_HEADING = re.compile(r"(?:^|(?<=\s))(findings|impression)\s*:\s*", re.IGNORECASE)
_ENDED = {
    "end": "by the model",
    "length": "cut off at the token limit",
    "cancelled": "stopped by a person",
}
_STARTS = "|".join(w[:n] for w in ("Findings", "Impression") for n in range(len(w), 0, -1))
_PARTIAL_HEADING = re.compile(rf"(?:^|(?<=\s))(?:{_STARTS})$")


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of an export.

    Attributes:
        findings: Findings on the page, perhaps edited.
        impression: Impression on the page, perhaps edited.
        edited: Whether a person has changed the model's text.
        model: Name of the model.
        revision: SHA-256 of the model's weights; empty for random weights.
        prompt: The question that asked for the draft.
        decoding: Decoding settings in words.
        seed: Sampling seed; None without sampling.
        ended: Reason why the draft ended: ``end``, ``length`` (cut off) or ``cancelled``
            (stopped); empty without a draft.
        images: Descriptions of the images read for the draft, without patient information.
        predicted: Lines about the findings that the model predicts from the image.
        remarks: Sentences of the draft that contradict each other or these findings, with reasons.
        conversation: Questions and answers, oldest first.
        facts: Details of the model, to reproduce the draft.
        date: Date of the export (ISO 8601, UTC).
        notice: The fixed notice on every export.
        warning: A further warning; may be empty.
    """

    findings: str
    impression: str
    edited: bool
    model: str
    revision: str
    prompt: str
    decoding: str
    seed: int | None
    ended: str
    images: list[str]
    conversation: list[tuple[str, str]]
    predicted: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    notice: str = NOTICE
    warning: str = ""

    def lists(self) -> list[tuple[str, list[str]]]:
        """Return the predicted findings and the remarks with their headings, unless empty."""
        lists = {
            "Findings predicted from the image": self.predicted,
            "Sentences to doubt": self.remarks,
        }
        return [(name, items) for name, items in lists.items() if items]

    def rows(self) -> list[tuple[str, str]]:
        """Return the provenance as pairs of name and text."""
        return [
            ("Model", self.model),
            ("Revision", self.revision or "random weights"),
            ("Prompt", self.prompt or "none: no draft was made"),
            ("Decoding", self.decoding or "none"),
            ("Seed", "none: no sampling" if self.seed is None else str(self.seed)),
            ("Draft ended", _ENDED.get(self.ended, "no draft")),
            ("Date", self.date),
            ("Images read for the draft", "; ".join(self.images) or "none"),
            ("Edited by a person", "yes" if self.edited else "no"),
        ]


def split_report(text: str, *, done: bool = True) -> tuple[str, str]:
    """Split a report at its headings; a text without headings consists of findings only.

    Args:
        text: Text of the report.
        done: False during generation, when a possible start of a heading at the end is omitted.
    """
    if not done:
        text = _PARTIAL_HEADING.sub("", text)
    parts = {"findings": "", "impression": ""}
    pieces = _HEADING.split(text)
    parts["findings"] = pieces[0].strip()
    for name, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        parts[name.lower()] = f"{parts[name.lower()]} {piece.strip()}".strip()
    return parts["findings"], parts["impression"]


def render_report(report: Report, kind: Format, picture: tuple[np.ndarray, str] | None) -> bytes:
    """Return the content of the exported file.

    Args:
        report: The report.
        kind: File format: ``md``, ``json`` or ``pdf``.
        picture: Pixels and caption of an image, for the PDF.
    """
    if kind == "json":
        return json.dumps(asdict(report), indent=1, ensure_ascii=False).encode()
    if kind == "md":
        return _markdown(report).encode()
    return _pdf(report, picture)


def as_download(content: bytes, kind: Format, date: str) -> dict[str, str]:
    """Return the name, MIME type and base64 content for the page's download script."""
    mime = {"md": "text/markdown", "json": "application/json", "pdf": "application/pdf"}[kind]
    stamp = re.sub(r"\D", "", date)[:14]
    name = f"xraygpt-draft-{stamp}.{kind}"
    return {"name": name, "type": mime, "content": base64.b64encode(content).decode()}


def _markdown(report: Report) -> str:
    def safe(text: str) -> str:
        return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", text)

    lines = [f"# {NOTICE}", ""]
    lines += [report.warning, ""] if report.warning else []
    lines += ["## Findings", "", safe(report.findings) or "(empty)"]
    lines += ["", "## Impression", "", safe(report.impression), ""] if report.impression else [""]
    for name, items in report.lists():
        lines += [f"## {name}", "", *(f"- {safe(item)}" for item in items), ""]
    if report.conversation:
        lines += ["## Conversation", ""]
        for question, answer in report.conversation:
            lines += [f"**Q:** {safe(question)}", "", f"**A:** {safe(answer)}", ""]
    lines += ["## Provenance", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {safe(value)} |" for name, value in report.rows()]
    return "\n".join([*lines, "", f"{NOTICE}.", ""])


def _pdf(report: Report, picture: tuple[np.ndarray, str] | None) -> bytes:
    document = PdfDocument(NOTICE)
    if report.warning:
        document.text(report.warning)
    if picture is not None:
        pixels, caption = picture
        document.picture(pixels, caption, min(220, 220 * pixels.shape[1] / pixels.shape[0]))
    sections = [("Findings", report.findings)]
    sections += [("Impression", report.impression)] if report.impression else []
    sections += [(name, "\n".join(items)) for name, items in report.lists()]
    for name, text in sections:
        document.heading(name)
        for line in text.split("\n"):
            document.text(line or "(empty)")
    if report.conversation:
        document.heading("Conversation")
        for question, answer in report.conversation:
            document.text(f"Q: {question}")
            document.text(f"A: {answer}")
    document.heading("Provenance")
    document.table(report.rows(), (110, 373))
    return document.build()
