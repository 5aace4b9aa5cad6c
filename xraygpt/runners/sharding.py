"""Shards a frozen LLM over all processes (ZeRO stage 3, Rajbhandari et al. 2020; FSDP2).

Each process keeps a shard of every layer and gathers the full layer to compute it. Trained weights
(Q-Former, projection, LoRA) are replicated, so checkpoints look like a single process's.
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
        model: The model, which is on `device` and not yet wrapped.
        layers: The layers of its LLM.
        device: This process's device.
        world: Number of processes; nothing is done for a single process.

    Returns:
        Number of sharded parameters.

    Raises:
        InputError: Some of the LLM's own parameters are trained or quantized, or were loaded from a
            checkpoint and would be saved again.
    """
    if world == 1:
        return 0
    adapters = {p for n, p in layers.named_parameters() if "lora_" in n}
    frozen = [p for p in layers.parameters() if p not in adapters]
    _check_shardable(model, frozen)
    # A separate process group keeps gathers in the backward pass apart from DDP's reductions.
    group: Any = distributed.new_group()
    mesh = DeviceMesh.from_group(group, device.type)
    for layer in layers:
        # Always resharded, because a single process saves checkpoints and must not gather.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)
    shared = [n for n, p in model.named_parameters() if isinstance(p, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, shared)
    return sum(p.numel() for p in layers.parameters() if isinstance(p, DTensor))


def _check_shardable(model: nn.Module, frozen: list[nn.Parameter]) -> None:
    """Check the parameters to be sharded; see `shard_frozen`.

    Raises:
        InputError: They cannot be sharded.
    """
    if any(p.requires_grad for p in frozen):
        raise InputError(
            "run.shard_llm shards a frozen LLM, but this LLM is trained: set model.freeze_llm: "
            "true (for example with model.lora), or turn run.shard_llm off"
        )
    loaded: set[str] = getattr(model, "loaded_keys", set())
    inside = {id(p) for p in frozen}
    own = {n for n, p in model.named_parameters() if id(p) in inside}
    if own & loaded:
        raise InputError(
            "run.shard_llm: model.ckpt contains weights of the LLM itself, which every checkpoint "
            "would have to save again; convert them to a separate LLM (python -m "
            "xraygpt.convert), or turn run.shard_llm off"
        )
    if not all(p.is_floating_point() for p in frozen):
        raise InputError("run.shard_llm cannot be combined with quantized weights (model.llm_bits)")
