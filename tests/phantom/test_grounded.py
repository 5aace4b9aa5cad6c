"""Grounded phantoms: boxes agree with what is drawn, and positions must be read from the image."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from random import Random

import numpy as np
import pytest

from tests.instructions.trees import read
from xraygpt.common.checks import SettingsError
from xraygpt.common.errors import DataError
from xraygpt.instructions.collections.phantom import Phantoms
from xraygpt.media.geometry import MIRRORED, Geometry, crop_geometry
from xraygpt.phantom.corpus import Recipe, write_corpus
from xraygpt.phantom.findings import KINDS, Finding
from xraygpt.phantom.grounded import GroundedRecipe, draw_grounded, resample
from xraygpt.phantom.regions import region_boxes
from xraygpt.phantom.render import Study, draw_scene

WHOLE = Geometry()
RECIPE = GroundedRecipe(studies=40, seed=3, size=64)


def overlap(first, second) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
    return shared / (sum(areas) - shared)


def draw(findings=(), view=WHOLE, name="s1", size=96):
    return draw_grounded(Study(name, tuple(findings)), size, view, Random(0))


def test_a_phantom_has_the_29_regions_of_chest_imagenome():
    scene, _, _ = draw_scene(Study("s1"), "frontal", 128)
    boxes = region_boxes(scene)
    assert len(boxes) == 29 and {"svc", "cavoatrial junction", "left apical zone"} <= set(boxes)
    for name, box in boxes.items():
        assert 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1, name
        if name.startswith("right") and name != "right atrium":
            middle = (box[0] + box[2]) / 2
            other = boxes[name.replace("right", "left")]
            assert middle < 0.5 < (other[0] + other[2]) / 2, "the patient's right is on the left"


def test_regions_lie_where_they_belong():
    scene, _, _ = draw_scene(Study("s2"), "frontal", 128)
    boxes = region_boxes(scene)

    def inside(inner: str, outer: str, tolerance: float = 0.03) -> bool:
        a, b = boxes[inner], boxes[outer]
        return all(
            (low >= start - tolerance and high <= end + tolerance)
            for low, high, start, end in ((a[0], a[2], b[0], b[2]), (a[1], a[3], b[1], b[3]))
        )

    for side in ("right", "left"):
        for zone in ("apical zone", "upper lung zone", "mid lung zone", "lower lung zone"):
            assert inside(f"{side} {zone}", f"{side} lung"), zone
        levels = [boxes[f"{side} {zone} lung zone"][1] for zone in ("upper", "mid", "lower")]
        assert levels == sorted(levels)
    for name in ("cardiac silhouette", "svc", "carina", "aortic arch", "upper mediastinum"):
        assert inside(name, "mediastinum"), name
    assert inside("right atrium", "cardiac silhouette")
    assert boxes["abdomen"][3] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "view",
    [MIRRORED, crop_geometry(0.1, 0.05, 0.85, 0.85),
     MIRRORED.then(crop_geometry(-0.1, 0, 1.2, 1.2))],
)  # fmt: skip
def test_boxes_follow_the_view(view):
    findings = [Finding("nodule", "right", "lower", size_mm=20), Finding("pacemaker", "left")]
    plain, seen = draw(findings), draw(findings, view)
    assert seen.flipped == (view.a < 0)
    assert len(seen.regions) > 20 and seen.findings
    for name, box in seen.regions.items():
        assert box == pytest.approx(view.map_box(plain.regions[name]))
    for name, boxes in seen.findings.items():
        assert boxes == [pytest.approx(view.map_box(box)) for box in plain.findings[name]]


def test_pixels_follow_the_view():
    ramp = np.zeros((40, 40), np.uint8)
    ramp[10:20, 5:15] = 200
    flipped = resample(ramp, MIRRORED, 40)
    assert (flipped[12:18, 27:33] > 190).all() and flipped[12:18, 5:13].max() < 10
    zoomed = resample(ramp, crop_geometry(0, 0, 0.5, 0.5), 40)
    assert (zoomed[22:38, 12:28] > 190).all() and zoomed[22:38, 32:].max() < 60
    smaller = resample(ramp, crop_geometry(-0.5, -0.5, 2, 2), 40)
    assert smaller[:14].max() == 0 and smaller[16:19, 13:17].mean() > 150


@pytest.mark.parametrize(
    "finding",
    [Finding("nodule", "left", "upper", size_mm=24),
     Finding("pleural_effusion", "right", degree="severe"),
     Finding("consolidation", "right", "middle", "severe")],
    ids=lambda finding: finding.name,
)  # fmt: skip
def test_the_box_of_a_finding_is_where_the_image_changes(finding):
    """Render with and without it: the pixels that change strongly are in its box."""
    image, without = draw([finding], size=160), draw([], size=160)
    (box,) = image.findings[finding.name]
    changed = np.abs(image.pixels.astype(int) - without.pixels.astype(int))
    strong = np.argwhere(changed > 0.5 * changed.max())
    rows, columns = (strong / 160).T
    inside = (columns >= box[0] - 0.02) & (columns <= box[2] + 0.02)
    inside &= (rows >= box[1] - 0.02) & (rows <= box[3] + 0.02)
    assert inside.mean() > 0.95
    reach = [columns.min(), rows.min(), columns.max(), rows.max()]
    assert overlap(box, reach) > 0.35


def test_a_bilateral_finding_has_two_boxes_and_a_normal_sentence_none():
    image = draw([Finding("pleural_effusion", "bilateral", degree="moderate")])
    left, right = sorted(image.findings["pleural_effusion"])
    assert left[2] < 0.55 and right[0] > 0.45
    positive = [boxes for _, boxes in image.sentences if boxes]
    assert len(positive) == 1 and len(positive[0]) == 2
    assert any(not boxes for _, boxes in image.sentences)
    assert all(text.strip() for text, _ in image.sentences)


def test_a_finding_that_is_cut_off_is_neither_present_nor_absent():
    nodule = Finding("nodule", "right", "lower", size_mm=24)
    x0, _, x1, _ = draw([nodule]).findings["nodule"][0]
    view = crop_geometry((x0 + x1) / 2, 0.0, 1.0, 1.0)
    image = draw([nodule], view)
    assert image.findings == {} and "nodule" not in image.searched and not image.complete
    gone = draw([nodule], crop_geometry(x1 + 0.02, 0.0, 1.0, 1.0))
    assert gone.complete, "it is not in the image at all"
    assert "nodule" not in gone.searched, "most of the right lung is not visible"
    assert "cardiomegaly" in draw([nodule], crop_geometry(0, 0.1, 1.0, 0.9)).searched
    assert not any("nodul" in text.lower() and boxes for text, boxes in image.sentences)


def test_a_finding_is_absent_only_where_its_regions_are_visible():
    """The left half of an image says nothing about the other lung, but all about the heart."""
    left_half = draw([], crop_geometry(0.0, 0.0, 0.68, 1.0))
    assert left_half.searched == ["cardiomegaly"] and left_half.regions["right lung"]
    upper = draw([], crop_geometry(0.0, 0.0, 1.0, 0.55))
    assert upper.searched == ["pacemaker", "catheter"]
    present = draw([Finding("nodule", "right", "upper", size_mm=24)], crop_geometry(0, 0, 0.68, 1))
    assert set(present.searched) == {"cardiomegaly", "nodule"}
    assert draw([]).searched == list(KINDS)


def test_lungs_are_not_called_clear_beside_an_effusion():
    texts = defaultdict(set)
    for seed in range(60):
        for findings in ((), (Finding("pleural_effusion", "left", degree="severe"),)):
            image = draw_grounded(Study("s", findings), 32, WHOLE, Random(seed))
            texts[len(findings)] |= {text for text, _ in image.sentences}
    clear = {text for text in texts[0] if re.search(r"lungs are (clear|free)", text)}
    assert clear and not clear & texts[1]


def test_fluid_behind_the_heart_is_outside_the_box_of_an_effusion():
    image = draw([Finding("pleural_effusion", "left", degree="severe")], size=160)
    (box,) = image.findings["pleural_effusion"]
    x0, _, x1, _ = image.regions["cardiac silhouette"]
    assert x0 < 0.5 < box[0] < x1 < box[2], "it begins at the border of the heart"


def test_the_letter_is_on_the_side_that_it_names():
    sides = defaultdict(set)
    for seed in range(12):
        for view in (WHOLE, MIRRORED):
            image = draw_grounded(Study("s"), 96, view, Random(seed))
            marked = draw_grounded(Study("s"), 96, view, Random(seed + 100))
            columns = np.argwhere(image.pixels.astype(int) - marked.pixels > 60)[:, 1]
            if len(columns):
                sides[view.a].add(round(float(np.median(columns)) / 96))
    assert sides[1.0] == sides[-1.0] == {0, 1}


def test_the_mean_box_scores_well_on_plain_phantoms_and_badly_on_grounded_ones():
    def score(**options) -> float:
        boxes = defaultdict(list)
        recipe = GroundedRecipe(studies=40, seed=3, size=32, **options)
        for number in range(40):
            study, _, _ = recipe.build_study(number)
            rng = Random(number)
            view = recipe.sample_view(rng)
            for name, box in draw_grounded(study, 32, view, rng).regions.items():
                boxes[name].append(box)
        means = {name: np.mean(found, axis=0) for name, found in boxes.items()}
        return float(np.mean([overlap(b, means[n]) for n, found in boxes.items() for b in found]))

    assert score(zoom=(1, 1), shift=0, flips=0) > 0.6
    assert score() < 0.3


def test_a_corpus_is_the_same_from_any_number_of_processes_and_after_an_interruption(tmp_path):
    one = write_corpus(tmp_path / "one", RECIPE, workers=1)
    write_corpus(tmp_path / "two", RECIPE, workers=2)
    cut = tmp_path / "cut"
    (cut / "images").mkdir(parents=True)
    lines = one.read_text().splitlines(True)
    (cut / "reports.jsonl.partial").write_text("".join(lines[:7]) + lines[7][:50])
    (cut / "recipe.json").write_text((tmp_path / "one/recipe.json").read_text())
    write_corpus(cut, RECIPE, workers=1)
    for other in ("two", "cut"):
        assert (tmp_path / other / "reports.jsonl").read_bytes() == one.read_bytes()
    assert (tmp_path / "one/images/SYN3-00009.png").read_bytes() == (
        cut / "images/SYN3-00009.png"
    ).read_bytes()


def test_the_collection_has_everything_for_every_task(tmp_path):
    write_corpus(tmp_path, RECIPE, workers=1)
    records, _ = read(Phantoms(Phantoms.Config(root=tmp_path)))
    assert len(records) == 40
    assert all(r.image.patient_id.startswith("SYNTHETIC/SYN3-") for r in records.values())
    assert any(r.healthy for r in records.values())
    for record in records.values():
        names = {finding.text for finding in record.findings}
        assert {n for n, v in record.labels.items() if v == "positive"} == names
        assert set(record.searched) == set(record.labels) <= set(KINDS)
        assert len([p for p in record.phrases if p.boxes]) == len(names)
        assert not re.search(r"\b(again|unchanged|stable)\b", record.report, re.I)
        assert record.report == " ".join(p.text for p in record.phrases)


def test_plain_phantoms_are_refused_with_the_command_that_draws_grounded_ones(tmp_path):
    write_corpus(tmp_path, Recipe(studies=2, size=32), workers=1)
    with pytest.raises(DataError, match="synthesize --grounded"):
        read(Phantoms(Phantoms.Config(root=tmp_path)))


def test_recipes_are_checked():
    with pytest.raises(SettingsError, match=r"zoom.*\n.*shift.*\n.*views"):
        GroundedRecipe(zoom=(2.0, 1.0), shift=2, views=("frontal", "lateral"))
    assert json.loads(json.dumps(RECIPE.zoom)) == [0.72, 1.35]
