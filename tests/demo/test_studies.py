"""Studies on the page, without a browser: uploads, analysis, exports, and the end of a session."""

from __future__ import annotations

import io
import json
import re
import stat
import threading
import zipfile

import pytest

from tests.demo.helpers import exported_content
from tests.demo.painted_hearts import Unreadable, build_desk, upload_study, zip_of, zipped_cine
from xraygpt.common.errors import InputError
from xraygpt.demo.study_desk import StudyDesk
from xraygpt.demo.study_files import StudyLimits
from xraygpt.demo.study_view import details_html, message_html, summary_html, update_html
from xraygpt.studies.report import NOTICE


@pytest.fixture
def desk():
    desk = build_desk()
    yield desk
    desk.sessions.close()
    assert not desk.sessions.root.exists()


@pytest.fixture
def analysed(desk, tmp_path):
    """A session with a report, and the last update of its analysis."""
    session = desk.sessions.get("a")
    assert upload_study(desk, session, zipped_cine(tmp_path)) == []
    return session, list(desk.analyse(session))[-1]


def test_a_zip_file_becomes_a_report(desk, analysed):
    session, last = analysed
    assert session.study.num_files == 15 and last.status.startswith("Analysed in")
    report = last.report
    assert report.study == "upload" and report.value("lv_ef") == pytest.approx(75)
    assert [clip.name for clip in report.clips] == ["slice 1", "slice 2", "slice 3"]
    clip = report.clips[0]
    assert clip.frames.shape == clip.contours.shape and clip.frames.shape[0] == 5
    assert clip.duration == pytest.approx(0.8) and clip.times[1] == pytest.approx(0.16)
    assert (clip.contours[0] != clip.contours[2]).any()
    assert session.study.report.clips == ()  # the browser has them
    page = summary_html(report) + details_html(report)
    for text in (NOTICE, "LV ejection fraction", "Painted for tests only.", "data:image/png"):
        assert text in page
    assert not re.search("Doe[_^/ ]", page) and str(session.study.folder) not in page


def test_single_files_are_added_one_by_one(desk, tmp_path):
    session = desk.sessions.get("a")
    zipped_cine(tmp_path)
    frames = sorted((tmp_path / "frames").iterdir())
    assert upload_study(desk, session, *frames[:8]) == []
    assert desk.describe(session).startswith("8 files, 0.1 MB")
    assert upload_study(desk, session, *frames[8:]) == []
    assert list(desk.analyse(session))[-1].report.value("lv_ef") == pytest.approx(75)
    upload_study(desk, session, frames[0])  # starts another study
    assert session.study.num_files == 1 and session.study.report is None


LINK = zipfile.ZipInfo("link")
LINK.create_system, LINK.external_attr = 3, (stat.S_IFLNK | 0o777) << 16


@pytest.mark.parametrize(("name", "message"), [
    ("../outside.dcm", "would be written outside of its folder; refused"),
    ("/etc/outside", "would be written outside"),
    ("a/../../outside", "would be written outside"),
    ("..\\outside", "would be written outside"),
    ("C:/outside", "would be written outside"),
    (LINK, "contains a link; compress the files themselves"),
    ("/".join("a" * 20), "more than 16 folders within folders"),
    (".DS_Store", "contains no files"),
])  # fmt: skip
def test_unsafe_zip_files_are_refused(desk, tmp_path, name, message):
    session = desk.sessions.get("a")
    file = tmp_path / "study.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"/etc/passwd")
    [error] = upload_study(desk, session, file)
    assert error.startswith("File 1 ") and message in error and "\n" not in error
    assert [p for p in desk.sessions.root.rglob("*") if p.is_file()] == []
    assert not list(desk.sessions.root.parent.glob("outside*")) and not session.study.num_files


def test_the_size_and_number_of_files_are_limited(desk, tmp_path):
    bomb = zip_of(tmp_path / "bomb.zip", {"zeros": bytes(10**6)})
    many = zip_of(tmp_path / "many.zip", {f"{i}": b"x" for i in range(9)})
    small = StudyDesk(desk.analysis, "small", desk.sessions, StudyLimits(8, 10**5))
    session = small.sessions.get("a")
    errors = upload_study(small, session, bomb, many)
    assert "File 1 has more than" in errors[0] and "GB unpacked" in errors[0]
    assert errors[1] == "File 2 has more than 8 files; upload one study at a time"
    content = bytearray(bomb.read_bytes())  # a declared size of 100 bytes does not help
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (100).to_bytes(4, "little")
    liar = tmp_path / "liar.zip"
    liar.write_bytes(content)
    assert upload_study(small, session, liar) and not session.study.num_files
    contents = bytearray(many.read_bytes())  # a table of contents of 4 GB is not read
    contents[-10:-6] = (2**32 - 2).to_bytes(4, "little")
    liar.write_bytes(contents)
    assert "more than 8 files" in upload_study(small, session, liar)[0]
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(10**5 + 1))
    assert "is too much for one study" in upload_study(small, session, plain)[0]
    assert [p for p in desk.sessions.root.rglob("*") if p.is_file()] == []


