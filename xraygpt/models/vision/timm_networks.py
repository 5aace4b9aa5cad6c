"""timm's networks, filled from files of other projects' layouts with every key accounted for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from xraygpt.common.errors import WeightsError
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.weights.files import read_state_dict
from xraygpt.models.weights.rules import Account, Rule, apply_rules, load_exactly
from xraygpt.processors.image import InputSpec

_SIZED = ("vit", "eva", "swin", "deit", "beit")  # networks made for one size
Accounting = Callable[[Path], Account]


def filled(
    name: str,
    options: dict[str, Any],
    wants: InputSpec,
    weights: Path | None,
    account: Accounting,
) -> VisionEncoder:
    """Timm's network `name`, with what `account` takes of `weights` in it; random without a file.

    It is built without memory where nothing but the file has to fill it, so that a file that does
    not fit is refused first and one that fits is not copied.
    """
    settings: dict[str, Any] = {"num_classes": 0, "global_pool": "", **options}
    native: Any = timm.get_pretrained_cfg(name)
    if name.startswith(_SIZED) and wants.image_size != native.input_size[-1]:
        settings["img_size"] = wants.image_size
    if weights is None:
        net = timm.create_model(name, pretrained=False, **settings)
    else:
        state = account(weights).state
        net = _without_memory(name, settings)
        fit_position(net, state)
        load_exactly(net, state, weights, required=set(net.state_dict()))
        _make_constants(net)
    has_position = any("pos_embed" in n for n, _ in net.named_parameters())
    return VisionEncoder(net, wants, has_position=has_position)


def _without_memory(name: str, settings: dict[str, Any]) -> nn.Module:
    """Timm's network on the meta device, or a plain one if its constants could not be made anew."""
    with torch.device("meta"):
        net: nn.Module = timm.create_model(name, pretrained=False, **settings)
    if all(hasattr(m, "init_non_persistent_buffers") for m in _with_constants(net)):
        return net
    return timm.create_model(name, pretrained=False, **settings)


def _with_constants(net: nn.Module) -> list[Any]:
    """Modules with buffers that are computed and not saved, such as tables of positions."""
    return [m for m in net.modules() if m._non_persistent_buffers_set]


def _make_constants(net: nn.Module) -> None:
    for module in _with_constants(net):
        buffers = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        empty = {name: b for name, b in buffers.items() if b is not None and b.is_meta}
        for name, buffer in empty.items():
            module._buffers[name] = torch.empty_like(buffer, device="cpu")
        if empty:
            module.init_non_persistent_buffers()


def fit_position(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Bring learned positions to another number of patches, as LAVIS: bicubic, no antialias."""
    own, theirs = getattr(net, "pos_embed", None), state.get("pos_embed")
    if own is None or theirs is None or own.shape == theirs.shape:
        return
    prefix = int(getattr(net, "num_prefix_tokens", 1))
    side = round((own.shape[1] - prefix) ** 0.5)
    if own.shape[-1] != theirs.shape[-1] or side * side + prefix != own.shape[1]:
        return  # another width: refused with both numbers when it is loaded
    state["pos_embed"] = resample_abs_pos_embed(
        theirs.float(), [side, side], num_prefix_tokens=prefix, antialias=False
    )


def by_rules(rules: tuple[Rule, ...], kind: str) -> Accounting:
    """What `rules` make of the keys of a file of `kind`, or of one converted or trained here."""

    def account_of(path: Path) -> Account:
        state = read_state_dict(path)
        if is_ours(state):
            return of_ours(state, path)
        account = apply_rules(rules, state)
        if not account.state:
            raise WeightsError(f"{path} holds no weights of {kind}")
        account.close(path, kind)
        return account

    return account_of


def is_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are ours: a converted folder, or a run that trained its encoder."""
    return any(name.startswith(("vision.net.", "qformer.qformer.")) for name in state)


def of_ours(state: Mapping[str, Tensor], path: Path) -> Account:
    """The encoder in a file whose names are ours.

    Raises:
        WeightsError: It holds none.
    """
    rules = (Rule(r"vision\.net\.(.+)", r"\1"), Rule(r".+", None, "other parts of the model"))
    account = apply_rules(rules, state)
    if not account.state:
        raise WeightsError(f"{path} holds no vision encoder: it was frozen when this was saved")
    account.close(path, "ours")
    return account
