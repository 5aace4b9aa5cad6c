"""Open collections, on made-up folders in their exact shape, and on true tables where they are."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tests.instructions.trees import read
from xraygpt.common.errors import DataError
from xraygpt.instructions.collections.nih_boxes import NihBoxes
from xraygpt.instructions.collections.radfact import RadFact
from xraygpt.instructions.collections.rsna import Rsna
from xraygpt.instructions.collections.siim import Siim, boxes_of, union
from xraygpt.instructions.collections.tbx11k import Tbx11k


def wheel(name: str) -> Path:
    """Return a table inside torchxrayvision, or skip."""
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None:
        pytest.skip("torchxrayvision is not installed")
    return Path(spec.origin).parent / "data" / name


# ---- NIH -----------------------------------------------------------------------------------------


@pytest.fixture
def nih(tmp_path) -> Path:
    (tmp_path / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00000001_000.png,Atelectasis,102.4,204.8,512,256\n"
        "00000001_000.png,Effusion,0,0,1024,1024\n00000001_000.png,Effusion,10,10,100,100\n"
        "00000003_002.png,Mass,1000,10,100,10\n"
    )
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
        "View Position\n"
        "00000001_000.png,Atelectasis|Pleural_Thickening,0,1,50,F,AP\n"
        "00000002_000.png,No Finding,0,2,50,M,PA\n"
    )
    (tmp_path / "test_list.txt").write_text("00000003_002.png\n")
    return tmp_path


def test_nih_boxes_are_pixels_of_1024(nih):
    records, remarks = read(NihBoxes(NihBoxes.Config(root=nih)))
    first = records["00000001_000.png"]
    assert [(f.text, len(f.boxes)) for f in first.findings] == [("Atelectasis", 1), ("Effusion", 2)]
    assert first.findings[0].boxes == (pytest.approx((0.1, 0.2, 0.6, 0.45)),)
    assert first.labels == {"Atelectasis": "positive", "Pleural Thickening": "positive"}
    assert first.image.patient_id == "nih/1" and (first.image.view, first.image.sex) == ("AP", "F")
    assert first.searched == () and not first.complete, "a missing box says nothing"
    other = records["00000003_002.png"]
    assert other.image.split == "test" and other.findings == ()
    assert ("lost", "boxes that are empty or leave their image", 1, "00000003_002.png") in remarks
    assert ("missing", "images with boxes but without labels", 1, "00000003_002.png") in remarks


def test_nih_images_without_boxes_are_read_if_wanted(nih):
    records, _ = read(NihBoxes(NihBoxes.Config(root=nih, all_images=True)))
    assert list(records)[-1] == "00000002_000.png" and records["00000002_000.png"].healthy


def test_the_true_tables_of_nih():
    boxes, entries = wheel("BBox_List_2017.csv.gz"), wheel("Data_Entry_2017_v2020.csv.gz")
    records, remarks = read(NihBoxes(NihBoxes.Config(boxes=boxes, entries=entries)))
    assert len(records) == 880 and [r[2] for r in remarks] == [880], "no official split"
    assert sum(len(f.boxes) for r in records.values() for f in r.findings) == 984


# ---- RSNA ----------------------------------------------------------------------------------------


def test_rsna_opacities_and_normal_images(tmp_path):
    (tmp_path / "stage_2_train_labels.csv").write_text(
        "patientId,x,y,width,height,Target\na,102.4,204.8,512,256,1\na,0,0,100,100,1\nb,,,,,0\nc,,,,,0\n"
    )
    (tmp_path / "stage_2_detailed_class_info.csv").write_text(
        "patientId,class\na,Lung Opacity\na,Lung Opacity\nb,Normal\n"
        "c,No Lung Opacity / Not Normal\n"
    )
    records, remarks = read(Rsna(Rsna.Config(root=tmp_path)))
    assert records["a"].findings[0].boxes[0] == pytest.approx((0.1, 0.2, 0.6, 0.45))
    assert len(records["a"].findings[0].boxes) == 2 and records["a"].labels == {
        "Lung Opacity": "positive"
    }
    assert [records[i].healthy for i in "abc"] == [False, True, False]
    assert records["c"].searched == ("Lung Opacity",)
    assert [r[:3:2] for r in remarks] == [("note", 3)], "NIH patients under other names"
    mapping = tmp_path / "mapping.json"
    mapping.write_text('[{"subset_img_id": "a", "img_id": "00000012_003.png"}]')
    records, remarks = read(Rsna(Rsna.Config(root=tmp_path, mapping=mapping)))
    assert records["a"].image.patient_id == "nih/12" and remarks == []
    assert records["b"].image.patient_id == "rsna/b"
    mapping.write_text('[{"img": 1}]')
    with pytest.raises(DataError, match="expected a list of subset_img_id and img_id"):
        read(Rsna(Rsna.Config(root=tmp_path, mapping=mapping)))


def test_the_true_tables_of_rsna():
    labels = wheel("kaggle_stage_2_train_labels.csv.zip")
    headers = wheel("kaggle_stage_2_train_images_dicom_headers.csv.gz")
    records, remarks = read(Rsna(Rsna.Config(labels=labels, headers=headers)))
    boxes = [len(f.boxes) for r in records.values() for f in r.findings]
    assert len(records) == 26_684 and len(boxes) == 6_012 and sum(boxes) == 9_555
    assert len(remarks) == 1 and {r.image.view for r in records.values()} == {"AP", "PA"}


# ---- SIIM ----------------------------------------------------------------------------------------


def encode(mask: np.ndarray) -> str:
    """Return the run lengths of a mask, column by column, relative to the end of the last run."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [0]])
    starts, ends = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
    numbers, position = [], 0
    for start, end in zip(starts, ends, strict=True):
        numbers += [start - position, end - start]
        position = end
    return " ".join(map(str, numbers))


