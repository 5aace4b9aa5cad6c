"""What the runner needs of other processes; every function also works in a single one."""

from __future__ import annotations

import logging
import os
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from xraygpt.common.errors import InputError

log = logging.getLogger(__name__)


def make_accelerator(device: str, amp: bool | Literal["bf16"]) -> Accelerator:
    """Device, process group and precision.

    `cpu=True` is said outright: under torchrun without CUDA, accelerate would otherwise start two
    processes that know nothing of each other.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; `cuda` without CUDA falls back to CPU with a warning.
        amp: bfloat16 autocast; True acts on CUDA alone, ``bf16`` on a CPU as well.

    Raises:
        InputError: An engine that steps by itself was asked for by accelerate's configuration.
    """
    for engine in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() in ("true", "1"):
            raise InputError(
                f"accelerate is configured for {engine.lower()}, which is not wired in: launch "
                "with data parallelism (MULTI_GPU, MULTI_CPU or torchrun); run.shard_llm lays "
                "a frozen LLM out over the processes of a training (FSDP2)"
            )
    has_cuda = torch.cuda.is_available()
    if device.startswith("cuda") and not has_cuda:
        log.warning("run.device is %s but there is no CUDA here: going on with the CPU", device)
    on_cpu = device == "cpu" or not has_cuda
    lower = amp == "bf16" or (amp and not on_cpu)
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if lower else "no")


def refuse_scattered(model: nn.Module, world: int) -> None:
    """Data parallel models lie on one kind of device.

    Raises:
        InputError: This one does not, and there are several processes.
    """
    kinds = sorted({p.device.type for p in model.parameters()})
    if world > 1 and len(kinds) > 1:
        raise InputError(
            f"parts of the model lie on {' and '.join(kinds)}, which several processes cannot "
            "train: set model.vit_on_cpu: false and model.llm_device_map: null, or use one process"
        )


def to_device(value: Any, device: torch.device) -> Any:
    """`value` with every tensor in it, also inside dicts, moved to `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    return {k: to_device(v, device) for k, v in value.items()} if isinstance(value, dict) else value


def shared(value: Any) -> Any:
    """The main process's `value`, everywhere."""
    return broadcast_object_list([value])[0]


def gathered(values: list[Any]) -> list[Any]:
    """All processes' lists in one, in rank order."""
    result: list[Any] = gather_object(values)
    return result


def total(accelerator: Accelerator, values: list[float]) -> list[float]:
    """Sums over processes, in float64."""
    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    summed: list[float] = accelerator.reduce(tensor, reduction="sum").tolist()
    return summed
