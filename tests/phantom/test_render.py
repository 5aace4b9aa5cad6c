"""Findings change the picture where their masks are, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from xraygpt.phantom import frontal
from xraygpt.phantom.findings import KINDS, Finding
from xraygpt.phantom.render import Study, render
from xraygpt.phantom.scene import MM

SIZE = 192
SIZES = {"nodule": {"size_mm": 20.0}, "calcified_granuloma": {"size_mm": 7.0}}


def every_finding() -> list[Finding]:
    """Each kind on each possible side, in each zone and degree."""
    findings = []
    for kind in KINDS.values():
        for side in kind.sides or ("",):
            for zone in kind.zones or ("",):
                for degree in kind.degrees or ("",):
                    size = SIZES.get(kind.name, {})
                    findings.append(Finding(kind.name, side, zone, degree, **size))
    return findings


def difference(finding: Finding, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Absolute change of the pixels by a finding, and its mask."""
    without = render(Study("s", (), seed), size=SIZE).pixels.astype(int)
    picture = render(Study("s", (finding,), seed), size=SIZE)
    return np.abs(picture.pixels - without), picture.masks[0]


@pytest.mark.slow
@pytest.mark.parametrize("finding", every_finding(), ids=lambda f: f.code)
def test_a_finding_changes_the_picture_inside_its_mask(finding):
    changed, mask = difference(finding, seed=3)
    assert mask.any()
    inside, outside = changed[mask > 0], changed[mask == 0]
    if finding.name == "hyperinflation":  # the whole chest grows
        assert inside.mean() > 10
        return
    assert np.percentile(inside, 90) > 12
    # Scatter and noise reach further but are faint; a raised diaphragm or a displaced rib is local.
    assert np.median(outside) <= 1
    assert inside.mean() > 4 * outside.mean()


@pytest.mark.parametrize("finding", every_finding(), ids=lambda f: f.code)
def test_a_finding_is_on_its_side_and_in_its_zone(finding):
    picture = render(Study("s", (finding,), seed=5), size=SIZE)
    rows, columns = np.nonzero(picture.masks[0])
    x, y = columns.mean() / SIZE, rows.mean() / SIZE
    if finding.side in ("left", "right") and finding.name not in ("pacemaker", "catheter"):
        assert (x > 0.5) == (finding.side == "left")  # the patient's left is at the right
    if finding.side == "bilateral":
        assert (columns < SIZE / 2).any() and (columns > SIZE / 2).any()
    if finding.zone:
        low, high = {"upper": (0.1, 0.38), "middle": (0.3, 0.57), "lower": (0.48, 0.80)}[
            finding.zone
        ]
        assert low < y < high
    x0, y0, x1, y1 = picture.boxes[0]
    assert x0 * SIZE == pytest.approx(columns.min(), abs=0.6)
    assert y1 * SIZE == pytest.approx(rows.max() + 1, abs=0.6)
    assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


@pytest.mark.parametrize("view", ["frontal", "lateral"])
def test_a_study_is_bit_identical_and_depends_on_its_seed(view):
    study = Study("s", (Finding("nodule", "left", "upper", size_mm=20.0),), 7)
    first, second = (render(study, view, SIZE).pixels for _ in range(2))
    assert np.array_equal(first, second)
    other = render(Study("s", study.findings, 8), view, SIZE).pixels
    assert (first != other).mean() > 0.5


@pytest.mark.parametrize(
    ("degree", "low", "high"),
    [("mild", 0.51, 0.60), ("moderate", 0.56, 0.66), ("severe", 0.62, 0.73)],
)
def test_cardiothoracic_ratio_follows_the_degree(degree, low, high):
    """Maximum width of the heart over that of the chest (Danzer 1919)."""
    for seed in range(5):
        picture = render(Study("s", (Finding("cardiomegaly", degree=degree),), seed), size=SIZE)
        columns = np.nonzero(picture.masks[0].any(axis=0))[0]
        width = (columns[-1] + 1 - columns[0]) / SIZE
        assert low < width / frontal.CHEST / 0.97 < high + 0.04


def test_a_normal_heart_is_narrower_than_half_the_chest():
    from xraygpt.phantom.body import sample_body
    from xraygpt.phantom.canvas import Canvas, Pose

    for seed in range(30):
        body = sample_body(np.random.default_rng(seed), (), lateral=False)
        heart = Canvas(SIZE, Pose()).fill(frontal.heart_outline(body)) > 0.5
        lungs = [
            Canvas(SIZE, Pose()).fill(frontal.lung_outline(body, s)) for s in ("left", "right")
        ]
        chest = (lungs[0] + lungs[1] > 0.5).any(axis=0).nonzero()[0]
        columns = heart.any(axis=0).nonzero()[0]
        assert 0.36 < np.ptp(columns) / np.ptp(chest) < 0.51


def test_a_nodule_has_its_size_in_millimetres():
    for size in (12.0, 30.0):
        mask = render(Study("s", (Finding("nodule", "right", "middle", size_mm=size),), 1)).masks[0]
        diameter = 2 * np.sqrt(mask.sum() / np.pi) / 224
        assert diameter == pytest.approx(size * MM, rel=0.25)


def test_findings_invisible_in_a_view_have_no_box():
    picture = render(Study("s", (Finding("pneumothorax", "left", degree="severe"),)), "lateral")
    assert not picture.masks[0].any() and picture.boxes == [None]


def test_errors_of_invalid_findings_list_the_valid_values():
    with pytest.raises(ValueError, match=r"unknown finding 'nodul'; choose one of cardiomegaly"):
        Finding("nodul")
    with pytest.raises(
        ValueError, match=r"side: 'bilateral' is not valid for pneumothorax; possible"
    ):
        Finding("pneumothorax", "bilateral", degree="mild")
    with pytest.raises(ValueError, match=r"zone: 'upper' is not valid for cardiomegaly; .*: none"):
        Finding("cardiomegaly", zone="upper", degree="mild")
    with pytest.raises(ValueError, match="nodule must have a size_mm above 0, got 0"):
        Finding("nodule", "left", "upper")