def test_three_outlines_of_one_picture_are_joined(tmp_path):
    masks = np.zeros((3, 1024, 1024), dtype=bool)
    masks[0, 100:200, 300:500] = True
    masks[1, 150:250, 400:600] = True  # overlaps the first
    masks[2, 700:900, 50:100] = True
    codes = [encode(mask) for mask in masks]
    joined = union(codes)
    assert (joined == masks.any(axis=0)).all()
    assert joined.sum() == 100 * 200 * 2 - 50 * 100 + 200 * 50
    rows = "".join(f"1.2.3,{code}\n" for code in codes)
    (tmp_path / "train-rle.csv").write_text(f"ImageId, EncodedPixels\n{rows}1.2.4,-1\n1.2.4,-1\n")
    records, remarks = read(Siim(Siim.Config(root=tmp_path)))
    assert list(records) == ["1.2.3", "1.2.4"], "one record for each picture"
    assert records["1.2.3"].findings[0].boxes == (
        pytest.approx((50 / 1024, 700 / 1024, 100 / 1024, 900 / 1024)),
        pytest.approx((300 / 1024, 100 / 1024, 600 / 1024, 250 / 1024)),
    )
    assert records["1.2.4"].findings == () and records["1.2.4"].labels == {
        "Pneumothorax": "negative"
    }
    assert ("note", "rows that are further outlines of an image", 3, "") in remarks


def test_specks_of_an_outline_get_no_box_of_their_own():
    mask = np.zeros((64, 64), dtype=bool)
    mask[5:7, 5:7] = True
    assert len(boxes_of(mask, min_pixels=30)) == 1, "nothing else is there"
    mask[20:40, 20:40] = True
    assert boxes_of(mask, min_pixels=30) == [(20 / 64, 20 / 64, 40 / 64, 40 / 64)]
    assert len(boxes_of(mask)) == 2


def test_damaged_run_lengths_are_named(tmp_path):
    for code, message in (("5 5 5", "odd number"), ("1048570 20", "leave the image")):
        with pytest.raises(ValueError, match=message):
            union([code])
    (tmp_path / "train-rle.csv").write_text("ImageId, EncodedPixels\n1.2.3,5 5 5\n")
    with pytest.raises(DataError, match=r"siim, image 1.2.3: run lengths with an odd number"):
        read(Siim(Siim.Config(root=tmp_path)))
    assert boxes_of(np.zeros((4, 4), dtype=bool)) == []


