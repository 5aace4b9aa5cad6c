"""The check whether an image looks like a chest radiograph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xraygpt.demo.examples import draw_examples
from xraygpt.demo.input_check import input_warnings
from xraygpt.media.pixels import read_image


@pytest.mark.slow
def test_phantoms_pass_and_negatives_and_noise_do_not(tmp_path):
    for path, caption in draw_examples(tmp_path / "examples"):
        pixels = read_image(path).pixels
        assert "SYNTHETIC" in caption and input_warnings(pixels, {}) == []
        assert "negative" in input_warnings(1 - pixels, {})[0]
        assert Image.open(path).info["Source"].startswith("SYNTHETIC")
    noise = np.random.default_rng(0).random((80, 80)).astype(np.float32)
    assert input_warnings(noise, {}) == ["It does not look like a chest radiograph."]


@pytest.mark.slow
@pytest.mark.data
def test_real_images(real_data):
    """On part of the training split; docs/demo.md has the full measurement."""
    rows = [json.loads(line) for line in (real_data / "iu_xray/reports.jsonl").open()]
    chests = [r["image"] for r in rows if r["split"] == "train"][:60]
    organs = {
        r["image_name"]: r["image_organ"]
        for r in json.loads((real_data / "vqa_rad/trainset.json").read_text())
    }
    others = [n for n, organ in organs.items() if organ in ("HEAD", "ABD")][:60]

    def rate(paths: list[Path]) -> float:
        opened = [read_image(p) for p in paths]
        return float(np.mean([bool(input_warnings(i.pixels, i.meta)) for i in opened]))

    images = real_data / "iu_xray"
    assert (
        rate([images / n if (images / n).exists() else images / "images" / n for n in chests])
        < 0.06
    )
    assert rate([real_data / "vqa_rad/images" / n for n in others]) > 0.85
