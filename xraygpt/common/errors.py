"""Errors that a user can cause; entry points print the message and exit with `exit_code`."""

from __future__ import annotations


class XrayGPTError(Exception):
    """Base class of errors that explain a user's mistake and its fix; printed without a traceback.

    Attributes:
        exit_code: 1 for a failure, 2 for invalid configuration or input, 143 for a run that was
            stopped by SIGTERM after saving.
    """

    exit_code = 1


class InputError(XrayGPTError, ValueError):
    """Configuration, data or weights that cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """All problems found in one YAML file, one per line."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{count} in {source}", *(f"  {p}" for p in problems)]))


class DataError(InputError):
    """A corpus file, record or image that cannot be used; the message says how to fix it."""


class ImageError(DataError):
    """An image file that cannot be used; the message names it, the reason and the fix."""


class WeightsError(InputError):
    """A checkpoint that is missing or damaged, or whose shapes differ from the model's."""


class TrainingError(XrayGPTError):
    """A run that cannot continue, e.g. because the loss is not finite or the disk is full."""


class Stopped(XrayGPTError):
    """A run that was stopped by SIGTERM or SIGINT after it saved its state."""

    exit_code = 143


def without_path(error: Exception, path: object, name: str = "the image") -> str:
    """Return the message with `path` replaced by `name`, for users who did not choose the path."""
    return str(error).replace(f"{path}: ", f"{name}: ").replace(str(path), name)
