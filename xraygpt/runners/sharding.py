"""The frozen LLM laid out over all processes (ZeRO stage 3, Rajbhandari et al. 2020; FSDP2).

Each process keeps its share of every layer and gathers the whole when the layer is computed. What
is trained (Q-Former, linear layer, LoRA) stays whole and data parallel, so that checkpoints are
those of a single process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from xraygpt.common.errors import InputError


def shard_frozen(model: nn.Module, layers: nn.ModuleList, device: torch.device, world: int) -> int:
    """Shard the frozen layers of a model in place.

    Args:
        model: On `device`, not yet wrapped.
        layers: Those of its language model.
        device: Of this process.
        world: Processes; one changes nothing.

    Returns:
        Parameters that are sharded.

    Raises:
        InputError: Some of the LLM's own parameters are trained, packed in 8 or 4 bit, or came from
            a checkpoint and so go into the next.
    """
    if world == 1:
        return 0
    adapters = {p for n, p in layers.named_parameters() if "lora_" in n}
    frozen = [p for p in layers.parameters() if p not in adapters]
    if any(p.requires_grad for p in frozen):
        raise InputError(
            "run.shard_llm shards a frozen LLM, and this one is trained: set model.freeze_llm: "
            "true (with model.lora, say), or leave it off"
        )
    loaded: set[str] = getattr(model, "loaded_keys", set())
    inside = {id(p) for p in frozen}
    own = {n for n, p in model.named_parameters() if id(p) in inside}
    if own & loaded:
        raise InputError(
            "run.shard_llm: model.ckpt holds weights of the LLM itself, which every checkpoint "
            "would hold again; make them an LLM of its own (python -m xraygpt.convert), or leave "
            "it off"
        )
    if not all(p.is_floating_point() for p in frozen):
        raise InputError("run.shard_llm does not go with packed weights (model.llm_bits)")
    # A group of its own: gathering in the backward pass must not come between DDP's reductions.
    group: Any = distributed.new_group()
    mesh = DeviceMesh.from_group(group, device.type)
    for layer in layers:
        # Always resharded: saving shards what is whole, and is done by one process alone.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)
    shared = [n for n, p in model.named_parameters() if isinstance(p, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, shared)
    return sum(p.numel() for p in layers.parameters() if isinstance(p, DTensor))
