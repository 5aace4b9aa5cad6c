"""The metric card: agreement with radiologists, on made-up ratings and on RadPref."""

from __future__ import annotations

import json

import numpy as np
import pytest

from xraygpt.common.errors import DataError, InputError
from xraygpt.metrics.agreement import (
    Candidate,
    as_markdown,
    as_rows,
    metric_card,
    read_radpref,
    text_metrics,
)


def made_up(ratings: np.ndarray) -> list[Candidate]:
    """Two candidates for each of n studies, rated (n, 2)."""
    return [
        Candidate(f"s{i}", f"system {j}", f"report {i} {j}", f"A {i + 1} mm nodule.",
                  (float(ratings[i, j]),) * 3, j == 0 and i == 0)
        for i in range(len(ratings)) for j in range(2)
    ]  # fmt: skip


def values_of(card) -> dict[str, dict[str, float]]:
    return {m.name: {k: v[0] for k, v in m.values.items()} for m in card.metrics}


def test_a_metric_that_only_tells_the_systems_apart_agrees_within_none():
    rng = np.random.default_rng(0)
    ratings = np.stack([rng.integers(1, 4, 60), rng.integers(3, 6, 60)], axis=1)
    candidates = made_up(ratings)
    perfect = ratings.ravel().astype(float)
    system = np.tile([0.0, 1.0], 60)
    card = metric_card(
        candidates,
        {"perfect": perfect, "system": system, "against": -perfect, "some": np.where(
            np.arange(120) % 3 == 0, np.nan, perfect)},
        resamples=200,
    )  # fmt: skip
    found = values_of(card)
    assert found["perfect"] == pytest.approx({"tau": 1, "r": 1, "within": 1, "prefers": 1})
    assert found["against"]["tau"] == -1 and found["against"]["prefers"] == 0
    assert found["system"]["tau"] > 0.5 and np.isnan(found["system"]["within"])
    assert {m.name: m.n for m in card.metrics}["some"] == 80
    low, high = next(m for m in card.metrics if m.name == "system").values["tau"][1:]
    assert low < found["system"]["tau"] < high
    assert card.urgent == 1 and card.readers == [1, 1, 1]


def test_the_number_column_tells_metrics_that_see_a_changed_number():
    candidates = made_up(np.array([[1, 2], [3, 4], [5, 1]]))
    texts, references = [c.text for c in candidates], [c.reference for c in candidates]
    card = metric_card(candidates, text_metrics(texts, references), resamples=10)
    numbers = {m.name: m.number for m in card.metrics}
    assert numbers["numbers_F1"][:1] == (1.0,) and numbers["numbers_F1"][2] == 3
    assert numbers["findings_text_F1"][0] == 0, "a labeller does not see it"
    assert 0 < numbers["ROUGE-L"][1] < numbers["ROUGE-L_numbers"][1] == pytest.approx(1)


def test_radpref_gives_tau_for_at_least_eight_metrics(real_data, capsys):
    candidates = read_radpref(real_data / "metric_truth")
    assert len(candidates) == 200 and {len(c.ratings) for c in candidates} == {3}
    texts, references = [c.text for c in candidates], [c.reference for c in candidates]
    card = metric_card(candidates, text_metrics(texts, references), resamples=50)
    found = values_of(card)
    assert len([1 for v in found.values() if not np.isnan(v["tau"])]) >= 8
    assert min(card.readers) == pytest.approx(0.76, abs=0.005)
    assert sorted(card.systems.values()) == pytest.approx([2.43, 3.55], abs=0.005)
    assert found["findings_text_F1"]["tau"] > found["ROUGE-L"]["tau"] > found["BLEU-4"]["tau"] > 0.3
    assert found["words (control)"]["tau"] < 0, "longer reports are liked less"
    text = as_markdown(card)
    assert "the same two systems" in text and "Research use only" in text
    assert not any(c.text[:40] in text or c.reference[:40] in text for c in candidates)
    assert json.loads(json.dumps(as_rows(card)))["studies"] == 100


def test_a_folder_without_radpref_and_damaged_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"contains no RadPref/preference_data\.json"):
        read_radpref(tmp_path)
    (tmp_path / "preference_data.json").write_text("[{}]")
    with pytest.raises(DataError, match="RadPref has another form"):
        read_radpref(tmp_path)
