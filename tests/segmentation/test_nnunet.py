"""Models of nnU-Net, with a script in its place that writes label maps, and with the real one."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPO
from tests.segmentation.synthetic_hearts import draw_patient, save
from xraygpt.cardiac.stack import Stack
from xraygpt.cardiac.stack_segmentation import segment_extremes
from xraygpt.common.errors import DataError, InputError, WeightsError
from xraygpt.common.registry import registry
from xraygpt.segmentation.base import Slices
from xraygpt.segmentation.labels import LV, MYOCARDIUM, RV
from xraygpt.segmentation.nnunet import NnUNet

nibabel = pytest.importorskip("nibabel")

SHAPE = (3, 4, 5)  # slices, rows, columns
# Notes its start, and labels pixels with whole values from 1 to 3 in the image with that value.
SCRIPT = """#!{python} -I
import json, os, sys
import nibabel, numpy as np
from pathlib import Path
words = sys.argv[3:]
source, target, model = (Path(words[words.index(o) + 1]) for o in ("-i", "-o", "-m"))
log = {{"words": words, "environment": dict(os.environ), "cwd": os.getcwd(), "images": []}}
target.mkdir()
for file in sorted(source.iterdir()):
    image = nibabel.load(file)
    log["images"].append([file.name, image.shape, [float(z) for z in image.header.get_zooms()]])
    values = np.asarray(image.dataobj)
    labels = np.where(values <= 3, np.rint(values), 0).astype(np.uint8)
    {change}
    name = file.name.replace("_0000.nii", ".nii")
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), target / name)
    print("done with", file.name)
with open(model / "starts.jsonl", "a") as lines:
    lines.write(json.dumps(log) + "\\n")
