"""The report of a study: measurements, findings and figures, whatever they are exported as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from xraygpt.common.checks import Checks

NOTICE = "AI output, not verified. Research use only, not for diagnosis."


@dataclass(frozen=True)
class Measurement:
    """One line of the table.

    Attributes:
        key: Name in the JSON file and in DICOM, such as ``lv_edv``.
        name: Name on the page.
        value: The value; None if it could not be measured.
        unit: Unit, such as mL.
        digits: Decimal places that are shown.
        reference: Reference range, such as ``92–178``; empty without one.
        remark: Comparison with the range, the known error, or why there is no value.
    """

    key: str
    name: str
    value: float | None
    unit: str
    digits: int = 0
    reference: str = ""
    remark: str = ""

    @property
    def text(self) -> str:
        """The value as shown, without its unit; a dash if there is none."""
        return "–" if self.value is None else f"{self.value:.{self.digits}f}"


@dataclass(frozen=True)
class Figure:
    """A picture of the report.

    Attributes:
        name: Stem of its file, such as ``volume_curve``.
        caption: What it shows.
        pixels: (H, W, 3) uint8.
        wide: Whether it takes the whole width of the page.
    """

    name: str
    caption: str
    pixels: np.ndarray
    wide: bool = False


@dataclass(frozen=True)
class Video:
    """A video of the report.

    Attributes:
        name: Stem of its file.
        caption: What it shows.
        content: The mp4 file.
    """

    name: str
    caption: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Images of a sequence that a page plays, with contours that can be switched off.

    Attributes:
        name: Short name to choose it by, such as ``slice 3``.
        caption: What it shows.
        frames: (T, H, W) or (T, H, W, 3) uint8, without contours.
        duration: Seconds from the first frame until it is shown again.
        times: (T,) time of each frame in seconds, ascending; None if unknown, then the frames are
            evenly spaced.
        contours: (T, H, W) uint8: 0 or the position in `legend`, from 1, of the contour drawn in
            a pixel; None without contours.
        legend: Name and colour (``#rrggbb``) of each contour.
    """

    name: str
    caption: str
    frames: np.ndarray
    duration: float
    times: np.ndarray | None = None
    contours: np.ndarray | None = None
    legend: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        shape, drawn, times = self.frames.shape, self.contours, self.times
        with Checks(self) as check:
            if drawn is not None:
                wrong, named = drawn.shape != shape[:3], len(self.legend)
                check.refuse(wrong, "contours", f"{drawn.shape} on frames {shape}")
                highest = drawn.max(initial=0)
                why = f"{highest} is not in the legend"
                check.refuse(highest > named, "contours", why, "legend")
            wrong = times is not None and times.shape != shape[:1]
            check.refuse(wrong, "times", f"must be one for each of {shape[0]} frames")


@dataclass(frozen=True)
class Table:
    """A further table.

    Attributes:
        title: Heading.
        header: Names of the columns.
        rows: The cells, as text.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """The content of a report.

    Attributes:
        title: Heading, such as ``Cardiac MR``.
        study: Name of the study, taken from its folder; never the patient's name.
        patient: Facts about the patient that were used, such as sex and height.
        measurements: The main table.
        findings: Sentences, each derived from a measurement or a model.
        warnings: What is missing or unusual in the study, and why values are missing.
        notices: Statements about the methods, such as the licence of a network's training data.
        figures: Pictures.
        videos: Videos, which the page shows and Markdown and PDF files leave out.
        clips: Sequences that the demo's page plays; files leave them out.
        tables: Further tables.
        references: Publications of the reference ranges and formulas.
        facts: Settings and versions, to reproduce the values.
        data: Further values for the JSON file, such as volumes of all phases.
        synthetic: Whether the study is a phantom.
        date: Date of the report (ISO 8601, UTC).
    """

    title: str
    study: str
    measurements: tuple[Measurement, ...]
    findings: tuple[str, ...] = ()
    patient: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    videos: tuple[Video, ...] = ()
    clips: tuple[Clip, ...] = ()
    tables: tuple[Table, ...] = ()
    references: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    synthetic: bool = False
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def value(self, key: str) -> float | None:
        """Return a measurement's value; None if it is missing."""
        return next((m.value for m in self.measurements if m.key == key), None)

    def banner(self) -> str:
        """Return the sentence at the top and bottom of every export."""
        return banner(self.synthetic)


def banner(synthetic: bool) -> str:
    """Return the notice of every export, which says whether the study is a phantom."""
    return f"SYNTHETIC study. {NOTICE}" if synthetic else NOTICE
