"""Validation reports each problem of a corpus, and none for a clean one."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.conftest import toy_yaml
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.experiment import Training
from xraygpt.jobs.validate import check
from xraygpt.validate import main

RUN = "  task: report_generation\n  max_steps: 1"


def test_a_clean_corpus(tmp_path, toy, capsys, monkeypatch):
    path = tmp_path / "run.yaml"
    path.write_text(toy_yaml(toy, RUN))
    sheet = tmp_path / "sheet.png"
    monkeypatch.setattr("sys.argv", ["v", "--cfg-path", str(path), "--sheet", str(sheet)])
    main()
    output = capsys.readouterr().out
    assert "toy train: 36 samples" in output
    assert "toy val: 12 samples" in output
    assert "images: 48 read (48 × 32×32)" in output
    assert "no problems found" in output
    assert Image.open(sheet).size[0] == 1280


def test_each_problem_is_reported(tmp_path, toy, monkeypatch):
    rows = [json.loads(line) for line in (toy / "corpus.jsonl").read_text().splitlines()]
    rows[0]["images"] = [{"path": "images/gone.png"}]
    rows[1]["turns"][1]["text"] = 5
    rows[2]["study"] = "study3"  # study3 is val
    (toy / "images" / "s4.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    Image.new("L", (32, 32), 7).save(toy / "images" / "s5.png")
    (toy / "corpus.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    path = tmp_path / "run.yaml"
    path.write_text(toy_yaml(toy, RUN))
    messages = check(load(Training, path), None)
    assert len(messages) == 5
    for part in (
        "record 1: image not found",
        "record 2: each turn must be",
        "study study3 is in two splits",
        "record s4:",
        "s5.png contains a single grey level",
    ):
        assert any(part in message for message in messages), part
    monkeypatch.setattr(
        "sys.argv", ["v", "--cfg-path", str(path), "--sheet", str(tmp_path / "s.png")]
    )
    with pytest.raises(InputError, match="5 problems"):
        main()
