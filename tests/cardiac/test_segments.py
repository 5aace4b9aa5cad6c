"""Wall thickness and infarct by segment, on rings of known size."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cardiac.hearts import CENTRE, ring, stack_of
from xraygpt.cardiac.function import Conventions, apply_conventions, ring_fractions
from xraygpt.cardiac.segments import (
    measure_infarct,
    right_ventricle_centre,
    segment_map,
    wall_thickness,
)
from xraygpt.cardiac.stack_segmentation import StackLabels
from xraygpt.measure.cardiac_function import MeasurementError
from xraygpt.segmentation.labels import INFARCT, LV, MYOCARDIUM, NO_REFLOW


def heart():
    """Three slices from apex to base; walls of 6, 8 and 10 mm."""
    return np.stack([ring(12, 6), ring(18, 8), ring(20, 10)])


def test_segments_lie_where_the_patient_has_them():
    """Feet first or head first, transposed or not: positions decide, not rows and columns."""
    labels = heart()
    stack = stack_of(labels[None])
    septum = right_ventricle_centre(stack, labels)
    assert septum[0] == pytest.approx(10)  # mm to the left of the first column
    segments = segment_map(stack, labels, septum)
    rows, columns = CENTRE
    assert [segments[2, rows + d, columns] for d in (-25, 25)] == [1, 4]  # anterior, inferior
    assert segments[2, rows - 5, columns - 25] == 2  # anteroseptal
    assert segments[2, rows + 5, columns - 25] == 3
    assert [segments[0, rows, columns + d] for d in (-15, 15)] == [14, 16]  # septal, lateral
    assert segments[1, rows - 20, columns] == 7

    turned = stack_of(labels.transpose(0, 2, 1)[None], axes=np.eye(3)[[1, 0]],
                      origins=np.array([[0.0, 0.0, -10.0 * i] for i in range(3)]))  # fmt: skip
    flipped = stack_of(labels.transpose(0, 2, 1)[::-1][None], axes=np.eye(3)[[1, 0]],
                       origins=np.array([[0.0, 0.0, 20 - 10.0 * i] for i in range(3)]))  # fmt: skip
    assert turned.positions is not None and np.all(np.diff(turned.positions) > 0)
    same = segment_map(flipped, labels.transpose(0, 2, 1)[::-1], septum)
    assert np.array_equal(same[::-1].transpose(0, 2, 1), segments)


def test_wall_thickness_of_rings():
    labels = heart()
    segments = segment_map(stack_of(labels[None]), labels, np.array([-40.0, 48, 0]))
    thickness = wall_thickness(labels, segments, (1.0, 1.0))
    assert thickness[:6] == pytest.approx([10] * 6, abs=0.5)
    assert thickness[6:12] == pytest.approx([8] * 6, abs=0.5)
    assert thickness[12:16] == pytest.approx([6] * 4, abs=0.5)
    assert np.isnan(thickness[16])
    twice = wall_thickness(labels, segments, (2.0, 2.0))
    assert twice[:16] == pytest.approx(2 * thickness[:16])


def test_infarct_as_percent_of_mass_and_of_a_segment():
    labels = heart()
    segments = segment_map(stack_of(labels[None]), labels, np.array([-40.0, 48, 0]))
    inside = segments == 1
    labels[inside] = INFARCT
    rows, columns = np.nonzero(inside[2])
    labels[2, rows[:10], columns[:10]] = NO_REFLOW
    muscle = np.isin(labels, (MYOCARDIUM, INFARCT, NO_REFLOW)).sum()
    infarct = measure_infarct(stack_of(labels[None]), labels, segments)
    assert infarct.percent == pytest.approx(100 * inside.sum() / muscle)
    assert infarct.mass == pytest.approx(1.05 * inside.sum() * 10 / 1000)  # 1 mm² · 10 mm
    assert infarct.no_reflow_percent == pytest.approx(1000 / muscle)
    assert infarct.by_segment[0] == 100 and np.nansum(infarct.by_segment) == 100
    with pytest.raises(MeasurementError, match="no myocardium"):
        measure_infarct(stack_of(labels[None]), np.zeros_like(labels), None)


def test_without_a_right_ventricle_there_are_no_segments():
    labels = np.stack([ring(12, 6, right=False)] * 2)
    with pytest.raises(MeasurementError, match="where the septum is"):
        right_ventricle_centre(stack_of(labels[None]), labels)


def labelled(maps):
    return StackLabels(np.arange(len(maps)), maps, np.ones(maps.shape[:2]), False)


def test_basal_slices_with_an_open_ring_do_not_count():
    """A quarter of the ring at the base is left: half is needed."""
    maps = np.stack([np.stack([ring(12, 6), ring(18, 8), ring(20, 10)])] * 2)
    rows, columns = np.mgrid[:96, :96]
    open_ = (maps == MYOCARDIUM) & ~((rows < 48) & (columns < 48))
    maps[:, 2][open_[:, 2]] = 0
    assert ring_fractions(maps)[0] == pytest.approx([1, 1, 0.25], abs=0.05)
    stack = stack_of(maps)
    kept = apply_conventions(stack, labelled(maps), Conventions())
    assert not np.isin(kept.labels[:, 2], (LV, MYOCARDIUM)).any()
    assert np.array_equal(kept.labels[:, :2], maps[:, :2])
    every = apply_conventions(stack, labelled(maps), Conventions(basal_ring=0))
    assert np.array_equal(every.labels, maps)
    # Outlines of the cavity alone have no rings, and count.
    cavity = np.where(maps == LV, maps, 0)
    assert np.array_equal(apply_conventions(stack, labelled(cavity), Conventions()).labels, cavity)


def test_papillary_muscles_move_to_the_mass():
    """A dark disc of 60 pixels in the bright cavity."""
    maps = np.stack([np.stack([ring(20, 8)] * 3)] * 2)
    images = np.where(maps == LV, 200.0, 60.0).astype(np.float32)
    dark = np.zeros(maps.shape[2:], bool)
    dark[40:46, 45:55] = True
    images[:, :, dark] = 70
    stack = stack_of(maps, read=lambda t, s: images[t, s])
    moved = apply_conventions(stack, labelled(maps), Conventions("mass"))
    assert ((maps == LV).sum() - (moved.labels == LV).sum()) == 60 * 6
    assert (moved.labels[:, :, dark] == MYOCARDIUM).all()
    assert apply_conventions(stack, labelled(maps), Conventions()).labels is not None
