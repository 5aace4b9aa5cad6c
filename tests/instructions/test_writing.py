"""The writer: the same bytes from any number of processes, and after any interruption."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.instructions.toy import MIXTURE, toy_rows, toy_writer, write_toy, write_yaml
from xraygpt.boxes.parsing import parse_boxes
from xraygpt.common.errors import ConfigError, DataError, InputError
from xraygpt.instructions import writing
from xraygpt.instructions.items import Item

FORMATS = "formats: [llava, jsonl, sharegpt]"


def digests(folder: Path) -> dict[str, str]:
    """Return the hash of every file but the databases."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "work" not in path.relative_to(folder).parts
    }


def read_items(folder: Path, split: str = "train") -> list[Item]:
    return [Item.from_json(line) for line in (folder / f"items/{split}.jsonl").open()]


def test_every_task_is_written_to_every_format(tmp_path):
    writer = toy_writer(tmp_path, output=FORMATS)
    result = writer.write()
    items = read_items(writer.out)
    assert result.items.total() == len(items) == sum(result.items.values())
    assert len({item.item_id for item in items}) == len(items)
    assert {item.task for item in items} == {
        "report", "classification", "region_grounding", "abnormality_grounding", "detection",
        "phrase_grounding", "grounded_report", "conversation", "grounded_conversation",
    }  # fmt: skip
    llava = json.loads((writer.out / "llava/train.json").read_text())
    lines = [json.loads(line) for line in (writer.out / "llava/train.jsonl").open()]
    sharegpt = json.loads((writer.out / "sharegpt/train.json").read_text())
    assert llava == lines and len(llava) == len(sharegpt) == len(items)
    for item, row, shared in zip(items, llava, sharegpt, strict=True):
        assert row["id"] == shared["id"] == item.item_id and row["image"] == shared["images"][0]
        assert row["conversations"][0]["value"].startswith("<image>\n")
        assert [t["from"] for t in row["conversations"]] == ["human", "gpt"] * len(item.turns)
        text = json.dumps(row["conversations"])
        boxes = [box for each in item.boxes for box in each.boxes]
        found = parse_boxes(text, "thousand").boxes
        assert "<boxes:" not in text and len(found) == len(boxes)
        assert all(a == pytest.approx(b) for a, b in zip(found, boxes, strict=True))
    assert set(llava[0]) <= {"image", "conversations", "id", "labels", "pathologies"}
    manifest = json.loads((writer.out / "manifest.json").read_text())
    assert manifest["use"] == "research use only" and manifest["items"] == len(items)
    assert not (writer.out / "work/parts").exists()


def test_the_file_is_the_same_from_one_and_from_eight_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("xraygpt.instructions.planning.CHUNK", 3)
    write_toy(tmp_path / "TOY", toy_rows(50))
    one = toy_writer(tmp_path, output=FORMATS, out="one")
    eight = toy_writer(tmp_path, output=FORMATS, out="eight")
    eight.workers = 8
    assert one.write() == eight.write()
    assert digests(one.out) == digests(eight.out)


def test_a_killed_run_continues_to_the_same_bytes(tmp_path, monkeypatch):
    """Five times, the run dies while it writes a part, joins files or finishes."""
    monkeypatch.setattr("xraygpt.instructions.planning.CHUNK", 4)
    write_toy(tmp_path / "TOY", toy_rows(30))
    whole = toy_writer(tmp_path, output=FORMATS, out="whole")
    whole.write()
    expected = digests(whole.out)

    class Killed(BaseException):
        pass

    def dies_at(call: int, name: str, module):
        original, calls = getattr(module, name), [0]

        def function(*args, **kwargs):
            calls[0] += 1
            if calls[0] == call:
                raise Killed
            return original(*args, **kwargs)

        return function

    from xraygpt.jobs import instructions as job

    for module, name, call in (
        (writing, "write_bytes_atomic", 1), (writing, "write_bytes_atomic", 9),
        (writing, "write_text_atomic", 5), (job, "join_parts", 2), (job, "write_text_atomic", 2),
    ):  # fmt: skip
        killed = toy_writer(tmp_path, output=FORMATS, out="killed")
        with monkeypatch.context() as patch:
            patch.setattr(module, name, dies_at(call, name, module))
            with pytest.raises(Killed):
                killed.write()
        assert digests(killed.out) != expected
    toy_writer(tmp_path, output=FORMATS, out="killed").write()
    assert digests(killed.out) == expected


