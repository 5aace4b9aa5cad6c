"""Translates the configuration of an original LLaVA checkpoint for transformers' LLaVA-OneVision.

LLaVA-NeXT's ``config.json`` is that of the language model plus flat keys (``mm_…``,
``image_grid_pinpoints``). It does not describe the vision tower, which its code reads elsewhere.
"""

from __future__ import annotations

import ast
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xraygpt.common.errors import WeightsError
from xraygpt.models.stock_vlm.llava_source import TOWER, LlavaTensors, read_json

# The language model behind each model type of the original code.
BACKBONES = {
    "llava_qwen": "qwen2", "llava_llama": "llama", "llava_mistral": "mistral", "llava": "llama",
}  # fmt: skip
# Keys of the language model's own configuration.
_TEXT_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
    "rope_theta", "rope_scaling", "rope_parameters", "sliding_window", "use_sliding_window",
    "max_window_layers", "attention_bias", "mlp_bias", "attention_dropout", "initializer_range",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
# Settings that transformers' model has no counterpart for: key, supported values, value if absent.
_FIXED: tuple[tuple[str, tuple[Any, ...], Any], ...] = (
    ("mm_projector_type", ("mlp2x_gelu",), "linear"),
    ("mm_patch_merge_type", ("spatial_unpad",), "flat"),
    ("mm_resampler_type", (None,), None),
    ("mm_vision_select_feature", ("patch",), "patch"),
    ("mm_use_im_start_end", (False,), False),
    ("mm_newline_position", ("one_token",), "one_token"),
    ("mm_spatial_pool_mode", ("bilinear", None), "bilinear"),
    ("mm_spatial_pool_stride", (2, None), 2),
    ("add_faster_video", (False, None), False),
)
_SIGLIP, _CLIP = "siglip_vision_model", "clip_vision_model"
# Published towers, whose dimensions LLaVA-NeXT's code knows or reads from the hub.
_TOWERS: dict[str, dict[str, Any]] = {
    "siglip-so400m-patch14-384": {
        "model_type": _SIGLIP, "hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
    },
    "clip-vit-large-patch14-336": {
        "model_type": _CLIP, "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
        "projection_dim": 768,
    },
}  # fmt: skip
_LAYER = re.compile(re.escape(TOWER) + r"encoder\.layers\.(\d+)\.")
_RANGE = re.compile(r"\((\d+)\s*x\s*(\d+)\)")


@dataclass(frozen=True)
class Tower:
    """The vision tower of a checkpoint.

    Attributes:
        config: Keys of its transformers configuration, with the layers that LLaVA uses.
        unused_layer: Number of the first layer whose output LLaVA does not use.
    """

    config: dict[str, Any]
    unused_layer: int

    @property
    def is_clip(self) -> bool:
        """Whether it is a CLIP, which has a class token."""
        return bool(self.config["model_type"] == _CLIP)

    @property
    def tokens(self) -> int:
        """Number of tokens per tile, with the class token."""
        side: int = self.config["image_size"] // self.config["patch_size"]
        return side * side + self.is_clip


def check_settings(config: dict[str, Any], source: Path) -> None:
    """Refuse settings under which transformers' model would compute something else.

    Raises:
        WeightsError: Lists all of them.
    """
    problems = []
    if config.get("model_type") not in BACKBONES:
        problems.append(f"model_type {config.get('model_type')}: one of {', '.join(BACKBONES)}")
    for key, allowed, absent in _FIXED:
        value = config.get(key, absent)
        if value not in allowed:
            problems.append(f"{key} {value}: must be {allowed[0]}")
    if not re.fullmatch(r"anyres(_max_\d+)?", str(config.get("image_aspect_ratio"))):
        problems.append(
            f"image_aspect_ratio {config.get('image_aspect_ratio')}: must be anyres or anyres_max_N"
        )
    if problems:
        raise WeightsError(
            f"{source / 'config.json'} has settings that LlavaOnevisionForConditionalGeneration "
            f"does not support: {'; '.join(problems)}"
        )


def text_config(config: dict[str, Any], vocab_size: int, tied: bool) -> dict[str, Any]:
    """Return the language model's keys."""
    keys = {key: config[key] for key in _TEXT_KEYS if key in config}
    keys = {k: v for k, v in keys.items() if v is not None or not k.startswith("rope_")}
    backbone = BACKBONES[config["model_type"]]
    return {
        "model_type": backbone, **keys, "vocab_size": vocab_size, "tie_word_embeddings": tied
    }  # fmt: skip


