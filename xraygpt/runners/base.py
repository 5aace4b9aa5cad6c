"""What every runner offers: train, evaluate, save, resume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xraygpt.common.registry import RUNNERS, Plugin, Registry
from xraygpt.tasks.base import BaseTask


class BaseRunner(Plugin):
    """Owns device, precision, distribution, RNG, checkpoints, logs; knows no corpus, no model."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """What the `run` section of every training YAML holds."""

        kind: ClassVar[Registry] = RUNNERS
        default_name: ClassVar[str] = "train_loop"  # when `run.runner` is not given

        task: BaseTask.Config
        """What to train for: a name, or `{name: …}` with the task's settings."""

    def train(self) -> dict[str, float]:
        """Run to the end; returns the last evaluation."""
        raise NotImplementedError
