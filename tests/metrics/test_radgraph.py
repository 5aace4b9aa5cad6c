"""RadGraph F1 computed by hand and against the radgraph package."""

from __future__ import annotations

import importlib.util
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from xraygpt.common.errors import DataError, InputError
from xraygpt.metrics.radgraph import annotate, entity_relation_f1, radgraph_scores, rewards


def entity(tokens: str, label: str, *relations: tuple[str, str]) -> dict:
    return {"tokens": tokens, "label": label, "relations": [list(r) for r in relations]}


OBS, ANAT = "Observation::definitely present", "Anatomy::definitely present"
PREDICTION = {
    "entities": {
        "1": entity("effusion", OBS, ("located_at", "2")),
        "2": entity("left", ANAT),
        "3": entity("edema", OBS),
    }
}
REFERENCE = {
    "entities": {
        "1": entity("effusion", OBS, ("located_at", "3"), ("located_at", "2")),
        "2": entity("pleura", ANAT),
        "3": entity("left", ANAT),
        "4": entity("edema", OBS, ("located_at", "3")),
    }
}


def random_annotation(rng: np.random.Generator) -> dict:
    words = ["Heart", "heart", "effusion", "left", "small", "lung"]
    labels = [OBS, ANAT, "Observation::uncertain"]
    n = int(rng.integers(0, 8))
    return {
        "entities": {
            str(i + 1): entity(
                str(rng.choice(words)),
                str(rng.choice(labels)),
                *(
                    (str(rng.choice(["modify", "located_at"])), str(rng.integers(1, n + 1)))
                    for _ in range(rng.integers(0, 3))
                ),
            )
            for i in range(n)
        }
    }


def pairs(n: int = 400) -> list[tuple[dict, dict]]:
    rng = np.random.default_rng(0)
    return [(random_annotation(rng), random_annotation(rng)) for _ in range(n)]


def load_file(package: str, file: str):
    """One file of an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed (pip install --no-deps {package})")
    path = Path(spec.submodule_search_locations[0]) / file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rewards_equal_the_radgraph_package():
    """Largest difference of 2,000 pairs 1e-16: the same counts, divided in another order."""
    package = load_file("radgraph", "rewards.py")
    values = []
    for prediction, reference in pairs():
        result = astuple(rewards(prediction, reference))
        expected = package.compute_reward(prediction, reference, "all")
        assert result == pytest.approx(expected, abs=1e-12)
        values.append(expected)
    assert (np.std(values, axis=0) > 0.1).all()


def test_rewards_by_hand():
    """simple 3 of 3 and 4: 6/7. partial: effusion and left, 4/7. complete: left without a relation
    and effusion at left in both; 3 predicted facts, 5 reference facts (2 + 1 relations, 2 entities
    without one): 4/8."""
    result = rewards(PREDICTION, REFERENCE)
    assert result.simple == pytest.approx(6 / 7)
    assert result.partial == pytest.approx(4 / 7)
    assert result.complete == pytest.approx(4 / 8)


def test_entities_and_relations_by_hand():
    """Entities 6/7; relations 1 of 1 and 3: 2/4."""
    assert entity_relation_f1(PREDICTION, REFERENCE) == pytest.approx((6 / 7 + 2 / 4) / 2)
    assert entity_relation_f1(PREDICTION, {"entities": {}}) == 0


def test_complete_lowers_only_words_of_relations():
    upper = {"entities": {"1": entity("Effusion", OBS, ("located_at", "2")), "2": entity("L", OBS)}}
    lower = {"entities": {"1": entity("effusion", OBS, ("located_at", "2")), "2": entity("l", OBS)}}
    assert rewards(upper, lower).simple == 0
    assert rewards(upper, lower).complete == pytest.approx(2 / 4)


def test_scores_and_empty_sides():
    empty = {"entities": {}}
    scores = radgraph_scores(
        [PREDICTION, empty, PREDICTION, empty], [PREDICTION, PREDICTION, empty, empty]
    )
    assert [(s.name, s.value, s.n) for s in scores] == [
        ("RadGraph_simple", 0.25, 4),
        ("RadGraph_partial", 0.25, 4),
        ("RadGraph_complete", 0.25, 4),
    ]


@pytest.mark.parametrize(
    "broken",
    [
        {},
        None,
        {"entities": ["x"]},
        {"entities": {"1": {"tokens": "a", "label": "b"}}},
        {"entities": {"1": entity("a", "b", ("modify", "7"))}},
    ],
)
def test_broken_annotations_raise(broken):
    with pytest.raises(DataError, match="not a RadGraph annotation"):
        rewards(broken, PREDICTION)


def test_annotate_without_the_model_says_how_to_install_it(tmp_path):
    with pytest.raises(
        InputError, match=r"missing config\.json and weights\.th.*\n.*\n.*pip install"
    ):
        annotate(["x"], tmp_path)


def test_annotate_with_a_stub(tmp_path, monkeypatch):
    import sys
    import types

    (tmp_path / "radgraph").mkdir()
    for name in ("config.json", "weights.th"):
        (tmp_path / "radgraph" / name).write_text("")

    class RadGraph:
        def __init__(self, model_type: str, model_cache_dir: str):
            assert (model_type, model_cache_dir) == ("radgraph", str(tmp_path))

        def __call__(self, reports: list[str]) -> dict:
            if "boom" in reports:
                raise AttributeError("no attribute build_inputs_with_special_tokens")
            return {str(i): PREDICTION for i, r in enumerate(reports) if r != "lost"}

    monkeypatch.setitem(sys.modules, "radgraph", types.SimpleNamespace(RadGraph=RadGraph))
    empty = {"entities": {}}
    assert annotate(["a", " ", "b"], tmp_path, "radgraph") == [PREDICTION, empty, PREDICTION]
    assert annotate([""], tmp_path, "radgraph") == [empty]
    with pytest.raises(InputError, match="could not annotate report 1"):
        annotate(["a", "lost"], tmp_path, "radgraph")
    with pytest.raises(InputError, match="build_inputs_with_special_tokens"):
        annotate(["boom"], tmp_path, "radgraph")
    monkeypatch.setitem(sys.modules, "radgraph", None)
    with pytest.raises(InputError, match="cannot be imported"):
        annotate(["a"], tmp_path, "radgraph")