def read_tower(config: dict[str, Any], tensors: LlavaTensors, folder: Path | None) -> Tower:
    """Find out which vision tower a checkpoint has, and how many of its layers LLaVA uses.

    LLaVA takes the hidden states after a certain layer, without the final layer norm. For SigLIP,
    the original code removes the last layer when it loads the tower, so that checkpoints have 26
    of 27 layers, and then takes the last remaining one. For CLIP, it keeps all layers and takes the
    output of `mm_vision_select_layer` (-2).

    Args:
        config: The checkpoint's configuration.
        tensors: The checkpoint's tensors.
        folder: Folder of the vision tower, with its configuration; None for a published tower.

    Raises:
        WeightsError: The tower or its weights are not known.
    """
    name = str(config.get("mm_vision_tower", config.get("vision_tower", "")))
    full = _tower_config(name, folder, tensors.folder)
    found = {int(match[1]) for match in map(_LAYER.match, tensors.stored) if match}
    if not found:
        raise WeightsError(
            f"{tensors.folder} does not contain its vision tower ({name}), which was frozen; get "
            f"it with python -m xraygpt.download {name} and pass its folder with --vision-tower"
        )
    select = int(config.get("mm_vision_select_layer", -2))
    layers: int = full["num_hidden_layers"]
    used = select if select >= 0 else layers + 1 + select
    if full["model_type"] == _SIGLIP:
        kept_all = tensors.own_tower and max(found) + 1 == layers
        used = min(used, layers) if kept_all else layers - 1
    head = {"vision_use_head": False} if full["model_type"] == _SIGLIP else {}
    return Tower({**full, "num_hidden_layers": used, **head}, used)


def _tower_config(name: str, folder: Path | None, source: Path) -> dict[str, Any]:
    """Return the configuration of the complete tower."""
    if folder is None:
        known = _TOWERS.get(name.rstrip("/").rsplit("/", 1)[-1])
        if known is None:
            raise WeightsError(
                f"{source} has the vision tower {name or 'of no name'}, whose configuration is "
                "unknown; pass its folder with --vision-tower"
            )
        return dict(known)
    config = read_json(folder / "config.json")
    vision = config.get("vision_config") or config
    kind = str(config.get("model_type", "")).split("_")[0]
    if kind not in ("siglip", "clip"):
        raise WeightsError(f"{folder} is not a SigLIP or CLIP: {kind or 'no config.json'}")
    from transformers import AutoConfig

    # The library's defaults fill in what a published config.json leaves out.
    full = AutoConfig.for_model(f"{kind}_vision_model", **_without_type(vision)).to_dict()
    left_out = ("transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype")
    return {key: value for key, value in full.items() if key not in left_out}


def _without_type(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ("model_type", "vision_use_head")}


def read_pinpoints(config: dict[str, Any], side: int, source: Path) -> list[list[int]]:
    """Return the sizes into which an image may be tiled.

    Args:
        config: The checkpoint's configuration. `image_grid_pinpoints` is a list of (width, height)
            in pixels, or a range of numbers of tiles such as ``(1x1),...,(6x6)``.
        side: Side of a tile, in pixels.
        source: The checkpoint's folder.

    Returns:
        Lists (height, width), in pixels, the order that transformers expects.

    Raises:
        WeightsError: They cannot be read, or are not multiples of `side`.
    """
    value = config.get("image_grid_pinpoints")
    sizes = _tile_range(value, side) if isinstance(value, str) else value
    if isinstance(value, str) and sizes is None:
        try:
            sizes = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            sizes = None
    is_list = isinstance(sizes, list | tuple) and len(sizes) > 0
    if not is_list or not all(_is_size(size, side) for size in sizes or []):
        raise WeightsError(
            f"{source / 'config.json'}: image_grid_pinpoints must be a list of (width, height) in "
            f"multiples of {side} or a range such as (1x1),...,(6x6), not {value}"
        )
    return [[height, width] for width, height in sizes or []]


def _tile_range(text: str, side: int) -> list[tuple[int, int]] | None:
    """Return the sizes in a range from its first to its last number of tiles."""
    ends = [(int(a), int(b)) for a, b in _RANGE.findall(text)]
    if len(ends) < 2:
        return None
    first, last = ends[0], ends[-1]
    ranges = [range(a, b + 1) for a, b in zip(first, last, strict=True)]
    return [(width * side, height * side) for width, height in itertools.product(*ranges)]


def _is_size(size: Any, side: int) -> bool:
    return (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(isinstance(n, int) and n > 0 and n % side == 0 for n in size)
    )


def aspect_ratio(config: dict[str, Any], pinpoints: list[list[int]], side: int) -> str:
    """Return transformers' `vision_aspect_ratio`, which always names a maximum of tiles.

    Plain ``anyres`` never reduces the tiles, as does a maximum that no size exceeds.
    """
    value = str(config["image_aspect_ratio"])
    most = max(height * width for height, width in pinpoints) // (side * side)
    return f"anyres_max_{most}" if value == "anyres" else value
