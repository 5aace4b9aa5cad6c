"""Training data for nnU-Net v2 from ACDC and M&Ms, with folds that keep each patient together.

By default, nnU-Net draws its folds from cases. End diastole and end systole of a patient would then
often be on both sides of a fold, and the Dice coefficients of the validation would be too high.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.logging import progress
from xraygpt.common.publishing import publish_folder
from xraygpt.segmentation.labels import to_structures
from xraygpt.segmentation.nifti import open_nifti, read_spacing, read_volume, write_volume
from xraygpt.segmentation.nnunet_corpora import Case, Patient

log = logging.getLogger(__name__)

LABELS = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
"""Names of the labels in dataset.json; the values are ACDC's."""
NAME = "CardiacMR"
SPLITS = "splits_final.json"
FOLDS = 5
_MAX_FAULTS = 20  # listed in an error


@dataclass(frozen=True)
class Place:
    """Where nnU-Net expects the parts of a dataset.

    Attributes:
        raw: Folder `nnUNet_raw`.
        preprocessed: Folder `nnUNet_preprocessed`.
        number: Number of the dataset, from 1 to 999.
    """

    raw: Path
    preprocessed: Path
    number: int = 27

    @property
    def name(self) -> str:
        """Name of the dataset's folders, such as ``Dataset027_CardiacMR``."""
        return f"Dataset{self.number:03d}_{NAME}"

    def require_free(self) -> None:
        """Check that there is no dataset with this number yet.

        Raises:
            InputError: There is one in either folder.
        """
        for folder in (self.raw, self.preprocessed):
            for other in folder.glob(f"Dataset{self.number:03d}_*"):
                if other.name != self.name or any(other.iterdir()):
                    raise InputError(
                        f"{other} already exists; remove it, or choose another --dataset-id"
                    )


@dataclass
class Summary:
    """What was written.

    Attributes:
        cases: Names of the written cases by patient.
        corpora: Names of the written patients by corpus.
        faults: Why patients were left out, one sentence each.
        other_headers: Number of masks whose header places them elsewhere than their image.
    """

    cases: dict[str, list[str]] = field(default_factory=dict)
    corpora: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)
    other_headers: int = 0


def write_dataset(
    place: Place, patients: Iterable[Patient], *, skip_faulty: bool = False, seed: int = 0
) -> Summary:
    """Write the images, labels, `dataset.json`, folds and a README with the commands.

    Args:
        place: Where to write.
        patients: Patients of any corpora.
        skip_faulty: Leave out patients whose files cannot be used, instead of refusing all.
        seed: Seed of the folds.

    Raises:
        DataError: Files cannot be used, one per line; or fewer than two patients are left.
        InputError: There is already a dataset with this number.
    """
    place.require_free()
    summary = Summary()

    def write(folder: Path) -> None:
        _write_cases(folder, list(patients), summary)
        _check_faults(summary, skip_faulty)
        if len(summary.cases) < 2:
            raise DataError("at least two patients are needed, one of them for validation")
        count = sum(map(len, summary.cases.values()))
        description = {
            "channel_names": {"0": "cine MRI"},
            "labels": LABELS,
            "numTraining": count,
            "file_ending": ".nii.gz",
        }
        (folder / "dataset.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
        (folder / "README.md").write_text(describe(place, summary), encoding="utf-8")

    facts = {"patients": {corpus: len(names) for corpus, names in summary.corpora.items()}}
    publish_folder(place.raw / place.name, write, facts)
    splits = split_by_patient(summary, seed)
    folder = place.preprocessed / place.name
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / SPLITS, json.dumps(splits, indent=1))
    return summary


def _write_cases(folder: Path, patients: Sequence[Patient], summary: Summary) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    names: dict[str, Patient] = {}
    contents: dict[str, str] = {}
    for patient in progress(patients, desc="patients", unit="patient"):
        try:
            if patient.fault:
                raise DataError(patient.fault)
            if patient.name in names:
                first = names[patient.name].folder
                raise DataError(f"{patient.folder}: {patient.name} is already in {first}")
            names[patient.name] = patient
            volumes = [_Volume(case, patient.corpus) for case in patient.cases]
            content = hashlib.sha256(b"".join(v.pixels.tobytes() for v in volumes)).hexdigest()
            if content in contents:
                raise DataError(f"{patient.folder} has the same images as {contents[content]}")
            contents[content] = patient.name
        except DataError as error:
            summary.faults.append(str(error))
            continue
        _write_patient(folder, patient, volumes)
        summary.corpora[patient.corpus].append(patient.name)
        summary.cases[patient.name] = [f"{patient.name}_{case.phase}" for case in patient.cases]
        summary.other_headers += sum(volume.other_header for volume in volumes)


def _write_patient(folder: Path, patient: Patient, volumes: Iterable[_Volume]) -> None:
    for case, volume in zip(patient.cases, volumes, strict=True):
        name = f"{patient.name}_{case.phase}"
        image, mask = f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz"
        write_volume(folder / image, volume.pixels, volume.spacing)
        write_volume(folder / mask, volume.labels, volume.spacing)


