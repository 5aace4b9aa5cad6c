"""Token prices from a file supplied by the user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xraygpt.common.errors import InputError


@dataclass(frozen=True)
class Price:
    """Price of a million tokens, in the user's currency."""

    input: float
    output: float
    batch_discount: float = 0.0
    """The fraction deducted for batches, from 0 to 1."""

    def cost(self, tokens_in: float, tokens_out: float, batch: bool = False) -> float:
        """Compute the cost of input and output tokens."""
        full = (self.input * tokens_in + self.output * tokens_out) / 1e6
        return full * (1 - self.batch_discount if batch else 1)


def load_price(path: Path, model: str) -> Price:
    """Load the price of a model from a YAML file with ``model: {input: …, output: …}``.

    Raises:
        InputError: The file or the model is missing, or a price is not a number of at least 0.
    """
    try:
        prices = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the prices in {path}: {error}") from None
    if not isinstance(prices, dict) or model not in prices:
        listed = ", ".join(map(str, prices)) if isinstance(prices, dict) else "nothing"
        raise InputError(f"{path} has no price for {model!r}; it lists {listed}")
    if not _is_price(prices[model]):
        raise InputError(
            f"{path}: {model} needs input and output, each a price per million tokens, and may "
            "have a batch_discount from 0 to 1"
        )
    return Price(**prices[model])


def _is_price(row: Any) -> bool:
    required, allowed = {"input", "output"}, {"input", "output", "batch_discount"}
    if not isinstance(row, dict) or not required <= set(row) <= allowed:
        return False
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in row.values()):
        return False
    return all(v >= 0 for v in row.values()) and row.get("batch_discount", 0) <= 1
