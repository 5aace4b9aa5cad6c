"""The analysis `cardiac_mr`: from the files of a study to its report."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from xraygpt.cardiac.clips import slice_clips
from xraygpt.cardiac.dicom_source import Algorithm
from xraygpt.cardiac.figures import contour_sheet, polar_plot, volume_curve
from xraygpt.cardiac.function import (
    MUSCLE,
    Conventions,
    Function,
    apply_conventions,
    leave_out_empty_phases,
    measure_function,
)
from xraygpt.cardiac.intake import read_study
from xraygpt.cardiac.long_axis import VIEWS, LongAxis, correct_volumes
from xraygpt.cardiac.plausibility import find_oddities
from xraygpt.cardiac.result import CardiacResult
from xraygpt.cardiac.result_files import write_files
from xraygpt.cardiac.segments import (
    Infarct,
    measure_infarct,
    right_ventricle_centre,
    segment_map,
    wall_thickness,
)
from xraygpt.cardiac.stack import Stack, is_parallel
from xraygpt.cardiac.stack_segmentation import (
    StackLabels,
    mean_confidence,
    segment_extremes,
    segment_stack,
)
from xraygpt.cardiac.study import Patient, Study
from xraygpt.cardiac.study_list import list_studies, study_files
from xraygpt.cardiac.video import encode_cine
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.project_paths import ProjectPath
from xraygpt.common.registry import registry
from xraygpt.measure.cardiac_function import (
    HEIGHTS,
    WEIGHTS,
    MeasurementError,
    Sex,
    SurfaceFormula,
)
from xraygpt.segmentation.base import Segmenter
from xraygpt.studies.base import Analysis
from xraygpt.studies.report import Clip, Figure, StudyReport, Table, Video, banner
from xraygpt.version import __version__

log = logging.getLogger(__name__)


@registry.register_analysis("cardiac_mr")
class CardiacMR(Analysis):
    """Measures ventricular function, wall thickness and infarct of cardiac MR studies."""

    @dataclass(kw_only=True)
    class Config(Analysis.Config):
        """What to measure, with which segmenter and by which conventions."""

        segmenter: Segmenter.Config
        """Segmenter of cine images."""
        infarct_segmenter: Segmenter.Config | None = None
        """Segmenter of images with late gadolinium enhancement; null measures no infarct."""
        masks: ProjectPath | None = None
        """File or folder with masks, for the segmenter `masks`; null takes those in the study."""
        convention: str = ""
        """Meaning of the masks' values, a key of `segmentation.labels.CONVENTIONS`; empty if the
        study's format tells."""
        export: list[Literal["nifti", "dicom_seg", "dicom_sr", "video"]] = field(
            default_factory=lambda: ["nifti", "dicom_sr", "video"]
        )
        """Further files: label maps as NIfTI or DICOM segmentations, measurements as a DICOM
        structured report, and a cine with contours as mp4."""
        phases: Literal["all", "extremes"] = "all"
        """Whether to measure all phases, or only those near end diastole and end systole, which
        takes about half the time and gives no complete curve."""
        long_axis: bool = True
        """Whether to correct the left ventricular volume with long-axis views, if there are any."""
        papillary_muscles: Literal["cavity", "mass"] = "cavity"
        """To which papillary muscles belong."""
        basal_ring: float = 0.5
        """Fraction of the cavity that myocardium must surround in a basal slice that counts."""
        surface_formula: SurfaceFormula = "mosteller"
        """Formula of the body surface area, `mosteller` or `du_bois`."""
        sex: Sex | None = None
        """Sex of the patient, `male` or `female`; null takes it from the files."""
        height: float | None = None
        """Height in cm; null takes it from the files."""
        weight: float | None = None
        """Weight in kg; null takes it from the files."""
        synthetic: bool = False
        """Whether the studies are phantoms."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.include(super().__post_init__)
                check.fraction("basal_ring")
                for name, (low, high) in (("height", HEIGHTS), ("weight", WEIGHTS)):
                    value, unit = getattr(self, name), "cm" if name == "height" else "kg"
                    wrong = value is not None and not low <= value <= high
                    check.refuse(
                        wrong, name, f"must be from {low:g} to {high:g} {unit}, got {value}"
                    )

    def __init__(self, config: Config) -> None:
        self.config = config
        self.segmenter: Segmenter = config.segmenter.build()
        other = config.infarct_segmenter
        self.infarct_segmenter: Segmenter | None = None if other is None else other.build()

    def find_studies(self, source: Path) -> list[Path]:
        """Return the studies in `source`; see `study_list.list_studies`."""
        studies = list_studies(source)
        if self.config.masks is not None and len(studies) > 1:
            raise InputError(
                f"run.masks fits one study, but {source} has {len(studies)}; put masks next to the "
                "images, with _gt at the end of their names, or give one study"
            )
        return studies

    def files(self, study: Path) -> list[Path]:
        """Return the files of a study, and of the masks."""
        masks = self.config.masks
        return [*study_files(study), *(study_files(masks) if masks else [])]

    def identity(self) -> list[str]:
        """Return descriptions of the segmenters, with hashes of their weights."""
        both = (self.segmenter, self.infarct_segmenter)
        return [segmenter.describe() for segmenter in both if segmenter is not None]

    def analyse(self, source: Path, folder: Path) -> StudyReport:
        """Analyse one study; see `Analysis.analyse`."""
        study = read_study(source, self.config.masks, self.config.convention)
        stack, others = _short_axis(study)
        result, scar_stack = self.measure(study, stack)
        clips, reasons = _clips(result)
        videos, failed = self._export(result, folder)
        warnings = [*reasons, *failed, *others, *study.warnings]
        for one in (stack, *([scar_stack] if scar_stack else [])):
            warnings += [f"{one.name}: {text}" for text in one.warnings]
        used = [self.segmenter]
        if result.infarct is not None and self.infarct_segmenter is not None:
            used.append(self.infarct_segmenter)
        return StudyReport(
            title="Cardiac MR",
            study=source.resolve().name,
            patient=_patient_facts(result.patient),
            measurements=result.measurements(),
            findings=result.findings(),
            warnings=tuple(dict.fromkeys([*result.reasons, *warnings])),
            notices=tuple(s.notice for s in used if s.notice),
            figures=tuple(_figures(result)),
            videos=tuple(videos),
            clips=clips,
            tables=(_stack_table(study),),
            references=(*result.references(), *_METHODS),
            facts=self._facts(result),
            data=result.data(),
            synthetic=self.config.synthetic,
        )

    def _export(self, result: CardiacResult, folder: Path) -> tuple[list[Video], list[str]]:
        """Write the files that the configuration asks for; return the video and what failed."""
        videos, reasons = list[Video](), list[str]()
        name, _, version = self.segmenter.describe().partition(" (")
        algorithm = Algorithm(name, version.removesuffix(")") or __version__)
        for kind in self.config.export:
            try:
                if kind == "video":
                    synthetic = self.config.synthetic
                    content = encode_cine(result.stack, result.labelled, banner(synthetic))
                    videos.append(Video("cine", "Cine with contours", content))
                else:
                    reasons += write_files(kind, result, folder, algorithm, self.config.synthetic)
            except (DataError, InputError) as error:
                reasons.append(f"no {kind.replace('_', ' ')} file: {error}")
        return videos, reasons

    def measure(self, study: Study, stack: Stack) -> tuple[CardiacResult, Stack | None]:
        """Measure a short-axis stack, and what the other stacks of its study allow.

        Returns:
            The result, and the stack in which the infarct was measured.

        Raises:
            MeasurementError: The masks allow no measurement.
            DataError: An image cannot be read.
        """
        config = self.config
        conventions = Conventions(config.papillary_muscles, config.basal_ring)
        segmented, reasons = leave_out_empty_phases(self._segment(stack))
        labelled = apply_conventions(stack, segmented, conventions)
        function = measure_function(stack, labelled)
        reasons += [*function.reasons, *find_oddities(stack, labelled, function)]
        long_axis = self._correct(study, stack, labelled, function, reasons)
        thickness, septum = _thickness(stack, labelled, function, reasons)
        infarct, scar_stack = self._infarct(study, stack, septum, reasons)
        patient = study.patient
        patient = Patient(
            config.sex or patient.sex,
            config.height or patient.height,
            config.weight or patient.weight,
        )
        result = CardiacResult(
            stack, labelled, function, patient, config.surface_formula, self.segmenter.remarks,
            long_axis, thickness, infarct, (*reasons, *_missing_facts(patient, stack)),
            config.papillary_muscles,
        )  # fmt: skip
        return result, scar_stack

    def _segment(self, stack: Stack) -> StackLabels:
        segment = segment_stack if self.config.phases == "all" else segment_extremes
        try:
            return segment(stack, self.segmenter)
        except DataError:  # it names the file
            raise
        except InputError as error:
            raise InputError(f"{stack.name}: {error}") from None

    def _correct(
        self,
        study: Study,
        stack: Stack,
        labelled: StackLabels,
        function: Function,
        reasons: list[str],
    ) -> LongAxis | None:
        views = [view for role in VIEWS for view in study.with_role(role)]  # type: ignore[arg-type]
        if not (self.config.long_axis and views and function.absolute):
            return None
        if self.segmenter.needs_labels or self.segmenter.needs_whole_stack:
            reasons.append("no volumes corrected with long-axis views: the segmenter takes none")
            return None
        ends = tuple(int(function.phases[i]) for i in function.left.phases)
        try:
            return correct_volumes(stack, labelled, (ends[0], ends[1]), views, self.segmenter)
        except InputError as error:
            reasons.append(str(error))
            return None

    def _infarct(
        self, study: Study, cine: Stack, septum: np.ndarray | None, reasons: list[str]
    ) -> tuple[Infarct | None, Stack | None]:
        stacks = study.with_role("LGE")
        if self.infarct_segmenter is None or not stacks:
            return None, None
        short = [s for s in stacks if s.slices >= _MIN_LGE_SLICES and is_parallel(s, cine)]
        if not short:
            names = ", ".join(s.name for s in stacks)
            reasons.append(
                f"no infarct measured: {names} is no short-axis stack of {_MIN_LGE_SLICES} or more "
                "slices"
            )
            return None, None
        stack = short[0]
        if len(stacks) > 1 or stack.phases > 1:
            reasons.append(
                f"the infarct was measured in the first phase of {stack.name}, one of "
                f"{len(stacks)} series with late enhancement"
            )
        try:
            labels = segment_stack(stack, self.infarct_segmenter, [0]).labels[0]
            segments = None if septum is None else segment_map(stack, labels, septum)
            return measure_infarct(stack, labels, segments), stack
        except InputError as error:
            reasons.append(f"no infarct measured in {stack.name}: {error}")
            return None, stack

    def _facts(self, result: CardiacResult) -> dict[str, str]:
        config, labelled = self.config, result.labelled
        return {
            "Short-axis stack": result.stack.name,
            "Segmenter": self.segmenter.describe(),
            "Rows and columns": "exchanged" if labelled.transposed else "as stored",
            "Mean confidence": (
                "unknown"
                if (labelled.confidence % 1 == 0).all()
                else f"{mean_confidence(labelled.confidence):.2f}"
            ),
            "Phases measured": f"{len(labelled.phases)} of {result.stack.phases}",
            "Papillary muscles": f"part of the {config.papillary_muscles}",
            "Basal slices": f"counted from {config.basal_ring:.0%} of the ring of myocardium",
            "Long-axis views": (
                ", ".join(result.long_axis.bounds.views) if result.long_axis else "not used"
            ),
            "Body surface area": config.surface_formula,
            "xraygpt": __version__,
        }


_MIN_LGE_SLICES = 3
_METHODS = (
    "Volumes: sum of areas times the distance between slices; mass: 1.05 g/mL (Schulz-Menger et "
    "al. 2020, J Cardiovasc Magn Reson 22:19)",
    "Segments: Cerqueira et al. 2002, Circulation 105:539",
)


def _clips(result: CardiacResult) -> tuple[tuple[Clip, ...], list[str]]:
    """Return the clips, and why there are none."""
    try:
        return slice_clips(result.stack, result.labelled), []
    except DataError as error:
        return (), [f"no cine: {error}"]


def _figures(result: CardiacResult) -> Iterator[Figure]:
    stack, labelled, function = result.stack, result.labelled, result.function
    yield volume_curve(stack, function)
    if result.thickness is not None:
        caption = "Wall thickness at end diastole"
        yield polar_plot(result.thickness[0], "wall_thickness", caption, "mm")
    if result.infarct is not None and np.isfinite(result.infarct.by_segment).any():
        yield polar_plot(result.infarct.by_segment, "infarct", "Infarct", "%")
    for name, index in zip(("end diastole", "end systole"), function.left.phases, strict=True):
        yield contour_sheet(stack, labelled, int(function.phases[index]), name)


def _short_axis(study: Study) -> tuple[Stack, list[str]]:
    """Return the short-axis cine, and a sentence about others that are not used."""
    stacks = study.with_role("SAX")
    if not stacks:
        found = ", ".join(f"{s.name} ({s.role or 'unknown view'})" for s in study.stacks)
        text = (
            f"there is no short-axis cine among {found}; if one of them is, put sax into its name"
        )
        raise DataError("; ".join([text, *study.warnings]))
    stack = stacks[0]
    problem = ""
    if stack.phases < 2:
        problem = "it has one phase; give the cine, or at least end diastole and end systole"
    elif stack.slices < 2:
        problem = "it has one slice, but a volume needs all slices from the base to the apex"
    if problem:
        text = f"{stack.name}: {problem}"
        raise DataError("; ".join([text, *stack.warnings, *study.warnings]))
    cines = [one for one in stacks if one.phases > 1]
    if len(cines) == 1:
        return stack, []
    sizes = ", ".join(f"{s.name} with {s.slices} slices of {s.phases} phases" for s in cines)
    text = f"there are {len(cines)} short-axis cines ({sizes}); only the first one is measured"
    return stack, [text]


def _thickness(
    stack: Stack, labelled: StackLabels, function: Function, reasons: list[str]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the wall thickness at end diastole and end systole, and a point near the septum."""
    try:
        indices = list(function.left.phases)
        if stack.spacing is None:
            raise MeasurementError("the pixel spacing is unknown")
        septum = right_ventricle_centre(stack, labelled.labels[indices[0]])
        if not np.isin(labelled.labels[indices], MUSCLE).any(axis=(1, 2, 3)).all():
            raise MeasurementError("the masks lack myocardium at end diastole or end systole")
        parts = []
        for index in indices:
            labels = labelled.labels[index]
            parts.append(wall_thickness(labels, segment_map(stack, labels, septum), stack.spacing))
    except MeasurementError as error:
        reasons.append(f"no wall thickness: {error}")
        return None, None
    return np.stack(parts), septum


