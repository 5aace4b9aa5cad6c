"""Supports DeepSpeed ZeRO, stages 1 and 2, chosen in accelerate's configuration.

Stage 1 partitions AdamW's moments over the processes, stage 2 also partitions the gradients
(Rajbhandari et al. 2020). Weights are replicated, and a checkpoint looks like a single process's.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor

from xraygpt.common.distributed import uses_bfloat16
from xraygpt.common.errors import InputError
from xraygpt.models.base import BaseModel
from xraygpt.runners import optimizers
from xraygpt.runners.settings import RunSettings
from xraygpt.runners.stepping import Stepper

_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state for every weight


class ZeroStepper(Stepper):
    """A `Stepper` that uses DeepSpeed's engine.

    AdamW's moments are allocated on creation, so a dry run includes them.

    Raises:
        InputError: The DeepSpeed configuration sets another stage, or what this loop controls.
    """

    _last = True  # whether this micro-batch is the last of its step

    def _wrap(self) -> Any:
        self.parameters = [list(group["params"]) for group in self.optimizer.param_groups]
        self._configure()
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is reserved for results
                engine, _ = self.accelerator.prepare(self.model, self.optimizer)
        except (ValueError, RuntimeError, ImportError, AssertionError) as error:
            raise InputError(
                f"DeepSpeed does not start: {error}. Fix its configuration, or use torchrun"
            ) from error
        # AdamW allocates moments group by group in its first step, but DeepSpeed expects those
        # of all groups after the first group. So take one step that changes nothing.
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # the loop sets it before every step
            for flat in group["params"]:
                flat.grad = torch.zeros_like(flat)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._set_step_count(0.0)
        return engine

    def _configure(self) -> None:
        """Override accelerate's DeepSpeed configuration with the settings of the YAML."""
        config, accelerator = self.config, self.accelerator
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        _check_settings(settings)
        _check_model(self.model)
        rows, micro_batches = config.batch_size_train, config.accum_grad_iters
        settings |= {
            "train_micro_batch_size_per_gpu": rows,
            "gradient_accumulation_steps": micro_batches,
            "train_batch_size": rows * micro_batches * accelerator.num_processes,
            "gradient_clipping": config.grad_clip or 0.0,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": False},  # autocast by DeepSpeed would round the trained weights
            "fp16": {"enabled": False},
            # Gradients are summed in float32, as DDP does.
            "torch_autocast": {
                "enabled": uses_bfloat16(accelerator.device, config.amp),
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
        }
        # The default bucket of 2 GB is for 5e8 gradients, however few weights are trained.
        trained = sum(p.numel() for _, p in self.model.trainable_parameters())
        settings["zero_optimization"]["reduce_bucket_size"] = trained
        accelerator.gradient_accumulation_steps = micro_batches

    def _set_step_count(self, steps: float) -> None:
        for moments in self.optimizer.state.values():
            moments["step"].fill_(steps)

    def bytes_to_come(self) -> int:
        """Return 0, because the moments are already allocated."""
        return 0

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Tell the engine which micro-batch is the last; copy rank 0's buffers to all processes."""
        self._last = last
        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    torch.distributed.broadcast(buffer, 0)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients, undoing the engine's mean over processes and micro-batches."""
        self.wrapped.set_gradient_accumulation_boundary(self._last)
        divisor = self.accelerator.num_processes * self.config.accum_grad_iters
        self.wrapped.backward(loss * divisor)

    def step(self, check: Callable[[float], None]) -> float:
        """Take a step and return the gradient norm, which is known only afterwards.

        The engine skips the update if gradients are not finite.
        """
        check(0.0)  # checks the loss
        self.wrapped.step()
        norm = float(self.wrapped.get_global_grad_norm())
        check(norm)
        return norm

    def state(self) -> dict[str, Any]:
        """Gather the moments from all processes, in the layout of torch's AdamW."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = float(next(iter(self.optimizer.state.values()))["step"])
        state, groups, first = {}, [], 0
        for group, parameters in zip(self.optimizer.param_groups, self.parameters, strict=True):
            indices = list(range(first, first + len(parameters)))
            first += len(parameters)
            options = {k: v for k, v in group.items() if k in self.optimizer.defaults}
            groups.append({**options, "params": indices})
            for index, parameter in zip(indices, parameters, strict=True) if steps else ():
                moments = {}
                for name in _MOMENTS:
                    moment = safe_get_full_optimizer_state(parameter, name)
                    if self.accelerator.is_main_process:  # only it writes the checkpoint
                        moments[name] = moment.cpu()
                state[index] = {**moments, "step": torch.tensor(steps)}
        return {"state": state, "param_groups": groups}

    def load_state(self, state: dict[str, Any]) -> None:
        """Partition the moments in a checkpoint, saved by any number of processes."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        all_parameters = [p for parameters in self.parameters for p in parameters]
        for group, saved in zip(self.optimizer.param_groups, state["param_groups"], strict=True):
            group |= {k: v for k, v in saved.items() if k not in ("params", "lr")}
        for parameter in all_parameters:  # the engine still has a copy of the initial weights
            safe_set_full_fp32_param(parameter, parameter.detach().clone())
        if not state["state"]:
            return
        self._link_moments(all_parameters)
        for index, parameter in enumerate(all_parameters):
            for name in _MOMENTS if index in state["state"] else ():
                value = state["state"][index][name].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, name)
        self._set_step_count(float(next(iter(state["state"].values()))["step"]))

    def _link_moments(self, parameters: list[Tensor]) -> None:
        """Take a step that changes nothing; only then can DeepSpeed find each weight's moments."""
        self._last = True
        self.backward(torch.stack([(p * 0).sum() for p in parameters]).sum())
        self.wrapped.step()


