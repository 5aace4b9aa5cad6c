"""Paired comparison of two files of predictions: a real difference is found, none is not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from xraygpt.common.errors import InputError
from xraygpt.evaluation import compare as runners_compare
from xraygpt.metrics import paired
from xraygpt.metrics.statistics import mean_score

REFERENCES = ["The heart is enlarged.", "No effusion.", "Left basilar opacity.", "Clear lungs."] * 8


def write(path, said, references=REFERENCES, start=0):
    rows = [{"signature": "x", "identity": {}}]
    for i, (p, r) in enumerate(zip(said, references, strict=True), start):
        rows.append({
            "sample_id": f"s{i}", "study_id": f"study{i // 2}", "prompt": "?", "prediction": p,
            "reference": r, "seed": 0, "meta": {},
        })  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_a_better_system_is_told_from_a_worse_one(tmp_path):
    good = write(tmp_path / "a.jsonl", REFERENCES)
    bad = write(tmp_path / "b.jsonl", [REFERENCES[(i + 1) % 4] for i in range(32)])
    rows = {r.name: r for r in runners_compare.compare(good, bad, tosses=500)}
    for name in ("ROUGE-L", "findings_text_F1", "BLEU-4"):
        row = rows[name]
        assert row.low > 0 and row.p == pytest.approx(1 / 501) and row.n == 32
        assert row.value == pytest.approx(row.first - row.second)
    back = {r.name: r for r in runners_compare.compare(bad, good, tosses=500)}
    assert back["ROUGE-L"].value == pytest.approx(-rows["ROUGE-L"].value)
    assert "| ROUGE-L | 1.000 |" in paired.as_markdown(list(rows.values()))


@pytest.mark.slow
def test_a_system_does_not_differ_from_itself(tmp_path):
    file = write(tmp_path / "a.jsonl", REFERENCES[::-1])
    rows = runners_compare.compare(file, file, tosses=200)
    assert all(r.value == 0 and r.p == 1 for r in rows if r.first == r.first)


@pytest.mark.slow
def test_p_is_uniform_where_nothing_differs():
    """Of 200 comparisons of equals about a twentieth lies below 0.05."""
    rng = np.random.default_rng(0)
    values = []
    for i in range(200):
        one, two = rng.random((2, 40))
        scores = (mean_score("m", list(v), "s") for v in (one, two))
        values.append(paired.paired(*scores, tosses=200, seed=i).p)
    share = np.mean(np.array(values) < 0.05)
    assert 0.01 < share < 0.10


def test_holm():
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_other_samples_or_references_are_refused(tmp_path):
    one = write(tmp_path / "a.jsonl", REFERENCES)
    apart = write(tmp_path / "b.jsonl", REFERENCES, start=100)
    with pytest.raises(InputError, match="no sample in common"):
        runners_compare.compare(one, apart)
    other = write(tmp_path / "c.jsonl", REFERENCES, [r.upper() for r in REFERENCES])
    with pytest.raises(InputError, match="32 samples have another reference"):
        runners_compare.compare(one, other)
    (tmp_path / "d.jsonl").write_text("{}\n{not json\n")
    with pytest.raises(InputError, match="line 2"):
        runners_compare.compare(one, tmp_path / "d.jsonl")
