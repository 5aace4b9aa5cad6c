"""Numbers in reports, and a score that falls when one of them changes."""

from __future__ import annotations

import pytest

from xraygpt.metrics.quantities import (
    change_one_number,
    number_agreement,
    number_aware_scores,
    quantities,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A 3 cm nodule.", ["30 mm"]),
        ("A 12-mm nodule and a 1.5 cm mass", ["12 mm", "15 mm"]),
        ("It measures 2.0 x 3 cm.", ["20 mm", "30 mm"]),
        ("Tip 4 centimeters above the carina", ["40 mm"]),
        ("Fracture of the 5th rib, wedge of T8", ["5th", "t8"]),
        ("Collapse of 30 percent", ["30 %"]),
        (
            "A .5 cm nodule, 1,200 ml of fluid; T8, 12 and 3.25 cm",
            ["5 mm", "1200", "t8", "12", "32.5 mm"],
        ),
        ("Two nodules, no number. Vitamin B12, study 04/10/2017", []),
    ],
)
def test_numbers_are_read_in_one_spelling(text, found):
    assert sorted(quantities(text)) == sorted(found)


def test_the_same_number_in_another_unit_agrees_and_another_number_does_not():
    assert number_agreement("A 3 cm nodule.", "A 30 mm nodule.") == 1
    assert number_agreement("A 3 cm nodule.", "A 3 mm nodule.") == 0
    assert number_agreement("A nodule.", "A nodule.") == 1
    assert number_agreement("A 3 cm nodule, T8.", "A 3 cm nodule.") == pytest.approx(2 / 3)


def test_a_changed_number_costs_much_here_and_little_in_rouge():
    report = "There is a 14 mm nodule in the left upper lobe. The heart is normal. No effusion."
    changed = change_one_number(report)
    assert changed == report.replace("14", "29") and change_one_number("No number.") is None
    values = {s.name: s.value for s in number_aware_scores([changed], [report])}
    assert values["ROUGE-L_numbers"] == 0 == values["numbers_F1"]


def test_dates_are_not_the_number_that_is_changed():
    text = "Compared to 10/25/1990, a 3 cm nodule."
    assert change_one_number(text) == "Compared to 10/25/1990, a 7 cm nodule."
    assert change_one_number("Compared to 10/25/1990.") is None
