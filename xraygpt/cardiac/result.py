"""Everything that was measured in a cardiac study, and the table and sentences of its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xraygpt.cardiac.function import Function
from xraygpt.cardiac.long_axis import LongAxis
from xraygpt.cardiac.segments import Infarct
from xraygpt.cardiac.stack import Stack
from xraygpt.cardiac.stack_segmentation import StackLabels
from xraygpt.cardiac.study import Patient
from xraygpt.measure.aha_segments import SEGMENTS
from xraygpt.measure.cardiac_function import (
    REFERENCE_RANGES,
    MeasurementError,
    ReferenceRange,
    Sex,
    SurfaceFormula,
    Ventricle,
    body_surface_area,
    cardiac_output,
    compare_with_range,
    ejection_fraction,
)
from xraygpt.studies.report import Measurement

_NAMES = {"lv": "LV", "rv": "RV"}
_OTHER_CONVENTION = "not compared: papillary muscles belong to the {} in the range"
_SEGMENT_WITH_SCAR = 10.0  # percent of a segment from which the report names it


@dataclass(frozen=True)
class CardiacResult:
    """What was measured in a study.

    Attributes:
        stack: The short-axis cine.
        labelled: Its label maps, according to the conventions.
        function: Volumes and mass.
        patient: Sex, height and weight.
        formula: Formula of the body surface area.
        remarks: Known errors of the segmenter, by measurement.
        long_axis: Volumes corrected with long-axis views; None without them.
        thickness: (2, 17) wall thickness by segment in mm at end diastole and end systole; None if
            the segments are unknown.
        infarct: Infarct by late gadolinium enhancement; None without it.
        reasons: Why values are missing.
        papillary_muscles: As in `Conventions`.
    """

    stack: Stack
    labelled: StackLabels
    function: Function
    patient: Patient
    formula: SurfaceFormula = "mosteller"
    remarks: Mapping[str, str] | None = None
    long_axis: LongAxis | None = None
    thickness: np.ndarray | None = None
    infarct: Infarct | None = None
    reasons: tuple[str, ...] = ()
    papillary_muscles: str = "cavity"

    def measurements(self) -> tuple[Measurement, ...]:
        """Return the lines of the report's table."""
        lines = [*self._ventricle("lv", self.function.left)]
        if self.function.right is not None:
            lines += self._ventricle("rv", self.function.right)
        return (*lines, *self._corrected(), *self._body(), *self._scar())

    def references(self) -> tuple[str, ...]:
        """Return the sources of the reference ranges that were used."""
        used = {m.key for m in self.measurements() if m.reference}
        return tuple(
            dict.fromkeys(
                f"Reference ranges: {by_sex['male'].source}"
                for key, by_sex in REFERENCE_RANGES.items()
                if key in used
            )
        )

    def _line(self, key: str, name: str, value: float | None, unit: str, digits: int = 0
              ) -> Measurement:  # fmt: skip
        limits, remark = self._range(key), ""
        if limits is not None and value is not None:
            if limits.papillary_muscles in ("", self.papillary_muscles):
                remark = compare_with_range(key, value, self._sex())  # type: ignore[arg-type]
            else:
                remark = _OTHER_CONVENTION.format(limits.papillary_muscles)
        known = (self.remarks or {}).get(key, "")
        reference = "" if limits is None else f"{limits.low:.0f}–{limits.high:.0f}"
        remark = "; ".join(filter(None, (remark, known)))
        return Measurement(key, name, value, unit, digits, reference, remark)

    def _sex(self) -> Sex | None:
        return self.patient.sex or None  # type: ignore[return-value]

    def _range(self, key: str) -> ReferenceRange | None:
        sex = self._sex()
        return REFERENCE_RANGES[key][sex] if sex and key in REFERENCE_RANGES else None

    def _ventricle(self, side: str, values: Ventricle) -> Iterator[Measurement]:
        name = _NAMES[side]
        if self.function.absolute:
            yield self._line(f"{side}_edv", f"{name} end-diastolic volume",
                             values.end_diastolic_volume, "mL")  # fmt: skip
            yield self._line(f"{side}_esv", f"{name} end-systolic volume",
                             values.end_systolic_volume, "mL")  # fmt: skip
        try:
            fraction, stroke = values.ejection_fraction, values.stroke_volume
        except MeasurementError as error:
            yield Measurement(
                f"{side}_ef", f"{name} ejection fraction", None, "%", 0, "", str(error)
            )
        else:
            if self.function.absolute:
                yield self._line(f"{side}_sv", f"{name} stroke volume", stroke, "mL")
            yield self._line(f"{side}_ef", f"{name} ejection fraction", fraction, "%")
        if values.mass is not None:
            yield self._line("lv_mass", "LV mass", values.mass, "g")

    def _corrected(self) -> Iterator[Measurement]:
        if self.long_axis is None:
            return
        large, small = (float(v) for v in self.long_axis.volumes)
        name = "corrected with long-axis views"
        yield self._line("lv_edv_long_axis", f"LV end-diastolic volume, {name}", large, "mL")
        yield self._line("lv_esv_long_axis", f"LV end-systolic volume, {name}", small, "mL")
        if 0 < small <= large:
            fraction = ejection_fraction(large, small)
            yield self._line("lv_ef_long_axis", f"LV ejection fraction, {name}", fraction, "%")

    def _body(self) -> Iterator[Measurement]:
        """Return heart rate, cardiac output and indexed values, as far as they are known."""
        rate, left = self.stack.heart_rate, self.function.left
        if rate is not None:
            yield self._line("heart_rate", "Heart rate", rate, "1/min")
            if self.function.absolute:
                output = cardiac_output(left.stroke_volume, rate)
                yield self._line("cardiac_output", "Cardiac output", output, "L/min", 1)
        surface = self.surface()
        if surface is None or not self.function.absolute:
            return
        yield self._line("body_surface_area", "Body surface area", surface, "m²", 2)
        indexed = [
            ("lv_edv_index", "LV end-diastolic volume index", left.end_diastolic_volume, "mL/m²"),
            ("lv_esv_index", "LV end-systolic volume index", left.end_systolic_volume, "mL/m²"),
            ("lv_mass_index", "LV mass index", left.mass, "g/m²"),
        ]
        if self.function.right is not None:
            volume = self.function.right.end_diastolic_volume
            indexed.append(("rv_edv_index", "RV end-diastolic volume index", volume, "mL/m²"))
        for key, name, value, unit in indexed:
            if value is not None:
                yield self._line(key, name, value / surface, unit)

    def _scar(self) -> Iterator[Measurement]:
        if self.infarct is not None:
            yield self._line("infarct_mass", "Infarct mass", self.infarct.mass, "g")
            yield self._line("infarct_percent", "Infarct", self.infarct.percent, "% of LV mass")
            value = self.infarct.no_reflow_percent
            yield self._line("no_reflow_percent", "No-reflow zone", value, "% of LV mass")

    def surface(self) -> float | None:
        """Return the body surface area in m²; None if height or weight are unknown.

        Raises:
            MeasurementError: Height or weight are implausible.
        """
        patient = self.patient
        if patient.height is None or patient.weight is None:
            return None
        return body_surface_area(patient.height, patient.weight, self.formula)

    def findings(self) -> tuple[str, ...]:
        """Return sentences about the measurements."""
        values = {m.key: m for m in self.measurements()}
        sentences = [
            _sentence(values[key], subject)
            for key, subject in (
                ("lv_ef", "The left ventricular ejection fraction"),
                ("lv_edv", "The left ventricular end-diastolic volume"),
                ("lv_mass_index" if "lv_mass_index" in values else "lv_mass",
                 "The left ventricular mass"),
                ("rv_ef", "The right ventricular ejection fraction"),
            )
            if key in values and values[key].value is not None
        ]  # fmt: skip
        return (*sentences, *self._scar_sentences())

    def _scar_sentences(self) -> Iterator[str]:
        if self.infarct is None:
            return
        if not self.infarct.mass:
            yield "No infarct was found in the images with late gadolinium enhancement."
            return
        parts = self.infarct.by_segment
        named = [SEGMENTS[i] for i in range(17) if parts[i] >= _SEGMENT_WITH_SCAR]
        where = f", in the segments {', '.join(named)}" if named else ""
        yield (
            f"Infarct: {self.infarct.mass:.0f} g, {self.infarct.percent:.0f} % of the left "
            f"ventricular mass{where}."
        )

    def data(self) -> dict[str, Any]:
        """Return further values for the JSON file."""
        function, times = self.function, self.stack.times
        right = function.right
        unit = "mL" if function.absolute else "pixels"
        return {
            "volume_unit": unit,
            "phases": [int(p) for p in function.phases],
            "times_s": None if times is None else [float(times[p]) for p in function.phases],
            "lv_volumes": [float(v) for v in function.left.volumes],
            "rv_volumes": None if right is None else [float(v) for v in right.volumes],
            "end_diastole": int(function.phases[function.left.phases.end_diastole]),
            "end_systole": int(function.phases[function.left.phases.end_systole]),
            "wall_thickness_mm": _by_segment(self.thickness),
            "infarct_percent_by_segment": _by_segment(
                None if self.infarct is None else self.infarct.by_segment[None]
            ),
        }


def _sentence(line: Measurement, subject: str) -> str:
    text = f"{subject} is {line.text} {line.unit}"
    word = line.remark.split(";")[0]
    verdict = {"low": "below", "high": "above", "normal": "within"}
    if word in verdict:
        text += f", {verdict[word]} the reference range of {line.reference} {line.unit}"
        doubt = line.remark.partition("; ")[2]
    else:
        doubt = line.remark
    return f"{text} ({doubt})." if doubt else f"{text}."


def _by_segment(values: np.ndarray | None) -> dict[str, Any] | None:
    """Return values by segment name, as lists if there are several; NaN becomes None."""
    if values is None:
        return None
    table = {}
    for i, name in enumerate(SEGMENTS):
        column = [None if np.isnan(v) else float(v) for v in values[:, i]]
        table[name] = column[0] if len(column) == 1 else column
    return table
