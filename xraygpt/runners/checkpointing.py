"""Saves and resumes training runs."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from xraygpt.common import checkpoint, distributed
from xraygpt.common.errors import InputError, TrainingError
from xraygpt.common.training_data import manifest_entry
from xraygpt.models.base import BaseModel
from xraygpt.runners import logs, optimizers, state
from xraygpt.runners.averaging import Average
from xraygpt.runners.progress import Progress
from xraygpt.runners.settings import RunSettings
from xraygpt.runners.stepping import Stepper

log = logging.getLogger(__name__)


class Checkpointer:
    """Writes everything a run needs to resume, and restores it.

    Args:
        config: Where to save, which run to resume and how many checkpoints to keep.
        accelerator: The processes, of which only the main process writes.
        model: The model, not wrapped for distributed training.
        stepper: The stepper, which has the optimizer.
        progress: The counters, which are restored in place.
        average: The weight average, or None.
        global_batch: Number of samples per step over all processes.
        resolved: The complete configuration as YAML, stored with every checkpoint.

    Attributes:
        run_folder: The run folder, which is known after `begin`.
    """

    def __init__(
        self,
        config: RunSettings,
        accelerator: Accelerator,
        *,
        model: BaseModel,
        stepper: Stepper,
        progress: Progress,
        average: Average | None,
        global_batch: int,
        resolved: str,
    ) -> None:
        self.config, self.accelerator, self.model = config, accelerator, model
        self.stepper, self.progress, self.average = stepper, progress, average
        self.global_batch, self.resolved = global_batch, resolved
        self.run_folder = Path()
        self._saved_step = -1  # the last step that this process took part in saving

    def begin(self) -> list[dict[str, Any]] | None:
        """Create a run folder, or restore the run that `resume_ckpt_path` names.

        Returns:
            The saved random states, one per process, for `state.restore_rng`; None for a new run.

        Raises:
            WeightsError: There is no usable checkpoint, or it does not fit this run.
            InputError: The run was trained with another optimizer or weight averaging.
        """
        config = self.config
        found = state.resume_from(config.resume_ckpt_path, config.output_dir)
        rng = None
        if found is None:
            self.run_folder = Path(
                distributed.broadcast(str(logs.new_run_folder(config.output_dir)))
            )
        else:
            self.run_folder = checkpoint.run_of(found)
            rng = self._restore(found)
        if self.accelerator.is_main_process:
            self.run_folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write_text_atomic(self.run_folder / "config.yaml", self.resolved)
            versions = json.dumps(logs.versions(), indent=1)
            checkpoint.write_text_atomic(self.run_folder / "versions.json", versions)
        return rng

    def _restore(self, folder: Path) -> list[dict[str, Any]]:
        """Load the weights, counters, average and optimizer; remove later checkpoints and logs."""
        state.load_weights(self.model, folder)
        saved = state.read_state(folder, self.global_batch, int(self.accelerator.num_processes))
        self.progress.load_state(saved)
        self._saved_step = self.progress.step
        optimizers.check_name(self.config.optimizer, saved.get("optimizer_name", "adamw"))
        if self.average:
            self.average.load_state(saved.get("own", {}) or self.average.own())
        elif "own" in saved:
            raise InputError(
                "run.ema_decay is 0, but this run averages its weights; restore the old value"
            )
        if self.accelerator.is_main_process:
            step, best_step = self.progress.step, self.progress.best_step
            checkpoint.remove_checkpoints_after(self.run_folder, step)
            if best_step >= 0 and checkpoint.best_step(self.run_folder) != best_step:
                self._mark_best()
        self.accelerator.wait_for_everyone()
        self.stepper.load_state(saved["optimizer"])
        log.info("resuming at step %d from %s", self.progress.step, folder)
        rng: list[dict[str, Any]] = saved["rng"]
        return rng

    def save(self) -> None:
        """Save a checkpoint of the current step unless it is already saved.

        Raises:
            TrainingError: The checkpoint cannot be written; raised on every process.
        """
        if self._saved_step == self.progress.step:
            return
        facts = {
            **self.progress.state(),
            "optimizer": self.stepper.state(),
            "optimizer_name": optimizers.name_of(self.config.optimizer),
            "rng": state.all_rng_states(),
            "global_batch": self.global_batch,
        }
        if self.average:
            facts["own"] = self.average.own()
        failure = None
        if self.accelerator.is_main_process:
            try:
                with self.averaged_weights():
                    self._write(facts)
            except TrainingError as error:
                failure = str(error)
        failure = distributed.broadcast(failure)  # otherwise the other processes would wait forever
        if failure is not None:
            raise TrainingError(failure)
        self._saved_step = self.progress.step

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Context manager that swaps in the averaged weights; does nothing if there are none."""
        return self.average.used() if self.average else contextlib.nullcontext()

    def _write(self, facts: dict[str, Any]) -> None:
        versions = json.dumps(logs.versions(), indent=1)
        checkpoint.save_checkpoint(
            self.run_folder,
            self.progress.step,
            lambda folder: state.write_state(folder, self.model, facts, self.resolved, versions),
            **manifest_entry(self.model.trained_on),
        )
        if self.progress.best_step == self.progress.step:
            self._mark_best()
        checkpoint.remove_old_checkpoints(self.run_folder, self.config.keep_checkpoints)

    def _mark_best(self) -> None:
        progress = self.progress
        checkpoint.mark_best(
            self.run_folder, progress.best_step, self.config.best_metric, progress.best
        )
