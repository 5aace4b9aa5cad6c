"""Choosing among sampled answers."""

from __future__ import annotations

import random

import pytest

from xraygpt.models.base import Generation
from xraygpt.models.decoding import common_length, consensus


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
    assert consensus(answers) == middle


def test_candidates_must_be_drawn():
    with pytest.raises(ValueError, match="set do_sample: true"):
        Generation(candidates=8)
