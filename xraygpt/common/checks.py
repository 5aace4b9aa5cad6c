"""Validation of settings: all problems in a Config are reported together, each by field."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from types import TracebackType
from typing import Any

from xraygpt.common.errors import InputError


@dataclass(frozen=True)
class Problem:
    """One invalid field.

    Attributes:
        field: The field's name, or a dotted path into it, such as ``thresholds.edema``.
        message: What is required and what was given, without the field's name.
        others: Further fields whose values the check depended on.
    """

    field: str
    message: str
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class SettingsError(InputError):
    """All problems in one Config, one per line; also a `ValueError`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)

    def as_options(self) -> str:
        """Return the problems as messages about command-line options: ``--min-words: …``."""
        renamed = (replace(p, field=f"--{p.field.replace('_', '-')}") for p in self.problems)
        return "\n".join(map(str, renamed))


class Checks:
    """Collects problems in a `with` block and raises all of them at its end.

    For the `__post_init__` of a dataclass::

        with Checks(self) as check:
            check.include(super().__post_init__)
            check.at_least(1, "copies")
            check.refuse(self.copies > len(self.kinds), "copies", "must …", "kinds")

    Args:
        config: The settings object to check.

    Raises:
        SettingsError: There were problems; raised at the end of the block.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.problems: list[Problem] = []

    def __enter__(self) -> Checks:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.problems:
            raise SettingsError(self.problems)

    def refuse(self, wrong: Any, field: str, message: str, *others: str) -> None:
        """Add a problem if `wrong` is true; the other arguments are the fields of `Problem`."""
        if wrong:
            self.problems.append(Problem(field, message, others))

    def include(self, rules: Callable[[], Any], **renamed: str) -> None:
        """Add the problems from the `SettingsError` that `rules` raises, if any.

        Args:
            rules: An inherited `__post_init__`, or a function that builds another Config.
            renamed: Field names used by `rules` -> field names of this Config.
        """
        try:
            rules()
        except SettingsError as error:
            for problem in error.problems:
                field = renamed.get(problem.field, problem.field)
                others = tuple(renamed.get(o, o) for o in problem.others)
                self.problems.append(replace(problem, field=field, others=others))

    def needs(self, flag: str, *fields: str, why: str, key: str | None = None) -> None:
        """Require ``flag: true`` for each of `fields` that is set (neither None nor false).

        Args:
            flag: A boolean field.
            fields: The fields that require the flag.
            why: Appended to the message.
            key: Name of the flag in the message; None uses `flag`.
        """
        for field in fields:
            missing = self._value(field) and not self._value(flag)
            self.refuse(missing, field, f"needs {key or flag}: true; {why}", flag)

    def at_least(self, low: float, *fields: str) -> None:
        """Require finite numbers of at least `low`; None is accepted."""
        self._check_values(fields, lambda v: low <= v < math.inf, f"must be at least {low}")

    def above(self, low: float, *fields: str) -> None:
        """Require finite numbers above `low`; None is accepted."""
        self._check_values(fields, lambda v: low < v < math.inf, f"must be above {low}")

    def fraction(self, *fields: str) -> None:
        """Require numbers in [0, 1]; None is accepted."""
        self._check_values(fields, lambda v: 0 <= v <= 1, "must be in [0, 1]")

    def fraction_below_one(self, *fields: str) -> None:
        """Require numbers in [0, 1); None is accepted."""
        self._check_values(fields, lambda v: 0 <= v < 1, "must be in [0, 1)")

    def _value(self, field: str) -> Any:
        return attrgetter(field)(self.config)

    def _check_values(
        self, fields: Sequence[str], is_valid: Callable[[Any], bool], rule: str
    ) -> None:
        for field in fields:
            value = self._value(field)
            finite = " and finite" if value == math.inf else ""
            wrong = value is not None and not is_valid(value)
            self.refuse(wrong, field, f"{rule}{finite}, got {value}")
