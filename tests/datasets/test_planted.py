"""Drawn lesions: only in normal training images, and at the position in text and codes."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
from PIL import Image

from tests.conftest import write_toy_corpus
from xraygpt.common.config import load
from xraygpt.common.errors import DataError
from xraygpt.datasets.planted import _LUNG_FIELDS, SOURCE, plant_lesion
from xraygpt.experiment import Training
from xraygpt.processors.image import ImageSpec
from xraygpt.vocabulary.chest_labeller import label
from xraygpt.vocabulary.chest_mesh import findings_of

YAML = """
model: {arch: language_model}
datasets: {toy: {builder: planted_lesions, storage: %s, target: report, sections: [findings]%s}}
run: {task: language_modeling, max_steps: 1}
"""
SPEC = ImageSpec(image_size=32, mean=(0.5,), std=(0.5,), tokens_per_image=1)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A third of the studies is coded as normal; one of them is in the test split."""
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path / "cache"))
    folder = write_toy_corpus(tmp_path / "corpus", 24)
    path = folder / "corpus.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["codes"] = [["normal"], ["Cardiomegaly"], ["normal", "Opacity"]][i % 3]
        row["findings"] = row.pop("turns")[1]["text"]
    rows[0]["split"] = "test"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def build(corpus, settings=""):
    path = corpus.parent / "train.yaml"
    path.write_text(YAML % (corpus, settings))
    return load(Training, path).datasets["toy"].build(image_spec=SPEC)


def test_only_normal_training_studies_get_lesions(corpus):
    builder = build(corpus, ", copies: 2")
    train = builder.build("train")
    normal = {f"study{i}" for i in range(3, 24, 3) if i % 4 != 3}
    assert {r.study_id for r in train.records} == normal and len(train) == 2 * len(normal)
    assert len(builder.build("val")) == len(builder.build("test")) == 0
    assert train[0]["media"][0].data.shape in ((1, 32, 32), (3, 32, 32))


def test_text_codes_and_source_describe_the_lesion(corpus):
    train = build(corpus, ", copies: 2").build("train")
    findings: set[str] = set()
    for i, record in enumerate(train.records):
        (finding,) = findings_of(record.meta["codes"])
        findings.add(finding)
        name = {"calcified_granuloma": "calcified granuloma", "lung_lesion": "nodule"}[finding]
        assert record.meta["source"] == SOURCE.format(name=name)
        text = train.get_turns(i)[1]["text"]
        assert label(text)[finding] == "positive"
        side = record.meta["codes"][0].rpartition("/")[2]
        assert f"in the {side} " in text
        with Image.open(record.media[0].path) as image:
            assert image.text["Source"] == SOURCE.format(name=name)
    assert findings == {"calcified_granuloma", "lung_lesion"}
    nodules = build(corpus, ", kinds: [nodule]").build("train")
    assert {c for r in nodules.records for c in findings_of(r.meta["codes"])} == {"lung_lesion"}


def test_copies_are_drawn_once(corpus):
    first = build(corpus).build("train").records[0].media[0].path
    before = first.read_bytes(), first.stat().st_mtime_ns
    again = build(corpus).build("train").records[0].media[0].path
    assert (again.read_bytes(), again.stat().st_mtime_ns) == before and again == first
    other = build(corpus, ", planted_seed: 1").build("train").records[0].media[0].path
    assert other.read_bytes() != before[0]


def test_granulomas_are_small_bright_and_in_the_named_lung_field():
    rng = np.random.default_rng(0)
    grey = (0.3 + 0.02 * rng.standard_normal((256, 220))).clip(0, 1).astype(np.float32)
    positions = set()
    for seed in range(60):
        image, side, lobe = plant_lesion(grey, Random(seed))
        change = image / 255 - grey
        spot = change > 0.05
        positions.add((side, lobe))
        assert 2 <= spot.sum() < 150 and change[~spot].min() > -0.01
        y, x = (c.mean() / n for c, n in zip(np.nonzero(spot), grey.shape, strict=True))
        x0, x1, y0, y1 = _LUNG_FIELDS[side, lobe]
        assert x0 - 0.06 < x < x1 + 0.06 and y0 - 0.06 < y < y1 + 0.06
        from_colour, *_ = plant_lesion(np.stack([grey] * 3, axis=-1), Random(seed))
        assert np.array_equal(from_colour, image)
    assert positions == set(_LUNG_FIELDS)


def test_nodules_are_larger_softer_and_fainter():
    grey = np.full((256, 256), 0.3, np.float32)
    areas, peaks, steps = [], [], []
    for seed in range(40):
        change = plant_lesion(grey, Random(seed), "nodule")[0] / 255 - grey
        areas.append((change > 0.02).sum())
        peaks.append(change.max())
        steps.append(np.abs(np.diff(change, axis=1)).max() / change.max())
    assert min(areas) > 20 and max(areas) < 700
    assert min(peaks) > 0.05 and max(peaks) < 0.25
    sharp = plant_lesion(grey, Random(0))[0] / 255 - grey
    assert np.median(steps) < 0.5 * np.abs(np.diff(sharp, axis=1)).max() / sharp.max()


def test_a_corpus_without_normal_studies_is_an_error(corpus):
    path = corpus / "corpus.jsonl"
    path.write_text(path.read_text().replace('"normal"', '"Edema"'))
    with pytest.raises(DataError, match="coded only as normal"):
        build(corpus).build("train")
