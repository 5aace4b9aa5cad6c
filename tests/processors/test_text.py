"""Cleaning of report text."""

from __future__ import annotations

import pytest

from xraygpt.processors.text import ReportText


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Normal chest x-XXXX.", "Normal chest x-ray."),
        ("There are no XXXX of a pleural effusion.", "There are no signs of a pleural effusion."),
        ("The XXXX are clear.", "The are clear."),
        ("Heart ___ normal , lungs clear.", "Heart normal, lungs clear."),
        ("XXXX-year-old male.", "male."),
        ("a\n b", "a b"),
    ],
)
def test_masks_are_restored_or_removed(before, after):
    assert ReportText(ReportText.Config())(before) == after


def test_masked_sentences_can_be_dropped():
    clean = ReportText(ReportText.Config(masks="drop_sentence"))
    assert clean("The XXXX is big. Lungs are clear.") == "Lungs are clear."
    assert ReportText(ReportText.Config(max_words=3))("One two. Three four.") == "One two."
