"""Devices and communication between processes; every function also works in a single process."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from importlib.util import find_spec
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from xraygpt.common.errors import InputError

log = logging.getLogger(__name__)

_TRUE = ("true", "1")
_ENGINES = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")


def make_accelerator(device: str, *, training: bool = False) -> Accelerator:
    """Build the accelerator, which determines the device and the process group.

    `cpu=True` is passed explicitly: under torchrun without CUDA, accelerate would otherwise start
    two independent processes.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; `cuda` without CUDA falls back to CPU with a warning.
        training: Whether accelerate's configuration is allowed to select DeepSpeed.

    Raises:
        InputError: The selected engine is not supported or not installed.
    """
    engines = [e for e in _ENGINES if os.environ.get(f"ACCELERATE_USE_{e}", "").lower() in _TRUE]
    use_deepspeed = engines == ["DEEPSPEED"]
    if engines and not (use_deepspeed and training):
        raise InputError(_unsupported(engines[0], use_deepspeed and not training))
    has_cuda = torch.cuda.is_available()
    if device.startswith("cuda") and not has_cuda:
        log.warning("run.device is %s but CUDA is not available: using the CPU", device)
    on_cpu = device == "cpu" or not has_cuda
    if use_deepspeed:
        return _make_deepspeed_accelerator(on_cpu)
    return Accelerator(cpu=on_cpu, mixed_precision="no")  # `autocast` below casts instead


def _unsupported(engine: str, training_only: bool) -> str:
    exception = " except in train.py" if training_only else ""
    return (
        f"accelerate is configured for {engine.lower()}, which is not supported{exception}: launch "
        "with data parallelism (MULTI_GPU, MULTI_CPU or torchrun); run.shard_llm shards a frozen "
        "LLM over the training processes (FSDP2)"
    )


def _make_deepspeed_accelerator(on_cpu: bool) -> Accelerator:
    if find_spec("deepspeed") is None:
        raise InputError(
            "accelerate is configured for DeepSpeed, which is missing; run pip install deepspeed"
        )
    if on_cpu and torch.cuda.is_available():
        raise InputError("DeepSpeed always uses the available GPUs; set run.device: auto")
    if "LOCAL_RANK" not in os.environ:
        raise InputError("DeepSpeed must be started with accelerate launch or torchrun")
    if on_cpu and not shutil.which("g++"):
        raise InputError("on a CPU, DeepSpeed compiles extensions with g++, which is not installed")
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"  # the only value that accelerate accepts
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            PartialState(cpu=on_cpu)  # otherwise, without a GPU, it would see a single process
            # Mixed precision would cast the weights themselves; `autocast` below casts instead.
            return Accelerator(cpu=False, mixed_precision="no")
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"DeepSpeed's configuration cannot be used: {error}") from error


def uses_bfloat16(device: torch.device, amp: bool | Literal["bf16"]) -> bool:
    """Check whether `amp` selects bfloat16: True does so on a GPU, ``bf16`` on any device."""
    return amp == "bf16" or (amp and device.type != "cpu")


def autocast(
    device: torch.device, amp: bool | Literal["bf16"]
) -> contextlib.AbstractContextManager[None]:
    """Context manager that computes matrix products in bfloat16 if `uses_bfloat16`."""
    if not uses_bfloat16(device, amp):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def require_one_device_type(model: nn.Module, world: int) -> None:
    """Check that a model trained by several processes is on a single type of device.

    Raises:
        InputError: The model is on several types of device, and `world` is more than one.
    """
    types = sorted({p.device.type for p in model.parameters()})
    if world > 1 and len(types) > 1:
        raise InputError(
            f"parts of the model are on {' and '.join(types)}, which several processes cannot "
            "train: set model.vit_on_cpu: false and model.llm_device_map: null, or use one process"
        )


def to_device(value: Any, device: torch.device) -> Any:
    """Return `value` with all its tensors, including those in nested dicts, moved to `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    return {k: to_device(v, device) for k, v in value.items()} if isinstance(value, dict) else value


def broadcast(value: Any) -> Any:
    """Return the main process's `value` in every process."""
    return broadcast_object_list([value])[0]


def gather_lists(values: list[Any]) -> list[Any]:
    """Return the lists of all processes, concatenated in rank order."""
    result: list[Any] = gather_object(values)
    return result


def sum_over_processes(accelerator: Accelerator, values: list[float]) -> list[float]:
    """Return the elementwise sums over all processes, computed in float64."""
    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    summed: list[float] = accelerator.reduce(tensor, reduction="sum").tolist()
    return summed
