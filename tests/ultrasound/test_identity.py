"""Which texts repeat the header, however they are spelled."""

from __future__ import annotations

import warnings

import pytest

from tests.ultrasound.scans import identity
from xraygpt.ultrasound.identity import looks_like_date

HEADER = {
    "PatientName": "Quimby-Ōe^Philippa^M",
    "PatientID": "MRN-774411",
    "PatientBirthDate": "19590412",
    "StudyDate": "20210309",
    "AccessionNumber": "99317",
    "InstitutionName": "Winterfold Heart Center",
    "ReferringPhysicianName": "Okafor^Ada^^Dr",
    "StudyID": "7",
}


@pytest.mark.parametrize(
    ("text", "element"),
    [
        ("QUIMBY", "PatientName"),
        ("Philippa Quimby", "PatientName"),
        ("QUIMBY,PHILIPPA", "PatientName"),
        ("QUIMBYPHILIPPA 62Y", "PatientName"),
        ("Qu1mby", "PatientName"),  # a digit for a letter
        ("QUIMDY", "PatientName"),  # one letter misread
        ("Oe", "PatientName"),  # without its accent
        ("MRN774411", "PatientID"),
        ("ID: MRN 774411", "PatientID"),
        ("mrn-7744ll", "PatientID"),
        ("12.04.1959", "PatientBirthDate"),
        ("04/12/1959", "PatientBirthDate"),
        ("12 Apr 1959", "PatientBirthDate"),
        ("April 12, 1959", "PatientBirthDate"),
        ("1959-04-12", "PatientBirthDate"),
        ("DOB 12-APR-59", "PatientBirthDate"),
        ("3/9/2021", "StudyDate"),
        ("20210309 11:24", "StudyDate"),
        ("Acc# 99317", "AccessionNumber"),
        ("WINTERFOLD", "InstitutionName"),
        ("Dr. Okafor", "ReferringPhysicianName"),
        ("Ada", "ReferringPhysicianName"),
    ],
)
def test_a_text_that_repeats_the_header(text: str, element: str):
    assert identity(**HEADER).matches(text) == (element,)


@pytest.mark.parametrize(
    "text",
    [
        "", "MI 0.9", "TIS 0.7", "P21", "Heart Center", "Dr", "16 cm", "Gen THI", "7", "59", "2021",
        "HR 77", "04 12", "Adam", "99318", "AC 3", "12.04", "MRN", "Frame 12/59", "Adult Echo",
    ],
)  # fmt: skip
def test_a_text_that_does_not(text: str):
    assert identity(**HEADER).matches(text) == ()


def test_short_names_match_only_as_a_word():
    found = identity(PatientName="PLA")
    assert found.matches("PLA") == ("PatientName",)
    assert found.matches("View PLA") == ("PatientName",)
    assert found.matches("PLAX") == found.matches("DISPLAY") == ()


def test_names_in_other_scripts():
    found = identity(PatientName="Yamada^Tarou=山田^太郎")
    assert found.matches("山田太郎") == found.matches("TAROU") == ("PatientName",)


def test_older_dates_and_times():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydicom, about this spelling
        assert identity(StudyDate="1994.11.05").matches("05-NOV-94") == ("StudyDate",)
    found = identity(AcquisitionDateTime="20210309112420.000")
    assert found.matches("09.03.21") == ("AcquisitionDateTime",)


def test_values_that_are_too_short_to_look_for_are_named():
    found = identity(**HEADER)
    assert found.too_short == ("StudyID",)


def test_values_are_not_shown():
    found = identity(**HEADER)
    shown = f"{found!r} {found} {found.terms!r}".lower()
    assert not any(v in shown for v in ("quimby", "774411", "1959", "winterfold", "okafor"))


@pytest.mark.parametrize("text", ["12.04.1959", "3/9/21", "2021-03-09", "20210309", "24-MAY-02",
                                  "Mar 9, 2021", "9 March 2021"])  # fmt: skip
def test_dates_are_recognised_without_a_header(text: str):
    assert looks_like_date(f"Exam {text} 11:20")


@pytest.mark.parametrize("text", ["0.9", "11:24:20", "120/80", "1.2.3", "127/128", "MI 0.8 A0=100"])
def test_other_numbers_are_no_dates(text: str):
    assert not looks_like_date(text)
