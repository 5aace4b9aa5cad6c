"""Codes become findings; the published val and test splits are never used."""

from __future__ import annotations

from importlib import metadata
from random import Random

import pytest

from xraygpt.common.errors import DataError
from xraygpt.phantom import openi
from xraygpt.phantom.corpus import Recipe
from xraygpt.phantom.findings import codes_of
from xraygpt.vocabulary.chest_mesh import findings_of as labels_of
from xraygpt.vocabulary.openi import lockbox_studies, published_test_studies, published_val_studies


def attributes(*codes: str) -> list[tuple[str, str, str, str]]:
    findings = openi.findings_from_codes(codes, Random(0))
    return [(f.name, f.side, f.zone, f.degree) for f in findings]


def test_findings_have_the_attributes_of_their_codes():
    assert attributes("Pleural Effusion/left/small") == [("pleural_effusion", "left", "", "mild")]
    assert attributes("Pleural Effusion/bilateral/large") == [
        ("pleural_effusion", "bilateral", "", "severe")
    ]
    assert attributes("Cardiomegaly/borderline") == [("cardiomegaly", "", "", "mild")]
    assert attributes("Lung/hyperdistention/mild") == [("hyperinflation", "", "", "")]
    ((name, side, zone, _),) = attributes("Nodule/lung/lingula")
    assert (name, side, zone) == ("nodule", "left", "middle")
    sides = [f[1] for f in attributes("Opacity/lung/base/bilateral")]
    assert sides == ["left", "right"]


@pytest.mark.parametrize(
    "code",
    ["normal", "Spine/degenerative", "Implanted Medical Device/aortic valve", "Scoliosis",
     "Opacity/lung/interstitial/diffuse", "Fractures, Bone/clavicle/left"],
)  # fmt: skip
def test_other_codes_give_no_finding(code):
    assert attributes(code) == []


def test_sizes_of_the_published_splits():
    test, val = published_test_studies(), published_val_studies()
    assert (len(test), len(val)) == (590, 294)
    assert not test & val


def test_without_the_package_the_error_has_the_install_command(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(openi.metadata, "files", missing)
    openi.coded_studies.cache_clear()
    with pytest.raises(DataError, match="pip install --no-deps torchxrayvision"):
        Recipe(design="openi").build_study(0)


@pytest.mark.slow
def test_findings_of_every_coded_study_are_named_by_its_codes():
    try:
        metadata.version("torchxrayvision")
    except metadata.PackageNotFoundError:
        pytest.skip("torchxrayvision is not installed")
    openi.coded_studies.cache_clear()
    studies = openi.coded_studies()
    assert len(studies) > 2600
    reserved = published_test_studies() | published_val_studies() | lockbox_studies()
    assert not reserved & {s.study_id for s in studies}
    for study in studies:
        findings = openi.findings_from_codes(study.codes, Random(1))
        extra = labels_of(codes_of(findings)) - labels_of(study.codes) - {"no_finding"}
        assert extra <= {"consolidation", "lung_opacity", "support_devices", "lung_lesion"}
