"""Single modules of the salesforce-lavis wheel, run as they are beside today's transformers.

Importing the package itself fails there: it wants names that are gone and packages we do not have.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from types import ModuleType
from typing import Any

import pytest
import torch

PACKAGES = ("lavis", "lavis.models", "lavis.models.blip2_models", "lavis.common")


def lavis_modules(*names: str) -> list[ModuleType]:
    """Modules by name, without running `lavis/__init__.py`; skips the test where it is absent."""
    if importlib.util.find_spec("lavis") is None:
        pytest.skip("salesforce-lavis is absent (make install-dev)")
    before = {k: v for k, v in sys.modules.items() if k.split(".")[0] == "lavis"}
    try:
        for package in PACKAGES:
            _bare(package)
        _old_names()
        return [importlib.import_module(name) for name in names]
    finally:
        for name in [k for k in sys.modules if k.split(".")[0] == "lavis"]:
            del sys.modules[name]
        sys.modules.update(before)


def _bare(name: str) -> None:
    """A package that finds its modules but runs none of its own code."""
    parent, _, child = name.rpartition(".")
    if parent:
        places = [f"{p}/{child}" for p in sys.modules[parent].__path__]
    else:
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations)
    package = types.ModuleType(name)
    package.__path__ = places
    sys.modules[name] = package
    if parent:
        setattr(sys.modules[parent], child, package)


def _old_names() -> None:
    """Where transformers kept three functions until version 5."""
    from transformers import modeling_utils, pytorch_utils

    for name in ("apply_chunking_to_forward", "prune_linear_layer"):
        if not hasattr(modeling_utils, name):
            setattr(modeling_utils, name, getattr(pytorch_utils, name))
    if not hasattr(modeling_utils, "find_pruneable_heads_and_indices"):
        modeling_utils.find_pruneable_heads_and_indices = None  # imported, never called


def old_bert(module: ModuleType) -> None:
    """Give its BERT three methods that transformers 5 dropped."""

    def inverted(self: Any, mask: torch.Tensor) -> torch.Tensor:
        mask = mask[:, None] if mask.dim() == 3 else mask[:, None, None]
        dtype = next(self.parameters()).dtype
        return (1 - mask.to(dtype)) * torch.finfo(dtype).min

    base = module.BertPreTrainedModel
    base.init_weights = lambda self: self.apply(self._init_weights)
    for name, method in {
        "get_head_mask": lambda self, mask, layers, *_: [None] * layers,
        "invert_attention_mask": inverted,
    }.items():
        if not hasattr(base, name):
            setattr(base, name, method)