def _missing_facts(patient: Patient, stack: Stack) -> list[str]:
    missing = []
    if not patient.sex:
        missing.append("no reference ranges: the patient's sex is unknown; give run.sex")
    if patient.height is None or patient.weight is None:
        missing.append(
            "no indexed values: the height or weight is unknown; give run.height and run.weight"
        )
    if stack.heart_rate is None:
        missing.append("no cardiac output: the heart rate is unknown")
    return missing


def _patient_facts(patient: Patient) -> dict[str, str]:
    facts = {}
    if patient.sex:
        facts["sex"] = patient.sex
    if patient.height is not None:
        facts["height"] = f"{patient.height:.0f} cm"
    if patient.weight is not None:
        facts["weight"] = f"{patient.weight:.0f} kg"
    return facts


def _stack_table(study: Study) -> Table:
    rows = []
    for stack in study.stacks:
        phases, slices, height, width = stack.shape
        distance = "unknown" if stack.distance is None else f"{stack.distance:.1f} mm"
        spacing = "unknown" if stack.spacing is None else f"{stack.spacing[0]:.2f} mm"
        rows.append((stack.name, stack.role or "–", str(slices), str(phases),
                     f"{height} × {width}", spacing, distance if slices > 1 else "–"))  # fmt: skip
    header = ("Series", "View", "Slices", "Phases", "Rows × columns", "Pixel", "Between slices")
    return Table("Series in this study", header, tuple(rows))
