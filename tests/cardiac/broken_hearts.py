"""A drawn heart of known volumes, as DICOM, NIfTI and HDF5 files with something wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cardiac.conftest import write_frame
from tests.cardiac.volumes import write_mask, write_volume
from xraygpt.cardiac import analysis
from xraygpt.common.errors import InputError
from xraygpt.common.registry import registry
from xraygpt.segmentation.base import Segmentation, Segmenter
from xraygpt.segmentation.labels import LV, MYOCARDIUM, RV
from xraygpt.segmentation.network import scale_to_unit
from xraygpt.studies.report import StudyReport

SIZE, PIXEL, GAP = 32, 4.0, 10.0  # pixels, mm, mm
SIDES = (6, 8, 10, 10)  # of the square cavity at end diastole in pixels, from apex to base
SHRINK = (0, 2, 4, 3, 1)  # pixels by which the side is smaller in each phase
GREY = np.array([20, 150, 60, 200], np.uint16)  # background, RV, myocardium, LV
CORONAL = [1, 0, 0, 0, 0, -1]  # the apex in front, the base behind, as hearts roughly lie
MATRIX = np.array([[-PIXEL, 0, 0, 0], [0, 0, -GAP, 0], [0, -PIXEL, 0, 0], [0, 0, 0, 1.0]])
"""The same in NIfTI's coordinates."""

NORMAL: dict[str, float | None] = {
    "lv_edv": 48.0,  # 36 + 64 + 100 + 100 pixels of 16 mm² in slices 10 mm apart
    "lv_esv": 14.72,  # 4 + 16 + 36 + 36 pixels
    "lv_ef": 100 * (1 - 92 / 300),
    "lv_mass": 56.448,  # rings of 2 pixels: 8 · 34 + 4 · 16 = 336 pixels, 1.05 g/mL
    "rv_edv": 21.76,  # 4 columns as high as the cavity: 136 pixels
    "rv_esv": 11.52,  # 72 pixels
    "rv_ef": 100 * (1 - 72 / 136),
    "heart_rate": 75.0,
    "cardiac_output": 33.28 * 75 / 1000,
    "lv_edv_index": None,
}
"""What the report of the heart must say; None for a value that is unknown."""
NO_RATE: dict[str, float | None] = {"heart_rate": None, "cardiac_output": None}
NO_ML: dict[str, float | None] = {
    key: None for key in NORMAL if key not in ("lv_ef", "rv_ef", "heart_rate")
}


@registry.register_segmenter("drawn_heart")
class DrawnHeart(Segmenter):
    """Recognises the grey values of the drawn heart; refuses the images that networks refuse."""

    @dataclass(kw_only=True)
    class Config(Segmenter.Config):
        """There are no settings."""

    structures = ("rv", "myocardium", "lv")
    orientation = "stored"

    def __init__(self, config: Config) -> None:
        self.config = config

    def segment(self, slices):
        scale_to_unit(slices.pixels)
        labels = np.digitize(slices.pixels, (40, 100, 180))
        labels = np.array([0, MYOCARDIUM, RV, LV], np.uint8)[labels]
        return Segmentation(labels, np.full(len(labels), 0.9))


