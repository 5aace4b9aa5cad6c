"""Raw layouts of OpenI, ROCO and MIMIC-CXR; what cannot be read is named by file and row."""

from __future__ import annotations

import tarfile
from importlib import metadata
from pathlib import Path

import pytest

from xraygpt.common.errors import DataError
from xraygpt.curation.sources import (
    ImageName,
    Problem,
    SourceReport,
    mimic_sections,
    read_mimic,
    read_openi_csv,
    read_openi_xml,
    read_roco,
)

XML = """<eCitation><uId id="CXR{0}"/><MedlineCitation><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION"/>
<AbstractText Label="FINDINGS">The heart
 is large.</AbstractText><AbstractText Label="IMPRESSION">Large heart.</AbstractText>
</Abstract></MedlineCitation>
<parentImage id="CXR{0}_1_IM-0001-3001"/><parentImage id="CXR{0}_1_IM-0001-4001"/></eCitation>"""


def test_openi_xml_in_the_order_of_ids_with_images(tmp_path: Path):
    for number in (10, 9):
        (tmp_path / f"{number}.xml").write_text(XML.format(number))
    rows = list(read_openi_xml(tmp_path))
    assert [r.source_id for r in rows] == ["CXR9", "CXR10"]
    assert rows[0].sections == {
        "comparison": "None.", "findings": "The heart is large.", "impression": "Large heart.",
    }  # fmt: skip
    assert rows[0].images[1] == ImageName("CXR9_1_IM-0001-4001")
    with tarfile.open(tmp_path / "reports.tgz", "w:gz") as archive:
        archive.add(tmp_path / "9.xml", "ecgen-radiology/9.xml")
    (packed,) = read_openi_xml(tmp_path / "reports.tgz")
    assert (packed.source_id, packed.sections) == (rows[0].source_id, rows[0].sections)


def test_broken_xml_is_a_problem_and_the_rest_goes_on(tmp_path: Path):
    (tmp_path / "1.xml").write_text(XML.format(1)[:200])
    (tmp_path / "2.xml").write_text("<a/>")
    (tmp_path / "3.xml").write_text(XML.format(3))
    (tmp_path / "4.xml").write_bytes(b"x" * 1_000_001)
    rows = list(read_openi_xml(tmp_path))
    problems = [r for r in rows if isinstance(r, Problem)]
    assert [Path(p.where).name for p in problems] == ["1.xml", "2.xml", "4.xml"]
    assert [p.why.split(":")[0] for p in problems] == [
        "no XML", "no <uId id=…>", "larger than 1000000 bytes",
    ]  # fmt: skip
    assert not any("heart" in p.why for p in problems)  # no report text in a message
    assert sum(isinstance(r, SourceReport) for r in rows) == 1


def kaggle(folder: Path, reports: str | bytes) -> Path:
    images = "uid,filename,projection\n7,7_IM-0001-4001.dcm.png,Frontal\n"
    images += "7,7_IM-0001-3001.dcm.png,Lateral\n"
    (folder / "indiana_projections.csv").write_text(images)
    data = reports if isinstance(reports, bytes) else reports.encode()
    (folder / "indiana_reports.csv").write_bytes(data)
    return folder


def test_the_kaggle_pair(tmp_path: Path):
    rows = list(
        read_openi_csv(kaggle(tmp_path, 'uid,findings,impression\n7,"Clear, normal.",None.\n'))
    )
    assert rows[0].source_id == "CXR7"
    assert rows[0].sections == {"findings": "Clear, normal.", "impression": "None."}
    assert rows[0].images[0] == ImageName("7_IM-0001-4001.dcm.png", "Frontal")


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        ("uid,findings,impression\n7,a\n8,b,c\n", "line 2", "2 columns, 3 in the header"),
        ('uid,findings,impression\n7,a,b\n8,"c"d,e\n', "line 3", "broken quoting"),
        ("uid,findings,impression\nx,a,b\n", "line 2", "uid is no number"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, text: str, where: str, why: str):
    problems = [r for r in read_openi_csv(kaggle(tmp_path, text)) if isinstance(r, Problem)]
    assert len(problems) == 1
    assert problems[0].where.endswith(where)
    assert problems[0].why.startswith(why)


def test_a_missing_column_stops_at_once_and_latin_1_is_read(tmp_path: Path):
    with pytest.raises(DataError, match="lacks the column impression: its first line must"):
        list(read_openi_csv(kaggle(tmp_path, "uid,findings\n7,a\n")))
    rows = list(
        read_openi_csv(kaggle(tmp_path, "uid,findings,impression\n7,café,b\n".encode("latin-1")))
    )
    assert rows[0].sections["findings"] == "café"
    with pytest.raises(DataError, match="cannot read"):
        list(read_openi_csv(tmp_path / "absent"))


def test_roco_in_both_shapes(tmp_path: Path):
    (tmp_path / "captions.txt").write_text("ROCO_1\t A large heart.\nROCO_2 no tab\n")
    first, problem = read_roco(tmp_path)
    assert (first.source_id, first.sections["findings"]) == ("ROCO_1", "A large heart.")
    assert problem == Problem("captions.txt, line 2", "no tab between id and caption")
    (tmp_path / "data.csv").write_text("id,name,caption\nROCO_1,PMC1.jpg,A large heart.\n")
    (row,) = read_roco(tmp_path / "data.csv")
    assert row.images == (ImageName("PMC1.jpg"),)


MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old with cough.

 COMPARISON:  None.

 FINDINGS:

 The heart is large.  Note: the lungs are clear.

 IMPRESSION:
 Large heart.
"""


def test_mimic_sections_and_patients(tmp_path: Path):
    folder = tmp_path / "files" / "p10" / "p10000032"
    folder.mkdir(parents=True)
    (folder / "s50414267.txt").write_text(MIMIC)
    (folder / "s50414268.txt").write_text(
        "  FINAL REPORT\n NOTE TO FILE: PA\n\n The heart is large.\n"
    )
    (folder / "s50414269.txt").write_text("\n \n")
    one, two, three = read_mimic(tmp_path)
    assert one.sections["findings"] == "The heart is large. Note: the lungs are clear."
    assert one.sections["impression"] == "Large heart."
    assert (one.source_id, one.patient_id) == ("s50414267", "p10000032")
    assert two.sections == {"last_paragraph": "The heart is large."}
    assert isinstance(three, Problem)


@pytest.fixture(scope="session")
def openi() -> list[SourceReport]:
    try:
        files = metadata.files("torchxrayvision") or []
    except metadata.PackageNotFoundError:
        pytest.skip("torchxrayvision is absent (make install)")
    archive = next(f for f in files if f.name == "NLMCXR_reports.tgz")
    return list(read_openi_xml(Path(str(archive.locate()))))


def test_all_of_openi_is_read_and_the_published_filter_keeps_what_it_kept(openi):
    """3,398 of 3,955 by words between blanks, as counted before; XrayGPT states 3,403."""
    assert len(openi) == 3955
    assert all(isinstance(r, SourceReport) for r in openi)
    kept = [
        r for r in openi
        if len(r.sections.get("findings", "").split()) >= 10
        and len(r.sections.get("impression", "").split()) >= 2
    ]  # fmt: skip
    assert len(kept) == 3398


@pytest.mark.data
def test_real_tables(real_data):
    rows = list(read_openi_csv(real_data / "openi_kaggle"))
    assert len(rows) == 3851
    assert not any(isinstance(r, Problem) for r in rows)
    assert sum(len(r.images) for r in rows) == 7466
    captions = list(read_roco(real_data / "roco"))
    assert len(captions) == 8180
    assert not any(isinstance(r, Problem) for r in captions)


@pytest.mark.parametrize(
    ("heading", "section"),
    [
        ("CHEST, TWO VIEWS", "findings"),
        ("PA AND LATERAL VIEWS OF THE CHEST", "findings"),
        ("IMPRESSON", "impression"),
        ("FINAL IMPRESSION", "impression"),
        ("FINDINGS/IMPRESSION", "impression"),
        ("REASON FOR EXAM", "indication"),
        ("COMPARISON FILM", "comparison"),
        ("TECHNIQUE", None),
        ("RECOMMENDATION(S)", None),
    ],
)
def test_headings_of_mimic_open_the_sections_its_official_splitter_says(heading, section):
    found = mimic_sections(f" {heading}: \n The lungs are clear.\n")
    said = {k: v for k, v in found.items() if k != "last_paragraph"}
    assert said == ({section: "The lungs are clear."} if section else {})


def test_of_two_sections_the_last_that_says_something_counts():
    text = " FINDINGS: First.\n IMPRESSION: Large.\n FINDINGS: Second.\n IMPRESSION:\n"
    assert mimic_sections(text) == {"findings": "Second.", "impression": "Large."}


def test_one_bad_byte_changes_no_other_row(tmp_path: Path):
    path = tmp_path / "captions.txt"
    path.write_bytes(b"a\tX-ray shows\x85 a nodule.\n" + "b\tX-ray, 3 × 4 cm.\n".encode())
    first, second = read_roco(path)
    assert first.sections["findings"] == "X-ray shows… a nodule."
    assert second.sections["findings"] == "X-ray, 3 × 4 cm."


def test_archives_cut_short_and_unknown_encodings(tmp_path: Path):
    (tmp_path / "1.xml").write_text(XML.format(1))
    (tmp_path / "2.xml").write_text(f'<?xml version="1.0" encoding="foo"?>{XML.format(2)}')
    rows = list(read_openi_xml(tmp_path))
    assert isinstance(rows[0], SourceReport)
    assert isinstance(rows[1], Problem)
    with tarfile.open(tmp_path / "all.tgz", "w:gz") as archive:
        for i in range(50):
            archive.add(tmp_path / "1.xml", f"{i}.xml")
    whole = (tmp_path / "all.tgz").read_bytes()
    for part in (len(whole) // 2, 10):
        (tmp_path / "cut.tgz").write_bytes(whole[:part])
        with pytest.raises(DataError, match=r"no whole \.tgz archive"):
            list(read_openi_xml(tmp_path / "cut.tgz"))


def test_a_csv_without_a_header_shows_no_report(tmp_path: Path):
    (tmp_path / "indiana_projections.csv").write_text("uid,filename,projection\n")
    (tmp_path / "indiana_reports.csv").write_text("1,The quokka is enlarged,Large quokka\n")
    with pytest.raises(DataError, match="its first line must name the columns") as caught:
        list(read_openi_csv(tmp_path))
    assert "quokka" not in str(caught.value)
