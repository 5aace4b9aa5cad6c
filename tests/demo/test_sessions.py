"""Sessions: their files, their end, stopping and clearing."""

from __future__ import annotations

import os
import stat
import threading
import time

import pytest

from tests.demo.helpers import SHORT, final_text, upload
from tests.demo.trained_model import square
from xraygpt.common.errors import InputError
from xraygpt.demo import sessions as sessions_module
from xraygpt.demo.decoding import DecodingSettings
from xraygpt.demo.responder import question_answers
from xraygpt.demo.sessions import PageSession, Sessions


def test_closing_the_page_stops_the_answer_and_deletes_the_files(controller, tmp_path):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    answers = controller.responder.draft(session, DecodingSettings(max_new_tokens=400))
    next(answers)
    thread = threading.Thread(target=controller.sessions.end, args=("a",))
    thread.start()
    assert list(answers)[-1].status.startswith("Stopped.")
    thread.join(10)
    assert not session.folder.exists() and len(controller.sessions) == 0


def test_an_idle_session_ends_with_a_message(controller, tmp_path):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    session.last_used -= sessions_module.IDLE_SECONDS + 1
    controller.sessions.clean_up()
    assert not session.folder.exists()
    for _ in range(2):  # until the page is reloaded and has a new key
        with pytest.raises(InputError, match="idle for too long, and its images were deleted"):
            controller.sessions.get("a")
    controller.sessions.end("b")
    with pytest.raises(InputError, match="connection to this page was lost"):
        controller.sessions.get("b")


def test_too_many_pages(controller, monkeypatch, tmp_path):
    monkeypatch.setattr(sessions_module, "MAX_SESSIONS", 2)
    monkeypatch.setattr(sessions_module, "MAX_ENDED", 1)
    for key in ("a", "b", "a", "c"):  # an unused page is closed to make room
        upload(
            controller,
            controller.sessions.get(key),
            *([square(tmp_path, "left")] if key != "b" else []),
        )
    assert len(controller.sessions) == 2
    with pytest.raises(InputError, match="too many people"):
        controller.sessions.get("d")
    with pytest.raises(InputError, match="has no session"):
        controller.sessions.get(None)


def test_folders_are_private_and_leftovers_are_deleted(controller, monkeypatch, tmp_path):
    session = controller.sessions.get("a")
    for folder in (controller.sessions.root, session.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(sessions_module.tempfile, "gettempdir", lambda: str(tmp_path))
    dead, alive = tmp_path / "xraygpt-demo-4194304-x", tmp_path / "xraygpt-demo-1-x"
    dead.mkdir(), alive.mkdir()
    other = Sessions(PageSession)
    assert not dead.exists() and alive.exists()
    other.close()


def test_unused_uploads_are_deleted(controller, tmp_path):
    stray = controller.sessions.uploads / "stray"
    stray.mkdir()
    controller.sessions.delete_stray_uploads(60)
    assert stray.exists()
    written, empty = controller.sessions.uploads / "tmp1", controller.sessions.uploads / "tmp2"
    written.write_bytes(b"being written"), empty.touch()
    os.utime(empty, (0, time.time() - 30))
    controller.sessions.delete_stray_uploads(60)
    assert stray.exists() and written.exists() and not empty.exists()
    controller.sessions.delete_stray_uploads(-1)
    assert not stray.exists() and not written.exists()


def test_clear_deletes_images_and_conversation(controller, tmp_path):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    list(controller.responder.draft(session, SHORT))
    session.clear()
    assert session.images == [] and list(session.folder.iterdir()) == []
    assert question_answers(session) == []
    with pytest.raises(InputError, match="upload an X-ray or choose an example first"):
        list(controller.responder.draft(session, SHORT))


def test_the_chat_and_the_study_are_cleared_separately(controller, tmp_path):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    session.study.files.mkdir(parents=True)
    session.study.num_files = 1
    session.clear()
    assert session.study.files.exists() and not session.study.is_stopped
    assert not session.is_unused
    upload(controller, session, square(tmp_path, "left", 6))
    session.study.clear()
    assert not session.study.folder.exists() and len(session.images) == 1
    session.study.files.mkdir(parents=True)
    controller.sessions.end("a")
    assert not session.study.folder.exists() and not session.folder.exists()


def test_stop_and_clear_cancel_queued_questions(controller, tmp_path):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    ticket = session.next_ticket()
    session.stop()
    [update] = controller.responder.draft(session, SHORT, ticket)
    assert update.status == "Stopped before it started." and question_answers(session) == []
    assert final_text(controller.responder.draft(session, SHORT, session.next_ticket()))
    waiting = session.next_ticket()
    session.clear()
    [update] = controller.responder.ask(session, "What was it?", SHORT, waiting)
    assert not update.started and question_answers(session) == []
    assert not session.lock.locked()


def test_caches_of_many_pages_are_bounded(controller, tmp_path, monkeypatch):
    monkeypatch.setattr(sessions_module, "MAX_CACHED", 2)
    opened = []
    for i in range(6):
        session = controller.sessions.get(f"s{i}")
        upload(controller, session, square(tmp_path, "left", i))
        controller.images.prefill(session)
        opened.append(session)
    controller.images.prefill(opened[-1])
    assert sum(bool(s.conversation._cache.token_keys) for s in opened) <= 2
