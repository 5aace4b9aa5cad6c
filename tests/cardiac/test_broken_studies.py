"""DICOM studies with something wrong: each gets an error, or right values and a sentence."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML

from tests.cardiac.broken_hearts import (
    NO_ML,
    NO_RATE,
    NORMAL,
    Broken,
    DrawnHeart,
    analyse,
    assert_values,
    check,
    write_dicom,
)
from xraygpt.cardiac.analysis import CardiacMR
from xraygpt.common.errors import InputError

SCAR = {"infarct_segmenter": DrawnHeart.Config()}


def only(slice_, **elements):
    """Return a function that changes the elements of one slice."""
    return lambda s, _: elements if s == slice_ else {}


def damage(folder, change):
    """Change the file of the second slice and phase."""
    for file in sorted(folder.glob("*.dcm")):
        image = pydicom.dcmread(file)
        if image.ImagePositionPatient[1] == 10 and image.TriggerTime == 160:
            change(file, image)
            return folder
    raise AssertionError("no such file")


def cut(file, image):
    file.write_bytes(file.read_bytes()[:-900])


def as_video(file, image):
    image.file_meta.TransferSyntaxUID = MPEG2MPML
    image.PixelData = encapsulate([b"\0\0\1\xba" * 8])
    image["PixelData"].is_undefined_length = True
    image.save_as(file, enforce_file_format=True)


def copied(folder):
    write_dicom(folder)
    for file in sorted(folder.glob("*.dcm"))[:7]:
        (folder / f"{file.stem} (1).dcm").write_bytes(file.read_bytes())
    return folder


def with_late_enhancement(folder, **elements):
    write_dicom(folder)
    write_dicom(folder, phases=(0,), name="PSIR LGE", series="lge", TriggerTime=None, **elements)
    return folder


def with_long_axis(folder):
    write_dicom(folder, TriggerTime=0)
    view = {"series": "4ch", "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    return write_dicom(folder, slices=(2,), name="cine 4CH", **view)


def two_angulations(folder):
    write_dicom(folder)
    turned = [0.6, 0, -0.8, -0.8, 0, -0.6]
    return write_dicom(folder, slices=(1, 2, 3), series="b", ImageOrientationPatient=turned)


def repeated(folder):
    write_dicom(folder)
    darker = {"picture": lambda grey: grey // 2}
    write_dicom(folder, slices=(1,), series="0", SeriesNumber=0, **darker)
    return folder


def two_patients(folder):
    write_dicom(folder, slices=(0, 1))
    return write_dicom(folder, slices=(2, 3), PatientID="P2")


STUDIES = {
    # Geometry of DICOM
    "a missing slice": Broken(
        lambda f: write_dicom(f, skip=lambda s, p: s == 1),
        "a slice is missing between slices 1 and 2",
        # Slices of 20, 15 and 10 mm: (36 · 20 + 100 · 15 + 100 · 10) · 16 mm² = 51.52 mL
        {
            "lv_edv": 51.52,
            "lv_esv": 15.68,
            "lv_ef": 69.565,
            "lv_mass": 61.824,
            "rv_edv": 23.68,
            "rv_esv": 12.16,
            "rv_ef": 48.649,
            "cardiac_output": 35.84 * 0.075,
        },
    ),
    "a slice of another size": Broken(
        lambda f: write_dicom(f, change=only(3, Rows=30, PixelData=b"\0" * 1920)),
        "cine: 1 slice is not joined with the other 3, because the images have 30 × 32 and 32 × 32",
        {
            "lv_edv": 32.0,
            "lv_esv": 8.96,
            "lv_ef": 72,
            "lv_mass": 1.05 * 38.4,
            "rv_edv": 15.36,
            "rv_esv": 7.68,
            "rv_ef": 50,
            "cardiac_output": 23.04 * 0.075,
        },
    ),
    "another pixel spacing in one slice": Broken(
        lambda f: write_dicom(f, change=only(3, PixelSpacing=[3.9, 3.9])),
        "1 slice is not joined with the other 3, because the pixel spacings differ",
        {
            "lv_edv": 32.0,
            "lv_esv": 8.96,
            "lv_ef": 72,
            "lv_mass": 1.05 * 38.4,
            "rv_edv": 15.36,
            "rv_esv": 7.68,
            "rv_ef": 50,
            "cardiac_output": 23.04 * 0.075,
        },
    ),
    "two angulations in one series": Broken(
        two_angulations,
        "there are 2 short-axis cines .cine with 4 slices of 5 phases, cine with 3 slices",
        {},
    ),
    "all slices at one position": Broken(
        lambda f: write_dicom(f, series="a", ImagePositionPatient=[0, 0, 0]),
        "slice 1 has 20 images, but only 5 different trigger times: .* export the series with",
    ),
    "positions removed": Broken(
        lambda f: write_dicom(f, ImagePositionPatient=None),
        "no volumes in mL: the distance between slices is unknown",
        NO_ML,
    ),
    "no pixel spacing": Broken(
        lambda f: write_dicom(f, PixelSpacing=None), "no volumes in mL: the pixel spacing", NO_ML
    ),
    "a mirrored heart": Broken(
        lambda f: write_dicom(f, picture=lambda g: np.ascontiguousarray(g[:, ::-1])),
        "the right ventricle lies on the wrong side of the left one",
        {},
    ),
    "numbered names of series": Broken(
        lambda f: write_dicom(f, change=lambda s, p: {"name": f"cine_sax_sl{s + 1}"}), "", {}
    ),
    "one slice only": Broken(
        lambda f: write_dicom(f, slices=(2,), name="cine sax"),
        "cine sax: it has one slice, but a volume needs all slices from the base to the apex",
    ),
    # Times of DICOM
    "two heart rates": Broken(
        lambda f: write_dicom(f, change=only(1, NominalInterval=1100)),
        "the heart rate differs between slices .55 to 75 beats per minute.",
        {"heart_rate": 60 / 0.875, "cardiac_output": 33.28 * 0.060 / 0.875},
    ),
    "all trigger times are 0": Broken(
        lambda f: write_dicom(f, TriggerTime=0),
        "slice 1 has 5 images, but only 1 trigger time: their order is unknown",
    ),
    "a short axis without times beside a long axis": Broken(
        with_long_axis,
        "no short-axis cine among cine 4CH .4CH.*left out cine: slice 1 has 5 images, but only 1",
    ),
    "a slice in the second heartbeat, without its first phase": Broken(
        lambda f: write_dicom(
            f,
            skip=lambda s, p: (s, p) == (1, 1),
            change=lambda s, p: {"TriggerTime": 160 * p + 800 * (s == 1)},
        ),
        "slice 2 has trigger times after the next R wave",
        {},
    ),
    "more than one heartbeat": Broken(
        lambda f: write_dicom(f, NominalInterval=400),
        "the phases span 1.6 heartbeats",
        {"heart_rate": 150, "cardiac_output": 33.28 * 0.150},
    ),
    "an implausible heart rate": Broken(
        lambda f: write_dicom(f, NominalInterval=80),
        "a heart rate of 750 beats per minute is implausible and ignored",
        NO_RATE,
    ),
    "a slice with two of five phases": Broken(
        lambda f: write_dicom(f, skip=lambda s, p: s == 1 and p not in (0, 2)),
        "slice 2 has 2 phases, the others 5: the nearest phases are used",
        {},
    ),
    "a single phase": Broken(
        lambda f: write_dicom(f, phases=(0,), name="cine sax"),
        "cine sax: it has one phase; give the cine",
    ),
    # Files and series of DICOM
    "a slice acquired twice": Broken(repeated, "slice 2 was acquired 2 times", {}),
    "copies of files": Broken(
        copied, "left out 7 copies of other files with the same SOP Instance UID", {}
    ),
    "two patients in one folder": Broken(
        two_patients, "there are images of 2 patients .* give the folder of one patient"
    ),
    "late enhancement alone": Broken(
        lambda f: write_dicom(f, phases=(0,), name="PSIR LGE", TriggerTime=None),
        r"there is no short-axis cine among PSIR LGE \(LGE\); if one of them is, put sax into its",
    ),
    "a file cut short": Broken(
        lambda f: damage(write_dicom(f), cut), r"\d+.dcm: .*cut short.*; (copy|export|download)"
    ),
    "an unreadable transfer syntax": Broken(
        lambda f: damage(write_dicom(f), as_video), r"\d+.dcm: .*MPEG2.*"
    ),
    "late enhancement that networks refuse": Broken(
        lambda f: with_late_enhancement(f, PixelRepresentation=1, RescaleIntercept=-500),
        "no infarct measured in PSIR LGE: the images have negative values",
        {},
        SCAR,
    ),
    "a damaged late enhancement": Broken(
        lambda f: with_late_enhancement(f, PixelData=b"\0" * 64),
        "no infarct measured in PSIR LGE: .*dcm",
        {},
        SCAR,
    ),
    # Pixels and elements of DICOM
    "inverted grey values": Broken(
        lambda f: write_dicom(
            f, picture=lambda g: 4095 - g, PhotometricInterpretation="MONOCHROME1"
        ),
        "",
        {},
    ),
    "standardised pixels": Broken(
        lambda f: write_dicom(f, RescaleIntercept=-90),
        "cine: the images have negative values: give the values of the scanner",
    ),
    "constant images": Broken(
        lambda f: write_dicom(f, picture=lambda g: g * 0 + 7),
        "cine: the images have the same value everywhere",
    ),
    "a height in cm and a weight of 0": Broken(
        lambda f: write_dicom(f, PatientSize="175", PatientWeight="0", PatientSex="O"),
        "PatientSize: the height 175 is taken as cm, not metres",
        {},
    ),
    "an implausible height": Broken(
        lambda f: write_dicom(f, PatientSize="1750", PatientWeight="70", PatientSex="F"),
        "PatientSize: a height of 1750 metres is implausible and ignored",
        {},
    ),
}


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_a_broken_study(study, tmp_path, monkeypatch):
    check(study, tmp_path, monkeypatch)


def test_settings_of_the_patient_must_be_plausible():
    with pytest.raises(InputError, match=r"height: must be from 30 to 250 cm, got 1.75"):
        CardiacMR.Config(segmenter=DrawnHeart.Config(), height=1.75)


def test_an_intact_study_has_no_sentence_about_it(tmp_path, monkeypatch):
    report = analyse(Broken(write_dicom, "", {}), tmp_path, monkeypatch)
    assert report.warnings == (
        "no reference ranges: the patient's sex is unknown; give run.sex",
        "no indexed values: the height or weight is unknown; give run.height and run.weight",
    )
    assert_values(report, NORMAL)
