"""Creates timm networks with weights from other projects' files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xraygpt.common.errors import WeightsError
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.weights.files import read_state_dict
from xraygpt.models.weights.rules import ConvertedState, Rule, apply_rules, load_exactly
from xraygpt.processors.image import InputSpec

_FIXED_SIZE = ("vit", "eva", "swin", "deit", "beit")  # networks that are built for one image size
Converter = Callable[[Path], ConvertedState]


def create_timm_encoder(
    name: str,
    options: dict[str, Any],
    input_spec: InputSpec,
    weights: Path | None,
    convert: Converter,
) -> VisionEncoder:
    """Create the timm network `name` with `weights` read by `convert`, or random weights.

    If possible, the network is created on the meta device, so that a file that does not fit is
    rejected first and a file that fits is not copied.
    """
    import timm  # takes a quarter of a second

    settings: dict[str, Any] = {"num_classes": 0, "global_pool": "", **options}
    native: Any = timm.get_pretrained_cfg(name)
    if name.startswith(_FIXED_SIZE) and input_spec.image_size != native.input_size[-1]:
        settings["img_size"] = input_spec.image_size
    if weights is None:
        net = timm.create_model(name, pretrained=False, **settings)
    else:
        state = convert(weights).state
        net = _create_on_meta(name, settings)
        fit_position(net, state)
        load_exactly(net, state, weights, required=set(net.state_dict()))
        _init_buffers(net)
    has_position = any("pos_embed" in n for n, _ in net.named_parameters())
    return VisionEncoder(net, input_spec, has_position=has_position)


def _create_on_meta(name: str, settings: dict[str, Any]) -> nn.Module:
    """Create a timm network on the meta device, or on the CPU if buffers need their values."""
    import timm

    with torch.device("meta"):
        net: nn.Module = timm.create_model(name, pretrained=False, **settings)
    if all(hasattr(m, "init_non_persistent_buffers") for m in _modules_with_buffers(net)):
        return net
    return timm.create_model(name, pretrained=False, **settings)


def _modules_with_buffers(net: nn.Module) -> list[Any]:
    """Return the modules with non-persistent buffers, such as tables of positions."""
    return [m for m in net.modules() if m._non_persistent_buffers_set]


def _init_buffers(net: nn.Module) -> None:
    """Compute non-persistent buffers that are on the meta device."""
    for module in _modules_with_buffers(net):
        buffers = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        empty = {name: b for name, b in buffers.items() if b is not None and b.is_meta}
        for name, buffer in empty.items():
            module._buffers[name] = torch.empty_like(buffer, device="cpu")
        if empty:
            module.init_non_persistent_buffers()


def fit_position(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Resample saved position embeddings to the network's grid, like LAVIS (bicubic, aliased)."""
    current, saved = getattr(net, "pos_embed", None), state.get("pos_embed")
    if current is None or saved is None or current.shape == saved.shape:
        return
    prefix = int(getattr(net, "num_prefix_tokens", 1))
    side = round((current.shape[1] - prefix) ** 0.5)
    if current.shape[-1] != saved.shape[-1] or side * side + prefix != current.shape[1]:
        return  # another width, which is reported when the state is loaded
    from timm.layers import resample_abs_pos_embed

    state["pos_embed"] = resample_abs_pos_embed(
        saved.float(), [side, side], num_prefix_tokens=prefix, antialias=False
    )


def rule_converter(rules: tuple[Rule, ...], kind: str) -> Converter:
    """Return a function that reads weight files by rules, or as is if they have our names."""

    def convert(path: Path) -> ConvertedState:
        state = read_state_dict(path)
        if has_native_names(state):
            return extract_encoder(state, path)
        converted = apply_rules(rules, state)
        if not converted.state:
            raise WeightsError(f"{path} contains no weights of {kind}")
        converted.check_and_log(path, kind)
        return converted

    return convert


def has_native_names(state: Mapping[str, Tensor]) -> bool:
    """Return whether keys are ours: from a converted folder, or a run that trained its encoder."""
    return any(name.startswith(("vision.net.", "qformer.qformer.")) for name in state)


def extract_encoder(state: Mapping[str, Tensor], path: Path) -> ConvertedState:
    """Extract the encoder from a state with this project's names.

    Raises:
        WeightsError: The state contains no encoder.
    """
    rules = (Rule(r"vision\.net\.(.+)", r"\1"), Rule(r".+", None, "other parts of the model"))
    converted = apply_rules(rules, state)
    if not converted.state:
        raise WeightsError(
            f"{path} contains no vision encoder, because the encoder was frozen in training"
        )
    converted.check_and_log(path, "XrayGPT models")
    return converted
