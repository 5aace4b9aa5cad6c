"""Volumes, ejection fraction and mass of the ventricles from segmented short-axis images.

All functions are pure. Areas are in mm², distances in mm, volumes in mL, masses in g, times in s.
The conventions are those of the Society for Cardiovascular Magnetic Resonance (Schulz-Menger et al.
2020, JCMR 22:19): the stack is summed slice by slice (Simpson's rule), end diastole is the phase
with the largest left ventricular volume and end systole the one with the smallest.

Notation: T phases of a heartbeat, S slices of a short-axis stack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from xraygpt.common.errors import InputError

HEART_RATES = (20.0, 300.0)
"""Plausible heart rates in beats per minute."""
HEIGHTS, WEIGHTS = (30.0, 250.0), (1.0, 400.0)
"""Plausible heights in cm and weights in kg."""
MYOCARDIAL_DENSITY = 1.05
"""Density of myocardium in g/mL."""
Sex = Literal["male", "female"]
SurfaceFormula = Literal["mosteller", "du_bois"]
Volumes = np.ndarray
"""(T,) float64 in mL."""


class MeasurementError(InputError):
    """A measurement is impossible; the message says why."""


def stack_volumes(areas: np.ndarray, widths: np.ndarray) -> Volumes:
    """Sum areas over a stack (Simpson's rule).

    Args:
        areas: (T, S) areas in mm², 0 where a slice lies outside the structure.
        widths: (S,) extent in mm that each slice stands for: the distance between the centres of
            neighbouring slices, including the gap between them. DICOM's SliceThickness is not this
            distance.

    Raises:
        MeasurementError: A width is not positive.
    """
    if not np.all(np.asarray(widths) > 0):
        raise MeasurementError(f"the distance between slices is {np.min(widths):g} mm")
    volumes: Volumes = np.asarray(areas, dtype=np.float64) @ np.asarray(widths) / 1000
    return volumes


def bounded_volumes(areas: np.ndarray, positions: Sequence[float], bounds: np.ndarray) -> Volumes:
    """Integrate areas along the long axis between the apex and the mitral plane of each phase.

    A sum over slices counts a slice completely or not at all, so slices far apart overestimate the
    volume at the base and the apex. Here, the area is interpolated linearly between slice centres,
    continues unchanged from the most basal slice with an area to the mitral plane, and falls to 0
    at the apex like a paraboloid's.

    Args:
        areas: (T, S) areas in mm².
        positions: (S,) positions of the slices along the long axis in mm, ascending from the apex.
        bounds: (T, 2) positions of the apex and of the mitral plane in each phase, in mm.

    Raises:
        MeasurementError: A phase has no area between its bounds.
    """
    centres = np.asarray(positions, dtype=np.float64)
    volumes = []
    for phase, (row, (apex, base)) in enumerate(zip(areas, bounds, strict=True)):
        inside = (np.asarray(row) > 0) & (centres >= apex) & (centres <= base)
        if not inside.any():
            raise MeasurementError(
                f"phase {phase}: no slice with a cavity lies between the apex and the mitral plane"
            )
        z, area = centres[inside], np.asarray(row, dtype=np.float64)[inside]
        total = float(np.trapezoid(area, z))
        total += area[-1] * (base - z[-1])
        total += area[0] * (z[0] - apex) / 2  # a paraboloid has half the volume of its cylinder
        volumes.append(total / 1000)
    return np.array(volumes)


class Phases(NamedTuple):
    """Indices of end diastole and end systole."""

    end_diastole: int
    end_systole: int


def find_phases(volumes: Volumes) -> Phases:
    """Return the phases with the largest and the smallest volume.

    Raises:
        MeasurementError: There are fewer than two phases, a volume is missing or 0, or all volumes
            are equal.
    """
    if len(volumes) < 2:
        raise MeasurementError(
            "end diastole and end systole need at least two phases with a left ventricular cavity; "
            "give the images or masks of both"
        )
    if not np.isfinite(volumes).all():
        raise MeasurementError("a phase has no volume")
    if volumes.max() <= 0:
        raise MeasurementError("the left ventricular cavity is empty in every phase")
    if volumes.min() <= 0:
        raise MeasurementError("the left ventricular cavity is empty in a phase; leave it out")
    phases = Phases(int(volumes.argmax()), int(volumes.argmin()))
    if volumes[phases.end_diastole] == volumes[phases.end_systole]:
        raise MeasurementError("end diastole and end systole have the same volume")
    return phases


def ejection_fraction(end_diastolic: float, end_systolic: float) -> float:
    """Compute ``100 (EDV − ESV) / EDV`` in percent.

    Raises:
        MeasurementError: The end-diastolic volume is not positive, or less than the end-systolic.
    """
    if not end_diastolic > 0:
        raise MeasurementError("the end-diastolic volume is 0: the mask is empty")
    if end_systolic > end_diastolic:
        raise MeasurementError(
            f"the end-systolic volume ({end_systolic:.1f} mL) exceeds the end-diastolic volume "
            f"({end_diastolic:.1f} mL): are the two phases exchanged?"
        )
    return 100 * (end_diastolic - end_systolic) / end_diastolic


def mass(volume: float) -> float:
    """Return the mass in g of myocardium with a volume in mL."""
    return MYOCARDIAL_DENSITY * volume


def cardiac_output(stroke_volume: float, heart_rate: float) -> float:
    """Return L/min from mL and beats per minute.

    Raises:
        MeasurementError: The heart rate is outside 20 to 300 beats per minute.
    """
    if not HEART_RATES[0] <= heart_rate <= HEART_RATES[1]:
        raise MeasurementError(f"a heart rate of {heart_rate:g} beats per minute is implausible")
    return stroke_volume * heart_rate / 1000


def body_surface_area(height: float, weight: float, formula: SurfaceFormula = "mosteller") -> float:
    """Return the body surface area in m².

    Args:
        height: In cm.
        weight: In kg.
        formula: Mosteller (1987, NEJM 317:1098), ``√(height · weight / 3600)``, or Du Bois and Du
            Bois (1916, Arch Intern Med 17:863), ``0.007184 height^0.725 weight^0.425``.

    Raises:
        MeasurementError: The height is outside 30 to 250 cm or the weight outside 1 to 400 kg.
    """
    if not HEIGHTS[0] <= height <= HEIGHTS[1]:
        raise MeasurementError(f"a height of {height:g} cm is implausible; is it in metres?")
    if not WEIGHTS[0] <= weight <= WEIGHTS[1]:
        raise MeasurementError(f"a weight of {weight:g} kg is implausible; is it in grams?")
    if formula == "mosteller":
        return math.sqrt(height * weight / 3600)
    return 0.007184 * height**0.725 * weight**0.425


@dataclass(frozen=True)
class Ventricle:
    """Function of one ventricle.

    Attributes:
        volumes: (T,) mL.
        phases: End diastole and end systole, those of the left ventricle for both.
        mass: Of the myocardium at end diastole in g; None for the right ventricle.
    """

    volumes: Volumes
    phases: Phases
    mass: float | None = None

    @property
    def end_diastolic_volume(self) -> float:
        """Volume at end diastole in mL."""
        return float(self.volumes[self.phases.end_diastole])

    @property
    def end_systolic_volume(self) -> float:
        """Volume at end systole in mL."""
        return float(self.volumes[self.phases.end_systole])

    @property
    def stroke_volume(self) -> float:
        """End-diastolic minus end-systolic volume in mL."""
        return self.end_diastolic_volume - self.end_systolic_volume

    @property
    def ejection_fraction(self) -> float:
        """In percent; raises `MeasurementError` as the function of this name does."""
        return ejection_fraction(self.end_diastolic_volume, self.end_systolic_volume)


class ReferenceRange(NamedTuple):
    """Values of healthy adults: 95 % of them lie within 1.96 standard deviations of the mean.

    Attributes:
        mean: In the measurement's unit.
        sd: Standard deviation.
        source: The publication.
        papillary_muscles: Whether they belong to the "cavity" or the "mass"; empty if the value
            does not depend on it.
    """

    mean: float
    sd: float
    source: str
    papillary_muscles: str = ""

    @property
    def low(self) -> float:
        """The lower limit."""
        return self.mean - 1.96 * self.sd

    @property
    def high(self) -> float:
        """The upper limit."""
        return self.mean + 1.96 * self.sd


HUDSMITH = (
    "Hudsmith et al. 2005, J Cardiovasc Magn Reson 7:775 (63 men and 45 women, 21 to 68 years; "
    "papillary muscles belong to the mass)"
)
PETERSEN = (
    "Petersen et al. 2017, J Cardiovasc Magn Reson 19:18 (UK Biobank, 368 men and 432 women, 45 to "
    "74 years; papillary muscles belong to the cavity)"
)
REFERENCE_RANGES: dict[str, dict[Sex, ReferenceRange]] = {
    name: {
        "male": ReferenceRange(*male, source, papillary_muscles),
        "female": ReferenceRange(*female, source, papillary_muscles),
    }
    for name, male, female, source, papillary_muscles in (
        ("lv_edv", (160, 29), (135, 26), HUDSMITH, "mass"),
        ("lv_esv", (50, 16), (42, 12), HUDSMITH, "mass"),
        ("rv_edv", (190, 33), (148, 35), HUDSMITH, ""),
        ("rv_esv", (78, 20), (56, 18), HUDSMITH, ""),
        ("lv_ef", (58, 5), (61, 5), PETERSEN, "cavity"),
        ("lv_mass_index", (53, 9), (42, 7), PETERSEN, "cavity"),
    )
}
"""Reference ranges of adults by measurement and sex, in mL, % and g/m²."""


def compare_with_range(name: str, value: float, sex: Sex) -> str:
    """Return "low", "normal" or "high"; empty for a measurement without a reference range."""
    if name not in REFERENCE_RANGES:
        return ""
    limits = REFERENCE_RANGES[name][sex]
    return "low" if value < limits.low else "high" if value > limits.high else "normal"
