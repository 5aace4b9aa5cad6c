"""Selection among sampled answers."""

from __future__ import annotations

import random

import pytest

from xraygpt.models.base import Generation
from xraygpt.models.llm.candidates import (
    lcs_length,
    lcs_lengths,
    minimum_bayes_risk,
    split_words,
)
from xraygpt.models.llm.decoding import Decoder
from xraygpt.models.llm.recombination import recombine
from xraygpt.models.llm.small_llm import new_tokenizer


def textbook_lcs(a: list[int], b: list[int]) -> int:
    """Length of the longest common subsequence by dynamic programming."""
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            rows[i][j] = rows[i - 1][j - 1] + 1 if x == y else max(rows[i - 1][j], rows[i][j - 1])
    return rows[-1][-1]


def test_lcs_length_equals_the_textbook():
    rng = random.Random(0)
    for _ in range(200):
        a, b = ([rng.randrange(6) for _ in range(rng.randrange(20))] for _ in range(2))
        assert lcs_length(a, b) == textbook_lcs(a, b)


def random_texts(rng: random.Random, count: int, longest: int) -> list[tuple[int, ...]]:
    """Texts of few words, some of them empty or equal."""
    texts = [tuple(rng.randrange(4) for _ in range(rng.randrange(longest))) for _ in range(count)]
    return [*texts, (), texts[0]]


def test_lcs_lengths_equal_the_textbook_for_many_texts():
    rng = random.Random(1)
    for longest in (2, 9, 40):  # bits in one byte, in two, and in several
        answers, others = random_texts(rng, 12, longest), random_texts(rng, 15, longest)
        lengths = lcs_lengths(answers, others)
        for a in answers:
            assert lengths[a] == {b: textbook_lcs(list(a), list(b)) for b in others}


def test_the_choice_is_that_of_the_definition():
    rng = random.Random(2)
    for references in (0, 5):
        for _ in range(20):
            answers = random_texts(rng, 12, 12)
            bonus = [rng.choice([0.0, 0.05]) for _ in answers]
            first = len(answers) - references if references else 0
            gains = []
            for i, a in enumerate(answers):
                others = [b for j, b in enumerate(answers) if j >= first and j != i]
                f1 = [2 * textbook_lcs(list(a), list(b)) / max(len(a + b), 1) for b in others]
                gains.append(sum(f1) / len(others) + bonus[i])
            assert minimum_bayes_risk(answers, bonus, references) == gains.index(max(gains))


def test_the_most_similar_answer_is_selected():
    middle = [1, 2, 3, 4, 5]
    answers = [[1, 2, 3, 9, 8], [6, 6, 6, 6, 6], middle, [7, 7, 3, 4, 5]]
    assert answers[minimum_bayes_risk(answers)] == middle


def test_similarity_is_the_unweighted_f1():
    """Of nine reference words, an answer has four among four, the other eight among nineteen."""
    reference = list(range(1, 10))
    short, long = reference[:4], [*reference[:8], *range(20, 31)]
    # 8 / 13 = 0.615 and 16 / 28 = 0.571; with recall weighted by 1.44, 0.575 and 0.611.
    assert minimum_bayes_risk([short, long, reference], references=1) == 0


def test_words_are_lower_case_and_marks_are_separate():
    assert split_words("The heart's NORMAL, ok.") == [
        "the",
        "heart",
        "'",
        "s",
        "normal",
        ",",
        "ok",
        ".",
    ]
    assert split_words("心影增大 X") == ["心", "影", "增", "大", "x"]


def test_candidates_are_compared_with_references_only():
    alike, other = [1, 2, 3, 4], [7, 8, 9]
    answers = [alike] * 4 + [[7, 8, 5], [8, 7, 9], other]
    assert answers[minimum_bayes_risk(answers)] == alike
    assert minimum_bayes_risk(answers, references=3) == 6
    assert minimum_bayes_risk(answers, [0.0] * 4 + [0.9, 0.0, 0.0], references=3) == 4


def test_the_bonus_is_added_to_the_similarity():
    answers = [[1, 2, 3], [1, 2, 3], [1, 2, 3], [7, 8, 9]]
    assert minimum_bayes_risk(answers, [0.0, 0.1, 0.0, 0.5]) == 1  # similarity 2/3, and 0
    assert minimum_bayes_risk(answers, [0.0, 0.0, 0.0, 0.7]) == 3
    assert minimum_bayes_risk(answers[2:], [0.0, 0.1]) == 1  # two are equally similar to each other


def test_candidates_need_sampling():
    with pytest.raises(ValueError, match="set do_sample: true"):
        Generation(candidates=8)
    with pytest.raises(ValueError, match="candidates above 1"):
        Generation(references=8)


def test_padding_does_not_count():
    """Short answers are not more similar if they are padded to the length of a longer one."""
    tokenizer = new_tokenizer(["left side is clear", "right lung"], 260)
    decoder = object.__new__(Decoder)
    decoder.tokenizer, decoder.text_stops, decoder.end_ids = tokenizer, ["###"], {2}
    decoder.markers = []
    long = "left side is clear left side is clear"
    answers = ["right lung", "lung right right", long, long + " left", long + " side"]
    rows = [tokenizer(f"{t}###", add_special_tokens=False)["input_ids"] for t in answers]
    padded = [row + [tokenizer.pad_token_id] * (200 - len(row)) for row in rows]
    texts = [decoder._decode(row) for row in padded]
    assert texts == answers
    assert decoder.choose_answer(texts, Generation()) == long


REPORTS = [
    "The heart is normal. The lungs are clear.",
    "The heart is large. The lungs are clear. No effusion.",
    "The heart is normal. No effusion.",
    "The heart is normal. The lungs are clear. No effusion.",
]


def test_recombination_adds_removes_and_exchanges_sentences():
    """Whatever the chosen answer, the sentences that most have come out, in their usual order."""
    wanted = "The heart is normal. The lungs are clear. No effusion."
    for chosen in ("Old scars. No effusion.", *REPORTS):
        answers = [chosen, *REPORTS]
        assert recombine(answers, 0) == wanted
    assert recombine(["Old scars.", "Old scars.", *REPORTS], 0, references=4) == wanted


def test_recombination_leaves_an_answer_that_cannot_be_improved():
    spaced = "The heart is normal.  The lungs are clear. No effusion."
    assert recombine([spaced, *REPORTS], 0) == spaced
    assert recombine(["", "", ""], 0) == ""
    assert recombine(["一切正常。"] * 3, 1) == "一切正常。"


def test_recombination_seeks_the_bonus_among_rare_sentences():
    rare = "There is a small effusion."
    answers = [*REPORTS * 4, rare]

    def bonus(text):
        return 0.5 * (rare in text) - 1.0 * (rare in text and "No effusion" in text)

    text = recombine(answers, 3, bonus)
    assert rare in text and "No effusion" not in text and "The heart is normal." in text
    assert rare not in recombine(answers, 3)


def test_recombination_needs_candidates():
    with pytest.raises(ValueError, match="requires candidates above 1"):
        Generation(recombine=True)
