"""Label maps and measurements of a study as NIfTI and DICOM files."""

from __future__ import annotations

from pathlib import Path

from xraygpt.cardiac.dicom_report import QUANTITIES, write_report
from xraygpt.cardiac.dicom_segmentation import write_segmentation
from xraygpt.cardiac.dicom_source import Algorithm
from xraygpt.cardiac.export import write_label_maps
from xraygpt.cardiac.result import CardiacResult


def write_files(
    kind: str, result: CardiacResult, folder: Path, algorithm: Algorithm, synthetic: bool
) -> list[str]:
    """Write one kind of file, and return sentences about what it lacks.

    Args:
        kind: ``nifti``, ``dicom_seg`` or ``dicom_sr``.
        result: What was measured.
        folder: Folder of the files.
        algorithm: What made the label maps.
        synthetic: Whether the study is a phantom.

    Raises:
        DataError: The stack cannot be written in this format.
        InputError: A package is not installed.
    """
    stack, labelled = result.stack, result.labelled
    phases = labelled.phases.tolist()
    if kind == "nifti":
        write_label_maps(stack, phases, labelled.labels, folder / "label_maps.nii.gz")
        return []
    if kind == "dicom_seg":
        write_segmentation(
            folder / "dicom_seg", stack, labelled.labels, algorithm, phases, synthetic
        )
        return []
    values = {
        m.key: m.value for m in result.measurements() if m.key in QUANTITIES and m.value is not None
    }
    sources = (
        [] if stack.source is None
        else sorted({stack.source(p, s)[0] for p in phases for s in range(stack.slices)})
    )  # fmt: skip
    remarks = [m.name + ": " + m.remark for m in result.measurements() if m.remark]
    return write_report(
        folder / "report.dcm", values, sources, algorithm, [*remarks, *result.reasons], synthetic
    )
