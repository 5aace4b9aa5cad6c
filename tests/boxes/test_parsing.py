"""Boxes in the answers of models, which write what they like."""

from __future__ import annotations

import pytest

from xraygpt.boxes.parsing import parse_boxes

BOX = (0.25, 0.1, 0.5, 0.4)
APPROX = pytest.approx(BOX, abs=0.01)

READ = {
    # text, expected spelling
    "brackets": ("[0.25, 0.10, 0.50, 0.40]", "unit"),
    "parentheses": ("(0.25, 0.10, 0.50, 0.40)", "unit"),
    "without spaces": ("[0.25,0.1,0.5,0.4]", "unit"),
    "spaces only": ("[0.25 0.10 0.50 0.40]", "unit"),
    "semicolons": ("[0.25; 0.10; 0.50; 0.40]", "unit"),
    "a comma at the end": ("[0.25, 0.10, 0.50, 0.40,]", "unit"),
    "without a leading zero": ("[.25, .10, .50, .40]", "unit"),
    "percentages": ("[25%, 10%, 50%, 40%]", "unit"),
    "two points": ("((0.25, 0.10), (0.50, 0.40))", "unit"),
    "points in brackets": ("[(250, 100), (500, 400)]", "thousand"),
    "qwen's tags": ("<|box_start|>(250,100),(500,400)<|box_end|>", "grid999"),
    "qwen-vl's tags": ("<ref>nodule</ref><box>(250,100),(500,400)</box>", "thousand"),
    "chexagent's tags": ("<|ref|>nodule<|/ref|><|box|>(25,10),(50,40)<|/box|>", "percent"),
    "json": ('```json\n[{"bbox_2d": [250, 100, 500, 400], "label": "nodule"}]\n```', "json"),
    "json cut off": ('[{"bbox_2d": [250, 100, 500, 400], "label": "nod', "json"),
    "python's quotes": ("{'bbox_2d': [250, 100, 500, 400]}", "thousand"),
    "loc": ("<loc0102><loc0256><loc0410><loc0512> nodule", "thousand"),
    "maira": ("<obj>nodule <box><x25><y10><x50><y40></box></obj>", "unit"),
    "angle brackets": ("<0.25, 0.10, 0.50, 0.40>", "unit"),
    "xml": ("<box>[0.25, 0.10, 0.50, 0.40]</box>", "unit"),
    "braces": ("{250, 100, 500, 400}", "thousand"),
    "decimals in thousandths": ("[250.0, 100.0, 500.0, 400.0]", "thousand"),
}


@pytest.mark.parametrize("case", READ)
def test_boxes_are_read_in_any_of_these_forms(case):
    text, spelling = READ[case]
    parsed = parse_boxes(f"There is a nodule at {text}.", spelling)
    assert parsed.boxes == [APPROX] and not parsed.dropped and not parsed.repaired


REPAIRED = {
    "a damaged number": ("[0.25, 0.10, 0.50., 0.40]", "unit", BOX, "malformed number repaired"),
    "swapped corners": ("[0.50, 0.40, 0.25, 0.10]", "unit", BOX, "corners swapped"),
    "swapped left and right": ("[500, 100, 250, 400]", "thousand", BOX, "corners swapped"),
    "a negative number": ("[-0.1, 0.10, 0.50, 0.40]", "unit", (0, 0.1, 0.5, 0.4), "cut at"),
    "beyond the border": ("[250, 100, 500, 1020]", "thousand", (0.25, 0.1, 0.5, 1), "cut at"),
    "thousandths for fractions": ("[250, 100, 500, 400]", "unit", BOX, "read as thousand"),
    "fractions for thousandths": ("[0.25, 0.10, 0.50, 0.40]", "thousand", BOX, "read as unit"),
    "fractions for pixels": ("[0.25, 0.10, 0.50, 0.40]", "pixels", BOX, "read as unit"),
}


@pytest.mark.parametrize("case", REPAIRED)
def test_repairs_are_made_and_reported(case):
    text, spelling, box, reason = REPAIRED[case]
    parsed = parse_boxes(f"Effusion: {text}", spelling, (500, 500))
    assert parsed.boxes == [pytest.approx(box)] and not parsed.dropped
    assert [r.split(":")[0] for r in parsed.repaired] and parsed.repaired[0].startswith(reason)


DROPPED = {
    "three numbers": ("[0.25, 0.10, 0.50]", "unit", "3 numbers"),
    "five numbers": ("[0.25, 0.10, 0.50, 0.40, 0.9]", "unit", "5 numbers"),
    "no area": ("[0.25, 0.10, 0.25, 0.40]", "unit", "no area"),
    "outside": ("[1200, 100, 1300, 400]", "thousand", "outside the image"),
    "whole numbers below 100": ("[25, 10, 50, 40]", "unit", "not fractions"),
    "half of maira's tokens": ("<box><x25><y10></box>", "maira", "2 numbers"),
}


@pytest.mark.parametrize("case", DROPPED)
def test_what_is_no_box_is_dropped_and_reported(case):
    text, spelling, reason = DROPPED[case]
    parsed = parse_boxes(f"Effusion at {text} and nothing else.", spelling)
    assert parsed.boxes == [] and len(parsed.dropped) == 1
    assert parsed.dropped[0].startswith(reason)


@pytest.mark.parametrize(
    "text",
    ["No nodule is seen.", "", "T5 (levels 3, 4) is normal.", "3.5 x 2 cm [1, 2]", "[]", "[x, y]",
     "Measured 4, 5, 6, 7 mm", "(a) clear (b) not"],
)  # fmt: skip
def test_text_without_boxes_has_none(text):
    assert parse_boxes(text, "thousand") == parse_boxes("", "thousand")


def test_labels_and_places_of_several_boxes():
    text = (
        '[{"bbox_2d": [250, 100, 500, 400], "label": "right \\"upper\\" zone"}, '
        '{"label": "nodule", "bbox_2d": [600, 100, 700, 200]}] <ref>heart</ref>'
        "<box>(300,400),(700,800)</box> and [1, 2, 3, 4]"
    )
    parsed = parse_boxes(text, "json")
    assert [each.label for each in parsed.found] == ['right "upper" zone', "nodule", "heart", ""]
    assert [text[f.start : f.end] for f in parsed.found][1] == "[600, 100, 700, 200]"


def test_the_order_of_predicted_boxes_is_that_of_the_text():
    first, second = "[600, 100, 700, 200]", "[100, 100, 200, 200]"
    boxes = parse_boxes(f"{first} and {second}", "thousand").boxes
    assert boxes == parse_boxes(f"{second} and {first}", "thousand").boxes[::-1]
