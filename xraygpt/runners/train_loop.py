"""The loop everybody reads.

One step, in order:

 1. set the learning rate of this step;
 2. fetch its micro-batches and count their target tokens over all processes;
 3. forward and backward each, the loss divided once by that count;
 4. clip, step, zero;
 5. log; evaluate if due; save if due; stop if asked to.

Step k always takes the same samples with the same draws, so a run can be killed anywhere and
resumed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from xraygpt.common import checkpoint, distributed, memory
from xraygpt.common.errors import InputError, Stopped, TrainingError
from xraygpt.common.logging import progress
from xraygpt.common.registry import registry
from xraygpt.datasets import controls
from xraygpt.datasets.base import Batch
from xraygpt.datasets.collate import Collator
from xraygpt.datasets.mixture import Mixture, StreamSampler, longest_rows
from xraygpt.features import cache as feature_cache
from xraygpt.models.base import BaseModel
from xraygpt.models.capabilities import CachesQueries, FrozenFeatures, HasDecoder, require, supports
from xraygpt.runners import compiling, logs, optimizers, profiling, sharding, state
from xraygpt.runners.averaging import Average
from xraygpt.runners.base import BaseRunner
from xraygpt.runners.schedules import Schedule
from xraygpt.runners.settings import RunSettings
from xraygpt.runners.zero import make_stepper
from xraygpt.tasks.base import BaseTask

log = logging.getLogger(__name__)


@registry.register_runner("train_loop", "runner_base")
class Runner(BaseRunner):
    """Trains one model on one task; knows neither corpus nor architecture."""

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
        self.config, self.task, self.resolved = config, task, resolved
        self.accelerator = distributed.make_accelerator(config.device, training=True)
        self.model = model.to(self.accelerator.device)
        self.splits = splits
        media_collator = model.media_collator if task.uses_images else None
        self.collate = Collator(
            model.renderer,
            media_collator,
            max_len=model.context_len,
            loss_on_all_tokens=model.loss_on_all_tokens,
            extra=task.extra,
        )
        self.global_batch = config.batch_size_train * config.accum_grad_iters * self._world
        epoch = splits["train"].epoch_size()
        each = max(1, math.ceil(epoch / self.global_batch))
        self.steps_per_epoch = config.iters_per_epoch or each
        self.max_steps = config.max_steps or (config.max_epoch or 1) * self.steps_per_epoch
        if 2 * config.warmup_steps > self.max_steps > 1:
            log.warning(
                "warmup_steps (%d) takes most of the %d steps of this run; lower it, or init_lr "
                "is hardly ever reached",
                config.warmup_steps,
                self.max_steps,
            )
        self.optimizer = optimizers.make_optimizer(
            config.optimizer,
            model,
            lr=config.init_lr,
            weight_decay=config.weight_decay,
            beta2=config.beta2,
        )
        # Kept here, since a checkpoint's groups take the place of these.
        self.lr_scales = [g.get("lr_scale", 1.0) for g in self.optimizer.param_groups]
        self.average = Average(model, config.ema_decay) if config.ema_decay else None
        if config.shard_llm:
            layers = require(model, HasDecoder).decoder_layers()
            sharding.shard_frozen(model, layers, self.accelerator.device, self._world)
        if config.compile:
            compiling.compile_layers(
                require(model, HasDecoder).decoder_layers(), self.accelerator.device
            )
        distributed.refuse_scattered(model, self._world)
        self.stepper = make_stepper(self.accelerator, model, self.optimizer, config)
        self.wrapped = self.stepper.wrapped
        self.step, self.best, self.best_step, self.stale = 0, math.inf, -1, 0
        self.val_losses: list[tuple[int, float]] = []  # (steps taken, nats) of each evaluation
        self._saved = -1  # step of the last checkpoint this process took part in
        self.run_folder = Path()
        self._signal: int | None = None  # what this process was sent
        self._stop = False  # whether some process was sent a signal

    @property
    def _world(self) -> int:
        return int(self.accelerator.num_processes)

    def train(self) -> dict[str, float]:
        """Run to the last step.

        Returns:
            The last evaluation.

        Raises:
            TrainingError: The loss is not finite, or a checkpoint cannot be written.
            Stopped: SIGTERM or SIGINT came; everything is saved.
        """
        self._begin()
        memory.forget_peak(self.accelerator.device)
        last: dict[str, float] = {}
        main = self.accelerator.is_main_process
        looked_at = self.run_folder if self.config.profile and main else None
        with self._signals(), self._bar() as bar, profiling.profiler(looked_at) as profiler:
            batches = self._batches()
            while self.step < self.max_steps and not self._patience_is_over():
                lr = self._set_learning_rate()
                values = self._step(batches)
                self.step += 1
                bar.update()
                profiler.step()
                if self.step % self.config.log_every == 0 or self.step == self.max_steps:
                    self.metrics.add(self.step, {**values, "train/lr": lr})
                    bar.set_postfix_str(f"loss {values['train/loss']:.3f}", refresh=False)
                if self._due(self.config.eval_every):
                    last = self._evaluate()
                if self._due(self.config.save_every) or self._stop:
                    self.save()
                self._stop_if_asked()
        self.save()
        self.metrics.close()
        return last

    def dry_run(self) -> dict[str, float]:
        """A step on the longest rows, but that nothing is changed or written; only features are.

        Returns:
            Its shape and loss, the run's length, and `peak_gib`: most memory that training will
            take, 2**30 bytes, of a GPU or else of the whole process.
        """
        self._cache_features()
        self.wrapped.train()
        longest = longest_rows(self.splits["train"], self.config.batch_size_train)
        batch = self._to_device(self.collate([self.splits["train"][i] for i in longest]))
        memory.forget_peak(self.accelerator.device)
        with self._autocast():
            output = self.task.loss(self.wrapped, batch)
        self.stepper.backward(output.loss)
        rows, width = batch["input_ids"].shape
        trained = sum(p.numel() for _, p in self.model.trainable_parameters())
        kept = self.stepper.bytes_to_come() + (4 * trained if self.average else 0)
        targets = int(output.num_targets.sum())
        return {
            "rows": rows,
            "tokens": width,
            "targets": targets,
            "loss": float(output.loss.detach()) / max(targets, 1),
            "steps": self.max_steps,
            "trained_parameters": trained,
            "peak_gib": round((memory.peak(self.accelerator.device) + kept) / 2**30, 2),
        }

    def _step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step; the mean loss per target token over all processes."""
        began = time.perf_counter()
        with profiling.phase("data"):
            group = [next(batches) for _ in range(self.config.accum_grad_iters)]
        waited = time.perf_counter() - began
        targets = sum(self.task.count(b) for b in group)
        count = distributed.total(self.accelerator, [targets])[0]
        if count == 0:
            raise TrainingError(
                f"step {self.step + 1} has nothing to learn from: every sample of it was left out; "
                "the warnings above say why"
            )
        summed = torch.zeros((), device=self.accelerator.device)
        self.wrapped.train()
        for i, batch in enumerate(group):
            with self.stepper.micro_batch(last=i == len(group) - 1):
                with profiling.phase("forward"), self._autocast():
                    loss = self.task.loss(self.wrapped, self._to_device(batch)).loss
                with profiling.phase("backward"):
                    self.stepper.backward(loss * (1 / count))
            summed += loss.detach()
        with profiling.phase("end"):
            asked = float(self._signal is not None)
            loss_sum, stops = distributed.total(self.accelerator, [float(summed), asked])
            mean, self._stop = loss_sum / count, stops > 0  # all processes stop at the same step
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
            "train/peak_gib": memory.peak(self.accelerator.device) / 2**30,
        }

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Loss on val with the true images and with others'; remembers the best."""
        if not len(self.splits.get("val", ())):
            return {}
        self.model.eval()
        data = self.splits["val"]
        with self._averaged(), compiling.uncompiled():
            values = {"val/loss": self.mean_loss(data)}
            if self.task.uses_images:
                wrong = Mixture([controls.shuffled(p, seed=0) for p in data.parts])
                values["val/loss_shuffled"] = self.mean_loss(wrong)
                values["val/image_gap"] = values["val/loss_shuffled"] - values["val/loss"]
        self.metrics.add(self.step, values)
        log.info("step %d: %s", self.step, "  ".join(f"{k} {v:.4f}" for k, v in values.items()))
        self.val_losses.append((self.step, values["val/loss"]))
        self.stale += 1
        if values["val/loss"] < self.best:
            self.best, self.best_step, self.stale = values["val/loss"], self.step, 0
            self.save()
        return values

    def mean_loss(self, data: Mixture) -> float:
        """Nats per target token over `data`, each sample once, shared among processes."""
        rank, size = self.accelerator.process_index, self.config.batch_size_eval
        indices = list(range(len(data)))[: self.config.eval_samples]
        mine = indices[rank :: self._world]
        sums = [0.0, 0.0]
        # All take as many turns, since a sharded LLM is gathered in each: some without samples.
        for i in range(0, math.ceil(len(indices) / self._world), size):
            chosen = mine[i : i + size]
            batch = self.collate([data[j] for j in chosen or indices[:1]])
            with self._autocast():
                output = self.task.loss(self.model, self._to_device(batch))
            if chosen:
                sums[0] += float(output.loss)
                sums[1] += float(output.num_targets.sum())
        loss, count = distributed.total(self.accelerator, sums)
        if count == 0:
            raise TrainingError("val has no target token left: every sample of it was left out")
        return loss / count

    def save(self) -> None:
        """Publish a checkpoint of this step, unless that is done.

        Raises:
            TrainingError: It cannot be written; on every process.
        """
        if self._saved == self.step:
            return
        facts = {
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "stale": self.stale,
            "val_losses": self.val_losses,
            "optimizer": self.stepper.state(),
            "optimizer_name": optimizers.name_of(self.config.optimizer),
            "rng": state.all_rng_states(),
            "global_batch": self.global_batch,
        }
        if self.average:
            facts["own"] = self.average.own()
        trouble = None
        if self.accelerator.is_main_process:
            try:
                with self._averaged():
                    self._publish(facts)
            except TrainingError as error:
                trouble = str(error)
        trouble = distributed.shared(trouble)  # the others must not wait for a rank that gave up
        if trouble is not None:
            raise TrainingError(trouble)
        self._saved = self.step

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return self.average.used() if self.average else contextlib.nullcontext()

    def _publish(self, facts: dict[str, Any]) -> None:
        versions = json.dumps(logs.versions(), indent=1)
        checkpoint.publish(
            self.run_folder,
            self.step,
            lambda folder: state.write_state(folder, self.model, facts, self.resolved, versions),
        )
        if self.best_step == self.step:
            checkpoint.mark_best(self.run_folder, self.step, "val/loss", self.best)
        checkpoint.prune(self.run_folder, self.config.keep_checkpoints)

    # --- what surrounds the loop ---------------------------------------------------------------

    def _begin(self) -> None:
        """Make or find the run folder, and take up what a checkpoint holds."""
        config = self.config
        state.seed_everything(config.seed, self.accelerator.process_index)
        found = state.resume_from(config.resume_ckpt_path, config.output_dir)
        if found is None:
            self.run_folder = Path(distributed.shared(str(logs.new_run_folder(config.output_dir))))
            rng = None
        else:
            self.run_folder = checkpoint.run_of(found)
            state.load_weights(self.model, found)
            saved = state.read_state(found, self.global_batch, self._world)
            self._restore(saved)
            self.stepper.load_state(saved["optimizer"])
            rng = saved["rng"]
            log.info("resuming at step %d from %s", self.step, found)
        main = self.accelerator.is_main_process
        if main:
            self.run_folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write_file(self.run_folder / "config.yaml", self.resolved)
            checkpoint.write_file(
                self.run_folder / "versions.json", json.dumps(logs.versions(), indent=1)
            )
        self.metrics = logs.MetricsLog(self.run_folder, self.step, main)
        trained = sum(p.numel() for _, p in self.model.trainable_parameters())
        whole = sum(p.numel() for p in self.model.parameters())
        log.info(
            "%s: %d steps, %.2f M of %.2f M parameters trained, %d process(es) on %s",
            self.run_folder,
            self.max_steps,
            trained / 1e6,
            whole / 1e6,
            self._world,
            self.accelerator.device,
        )
        self._cache_features()  # with the weights of the checkpoint
        if rng is not None:
            state.restore_rng(rng, self.accelerator.process_index, config.seed, self.step)

    def _restore(self, saved: dict[str, Any]) -> None:
        """Counters of a checkpoint; what came after it in this run is forgotten."""
        self.step, self.best, self.stale = saved["step"], saved["best"], saved["stale"]
        self.best_step, self._saved = saved["best_step"], saved["step"]
        self.val_losses = list(saved.get("val_losses", ()))  # older checkpoints have none
        optimizers.check_name(self.config.optimizer, saved.get("optimizer_name", "adamw"))
        if self.average:
            self.average.load_state(saved.get("own", {}) or self.average.own())
        elif "own" in saved:
            raise InputError(
                "run.ema_decay is 0, but this run averages its weights; set it as it was"
            )
        if self.accelerator.is_main_process:
            checkpoint.forget_after(self.run_folder, self.step)
            if self.best_step >= 0 and checkpoint.best_step(self.run_folder) != self.best_step:
                checkpoint.mark_best(self.run_folder, self.best_step, "val/loss", self.best)
        self.accelerator.wait_for_everyone()

    def _batches(self) -> Iterator[Batch]:
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
            generator=torch.Generator(),  # its own, so that making workers draws from no other
            worker_init_fn=_leave_signals,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        return iter(loader)

    def _cache_features(self) -> None:
        if not (self.config.feature_cache and self.task.uses_images):
            return
        key = None
        if supports(self.model, CachesQueries):
            key = require(self.model, CachesQueries).start_caching_queries()
        elif supports(self.model, FrozenFeatures):
            key = require(self.model, FrozenFeatures).feature_key()
        if key is None:
            return
        how, workers = self.config.feature_store, self.config.num_workers
        for mixture in self.splits.values():
            for part in mixture.parts:
                feature_cache.use_cache(part, self.model, key, self.accelerator, how, workers)
        memory.give_back()  # what encoding took

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        return distributed.autocast(self.accelerator.device, self.config.amp)

    def _set_learning_rate(self) -> float:
        schedule = Schedule(
            init_lr=self.config.init_lr,
            min_lr=self.config.min_lr,
            warmup_lr=self.config.warmup_lr,
            warmup_steps=self.config.warmup_steps,
            total_steps=self.max_steps,
            steps_per_epoch=self.steps_per_epoch,
            decay_rate=self.config.lr_decay_rate,
            plateau_patience=self.config.lr_plateau_patience,
            val_losses=tuple(self.val_losses),
        )
        lr: float = registry.get_lr_scheduler_class(self.config.lr_sched)(self.step, schedule)
        for group, scale in zip(self.optimizer.param_groups, self.lr_scales, strict=True):
            group["lr"] = lr * scale
        return lr

    def _check_finite(self, loss: float, norm: float, group: list[Batch]) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        names = [n for batch in group for n in batch["sample_id"]]
        raise TrainingError(
            f"step {self.step + 1}: loss {loss}, gradient norm {norm}. Nothing of it was kept; "
            f"samples of it: {', '.join(names[:16])}. Lower run.init_lr, or resume from "
            f"{self.run_folder} after mending the data"
        )

    def _to_device(self, batch: Batch) -> Batch:
        moved: Batch = distributed.to_device(batch, self.accelerator.device)
        return moved

    def _due(self, every: int | None) -> bool:
        interval = self.steps_per_epoch if every is None else every
        if interval == 0:
            return False
        return self.step % interval == 0 or self.step == self.max_steps

    def _patience_is_over(self) -> bool:
        return self.config.patience is not None and self.stale >= self.config.patience

    def _bar(self) -> Any:
        hidden = not self.accelerator.is_main_process
        return progress(total=self.max_steps, initial=self.step, unit="step", disable=hidden)

    def _stop_if_asked(self) -> None:
        if not self._stop:
            return
        self.metrics.close()
        number = signal.SIGTERM if self._signal is None else self._signal
        name = signal.Signals(number).name
        stopped = Stopped(
            f"stopped by {name} at step {self.step}; saved. Go on with "
            f"--options run.resume_ckpt_path={self.run_folder}"
        )
        stopped.exit_code = 128 + number
        try:
            raise stopped
        finally:
            del stopped  # else its own traceback keeps the loader, whose workers leave signals be

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and the first Ctrl-C ask for a save; a second Ctrl-C ends at once."""

        def ask(number: int, _: Any) -> None:
            self._signal = number
            signal.signal(number, previous[number])

        previous: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        for number in previous:
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in previous.items():
                with contextlib.suppress(ValueError):
                    signal.signal(number, handler)


def _leave_signals(_: int) -> None:
    """A worker leaves SIGTERM and SIGINT, sent to a whole group, to the process that saves."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