@pytest.mark.slow
def test_sigkill_and_another_number_of_workers_give_the_same_bytes(tmp_path):
    write_toy(tmp_path / "TOY", toy_rows(4500), images=False)
    output = f"{FORMATS}, images: unchecked"
    yaml = write_yaml(tmp_path / "set.yaml", tmp_path / "TOY", MIXTURE, output)

    def start(out: str, workers: int) -> subprocess.Popen:
        options = ["--cfg-path", yaml, "--out", tmp_path / out, "--workers", workers]
        command = [sys.executable, "-m", "xraygpt.prepare_instructions", *options]
        return subprocess.Popen(
            list(map(str, command)), cwd=REPO, stderr=subprocess.DEVNULL, start_new_session=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    assert start("whole", 2).wait() == 0
    run = start("killed", 2)
    done = tmp_path / "killed/work/parts/done"
    while not (done.is_dir() and any(done.iterdir())):
        assert run.poll() is None
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert start("killed", 1).wait() == 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_parts_of_other_settings_are_not_reused(tmp_path, monkeypatch):
    first = toy_writer(tmp_path, output=FORMATS)
    monkeypatch.setattr("xraygpt.jobs.instructions.shutil.rmtree", lambda *_: None)
    first.write()
    assert (first.out / "work/parts").is_dir()
    monkeypatch.undo()
    second = toy_writer(tmp_path, output=f"{FORMATS}, seed: 1")
    second.write()
    third = toy_writer(tmp_path, output=f"{FORMATS}, seed: 1", out="third")
    third.write()
    assert digests(second.out) == digests(third.out)


def test_a_changed_table_is_read_again(tmp_path):
    writer = toy_writer(tmp_path)
    writer.write()
    rows = toy_rows()
    rows[1]["report"] = "Changed."
    write_toy(tmp_path / "TOY", rows)
    toy_writer(tmp_path).write()
    assert any(item.turns[0][1] == "Changed." for item in read_items(writer.out))


def test_repeats_are_other_words_for_the_same_thing(tmp_path):
    mixture = "\n  - {collection: toy, task: detection, repeats: 4}\n"
    writer = toy_writer(tmp_path, mixture)
    writer.write()
    by_image: dict[str, list[Item]] = {}
    for item in read_items(writer.out):
        by_image.setdefault(item.image_id, []).append(item)
    assert {len(items) for items in by_image.values()} == {4}
    for items in by_image.values():
        assert len({item.boxes for item in items}) == 1
    assert sum(len({i.turns for i in items}) > 1 for items in by_image.values()) >= 9
    suffixes = [item.item_id.rpartition("_")[2] for item in by_image["i0000"]]
    assert suffixes == ["i0000", "r1", "r2", "r3"]


def test_a_cap_keeps_the_same_items_whatever_else_is_in_the_mixture(tmp_path):
    def kept(mixture: str, out: str) -> list[str]:
        writer = toy_writer(tmp_path, mixture, out=out)
        writer.write()
        return [i.item_id for i in read_items(writer.out) if i.task == "region_grounding"]

    alone = "\n  - {collection: toy, task: region_grounding, cap: 7}\n"
    more = alone + "  - {collection: toy, task: report}\n"
    assert len(kept(alone, "a")) == 7 and kept(alone, "a") == kept(more, "b")
    assert set(kept(alone, "a")) < set(kept(alone.replace("7", "11"), "c"))
    assert len(kept(alone.replace("7", "1000"), "d")) == 20
    repeated = kept(alone.replace("cap: 7", "cap: 7, repeats: 2"), "e")
    assert len(repeated) == 14 and set(kept(alone, "a")) < set(repeated)


def test_views_and_requirements_filter_images(tmp_path):
    mixture = "\n  - {collection: toy, task: classification, views: lateral, require: [report]}\n"
    writer = toy_writer(tmp_path, mixture)
    writer.write()
    rows = {r["id"]: r for r in toy_rows()}
    for item in read_items(writer.out):
        assert rows[item.image_id]["view"] == "LATERAL" and rows[item.image_id]["report"]


def test_patients_in_two_splits_are_refused_excluded_or_allowed(tmp_path):
    """RadVLM's anatomical test images are training images of its other tasks (fault 8)."""
    mixture = (
        "\n  - {collection: toy, task: report, splits: [train]}"
        "\n  - {collection: toy, task: region_grounding, splits: [test], into: test}\n"
    )
    held_out = {r["patient"] for r in toy_rows() if r["split"] == "test"}
    shared = {r["patient"] for r in toy_rows() if r["split"] == "train"} & held_out
    assert shared
    with pytest.raises(InputError, match=r"2 of test \(toy\) also in train \(toy\), such"):
        toy_writer(tmp_path, mixture).write()
    excluding = toy_writer(tmp_path, mixture, "overlap: exclude", out="e")
    result = excluding.write()
    assert result.left_out[0]["patient held out elsewhere"] > 0
    assert not {i.patient_id for i in read_items(excluding.out)} & held_out
    assert {i.patient_id for i in read_items(excluding.out, "test")} == held_out
    allowing = toy_writer(tmp_path, mixture, "overlap: allow", out="a")
    allowing.write()
    assert {i.patient_id for i in read_items(allowing.out)} & held_out == shared


def test_missing_images_stop_the_run_or_are_listed(tmp_path):
    write_toy(tmp_path / "TOY")
    (tmp_path / "TOY/i0001.png").unlink()
    with pytest.raises(DataError, match=r"there is no image .*i0001.png; set output.images"):
        toy_writer(tmp_path).write()
    writer = toy_writer(tmp_path, output="images: skip")
    result = writer.write()
    assert [Path(p).name for p in result.missing] == ["i0001.png"]
    assert (writer.out / "missing_images.txt").read_text() == f"{tmp_path}/TOY/i0001.png\n"
    assert result.left_out[0]["image missing"] == 1
    assert "i0001" not in {i.image_id for i in read_items(writer.out)}


def test_pixels_are_those_of_the_resized_image_and_need_a_size(tmp_path):
    mixture = "\n  - {collection: toy, task: region_grounding}\n"
    writer = toy_writer(tmp_path, mixture, "boxes: pixels, max_pixels: 200704")
    writer.write()
    rows = json.loads((writer.out / "llava/train.json").read_text())
    answers = [row["conversations"][1]["value"] for row in rows]
    found = {box for text in answers for box in parse_boxes(text, "pixels", (392, 476)).boxes}
    wanted = [(0.1, 0.2, 0.3, 0.4), (0.55, 0.2, 0.75, 0.4)]
    assert sorted(found) == [pytest.approx(box, abs=0.002) for box in wanted]


def test_another_run_in_the_same_folder_is_refused(tmp_path):
    writer = toy_writer(tmp_path)
    with writer._lock(), pytest.raises(InputError, match="another run is writing to"):
        toy_writer(tmp_path).write()


def test_mistakes_in_the_yaml_file_are_named(tmp_path):
    for mixture, message in (
        (
            "\n  - {collection: tay, task: report}\n",
            "there is no collection 'tay'; did you mean 'toy'",
        ),
        ("\n  - {collection: toy, task: reports}\n", "mixture.0.task"),
        ("\n  - {collection: toy, task: report, repeats: 0}\n", "must be at least 1"),
        (" []\n", "must have at least one entry"),
    ):
        with pytest.raises(ConfigError, match=message):
            toy_writer(tmp_path, mixture)


def test_a_missing_collection_is_named_with_its_alternatives(tmp_path, monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)
    writer = toy_writer(tmp_path)
    writer.collections["toy"].config.root = None
    with pytest.raises(DataError, match="toy: set its root, or the environment variable DATA_DIR"):
        writer.write()
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert writer.write().items.total() > 0
    (tmp_path / "TOY/rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"toy: there is no rows.jsonl in .*TOY"):
        writer.write()
