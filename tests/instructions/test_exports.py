"""The files that other trainers and tools read."""

from __future__ import annotations

import base64
import io
import json
import tarfile

import pytest
from PIL import Image

from tests.instructions.test_writing import digests, read_items
from tests.instructions.toy import toy_rows, toy_writer, write_toy
from xraygpt.common.errors import DataError
from xraygpt.instructions.exports.sheet import choose, draw
from xraygpt.instructions.exports.webdataset import write_webdataset
from xraygpt.instructions.formats import BoxWriter

BOXES = (
    "\n  - {collection: toy, task: detection, repeats: 2}"
    "\n  - {collection: toy, task: abnormality_grounding, negatives: 1}\n"
)


def written(tmp_path, formats: str, mixture: str = BOXES, out: str = "out"):
    writer = toy_writer(tmp_path, mixture, f"formats: [{formats}]", out=out)
    writer.write()
    return writer.out, read_items(writer.out)


def test_swift_has_a_mark_for_every_box(tmp_path):
    out, items = written(tmp_path, "swift")
    rows = [json.loads(line) for line in (out / "swift/train.jsonl").open()]
    assert len(rows) == len(items)
    for row, item in zip(rows, items, strict=True):
        boxes = [list(box) for each in item.boxes for box in each.boxes]
        text = "".join(m["content"] for m in row["messages"])
        assert text.count("<bbox>") == len(boxes) and row["messages"][0]["content"][:7] == "<image>"
        if boxes:
            assert row["objects"] == {"ref": [], "bbox": boxes, "bbox_type": "norm1"}
        else:
            assert "objects" not in row, "ms-swift wants boxes in it"
    assert any("<bbox> and <bbox>" in json.dumps(row) for row in rows)


def test_words_that_trainers_replace_are_taken_out_of_texts(tmp_path):
    rows = toy_rows(3)
    rows[1]["report"] = "A <bbox> and an <image> in a report."
    write_toy(tmp_path / "TOY", rows)
    mixture = "\n  - {collection: toy, task: report}\n"
    out, _ = written(tmp_path, "llava, swift", mixture)
    row = next(r for r in json.loads((out / "llava/train.json").read_text()) if "i0001" in r["id"])
    assert row["conversations"][1]["value"] == "A  and an  in a report."
    assert json.dumps(row).count("<image>") == 1
    assert "<bbox>" not in (out / "swift/train.jsonl").read_text()


def test_coco_lists_each_box_once_in_pixels(tmp_path):
    out, items = written(tmp_path, "coco")
    coco = json.loads((out / "coco/train.json").read_text())
    assert "research use only" in coco["info"]["description"]
    assert len(coco["images"]) == len({item.image for item in items}) == 10
    assert {(i["width"], i["height"]) for i in coco["images"]} == {(1000, 800)}
    assert [a["id"] for a in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    names = {c["id"]: c["name"] for c in coco["categories"]}
    assert min(names) == 1 and set(names.values()) == {"Nodule/Mass", "ILD"}
    with_findings = sum(not row["healthy"] for row in toy_rows() if row["split"] == "train")
    assert len(coco["annotations"]) == 3 * with_findings, "repeats and tasks share their boxes"
    first = coco["annotations"][0]
    assert first["bbox"] == [100, 160, 200, 160] and first["area"] == 32_000
    pycocotools = pytest.importorskip("pycocotools.coco")
    loaded = pycocotools.COCO(str(out / "coco/train.json"))
    assert len(loaded.getAnnIds()) == len(coco["annotations"])


def test_parquet_has_the_rows_of_the_items(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    out, items = written(tmp_path, "parquet")
    rows = parquet.read_table(out / "parquet/train.parquet").to_pylist()
    assert [row["id"] for row in rows] == [item.item_id for item in items]
    for row, item in zip(rows, items, strict=True):
        assert row["boxes"] == [
            {"text": b.text, "boxes": [list(box) for box in b.boxes]} for b in item.boxes
        ]
        assert row["messages"][0]["content"].startswith("<image>") and row["images"] == [item.image]
        assert "<boxes:" not in json.dumps(row["messages"])
    assert {tuple(row["labels"]) for row in rows if row["labels"] is not None} == {
        (), ("Nodule/Mass", "ILD")
    }  # fmt: skip
    assert any(row["labels"] is None for row in rows), "unknown labels stay unknown"


def test_webdataset_shards_have_one_image_and_one_text_for_each_item(tmp_path, monkeypatch):
    monkeypatch.setattr("xraygpt.instructions.exports.webdataset.SHARD", 7)
    rows = [{**row, "id": f"1.2.{i}"} for i, row in enumerate(toy_rows())]
    rows[0]["id"] = ".".join(["1234567890"] * 12)  # longer than a plain tar header holds
    write_toy(tmp_path / "TOY", rows)
    out, items = written(tmp_path, "webdataset")
    names, keys = [], []
    for shard in sorted((out / "webdataset").iterdir()):
        with tarfile.open(shard) as archive:
            for member in archive.getmembers():
                names.append(member.name)
                if member.name.endswith(".json"):
                    row = json.loads(archive.extractfile(member).read())
                    keys.append(row["id"])
                else:
                    Image.open(io.BytesIO(archive.extractfile(member).read())).verify()
    assert keys == [item.item_id for item in items]
    assert all(name.count(".") == 1 for name in names), "dots would split the key"
    assert [n.split(".")[0] for n in names[::2]] == [n.split(".")[0] for n in names[1::2]]
    (tmp_path / "TOY/1.2.3.png").unlink()
    with pytest.raises(DataError, match=r"cannot read .*1.2.3.png: No such file"):
        write_webdataset(out / "items/train.jsonl", tmp_path / "w", BoxWriter("thousand"))


def test_exports_are_the_same_bytes_each_time(tmp_path):
    pytest.importorskip("pyarrow")
    formats = "swift, coco, parquet, webdataset, sheet"
    first, _ = written(tmp_path, formats)
    second, _ = written(tmp_path, formats, out="again")
    assert digests(first) == digests(second)


def test_the_sheet_shows_questions_answers_and_boxes(tmp_path):
    out, items = written(tmp_path, "sheet")
    page = (out / "sheet/train.html").read_text()
    assert "Research use only" in page and page.count('<div class="card">') == len(items) <= 120
    assert all(item.item_id in page for item in items) and "SYNTHETIC</strong>" not in page
    assert items[0].turns[0][0].replace("'", "&#39;") in page
    item = next(i for i in items if i.boxes and i.boxes[0].boxes)
    picture = Image.open(io.BytesIO(base64.b64decode(draw(item).partition(",")[2])))
    assert picture.size == (320, 256)
    x0, y0, _, y1 = item.boxes[0].boxes[0]
    edge = picture.getpixel((round(x0 * 319), round((y0 + y1) / 2 * 255)))
    inside = picture.getpixel((round(x0 * 319) + 12, round((y0 + y1) / 2 * 255)))
    assert max(edge) - min(edge) > 100 and max(inside) - min(inside) < 30
    chosen = choose(out / "items/train.jsonl", per_task=5)
    assert [len(each) for each in chosen.values()] == [5, 5]


def test_an_image_that_cannot_be_read_is_named_on_the_sheet(tmp_path):
    write_toy(tmp_path / "TOY")
    (tmp_path / "TOY/i0001.png").write_bytes(b"no picture")
    out, _ = written(tmp_path, "sheet")
    assert "i0001.png" in (out / "sheet/train.html").read_text()
