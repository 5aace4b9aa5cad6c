"""Paired comparison of two prediction files: real differences are detected, no others."""

from __future__ import annotations

import json

import numpy as np
import pytest

from xraygpt.common.errors import InputError
from xraygpt.evaluation.compare import compare
from xraygpt.metrics import paired
from xraygpt.metrics.statistics import mean_score

REFERENCES = ["The heart is enlarged.", "No effusion.", "Left basilar opacity.", "Clear lungs."] * 8


def write(path, predictions, references=REFERENCES, start=0):
    rows = [{"signature": "x", "identity": {}}]
    for i, (p, r) in enumerate(zip(predictions, references, strict=True), start):
        rows.append({
            "sample_id": f"s{i}", "study_id": f"study{i // 2}", "prompt": "?", "prediction": p,
            "reference": r, "seed": 0, "meta": {},
        })  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_a_better_system_is_detected(tmp_path):
    better = write(tmp_path / "a.jsonl", REFERENCES)
    worse = write(tmp_path / "b.jsonl", [REFERENCES[(i + 1) % 4] for i in range(32)])
    rows = {r.name: r for r in compare(better, worse, permutations=500)}
    for name in ("ROUGE-L", "findings_text_F1", "BLEU-4"):
        difference = rows[name]
        assert difference.low > 0 and difference.p == pytest.approx(1 / 501) and difference.n == 32
        assert difference.value == pytest.approx(difference.first - difference.second)
    reverse = {r.name: r for r in compare(worse, better, permutations=500)}
    assert reverse["ROUGE-L"].value == pytest.approx(-rows["ROUGE-L"].value)
    assert "| ROUGE-L | 1.000 |" in paired.as_markdown(list(rows.values()))


@pytest.mark.slow
def test_a_system_does_not_differ_from_itself(tmp_path):
    file = write(tmp_path / "a.jsonl", REFERENCES[::-1])
    rows = compare(file, file, permutations=200)
    assert all(r.value == 0 and r.p == 1 for r in rows if r.first == r.first)


@pytest.mark.slow
def test_p_is_uniform_without_a_difference():
    """Of 200 comparisons of equal systems about 5 % have p below 0.05."""
    rng = np.random.default_rng(0)
    values = []
    for i in range(200):
        scores = (mean_score("m", list(v), "s") for v in rng.random((2, 40)))
        values.append(paired.paired_difference(*scores, permutations=200, seed=i).p)
    assert 0.01 < np.mean(np.array(values) < 0.05) < 0.10


def test_holm():
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_other_samples_or_references_raise(tmp_path):
    first = write(tmp_path / "a.jsonl", REFERENCES)
    disjoint = write(tmp_path / "b.jsonl", REFERENCES, start=100)
    with pytest.raises(InputError, match="no samples in common"):
        compare(first, disjoint)
    other = write(tmp_path / "c.jsonl", REFERENCES, [r.upper() for r in REFERENCES])
    with pytest.raises(InputError, match="32 samples have different references"):
        compare(first, other)
    (tmp_path / "d.jsonl").write_text("{}\n{not json\n")
    with pytest.raises(InputError, match="line 2"):
        compare(first, tmp_path / "d.jsonl")
