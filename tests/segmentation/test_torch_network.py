"""Networks saved by torch."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from xraygpt.common.errors import WeightsError
from xraygpt.segmentation.base import Slices
from xraygpt.segmentation.labels import LV
from xraygpt.segmentation.torch_network import TorchNetwork


class Threshold(torch.nn.Module):
    """LV where a pixel is brighter than 0.5."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([0 * images, 40 * images - 20], dim=1)


def save(file):
    example = torch.zeros(2, 1, 32, 32)
    if file.suffix == ".pt2":
        batch = torch.export.Dim("batch")
        torch.export.save(torch.export.export(Threshold(), (example,), dynamic_shapes=[{0: batch}]),
                          file)  # fmt: skip
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as such
            torch.jit.save(torch.jit.trace(Threshold(), example), str(file))
    return file


@pytest.mark.parametrize("name", ["net.pt2", "net.pt"])
def test_both_formats_segment(tmp_path, name):
    config = TorchNetwork.Config(
        network=save(tmp_path / name), convention="sunnybrook", image_size=32
    )
    images = np.full((3, 40, 40), 10, np.float32)
    images[:, 10:30, 10:30] = 100
    result = config.build().segment(Slices(images))
    assert (result.labels == LV).sum() == pytest.approx(3 * 400, rel=0.15)


def test_what_is_no_network_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        TorchNetwork.Config(network=tmp_path / "a.pt", convention="acdc").build()
    (tmp_path / "a.pt").write_bytes(b"no network")
    with pytest.raises(WeightsError, match=r"no network saved by torch\.export\.save"):
        TorchNetwork.Config(network=tmp_path / "a.pt", convention="acdc").build()
    file = save(tmp_path / "net.pt2")
    with pytest.raises(WeightsError, match=r"expected outputs of shape \(2, 4, 32, 32\)"):
        TorchNetwork.Config(network=file, convention="acdc", image_size=32).build()
    with pytest.raises(WeightsError, match="does not take two images of 64 pixels"):
        TorchNetwork.Config(network=file, convention="sunnybrook", image_size=64).build()