def make_stepper(
    accelerator: Accelerator,
    model: BaseModel,
    optimizer: torch.optim.Optimizer,
    config: RunSettings,
) -> Stepper:
    """Build the stepper that accelerate's configuration asks for.

    Raises:
        InputError: The combination of settings is not supported.
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return Stepper(accelerator, model, optimizer, config)
    if config.shard_llm:
        raise InputError("run.shard_llm cannot be combined with DeepSpeed; choose one of the two")
    if not isinstance(optimizer, torch.optim.AdamW):
        raise InputError(
            "DeepSpeed ZeRO partitions AdamW's moments, but run.optimizer is "
            f"{optimizers.name_of(config.optimizer)}; set it to adamw, or launch with torchrun"
        )
    return ZeroStepper(accelerator, model, optimizer, config)


def _check_settings(settings: dict[str, Any]) -> None:
    wrong = [part for part in ("optimizer", "scheduler") if part in settings]
    if wrong:
        raise InputError(
            f"DeepSpeed's configuration sets its own {' and '.join(wrong)}; remove that and use "
            "run.init_lr, run.lr_sched and run.weight_decay"
        )
    zero = settings.get("zero_optimization") or {}
    if zero.get("stage") not in (1, 2):
        raise InputError(
            f"DeepSpeed is configured for ZeRO stage {zero.get('stage')}; stages 1 and 2 are "
            "supported. To shard a frozen LLM over the processes, use run.shard_llm: true "
            "without DeepSpeed"
        )
    away = (zero.get("offload_optimizer") or {}).get("device") or "none"
    if away != "none" or zero.get("cpu_offload"):
        raise InputError("DeepSpeed: offload_optimizer is not supported; remove it")
    if settings.get("compute_grad_norm") is False:
        raise InputError("DeepSpeed: compute_grad_norm must not be false")


def _check_model(model: BaseModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise InputError(
                f"DeepSpeed cannot train this model: {name} is a scalar. Launch with torchrun"
            )
    for name, parameter in model.trainable_parameters():
        if parameter.dtype != torch.float32:
            raise InputError(
                f"DeepSpeed: {name} is trained in {parameter.dtype}, but only float32 is "
                "supported: set model.llm_dtype: float32 and run.amp: bf16, or launch with torchrun"
            )
