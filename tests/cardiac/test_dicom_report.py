"""DICOM Structured Reports of measurements, read back from their files."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from tests.cardiac.conftest import STUDY, write_frame
from xraygpt.cardiac import dicom_source
from xraygpt.cardiac.dicom_report import QUANTITIES, write_report
from xraygpt.cardiac.dicom_source import Algorithm
from xraygpt.common.errors import DataError, InputError

hd = pytest.importorskip("highdicom", reason="pip install -c constraints.txt -e '.[cmr]'")
ALGORITHM = Algorithm("acdc", "0.1.6")
VALUES = {"lv_edv": 161.25, "lv_ef": 63.6, "rv_ef": 56.7, "lv_sv": 102.5, "rv_sv": 99.0}
CODES = {
    "lv_edv": ("LN", "8821-1", "ml"),
    "lv_esv": ("LN", "8823-7", "ml"),
    "lv_sv": ("SCT", "90096001", "ml"),
    "lv_ef": ("LN", "8811-2", "%"),
    "lv_mass": ("LN", "18087-7", "g"),
    "rv_edv": ("LN", "8822-9", "ml"),
    "rv_esv": ("LN", "8824-5", "ml"),
    "rv_sv": ("SCT", "90096001", "ml"),
    "rv_ef": ("LN", "8818-7", "%"),
    "cardiac_output": ("SCT", "82799009", "l/min"),
    "heart_rate": ("LN", "8867-4", "{H.B.}/min"),
    "body_surface_area": ("LN", "8277-6", "m2"),
    "lv_edv_index": ("99XRAYGPT", "LV_EDV_INDEX", "ml/m2"),
    "lv_esv_index": ("99XRAYGPT", "LV_ESV_INDEX", "ml/m2"),
    "lv_mass_index": ("99XRAYGPT", "LV_MASS_INDEX", "g/m2"),
    "rv_edv_index": ("99XRAYGPT", "RV_EDV_INDEX", "ml/m2"),
    "infarct_percent": ("99XRAYGPT", "INFARCT_PERCENT", "%"),
}
SITES = {"lv": "87878005", "rv": "53085002", "infarct": "49848007", "cardiac": "87878005"}


def items(dataset: Dataset, value_type: str) -> list[Dataset]:
    """All content items of a type, at any depth."""
    found = []
    for item in dataset.get("ContentSequence") or []:
        found += [item] if item.ValueType == value_type else []
        found += items(item, value_type)
    return found


def name_of(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def texts_of(file: Path) -> list[str]:
    return [str(i.TextValue) for i in items(dcmread(file), "TEXT") if name_of(i) == "121106"]


@pytest.fixture
def images(tmp_path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    return [write_frame(folder, slice_=s, phase=p) for s in range(2) for p in range(2)]


def test_every_measurement_has_its_code_unit_site_and_value(tmp_path, images):
    values = {name: 10.1 + i for i, name in enumerate(QUANTITIES)}
    assert set(CODES) == set(QUANTITIES)
    file = tmp_path / "out" / "report.dcm"
    assert write_report(file, values, images, ALGORITHM) == []
    found = {}
    for item in items(dcmread(file), "NUM"):
        code, measured = item.ConceptNameCodeSequence[0], item.MeasuredValueSequence[0]
        (unit,) = measured.MeasurementUnitsCodeSequence
        assert unit.CodingSchemeDesignator == "UCUM"
        modifiers = {name_of(i): i.ConceptCodeSequence[0].CodeValue for i in items(item, "CODE")}
        key = (code.CodingSchemeDesignator, code.CodeValue, unit.CodeValue)
        found[key, modifiers.get("363698007")] = float(measured.NumericValue), modifiers
    for name, value in values.items():
        number, modifiers = found[CODES[name], SITES.get(name.split("_")[0])]
        assert number == pytest.approx(value)
        assert modifiers.get("121425") == ("8277-6" if name.endswith("_index") else None)


def test_highdicom_reads_the_report(tmp_path, images):
    file = tmp_path / "report.dcm"
    write_report(file, VALUES, images, ALGORITHM)
    report = hd.sr.srread(file)
    read = [
        (m.name.meaning, m.value, m.unit.value)
        for group in report.content.get_image_measurement_groups()
        for m in group.get_measurements()
    ]
    assert ("Left Ventricular ED Volume", 161.25, "ml") in read
    assert len(read) == len(VALUES)


def test_the_report_belongs_to_the_study_and_is_not_verified(tmp_path, images):
    file = tmp_path / "report.dcm"
    write_report(file, VALUES, images, ALGORITHM, ["End systole is frame 9 – 0.3 s."])
    document = dcmread(file)
    assert (document.StudyInstanceUID, document.PatientID) == (STUDY, "P1")
    assert document.PatientName == "Doe^Jane"
    assert (document.VerificationFlag, document.CompletionFlag) == ("UNVERIFIED", "COMPLETE")
    assert document.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert texts_of(file) == [
        "Research use only, not for diagnosis",
        "End systole is frame 9 – 0.3 s.",
    ]
    evidence = {
        item.ReferencedSOPInstanceUID
        for study in document.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert evidence == {dcmread(image).SOPInstanceUID for image in images}
    algorithms = {(name_of(i), i.TextValue) for i in items(document, "TEXT")}
    assert {("111001", "acdc"), ("111003", "0.1.6")} <= algorithms


def test_simulated_images_are_named_as_such(tmp_path, images):
    file = tmp_path / "report.dcm"
    write_report(file, VALUES, images, ALGORITHM, synthetic=True)
    assert "SYNTHETIC: the images are simulated" in texts_of(file)
    assert dcmread(file).SeriesDescription.startswith("SYNTHETIC. ")


def test_without_dicom_images_the_report_says_what_was_generated(tmp_path):
    file = tmp_path / "report.dcm"
    generated = write_report(file, VALUES, [], ALGORITHM)
    document = dcmread(file)
    assert document.PatientID.startswith("UNKNOWN-") and document.StudyInstanceUID
    assert "CurrentRequestedProcedureEvidenceSequence" not in document
    assert len(generated) == 2 and set(generated) < set(texts_of(file))
    assert document.PatientID in generated[1]


def test_identifiers_that_the_images_lack(tmp_path):
    """A Patient ID is new only in a new study, since objects of one study must agree."""
    file = tmp_path / "report.dcm"
    image = write_frame(tmp_path, StudyInstanceUID=None)
    assert len(write_report(file, VALUES, [image], ALGORITHM)) == 1
    assert dcmread(file).PatientID == "P1"
    image = write_frame(tmp_path, PatientID=None, PatientName=None)
    assert write_report(file, VALUES, [image], ALGORITHM) == []
    assert (dcmread(file).PatientID, dcmread(file).StudyInstanceUID) == ("", STUDY)


def test_names_in_other_alphabets_survive(tmp_path):
    names = {"SpecificCharacterSet": "ISO_IR 144", "PatientName": "Люкceмбypг"}
    write_report(tmp_path / "r.dcm", VALUES, [write_frame(tmp_path, **names)], ALGORITHM, ["é"])
    assert str(dcmread(tmp_path / "r.dcm").PatientName) == "Люкceмбypг"
    assert "é" in texts_of(tmp_path / "r.dcm")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_invalid_elements_are_left_empty_or_a_sentence(tmp_path):
    image = write_frame(tmp_path, StudyDate="yesterday", PatientSex="W", PatientAge="old")
    write_report(tmp_path / "report.dcm", VALUES, [image], ALGORITHM)
    document = dcmread(tmp_path / "report.dcm")
    assert (document.StudyDate, document.PatientSex) == ("", "")
    image = write_frame(tmp_path, StudyDate="20230230")
    with pytest.raises(DataError, match="the DICOM report cannot be made from these images"):
        write_report(tmp_path / "report.dcm", VALUES, [image], ALGORITHM)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "there are no measurements"),
        ({"lv_edvi": 80.0}, "has no code for lv_edvi: use lv_edv, lv_esv"),
        ({"lv_ef": float("nan")}, "lv_ef is nan: leave out measurements"),
    ],
)
def test_values_that_cannot_be_written(tmp_path, images, values, message):
    with pytest.raises(InputError, match=message):
        write_report(tmp_path / "report.dcm", values, images, ALGORITHM)


def test_images_of_two_patients_or_studies(tmp_path, images):
    for change, what in ({"PatientID": "P2"}, "2 patients"), ({"StudyInstanceUID": "1.2"}, "2 st"):
        other = write_frame(tmp_path, **change)
        with pytest.raises(DataError, match=what):
            write_report(tmp_path / "report.dcm", VALUES, [*images, other], ALGORITHM)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for name in ("notes.txt", "missing.dcm"):
        with pytest.raises(DataError, match=name):
            write_report(tmp_path / "report.dcm", VALUES, [tmp_path / name], ALGORITHM)


def test_without_highdicom_the_command_is_named(tmp_path, images, monkeypatch):
    monkeypatch.setattr(dicom_source, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="type make install-cmr"):
        write_report(tmp_path / "report.dcm", VALUES, images, ALGORITHM)
