"""Reports of studies: files, repeated commands, failures; with drawn masks instead of a network."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from tests import processes
from tests.cardiac.hearts import ring
from tests.cardiac.volumes import write_mask, write_volume
from tests.conftest import REPO
from xraygpt.cardiac.analysis import CardiacMR
from xraygpt.common.errors import InputError
from xraygpt.segmentation.masks import GivenMasks
from xraygpt.studies.predictor import SomeStudiesFailed, StudyPredictor
from xraygpt.studies.report import NOTICE


def write_study(folder, cavities=((12, 20), (8, 12))):
    """A NIfTI cine (SYNTHETIC) of two phases and three slices 10 mm apart, with masks."""
    folder.mkdir(parents=True, exist_ok=True)
    maps = np.stack([np.stack([ring(a, 8), ring(b, 8), ring(b, 8)]) for a, b in cavities])
    affine = np.diag([-1.0, -1, 10, 1])  # columns run to the left, rows to the back
    images = maps.transpose(3, 2, 1, 0) * 50.0
    write_volume(folder / "sax_4d.nii.gz", images, affine, step=0.4)
    write_mask(folder / "sax_4d_gt.nii.gz", maps, affine=affine)
    return folder


def config(**settings):
    settings = {"convention": "acdc", "sex": "female", "height": 170, "weight": 70, **settings}
    return CardiacMR.Config(segmenter=GivenMasks.Config(), **settings)


def predictor(source, output, **settings):
    used = config(**settings)
    return StudyPredictor(used.build(), source, output, {"settings": repr(used)})


def volume(radii):
    """mL of cavities with these radii in slices 10 mm apart."""
    return sum(int((ring(r, 8) == 3).sum()) for r in radii) * 10 / 1000


def test_a_report_in_all_formats(tmp_path):
    runs = predictor(write_study(tmp_path / "case7"), tmp_path / "out")
    (report,) = runs.run()
    folder = tmp_path / "out" / "case7"
    large, small = volume((12, 20, 20)), volume((8, 12, 12))
    assert report.value("lv_edv") == pytest.approx(large)
    assert report.value("lv_ef") == pytest.approx(100 * (large - small) / large)
    assert report.value("lv_edv_index") == pytest.approx(large / np.sqrt(170 * 70 / 3600))
    data = json.loads((folder / "report.json").read_text())
    assert data["measurements"]["lv_edv"]["value"] == pytest.approx(large)
    assert data["lv_volumes"] == pytest.approx([large, small])
    texts = [(folder / f"report.{kind}").read_text() for kind in ("html", "md")]
    for text in (*texts, json.dumps(data, ensure_ascii=False)):
        assert NOTICE in text and "case7" in text and report.findings[0] in text
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")
    assert (folder / "report.dcm").is_file() and (folder / "label_maps.nii.gz").is_file()
    assert {f.stem for f in (folder / "figures").iterdir()} == {f.name for f in report.figures}
    assert (folder / "cine.mp4").stat().st_size > 1000
    assert 'src="http' not in texts[0] and "default-src 'none'" in texts[0]


def test_a_finished_study_is_analysed_again_only_if_something_changed(tmp_path):
    study = write_study(tmp_path / "case")
    fast = {"formats": ["json"], "export": []}
    assert len(predictor(study, tmp_path / "out", **fast).run()) == 1
    assert predictor(study, tmp_path / "out", **fast).run() == []
    assert len(predictor(study, tmp_path / "out", **fast, papillary_muscles="mass").run()) == 1
    write_study(tmp_path / "case", cavities=((14, 20), (8, 12)))
    (report,) = predictor(study, tmp_path / "out", **fast, papillary_muscles="mass").run()
    assert report.value("lv_edv") is not None


def test_a_broken_study_does_not_stop_the_others(tmp_path):
    for name in ("a", "c"):
        write_study(tmp_path / "in" / name)
    write_study(tmp_path / "in" / "b", cavities=((12, 20), (12, 20)))
    runs = predictor(tmp_path / "in", tmp_path / "out", formats=["json"], export=[])
    with pytest.raises(SomeStudiesFailed, match=r"1 of 3 .*\n  b: .* same volume"):
        runs.run()
    assert sorted(f.parent.name for f in (tmp_path / "out").rglob("report.json")) == ["a", "c"]
    with pytest.raises(InputError, match="same volume"):
        predictor(tmp_path / "in" / "b", tmp_path / "out").run()


def test_phantoms_are_called_synthetic(tmp_path):
    runs = predictor(
        write_study(tmp_path / "p"), tmp_path / "out", synthetic=True, formats=["html", "json"],
        export=[],
    )  # fmt: skip
    runs.run()
    for name in ("report.html", "report.json"):
        assert "SYNTHETIC" in (tmp_path / "out" / "p" / name).read_text()


@pytest.mark.slow
def test_the_command_line(tmp_path):
    write_study(tmp_path / "case")
    yaml = tmp_path / "masks.yaml"
    yaml.write_text(
        "run: {analysis: cardiac_mr, segmenter: {name: masks}, convention: acdc, formats: [md]}\n"
    )

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "predict.py", "--cfg-path", str(yaml), "--output",
                   str(tmp_path / "out"), "--input", str(tmp_path / "case"), *options]  # fmt: skip
        return processes.run(command, cwd=REPO, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    assert "ejection fraction" in done.stdout and NOTICE in done.stdout
    assert str(tmp_path / "out" / "case" / "report.md") in done.stdout
    refused = run("--question", "Is it normal?")
    assert refused.returncode == 2 and "--question does not apply" in refused.stderr
    wrong = run("--options", "run.basal_ring=2", "run.segmenter.name=mask")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert "did you mean 'masks'?" in wrong.stderr and "run.basal_ring" in wrong.stderr


def test_studies_of_the_same_name_do_not_share_a_folder(tmp_path):
    """UIDs as names differ after a dot; other parents have studies of the same name."""
    fast = {"formats": ["json"], "export": []}
    paths = [tmp_path / "in" / n for n in ("1.2.840.1", "1.2.840.2")]
    for path in paths:
        write_study(path)
    both = predictor(tmp_path / "in", tmp_path / "out", **fast)
    both.run()
    assert [folder.name for folder in both.folders] == [path.name for path in paths]
    write_study(tmp_path / "other" / "1.2.840.1", cavities=((10, 15), (8, 12)))
    other = predictor(tmp_path / "other" / "1.2.840.1", tmp_path / "out", **fast)
    other.run()
    assert other.folders[0].name.startswith("1.2.840.1-")
    assert predictor(tmp_path / "in", tmp_path / "out", **fast).run() == []
    assert predictor(tmp_path / "other" / "1.2.840.1", tmp_path / "out", **fast).run() == []


def test_no_file_of_an_earlier_analysis_stays(tmp_path, monkeypatch):
    study = write_study(tmp_path / "case")
    predictor(study, tmp_path / "out", formats=["html", "pdf"], export=["nifti"]).run()
    again = predictor(study, tmp_path / "out", formats=["json"], export=[])
    again.run()
    names = {f.name for f in (tmp_path / "out" / "case").iterdir()}
    assert names == {"report.json", "settings.json"}
    # A failure leaves the earlier results as they were.
    write_study(study, cavities=((12, 20), (12, 20)))
    with pytest.raises(InputError):
        predictor(study, tmp_path / "out", formats=["json"], export=[]).run()
    assert {f.name for f in (tmp_path / "out" / "case").iterdir()} == names
    assert not list((tmp_path / "out").glob(".*"))


def test_masks_of_one_study_are_not_used_for_several(tmp_path):
    for name in ("a", "b"):
        write_study(tmp_path / "in" / name)
    mask = tmp_path / "in" / "a" / "sax_4d_gt.nii.gz"
    with pytest.raises(InputError, match=r"run.masks fits one study, but .* has 2"):
        predictor(tmp_path / "in", tmp_path / "out", masks=mask)


def test_ranges_of_another_convention_are_not_compared(tmp_path):
    """Hudsmith counts papillary muscles as mass, Petersen as cavity."""
    study = write_study(tmp_path / "case")
    for convention, compared in (("cavity", "lv_ef"), ("mass", "lv_edv")):
        runs = predictor(study, tmp_path / "out", formats=["json"], export=[],
                         papillary_muscles=convention)  # fmt: skip
        (report,) = runs.run()
        remarks = {m.key: m.remark for m in report.measurements if m.reference}
        other = {"lv_ef": "lv_edv", "lv_edv": "lv_ef"}[compared]
        assert remarks[compared] in ("low", "normal", "high")
        assert remarks[other].startswith("not compared: papillary muscles")