@pytest.mark.slow
def test_the_true_table_of_siim():
    records, _ = read(Siim(Siim.Config(table=wheel("siim-pneumothorax-train-rle.csv.gz"))))
    positive = [r for r in records.values() if r.findings]
    assert len(records) == 12_047 and len(positive) == 2_669
    assert sum(len(f.boxes) for r in positive for f in r.findings) == 3_557


# ---- TBX11K and RadFact --------------------------------------------------------------------------


def test_the_true_samples_of_tbx11k(real_data):
    root = real_data / "grounding/xrv_samples/tbx11k_test_data"
    collection = Tbx11k(Tbx11k.Config(root=root))
    records, remarks = read(collection)
    assert {k: len(r.findings) for k, r in records.items()} == {
        "tb/tb0005.png": 1, "tb/tb0007.png": 1, "health/h0001.png": 0
    }  # fmt: skip
    (finding,) = records["tb/tb0007.png"].findings
    assert finding.text == "ObsoletePulmonaryTuberculosis" and len(finding.boxes) == 2
    assert finding.boxes[0] == pytest.approx((0.6002, 0.1212, 0.8649, 0.4075), abs=1e-4)
    assert records["health/h0001.png"].healthy and remarks == []
    assert records["tb/tb0005.png"].labels == {
        "ActiveTuberculosis": "positive", "ObsoletePulmonaryTuberculosis": "negative"
    }  # fmt: skip
    assert len(records["health/h0001.png"].searched) == 3
    assert (collection.image_folder() / "tb/tb0005.png").is_file()


def test_tbx11k_knows_the_sick_and_counts_damaged_boxes(tmp_path):
    images = [{"id": i, "file_name": name, "width": 512, "height": 512} for i, name in
              enumerate(["sick\\s1.png", "tb/t1.png"])]  # fmt: skip
    content = {
        "categories": [{"id": 1, "name": "ActiveTuberculosis"}],
        "images": images,
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [500, 0, 100, 10]}],
    }
    (tmp_path / "TBX11K_train.json").write_text(json.dumps(content))
    records, remarks = read(Tbx11k(Tbx11k.Config(root=tmp_path)))
    assert records["sick/s1.png"].labels == {"ActiveTuberculosis": "negative"}
    assert not records["sick/s1.png"].healthy and records["tb/t1.png"].labels == {}
    assert ("lost", "boxes that are empty or leave their image", 1, "tb/t1.png") in remarks
    (tmp_path / "TBX11K_train.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="is no COCO file"):
        read(Tbx11k(Tbx11k.Config(root=tmp_path)))


def test_the_true_examples_of_radfact(real_data):
    records, remarks = read(RadFact(RadFact.Config(root=real_data / "grounding/radfact")))
    assert len(records) == 20 and remarks == []
    phrases = [p for r in records.values() for p in r.phrases]
    assert any(len(p.boxes) > 1 for p in phrases) and any(not p.boxes for p in phrases)


def test_radfact_names_damaged_boxes_and_files(tmp_path):
    box = {"x_min": 0.1, "y_min": 0.1, "x_max": 0.3, "y_max": 0.4}
    target = [{"text": "A.", "boxes": [box]}, {"text": "B.", "boxes": None},
              {"text": "C.", "boxes": [{**box, "x_max": 0.05}]}]  # fmt: skip
    path = tmp_path / "grounded_reporting_examples.json"
    path.write_text(json.dumps([{"example_id": 7, "target": target}]))
    records, remarks = read(RadFact(RadFact.Config(root=tmp_path)))
    assert [(p.text, len(p.boxes)) for p in records["7"].phrases] == [("A.", 1), ("B.", 0)]
    assert [r[2] for r in remarks] == [1]
    path.write_text('[{"prediction": []}]')
    with pytest.raises(DataError, match="report 0: expected a list under 'target'"):
        read(RadFact(RadFact.Config(root=tmp_path)))
