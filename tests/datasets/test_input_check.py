"""The check whether an image looks like a chest radiograph that a model reads."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPO
from xraygpt.datasets.input_check import (
    TEMPLATES,
    InputCheck,
    chest_correlation,
    input_warnings,
    study_warnings,
)
from xraygpt.demo.examples import draw_examples
from xraygpt.media.base import MediaRef, read_media_file
from xraygpt.media.pixels import read_image
from xraygpt.phantom.render import Study, View, render

LATERAL = "It looks like a lateral view, but this model reads frontal views only."
NOT_A_CHEST = "It does not look like a chest radiograph."


def phantom(view: View, size: int = 160) -> np.ndarray:
    """A SYNTHETIC chest as display values."""
    return (render(Study("check", [], seed=3), view, size).pixels / 255).astype(np.float32)


def test_a_chest_passes_and_its_negative_and_noise_do_not():
    chest = phantom("frontal")
    assert input_warnings(chest, {}) == []
    assert input_warnings(chest**2.2, {}) == []  # ranks do not depend on gamma
    assert "negative" in input_warnings(1 - chest, {})[0]
    noise = np.random.default_rng(0).random((160, 160)).astype(np.float32)
    assert input_warnings(noise, {}) == [NOT_A_CHEST]


@pytest.mark.parametrize("turns", [1, 3])
def test_a_turned_chest_is_recognised_as_such(turns: int):
    assert "turned" in input_warnings(np.rot90(phantom("frontal"), turns), {})[0]


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_blank_image_gets_one_warning(level: float):
    blank = np.full((200, 200), level, np.float32)
    assert input_warnings(blank, {}) == ["It is blank: all parts of it are equally bright."]


def test_a_lateral_view_is_refused_only_by_a_model_of_frontals():
    lateral, frontal = phantom("lateral"), phantom("frontal")
    for views in (("frontal",), ("PA", "AP")):
        assert input_warnings(lateral, {}, views) == [LATERAL]
        assert input_warnings(frontal, {}, views) == []
    for views in ((), ("frontal", "lateral"), ("A4C",)):
        assert input_warnings(lateral, {}, views) == []


def test_the_header_decides_on_the_view():
    frontal, lateral = phantom("frontal"), phantom("lateral")
    assert input_warnings(frontal, {"view_position": "LL"}, ("frontal",)) == [LATERAL]
    assert input_warnings(lateral, {"view_position": "PA"}, ("frontal",)) == []


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"modality": "CT"}, "The file says it is computed tomography (CT)."),
        ({"modality": "DX"}, ""),
        ({"body_part": "KNEE"}, "The file says it shows knee."),
        ({"body_part": "CHEST"}, ""),
        ({"presentation_intent": "FOR PROCESSING"}, "marked FOR PROCESSING"),
        ({"presentation_intent": "FOR PRESENTATION"}, ""),
    ],
)
def test_the_header_is_checked(meta: dict[str, str], expected: str):
    warnings = input_warnings(phantom("frontal"), meta)
    assert warnings == [] if not expected else expected in warnings[0]


def test_colour_and_tiny_images():
    grey = phantom("frontal")
    assert input_warnings(np.stack([grey] * 3, -1), {}) == []
    tinted = np.stack([grey, grey * 0.5, grey * 0.2], -1)
    assert input_warnings(tinted, {}) == ["It is in colour, but radiographs are grey."]
    assert input_warnings(grey[:100], {})[0] == "It has only 160 × 100 pixels."


def test_a_jpeg_decoded_at_a_fraction_of_its_size_is_not_called_tiny(tmp_path):
    pixels = (phantom("frontal", 512) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    media = read_media_file(MediaRef(tmp_path / "a.jpg"), min_side=64)
    assert media.data.shape == (64, 64) and InputCheck()(media) == ()
    Image.fromarray(pixels[::8, ::8]).save(tmp_path / "tiny.jpg")
    tiny = read_media_file(MediaRef(tmp_path / "tiny.jpg"), min_side=32)
    assert InputCheck()(tiny)[0] == "It has only 64 × 64 pixels."


def test_for_processing_is_read_from_the_file(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    source = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    source.Modality, source.PresentationIntentType = "DX", "FOR PROCESSING"
    source.save_as(tmp_path / "raw.dcm")
    warnings = InputCheck()(read_media_file(MediaRef(tmp_path / "raw.dcm")))
    assert "FOR PROCESSING" in warnings[0]


def test_the_warnings_about_several_images_say_which_one():
    assert study_warnings([["a."]]) == ["a."]
    assert study_warnings([[], ["a.", "b."]]) == ["Image 2: a.", "Image 2: b."]


def test_clips_and_embeddings_are_not_checked(tmp_path):
    np.save(tmp_path / "features.npy", np.zeros((4, 8), np.float32))
    assert InputCheck()(read_media_file(MediaRef(tmp_path / "features.npy"))) == ()


@pytest.mark.slow
def test_the_stored_templates_are_those_of_the_script():
    file = REPO / "tools" / "chest_templates.py"
    spec = importlib.util.spec_from_file_location("chest_templates", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stored = np.load(REPO / "xraygpt" / "data" / TEMPLATES)
    np.testing.assert_allclose(stored, module.compute_templates(), atol=2e-3)


@pytest.mark.slow
def test_example_phantoms_pass(tmp_path):
    for path, caption in draw_examples(tmp_path / "examples"):
        pixels = read_image(path).pixels
        assert "SYNTHETIC" in caption and input_warnings(pixels, {}) == []
        assert Image.open(path).info["Source"].startswith("SYNTHETIC")


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
        return float(np.mean([bool(input_warnings(i.pixels, i.meta, ["PA"])) for i in opened]))

    images = real_data / "iu_xray"
    paths = [images / n if (images / n).exists() else images / "images" / n for n in chests]
    assert rate(paths) < 0.06
    assert rate([real_data / "vqa_rad/images" / n for n in others]) > 0.85
    turned = [np.rot90(read_image(p).pixels) for p in paths]
    called = [input_warnings(p, {}) for p in turned]
    assert np.mean(["turned" in " ".join(w) for w in called]) > 0.7
    assert (
        chest_correlation(turned[0])["frontal"]
        < chest_correlation(np.rot90(turned[0], 3))["frontal"]
    )
