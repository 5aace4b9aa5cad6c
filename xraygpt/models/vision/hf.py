"""Vision models of transformers (RAD-DINO, SigLIP, DINOv2 …) behind the one interface."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from xraygpt.common.errors import WeightsError
from xraygpt.common.registry import registry
from xraygpt.models.llm.llm_files import BROKEN, LOCAL
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.vision.encoders import BaseEncoder
from xraygpt.models.weights.files import refuse_other_files, weight_files
from xraygpt.processors.image import Fit, InputSpec, Interpolation

log = logging.getLogger(__name__)

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_REVISION = re.compile(r"[0-9a-f]{40}")


@registry.register_encoder("hf/<folder>", "hf/<owner>/<name>@<revision>")
class TransformersEncoder(BaseEncoder):
    """A folder with a vision model of transformers, or one in the hub's cache."""

    has_weights = True
    takes_file = False

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """See `transformers_encoder`."""
        return transformers_encoder(self.rest, image_size)


def transformers_encoder(source: str, image_size: int | None) -> VisionEncoder:
    """A vision model of transformers, in a folder or in the hub's cache; nothing is fetched.

    Raises:
        WeightsError: It is absent or does not load.
    """
    from transformers import AutoModel

    name, _, revision = source.partition("@")
    options: dict[str, Any] = dict(LOCAL)
    local = Path(name).is_dir()
    if not local and not _REVISION.fullmatch(revision):
        raise WeightsError(
            f"model.vit_model: hf/{source}: there is no folder {name}. `python -m xraygpt.download "
            "--list` names what it can fetch (rad-dino goes to weights/rad-dino, owner/name to "
            "weights/name); set vit_model to hf/<that folder>. A model in the hub's own cache is "
            "named with its revision: hf/<owner>/<name>@<40 digits of the commit>"
        )
    try:
        if not local:  # the hub's cache, and nothing but it
            name = snapshot_download(name, revision=revision, local_files_only=True)
        for file in weight_files(Path(name)):
            refuse_other_files(file)
        loaded: Any = AutoModel.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, **options
        )
        settings = _preprocessor(name, options)
    except WeightsError as error:
        raise WeightsError(f"model.vit_model: {error}") from None
    except BROKEN as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        hub = source.partition("@")[0]
        way = (
            ""
            if local
            else (
                f"; `python -m xraygpt.download {hub}` fetches it into weights/{hub.split('/')[-1]}"
            )
        )
        raise WeightsError(f"model.vit_model: hf/{source} does not load: {why}{way}") from None
    net, account = loaded
    net = getattr(net, "vision_model", net)  # of a pair with a text encoder
    gone = [n for n in account["missing_keys"] if not n.startswith(("pooler.", "head."))]
    if gone:
        raise WeightsError(f"model.vit_model: hf/{source} lacks weights: {', '.join(gone[:5])}")
    wants = _wanted(settings, image_size, getattr(net.config, "image_size", 224))
    has_position = any("position_embedding" in n for n, _ in net.named_parameters())
    resized = "interpolate_pos_encoding" in inspect.signature(net.forward).parameters
    if resized and wants.image_size != getattr(net.config, "image_size", wants.image_size):
        net = _Resized(net)
    try:
        return VisionEncoder(net, wants, has_position=has_position)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        why = str(error).strip().splitlines()[0]
        raise WeightsError(f"model.vit_model: hf/{source} is no vision encoder: {why}") from None


class _Resized(nn.Module):
    """A vision model of transformers that is asked to stretch its positions."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor) -> Any:
        """(N, C, H, W) -> what the model gives."""
        return self.net(pixel_values, interpolate_pos_encoding=True)


def _preprocessor(name: str, options: dict[str, Any]) -> Mapping[str, Any]:
    """`preprocessor_config.json` of a model."""
    from transformers import BaseImageProcessor

    settings: Mapping[str, Any] = BaseImageProcessor.get_image_processor_dict(name, **options)[0]
    return settings


def _wanted(settings: Mapping[str, Any], image_size: int | None, own: Any) -> InputSpec:
    """What `preprocessor_config.json` asks for."""
    crop = settings.get("do_center_crop") and settings.get("crop_size")
    size = crop or settings.get("size") or own
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    if crop and (settings.get("size") or {}).get("shortest_edge", size) != size:
        log.warning("its pictures were cut closer than the middle square; ours are not")
    fit: Fit = "crop" if crop else "squash"
    resample = settings.get("resample", 3)
    if resample not in (2, 3):
        log.warning("resampling %s of its preprocessor is not ours; bicubic is taken", resample)
    mode: Interpolation = "bilinear" if resample == 2 else "bicubic"
    plain = settings.get("do_normalize") is False
    return InputSpec(
        image_size=int(image_size or size or own),
        mean=(0.0,) if plain else tuple(settings.get("image_mean") or IMAGENET[0]),
        std=(1.0,) if plain else tuple(settings.get("image_std") or IMAGENET[1]),
        fit=fit,
        interpolation=mode,
    )
