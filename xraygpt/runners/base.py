"""The interface of runners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xraygpt.common.registry import RUNNERS, Plugin, Registry
from xraygpt.tasks.base import BaseTask


class BaseRunner(Plugin):
    """Manages the device, precision, distribution, random state, checkpoints and logs."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """The settings in the `run` section of every training YAML file."""

        kind: ClassVar[Registry] = RUNNERS
        default_name: ClassVar[str] = "train_loop"  # used if `run.runner` is not given

        task: BaseTask.Config
        """The task: a name, or `{name: …}` with the task's settings."""

    def train(self) -> dict[str, float]:
        """Train to the end and return the results of the last validation."""
        raise NotImplementedError