def draw(slice_: int, phase: int) -> np.ndarray:
    """(H, W) label map: the cavity, a ring of 2 pixels, and the RV on the patient's right."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    side = SIDES[slice_] - SHRINK[phase]
    start, stop = 16 - side // 2, 16 - side // 2 + side
    labels[start - 2 : stop + 2, start - 2 : stop + 2] = MYOCARDIUM
    labels[start:stop, start:stop] = LV
    labels[start:stop, start - 6 : start - 2] = RV
    return labels


def write_dicom(
    folder: Path,
    skip: Callable[[int, int], bool] = lambda s, p: False,
    change: Callable[[int, int], dict[str, Any]] = lambda s, p: {},
    picture: Callable[[np.ndarray], np.ndarray] = lambda grey: grey,
    slices: tuple[int, ...] = (0, 1, 2, 3),
    phases: tuple[int, ...] = (3, 0, 4, 1, 2),
    **elements: Any,
) -> Path:
    """Write a cine of the drawn heart: 4 slices, 5 phases, 75 beats per minute."""
    for phase in phases:
        for s in slices:
            if skip(s, phase):
                continue
            pixels = picture(GREY[draw(s, phase)])
            values: dict[str, Any] = {
                "Rows": pixels.shape[0], "Columns": pixels.shape[1], "PixelData": pixels.tobytes(),
                "PixelSpacing": [PIXEL, PIXEL], "ImageOrientationPatient": CORONAL,
                "ImagePositionPatient": [0, GAP * s, 0], **elements, **change(s, phase),
            }  # fmt: skip
            write_frame(folder, slice_=s, phase=phase, **values)
    return folder


def label_maps(phases: tuple[int, ...] = (0, 1, 2, 3, 4)) -> np.ndarray:
    """(T, S, H, W) label maps of the drawn heart."""
    return np.stack([[draw(s, p) for s in range(len(SIDES))] for p in phases])


def write_nifti(
    folder: Path,
    labels: np.ndarray | None = None,
    images: np.ndarray | None = None,
    name: str = "cine_sax",
    affine: np.ndarray = MATRIX,
    mask_affine: np.ndarray | None = None,
    **settings: Any,
) -> Path:
    """Write a cine of 5 phases (0.16 s apart) and its masks beside it."""
    labels = label_maps() if labels is None else labels
    images = GREY[label_maps()] if images is None else images
    settings = {"affine": affine, "step": 0.16, **settings}
    write_volume(folder / f"{name}.nii", images.transpose().astype(np.float32), **settings)
    mask_settings = {**settings, "affine": affine if mask_affine is None else mask_affine}
    write_mask(folder / f"{name}_gt.nii", labels, **mask_settings)
    return folder


def write_ends(folder: Path, names: tuple[str, str], *maps: np.ndarray) -> Path:
    """Write images and masks of two phases as files with such names."""
    for name, labels in zip(names, maps, strict=True):
        write_volume(folder / f"sax_{name}.nii", GREY[labels].transpose(), MATRIX)
        write_mask(folder / f"sax_{name}_gt.nii", labels, affine=MATRIX)
    return folder


@dataclass(frozen=True)
class Broken:
    """A study with something wrong.

    Attributes:
        write: Writes it to a folder and returns what to analyse.
        sentence: Pattern of the error, or of the sentence in the report; empty for no sentence.
        values: Differences from `NORMAL`; None if there is no report.
        settings: Of the analysis.
    """

    write: Callable[[Path], Path]
    sentence: str
    values: dict[str, float | None] | None = None
    settings: dict[str, Any] | None = None


def analyse(study: Broken, folder: Path, monkeypatch: pytest.MonkeyPatch) -> StudyReport:
    """Write and analyse a study without its figures, which take most of the time."""
    monkeypatch.setattr(analysis, "_figures", lambda result: ())
    settings = {"segmenter": DrawnHeart.Config(), "export": [], **(study.settings or {})}
    source = folder / "study"
    source.mkdir()
    path = study.write(source)
    return analysis.CardiacMR(analysis.CardiacMR.Config(**settings)).analyse(path, folder)


def assert_values(report: StudyReport, wanted: dict[str, float | None]) -> None:
    found = {key: report.value(key) for key in wanted}
    for key, value in wanted.items():
        expected = None if value is None else pytest.approx(value, rel=1e-3)
        assert found[key] == expected, (key, report.warnings)


def check(study: Broken, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Require the error, or the values and the sentence, that a study must get."""
    if study.values is None:
        with pytest.raises(InputError) as caught:
            analyse(study, folder, monkeypatch)
        assert re.search(study.sentence, str(caught.value)), caught.value
        return
    report = analyse(study, folder, monkeypatch)
    assert any(re.search(study.sentence, text) for text in report.warnings), report.warnings
    assert_values(report, {**NORMAL, **study.values})
