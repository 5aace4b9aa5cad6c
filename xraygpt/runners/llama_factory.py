"""The training loop with LLaMA-Factory's output files beside this project's."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.registry import registry
from xraygpt.models.capabilities import Exports, ExportSettings, require, supports
from xraygpt.processors.plain import PlainPixels
from xraygpt.runners.settings import RunSettings
from xraygpt.runners.train_loop import Runner

TRAINER_LOG = "trainer_log.jsonl"
RESULTS = ("train_results.json", "all_results.json")


@registry.register_runner("llama_factory")
class LlamaFactoryRunner(Runner):
    """Trains, and writes `trainer_log.jsonl`, results and the model into the run's parent folder.

    Each run has its own folder inside `output_dir`, with checkpoints that resume. At the end, the
    model is written to `output_dir` as a transformers folder, so that `model_name_or_path` of the
    next YAML file may name it.
    """

    @dataclass(kw_only=True)
    class Config(RunSettings):
        """Settings for the training loop."""

        export_model: bool = True
        """Write the trained model to `output_dir` at the end, with adapters merged."""

    config: Config

    def train(self) -> dict[str, float]:
        """Train to the last step; see `Runner.train`."""
        self._began = time.monotonic()
        self._first_step: int | None = None
        last = super().train()
        if self.accelerator.is_main_process:
            self._write_results(last)
            if self.config.export_model and supports(self.model, Exports):
                self._export()
        self.accelerator.wait_for_everyone()
        return last

    def log_row(self, step: int, values: dict[str, float]) -> None:
        """Add a row to metrics.jsonl and to trainer_log.jsonl."""
        super().log_row(step, values)
        if not self.accelerator.is_main_process:
            return
        row = self._trainer_row(step, values)
        path = Path(self.config.output_dir) / TRAINER_LOG
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _trainer_row(self, step: int, values: dict[str, float]) -> dict[str, Any]:
        first = self._first_step if self._first_step is not None else step - 1
        self._first_step = first
        elapsed = time.monotonic() - self._began
        per_step = elapsed / max(step - first, 1)
        names = {"train/loss": "loss", "val/loss": "eval_loss", "train/lr": "lr"}
        return {
            "current_steps": step,
            "total_steps": self.max_steps,
            **{new: values[old] for old, new in names.items() if old in values},
            "epoch": round(step / self.steps_per_epoch, 4),
            "percentage": round(100 * step / self.max_steps, 2),
            "elapsed_time": _clock(elapsed),
            "remaining_time": _clock(per_step * (self.max_steps - step)),
        }

    def _write_results(self, last: dict[str, float]) -> None:
        seconds = time.monotonic() - self._began
        steps = self.max_steps
        results = {
            "epoch": round(steps / self.steps_per_epoch, 4),
            "train_loss": self.mean_loss,
            "train_runtime": round(seconds, 4),
            "train_samples_per_second": round(steps * self.global_batch / seconds, 3),
            "train_steps_per_second": round(steps / seconds, 3),
        }
        if "val/loss" in last:
            results["eval_loss"] = last["val/loss"]
        for name in RESULTS:
            path = Path(self.config.output_dir) / name
            write_text_atomic(path, json.dumps(results, indent=4) + "\n")

    def _export(self) -> None:
        settings = ExportSettings(processor=PlainPixels(PlainPixels.Config()))
        require(self.model, Exports).export("transformers", Path(self.config.output_dir), settings)


def _clock(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
