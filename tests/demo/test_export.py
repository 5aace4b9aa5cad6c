"""Exports of the report."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from tests.demo.helpers import SHORT, exported_content, upload
from tests.demo.trained_model import square
from tests.media.dicom_files import dataset, save
from xraygpt.common.errors import InputError
from xraygpt.demo.decoding import DecodingSettings
from xraygpt.demo.report import split_report
from xraygpt.demo.sessions import Session

EDITED = ("Edited | by *me* <script>", "Ω ≥ 2 cm")
NOTICE = "AI draft, not verified, research use only"


@pytest.fixture
def drafted(controller, tmp_path) -> Session:
    """A session with a draft on a DICOM file and one question."""
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint16)
    file = save(tmp_path / "Doe_John_1970.dcm", dataset(ramp, 12, Modality="CR"))
    session = controller.sessions.get("a")
    upload(controller, session, file)
    list(controller.responder.draft(session, SHORT))
    list(controller.responder.ask(session, "Is <b>it</b> left? | ä→", SHORT))
    return session


def test_an_export_has_its_provenance(controller, drafted):
    content = json.loads(exported_content(controller.export(drafted, *EDITED, "json")))
    assert content["findings"] == EDITED[0] and content["edited"] is True
    assert content["notice"] == NOTICE
    assert content["revision"] == "0" * 64 and content["prompt"] == "Report."
    assert content["seed"] is None and content["date"].startswith("20")
    assert [q for q, _ in content["conversation"]] == ["Is <b>it</b> left? | ä→"]
    draft = drafted.draft
    file = controller.export(drafted, draft.findings, draft.impression, "json")
    assert json.loads(exported_content(file))["edited"] is False


def test_each_format_has_the_notice_and_nothing_about_the_patient(controller, drafted):
    contents = {}
    for kind in ("json", "md", "pdf"):
        file = controller.export(drafted, *EDITED, kind)
        assert file["name"].endswith(f".{kind}")
        contents[kind] = exported_content(file)
    text = contents["md"].decode()
    assert text.count(NOTICE) == 2
    assert "\\<script\\>" in text and "0" * 64 in text and "Ω ≥ 2 cm" in text
    assert contents["pdf"].startswith(b"%PDF")
    for content in contents.values():
        assert b"Doe" not in content and b"SECRET" not in content


def test_an_export_describes_the_draft_and_no_other_answer(controller, tmp_path):
    frames = np.stack([np.full((32, 32), v, np.uint16) for v in (100, 2000)])
    frames[:, 4:9, 4:9] = 3000
    session = controller.sessions.get("a")
    upload(controller, session, save(tmp_path / "cine.dcm", dataset(frames, 12)))
    list(controller.responder.draft(session, SHORT))
    sampled = DecodingSettings(mode="sampling", max_new_tokens=24, seed=5)
    list(controller.responder.ask(session, "And?", sampled))
    upload(controller, session, square(tmp_path, "left"))
    session.images[0].show_frame(1)
    content = json.loads(exported_content(controller.export(session, "F", "I", "json")))
    assert content["seed"] is None and content["decoding"].startswith("as evaluated")
    assert content["images"] == ["image 1: 32 × 32 pixels, frame 1 of 2"]
    assert (
        content["ended"] == "length"
        and "cut off" in exported_content(controller.export(session, "F", "I", "md")).decode()
    )
    with pytest.raises(InputError, match="20,000 characters"):
        controller.export(session, "x" * 20_001, "", "pdf")


def test_exports_of_a_model_trained_on_phantoms_have_a_warning(controller, tmp_path):
    controller.synthetic = True
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    list(controller.responder.draft(session, SHORT))
    for kind in ("md", "json"):
        content = exported_content(controller.export(session, "F", "I", kind)).decode()
        assert "trained on SYNTHETIC phantoms" in content


def test_a_partial_report_is_split_consistently():
    text = "Findings: In all. Impression: Fine."
    halves = [split_report(text[:i], done=False) for i in range(len(text))]
    for (findings, impression), (later, after) in itertools.pairwise(halves):
        assert "In all.".startswith(findings) or findings == "In all."
        assert later.startswith(findings) and after.startswith(impression)
    assert split_report(text) == ("In all.", "Fine.")
    assert split_report("No headings: fine.") == ("No headings: fine.", "")
    assert split_report("findings: a IMPRESSION: b Findings: c") == ("a c", "b")
