"""The training loop.

One step, in order:

 1. set the learning rate of this step;
 2. fetch its micro-batches and count their target tokens over all processes;
 3. forward and backward of each; the task returns a loss summed over targets, which is divided by
    that count, and the stepper sums gradients over processes;
 4. clip the gradients, update the weights, reset the gradients;
 5. log; validate if due; save if due; stop if a signal came.

Step k always sees the same samples with the same random choices: items k·G to (k+1)·G of an
endless shuffled stream (`datasets.mixture`), where G is the global batch. So a run can be killed
anywhere and resumed, on a CPU to the bit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from xraygpt.common import distributed, memory
from xraygpt.common.errors import TrainingError
from xraygpt.common.logging import progress as progress_bar
from xraygpt.common.numbers import decimal
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.datasets.collate import Collator
from xraygpt.datasets.mixture import Mixture, StreamSampler
from xraygpt.features import cache as feature_cache
from xraygpt.features import media_cache
from xraygpt.models.base import BaseModel
from xraygpt.models.capabilities import (
    CachesMedia,
    CachesQueries,
    FrozenFeatures,
    HasDecoder,
    require,
    supports,
)
from xraygpt.runners import compiling, logs, optimizers, profiling, sharding, state
from xraygpt.runners.averaging import Average
from xraygpt.runners.base import BaseRunner
from xraygpt.runners.checkpointing import Checkpointer
from xraygpt.runners.dry_run import dry_run
from xraygpt.runners.learning_rate import LearningRate, warmup_steps
from xraygpt.runners.progress import Progress
from xraygpt.runners.schedules import capped_warmup
from xraygpt.runners.settings import RunSettings
from xraygpt.runners.signals import StopSignals, ended_workers, ignore_in_worker
from xraygpt.runners.validation import Validator
from xraygpt.runners.zero import make_stepper
from xraygpt.tasks.base import BaseTask

log = logging.getLogger(__name__)


@registry.register_runner("train_loop", "runner_base")
class Runner(BaseRunner):
    """Trains one model on one task, whatever the corpus and the architecture."""

    Config = RunSettings
    config: RunSettings

    def __init__(
        self,
        config: RunSettings,
        *,
        task: BaseTask,
        model: BaseModel,
        splits: dict[str, Mixture],
        resolved: str = "",
    ) -> None:
        self.config, self.task, self.splits = config, task, splits
        self.accelerator = distributed.make_accelerator(config.device, training=True)
        self.device = self.accelerator.device
        self.model = model.to(self.device)
        self.collate = Collator(
            model.renderer,
            model.media_collator if task.uses_images else None,
            max_len=model.context_len,
            loss_on_all_tokens=model.loss_on_all_tokens,
            extra=task.extra,
        )
        self._set_length()
        self.optimizer = optimizers.make_optimizer(
            config.optimizer,
            model,
            lr=config.init_lr,
            weight_decay=config.weight_decay,
            beta2=config.beta2,
        )
        self.learning_rate = LearningRate(
            config, self.optimizer, max_steps=self.max_steps, steps_per_epoch=self.steps_per_epoch
        )
        self.average = Average(model, config.ema_decay) if config.ema_decay else None
        self._shard_or_compile()
        self.stepper = make_stepper(self.accelerator, model, self.optimizer, config)
        self.wrapped = self.stepper.wrapped
        self.validator = Validator(config, self.accelerator, model, task, self.collate)
        self.progress = Progress()
        self.checkpointer = Checkpointer(
            config,
            self.accelerator,
            model=model,
            stepper=self.stepper,
            progress=self.progress,
            average=self.average,
            global_batch=self.global_batch,
            resolved=resolved,
        )
        self._losses = [0.0, 0]  # sum over the steps of this process, and their number
        self.signals = StopSignals()
        self._stop = False  # whether any process received a signal

    def _set_length(self) -> None:
        """Compute the samples per step, the steps per epoch and the steps in the run."""
        config = self.config
        self.global_batch = config.batch_size_train * config.accum_grad_iters * self._world
        one_pass = math.ceil(self.splits["train"].epoch_size() / self.global_batch)
        self.steps_per_epoch = config.iters_per_epoch or max(1, one_pass)
        self.max_steps = config.max_steps or (config.max_epoch or 1) * self.steps_per_epoch
        asked = warmup_steps(config, self.max_steps)
        warmup = capped_warmup(asked, self.max_steps)
        if warmup != asked:
            log.info(
                "warm-up: %d steps instead of %d, because the run has only %d steps",
                warmup,
                asked,
                self.max_steps,
            )

    def _shard_or_compile(self) -> None:
        """Shard or compile the LLM's layers, before the model is wrapped."""
        if self.config.shard_llm:
            layers = require(self.model, HasDecoder).decoder_layers()
            sharding.shard_frozen(self.model, layers, self.device, self._world)
        if self.config.compile:
            layers = require(self.model, HasDecoder).decoder_layers()
            compiling.compile_layers(layers, self.device)
        distributed.require_one_device_type(self.model, self._world)

    @property
    def _world(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def step(self) -> int:
        """Number of optimizer steps taken."""
        return self.progress.step

    @property
    def mean_loss(self) -> float:
        """Mean training loss over the steps taken since the start or the resumption."""
        return self._losses[0] / max(self._losses[1], 1)

    @property
    def run_folder(self) -> Path:
        """The folder in which the run is saved; it is known once `train` has begun."""
        return self.checkpointer.run_folder

    def train(self) -> dict[str, float]:
        """Train to the last step.

        Returns:
            The results of the last validation.

        Raises:
            TrainingError: The loss is not finite, or a checkpoint cannot be written.
            Stopped: SIGTERM or SIGINT was received; everything has been saved.
        """
        self._begin()
        memory.reset_peak(self.device)
        last: dict[str, float] = {}
        main = self.accelerator.is_main_process
        profiled = self.run_folder if self.config.profile and main else None
        with (
            self.signals.caught(),
            self._bar() as bar,
            profiling.profiler(profiled) as profiler,
            contextlib.closing(self._batches()) as batches,
        ):
            while self.step < self.max_steps and not self._out_of_patience():
                lr = self.learning_rate.apply(self.step, self.progress.val_losses)
                values = self._step(batches)
                self.progress.step += 1
                bar.update()
                profiler.step()
                if self.step % self.config.log_every == 0 or self.step == self.max_steps:
                    self.log_row(self.step, {**values, "train/lr": lr})
                    bar.set_postfix_str(f"loss {decimal(values['train/loss'])}", refresh=False)
                if self._due(self.config.eval_every):
                    last = self._validate()
                if self._due(self.config.save_every) or self._stop:
                    self.save()
                if self._stop:
                    self.metrics.close()
                    self.signals.stop(self.step, self.run_folder)
        self.save()
        media_cache.flush(self.model)
        self.metrics.close()
        return last

    def dry_run(self) -> dict[str, Any]:
        """Run one forward and backward pass on the longest rows; see `runners.dry_run`."""
        return dry_run(self)

    def _step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Take one optimizer step and return the row for the log."""
        began = time.perf_counter()
        with profiling.phase("data"):
            group = [next(batches) for _ in range(self.config.accum_grad_iters)]
        waited = time.perf_counter() - began
        targets = sum(self.task.count_targets(b) for b in group)
        count = distributed.sum_over_processes(self.accelerator, [targets])[0]
        if count == 0:
            raise TrainingError(
                f"step {self.step + 1} has no target token: every sample was skipped (see the "
                "warnings above) or has no answer"
            )
        loss_sum = torch.zeros((), device=self.device)
        self.wrapped.train()
        for i, batch in enumerate(group):
            with self.stepper.micro_batch(last=i == len(group) - 1):
                with profiling.phase("forward"), self.autocast():
                    loss = self.task.loss(self.wrapped, self.to_device(batch)).loss
                with profiling.phase("backward"):
                    self.stepper.backward(loss * (1 / count))  # summed over processes
            loss_sum += loss.detach()
        with profiling.phase("end"):
            sums = [float(loss_sum), float(self.signals.received is not None)]
            total_loss, signals = distributed.sum_over_processes(self.accelerator, sums)
            self._stop = signals > 0  # all processes stop at the same step
            mean = total_loss / count
            self._losses = [self._losses[0] + mean, self._losses[1] + 1]
            norm = self.stepper.step(lambda norm: self._check_finite(mean, norm, group))
            if self.average:
                self.average.update(self.step + 1)
        return {
            "train/loss": mean,
            "train/grad_norm": norm,
            "train/tokens": count,
            "train/skipped": float(sum(b["skipped"] for b in group)),
            "train/data_seconds": waited,
            "train/step_seconds": time.perf_counter() - began,
            "train/peak_gib": memory.peak_bytes(self.device) / 2**30,
        }

    def _validate(self) -> dict[str, float]:
        """Compute the losses on val, and save a checkpoint if they are the best so far."""
        if not len(self.splits.get("val", ())):
            return {}
        with self.checkpointer.averaged_weights(), compiling.uncompiled():
            values = self.validator.losses(self.splits["val"])
        self.log_row(self.step, values)
        log.info(
            "step %d: %s", self.step, "  ".join(f"{k} {decimal(v, 4)}" for k, v in values.items())
        )
        if self.progress.record(self._best_value(values)):
            self.save()
        return values

    def _best_value(self, values: dict[str, float]) -> float:
        """Return the value of `best_metric`.

        Raises:
            TrainingError: The model's tokens do not stand for bytes.
        """
        metric = self.config.best_metric
        if metric not in values:
            raise TrainingError(
                f"run.best_metric: {metric} cannot be computed, because this model's tokenizer is "
                "not byte-level; use val/loss"
            )
        return values[metric]

    def save(self) -> None:
        """Save a checkpoint of this step unless it is already saved.

        Raises:
            TrainingError: The checkpoint cannot be written; raised on every process.
        """
        self.checkpointer.save()

    def log_row(self, step: int, values: dict[str, float]) -> None:
        """Add a row to the logs."""
        self.metrics.add(step, values)

    # --- setup and helpers ---------------------------------------------------------------------

    def _begin(self) -> None:
        """Create the run folder or resume a run; cache the frozen features."""
        rank, seed = self.accelerator.process_index, self.config.seed
        state.seed_everything(seed, rank)
        rng = self.checkpointer.begin()
        self.metrics = logs.MetricsLog(self.run_folder, self.step, self.accelerator.is_main_process)
        trained = sum(p.numel() for _, p in self.model.trainable_parameters())
        total = sum(p.numel() for p in self.model.parameters())
        log.info(
            "%s: %d steps, %.2f M of %.2f M parameters trained, %d process(es) on %s",
            self.run_folder,
            self.max_steps,
            trained / 1e6,
            total / 1e6,
            self._world,
            self.device,
        )
        self.cache_features()  # after the checkpoint's weights have been loaded
        if rng is not None:
            state.restore_rng(rng, rank, seed, self.step)

    def cache_features(self) -> None:
        """Encode all images once with the frozen parts, if the run caches features."""
        if not (self.config.feature_cache and self.task.uses_images):
            return
        if supports(self.model, CachesMedia):
            parts = [part for mixture in self.splits.values() for part in mixture.parts]
            media_cache.use_media_cache(
                parts, self.model, self.config.feature_store, str(self.config.amp)
            )
            return
        key = None
        if supports(self.model, CachesQueries):
            key = require(self.model, CachesQueries).start_caching_queries()
        elif supports(self.model, FrozenFeatures):
            key = require(self.model, FrozenFeatures).feature_key()
        if key is None:
            return
        settings, workers = self.config.feature_store, self.config.num_workers
        for mixture in self.splits.values():
            for part in mixture.parts:
                feature_cache.use_cache(part, self.model, key, self.accelerator, settings, workers)
        memory.release_freed_memory()

    def _batches(self) -> Generator[Batch]:
        """Yield micro-batches without end, from the current step on; `close` ends the workers."""
        sampler = StreamSampler(
            self.splits["train"],
            seed=self.config.seed,
            batch_size=self.config.batch_size_train,
            micro_batches=self.config.accum_grad_iters,
            rank=self.accelerator.process_index,
            world=self._world,
            first_step=self.step,
        )
        loader: DataLoader[Any] = DataLoader(
            self.splits["train"],
            batch_sampler=sampler,
            collate_fn=self.collate,
            num_workers=self.config.num_workers,
            generator=torch.Generator(),  # keeps workers from advancing the global generator
            worker_init_fn=ignore_in_worker,
            pin_memory=self.device.type == "cuda",
        )
        with ended_workers():
            yield from loader

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager for the run's precision."""
        return distributed.autocast(self.device, self.config.amp)

    def to_device(self, batch: Batch) -> Batch:
        """Move a batch to this process's device."""
        moved: Batch = distributed.to_device(batch, self.device)
        return moved

    def _check_finite(self, loss: float, norm: float, group: list[Batch]) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        names = [name for batch in group for name in batch["sample_id"]]
        raise TrainingError(
            f"step {self.step + 1}: loss {loss}, gradient norm {norm}. The step was discarded; its "
            f"samples: {', '.join(names[:16])}. Lower run.init_lr, or fix the data and resume from "
            f"{self.run_folder}"
        )

    def _due(self, every: int | None) -> bool:
        """Return whether something done `every` steps (None: once an epoch, 0: never) is due."""
        interval = self.steps_per_epoch if every is None else every
        if interval == 0:
            return False
        return self.step % interval == 0 or self.step == self.max_steps

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and self.progress.stale >= self.config.patience

    def _bar(self) -> Any:
        hidden = not self.accelerator.is_main_process
        return progress_bar(total=self.max_steps, initial=self.step, unit="step", disable=hidden)