"""
LABELS = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}


def write_script(folder: Path, text: str) -> Path:
    file = folder / "python"
    file.write_text(text)
    file.chmod(0o755)
    return file


def write_model(folder: Path, name="nnUNetTrainer__nnUNetPlans__3d_fullres", **described) -> Path:
    model = folder / "Dataset027_CardiacMR" / name
    (model / "fold_0").mkdir(parents=True)
    (model / "fold_0" / "checkpoint_final.pth").touch()
    dataset = {"channel_names": {"0": "cine MRI"}, "labels": LABELS, "file_ending": ".nii.gz"}
    (model / "dataset.json").write_text(json.dumps(dataset | described))
    configurations = {"2d": {}, "3d_fullres": {}, "3d_cascade": {"previous_stage": "3d_lowres"}}
    reader = described.get("reader", "SimpleITKIO")
    plans = {"configurations": configurations, "image_reader_writer": reader}
    (model / "plans.json").write_text(json.dumps(plans))
    return model


def build(folder: Path, *, change: str = "pass", script: str = "", settings=None, **model):
    """Build a segmenter with a script in the place of nnU-Net."""
    text = script or SCRIPT.format(python=sys.executable, change=change)
    python = write_script(folder, text)
    config = NnUNet.Config(folder=write_model(folder, **model), python=python, **(settings or {}))
    return config.build()


def starts(segmenter: NnUNet) -> list[dict]:
    """What the script noted, one entry per start of a process."""
    text = (segmenter.config.folder / "starts.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def phase(*labelled: tuple[int, int, int, int]) -> Slices:
    """Images with the value 100, except at (slice, row, column, value)."""
    pixels = np.full(SHAPE, 100, np.float32)
    for i, row, column, value in labelled:
        pixels[i, row, column] = value
    return Slices(pixels, spacing=(1.5, 1.25), distance=8.0)


def test_labels_come_back_at_the_pixels_they_were_found_at(tmp_path):
    segmenter = build(tmp_path)
    found = segmenter.segment(phase((0, 1, 4, 1), (2, 3, 0, 2), (2, 0, 2, 3)))
    expected = np.zeros(SHAPE, np.uint8)
    expected[0, 1, 4], expected[2, 3, 0], expected[2, 0, 2] = RV, MYOCARDIUM, LV
    assert found.labels.dtype == np.uint8 and np.array_equal(found.labels, expected)
    assert found.confidence.tolist() == [1, 0, 1]
    (start,) = starts(segmenter)
    # The first axis of the file runs along the columns, the last one from slice to slice.
    assert start["images"] == [["phase_0000_0000.nii.gz", [5, 4, 3], [1.25, 1.5, 8.0]]]


def test_all_phases_are_segmented_by_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/not/for/nnunet")
    segmenter = build(tmp_path, settings={"device": "cuda", "mirroring": False})
    phases = [phase((0, 0, i, 3)) for i in range(4)]
    results = list(segmenter.segment_all(iter(phases)))
    assert [int(np.argwhere(r.labels)[0][2]) for r in results] == [0, 1, 2, 3]
    (start,) = starts(segmenter)
    words = " ".join(start["words"])
    assert words.startswith(f"-m {segmenter.config.folder} -i ")
    assert "-f 0 -chk checkpoint_final.pth -device cuda" in words
    assert words.endswith("--disable_tta")
    places = {start["environment"][f"nnUNet_{p}"] for p in ("raw", "preprocessed", "results")}
    assert places == {start["cwd"]} and "PYTHONPATH" not in start["environment"]
    assert not Path(start["cwd"]).exists()
    assert list(segmenter.segment_all([])) == [] and len(starts(segmenter)) == 1


def test_a_stack_takes_one_process(tmp_path):
    """The extremes are not segmented again, as after a segmentation within a region."""
    pixels = np.full((6, 10, 40, 40), 100, np.float32)
    for t, radius in enumerate((9, 8, 5, 4, 6, 8)):
        pixels[t, :, 20 - radius : 20 + radius, 20 - radius : 20 + radius] = LV
    stack = Stack("cine", "SAX", pixels.shape, lambda t, s: pixels[t, s], (1.5, 1.5), gap=10.0)
    segmenter = build(tmp_path)
    labelled = segment_extremes(stack, segmenter)
    assert np.array_equal(labelled.labels == LV, pixels == LV) and not labelled.transposed
    assert len(starts(segmenter)) == 1


@pytest.mark.parametrize(
    ("labels", "convention"),
    [
        ({"background": 0, "rv": 1, "Myocardium": 2, "LV cavity": 3}, "acdc"),
        ({"background": 0, "RV": 1, "MLV": 2, "LVC": 3}, "acdc"),
        ({"background": 0, "LVBP": 1, "LVM": 2, "RV": 3}, "mnms"),
        (
            {"background": 0, "cavity": 1, "normal_myocardium": 2, "myocardial_infarction": 3,
             "no_reflow": 4}, "emidec",
        ),
        ({"background": 0, "LV": 1, "ignore": 2}, "sunnybrook"),
        ({"background": 0, "LV": 1, "MYO": 2}, "mnms"),
    ],
)  # fmt: skip
def test_the_convention_follows_from_the_names_of_the_labels(tmp_path, labels, convention):
    assert build(tmp_path, labels=labels).convention == convention


def test_labels_are_converted_from_the_models_convention(tmp_path):
    segmenter = build(tmp_path, labels={"background": 0, "LV": 1, "MYO": 2, "RV": 3})
    assert segmenter.structures == ("lv", "myocardium", "rv")
    found = segmenter.segment(phase((0, 0, 0, 1), (0, 0, 1, 2), (0, 0, 2, 3)))
    assert found.labels[0, 0, :3].tolist() == [LV, MYOCARDIUM, RV]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"labels": {"background": 0, "A": 1, "B": 2}}, r"names of the labels \(0 background, 1 A"),
        ({"labels": {"background": 0, "heart": [1, 2]}}, r"labels \(regions\) agree with no"),
        ({"labels": {"background": 0, "MYO": 1, "LV": 2}}, "set convention to one of acdc"),
        ({"channel_names": {"0": "a", "1": "b"}}, "needs 2 channels"),
        ({"file_ending": ".mha"}, "trained on .mha files"),
        ({"name": "T__P__3d_cascade"}, "3d_cascade refines the result of another model"),
        ({"channel_names": None}, "dataset.json: labels, channel_names or file_ending is missing"),
    ],
)
def test_models_for_other_data_are_refused(tmp_path, model, message):
    with pytest.raises(WeightsError, match=message):
        build(tmp_path, **model)


def test_a_convention_with_too_few_values_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="labels up to 3, but sunnybrook has only 0 to 1"):
        build(tmp_path, settings={"convention": "sunnybrook"})


def test_a_convention_is_enough_for_a_model_with_regions(tmp_path):
    labels = {"background": 0, "heart": [1, 2, 3]}
    segmenter = build(tmp_path, labels=labels, settings={"convention": "acdc"})
    assert segmenter.segment(phase((1, 1, 1, 3))).labels[1, 1, 1] == LV


def test_what_is_missing_is_named(tmp_path):
    config = NnUNet.Config(folder=tmp_path / "model", python=tmp_path / "python")
    keys = [missing.key for missing in config.missing("run.segmenter")]
    assert keys == ["run.segmenter.python", "run.segmenter.folder"]
    with pytest.raises(InputError, match="python does not exist; create an environment"):
        config.build()
    model, python = write_model(tmp_path), write_script(tmp_path, "")
    config = NnUNet.Config(folder=model, python=python, folds=(0, 3))
    (missing,) = config.missing("segmenter")
    assert "fold_3/checkpoint_final.pth does not exist" in str(missing)
    with pytest.raises(WeightsError, match="fold_3"):
        config.build()
    with pytest.raises(InputError, match="folds: must be 0 or more"):
        NnUNet.Config(folder=model, python=python, folds=(-1,))


def test_trained_folds_are_found(tmp_path):
    model = write_model(tmp_path)
    for name in ("fold_10", "fold_2", "fold_all"):
        (model / name).mkdir()
        (model / name / "checkpoint_final.pth").touch()
    (model / "fold_3").mkdir()
    assert NnUNet.Config(folder=model, python=tmp_path).fold_names() == ("0", "2", "10")
    assert NnUNet.Config(folder=model, python=tmp_path, folds="all").fold_names() == ("all",)
    assert registry.get_segmenter_class("nnunet") is NnUNet


def fail(code: str) -> str:
    return f"#!{sys.executable} -I\nimport os, signal, sys\n{code}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"change": "continue"}, "no label map for phase 1"),
        ({"change": "labels = labels[:2]"}, r"has the shape \(3, 4, 2\), the images \(3, 4, 5\)"),
        ({"change": "labels[0] = 7"}, "value 7, but acdc has only 0 to 3"),
        ({"script": fail("sys.exit('a\\nValueError: b\\n  at c\\nRuntimeError: Background workers "
                         "died. Look')")}, "failed with the model .*fullres: ValueError: b$"),
        ({"script": fail("sys.exit('RuntimeError: no CUDA GPUs')")}, "CUDA GPUs; use device: cpu"),
        ({"script": fail("sys.exit(3)")}, "exit code 3 without a message"),
        ({"script": fail("os.kill(os.getpid(), signal.SIGKILL)")}, "signal SIGKILL .* memory"),
        ({"script": "#!/no/such/interpreter\n"}, "cannot be started: No such file"),
    ],
)  # fmt: skip
def test_failures_are_explained_in_a_sentence(tmp_path, options, message, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with pytest.raises(InputError, match=message):
        build(tmp_path, **options).segment(phase())
    assert not any((tmp_path / "temporary").iterdir())


def test_an_interpreter_without_nnunet_is_named(tmp_path):
    config = NnUNet.Config(folder=write_model(tmp_path), python=Path(sys.executable))
    with pytest.raises(InputError, match=r"not installed for .*pip install nnunetv2"):
        config.build().segment(phase())


def test_unknown_distances_are_refused_except_for_2d_models(tmp_path):
    images = phase((0, 0, 0, 1))
    for name, segmenter in (("a", {}), ("b", {"name": "T__P__2d"})):
        (tmp_path / name).mkdir()
        built = build(tmp_path / name, **segmenter)
        with pytest.raises(DataError, match="needs the pixel spacing and the distance"):
            built.segment(images._replace(spacing=None))
        with pytest.raises(DataError, match="not finite"):
            built.segment(images._replace(pixels=images.pixels * np.nan))
        if segmenter:
            assert built.segment(images._replace(distance=None)).labels[0, 0, 0] == RV
        else:
            with pytest.raises(DataError, match="needs the pixel spacing and the distance"):
                built.segment(images._replace(distance=None))


def test_output_of_nnunet_is_logged_for_debugging_only(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    build(tmp_path, reader="NibabelIOWithReorient").segment(phase())
    assert ("nnU-Net: done with phase_0000_0000.nii.gz", logging.DEBUG) in [
        (record.getMessage(), record.levelno) for record in caplog.records
    ]
    assert "turned into standard orientation" in caplog.text
    assert capfd.readouterr() == ("", "")


HANGING = """#!{python} -I
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open({note!r}, "w") as file:
    file.write(f"{{os.getpid()}} {{worker.pid}}")
