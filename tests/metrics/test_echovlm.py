"""The average of echovlm: made-up rules of the same format, and parity with the original."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xraygpt.common.errors import InputError
from xraygpt.metrics.echovlm import CORE, echovlm_scores, load_echovlm_rules

FOLDER = Path(__file__).parent
STORED = json.loads((FOLDER / "echovlm_parity.json").read_text("utf-8"))
CLONE = "XRAYGPT_ECHOVLM"  # environment variable with the folder of a clone


def rules_of(tmp_path: Path, tree: object):
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(tree))
    return load_echovlm_rules(path)


def assert_equal_to(result: dict, pairs: list[list[str]], rules) -> None:
    texts = [text for pair in pairs for text in pair]
    assert [[rule.read(text) for rule in rules.rules] for text in texts] == result["labels"]
    predictions, references = zip(*pairs, strict=True)
    scores, left_out = echovlm_scores(rules, predictions, references)
    values = {s.name.removeprefix("echovlm/"): s.value for s in scores}
    for name, expected in result["scores"].items():
        if expected is None:
            assert math.isnan(values[name]) and f"echovlm/{name}" in left_out
        else:
            assert values[name] == pytest.approx(expected, abs=1e-12), name
    defined = [value for value in result["scores"].values() if value is not None]
    assert values[CORE] == pytest.approx(np.mean(defined), abs=1e-12)


def test_stored_results_of_the_original_are_reproduced(tmp_path):
    """Labels of 180 texts and 8 scores, computed once with echovlm's own code."""
    assert_equal_to(STORED, STORED["pairs"], rules_of(tmp_path, STORED["rules"]))
    assert None in STORED["scores"].values()


@pytest.mark.slow
def test_the_original_gives_the_same_results(tmp_path):
    clone = os.environ.get(CLONE)
    if not clone:
        pytest.skip(f"set {CLONE} to a clone of github.com/vukadinovic936/echovlm")
    command = [sys.executable, FOLDER / "echovlm_reference.py", clone]
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(np.arange(2, 90))
        # Without the first pairs, no pair has both numbers of one trait, and the original fails.
        pairs = [STORED["pairs"][i] for i in (0, 1, *order[:50])]
        rules = {**STORED["rules"], f"trait_{seed}": STORED["rules"]["alpha_present"]}
        path = tmp_path / "input.json"
        path.write_text(json.dumps({"rules": rules, "pairs": pairs}))
        run = subprocess.run([*command, path], capture_output=True, text=True, check=True)
        assert_equal_to(json.loads(run.stdout), pairs, rules_of(tmp_path, rules))


def test_phrases_match_anywhere_without_newlines(tmp_path):
    rule = {"a": {"mode": "binary", "section": "Other", "label_sources": ["Kite.In", "sail "]}}
    (read,) = [r.read for r in rules_of(tmp_path, rule).rules]
    assert read("A KITE.\nIN the sky") == 1 and read("kite. In") == 0
    assert read("the sail is up") == 1 and read("the sail") == 0  # the phrase ends with a space


def test_numbers_follow_the_text_before_the_slot(tmp_path):
    rule = {"n": {"mode": "regression", "label_sources": ["size.<#> cm", "about <#> to <#>"]}}
    (read,) = [r.read for r in rules_of(tmp_path, rule).rules]
    assert read("SIZE-12.345 mm") == 12.34  # a point matches any character; two decimals
    assert read("about 40 to 50") == 40 and read("about 1234") == 123
    assert read("about 7, size 9 cm") == 9  # the first pattern wins
    assert read("size") == -1


def test_missing_and_large_numbers_are_dropped(tmp_path):
    rules = rules_of(tmp_path, {"n": {"mode": "regression", "label_sources": ["at <#>"]}})
    references = ["at 10", "at 20", "at 30", "at 40", "at 250", "none"]
    predictions = ["at 12", "at 20", "none", "at 38", "at 25", "at 3"]
    scores, _ = echovlm_scores(rules, predictions, references)
    kept = np.array([10.0, 20.0, 40.0]), np.array([12.0, 20.0, 38.0])
    total = ((kept[0] - kept[0].mean()) ** 2).sum()
    assert scores[1].value == round(1 - ((kept[0] - kept[1]) ** 2).sum() / total, 2)
    silent, left_out = echovlm_scores(rules, ["none"] * 6, references)
    assert math.isnan(silent[0].value) and "echovlm/n" in left_out


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"mode": "regression", "label_sources": ["size (<#>"]}, r"a: the phrase 'size \(<#>'"),
        ({"mode": "regression", "label_sources": ["(a|b) <#>"]}, "contains a group"),
        ({"mode": "regression", "label_sources": ["size"]}, "no slot"),
        ({"mode": "score", "label_sources": ["x"]}, "mode is 'score'"),
        ({"mode": "binary", "label_sources": "x"}, "label_sources"),
        ({"mode": "binary"}, "label_sources"),
        ("x", "label_sources"),
    ],
)
def test_invalid_rules_are_named(tmp_path, entry, message):
    with pytest.raises(InputError, match=message):
        rules_of(tmp_path, {"a": entry})


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json"):
        load_echovlm_rules(tmp_path / "nowhere.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_echovlm_rules(tmp_path / "broken.json")
    with pytest.raises(InputError, match="one entry for each trait"):
        rules_of(tmp_path, [])


def test_signatures_say_what_the_numbers_are(tmp_path):
    rules = rules_of(tmp_path, {"a": {"mode": "binary", "label_sources": ["x"]}})
    core, part = echovlm_scores(rules, ["x", ""], ["x", ""])[0]
    assert "for comparison only" in core.signature and rules.digest in core.signature
    assert "balanced accuracy (echovlm's AUROC)" in part.signature
