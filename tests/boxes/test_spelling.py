"""Boxes written into text and read from it, through every spelling and geometry."""

from __future__ import annotations

import random

import pytest

from xraygpt.boxes.parsing import parse_boxes
from xraygpt.boxes.spelling import (
    SPELLINGS,
    centre_square,
    padded_square,
    qwen_resize,
    write_box,
    write_boxes,
)
from xraygpt.boxes.units import check_box, from_corners, from_extent, to_corners, to_extent
from xraygpt.common.errors import DataError, InputError
from xraygpt.media.geometry import MIRRORED, Geometry, crop_geometry

BOX = (0.25, 0.1, 0.5, 0.4)
SIZE = (196, 308)
WRITTEN = {
    "unit": "[0.25, 0.10, 0.50, 0.40]",
    "unit_short": "[0.25, 0.1, 0.5, 0.4]",
    "percent": "<|box|>(25,10),(50,40)<|/box|>",
    "thousand": "[250, 100, 500, 400]",
    "grid999": "<|box_start|>(250,100),(500,400)<|box_end|>",
    "pixels": "[77, 20, 154, 78]",
    "loc": "<loc0102><loc0256><loc0410><loc0512>",
    "maira": "<box><x25><y10><x50><y40></box>",
    "json": '{"bbox_2d": [250, 100, 500, 400], "label": "nodule"}',
    "json_pixels": '{"bbox_2d": [77, 20, 154, 78], "label": "nodule"}',
}
# Largest shift of an edge in pixels of an image of 1,024 x 1,024.
SHIFTS = {
    "unit": 5.2, "unit_short": 5.2, "percent": 5.2, "thousand": 0.52, "grid999": 0.52,
    "pixels": 1024 * 0.5 / 196, "loc": 1.0, "maira": 5.2, "json": 0.52,
    "json_pixels": 1024 * 0.5 / 196,
}  # fmt: skip


def random_boxes(count: int, smallest: float = 0.02):
    rng = random.Random(0)
    for _ in range(count):
        width, height = rng.uniform(smallest, 0.9), rng.uniform(smallest, 0.9)
        x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        yield x, y, x + width, y + height


def shift(found, box) -> float:
    return 1024 * max(abs(a - b) for a, b in zip(found, box, strict=True))


@pytest.mark.parametrize("name", SPELLINGS)
def test_each_spelling_looks_as_its_models_expect(name):
    assert write_box(BOX, name, SIZE, "nodule") == WRITTEN[name]


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_box_survives_writing_and_reading(name):
    shifts = []
    for box in random_boxes(300):
        parsed = parse_boxes(f"It is at {write_box(box, name, SIZE)}.", name, SIZE)
        assert not parsed.repaired and not parsed.dropped
        (found,) = parsed.boxes
        shifts.append(shift(found, box))
    assert max(shifts) <= SHIFTS[name]
    assert max(shifts) > SHIFTS[name] / 2, "the stated accuracy is too cautious"
    if SPELLINGS[name].steps:
        assert max(shifts) <= 1024 * SPELLINGS[name].accuracy + 1e-6


@pytest.mark.parametrize("name", SPELLINGS)
def test_boxes_at_the_borders_and_tiny_boxes_do_not_vanish(name):
    for box in [(0, 0, 1, 1), (0.9999, 0.9999, 1, 1), (0, 0, 1e-4, 1e-4), (0.5, 0.2, 0.5001, 0.9)]:
        (found,) = parse_boxes(write_box(box, name, SIZE), name, SIZE).boxes
        assert shift(found, box) <= 1024 * 1.5 * max(1 / 100, 1 / 196)
        assert found[0] < found[2] and found[1] < found[3]


def test_two_decimals_cost_a_nodule_a_third_of_its_overlap_and_thousandths_do_not():
    def overlap(name: str, box) -> float:
        (found,) = parse_boxes(write_box(box, name), name).boxes
        width = min(found[2], box[2]) - max(found[0], box[0])
        height = min(found[3], box[3]) - max(found[1], box[1])
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (found, box)]
        return width * height / (sum(areas) - width * height)

    nodules = [(x, y, x + 0.024, y + 0.024) for x, y, _, _ in random_boxes(400)]
    worst = {name: min(overlap(name, box) for box in nodules) for name in ("unit", "thousand")}
    assert worst["unit"] < 0.67 and worst["thousand"] > 0.9


