"""Errors that a user can cause; entry points print the message and exit with `exit_code`."""

from __future__ import annotations


class XrayGPTError(Exception):
    """Base of errors that name a user's mistake and its fix; printed without a traceback.

    Attributes:
        exit_code: 1 failure, 2 configuration or input, 143 stopped by SIGTERM after saving.
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
    """A checkpoint that is missing, damaged or has other shapes than the model."""


class TrainingError(XrayGPTError):
    """A run that cannot continue: loss not finite, disk full while saving."""


class Stopped(XrayGPTError):
    """The run was stopped by SIGTERM or SIGINT, after saving its state."""

    exit_code = 143


def without_path(error: Exception, path: object, name: str = "the image") -> str:
    """The error's message with `path` replaced by `name`, for users who did not choose the path."""
    return str(error).replace(f"{path}: ", f"{name}: ").replace(str(path), name)
