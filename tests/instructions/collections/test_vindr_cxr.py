"""VinDr-CXR: made-up tables in its form, and the true table where torchxrayvision is installed."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

from xraygpt.common.errors import DataError
from xraygpt.instructions.collections.vindr_cxr import VindrCXR
from xraygpt.instructions.tables import Tables

HEADER = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
ROWS = """\
a,Cardiomegaly,3,R1,100,200,300,400
a,Cardiomegaly,3,R2,120,200,300,420
a,Nodule/Mass,8,R1,500,500,520,530
a,No finding,14,R3,,,,
b,No finding,14,R1,,,,
b,No finding,14,R2,,,,
b,No finding,14,R3,,,,
c,ILD,5,R1,10,10,90,90
c,ILD,5,R2,600,700,790,900
c,ILD,5,R3,15,10,90,95
d,ILD,5,R1,10,10,90,90
e,ILD,5,R1,500,10,400,90
e,ILD,5,R2,10,10,5000,90
e,Cardiomegaly,3,R2,10,10,90,90
"""


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "VinDr-CXR"
    (folder / "train_jpg").mkdir(parents=True)
    (folder / "annotations_train.csv").write_text(HEADER + ROWS)
    sizes = {image: [1000, 800] for image in "abce"}
    (folder / "image_resolutions_train.json").write_text(json.dumps(sizes))
    return folder


def records(root: Path, **options) -> dict:
    collection = VindrCXR(VindrCXR.Config(root=root, **options))
    with Tables(":memory:") as tables:
        collection.build(tables)
        found = {record.image.image_id: record for record in collection.records(tables)}
        remarks = [(r.kind, r.text, r.rows, r.example) for r in collection.remarks(tables)]
        return {**found, "remarks": remarks}


def findings(record) -> dict:
    return {each.text: each.boxes for each in record.findings}


def test_boxes_of_several_readers_are_normalised_and_fused(root):
    found = records(root)
    assert findings(found["a"]) == {
        "Cardiomegaly": (pytest.approx((110 / 800, 0.2, 300 / 800, 0.41)),),
        "Nodule/Mass": (pytest.approx((500 / 800, 0.5, 520 / 800, 0.53)),),
    }
    assert [len(boxes) for boxes in findings(found["c"]).values()] == [2]
    image = found["a"].image
    assert (image.path, image.width, image.height) == ("train_jpg/a.jpg", 800, 1000)
    assert image.patient_id == "vindr/a" and image.split == "train"


def test_healthy_images_and_what_was_looked_for(root):
    found = records(root)
    assert found["b"].healthy and not found["a"].healthy
    assert found["a"].searched == ("Cardiomegaly", "ILD", "Nodule/Mass")


def test_a_finding_that_too_few_readers_drew_is_neither_present_nor_absent(root):
    found = records(root, min_readers=2)
    assert set(findings(found["a"])) == {"Cardiomegaly"}
    assert found["a"].searched == ("Cardiomegaly", "ILD")
    assert not found["a"].healthy


def test_an_image_without_a_size_gets_no_boxes_and_is_noted(root):
    """RadVLM takes 1024 x 1024 without a word (fault 9)."""
    found = records(root)
    assert found["d"].findings == () and found["d"].searched == () and not found["d"].healthy
    text = "images without a size in pixels, which are used without boxes"
    assert ("missing", text, 1, "d") in found["remarks"]
    own = root / "sizes.csv"
    own.write_text("image_id,width,height\nd,100,100\n")
    assert findings(records(root, sizes=own)["d"]) == {
        "ILD": (pytest.approx((0.1, 0.1, 0.9, 0.9)),)
    }


def test_empty_boxes_and_boxes_outside_the_image_are_dropped_and_counted(root):
    found = records(root)
    assert set(findings(found["e"])) == {"Cardiomegaly"}
    assert found["e"].searched == ("Cardiomegaly", "Nodule/Mass"), "ILD is in doubt"
    assert ("lost", "empty boxes (train)", 1, "e") in found["remarks"]
    assert ("lost", "boxes outside their image (train)", 1, "e") in found["remarks"]


def test_the_older_spelling_of_the_reader_and_the_test_split(root):
    (root / "annotations_test.csv").write_text(
        "image_id,rad_ID,class_name,x_min,y_min,x_max,y_max\nt,R1,ILD,10,10,90,90\n"
    )
    (root / "test").mkdir()
    (root / "test" / "t.dicom").touch()
    (root / "image_resolutions_test.json").write_text('{"t": [100, 100]}')
    found = records(root)
    assert found["t"].image.split == "test" and found["t"].image.path == "test/t.dicom"
    assert findings(found["t"])["ILD"] == (pytest.approx((0.1, 0.1, 0.9, 0.9)),)


def test_a_damaged_size_file_is_named(root):
    (root / "image_resolutions_train.json").write_text('{"a": 5}')
    with pytest.raises(DataError, match=r"expected \[rows, columns\] for a, got 5"):
        records(root)


def test_the_true_table_at_full_size(tmp_path):
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None:
        pytest.skip("torchxrayvision is not installed")
    table = Path(spec.origin).parent / "data" / "vinbigdata-train.csv.gz"
    root = tmp_path / "VinDr-CXR"
    root.mkdir()
    (root / "annotations_train.csv.gz").symlink_to(table)
    own = tmp_path / "sizes.csv"  # MADE UP: the table has no sizes
    with Tables(":memory:") as tables:
        tables.load_csv("t", table, ("image_id",))
        ids = [i for (i,) in tables.rows("SELECT DISTINCT image_id FROM t")]
    own.write_text("image_id,width,height\n" + "".join(f"{i},4000,4000\n" for i in ids))
    collection = VindrCXR(VindrCXR.Config(root=root, sizes=own))
    counts: Counter[str] = Counter()
    with Tables(":memory:") as tables:
        collection.build(tables)
        counts["rows"] = tables.value("SELECT count(*) FROM boxes_train")
        for record in collection.records(tables):
            counts["images"] += 1
            counts["healthy"] += record.healthy
            counts["pairs"] += len(record.findings)
        assert collection.remarks(tables) == []
    assert counts == {"rows": 67914, "images": 15000, "healthy": 10606, "pairs": 15365}