@pytest.mark.parametrize("name", ["thousand", "grid999", "json"])
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(),
        MIRRORED,
        crop_geometry(0.1, 0.05, 0.8, 0.9),
        crop_geometry(-0.2, 0.0, 1.4, 1.0),
        centre_square(1000, 1024),
        padded_square(900, 1024),
        MIRRORED.then(crop_geometry(0.1, 0.1, 0.85, 0.85)).then(padded_square(700, 1024)),
    ],
)
def test_a_box_survives_geometry_writing_reading_and_the_way_back(name, geometry):
    """The way of a prediction: from the original to the model's image and back."""
    scale = max(abs(geometry.inverse().a), abs(geometry.inverse().e))
    for box in random_boxes(200):
        mapped = geometry.map_box(box)
        if mapped is None:
            continue
        (found,) = parse_boxes(write_box(mapped, name), name).boxes
        back = geometry.inverse().map_box(found)
        visible = geometry.inverse().map_box(mapped)
        assert shift(back, visible) <= max(1.0, 0.52 * scale)


def test_resizing_changes_no_normalised_box():
    for width, height in ((1024, 1024), (512, 512), (2048, 2500), (224, 300)):
        pixels = to_corners(BOX, width, height)
        assert from_corners(pixels, width, height) == pytest.approx(BOX)
        assert from_extent(to_extent(BOX, width, height), width, height) == pytest.approx(BOX)


def test_pixels_are_those_after_the_processors_resize():
    """ms-swift #5077, #3659, #5008, #4898 and QwenLM/Qwen3-VL #1486, #1161: before or after?"""
    height, width = qwen_resize(2500, 2048, max_pixels=1280 * 28 * 28)
    assert (height, width) == (1092, 896)
    text = write_box(BOX, "pixels", (height, width))
    assert text == f"[{width // 4}, {round(height * 0.1)}, {width // 2}, {round(height * 0.4)}]"
    assert parse_boxes(text, "pixels", (height, width)).boxes[0] == pytest.approx(BOX, abs=1e-3)
    with pytest.raises(InputError, match="need the size of the image"):
        write_box(BOX, "pixels")


def test_qwen_resize_equals_transformers():
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rng = random.Random(1)
    for _ in range(300):
        height, width = rng.randint(30, 4000), rng.randint(30, 4000)
        limits = {"min_pixels": 56 * 56, "max_pixels": rng.choice([200_000, 1_003_520, 12_845_056])}
        assert qwen_resize(height, width, **limits) == smart_resize(
            height, width, factor=28, **limits
        )


def test_several_boxes_are_joined_as_each_spelling_does():
    boxes = [BOX, (0.6, 0.2, 0.9, 0.5), (0.1, 0.1, 0.2, 0.2)]
    assert write_boxes(boxes, "thousand") == (
        "[250, 100, 500, 400], [600, 200, 900, 500] and [100, 100, 200, 200]"
    )
    assert write_boxes(boxes[:2], "unit") == "[0.25, 0.10, 0.50, 0.40] and [0.60, 0.20, 0.90, 0.50]"
    for name in SPELLINGS:
        assert len(parse_boxes(write_boxes(boxes, name, SIZE), name, SIZE).boxes) == 3, name
    assert write_boxes([], "thousand") == ""


def test_unknown_spellings_and_boxes_outside_the_image_are_refused():
    with pytest.raises(InputError, match="did you mean 'thousand'"):
        write_box(BOX, "thousands")
    for box, reason in (
        ((0.5, 0.1, 0.25, 0.4), "corners swapped"),
        ((0.1, 0.1, 0.1, 0.4), "is empty"),
        ((250, 100, 500, 400), "leaves the image"),
        ((float("nan"), 0, 1, 1), "is empty"),
    ):
        with pytest.raises(DataError, match=reason):
            check_box(box)
    assert check_box((-0.0005, 0, 0.5, 1.0004)) == (0, 0, 0.5, 1), "rounding is cut"
    with pytest.raises(DataError, match="has the size 0 x 10"):
        from_corners((0, 0, 1, 1), 0, 10)
