"""Phantom reports say what was drawn; a corpus of them is deterministic and says SYNTHETIC."""

from __future__ import annotations

import json
import sys
from collections import Counter
from random import Random

import pytest
from PIL import Image

from xraygpt import synthesize
from xraygpt.common.errors import DataError, InputError
from xraygpt.metrics.drawn import drawn_in, drawn_scores
from xraygpt.phantom import corpus
from xraygpt.phantom.corpus import Recipe, write_corpus
from xraygpt.phantom.design import balanced
from xraygpt.phantom.findings import KINDS, codes_of
from xraygpt.phantom.grammar import report
from xraygpt.vocabulary.chest_labeller import label
from xraygpt.vocabulary.chest_mesh import findings_of

SMALL = Recipe(studies=12, seed=4, size=64, views=("frontal", "lateral"))


@pytest.mark.slow
def test_the_labeller_reads_exactly_what_was_drawn_with_its_side():
    """A thousand reports: no finding more, none less, every side right, in code and in words."""
    for seed in range(1000):
        rng = Random(seed)
        findings = balanced(rng)
        text = " ".join(report(findings, rng).values())
        read = {name for name, status in label(text).items() if status != "negative"}
        assert read == findings_of(codes_of(findings)), text
        sides = {f.name: {*f.drawn_sides} - {""} for f in findings}
        assert drawn_in(text) == sides, text


def test_every_finding_is_drawn_about_equally_often():
    times = Counter(f.name for seed in range(4000) for f in balanced(Random(seed)))
    assert set(times) == set(KINDS)
    assert max(times.values()) < 1.6 * min(times.values())


def test_few_reports_are_alike():
    texts = set()
    for seed in range(300):
        rng = Random(seed)
        texts.add(tuple(report(balanced(rng), rng).items()))
    assert len(texts) > 285


@pytest.mark.slow
def test_a_corpus_is_the_same_twice_and_says_synthetic(tmp_path):
    first, again = (write_corpus(tmp_path / n, SMALL, workers=1) for n in ("a", "b"))
    assert first.read_text() == again.read_text()
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        assert row["source"].startswith("SYNTHETIC")
        for image in row["images"]:
            one, two = tmp_path / "a" / image["path"], tmp_path / "b" / image["path"]
            assert one.read_bytes() == two.read_bytes()
            with Image.open(one) as picture:
                assert picture.text["Source"].startswith("SYNTHETIC")
                assert picture.size == (64, 64)
        for box in row["boxes"]:
            assert box["name"] in {finding["name"] for finding in row["labels"]}


@pytest.mark.slow
def test_an_interrupted_drawing_goes_on(tmp_path, monkeypatch):
    whole = write_corpus(tmp_path / "whole", SMALL, workers=1)
    drawn = []
    original = corpus.render

    def dies(study, *args):
        if len(drawn) == 7:
            raise KeyboardInterrupt
        drawn.append(study.study_id)
        return original(study, *args)

    monkeypatch.setattr(corpus, "render", dies)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path / "cut", SMALL, workers=1)
    assert not (tmp_path / "cut" / "reports.jsonl").exists()
    with pytest.raises(DataError, match="another recipe"):
        write_corpus(tmp_path / "cut", Recipe(studies=12, seed=5, size=64), workers=1)
    calls = []
    monkeypatch.setattr(corpus, "render", lambda *a: calls.append(a) or original(*a))
    again = write_corpus(tmp_path / "cut", SMALL, workers=1)
    assert again.read_text() == whole.read_text()
    assert len(calls) == 12 * 2 - 6  # the three studies that were whole are not drawn again


def test_scores_tell_a_wrong_side_and_a_missed_finding_from_the_truth():
    truth = [
        [{"name": "pneumothorax", "side": "left"}, {"name": "cardiomegaly", "side": ""}],
        [{"name": "pleural_effusion", "side": "bilateral"}],
        [{"name": "pacemaker", "side": "left"}],
        [],
    ]
    said = [
        "Small right pneumothorax.",  # wrong side; the heart is missed
        "Bilateral pleural effusions.",
        "Right central line.",  # a device, but no pacemaker
        "Small left pneumothorax.",  # nothing is there
    ]
    scores = {s.name: s for s in drawn_scores(said, truth)}
    assert scores["drawn_F1/pneumothorax"].value == pytest.approx(2 / 3)
    assert scores["drawn_F1/pleural_effusion"].value == 1
    assert scores["drawn_F1/cardiomegaly"].value == scores["drawn_F1/pacemaker"].value == 0
    assert scores["drawn_macro_F1"].value == pytest.approx((2 / 3 + 1) / 4)
    assert scores["drawn_laterality"].value == pytest.approx(1 / 2)


def test_the_command_line_draws(tmp_path, monkeypatch, capsys):
    command = ["synthesize", "--out", str(tmp_path / "out"), "--studies", "2", "--size", "48"]
    monkeypatch.setattr(sys, "argv", [*command, "--workers", "1", "--views", "frontal", "lateral"])
    synthesize.main()
    assert "SYNTHETIC" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 4
    monkeypatch.setattr(sys, "argv", [*command, "--texts", "openi"])
    with pytest.raises(InputError, match="needs design: openi"):
        synthesize.main()
