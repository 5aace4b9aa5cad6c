"""The flat model keys of LAVIS and XrayGPT, such as `vit_model`, and their places in a Config.

A YAML file may use either spelling: `model.vit_model` or `model.vision.encoder`. A pair in the
table applies to a model whose Config has the nested field but not the flat one, so that a plug-in
may use any of these names for a field of its own.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

MODEL_KEYS = {
    "vit_model": "vision.encoder",
    "vit_ckpt": "vision.ckpt",
    "vit_width": "vision.width",
    "vit_precision": "vision.precision",
    "vit_on_cpu": "vision.on_cpu",
    "image_size": "vision.image_size",
    "freeze_vit": "vision.freeze",
    "num_query_token": "qformer.num_queries",
    "q_former_model": "qformer.init_from",
    "freeze_qformer": "qformer.freeze",
    "llama_model": "llm.source",
    "llm.vocab_size": "llm.size.vocab_size",
    "llm.hidden": "llm.size.hidden",
    "llm.layers": "llm.size.layers",
    "llm.heads": "llm.size.heads",
    "llm.context": "llm.size.context",
    "llm.init_std": "llm.size.init_std",
    "llm.embedding_std": "llm.size.embedding_std",
    "llm_dtype": "llm.dtype",
    "llm_bits": "llm.bits",
    "llm_device_map": "llm.device_map",
    "llm_attention": "llm.attention",
    "low_resource": "llm.low_resource",
    "lora": "llm.lora",
    "freeze_llm": "llm.freeze",
    "use_grad_checkpoint": "llm.grad_checkpoint",
    "max_txt_len": "text.max_txt_len",
    "end_sym": "text.end_sym",
    "prompt_path": "text.prompt_path",
    "prompt_template": "text.prompt_template",
}


def flat_keys(schema: Any) -> dict[str, str]:
    """Return the pairs in `MODEL_KEYS` that apply to a Config class."""
    return {
        flat: nested
        for flat, nested in MODEL_KEYS.items()
        if _has_field(schema, nested) and not _has_field(schema, flat)
    }


def nest(schema: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a model section with its flat keys moved to their nested places."""
    result = _copy(values)
    for flat, nested in flat_keys(schema).items():
        if _has(result, flat):
            _put(result, nested, _take(result, flat))
    return result


def flatten(schema: Any, config: Any) -> tuple[Any, list[str]]:
    """Return a configuration layer whose model section uses the flat keys.

    Layers are merged under flat keys, so that either spelling overrides the other, and so that
    interpolations such as ``${model.image_size}`` keep working.

    Args:
        schema: The model's Config class.
        config: An OmegaConf container; interpolations are not resolved.

    Returns:
        The new container, and the flat names of keys that were given in both spellings.
    """
    model = config.get("model") if isinstance(config, DictConfig) else None
    if not isinstance(model, DictConfig):
        return config, []
    tree: Any = OmegaConf.to_container(config, resolve=False)
    twice = []
    for flat, nested in flat_keys(schema).items():
        if _has(tree["model"], nested):
            if _has(tree["model"], flat):
                twice.append(flat)
            _put(tree["model"], flat, _take(tree["model"], nested))
    return OmegaConf.create(tree), twice


def other_spellings(path: str) -> Iterator[str]:
    """Yield the other spellings of a dotted path below `model`, e.g. ``model.vit_model``."""
    prefix = "model."
    if path.startswith(prefix):
        key = path.removeprefix(prefix)
        yield from (prefix + flat for flat, nested in MODEL_KEYS.items() if nested == key)
        if key in MODEL_KEYS:
            yield prefix + MODEL_KEYS[key]


def read_key(model: Mapping[str, Any], flat: str) -> Any:
    """Return a value from a saved model section, in either spelling; None if it is absent."""
    path = next((p for p in (flat, MODEL_KEYS.get(flat, flat)) if _has(model, p)), None)
    return None if path is None else _get(model, path)


def with_replaced(model: Mapping[str, Any], flat: str, old: str, new: str) -> dict[str, Any]:
    """Return a copy of a saved model section with `old` replaced once in a value that is text."""
    result = _copy(dict(model))
    for path in dict.fromkeys((flat, MODEL_KEYS.get(flat, flat))):
        if _has(result, path) and isinstance(_get(result, path), str):
            _put(result, path, _get(result, path).replace(old, new, 1))
    copy: dict[str, Any] = result
    return copy


def _has_field(schema: Any, path: str) -> bool:
    first, _, rest = path.partition(".")
    if not (isinstance(schema, type) and dataclasses.is_dataclass(schema)):
        return False
    hint = get_type_hints(schema).get(first)
    if hint is None or not rest:
        return hint is not None
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return any(_has_field(option, rest) for option in options)


def _copy(node: Any) -> Any:
    return {key: _copy(value) for key, value in node.items()} if isinstance(node, dict) else node


def _has(tree: Any, path: str) -> bool:
    for part in path.split("."):
        if not (isinstance(tree, dict) and part in tree):
            return False
        tree = tree[part]
    return True


def _get(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree[part]
    return tree


def _take(tree: dict[str, Any], path: str) -> Any:
    """Remove and return the value at `path`."""
    *parents, last = path.split(".")
    for part in parents:
        tree = tree[part]
    return tree.pop(last)


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at `path`, replacing anything on the way that is not a mapping."""
    *parents, last = path.split(".")
    for part in parents:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[last] = value


def config_value(config: Any, flat: str) -> Any:
    """Return a setting from a model's Config, flat or nested; None if the model lacks it."""
    for path in (flat, MODEL_KEYS.get(flat, flat)):
        if _has_field(type(config), path):
            return attrgetter(path)(config)
    return None
