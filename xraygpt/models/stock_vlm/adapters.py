"""LoRA and DoRA in chosen parts of a stock model, and adapters trained elsewhere."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from torch import nn

from xraygpt.common.errors import WeightsError
from xraygpt.models.llm.small_llm import merge_lora_weights
from xraygpt.models.stock_vlm.config import ALL_LINEAR, Adapters
from xraygpt.models.stock_vlm.family import Family
from xraygpt.models.weights.files import read_state_dict

log = logging.getLogger(__name__)


def add_adapters(family: Family, settings: Adapters) -> list[str]:
    """Add adapters, which initially have no effect, and return the names of adapted layers.

    Layers are chosen by their full names, since both towers have layers called `q_proj` or
    `gate_proj`.

    Raises:
        WeightsError: No layer of `parts` has one of the names in `target`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    network = family.network
    names = _targets(family, settings)
    if not names:
        linear = {n.rpartition(".")[2] for n, _ in _linear_layers(family, settings)}
        raise WeightsError(
            f"model.adapters.target {settings.target} matches no linear layer of "
            f"{', '.join(settings.parts)}, which has {', '.join(sorted(linear))}"
        )
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha or 2 * settings.r,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        target_modules=names,
    )
    inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        if is_adapter(name):  # trained weights are float32, whatever the dtype of the frozen ones
            parameter.data = parameter.data.float()
    kinds = sorted({name.rpartition(".")[2] for name in names})
    log.info(
        "%s in %d layers of %s: %s",
        "DoRA" if settings.dora else "LoRA",
        len(names),
        ", ".join(settings.parts),
        ", ".join(kinds),
    )
    return names


def is_adapter(name: str) -> bool:
    """Return whether a weight belongs to an adapter."""
    return ".lora_" in name


def _linear_layers(family: Family, settings: Adapters) -> list[tuple[str, nn.Module]]:
    head = family.network.get_output_embeddings()
    return [
        (name, module)
        for name, module in family.network.named_modules()
        if _is_linear(module)
        and module is not head
        and family.part_of(f"{name}.weight") in settings.parts
    ]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)  # also quantized layers


def _targets(family: Family, settings: Adapters) -> list[str]:
    names = [name for name, _ in _linear_layers(family, settings)]
    if settings.target == ALL_LINEAR:
        return names
    return [name for name in names if name.rpartition(".")[2] in settings.target]


def merge_adapters(network: nn.Module) -> None:
    """Add all adapters to the weights they adapt, and remove them."""
    from peft.tuners.lora import LoraLayer

    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, LoraLayer)]
    if not any(any(layer.use_dora.values()) for _, layer in layers):
        merge_lora_weights(network)
        return
    layer: Any
    for name, layer in layers:
        base = layer.get_base_layer()
        if not base.weight.is_floating_point():
            continue
        layer.merge()  # DoRA also rescales the weight
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, base)


def merge_foreign_adapter(family: Family, folder: Path) -> int:
    """Merge an adapter that peft saved, in any layout of names, into the weights.

    Returns:
        The number of adapted layers.

    Raises:
        WeightsError: The folder contains no adapter, or a key that matches no layer. peft itself
            would load such an adapter with a warning and no effect.
    """
    from peft import LoraConfig, inject_adapter_in_model

    try:
        content = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        config = LoraConfig(**{k: v for k, v in content.items() if k in _KNOWN})
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"model.adapter_path: {folder} is no adapter of peft: {error}") from None
    file = next((f for f in _ADAPTER_FILES if (folder / f).is_file()), None)
    if file is None:
        raise WeightsError(f"model.adapter_path: {folder} lacks {_ADAPTER_FILES[0]}")
    state = read_state_dict(folder / file)
    modules = {name for name, _ in family.network.named_modules()}
    renamed = {_find(name, modules, folder): tensor for name, tensor in state.items()}
    layers = sorted({name.partition(".lora_")[0] for name in renamed})
    config.target_modules = layers
    inject_adapter_in_model(config, family.network)
    with_name = {_with_adapter_name(name): tensor for name, tensor in renamed.items()}
    missing, unknown = family.network.load_state_dict(with_name, strict=False)
    lost = [name for name in missing if is_adapter(name)] + list(unknown)
    if lost:
        raise WeightsError(
            f"model.adapter_path: {len(lost)} keys of {folder / file} do not match the model: "
            f"{', '.join(lost[:3])}"
        )
    merge_adapters(family.network)
    return len(layers)


_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_KNOWN = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_dora",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
)
# Names of parts before transformers 5, and today.
_RENAMED = (
    ("visual.", "model.visual."),
    ("model.layers.", "model.language_model.layers."),
    ("language_model.model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


def _find(key: str, modules: set[str], folder: Path) -> str:
    """Return a key of an adapter in today's names.

    Raises:
        WeightsError: It names no layer of the model.
    """
    name = key.removeprefix("base_model.model.")
    for old, new in (("", ""), *_RENAMED):
        if name.startswith(old):
            candidate = new + name.removeprefix(old)
            if candidate.partition(".lora_")[0] in modules:
                return candidate
    raise WeightsError(
        f"model.adapter_path: {folder} adapts {name.partition('.lora_')[0]}, which this model does "
        "not have: it belongs to another model, or was saved with names of another version"
    )


def _with_adapter_name(name: str) -> str:
    """Insert the adapter's name, which peft leaves out when saving."""
    for part in ("lora_A", "lora_B"):
        name = name.replace(f".{part}.weight", f".{part}.default.weight")
    return name.replace(".lora_magnitude_vector", ".lora_magnitude_vector.default.weight")
