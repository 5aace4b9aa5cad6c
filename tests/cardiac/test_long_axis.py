"""Volumes bounded by long-axis views, on a cylinder that ends between two slices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.cardiac.hearts import ring, stack_of
from xraygpt.cardiac.long_axis import correct_volumes, equivalent_end
from xraygpt.cardiac.stack import Stack
from xraygpt.cardiac.stack_segmentation import segment_stack
from xraygpt.measure.cardiac_function import MeasurementError
from xraygpt.segmentation.base import Segmentation, Segmenter, Slices
from xraygpt.segmentation.labels import LV, MYOCARDIUM

RADIUS, WALL = 15, 8
TOP = (33, 28)  # mm along the normal where the cavity ends at end diastole and end systole


class Drawn(Segmenter):
    """Takes the pixel values as labels, with a confidence that can be set."""

    orientation = "stored"

    def __init__(self, confidence=0.95):
        self.confidence = confidence

    def segment(self, slices: Slices) -> Segmentation:
        count = len(slices.pixels)
        return Segmentation(slices.pixels.astype(np.uint8), np.full(count, self.confidence))


def short_axis():
    """Slices at 0, 10, 20 and 30 mm; the cavity is smaller at end systole."""
    phases = []
    for radius, top in ((RADIUS, TOP[0]), (RADIUS - 5, TOP[1])):
        slices = [ring(radius, WALL) if 10 * i < top else np.zeros((96, 96)) for i in range(4)]
        phases.append(np.stack(slices))
    maps = np.stack(phases).astype(np.float32)
    maps[:, 0] = np.stack([ring(8, WALL), ring(4, WALL)])  # the apex is smaller
    return stack_of(maps, read=lambda t, s: maps[t, s])


def view(shift=0.0, height=TOP):
    """A four-chamber view: columns along x, rows along the normal from −10 mm."""
    rows, columns = np.mgrid[:96, :96]
    maps = np.zeros((2, 1, 96, 96), np.float32)
    for t, radius in enumerate((RADIUS, RADIUS - 5)):
        inside = (rows - 10 <= height[t]) & (rows - 10 >= -4)
        maps[t, 0][(np.abs(columns - 48 - shift) <= radius + WALL) & inside] = MYOCARDIUM
        maps[t, 0][(np.abs(columns - 48 - shift) <= radius) & inside] = LV
    return Stack(
        "la4", "4CH", maps.shape, lambda t, s: maps[t, s], spacing=(1.0, 1.0),
        origins=np.array([[0.0, 48.0, -10.0]]), axes=np.array([[1.0, 0, 0], [0, 0, 1.0]]),
    )  # fmt: skip


def correct(views, segmenter=None):
    stack = short_axis()
    labelled = segment_stack(stack, Drawn())
    return correct_volumes(stack, labelled, (0, 1), views, segmenter or Drawn())


def test_the_volume_ends_at_the_mitral_plane_of_the_view():
    """By hand: 200 mm² at 0 mm to 709 mm² at 10 mm, then a cylinder to 33.5 mm; the tip is a
    paraboloid of 4 mm: 0.4 + 4.5 + 16.7 mL. The sum over slices counts 5 mm too much at either end.
    """
    stack = short_axis()
    areas = [(ring(r, WALL) == LV).sum() for r in (8, RADIUS)]
    result = correct([view()])
    assert result.bounds.positions[0] == pytest.approx([-4, 33.5], abs=1)
    assert result.bounds.positions[1] == pytest.approx([-4, 28.5], abs=1)
    by_hand = (areas[0] * 4 / 2 + (areas[0] + areas[1]) / 2 * 10 + areas[1] * 23.5) / 1000
    assert result.volumes[0] == pytest.approx(by_hand, rel=0.03)
    plain = 10 * (areas[0] + 3 * areas[1]) / 1000
    assert result.volumes[0] < plain and result.bounds.views == ("4CH (la4)",)
    upside_down = Stack(
        stack.name, stack.role, stack.shape, lambda t, s: stack.image(t, 3 - s), stack.spacing,
        stack.origins[::-1], axes=np.array([[0.0, 1, 0], [1, 0, 0]]),
    )  # fmt: skip
    turned = Stack(
        "sax", "SAX", stack.shape, lambda t, s: stack.image(t, 3 - s).T, (1.0, 1.0),
        upside_down.origins, axes=upside_down.axes,
    )  # fmt: skip
    labelled = segment_stack(turned, Drawn())
    again = correct_volumes(turned, labelled, (0, 1), [view()], Drawn())
    assert again.volumes == pytest.approx(result.volumes, rel=0.01)


def test_views_are_matched_by_time():
    """The view has its phases the other way round: end systole at 0 and end diastole at 0.4 s."""
    late = view(height=TOP)
    maps = [late.image(1, 0), late.image(0, 0)]
    late = replace(late, read=lambda t, s: maps[t], times=np.array([0.4, 0.8]),
                   rr_intervals=np.array([0.8]))  # fmt: skip
    stack = replace(short_axis(), times=np.array([0.0, 0.4]), rr_intervals=np.full(4, 0.8))
    labelled = segment_stack(stack, Drawn())
    result = correct_volumes(stack, labelled, (0, 1), [late], Drawn())
    assert result.volumes == pytest.approx(correct([view()]).volumes)


@pytest.mark.parametrize(
    ("views", "segmenter", "reason"),
    [
        ([], None, "there are no long-axis cines"),
        ([view(shift=25)], None, "agree by only"),
        ([view()], Drawn(confidence=0.5), r"confidence is 0\.50, below 0\.8"),
    ],
)
def test_unreliable_views_are_not_used(views, segmenter, reason):
    with pytest.raises(MeasurementError, match=reason):
        correct(views, segmenter)


def test_an_oblique_plane_counts_in_part():
    """Full width to 20 mm, then half of it to 30 mm: a quarter of the area for 10 mm more."""
    positions = np.concatenate([np.repeat(np.arange(0, 20), 40), np.repeat(np.arange(20, 30), 20)])
    assert equivalent_end(positions.astype(float)) == pytest.approx(20 + 10 / 4, abs=1)
