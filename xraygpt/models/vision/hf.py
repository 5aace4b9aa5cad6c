"""Vision models from transformers (RAD-DINO, SigLIP, DINOv2 …) as vision encoders."""

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
from xraygpt.models.llm.llm_files import LOAD_ERRORS, LOCAL_ONLY
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.vision.encoders import BaseEncoder
from xraygpt.models.weights.files import check_weight_file, weight_files
from xraygpt.processors.image import Fit, InputSpec, Interpolation

log = logging.getLogger(__name__)

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_REVISION = re.compile(r"[0-9a-f]{40}")


@registry.register_encoder("hf/<folder>", "hf/<owner>/<name>@<revision>")
class TransformersEncoder(BaseEncoder):
    """A vision model from transformers, in a folder or in the hub's cache."""

    has_weights = True
    takes_file = False

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Load the model; see `transformers_encoder`."""
        return transformers_encoder(self.rest, image_size)


def transformers_encoder(source: str, image_size: int | None) -> VisionEncoder:
    """Load a transformers vision model from a folder or the hub's cache, without downloading.

    Args:
        source: A folder, or ``<owner>/<name>@<revision>``.
        image_size: Size in pixels; None uses the size set in the model's preprocessor.

    Raises:
        WeightsError: The model is missing or cannot be loaded.
    """
    net, settings = _load_network(source)
    native_size = getattr(net.config, "image_size", None)
    input_spec = _input_spec(settings, image_size, native_size or 224)
    has_position = any("position_embedding" in n for n, _ in net.named_parameters())
    resizable = "interpolate_pos_encoding" in inspect.signature(net.forward).parameters
    if resizable and native_size is not None and input_spec.image_size != native_size:
        net = _Resized(net)
    try:
        return VisionEncoder(net, input_spec, has_position=has_position)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        why = str(error).strip().splitlines()[0]
        raise WeightsError(f"model.vit_model: hf/{source} is not a vision encoder: {why}") from None


def _load_network(source: str) -> tuple[Any, Mapping[str, Any]]:
    """Load the vision network and the settings of its image preprocessor."""
    from transformers import AutoModel

    name, _, revision = source.partition("@")
    is_folder = Path(name).is_dir()
    if not is_folder and not _REVISION.fullmatch(revision):
        raise WeightsError(
            f"model.vit_model: hf/{source}: there is no folder {name}. `python -m xraygpt.download "
            "--list` lists available downloads (rad-dino is saved in weights/rad-dino, owner/name "
            "in weights/name); set vit_model to hf/<that folder>. A model in the hub's cache must "
            "be named with its revision: hf/<owner>/<name>@<40 digits of the commit>"
        )
    try:
        folder = name if is_folder else _cached_snapshot(name, revision)
        for file in weight_files(Path(folder)):
            check_weight_file(file)
        loaded: Any = AutoModel.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **LOCAL_ONLY
        )
        settings = _preprocessor_settings(folder)
    except WeightsError as error:
        raise WeightsError(f"model.vit_model: {error}") from None
    except LOAD_ERRORS as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        target = f"weights/{name.split('/')[-1]}"
        hint = "" if is_folder else f"; `python -m xraygpt.download {name}` saves it in {target}"
        raise WeightsError(f"model.vit_model: hf/{source} cannot be loaded: {why}{hint}") from None
    net, info = loaded
    missing = [n for n in info["missing_keys"] if not n.startswith(("pooler.", "head."))]
    if missing:
        raise WeightsError(f"model.vit_model: hf/{source} lacks weights: {', '.join(missing[:5])}")
    return getattr(net, "vision_model", net), settings  # without its text encoder, if it has one


def _cached_snapshot(name: str, revision: str) -> str:
    folder: str = snapshot_download(name, revision=revision, local_files_only=True)
    return folder


class _Resized(nn.Module):
    """Makes a transformers vision model interpolate its position embeddings."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor) -> Any:
        """Return the model's output for (N, C, H, W) images."""
        return self.net(pixel_values, interpolate_pos_encoding=True)


def _preprocessor_settings(folder: str) -> Mapping[str, Any]:
    """Read a model's `preprocessor_config.json`."""
    from transformers import BaseImageProcessor

    settings: Mapping[str, Any]
    settings, _ = BaseImageProcessor.get_image_processor_dict(folder, **LOCAL_ONLY)
    return settings


def _input_spec(settings: Mapping[str, Any], image_size: int | None, native_size: Any) -> InputSpec:
    """Translate `preprocessor_config.json`; `native_size` is used if the file sets no size."""
    crop = settings.get("do_center_crop") and settings.get("crop_size")
    fit: Fit = "crop" if crop else "squash"
    mean, std = _normalisation(settings)
    size = _preprocessor_size(settings, crop, native_size)
    return InputSpec(
        image_size=int(image_size or size or native_size),
        mean=mean,
        std=std,
        fit=fit,
        interpolation=_interpolation(settings),
    )


def _preprocessor_size(settings: Mapping[str, Any], crop: Any, default: Any) -> Any:
    size = crop or settings.get("size") or default
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    if crop and (settings.get("size") or {}).get("shortest_edge", size) != size:
        log.warning("its preprocessor crops to less than the central square; ours cannot")
    return size


def _interpolation(settings: Mapping[str, Any]) -> Interpolation:
    resample = settings.get("resample", 3)
    if resample not in (2, 3):
        log.warning(
            "the preprocessor's resampling filter %s is not supported: using bicubic", resample
        )
    return "bilinear" if resample == 2 else "bicubic"


def _normalisation(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if settings.get("do_normalize") is False:
        return (0.0,), (1.0,)
    mean, std = settings.get("image_mean"), settings.get("image_std")
    return tuple(mean or IMAGENET[0]), tuple(std or IMAGENET[1])
