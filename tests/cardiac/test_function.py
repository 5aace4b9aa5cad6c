"""From images to volumes, with a segmenter whose answers are known, and with a real network."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from xraygpt.cardiac import function, long_axis, stack_segmentation
from xraygpt.cardiac.dicom_intake import read_dicom_study
from xraygpt.cardiac.stack import Stack
from xraygpt.measure.cardiac_function import MeasurementError
from xraygpt.segmentation.base import Segmentation, Segmenter
from xraygpt.segmentation.labels import LV, MYOCARDIUM, RV


class Brightness(Segmenter):
    """Takes the pixel values as labels; it is confident only about images wider than high."""

    def __init__(self):
        pass

    def segment(self, slices):
        images = slices.pixels
        wide = images.shape[2] > images.shape[1]
        return Segmentation(images.astype(np.uint8), np.full(len(images), 0.9 if wide else 0.3))


def stack_of(labels, **settings):
    """A stack whose images are label maps (T, S, H, W), 2 × 1 mm pixels, slices 10 mm apart."""
    settings = {"spacing": (2.0, 1.0), "gap": 10.0, **settings}
    return Stack("sax", "SAX", labels.shape, lambda t, s: labels[t, s], **settings)


def heart(areas, right=0):
    """Label maps with (T, S) cavity pixels, 20 pixels of myocardium and `right` of the RV."""
    maps = np.zeros((len(areas), len(areas[0]), 20, 10), np.float32)
    for t, row in enumerate(areas):
        for s, count in enumerate(row):
            flat = maps[t, s].reshape(-1)
            flat[:count], flat[100:120], flat[150 : 150 + right] = LV, MYOCARDIUM, RV
    return maps


def test_function_of_known_masks():
    """ED 3 slices of 50 pixels of 2 mm² 10 mm apart: 3 mL; ES 20 + 10 + 0: 0.6 mL; EF 80 %."""
    stack = stack_of(heart([[40, 40, 40], [50, 50, 50], [20, 10, 0]], right=30))
    labelled = stack_segmentation.segment_stack(stack, Brightness())
    assert labelled.transposed  # images are 20 high and 10 wide
    assert np.array_equal(labelled.labels[1], [stack.image(1, s) for s in range(3)])
    result = function.measure_function(stack, labelled)
    assert result.left.volumes == pytest.approx([2.4, 3.0, 0.6])
    assert result.left.phases == (1, 2)
    assert result.left.ejection_fraction == pytest.approx(80)
    assert result.left.mass == pytest.approx(1.05 * 3 * 20 * 2 * 10 / 1000)
    assert result.right.end_diastolic_volume == pytest.approx(1.8)
    some = stack_segmentation.segment_stack(stack, Brightness(), phases=[2, 1])
    assert some.phases.tolist() == [1, 2]
    assert function.measure_function(stack, some).left.phases == (0, 1)


def test_what_cannot_be_measured_has_a_reason():
    masks = heart([[50, 50], [20, 20]])
    labelled = stack_segmentation.segment_stack(stack_of(masks), Brightness())
    result = function.measure_function(stack_of(masks), labelled)
    assert result.right is None and "right ventricle" in result.reasons[0]
    for settings, message in (({"spacing": None}, "pixel spacing"), ({"gap": None}, "distance")):
        relative = function.measure_function(stack_of(masks, **settings), labelled)
        assert not relative.absolute and relative.left.mass is None
        assert relative.left.ejection_fraction == pytest.approx(60)  # 50 to 20 pixels
        assert f"no volumes in mL: the {message}" in relative.reasons[0]
    empty = np.zeros_like(masks)
    with pytest.raises(MeasurementError, match="empty in every phase"):
        stack = stack_of(empty)
        function.measure_function(stack, stack_segmentation.segment_stack(stack, Brightness()))
    same = heart([[50, 50], [50, 50]])
    with pytest.raises(MeasurementError, match="same volume"):
        function.measure_function(
            stack_of(same), stack_segmentation.segment_stack(stack_of(same), Brightness())
        )


@pytest.mark.parametrize("shift", range(0, 25, 2))
def test_extremes_are_found_without_segmenting_everything(shift):
    """Wherever end diastole lies in the series, also where it wraps around."""
    curve = np.array(
        [150, 149, 146, 141, 134, 124, 113, 102, 90, 79, 70, 66, 69, 77, 86, 95, 104, 112, 119, 126,
         132, 137, 142, 145, 147]
    )  # fmt: skip
    areas = 0.62 * np.roll(curve, shift)[:, None] * np.array([[0.4, 1.0, 0.9, 0.7, 0.5, 0.3]])
    stack = stack_of(heart(areas.round().astype(int)))
    counting = Brightness()
    images = []
    segment = counting.segment
    counting.segment = lambda slices: images.extend(slices.pixels) or segment(slices)
    some = function.measure_function(stack, stack_segmentation.segment_extremes(stack, counting))
    assert len(images) <= 15 * 6  # of 150, plus the other orientation of one phase
    full = function.measure_function(stack, stack_segmentation.segment_stack(stack, Brightness()))
    assert some.left.ejection_fraction == full.left.ejection_fraction
    phases = [some.phases[i] for i in some.left.phases]
    assert phases == [full.phases[i] for i in full.left.phases]


needs_network = pytest.mark.skipif(
    not (importlib.util.find_spec("myopari") and importlib.util.find_spec("onnxruntime")),
    reason="pip install onnxruntime; pip install --no-deps myopari==0.1.6",
)


@pytest.mark.slow
@needs_network
def test_a_real_study_from_dicom_to_ejection_fraction(real_data):
    """The study's own meshes (another method) have an LVEF of 63.6 %, an RVEF of 56.7 % at frame 9.

    With SliceThickness in place of the distance between slices, EDV would be 67 mL instead of 196.
    """
    from xraygpt.segmentation.onnx_network import OnnxNetwork

    study = read_dicom_study(real_data / "cmr" / "biv_me" / "dicoms")
    stack = study.with_role("SAX")[0]
    network = OnnxNetwork.Config().build()
    labelled = stack_segmentation.segment_extremes(stack, network)
    result = function.measure_function(stack, labelled)
    assert labelled.transposed
    assert result.phases[result.left.phases.end_systole] in (8, 9, 10)
    assert result.left.ejection_fraction == pytest.approx(63.6, abs=5)
    assert result.right.ejection_fraction == pytest.approx(56.7, abs=8)
    assert result.left.end_diastolic_volume > 150
    views = [view for view in study.stacks if view.role in long_axis.VIEWS]
    ends = tuple(int(result.phases[i]) for i in result.left.phases)
    corrected = long_axis.correct_volumes(stack, labelled, ends, views, network)
    meshes = 161  # mL at end diastole
    plain = result.left.end_diastolic_volume
    assert abs(corrected.volumes[0] - meshes) < abs(plain - meshes)
    assert corrected.bounds.views == ("4CH (cine_trufi_retro 4CH)",)
