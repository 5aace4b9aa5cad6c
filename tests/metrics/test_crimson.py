"""CRIMSON's arithmetic, its odd corners, and lists that contradict themselves."""

from __future__ import annotations

import copy
import importlib.util
import random

import pytest

from xraygpt.metrics.crimson import (
    SEVERITY,
    SIGNIFICANCE,
    crimson_score,
    list_problems,
    urgent_findings,
)


def lists(reference=(), predicted=(), matched=0, attributes=()) -> dict:
    """Findings by their significance; the first `matched` of both sides are pairs."""
    sides = {
        name: [{"id": f"{letter}{i}", "clinical_significance": s} for i, s in enumerate(side)]
        for name, letter, side in (
            ("reference_findings", "R", reference), ("predicted_findings", "P", predicted)
        )
    }  # fmt: skip
    return {
        **sides,
        "matched_findings": [{"ref_id": f"R{i}", "pred_id": f"P{i}"} for i in range(matched)],
        "errors": {
            "missing_findings": [f["id"] for f in sides["reference_findings"][matched:]],
            "false_findings": [f["id"] for f in sides["predicted_findings"][matched:]],
            "attribute_errors": [{"ref_id": f"R{i}", "severity": s} for i, s in attributes],
        },
    }


@pytest.mark.parametrize(
    ("given", "score"),
    [
        (lists(["urgent"], ["urgent"], 1), 1.0),
        (lists(), 1.0),
        (lists(["urgent"]), 0.0),  # a missed urgent pneumothorax
        (lists([], ["not_actionable_not_urgent"]), -0.2),  # a harmless invention
        (lists(["benign_expected"] * 5), 1.0),  # any number of missed benign findings
        (lists(["urgent", "urgent"], ["urgent"], 1), 0.5),
        (lists(["urgent"], ["urgent"], 1, [(0, "significant")]), 1 / 1.5),
        (lists(["urgent"], ["urgent"], 1, [(0, "negligible")]), 1.0),
        (lists(["actionable_not_urgent"], ["urgent"], 0), -0.5),
    ],
)
def test_scores_are_those_of_the_published_formula(given, score):
    assert not list_problems(given)
    assert crimson_score(given) == pytest.approx(score)


def test_it_equals_the_authors_package_on_random_lists():
    if importlib.util.find_spec("CRIMSON") is None:
        pytest.skip("crimson-score is not installed (it needs an environment with openai)")
    from CRIMSON.generate_score import CRIMSONScore

    rng = random.Random(1)
    for _ in range(500):
        sides = [rng.choices(list(SIGNIFICANCE), k=rng.randint(0, 4)) for _ in range(2)]
        pairs = rng.randint(0, min(map(len, sides)))
        attributes = [(rng.randrange(pairs), rng.choice(list(SEVERITY)))
                      for _ in range(rng.randint(0, 3)) if pairs]  # fmt: skip
        given = lists(*sides, pairs, attributes)
        theirs = CRIMSONScore._calculate_crimson(None, given)["crimson_score"]
        assert round(crimson_score(given), 4) == pytest.approx(theirs)


def test_missed_urgent_findings_are_counted_beside_the_score():
    given = lists(["urgent", "urgent", "benign_expected"], ["urgent"], 1)
    assert urgent_findings(given) == (1, 2)


def test_lists_that_contradict_themselves_are_named():
    good = lists(["urgent", "benign_expected"], ["urgent"], 1)
    assert list_problems(good) == []

    def problem(change) -> str:
        bad = copy.deepcopy(good)
        change(bad)
        return "; ".join(list_problems(bad))

    errors = "errors"
    assert "neither matched" in problem(lambda b: b[errors].update(missing_findings=[]))
    assert "not in reference" in problem(lambda b: b[errors].update(missing_findings=["R1", "R7"]))
    assert "both matched" in problem(lambda b: b[errors].update(missing_findings=["R0", "R1"]))
    assert "occurs twice" in problem(lambda b: b["reference_findings"].append(
        {"id": "R0", "clinical_significance": "urgent"}))  # fmt: skip
    assert "not matched" in problem(
        lambda b: b[errors].update(attribute_errors=[{"ref_id": "R1", "severity": "negligible"}])
    )
