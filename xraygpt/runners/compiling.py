"""Compiles an LLM's layers with torch.compile, for training steps only.

One layer is compiled for dynamic shapes, which takes about a minute, and the result is used for all
layers; torch's cache makes the next run faster. Validation runs uncompiled, because each of its
other shapes and masks would trigger a compilation.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xraygpt.common.errors import InputError


def compile_layers(layers: nn.ModuleList, device: torch.device) -> None:
    """Set up each layer to be compiled in its first training step.

    The names of parameters, and thus checkpoints, do not change.

    Args:
        layers: The layers of a model that is not yet wrapped.
        device: The device on which the model will be trained.

    Raises:
        InputError: A compiler is missing on this machine.
    """
    _check_tools(device)
    # Silences torch's message on a CPU that CUDA is not available.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # Otherwise, torch would split layers at DDP's bucket boundaries.
    torch._dynamo.config.optimize_ddp = False
    for layer in layers:
        layer.compile(dynamic=True)


def uncompile_layers(layers: nn.ModuleList) -> None:
    """Make compiled layers run eagerly again."""
    for layer in layers:
        layer._compiled_call_impl = None


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Context manager inside which compiled layers run eagerly."""
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _check_tools(device: torch.device) -> None:
    """Check for a compiler up front, as torch would fail with a traceback in the first step.

    Raises:
        InputError: A compiler, Triton or Python's headers are missing.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise InputError(
                "run.compile needs Triton: run pip install triton, or turn run.compile off"
            )
        if not any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang"))):
            raise InputError(
                "run.compile needs a C compiler: run apt install gcc, or turn run.compile off"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise InputError(
            "run.compile needs a C++ compiler: run apt install g++, set CXX to yours, or turn "
            "run.compile off"
        ) from None
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise InputError(
            "run.compile needs Python's headers: run apt install python3-dev, or turn it off"
        )