def test_broken_zip_files_are_refused(desk, tmp_path):
    session = desk.sessions.get("a")
    whole = zip_of(tmp_path / "whole.zip", {"a": bytes(range(256)) * 100}).read_bytes()
    damaged = bytearray(whole)
    damaged[40:60] = bytes(20)
    encrypted = bytearray(whole)
    encrypted[whole.rindex(b"PK\x01\x02") + 8] |= 1
    for i, (content, message) in enumerate([
        (whole[: len(whole) // 2], "is damaged or not a zip file; compress the folder again"),
        (bytes(damaged), "is damaged or not a zip file"),
        (b"text", "is damaged or not a zip file"),
        (bytes(encrypted), "is encrypted; compress the folder without a password"),
    ]):  # fmt: skip
        file = tmp_path / f"broken-{i}.zip"
        file.write_bytes(content)
        assert message in upload_study(desk, session, file)[0]
    assert not session.study.num_files


@pytest.mark.parametrize(("content", "message"), [
    ({"notes.txt": b"hello"}, "there is nothing that can be read; give a folder of DICOM files"),
    ({"a.nii.gz": b"\x1f\x8b broken"}, "a.nii.gz"),
    ({"IM1": b"\0" * 128 + b"DICM broken"}, "IM1"),
])  # fmt: skip
def test_a_file_that_cannot_be_analysed_is_one_sentence(desk, tmp_path, content, message):
    session = desk.sessions.get("a")
    assert upload_study(desk, session, zip_of(tmp_path / "x.zip", content)) == []
    update = list(desk.analyse(session))[-1]
    assert update.failed and update.report is None and update.status.startswith("Not analysed: ")
    assert message in update.status and "\n" not in update.status
    assert str(desk.sessions.root) not in update.status
    assert 'role="alert"' in update_html(update)
    with pytest.raises(InputError, match="nothing to export yet"):
        desk.export(session, "json")


def test_errors_of_the_segmenter_and_of_several_studies(desk, tmp_path):
    desk.analysis.segmenter = Unreadable(Unreadable.Config())
    session = desk.sessions.get("a")
    upload_study(desk, session, zipped_cine(tmp_path))
    assert "are too small; use larger ones" in list(desk.analyse(session))[-1].status
    session = desk.sessions.get("b")
    first = {f"a/{p.name}": p.read_bytes() for p in (tmp_path / "frames").iterdir()}
    zipped_cine(tmp_path, StudyInstanceUID="1.2.3")
    second = {f"b/{p.name}": p.read_bytes() for p in (tmp_path / "frames").iterdir()}
    upload_study(desk, session, zip_of(tmp_path / "two.zip", {**first, **second}))
    assert "belong to 2 studies; press Clear" in list(desk.analyse(session))[-1].status
    desk.analysis.find_studies = lambda source: 1 / 0  # not the user's error
    with pytest.raises(ZeroDivisionError):
        list(desk.analyse(session))
    assert not session.study.lock.locked()
    assert "&lt;b&gt;" in message_html(["<b>"])


def test_every_export_has_the_notice(desk, analysed):
    session, _ = analysed
    for kind in ("html", "md", "json"):
        file = desk.export(session, kind)
        assert file["name"].startswith("xraygpt-study-20") and file["name"].endswith(f".{kind}")
        text = exported_content(file).decode()
        assert NOTICE in text and not re.search("Doe[_^/ ]", text) and "xraygpt-demo-" not in text
    assert json.loads(text)["measurements"]["lv_ef"]["value"] == pytest.approx(75)
    with zipfile.ZipFile(io.BytesIO(exported_content(desk.export_all(session)))) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    assert {"NOTICE.txt", "report.html", "report.md", "report.json", "label_maps.nii.gz",
            "report.dcm", "figures/volume_curve.png"} <= names  # fmt: skip


def test_an_analysis_reports_its_progress_and_stops(tmp_path):
    desk = build_desk(seconds=0.4)
    session = desk.sessions.get("a")
    with pytest.raises(InputError, match="upload a study first"):
        next(desk.analyse(session))
    upload_study(desk, session, zipped_cine(tmp_path))
    updates = []
    for update in desk.analyse(session):
        updates.append(update)
        if update.fraction:
            with pytest.raises(InputError, match="an analysis is running"):
                upload_study(desk, session, tmp_path / "Doe_Jane.zip")
            with pytest.raises(InputError, match="still running"):
                next(desk.analyse(session))
            session.study.stop()
    assert any("of 5, about" in u.status and "left" in u.status for u in updates)
    assert updates[-1].status == "Stopped." and session.study.report is None
    assert [u.status for u in desk.analyse(session)] == ["Stopped before it started."]
    session.study.allow()
    assert list(desk.analyse(session))[-1].report is not None
    desk.sessions.close()


def test_closing_the_page_stops_the_analysis_and_deletes_the_files(tmp_path):
    desk = build_desk(seconds=0.3)
    session = desk.sessions.get("a")
    upload_study(desk, session, zipped_cine(tmp_path))
    folder = session.study.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    updates = desk.analyse(session)
    next(updates)
    thread = threading.Thread(target=desk.sessions.end, args=("a",))
    thread.start()
    assert list(updates)[-1].report is None
    thread.join(10)
    assert not folder.exists() and len(desk.sessions) == 0
    session = desk.sessions.get("b")
    upload_study(desk, session, tmp_path / "Doe_Jane.zip")
    session.study.clear()
    assert not session.study.folder.exists() and not session.study.num_files
    desk.sessions.close()
