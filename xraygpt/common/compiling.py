"""Layers of an LLM compiled by torch (torch.compile), for the steps of a training alone.

One layer is compiled, for sizes that change, and serves all: that takes a minute or so, once, and
what torch keeps of it shortens the next run's. Validation and answers stay as they are: their other
kinds of masks and caches would each be compiled anew.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from typing import Any

import torch
from torch import nn

from xraygpt.common.errors import InputError


def compile_layers(model: nn.Module, device: torch.device) -> None:
    """Let the decoder layers of `model.llm` be compiled when they are first trained through.

    Names of parameters, and so checkpoints, stay as they are.

    Raises:
        InputError: The model has no LLM, or this machine has nothing to compile with.
    """
    llm: Any = getattr(model, "llm", None)
    if llm is None:
        raise InputError("run.compile: this model has no LLM; leave it off")
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise InputError(
                "run.compile needs Triton on a GPU: pip install triton, or leave it off"
            )
    elif not shutil.which(os.environ.get("CXX", "g++")) and not shutil.which("clang++"):
        raise InputError(
            "run.compile needs a C++ compiler (apt install g++, or name yours in CXX), or leave it "
            "off"
        )
    for layer in llm.get_decoder().layers:
        layer.compile(dynamic=True)


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """What runs in it runs as it is written."""
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
