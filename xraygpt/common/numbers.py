"""Numbers as text, in the same form in tables, on pages and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def decimal(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """Format a number with a fixed number of decimals; a value that rounds to 0 has no minus sign.

    Args:
        value: The number; NaN and infinity are written as ``nan`` and ``inf``.
        digits: Number of decimals.
        signed: Whether positive numbers, and 0, get a plus sign.
    """
    return f"{float(value):{'+' if signed else ''}z.{digits}f}"


def interval(row: Mapping[str, Any], digits: int = 3, *, signed: bool = False) -> str:
    """Format the limits of an interval: ``0.177 to 0.259``.

    Args:
        row: The numbers `low` and `high`.
        digits: Number of decimals.
        signed: See `decimal`.
    """
    low, high = (decimal(row[key], digits, signed=signed) for key in ("low", "high"))
    return f"{low} to {high}"


def with_interval(row: Mapping[str, Any], digits: int = 3, *, signed: bool = False) -> str:
    """Format a value and its interval: ``0.219 (0.177 to 0.259)``.

    Args:
        row: The numbers `value`, `low` and `high`.
        digits: Number of decimals.
        signed: See `decimal`.
    """
    value = decimal(row["value"], digits, signed=signed)
    return f"{value} ({interval(row, digits, signed=signed)})"