os.rename({note!r}, {note!r} + ".complete")
time.sleep(600)
"""
CALLER = """
import sys
from pathlib import Path
import numpy as np
from xraygpt.segmentation.base import Slices
from xraygpt.segmentation.nnunet import NnUNet
model, python = map(Path, sys.argv[1:])
segmenter = NnUNet.Config(folder=model, python=python).build()
segmenter.segment(Slices(np.ones((2, 3, 4), np.float32), (1.0, 1.0), 5.0))
"""


def wait_until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_interrupting_stops_nnunet_and_its_workers(tmp_path):
    note = tmp_path / "note"
    python = write_script(tmp_path, HANGING.format(python=sys.executable, note=str(note)))
    command = [sys.executable, "-c", CALLER, str(write_model(tmp_path)), str(python)]
    folder = tmp_path / "temporary"
    folder.mkdir()
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(
        command, cwd=REPO, env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs may ignore it
    ) as child:  # fmt: skip
        wait_until(lambda: note.with_suffix(".complete").exists())
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors and not any(folder.iterdir())
    pids = [int(pid) for pid in note.with_suffix(".complete").read_text().split()]
    wait_until(lambda: not any(map(is_running, pids)))


@pytest.fixture
def real_model() -> NnUNet.Config:
    """The interpreter with nnU-Net and a model trained on synthetic hearts."""
    python, folder = (os.environ.get(f"XRAYGPT_NNUNET_{n}") for n in ("PYTHON", "MODEL"))
    if not python or not folder:
        pytest.skip("XRAYGPT_NNUNET_PYTHON and XRAYGPT_NNUNET_MODEL are not set")
    return NnUNet.Config(folder=Path(folder), python=Path(python))


@pytest.mark.slow
def test_labels_are_those_of_nnunets_own_command(real_model, tmp_path):
    """Runs nnU-Net on files that were not written by the segmenter."""
    hearts = [heart for seed in (101, 102) for heart in draw_patient(seed).values()]
    for i, (image, _) in enumerate(hearts):
        save(tmp_path / "in" / f"case{i}_0000.nii.gz", image)
    command = [
        real_model.python.with_name("nnUNetv2_predict_from_modelfolder"),
        "-i", tmp_path / "in", "-o", tmp_path / "out", "-m", real_model.folder,
        "-f", *real_model.fold_names(), "-device", "cpu",
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    phases = [Slices(image, (1.5, 1.4), 10.0) for image, _ in hearts]
    for i, found in enumerate(real_model.build().segment_all(phases)):
        own = nibabel.load(tmp_path / "out" / f"case{i}.nii.gz")
        assert np.array_equal(found.labels, np.asarray(own.dataobj).transpose())
        for value in (RV, MYOCARDIUM, LV):
            a, b = found.labels == value, hearts[i][1] == value
            assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9
