"""A plug-in: a model that reads the number of a SYNTHETIC echo report off its embedding."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tests.plugins.prefix_plugin import PrefixPlugin
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.models.base import Bonus, Generation
from xraygpt.phantom.echo_reports import synthetic_report


@registry.register_model("echo_writer")
class EchoWriter(PrefixPlugin):
    """Writes the report whose number is the embedding's first value; samples are often wrong."""

    @dataclass(kw_only=True)
    class Config(PrefixPlugin.Config):
        """Settings of the decoder, which only computes the loss."""

    def generate(
        self, batch: Batch, generation: Generation, bonus: Bonus | None = None
    ) -> list[str]:
        rows: Any = batch["media_inputs"]["rows"]
        starts = [sum(r.length for r in batch["runs"][:i]) for i in range(len(batch["runs"]))]
        texts = []
        for start in starts:
            number = round(float(rows[start, 0]))
            rng = random.Random(f"{number} {generation.seed}")
            wrong = rng.random() < (0.4 if generation.do_sample else 0.15)
            texts.append(synthetic_report(number + 1000 * rng.randrange(1, 9) * wrong)[0])
        return texts
