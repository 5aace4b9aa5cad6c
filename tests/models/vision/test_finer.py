"""Finer features beside the last ones."""

from __future__ import annotations

import pytest
import torch

from xraygpt.common.errors import InputError
from xraygpt.models.vision.encoders import build_vision, find_encoder, has_weights


def check(name: str, size: int) -> None:
    """The last features are those of the plain encoder; the others are the finer cells in order."""
    torch.manual_seed(0)
    plain, finer = (build_vision(n, size, None).freeze() for n in (name, f"finer/{name}"))
    inner = finer.net.inner
    if list(inner.state_dict()) == list(plain.net.state_dict()):
        inner.load_state_dict(plain.net.state_dict())
    pixels = torch.randn(2, plain.input_spec.channels, size, size)
    tokens, last = finer.encode(pixels), plain.encode(pixels)
    assert tokens.shape == (2, finer.num_tokens, finer.width)
    assert finer.num_tokens == plain.num_tokens
    torch.testing.assert_close(tokens[..., : plain.width], last, rtol=1e-4, atol=1e-4)
    _, stage = finer.net._stages(inner, pixels)
    side = round(plain.num_tokens**0.5)
    k = stage.shape[-1] // side
    assert k == 2 and finer.width == plain.width + 4 * stage.shape[1]
    cell = tokens[:, side + 1, plain.width :].reshape(2, stage.shape[1], k, k)  # row 1, column 1
    torch.testing.assert_close(cell, stage[:, :, k : 2 * k, k : 2 * k], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_lite0_has_768_features_per_cell():
    check("efficientnet_lite0", 128)
    assert has_weights("finer/efficientnet_lite0") and not has_weights("finer/eva_clip_g")
    assert build_vision("finer/efficientnet_lite0", 256, None).width == 768


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["timm/resnet18", "timm/convnext_atto", "medclip_swin", "torchxrayvision"]
)
def test_timm_networks_with_stages(name):
    check(name, 224 if name == "medclip_swin" else 96)


def test_converted_weights_of_the_plain_encoder_fit():
    assert find_encoder("finer/medclip_swin").weights_of == ("finer/medclip_swin", "medclip_swin")
    assert find_encoder("medclip_swin").weights_of == ("medclip_swin",)


def test_networks_without_stages_are_refused():
    with pytest.raises(InputError, match=r"no stage of eva_tiny divides its last grid .*grids"):
        build_vision("finer/eva_tiny", None, None)
    with pytest.raises(InputError, match="occurs twice"):
        build_vision("finer/finer/eva_tiny", None, None)
    with pytest.raises(InputError, match="'nonsense' is none of"):
        build_vision("finer/nonsense", None, None)
