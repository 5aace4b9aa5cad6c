"""Near copies of reports: signatures against exact values, groups, splits and leakage."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from xraygpt.datasets import leakage, near_duplicates
from xraygpt.datasets.base import Record
from xraygpt.datasets.leakage import Leakage, ReportDigests, exact_leakage, near_leakage
from xraygpt.datasets.near_duplicates import (
    NearDuplicateIndex,
    band_size,
    near_duplicate_groups,
    similarities,
)
from xraygpt.datasets.report_signatures import SignatureMaker, jaccard, text_digest
from xraygpt.datasets.seen_names import SeenNames
from xraygpt.datasets.study_splits import StudyRow, StudySplitRule, StudySplits
from xraygpt.vocabulary.questions import qa_turns

WORDS = [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(600)]


def report(seed: int, words: int = 200) -> str:
    rng = random.Random(seed)
    return " ".join(f"{rng.choice(WORDS)}" for _ in range(words))


def edited(text: str, edits: int, seed: int = 0) -> str:
    words, rng = text.split(), random.Random(seed)
    for i in rng.sample(range(len(words)), edits):
        words[i] = "edited"
    return " ".join(words)


def signatures(texts: list[str], *, ignore_numbers: bool = False) -> np.ndarray:
    return SignatureMaker().signatures(texts)[ignore_numbers]


@pytest.mark.parametrize("words", [8, 40, 300])
def test_estimates_are_close_to_the_exact_index(words):
    originals = [report(i, words) for i in range(60)]
    copies = [edited(t, min(i // 6, words // 4), i) for i, t in enumerate(originals)]
    estimate = similarities(signatures(originals), signatures(copies))
    exact = np.array([jaccard(a, b) for a, b in zip(originals, copies, strict=True)])
    assert np.sqrt(np.mean((estimate - exact) ** 2)) < (0.06 if words > 8 else 0.09)
    assert abs(np.mean(estimate - exact)) < 0.02  # no bias
    assert (estimate[exact == 1] == 1).all() and (exact == 1).sum() >= 6
    unrelated = similarities(signatures(originals), signatures(originals[1:] + originals[:1]))
    assert unrelated.max() < 0.1


def test_white_space_capitals_and_punctuation_make_no_difference_but_numbers_do():
    a, b = "The pump moves 55 % of 2.5 litres.", "the pump\nmoves 55% of 2.5 litres"
    c = "The pump moves 30 % of 1.5 litres."
    assert jaccard(a, b) == 1 and text_digest(a) != text_digest(b) == text_digest(b.upper())
    assert jaccard(a, c) < 0.2 and jaccard(a, c, ignore_numbers=True) == 1
    for ignore_numbers in (False, True):
        kept = signatures([a, b, c], ignore_numbers=ignore_numbers)
        assert (kept[0] == kept[1]).all() and (kept[0] == kept[2]).all() == ignore_numbers
    assert jaccard("", "") == 0 and jaccard("Normal.", "normal") == 1


def test_signatures_do_not_depend_on_the_process_or_version():
    """Splits would change with them; the numbers were computed once, in another process."""
    found = signatures(["One pump moves.", "The pump moves 2.5 litres in 60 s."]).astype(int)
    assert found.sum(axis=1).tolist() == [2625920, 5018928]


def test_bands_find_pairs_at_the_threshold():
    for threshold in (0.5, 0.8, 0.9, 1.0):
        size = band_size(threshold)
        assert 1 - (1 - threshold**size) ** (128 // size) >= 0.99
    assert band_size(0.9) > band_size(0.8) > band_size(0.5)


def test_groups_are_the_families_of_copies():
    families = [[edited(report(f, 300), e, e) for e in (0, 1, 2, 3)] for f in range(30)]
    texts = [t for family in families for t in family] + [report(1000 + i) for i in range(100)]
    groups = near_duplicate_groups(signatures(texts), 0.9)
    for family in range(30):
        assert len(set(groups[4 * family : 4 * family + 4])) == 1
    assert len(set(groups)) == 130
    assert len(set(near_duplicate_groups(signatures(texts[:8]), 1.0))) == 8


def test_a_group_larger_than_the_window_is_found(monkeypatch):
    monkeypatch.setattr(near_duplicates, "WINDOW", 4)
    base = report(0)
    texts = [edited(base, 1, i) for i in range(60)] + [report(i) for i in range(1, 40)]
    groups = near_duplicate_groups(signatures(texts), 0.9)
    assert Counter(groups.tolist()).most_common(1)[0][1] == 60 and len(set(groups)) == 40


def test_the_index_finds_what_a_comparison_of_all_pairs_finds():
    own = [report(i) for i in range(40)]
    others = [edited(own[i], i // 4, i) for i in range(30)] + [report(i) for i in range(100, 400)]
    a, b = signatures(own), signatures(others)
    index = NearDuplicateIndex(a, 0.9)
    for start in range(0, len(b), 64):
        index.compare(b[start : start + 64])
    expected = [(similarities(np.repeat(row[None], len(b), 0), b) >= 0.9).any() for row in a]
    assert index.found.tolist() == expected and 8 < sum(expected) < 30


# ---- splits --------------------------------------------------------------------------------------


def rule(**settings: object) -> StudySplitRule:
    fractions = {"val_fraction": 0.2, "test_fraction": 0.2}
    return StudySplitRule(**{"near_duplicates": 0.9, **fractions, **settings})


def rows(texts: list[str], patient: object = None, listed: str | None = None) -> list[StudyRow]:
    return [StudyRow(f"s{i}", patient, listed, t) for i, t in enumerate(texts)]


def splits(rule: StudySplitRule, table: list[StudyRow]) -> list[str | None]:
    assigned = StudySplits(rule, table)
    return [assigned[i] for i in range(len(assigned))]


def test_copies_share_a_split_and_other_studies_stay_where_they_were():
    singles = [report(1000 + i, 60) for i in range(200)]
    texts = [edited(report(f), e, e) for f in range(60) for e in (0, 1)] + singles
    table = rows(texts)
    assigned = splits(rule(), table)
    assert all(assigned[2 * f] == assigned[2 * f + 1] for f in range(60))
    assert {assigned[2 * f] for f in range(60)} == {"train", "val", "test"}
    plain = rule(near_duplicates=None)
    by_hash = [plain.assign(row.study_id, None) for row in table]
    assert assigned[120:] == by_hash[120:]
    assert any(by_hash[2 * f] != by_hash[2 * f + 1] for f in range(60))  # the control leaks
    shuffled = random.Random(0).sample(table, len(table))
    moved = dict(zip([r.study_id for r in shuffled], splits(rule(), shuffled), strict=True))
    assert moved == dict(zip([r.study_id for r in table], assigned, strict=True))


def test_patients_and_copies_are_joined():
    table = [
        StudyRow(f"s{i}-{k}", f"p{i}" if k else f"q{i}", None, report(i) if k < 2 else report(-i))
        for i in range(1, 40)
        for k in range(3)
    ]
    assigned = splits(rule(), table)
    groups = [set(assigned[3 * i : 3 * i + 3]) for i in range(39)]
    assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) == 3


def test_questions_about_one_study_are_in_its_split():
    table = [
        StudyRow(f"s{i}", None, None, text) for i in range(60) for text in ("", report(i // 2), "")
    ]
    assigned = splits(rule(), table)
    assert all(len(set(assigned[6 * i : 6 * i + 6])) == 1 for i in range(30))
    assert set(assigned) == {"train", "val", "test"}


def test_numbers_are_a_choice():
    texts = [f"The pump number {i} moves {i} of {i + 1}." for i in range(15)]
    assert len(set(splits(rule(numbers="ignore", seed=3), rows(texts)))) == 1
    assert len(set(splits(rule(numbers="keep", seed=3), rows(texts)))) > 1


def test_listed_splits_stay_and_draw_their_copies_in():
    base = report(0)
    table = [
        StudyRow("a", None, "train", base),
        StudyRow("b", None, "test", edited(base, 1)),
        StudyRow("c", None, None, edited(base, 2)),
        StudyRow("d", None, "unused", base),
        StudyRow("CXR1", None, "train", report(1)),  # reserved by its name if it is listed there
    ]
    assert splits(rule(), table)[:4] == ["train", "test", "test", None]
    assert splits(rule(field=None), table)[0] == splits(rule(field=None), table)[3]


def test_a_very_large_group_is_train_and_reported(caplog):
    texts = ["All chambers are normal."] * 300 + [report(i, 40) for i in range(300)]
    for seed in range(6):
        assigned = splits(rule(seed=seed), rows(texts))
        assert set(assigned[:300]) == {"train"} and len(set(assigned[300:])) == 3
    assert "1 groups of near copies have more than 1 %" in caplog.text


def test_empty_tables_and_empty_reports():
    assert splits(rule(), []) == []
    table = rows(["", " ", "###", "-"] * 15)
    plain = rule(near_duplicates=None)
    assert splits(rule(), table) == [plain.assign(row.study_id, None) for row in table]


# ---- leakage -------------------------------------------------------------------------------------


def record(text: str, question: str = "") -> Record:
    return Record("r", "s", (), qa_turns(f"<image> <image> {question}", text))


def digests(**texts: list[str]) -> ReportDigests:
    found = ReportDigests()
    for split, reports in texts.items():
        for text in reports:
            found.add(split, record(text))
    return found


def test_only_reports_are_compared():
    assert leakage.report_of(record("Fine.")) == "Fine."
    assert leakage.report_of(record("yes", "Is it?")) is None
    assert leakage.report_of(record(" . ")) is None
    assert leakage.report_of(replace(record("x"), turns=lambda key: [])) is None


def test_copies_in_train_are_counted_over_all_corpora():
    train = [report(i) for i in range(50)]
    test = [train[0], train[0].upper(), edited(train[1], 2), edited(train[2], 90), report(99)]
    test += ["The pump moves 30 of 40."]
    train += ["The pump moves 55 of 60."]
    corpora = [digests(train=train[:25], test=test[:3]), digests(train=train[25:], test=test[3:])]
    (exact,) = exact_leakage(corpora)
    assert exact == Leakage("test", 6, 2)
    assert str(exact) == "2 of 6 reports of test are also in train word for word"
    full = near_leakage(exact, test, iter(train))
    assert (full.near, full.near_without_numbers) == (3, 4)
    assert "3 have a near copy there (similarity 0.9 or more), 4 if numbers are ignored" in str(
        full
    )
    assert exact_leakage(corpora, ["train", "test"]) == []


def test_counts_are_stored_for_the_same_reports_only(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path))
    corpora = [digests(train=["a b", "c d"], test=["a b"])]
    (exact,) = exact_leakage(corpora)
    full = near_leakage(exact, ["a b"], ["a b", "c d"])
    leakage.store(full, corpora)
    again = [digests(train=["c d", "a b"], test=["a b"])]
    assert leakage.stored(exact, again) == full
    other = [digests(train=["a b", "e f"], test=["a b"])]
    assert leakage.stored(exact, other) == exact


def test_seen_names_counts_like_a_counter():
    rng, seen, counts = random.Random(0), SeenNames(), Counter()
    for _ in range(20_000):
        name = f"study{rng.randrange(8000)}"
        counts[name] += 1
        assert seen.add(name) == counts[name]