class _Volume:
    """Image and labels of a case, checked.

    Attributes:
        pixels: (N, H, W) float32.
        labels: (N, H, W) uint8, values as in `LABELS`.
        spacing: Distances in mm between slices, rows and columns.
        other_header: Whether the mask's header places it elsewhere than the image.

    Raises:
        DataError: A file cannot be used.
    """

    def __init__(self, case: Case, convention: str) -> None:
        self.spacing = read_spacing(case.image)
        self.pixels = read_volume(case.image, case.frame).astype(np.float32)
        if not np.isfinite(self.pixels).all():
            raise DataError(f"{case.image}: some values are not finite numbers")
        labels = read_volume(case.mask, case.frame)
        if labels.shape != self.pixels.shape:
            raise DataError(
                f"{case.mask}: the mask has the shape {labels.shape[::-1]}, the image "
                f"{self.pixels.shape[::-1]}"
            )
        try:
            self.labels = to_structures(labels, convention)
        except DataError as error:
            raise DataError(f"{case.mask}: {error}") from None
        if not self.labels.any():
            where = "" if case.frame is None else f" in frame {case.frame}"
            raise DataError(f"{case.mask}: the mask is empty{where}, which should be {case.phase}")
        of_image, of_mask = (open_nifti(file).affine for file in (case.image, case.mask))
        self.other_header = not np.allclose(of_image, of_mask, atol=0.01)


def _check_faults(summary: Summary, skip: bool) -> None:
    if not summary.faults:
        return
    if not skip:
        shown = summary.faults[:_MAX_FAULTS]
        if len(summary.faults) > len(shown):
            shown.append(f"and {len(summary.faults) - len(shown)} more")
        shown.append("correct these files, or leave the patients out with --skip-faulty")
        raise DataError("\n".join(shown))
    for fault in summary.faults:
        log.warning("left out: %s", fault)


def split_by_patient(summary: Summary, seed: int) -> list[dict[str, list[str]]]:
    """Return up to five folds in nnU-Net's format, with all cases of a patient on one side.

    The patients of each corpus are spread evenly over the folds.
    """
    patients = [
        name
        for _, names in sorted(summary.corpora.items())
        for name in random.Random(seed).sample(sorted(names), len(names))
    ]
    folds = [set(patients[start::FOLDS]) for start in range(min(FOLDS, len(patients)))]
    return [
        {
            "train": [c for p in sorted(summary.cases) if p not in fold for c in summary.cases[p]],
            "val": [c for p in sorted(summary.cases) if p in fold for c in summary.cases[p]],
        }
        for fold in folds
    ]


def describe(place: Place, summary: Summary) -> str:
    """Return the text of the README, with the commands to plan, train and predict."""
    sources = " and ".join(
        f"{len(names)} patients of {_TITLES[corpus]}"
        for corpus, names in sorted(summary.corpora.items())
    )
    raw, preprocessed = place.raw.resolve(), place.preprocessed.resolve()
    results = raw.with_name("nnUNet_results")
    folds = " ".join(map(str, range(min(FOLDS, len(summary.cases)))))
    values = ", ".join(f"{value} {name}" for name, value in LABELS.items())
    return _README.format(
        name=place.name,
        number=place.number,
        sources=sources,
        values=values,
        folds=folds,
        splits=preprocessed / place.name / SPLITS,
        raw=shlex.quote(str(raw)),
        preprocessed=shlex.quote(str(preprocessed)),
        results=shlex.quote(str(results)),
        model=results / place.name / "nnUNetTrainer__nnUNetPlans__3d_fullres",
    )


_TITLES: Mapping[str, str] = {"acdc": "ACDC", "mnms": "M&Ms"}
_README = """# {name}

Cines at end diastole (ED) and end systole (ES) of {sources}. Labels: {values}.
The licences of these corpora also apply to networks trained on them.

Rows, columns and slices are those of the original files. Positions in the scanner were removed,
because nnU-Net's reader refuses some headers of M&Ms.

The folds are in {splits}.
All cases of a patient are on the same side of a fold.

Commands for an environment with nnU-Net v2:

    export nnUNet_raw={raw}
    export nnUNet_preprocessed={preprocessed}
    export nnUNet_results={results}
    nnUNetv2_plan_and_preprocess -d {number} -c 2d 3d_fullres --verify_dataset_integrity
    for fold in {folds}; do nnUNetv2_train {number} 3d_fullres $fold; done
    nnUNetv2_predict -d {number} -c 3d_fullres -f {folds} -i IMAGES -o LABELS

One fold is enough for a first impression: nnUNetv2_train {number} 3d_fullres 0, then -f 0. Without
a GPU, add -device cpu. In a YAML file of xraygpt:

    run:
      segmenter:
        name: nnunet
        folder: {model}
        python: /path/to/nnunet_env/bin/python
"""
