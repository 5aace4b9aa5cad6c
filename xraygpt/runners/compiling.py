"""Layers of an LLM compiled by torch (torch.compile), for the steps of a training.

One layer is compiled, for sizes that change, and serves all: that takes a minute or so, once, and
what torch keeps of it shortens the next run's. Validation stays as it is written: its other kinds
of rows and masks would each be compiled anew.
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
    """Let the layers of a language model be compiled when they are first trained through.

    Names of parameters, and so checkpoints, stay as they are.

    Args:
        layers: Of a model that is not yet wrapped.
        device: Where it will be trained.

    Raises:
        InputError: This machine has nothing to compile with.
    """
    _check_tools(device)
    # It says on a CPU that there is no CUDA.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # Gradients are reduced layer by layer anyway; torch would cut layers where DDP's buckets end.
    torch._dynamo.config.optimize_ddp = False
    for layer in layers:
        layer.compile(dynamic=True)


def written(layers: nn.ModuleList) -> None:
    """Undo `compile_layers`."""
    for layer in layers:
        layer._compiled_call_impl = None


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """What runs in it runs as it is written."""
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _check_tools(device: torch.device) -> None:
    """Say what is missing before anything is computed: torch would, in a trace, at the first step.

    Raises:
        InputError: A compiler, Triton or Python's headers.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise InputError("run.compile needs Triton: pip install triton; or leave it off")
        if not any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang"))):
            raise InputError("run.compile needs a C compiler: apt install gcc; or leave it off")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise InputError(
            "run.compile needs a C++ compiler: apt install g++, or name yours in CXX; or leave it "
            "off"
        ) from None
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise InputError(
            "run.compile needs Python's headers: apt install python3-dev; or leave it off"
        )
