"""Choosing among sampled answers."""

from __future__ import annotations

import random

import pytest

from xraygpt.models.base import Generation
from xraygpt.models.llm.decoding import Decoder, common_length, consensus, words_of
from xraygpt.models.llm.small_llm import new_tokenizer


def table(a: list[int], b: list[int]) -> int:
    """The textbook's table."""
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            rows[i][j] = rows[i - 1][j - 1] + 1 if x == y else max(rows[i - 1][j], rows[i][j - 1])
    return rows[-1][-1]


def test_common_length_is_that_of_the_table():
    rng = random.Random(0)
    for _ in range(200):
        a, b = ([rng.randrange(6) for _ in range(rng.randrange(20))] for _ in range(2))
        assert common_length(a, b) == table(a, b)


def test_the_answer_in_the_middle_is_chosen():
    middle = [1, 2, 3, 4, 5]
    answers = [[1, 2, 3, 9, 8], [6, 6, 6, 6, 6], middle, [7, 7, 3, 4, 5]]
    assert answers[consensus(answers)] == middle


def test_likeness_is_the_plain_f1():
    """Four right words of four, or eight right ones among nineteen, where nine are to be said."""
    heard = list(range(1, 10))
    short, long = heard[:4], [*heard[:8], *range(20, 31)]
    # 8 / 13 = 0.615 and 16 / 28 = 0.571; with recall weighed 1.44 times 0.575 and 0.611.
    assert consensus([short, long, heard], references=1) == 0


def test_words_are_small_and_marks_stand_alone():
    assert words_of("The heart's NORMAL, ok.") == [
        "the",
        "heart",
        "'",
        "s",
        "normal",
        ",",
        "ok",
        ".",
    ]
    assert words_of("心影增大 X") == ["心", "影", "增", "大", "x"]


def test_candidates_are_compared_with_the_references_alone():
    alike, other = [1, 2, 3, 4], [7, 8, 9]
    answers = [alike] * 4 + [[7, 8, 5], [8, 7, 9], other]
    assert answers[consensus(answers)] == alike
    assert consensus(answers, references=3) == 6
    assert consensus(answers, [0.0] * 4 + [0.9, 0.0, 0.0], references=3) == 4


def test_what_speaks_for_an_answer_counts_beside_the_others():
    answers = [[1, 2, 3], [1, 2, 3], [1, 2, 3], [7, 8, 9]]
    assert consensus(answers, [0.0, 0.1, 0.0, 0.5]) == 1  # likeness 2/3, and 0
    assert consensus(answers, [0.0, 0.0, 0.0, 0.7]) == 3
    assert consensus(answers[2:], [0.0, 0.1]) == 1  # two have no middle


def test_candidates_must_be_drawn():
    with pytest.raises(ValueError, match="set do_sample: true"):
        Generation(candidates=8)
    with pytest.raises(ValueError, match="candidates above 1"):
        Generation(references=8)


def test_padding_has_no_vote():
    """Short answers, padded to a long one elsewhere in the batch, are as unlike as unpadded."""
    tokenizer = new_tokenizer(["left side is clear", "right lung"], 260)
    decoder = object.__new__(Decoder)
    decoder.tokenizer, decoder.text_stops, decoder.end_ids = tokenizer, ["###"], {2}
    long = "left side is clear left side is clear"
    short = ["right lung", "lung right right", long, long + " left", long + " side"]
    rows = [tokenizer(f"{t}###", add_special_tokens=False)["input_ids"] for t in short]
    padded = [row + [tokenizer.pad_token_id] * (200 - len(row)) for row in rows]
    texts = [decoder._text(row) for row in padded]
    assert texts == short
    assert texts[decoder.chosen(texts)] == long
