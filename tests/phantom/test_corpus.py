"""Phantom reports match the drawn findings; a corpus is deterministic and marked SYNTHETIC."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from xraygpt import synthesize
from xraygpt.common.errors import DataError, InputError
from xraygpt.metrics.phantom_reports import findings_in_text, phantom_report_scores
from xraygpt.phantom import corpus
from xraygpt.phantom.corpus import Recipe, write_corpus
from xraygpt.phantom.design import sample_balanced_findings
from xraygpt.phantom.findings import KINDS, codes_of
from xraygpt.phantom.grammar import generate_report
from xraygpt.vocabulary.chest_labeller import label
from xraygpt.vocabulary.chest_mesh import findings_of

SMALL = Recipe(studies=12, seed=4, size=64, views=("frontal", "lateral"))


@pytest.mark.slow
def test_the_labeller_finds_exactly_the_drawn_findings_and_sides():
    """For 1,000 reports, through the codes and through the text."""
    for seed in range(1000):
        rng = Random(seed)
        findings = sample_balanced_findings(rng)
        text = " ".join(generate_report(findings, rng).values())
        named = {name for name, status in label(text).items() if status != "negative"}
        assert named == findings_of(codes_of(findings)), text
        sides = {f.name: {*f.drawn_sides} - {""} for f in findings}
        assert findings_in_text(text) == sides, text


def test_every_finding_is_drawn_about_equally_often():
    times = Counter(f.name for seed in range(4000) for f in sample_balanced_findings(Random(seed)))
    assert set(times) == set(KINDS)
    assert max(times.values()) < 1.6 * min(times.values())


def test_reports_rarely_repeat():
    texts = set()
    for seed in range(300):
        rng = Random(seed)
        texts.add(tuple(generate_report(sample_balanced_findings(rng), rng).items()))
    assert len(texts) > 285


def check_images(first: Path, second: Path) -> None:
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as picture:
        assert picture.text["Source"].startswith("SYNTHETIC")
        assert picture.size == (64, 64)


@pytest.mark.slow
def test_a_corpus_is_reproducible_and_marked_synthetic(tmp_path):
    first, second = (write_corpus(tmp_path / n, SMALL, workers=1) for n in ("a", "b"))
    assert first.read_text() == second.read_text()
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        assert row["source"].startswith("SYNTHETIC")
        for image in row["images"]:
            check_images(tmp_path / "a" / image["path"], tmp_path / "b" / image["path"])
        names = {finding["name"] for finding in row["labels"]}
        assert {box["name"] for box in row["boxes"]} <= names


@pytest.mark.slow
def test_an_interrupted_corpus_is_completed(tmp_path, monkeypatch):
    complete = write_corpus(tmp_path / "complete", SMALL, workers=1)
    rendered = []
    original = corpus.render

    def interrupted(study, *args):
        if len(rendered) == 7:
            raise KeyboardInterrupt
        rendered.append(study.study_id)
        return original(study, *args)

    monkeypatch.setattr(corpus, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path / "cut", SMALL, workers=1)
    assert not (tmp_path / "cut" / "reports.jsonl").exists()
    with pytest.raises(DataError, match="another recipe"):
        write_corpus(tmp_path / "cut", Recipe(studies=12, seed=5, size=64), workers=1)
    calls = []
    monkeypatch.setattr(corpus, "render", lambda *a: calls.append(a) or original(*a))
    resumed = write_corpus(tmp_path / "cut", SMALL, workers=1)
    assert resumed.read_text() == complete.read_text()
    assert len(calls) == 12 * 2 - 6  # the three complete studies are not drawn again


def test_scores_of_wrong_sides_and_missed_findings():
    labels = [
        [{"name": "pneumothorax", "side": "left"}, {"name": "cardiomegaly", "side": ""}],
        [{"name": "pleural_effusion", "side": "bilateral"}],
        [{"name": "pacemaker", "side": "left"}],
        [],
    ]
    predictions = [
        "Small right pneumothorax.",  # wrong side; cardiomegaly is missed
        "Bilateral pleural effusions.",
        "Right central line.",  # a device, but not a pacemaker
        "Small left pneumothorax.",  # a false positive
    ]
    scores = {s.name: s for s in phantom_report_scores(predictions, labels)}
    assert scores["drawn_F1/pneumothorax"].value == pytest.approx(2 / 3)
    assert scores["drawn_F1/pleural_effusion"].value == 1
    assert scores["drawn_F1/cardiomegaly"].value == scores["drawn_F1/pacemaker"].value == 0
    assert scores["drawn_macro_F1"].value == pytest.approx((2 / 3 + 1) / 4)
    assert scores["drawn_laterality"].value == pytest.approx(1 / 2)


def test_the_command_draws_a_corpus(tmp_path, monkeypatch, capsys):
    command = ["synthesize", "--out", str(tmp_path / "out"), "--studies", "2", "--size", "48"]
    monkeypatch.setattr(sys, "argv", [*command, "--workers", "1", "--views", "frontal", "lateral"])
    synthesize.main()
    assert "SYNTHETIC" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 4
    monkeypatch.setattr(sys, "argv", [*command, "--texts", "openi"])
    with pytest.raises(InputError, match="requires design: openi"):
        synthesize.main()
