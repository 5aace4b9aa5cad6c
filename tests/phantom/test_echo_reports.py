"""SYNTHETIC echocardiogram reports: what is written is what is read."""

from __future__ import annotations

from collections import Counter

import pytest

from xraygpt.phantom.echo_reports import synthetic_report
from xraygpt.vocabulary import get_vocabulary
from xraygpt.vocabulary.traits import GRADES

SEEDS = range(500)
ECHO = get_vocabulary("echo")


def test_reading_a_written_report_gives_back_its_traits():
    for seed in SEEDS:
        text, truth = synthetic_report(seed)
        reading = ECHO.read_traits(text)
        assert not reading.contradictions, text
        for trait in ECHO.traits:
            value, expected = reading.values.get(trait.name), truth[trait.name]
            if trait.is_number:
                assert (value and value.number) == expected, (trait.name, text)
            elif value is None:
                assert expected in ("none", False), (trait.name, text)
            elif trait.kind == "present":
                assert (value.status == "positive") == expected, (trait.name, text)
            else:
                assert value.grade == expected, (trait.name, text)


def test_reports_are_short_of_few_words_and_repeatable():
    texts = [synthetic_report(seed)[0] for seed in SEEDS]
    assert texts[7] == synthetic_report(7)[0] and len(set(texts)) == len(texts)
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 60 and max(lengths) <= 150
    words = Counter(w.strip(".,:").lower() for text in texts for w in text.split())
    assert sum(not w.isdigit() for w in words) < 200


def test_every_trait_occurs_and_is_absent():
    """As in practice, most traits are rare; grades and numbers vary."""
    truths = [synthetic_report(seed)[1] for seed in SEEDS]
    for trait in ECHO.traits:
        values = [truth[trait.name] for truth in truths]
        if trait.is_number:
            assert len({v for v in values if v is not None}) > 20
            continue
        threshold = GRADES.index(trait.positive_from)
        positive = [v if isinstance(v, bool) else GRADES.index(str(v)) >= threshold for v in values]
        assert 0 < sum(positive) / len(positive) < 0.45, trait.name
    assert any(truth["pulmonary_artery_pressure_continuous"] is None for truth in truths)
    low = [t["mitral_regurgitation"] == "severe" for t in truths if t["ejection_fraction"] < 40]
    high = [t["mitral_regurgitation"] == "severe" for t in truths if t["ejection_fraction"] >= 60]
    assert sum(low) / len(low) > sum(high) / len(high)  # traits depend on each other


@pytest.mark.parametrize("name", [trait.name for trait in ECHO.traits])
def test_truth_has_every_trait(name: str):
    assert name in synthetic_report(0)[1]
