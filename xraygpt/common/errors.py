"""The errors a user can cause. An entry point prints their message and exits with `exit_code`."""

from __future__ import annotations


class XrayGPTError(Exception):
    """Base of every error that names a user's mistake and its remedy; printed without a traceback.

    Attributes:
        exit_code: 0 done, 1 failed, 2 configuration or input, 143 stopped by SIGTERM after saving.
    """

    exit_code = 1


class InputError(XrayGPTError, ValueError):
    """Configuration, data or weights that cannot be used as given."""

    exit_code = 2


class ConfigError(InputError):
    """Every problem found in one YAML file, one per line."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{count} in {source}", *(f"  {p}" for p in problems)]))


class DataError(InputError):
    """A corpus file, a record or an image that cannot be used; says which and how to mend it."""


class ImageError(DataError):
    """An image file that cannot be used: the message says which, why, and what to do."""


class WeightsError(InputError):
    """A checkpoint that is absent, damaged or of other shapes than the model."""


class TrainingError(XrayGPTError):
    """A run that cannot go on: loss not finite, disk full while saving."""


class Stopped(XrayGPTError):
    """SIGTERM or SIGINT arrived; the state was saved first."""

    exit_code = 143


def without_path(error: Exception, path: object, name: str = "the image") -> str:
    """A message for somebody who did not name that file."""
    return str(error).replace(f"{path}: ", f"{name}: ").replace(str(path), name)
