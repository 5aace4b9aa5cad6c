"""What the runner needs of other processes; every function also works in a single one."""

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

_YES = ("true", "1")


def make_accelerator(device: str, *, training: bool = False) -> Accelerator:
    """Device and process group.

    `cpu=True` is said outright: under torchrun without CUDA, accelerate would otherwise start two
    processes that know nothing of each other.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; `cuda` without CUDA falls back to CPU with a warning.
        training: Whether DeepSpeed may be asked for, by accelerate's configuration.

    Raises:
        InputError: An engine was asked for that this is not, or is not here.
    """
    engines = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")
    asked = [e for e in engines if os.environ.get(f"ACCELERATE_USE_{e}", "").lower() in _YES]
    zero = asked == ["DEEPSPEED"]
    if asked and not (zero and training):
        raise InputError(
            f"accelerate is configured for {asked[0].lower()}, which is not wired in"
            f"{'' if training or not zero else ' but for train.py'}: launch "
            "with data parallelism (MULTI_GPU, MULTI_CPU or torchrun); run.shard_llm lays "
            "a frozen LLM out over the processes of a training (FSDP2)"
        )
    has_cuda = torch.cuda.is_available()
    if device.startswith("cuda") and not has_cuda:
        log.warning("run.device is %s but there is no CUDA here: going on with the CPU", device)
    on_cpu = device == "cpu" or not has_cuda
    if zero:
        return _with_deepspeed(on_cpu)
    return Accelerator(cpu=on_cpu, mixed_precision="no")  # autocasting is done here


def _with_deepspeed(on_cpu: bool) -> Accelerator:
    if find_spec("deepspeed") is None:
        raise InputError(
            "accelerate is configured for DeepSpeed, which is not here: pip install deepspeed"
        )
    if on_cpu and torch.cuda.is_available():
        raise InputError("DeepSpeed takes the GPUs that are here: set run.device: auto")
    if "LOCAL_RANK" not in os.environ:
        raise InputError("DeepSpeed is started by accelerate launch, or by torchrun")
    if on_cpu and not shutil.which("g++"):
        raise InputError("DeepSpeed compiles a part of itself on a CPU, and there is no g++ here")
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"  # accelerate knows no other yes
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what DeepSpeed prints is no result
            PartialState(cpu=on_cpu)  # else it would see one process alone where there is no GPU
            # It would round the weights themselves: autocasting is done here.
            return Accelerator(cpu=False, mixed_precision="no")
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"DeepSpeed's configuration cannot be used: {error}") from error


def is_lower(device: torch.device, amp: bool | Literal["bf16"]) -> bool:
    """Whether `amp` means bfloat16 on this device: True does on a GPU, ``bf16`` everywhere."""
    return amp == "bf16" or (amp and device.type != "cpu")


def autocast(
    device: torch.device, amp: bool | Literal["bf16"]
) -> contextlib.AbstractContextManager[None]:
    """Inside, products of matrices are computed in bfloat16, where `is_lower`."""
    if not is_lower(device, amp):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


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
