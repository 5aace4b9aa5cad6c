"""What a run will take, before it takes it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xraygpt.curation.client import CHARACTERS_PER_TOKEN, estimate
from xraygpt.curation.engine import PICTURE_TOKENS, Item
from xraygpt.curation.ledger import DONE, NAME
from xraygpt.curation.pipeline import Rewriting


@dataclass(frozen=True)
class Estimate:
    """Tokens, time and money of the rows that are left.

    Attributes:
        rows: Left to ask.
        sample: Rows whose tokens were counted.
        read: Mean and 95th percentile of tokens read by the model, a row.
        written: Mean and 95th percentile of tokens it writes, a row.
        measured: Rows answered before, whose usage the endpoint counted; 0: all is estimated.
        minutes: At the given limits a minute; None without any.
        money: In the price file's currency; None without one.
    """

    rows: int
    sample: int
    read: tuple[float, float]
    written: tuple[float, float]
    measured: int
    minutes: float | None
    money: float | None

    @property
    def total(self) -> tuple[float, float]:
        """Tokens read and written in all."""
        return self.read[0] * self.rows, self.written[0] * self.rows

    def __str__(self) -> str:
        basis = (
            f"as the endpoint counted {self.measured} rows"
            if self.measured
            else f"estimated on {self.sample} rows, {CHARACTERS_PER_TOKEN:g} characters a token"
        )
        lines = [
            f"{self.rows} rows to ask, nothing was sent; tokens {basis}:",
            f"  read     {self.read[0]:8.0f} a row, 95 % below {self.read[1]:.0f}, "
            f"{self.total[0]:,.0f} in all",
            f"  written  {self.written[0]:8.0f} a row, 95 % below {self.written[1]:.0f}, "
            f"{self.total[1]:,.0f} in all",
        ]
        if self.minutes is None:
            lines.append("  time     not known: give --rpm or --tpm")
        else:
            lines.append(f"  time     {self.minutes:8.1f} minutes at these limits")
        if self.money is None:
            lines.append("  money    not known: give --prices")
        else:
            lines.append(f"  money    {self.money:8.2f} by the price file")
        return "\n".join(lines)


def estimate_run(
    items: Sequence[Item], how: Rewriting, out: Path, sample: int, seed: int = 0
) -> Estimate:
    """Count a sample of what is left to ask; no call is made.

    Args:
        items: All of the corpus.
        how: With its limits and price.
        out: The folder; where its ledger has answers, their usage is taken.
        sample: Most rows to count.
        seed: Of the sample.
    """
    done = _answered(out)
    left = [item for item in items if item.key not in done]
    drawn = random.Random(seed).sample(left, min(sample, len(left)))
    read, written = [], []
    per_token, beside = how.task.guess
    for item in drawn:
        messages = [{"content": how.prompt.system}, {"content": how.prompt.ask(item.sections)}]
        pictures = PICTURE_TOKENS if item.picture else 0
        read.append(estimate(messages, 0) + pictures)
        source = len(item.source) / CHARACTERS_PER_TOKEN
        written.append(min(per_token * source + beside, how.task.output_tokens))
    measured = [done[item.key] for item in items if item.key in done]
    if len(measured) >= 20:
        read, written = [r for r, _ in measured], [w for _, w in measured]
    elif not drawn:
        read, written = [0], [0]
    total_in, total_out = float(np.mean(read)) * len(left), float(np.mean(written)) * len(left)
    limits = how.limits
    rates = [
        n / limit
        for n, limit in ((len(left), limits.rpm), (total_in + total_out, limits.tpm))
        if limit
    ]
    return Estimate(
        len(left),
        len(drawn),
        (float(np.mean(read)), float(np.percentile(read, 95))),
        (float(np.mean(written)), float(np.percentile(written, 95))),
        len(measured) if len(measured) >= 20 else 0,
        max(rates) if rates else None,
        how.price.of(total_in, total_out, how.batch) if how.price else None,
    )


def _answered(out: Path) -> dict[str, tuple[int, int]]:
    """Key -> tokens read and written of rows a ledger holds; opened for reading alone."""
    if not (out / NAME).is_file():
        return {}
    try:
        with sqlite3.connect(f"file:{out / NAME}?mode=ro", uri=True) as db:
            asked = "SELECT key, tokens_in, tokens_out FROM rows WHERE state=?"
            return {key: (read, wrote) for key, read, wrote in db.execute(asked, (DONE,))}
    except sqlite3.DatabaseError:
        return {}
