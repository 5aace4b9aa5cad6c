"""An estimate of tokens, time and cost before a run."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xraygpt.curation.llm.completions import CHARACTERS_PER_TOKEN, estimate_tokens
from xraygpt.curation.llm.items import PICTURE_TOKENS, Item
from xraygpt.curation.llm.ledger import LEDGER_FILE
from xraygpt.curation.llm.ledger_rows import DONE
from xraygpt.curation.llm.limits import Limits
from xraygpt.curation.llm.settings import RewriteSettings

_MIN_MEASURED = 20  # answered rows needed before their reported usage replaces the estimate
_Usage = tuple[int | float, int | float]  # the input and output tokens of one row


@dataclass(frozen=True)
class CostEstimate:
    """Tokens, time and cost for the remaining rows.

    Attributes:
        rows: Number of rows to process.
        sample: Number of rows whose tokens were estimated.
        tokens_in: Mean and 95th percentile of the input tokens per row.
        tokens_out: Mean and 95th percentile of the output tokens per row.
        measured: Number of answered rows whose reported usage is the basis; 0 if it is estimated.
        minutes: Duration at the limits per minute; None without limits.
        cost: Cost in the currency of the price file; None without a price file.
    """

    rows: int
    sample: int
    tokens_in: tuple[float, float]
    tokens_out: tuple[float, float]
    measured: int
    minutes: float | None
    cost: float | None

    def __str__(self) -> str:
        basis = (
            f"as the endpoint reported for {self.measured} rows"
            if self.measured
            else f"estimated from {self.sample} rows, {CHARACTERS_PER_TOKEN:g} characters per token"
        )
        lines = [f"{self.rows} rows to process, nothing was sent; tokens {basis}:"]
        for label, (mean, high) in (("read", self.tokens_in), ("written", self.tokens_out)):
            lines.append(
                f"  {label:<8} {mean:8.0f} per row, 95 % below {high:.0f}, "
                f"{mean * self.rows:,.0f} in total"
            )
        if self.minutes is None:
            lines.append("  time     unknown: pass --rpm or --tpm")
        else:
            lines.append(f"  time     {self.minutes:8.1f} minutes at these limits")
        if self.cost is None:
            lines.append("  cost     unknown: pass --prices")
        else:
            lines.append(f"  cost     {self.cost:8.2f} by the price file")
        return "\n".join(lines)


def estimate_run(
    items: Sequence[Item], settings: RewriteSettings, out: Path, sample: int, seed: int = 0
) -> CostEstimate:
    """Estimate the cost of the remaining items from a sample, without any call.

    Args:
        items: All items in the corpus.
        settings: The language model, with its limits and price.
        out: The output folder; if its ledger has enough answers, their usage is used instead.
        sample: Maximum number of rows to estimate.
        seed: Seed for the sample.
    """
    answered = _answered_rows(out)
    remaining = [item for item in items if item.key not in answered]
    sampled = random.Random(seed).sample(remaining, min(sample, len(remaining)))
    usage: list[_Usage] = [answered[item.key] for item in items if item.key in answered]
    measured = len(usage) if len(usage) >= _MIN_MEASURED else 0
    if not measured:
        usage = [_estimate_row(item, settings) for item in sampled] or [(0, 0)]
    tokens_in, tokens_out = (_mean_and_percentile([row[i] for row in usage]) for i in (0, 1))
    total_in, total_out = tokens_in[0] * len(remaining), tokens_out[0] * len(remaining)
    price = settings.price
    return CostEstimate(
        len(remaining),
        len(sampled),
        tokens_in,
        tokens_out,
        measured,
        _minutes(len(remaining), total_in + total_out, settings.limits),
        price.cost(total_in, total_out, settings.batch) if price else None,
    )


def _mean_and_percentile(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.percentile(values, 95))


def _minutes(requests: int, tokens: float, limits: Limits) -> float | None:
    """Compute the duration at the stricter of the two limits, or None without limits."""
    amounts = ((requests, limits.rpm), (tokens, limits.tpm))
    return max((amount / limit for amount, limit in amounts if limit), default=None)


def _estimate_row(item: Item, settings: RewriteSettings) -> _Usage:
    prompt, task = settings.prompt, settings.task
    messages = [{"content": prompt.system}, {"content": prompt.render_user(item.sections)}]
    tokens_in = estimate_tokens(messages, 0) + (PICTURE_TOKENS if item.picture else 0)
    per_token, constant = task.expected_length
    source_tokens = len(item.source) / CHARACTERS_PER_TOKEN
    return tokens_in, min(per_token * source_tokens + constant, task.output_tokens)


def _answered_rows(out: Path) -> dict[str, tuple[int, int]]:
    """Return the input and output tokens of answered rows by key; the ledger is only read."""
    if not (out / LEDGER_FILE).is_file():
        return {}
    try:
        with sqlite3.connect(f"file:{out / LEDGER_FILE}?mode=ro", uri=True) as db:
            query = "SELECT key, tokens_in, tokens_out FROM rows WHERE state=?"
            return {key: (read, wrote) for key, read, wrote in db.execute(query, (DONE,))}
    except sqlite3.DatabaseError:
        return {}
