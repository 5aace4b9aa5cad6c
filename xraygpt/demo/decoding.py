"""Decoding settings on the page."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from xraygpt.common.errors import InputError
from xraygpt.models.base import Generation

MAX_BEAMS = 8
AS_EVALUATED = "as evaluated"
"""Mode that uses the decoding settings of the configuration, which the model was measured with."""
FAST = "greedy"
"""Mode of a fast draft."""
MODES = (AS_EVALUATED, FAST, "sampling", "beam search")


@dataclass(frozen=True)
class DecodingSettings:
    """Decoding settings as entered on the page."""

    mode: str = AS_EVALUATED
    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    num_beams: int = 3
    max_new_tokens: int = 120
    seed: int = 0

    def _check(self) -> None:
        numbers = (self.temperature, self.top_p, self.repetition_penalty)
        if not all(map(math.isfinite, numbers)) or min(numbers) <= 0:
            raise ValueError("temperature, top-p and repetition penalty must be above 0")
        if not 0 <= int(self.seed or 0) < 2**63:
            raise ValueError("the seed must be between 0 and 2**63 - 1")
        if not 1 <= self.num_beams <= MAX_BEAMS:
            raise ValueError(f"the number of beams must be between 1 and {MAX_BEAMS}")

    def to_generation(self, evaluated: Generation) -> Generation:
        """Convert the settings to `Generation`.

        Args:
            evaluated: Decoding settings of the configuration.

        Raises:
            InputError: A value is out of range or contradicts another value.
        """
        try:
            tokens, seed = int(self.max_new_tokens), int(self.seed or 0)
            self._check()
            if self.mode == AS_EVALUATED:
                return replace(evaluated, max_new_tokens=tokens, seed=seed)
            common = Generation(
                max_new_tokens=tokens,
                repetition_penalty=float(self.repetition_penalty),
                no_repeat_ngram_size=evaluated.no_repeat_ngram_size,
                seed=seed,
            )
            if self.mode == "sampling":
                return replace(
                    common,
                    do_sample=True,
                    temperature=float(self.temperature),
                    top_p=float(self.top_p),
                )
            return replace(common, num_beams=int(self.num_beams) if "beam" in self.mode else 1)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"decoding: {error}") from None

    def describe(self, evaluated: Generation) -> str:
        """Describe the settings that differ from the defaults, for an export."""
        default = vars(Generation())
        values = vars(self.to_generation(evaluated))
        changed = [f"{k} {v}" for k, v in values.items() if v != default[k] and k != "seed"]
        return ", ".join([self.mode, *changed])
