"""Write the average phantoms of the input check: python tools/chest_templates.py.

A test checks that the stored file equals what this script computes.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np

from xraygpt.datasets.input_check import TEMPLATE_VIEWS, TEMPLATES, brightness_ranks
from xraygpt.phantom.design import sample_balanced_findings
from xraygpt.phantom.render import Study, render

NUM_PHANTOMS = 24


def compute_templates() -> np.ndarray:
    """Compute the mean brightness ranks of SYNTHETIC chests, (2, 1024) float16 of length 1."""
    rng = Random("gate")
    studies = [
        Study(f"gate-{i}", sample_balanced_findings(rng), seed=5) for i in range(NUM_PHANTOMS)
    ]
    means = [
        np.mean([brightness_ranks(render(s, view, 128).pixels / 255) for s in studies], axis=0)
        for view in TEMPLATE_VIEWS
    ]
    return np.stack([mean / np.linalg.norm(mean) for mean in means]).astype(np.float16)


if __name__ == "__main__":
    folder = Path(__file__).resolve().parent.parent / "xraygpt" / "data"
    np.save(folder / TEMPLATES, compute_templates())
