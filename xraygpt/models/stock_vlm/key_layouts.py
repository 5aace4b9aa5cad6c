"""Names of tensors in vision-language checkpoints: transformers 5's own, and those on the hub.

transformers 5 moved the parts of its vision-language models (``model.language_model.…``,
``model.visual.…``, ``model.vision_tower.…``), while the published checkpoints, and programs that
read them directly, keep the earlier names:

=============== ================================== ==============================================
model           module names in transformers 5     names on the hub
=============== ================================== ==============================================
Qwen2-VL, 2.5   ``model.language_model.layers.…``  ``model.layers.…``
..              ``model.visual.…``                 ``visual.…``
LLaVA-OneVision ``model.language_model.…``         ``language_model.model.…``
..              ``lm_head.…``                      ``language_model.lm_head.…``
..              ``model.vision_tower.encoder.…``   ``vision_tower.vision_model.encoder.…``
..              ``model.multi_modal_projector.…``  ``multi_modal_projector.…``
..              ``model.image_newline``            ``image_newline``
Qwen3-VL        the same                           the same
=============== ================================== ==============================================

`save_pretrained` of transformers 5.23 undoes only the renamings that loading applied. A model that
was loaded from module names is therefore saved under module names, and a LLaVA-OneVision that was
not loaded at all is saved without ``vision_model.``, which no earlier release can read. `to_layout`
does not depend on how the model was built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor

from xraygpt.common.errors import InputError, WeightsError

Layout = Literal["hub", "transformers"]
T = TypeVar("T")

_LISTED = 8  # names in an error message


def to_layout(state: Mapping[str, T], layout: Layout, model: Any) -> dict[str, T]:
    """Rename a state dict for other programs.

    Args:
        state: Tensors (or anything else) by module name, as in ``model.state_dict()``, or by the
            names on the hub.
        layout: ``hub`` for the names in published checkpoints, which transformers 4, vLLM and
            LLaMA-Factory read; ``transformers`` for the module names in transformers 5.
        model: The transformers model, which may be on the meta device.

    Returns:
        The same values under new names.

    Raises:
        InputError: There is no such layout, or the checkpoints of this model on the hub differ in
            more than names (Qwen3-VL-MoE).
        WeightsError: Two names become the same.
    """
    if layout not in get_args(Layout):
        raise InputError(f"layout {layout!r}: must be one of {', '.join(get_args(Layout))}")
    by_module = _rename(state, _to_module_names(state, model))
    if layout == "transformers":
        return by_module
    reverse = [t.reverse_transform() for t in reversed(_renamings(model, legacy=False))]
    return _rename(by_module, {name: _apply(reverse, name) for name in by_module})


def normalise_keys(state: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Rename the tensors of a checkpoint in any layout to `model`'s own names, and check them all.

    Args:
        state: All tensors of a checkpoint: under the names on the hub, under transformers 5's
            module names, or under those of 4.52 (``model.vision_tower.vision_model.…``).
        model: The transformers model, which may be on the meta device.

    Returns:
        The tensors by module name, ready for ``model.load_state_dict``. A head that the model ties
        to its embedding is present only if it is in `state`.

    Raises:
        WeightsError: Tensors are unknown, missing or of another shape, or two have the same name.
    """
    named = _rename(state, _to_module_names(state, model))
    current = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    problems = [f"unknown {name}" for name in named if name not in current]
    problems += [f"missing {n}" for n in current if n not in named and n not in tied]
    problems += [
        f"{name}: {tuple(tensor.shape)} instead of {tuple(current[name].shape)}"
        for name, tensor in named.items()
        if name in current and current[name].shape != tensor.shape
    ]
    if problems:
        kind = type(model).__name__
        raise WeightsError(f"the weights do not fit {kind}: {listing(problems)}")
    return named


def listing(problems: Iterable[str]) -> str:
    """Join problems into one line, of which the first `_LISTED` are named."""
    problems = list(problems)
    more = len(problems) - _LISTED
    return "; ".join(problems[:_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _to_module_names(names: Iterable[str], model: Any) -> dict[str, str]:
    """Map names in any layout to module names, as `from_pretrained` does."""
    from transformers.core_model_loading import rename_source_key

    renamings, current = _renamings(model, legacy=True), model.state_dict()
    prefix = model.base_model_prefix
    return {n: rename_source_key(n, renamings, [], prefix, current)[0] for n in names}


def _renamings(model: Any, *, legacy: bool) -> list[Any]:
    """Return transformers' renamings from the names on the hub to the module names, in order."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    transforms = get_model_conversion_mapping(model, add_legacy=legacy)
    if not all(isinstance(t, WeightRenaming) for t in transforms):
        raise InputError(
            f"{type(model).__name__}: its published checkpoints store some tensors in another "
            "shape; save it with save_pretrained and load it with from_pretrained"
        )
    return transforms


def _apply(renamings: Iterable[Any], name: str) -> str:
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name


def _rename(state: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """Return the values of `state` under new names, which must differ."""
    sources: dict[str, list[str]] = {}
    for old, new in names.items():
        sources.setdefault(new, []).append(old)
    twice = [" and ".join(old) for old in sources.values() if len(old) > 1]
    if twice:
        raise WeightsError(f"the same tensor under two names: {listing(twice)}")
    return {names[name]: value for name, value in state.items()}
