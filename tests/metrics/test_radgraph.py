"""RadGraph F1 by hand and against the rewards of the radgraph package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from xraygpt.common.errors import DataError, InputError
from xraygpt.metrics.radgraph import annotate, entity_relation_f1, radgraph_scores, rewards


def entity(tokens: str, label: str, *relations: tuple[str, str]) -> dict:
    return {"tokens": tokens, "label": label, "relations": [list(r) for r in relations]}


OBS, ANAT = "Observation::definitely present", "Anatomy::definitely present"
SAID = {
    "entities": {
        "1": entity("effusion", OBS, ("located_at", "2")),
        "2": entity("left", ANAT),
        "3": entity("edema", OBS),
    }
}
TRUE = {
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


def reference(package: str, file: str):
    """One file of an installed package, without running the package itself."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed (pip install --no-deps {package})")
    path = Path(spec.submodule_search_locations[0]) / file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_as_the_radgraph_package():
    """Worst of 2,000 pairs 1e-16: the same counts, divided in another order."""
    theirs = reference("radgraph", "rewards.py")
    values = []
    for said, true in pairs():
        ours = rewards(said, true)
        expected = theirs.compute_reward(said, true, "all")
        assert (ours.simple, ours.partial, ours.complete) == pytest.approx(expected, abs=1e-12)
        values.append(expected)
    assert (np.std(values, axis=0) > 0.1).all()


def test_rewards_by_hand():
    """simple 3 of 3 and 4: 6/7. partial: effusion and left, 4/7. complete: left is alone in both,
    effusion at left in both; said 3 facts, true 5 (2 + 1 relations, 2 alone): 4/8."""
    found = rewards(SAID, TRUE)
    assert found.simple == pytest.approx(6 / 7)
    assert found.partial == pytest.approx(4 / 7)
    assert found.complete == pytest.approx(4 / 8)


def test_entities_and_relations_by_hand():
    """Entities 6/7; relations 1 of 1 and 3: 2/4."""
    assert entity_relation_f1(SAID, TRUE) == pytest.approx((6 / 7 + 2 / 4) / 2)
    assert entity_relation_f1(SAID, {"entities": {}}) == 0


def test_complete_lowers_words_of_relations_alone():
    upper = {"entities": {"1": entity("Effusion", OBS, ("located_at", "2")), "2": entity("L", OBS)}}
    lower = {"entities": {"1": entity("effusion", OBS, ("located_at", "2")), "2": entity("l", OBS)}}
    assert rewards(upper, lower).simple == 0
    assert rewards(upper, lower).complete == pytest.approx(2 / 4)


def test_scores_and_empty_sides():
    empty = {"entities": {}}
    scores = radgraph_scores([SAID, empty, SAID, empty], [SAID, SAID, empty, empty])
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
def test_broken_annotations_are_named(broken):
    with pytest.raises(DataError, match="not a RadGraph annotation"):
        rewards(broken, SAID)


def test_annotate_says_how_to_get_the_model(tmp_path):
    with pytest.raises(
        InputError, match=r"no config\.json and no weights\.th.*\n.*\n.*pip install"
    ):
        annotate(["x"], tmp_path)


def test_annotate_by_a_stand_in(tmp_path, monkeypatch):
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
            return {str(i): SAID for i, r in enumerate(reports) if r != "lost"}

    monkeypatch.setitem(sys.modules, "radgraph", types.SimpleNamespace(RadGraph=RadGraph))
    assert annotate(["a", " ", "b"], tmp_path, "radgraph") == [SAID, {"entities": {}}, SAID]
    assert annotate([""], tmp_path, "radgraph") == [{"entities": {}}]
    with pytest.raises(InputError, match="could not annotate report 1 of those given"):
        annotate(["a", "lost"], tmp_path, "radgraph")
    with pytest.raises(InputError, match="build_inputs_with_special_tokens"):
        annotate(["boom"], tmp_path, "radgraph")
    monkeypatch.setitem(sys.modules, "radgraph", None)
    with pytest.raises(InputError, match="cannot be imported"):
        annotate(["a"], tmp_path, "radgraph")
