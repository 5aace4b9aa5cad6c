"""RadVLM's definitions: equal to its own functions, whose silent faults are shown beside ours."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

from xraygpt.metrics import radvlm
from xraygpt.metrics.box_answers import box_answer_scores
from xraygpt.metrics.grounding import Boxes

STORED = Path(__file__).with_name("radvlm_parity.json")
LABELS = ["Edema", "Fracture", "Pleural Effusion", "Pneumothorax", "Lung Opacity"]


def made_up_boxes(rng: random.Random) -> list[list[float]]:
    def box() -> list[float]:
        x, y = (sorted(rng.random() for _ in range(2)) for _ in range(2))
        corners = (x[0], y[0], min(x[1] + 0.05, 1), min(y[1] + 0.05, 1))
        return [round(value, 2) for value in corners]

    return [box() for _ in range(rng.randint(0, 3))]


def made_up_answers(count: int = 300) -> list[dict]:
    """Answers with boxes near, far from and beside the true ones, in any order, some twice."""
    rng, rows = random.Random(7), []
    for _ in range(count):
        truth = made_up_boxes(rng)
        found = [[round(min(max(v + rng.uniform(-0.06, 0.06), 0), 1), 2) for v in t]
                 for t in truth if rng.random() < 0.8]  # fmt: skip
        found += made_up_boxes(rng)[:1]
        rng.shuffle(found)
        found += found[:1] if rng.random() < 0.2 else []
        rows.append({"output": f"It is at {' and '.join(map(str, found))}.", "boxes": truth})
    return rows


def made_up_labels(count: int = 300) -> list[dict]:
    rng, rows = random.Random(8), []
    for _ in range(count):
        truth = [label for label in LABELS[:4] if rng.random() < 0.3]
        named = [label for label in LABELS if (label in truth) != (rng.random() < 0.2)]
        text = "No pneumothorax. " * (rng.random() < 0.3) + ", ".join(named)
        rows.append({"output": text, "labels": truth})
    return rows


def ours() -> dict[str, float]:
    boxes, labels = made_up_answers(), made_up_labels()
    truth = [np.array(row["boxes"]).reshape(-1, 4) for row in boxes]
    scores, _ = radvlm.box_scores([row["output"] for row in boxes], truth)
    scores += radvlm.classification_scores(
        [row["output"] for row in labels], [row["labels"] for row in labels], LABELS
    )
    return {score.name: score.value for score in scores}


def theirs(folder: Path) -> dict[str, float]:
    """The same numbers from RadVLM's own file, whose import of a missing package is replaced."""
    stub = types.ModuleType("radvlm.evaluation.vilmedic.utils")
    stub.calcAllMetrics_whole = None
    names = ("radvlm", "radvlm.evaluation", "radvlm.evaluation.vilmedic")
    added = {**{name: types.ModuleType(name) for name in names}, stub.__name__: stub}
    path = folder / "radvlm/evaluation/compute_metrics_tasks.py"
    spec = importlib.util.spec_from_file_location("radvlm_metrics", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.update(added)
    try:
        spec.loader.exec_module(module)
    finally:
        for name in added:
            del sys.modules[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        boxes = module.evaluate_boxes(made_up_answers(), avg_iou=True)
        labels = module.evaluate_classification(
            made_up_labels(), [label.lower() for label in LABELS]
        )
    result = {"radvlm_mAP_50": boxes["mAP_0.5"], "radvlm_avg_IoU": boxes["avg_iou"]}
    for name, ours_name in (("Precision", "precision"), ("Recall", "recall"), ("F1 Score", "F1")):
        for how in ("micro", "macro"):
            result[f"radvlm_{ours_name}_{how}"] = labels[f"{name}({how})"]
    result |= {f"radvlm_F1/{label}": labels[label.lower()] for label in LABELS}
    return {name: float(value) for name, value in result.items()}


def test_scores_equal_those_of_radvlms_own_functions():
    """XRAYGPT_RADVLM names a clone (uzh-dqbm-cmi/RadVLM); without it, its stored numbers count."""
    clone = os.environ.get("XRAYGPT_RADVLM")
    if clone:
        expected = theirs(Path(clone))
        if os.environ.get("XRAYGPT_WRITE_REFERENCE"):
            STORED.write_text(json.dumps(expected, indent=1) + "\n")
    else:
        expected = json.loads(STORED.read_text())
    found = ours()
    assert found.keys() == expected.keys() and len(found) == 13
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


TRUTH = np.array([[0.1, 0.1, 0.4, 0.4], [0.6, 0.6, 0.9, 0.9]])
FIRST, SECOND = "[0.1, 0.1, 0.4, 0.4]", "[0.6, 0.6, 0.9, 0.9]"
WRONG = "[0.4, 0.1, 0.5, 0.2]"


def both(text: str, truth: np.ndarray = TRUTH) -> tuple[dict[str, float], dict[str, float]]:
    """RadVLM's scores of one answer, and those that do not depend on the order."""
    their, _ = radvlm.box_scores([text], [truth])
    found = Boxes(np.clip(radvlm.read_boxes(text).boxes, 0, 1))
    own = box_answer_scores([found], [Boxes(truth)], by_label=False)
    return {s.name: s.value for s in their}, {s.name: s.value for s in own}


def test_its_precision_depends_on_the_order_of_boxes_and_ours_does_not():
    """Fault 15: the same three boxes score 1.0 or 0.67."""
    good, own_good = both(f"{FIRST} {SECOND} {WRONG}")
    bad, own_bad = both(f"{WRONG} {FIRST} {SECOND}")
    assert good["radvlm_mAP_50"] == 1.0 and bad["radvlm_mAP_50"] == pytest.approx(2 / 3)
    assert own_good == own_bad and own_good["box_F1"] == pytest.approx(0.8)


def test_its_average_overlap_is_half_for_two_perfect_boxes_and_ours_is_one():
    """Fault 15: it averages over all pairs, and leaves out answers without a box."""
    their, own = both(f"{FIRST} and {SECOND}")
    assert their["radvlm_avg_IoU"] == pytest.approx(0.5) and own["mean_IoU"] == 1.0
    scores, _ = radvlm.box_scores([f"{FIRST} {SECOND}", "I cannot see it."], [TRUTH, TRUTH])
    assert {s.name: s.value for s in scores}["radvlm_avg_IoU"] == pytest.approx(0.5)
    own = box_answer_scores([Boxes(TRUTH), Boxes(TRUTH[:0])], [Boxes(TRUTH)] * 2, by_label=False)
    assert {s.name: s.value for s in own}["mean_IoU"] == 0.5, "the missed boxes count"


def test_a_taken_best_match_is_false_there_and_goes_to_the_second_best_here():
    """Fault 15."""
    truth = np.array([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.42]])
    their, own = both("[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.48]", truth)
    assert their["radvlm_mAP_50"] == 0.5 and own["box_F1"] == 1.0


def test_a_denied_finding_counts_as_named_and_a_synonym_does_not():
    """Fault 16."""
    assert radvlm.named_labels("No pneumothorax.", LABELS) == {"Pneumothorax"}
    assert radvlm.named_labels("The heart is enlarged.", ["Cardiomegaly"]) == set()


def test_what_stops_its_code_is_counted():
    """Section 5.3: a damaged number, and two boxes without an area."""
    scores, reasons = radvlm.box_scores(
        ["At [0.1, 0.2, 0.3., 0.4].", "[0.5, 0.5, 0.5, 0.5]"],
        [TRUTH, np.array([[0.5, 0.5, 0.5, 0.5]])],
    )
    assert scores[0].value == 0
    assert "1 boxes with a damaged number" in reasons["RadVLM's boxes"]
    assert "1 pairs of boxes without an area" in reasons["RadVLM's overlap"]


def test_intervals_of_macro_scores_contain_the_value_for_rare_labels():
    """20 labels with one positive each: a resample without a label says nothing about it."""
    labels = [f"label {i}" for i in range(20)]
    truth = [{label} for label in labels]
    found = {s.name: s for s in radvlm.label_scores("x", truth, truth, labels, "made up")}
    macro = found["x_F1_macro"]
    assert (macro.value, macro.low, macro.high) == (1, 1, 1)
    more = [*labels, "never"]
    absent = {s.name: s for s in radvlm.label_scores("x", truth, truth, more, "made up")}
    assert absent["x_F1_macro"].value == pytest.approx(20 / 21), "as in scikit-learn"
    assert absent["x_F1_macro"].high == pytest.approx(20 / 21)
