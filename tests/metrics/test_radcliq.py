"""RadCliQ-v1 computed by hand and against radeval's composite of the same four inputs."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from xraygpt.common.errors import InputError
from xraygpt.metrics.radcliq import (
    COEFFICIENTS,
    INTERCEPT,
    MEANS,
    SCALES,
    bleu_2,
    cosines,
    radcliq_scores,
    radcliq_v1,
)
from xraygpt.metrics.text import bleu_scores


def parts(n: int = 300) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random(n), rng.uniform(-0.5, 1, n), rng.uniform(-1, 1, n), rng.random(n)]


def radeval_file(path: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """One file of radeval, with a stub of the package, which would import all its metrics."""
    spec = importlib.util.find_spec("radeval")
    if spec is None:
        pytest.skip("radeval is not installed (pip install --no-deps radeval==2.2.1)")
    root = Path(spec.submodule_search_locations[0])
    names = {"radgraph": "RadGraph", "f1chexbert": "F1CheXbert", "bleu.bleu": "Bleu"}
    for name in ("radeval", "radeval.metrics", "radeval.metrics.RadCliQv1", "radeval.metrics.bleu"):
        package = types.ModuleType(name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    for name, cls in names.items():
        module = types.ModuleType(f"radeval.metrics.{name}")
        setattr(module, cls, lambda **_: None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    name = "radeval." + path.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, root / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_values_equal_radeval(monkeypatch):
    """Bit-identical on 2,000 pairs."""
    module = radeval_file("metrics/RadCliQv1/radcliq.py", monkeypatch)
    reference = module.CompositeMetric()
    keys = ("radgraph", "bertscore", "semb_score", "bleu_score")
    reference._compute_sub_metrics = lambda refs, hyps: dict(zip(keys, parts(), strict=True))
    reciprocal, values = reference.predict([], [])
    np.testing.assert_allclose(radcliq_v1(*parts()), values, rtol=0, atol=1e-9)
    mean, other, semb = radcliq_scores(*parts())
    assert semb.name == "SembScore" and semb.value == pytest.approx(parts()[2].mean())
    assert mean.value == pytest.approx(values.mean(), abs=1e-9)
    assert other.value == pytest.approx(reciprocal, rel=1e-9)


def test_the_average_report_scores_the_intercept():
    assert radcliq_v1(*MEANS[:, None])[0] == pytest.approx(INTERCEPT, abs=1e-12)
    better = radcliq_v1(*(MEANS + SCALES)[:, None])[0]
    assert better == pytest.approx(COEFFICIENTS.sum() + INTERCEPT)
    assert better < -0.9  # lower is better


def test_means_and_intervals():
    mean, reciprocal, _ = radcliq_scores(*parts(), groups=[f"s{i // 3}" for i in range(300)])
    assert mean.n == 300 and mean.low < mean.value < mean.high
    assert reciprocal.value == pytest.approx(1 / mean.value)
    assert "lower is better" in mean.signature
    empty = radcliq_scores(*[np.zeros(0)] * 4)
    assert np.isnan(empty[0].value) and empty[0].n == 0


def test_invalid_inputs_raise():
    good = [np.zeros(3)] * 3
    with pytest.raises(InputError, match=r"bleu \(2,\)"):
        radcliq_v1(*good, np.zeros(2))
    with pytest.raises(InputError, match="bleu of pair 1 is nan"):
        radcliq_v1(*good, np.array([0, np.nan, 1]))
    with pytest.raises(InputError, match="cannot be compared"):
        cosines(np.zeros((2, 3)), np.zeros((2, 4)))


def test_cosines():
    values = cosines(np.array([[1, 0], [1, 1], [0, 0.0]]), np.array([[0, 2], [3, 3], [1, 1.0]]))
    assert values.tolist() == pytest.approx([0, 1, 0])


def test_bleu_2_equals_the_corpus_score_of_one_pair():
    for prediction, reference in [
        ("the heart is normal", "the heart size is normal"),
        ("no effusion", "no effusion"),
        ("the the the the", "the heart"),
        ("effusion", "effusion"),
        ("", "effusion"),
        ("no effusion", ""),
    ]:
        corpus = bleu_scores([prediction], [reference])[1]
        assert bleu_2(prediction, reference) == pytest.approx(corpus.value)
    assert bleu_2("the heart is normal", "the heart size is normal") == pytest.approx(
        np.exp(1 - 5 / 4) * np.sqrt(4 / 4 * 2 / 3)
    )
