"""The check of the collections and the mixture."""

from __future__ import annotations

import json
import sys

import pytest

from tests.instructions.toy import toy_rows, toy_writer, write_toy
from xraygpt.instructions.checking import as_text
from xraygpt.instructions.published import PUBLISHED, TOTAL, TOTAL_IN_TEXT

OVERLAP = (
    "\n  - {collection: toy, task: report, splits: [train]}"
    "\n  - {collection: toy, task: region_grounding, splits: [test], into: test}\n"
)


def test_the_published_rows_add_up_to_more_than_the_published_total():
    assert TOTAL == 1_115_021 and TOTAL_IN_TEXT == 1_022_742
    assert PUBLISHED["vindr_cxr", "detection"] == (15_000, 2)


def test_the_check_counts_what_the_writer_writes(tmp_path):
    check = toy_writer(tmp_path, out="check").check()
    result = toy_writer(tmp_path).write()
    assert [entry.items for entry in check.entries] == [result.items[i] for i in range(9)]
    assert [dict(entry.left_out) for entry in check.entries] == [
        dict(result.left_out.get(i, {})) for i in range(9)
    ]
    assert check.problems == 0 and not (tmp_path / "check/items").exists()


def test_the_page_and_the_text_show_patients_in_two_splits(tmp_path):
    writer = toy_writer(tmp_path, OVERLAP)
    check = writer.check()
    assert [(o.held_out, o.patients) for o in check.overlaps] == [("test", 2)]
    assert "overlap: 2 patients of test (toy) also in train (toy), such as toy/2" in as_text(check)
    page = (writer.out / "check.html").read_text()
    assert "2 patients of test (toy) also in train" in page and "Research use only" in page
    stored = json.loads((writer.out / "check.json").read_text())
    assert stored["overlaps"][0]["patients"] == 2 and stored["use"] == "research use only"
    assert stored["collections"][0]["splits"] == {
        "test": {"LATERAL": 1, "PA": 1},
        "train": {"LATERAL": 1, "PA": 9},
    }


def test_missing_images_and_files_are_named_and_the_rest_is_checked(tmp_path):
    write_toy(tmp_path / "TOY")
    (tmp_path / "TOY/i0003.png").unlink()
    writer = toy_writer(tmp_path)
    assert "1 of 12 image files looked for are missing" in as_text(writer.check())
    (tmp_path / "TOY/rows.jsonl").unlink()
    check = writer.check()
    assert check.problems == 1 and "there is no rows.jsonl" in check.collections[0].error
    assert "there is no rows.jsonl" in (writer.out / "check.html").read_text()


def test_names_from_the_files_are_escaped_on_the_page(tmp_path):
    rows = toy_rows(2)
    rows[0]["view"] = "<script>"
    write_toy(tmp_path / "TOY", rows)
    writer = toy_writer(tmp_path)
    writer.check()
    assert "<script>" not in (writer.out / "check.html").read_text()


def run_command(monkeypatch, *args: object) -> None:
    from xraygpt.prepare_instructions import main

    monkeypatch.setattr(sys, "argv", ["prepare_instructions", *map(str, args)])
    main()


def test_the_command_writes_checks_and_has_exit_codes(tmp_path, monkeypatch, capsys):
    from xraygpt.jobs.instructions import CheckFailed, ImagesMissing

    toy_writer(tmp_path, OVERLAP)
    options = ("--cfg-path", tmp_path / "set.yaml", "--out", tmp_path / "out", "--workers", 1)
    with pytest.raises(CheckFailed, match="1 problem: see") as failed:
        run_command(monkeypatch, *options, "--check")
    assert failed.value.exit_code == 3
    exclude = ("--options", "output.overlap=exclude", "output.images=skip")
    (tmp_path / "TOY/i0000.png").unlink()
    with pytest.raises(ImagesMissing, match="1 image files are missing") as missing:
        run_command(monkeypatch, *options, *exclude)
    assert missing.value.exit_code == 3
    out = capsys.readouterr().out
    assert "toy report (train): " in out and "Research use only." in out
