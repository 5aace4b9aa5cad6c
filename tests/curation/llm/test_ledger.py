"""The SQLite ledger: one writer, reservations, prompts and full disks."""

from __future__ import annotations

import pytest

from xraygpt.common.errors import InputError
from xraygpt.curation.llm.ledger import LEDGER_FILE, Ledger, LedgerError
from xraygpt.curation.llm.ledger_rows import Row


def test_the_ledger_allows_one_writer_and_rejects_other_files(tmp_path):
    with Ledger(tmp_path), pytest.raises(InputError, match="in use by another run"):
        Ledger(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / LEDGER_FILE).write_text("this is not a database, but long enough " * 99)
    with pytest.raises(InputError, match="is not an xraygpt ledger"):
        Ledger(tmp_path / "other")


def test_calls_in_progress_at_a_kill_are_charged(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.prepare([("a", "A"), ("b", "B")], "")
        ledger.reserve("a", 100, 50, 0.5)
        ledger.reserve("b", 100, 50, 0.5)
        ledger.clear_reservation("b")
    with Ledger(tmp_path) as ledger:
        assert (ledger.total_usage().tokens, ledger.total_usage().cost) == (150, 0.5)
        assert ledger.prepare([("a", "A"), ("b", "B")], "") == ["a", "b"]
    with Ledger(tmp_path) as ledger:
        assert ledger.total_usage().tokens == 150


def test_a_run_does_not_change_the_rows_of_another_prompt(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.prepare([("a", "A")], "R1")
        ledger.finish(Row("a", "A", "done", answer="{}", repair="R1"), "m")
        ledger.prepare([("b", "B")], "R2", ["refused"])
        assert ledger.prepare([("a", "A")], "R1") == []


def test_a_full_disk_gives_a_clear_message(tmp_path, monkeypatch):
    with Ledger(tmp_path) as ledger:
        ledger.prepare([("a", "A")], "")
        ledger._db.execute("PRAGMA max_page_count=1")
        long = Row("a", "A", "done", answer="x" * 10**6)
        with pytest.raises(LedgerError, match="free disk space and run the same command again"):
            ledger.finish(long, "m")
