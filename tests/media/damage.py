"""Random damage to image files."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from xraygpt.common.errors import ImageError
from xraygpt.media.pixels import read_image


def check_damaged_copies(path: Path, data: bytes, rng: random.Random, start: int) -> None:
    """Read 100 damaged copies: each must give an image in [0, 1] or an `ImageError`."""
    outcomes = {"image": 0, "error": 0}
    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 2, 20])):
            damaged[rng.randrange(start, len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            display = read_image(path).pixels
        except ImageError:
            outcomes["error"] += 1
            continue
        outcomes["image"] += 1
        assert display.dtype == np.float32
        assert 0 <= display.min() <= display.max() <= 1
    assert min(outcomes.values()) > 0, outcomes  # both outcomes occur
