"""Checks of settings: everything that is wrong with a Config is said at once, each by its field."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from xraygpt.common.errors import InputError


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field.

    Attributes:
        field: Its name, or a dotted path into it, such as ``thresholds.edema``.
        message: What it must be, and what it is; the field is not named again.
        others: Fields whose values the check looked at, too.
    """

    field: str
    message: str
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class SettingsError(InputError):
    """All problems of one Config, one per line; a `ValueError`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)

    def as_options(self) -> str:
        """The problems in the words of a command line: ``--min-words: …``."""
        named = (replace(p, field=f"--{p.field.replace('_', '-')}") for p in self.problems)
        return "\n".join(map(str, named))


class Checks:
    """Collects problems in a `with` block and raises them all when it ends.

    For `__post_init__` of a dataclass::

        with Checks(self) as check:
            check.also(super().__post_init__)
            check.at_least(1, "copies")
            check.refuse(self.copies > len(self.kinds), "copies", "must …", "kinds")

    Args:
        config: Whose fields are checked.

    Raises:
        SettingsError: When the block ends and something is wrong.
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
        """Note a problem if `wrong` is true; the other arguments as in `Problem`."""
        if wrong:
            self.problems.append(Problem(field, message, others))

    def also(self, rules: Callable[[], Any], **renamed: str) -> None:
        """Take over the problems that `rules` raises.

        Args:
            rules: An inherited `__post_init__`, or what builds another Config from this one.
            renamed: Names here of fields that have other names there.
        """
        try:
            rules()
        except SettingsError as error:
            for one in error.problems:
                field, others = renamed.get(one.field, one.field), one.others
                others = tuple(renamed.get(o, o) for o in others)
                self.problems.append(replace(one, field=field, others=others))

    def needs(self, flag: str, *fields: str, why: str) -> None:
        """Each of `fields` that is set (not None, not false) needs ``flag: true``."""
        for field in fields:
            missing = getattr(self.config, field) and not getattr(self.config, flag)
            self.refuse(missing, field, f"needs {flag}: true; {why}", flag)

    def at_least(self, low: float, *fields: str) -> None:
        """Numbers are finite and `low` or more; None passes."""
        self._each(fields, lambda v: low <= v < math.inf, f"must be at least {low}")

    def above(self, low: float, *fields: str) -> None:
        """Numbers are finite and above `low`; None passes."""
        self._each(fields, lambda v: low < v < math.inf, f"must be above {low}")

    def share(self, *fields: str) -> None:
        """Numbers lie in [0, 1]; None passes."""
        self._each(fields, lambda v: 0 <= v <= 1, "must lie in [0, 1]")

    def share_below_one(self, *fields: str) -> None:
        """Numbers lie in [0, 1); None passes."""
        self._each(fields, lambda v: 0 <= v < 1, "must lie in [0, 1)")

    def _each(self, fields: Sequence[str], right: Callable[[Any], bool], rule: str) -> None:
        for field in fields:
            value = getattr(self.config, field)
            finite = " and finite" if value == math.inf else ""
            wrong = value is not None and not right(value)
            self.refuse(wrong, field, f"{rule}{finite}, got {value}")
