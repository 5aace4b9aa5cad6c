"""The builder `studies`: where embeddings are, labels, questions, and errors for bad input."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from xraygpt.common.config import load
from xraygpt.common.errors import ConfigError, DataError
from xraygpt.datasets.studies import StudiesBuilder
from xraygpt.datasets.study_rows import StudyFields
from xraygpt.experiment import NO_IMAGES, Training
from xraygpt.media.row_labels import split_row_labels

D = 6
REPORT = "The pump is strong."


def embeddings(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, D)).astype(np.float32)


def write_jsonl(folder: Path, rows: list[dict], name: str = "studies.jsonl") -> None:
    text = "".join(json.dumps({"split": "train", "report": REPORT, **r}) + "\n" for r in rows)
    (folder / name).write_text(text)


def dataset(folder: Path, split: str = "train", **settings: object):
    config = StudiesBuilder.Config(storage=folder, **settings)
    return config.build(image_spec=NO_IMAGES).build(split)


def problem(folder: Path, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        dataset(folder, **settings)
    return str(caught.value)


@pytest.fixture
def shared(tmp_path):
    matrix = embeddings(10)
    save_file({"e": matrix}, tmp_path / "e.safetensors")
    return tmp_path, matrix


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_a_file_for_each_study_by_pattern(tmp_path, suffix):
    (tmp_path / "videos").mkdir()
    arrays = {"s1": embeddings(3, 1), "s2": embeddings(1, 2)[0]}
    for study, array in arrays.items():
        path = tmp_path / "videos" / f"{study}.{suffix}"
        if suffix == "npy":
            np.save(path, array)
        elif suffix == "npz":
            np.savez(path, array)
        else:
            save_file({"e": array}, path)
    write_jsonl(tmp_path, [{"study": "s1", "view": ["A4C", "", "PLAX"]}, {"study": "s2"}])
    data = dataset(tmp_path, embeddings=f"{{study}}.{suffix}", images=Path("videos"))
    first, second = data[0], data[1]
    assert np.array_equal(first["media"][0].data, arrays["s1"])
    assert np.array_equal(second["media"][0].data, arrays["s2"][None])
    assert first["turns"] == [
        {"role": "user", "text": "<image>"},
        {"role": "assistant", "text": REPORT},
    ]
    assert first["meta"] == {"views": ["A4C", "", "PLAX"], "types": ["", "", ""]}
    assert split_row_labels(first["media"][0].view, 3)[2] == ("PLAX", "")
    assert second["media"][0].view == "" and second["meta"]["views"] == [""]


def test_rows_of_one_file_are_one_medium_if_they_follow_each_other(shared):
    folder, matrix = shared
    rows = [
        {"study": "one", "row": 4},
        {"study": "range", "row": [5, 6, 7], "view": ["a", "b", "c"], "type": "colour"},
        {"study": "counted", "start": 1, "count": 2},
        {"study": "apart", "row": [9, 0], "view": ["x", "y"]},
    ]
    write_jsonl(folder, rows)
    data = dataset(folder, embeddings="e.safetensors")
    media = [sample["media"] for sample in data]
    assert [len(m) for m in media] == [1, 1, 1, 2]
    for m, expected in zip(media, ([4], [5, 6, 7], [1, 2], [9, 0]), strict=True):
        assert np.array_equal(np.concatenate([x.data for x in m]), matrix[expected])
    assert data.records[1].media[0].frames == (5, 8, 1) and data.records[0].media[0].index == 4
    assert media[1][0].view == "a:colour|b:colour|c:colour"
    assert [m.view for m in media[3]] == ["x:", "y:"]
    assert data[3]["turns"][0]["text"] == "<image> <image>"


def test_csv_with_lists_in_cells_and_own_names(shared):
    folder, matrix = shared
    with (folder / "t.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["accession", "rows", "views", "text", "impression", "split"])
        table.writerow(["a", "1;2", "A4C;", "Line one.\nLine two.", "Good.", "train"])
        table.writerow(["b", "[3, 5]", '["PLAX", "A2C"]', "", "Bad.", "train"])
    fields = StudyFields(study="accession", row="rows", view="views")
    settings = {"embeddings": "e.safetensors", "fields": fields}
    data = dataset(folder, **settings, sections=["text", "impression"])
    assert [r.media[0].frames for r in data.records] == [(1, 3, 1), None]
    assert data[0]["turns"][1]["text"] == "Line one.\nLine two.\nGood."
    assert [v for r in data.records for v in r.meta["views"]] == ["A4C", "", "PLAX", "A2C"]
    assert np.array_equal(data[1]["media"][1].data[0], matrix[5])
    data = dataset(folder, **settings, sections=["text", "impression"], headings=True)
    assert data[1]["turns"][1]["text"] == "Impression: Bad."


def test_one_row_per_video(shared):
    folder, matrix = shared
    rows = [
        {"study": "a", "row": 3, "view": "A4C", "type": "colour"},
        {"study": "a", "row": 4, "view": "PLAX"},
        {"study": "b", "row": 0},
    ]
    write_jsonl(folder, rows)
    settings = {"embeddings": "e.safetensors", "one_row_per": "video"}
    data = dataset(folder, **settings)
    assert len(data) == 2 and data.records[0].media[0].view == "A4C:colour|PLAX:"
    assert np.array_equal(data[0]["media"][0].data, matrix[3:5])
    only = dataset(folder, **settings, views=["PLAX"])
    assert len(only) == 1 and np.array_equal(only[0]["media"][0].data, matrix[4:5])
    write_jsonl(folder, [rows[0], rows[2], rows[1]])
    assert "record 2 (study a): the rows of this study do not follow each other" in problem(
        folder, **settings
    )
    write_jsonl(folder, [rows[0], {**rows[1], "split": "test"}])
    assert "name different splits or patients" in problem(folder, **settings)
    write_jsonl(folder, [rows[0], {**rows[1], "report": "Another."}])
    assert "have different reports" in problem(folder, **settings)
    write_jsonl(folder, [rows[0], {**rows[1], "report": "", "question": "Why?"}])
    assert "cannot be combined with questions" in problem(folder, **settings)
    write_jsonl(folder, [{**rows[0], "study": 1.5}])
    assert "must be text or a whole number, got 1.5" in problem(folder, **settings)


def test_a_file_for_each_video(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"v{i}.npy", embeddings(1, i)[0])
    rows = [{"study": "ab"[i // 2], "file": f"v{i}.npy", "view": f"view{i}"} for i in range(3)]
    write_jsonl(tmp_path, rows)
    data = dataset(tmp_path, one_row_per="video")
    assert [[m.view for m in r.media] for r in data.records] == [["view0:", "view1:"], ["view2:"]]


def test_row_k_of_an_array_belongs_to_row_k_of_the_table(shared):
    folder, matrix = shared
    write_jsonl(folder, [{"study": f"s{i}"} for i in range(10)])
    data = dataset(folder, embeddings="e.safetensors")
    assert np.array_equal(np.concatenate([s["media"][0].data for s in data]), matrix)
    write_jsonl(folder, [{"study": f"s{i}"} for i in range(9)])
    with pytest.raises(DataError, match="has 10 rows, but the table has 9; without a column 'row'"):
        dataset(folder, embeddings="e.safetensors")


def test_a_parquet_file_with_reports_and_embeddings(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    matrix = embeddings(7)
    lists = arrow.FixedSizeListArray.from_arrays(arrow.array(matrix.reshape(-1)), D)
    columns = {
        "study": list(range(7)),
        "report": [REPORT] * 7,
        "split": ["train"] * 6 + ["test"],
        "embedding": lists,
    }
    parquet.write_table(arrow.table(columns), tmp_path / "all.parquet", row_group_size=3)
    data = dataset(tmp_path, embeddings="all.parquet")
    assert np.array_equal(np.concatenate([s["media"][0].data for s in data]), matrix[:6])
    assert dataset(tmp_path, "test", embeddings="all.parquet").records[0].study_id == "6"


def test_questions(shared):
    folder, _ = shared
    rows = [
        {"study": "a", "row": 1, "question": "Is it big?", "answer": "no"},
        {"study": "a", "row": 1, "question": "Is it thick?", "answer": "yes"},
        {"study": "b", "row": 2},
    ]
    write_jsonl(folder, rows)
    data = dataset(folder, embeddings="e.safetensors")
    assert [r.sample_id for r in data.records] == ["a", "a#2", "b"]
    assert [t["text"] for t in data[1]["turns"]] == ["<image> Is it thick?", "yes"]
    assert data[2]["turns"][1]["text"] == REPORT
    assert "question (question) or the answer" in problem(
        folder, embeddings="e.safetensors", target="question"
    )
    none = dataset(folder, embeddings="e.safetensors", target="none", on_error="skip")
    assert len(none[0]["turns"]) == 1


def test_each_fault_names_the_study_and_the_file(tmp_path):
    np.save(tmp_path / "wide.npy", np.ones((2, D + 1), np.float32))
    np.save(tmp_path / "zero.npy", np.ones((0, D), np.float32))
    np.save(tmp_path / "cube.npy", np.ones((2, 3, D), np.float32))
    (tmp_path / "hollow.npy").touch()
    (tmp_path / "broken.npy").write_bytes(b"no array")
    np.save(tmp_path / "good.npy", embeddings(4))
    faults = {
        "gone": ({"file": "gone.npy"}, "embeddings not found"),
        "hollow": ({"file": "hollow.npy"}, "embeddings file is empty|file is empty"),
        "broken": ({"file": "broken.npy"}, "broken.npy: cannot be read as an array"),
        "out": ({"file": "../good.npy"}, "points outside the folder"),
        "torch": ({"file": "e.pt"}, "only read from .npy,.*convert_echo converts"),
        "wide": ({"file": "wide.npy"}, r"wide.npy: .* width 7, but those of study good have 6"),
        "zero": ({"file": "zero.npy"}, r"zero.npy: there are no embeddings"),
        "cube": ({"file": "cube.npy"}, r"cube.npy: embeddings must be \(n, D\)"),
        "range": ({"file": "good.npy", "row": [1, 4]}, "good.npy: row 4 does not exist; .* 4 rows"),
        "minus": ({"file": "good.npy", "row": -1}, "good.npy: row -1 does not exist"),
        "twice": ({"file": "good.npy", "row": [1, 1]}, "good.npy: a row is listed twice"),
        "list": ({"file": "good.npy", "row": []}, "row is an empty list"),
        "word": ({"file": "good.npy", "row": "x"}, "row must be a whole number"),
        "start": ({"file": "good.npy", "start": 1}, "start and count must both be given"),
        "count": ({"file": "good.npy", "start": 1, "count": 0}, "count is 0"),
        "labels": ({"file": "good.npy", "view": ["a", "b"]}, "2 labels in view, .* has 4 rows"),
        "mark": ({"file": "good.npy", "view": "a|b"}, "separate labels"),
        "dict": ({"file": "good.npy", "view": [1]}, "view must be text or a list"),
        "none": ({}, "there is no file of embeddings: set embeddings, or fill the column file"),
        "empty": ({"file": "good.npy", "report": "  "}, r"the report is empty \(report\)"),
        "number": ({"file": "good.npy", "report": 5}, "report must be text, got int"),
        "good": ({"file": "good.npy"}, "in the table twice"),
    }
    rows = [{"study": "good", "file": "good.npy"}]
    rows += [{"study": name, **row} for name, (row, _) in faults.items()]
    write_jsonl(tmp_path, [*rows, {"file": "good.npy"}])
    builder = StudiesBuilder.Config(storage=tmp_path).build(image_spec=NO_IMAGES)
    by_split, problems = builder.records_by_split()
    assert [r.study_id for r in by_split["train"]] == ["good"]
    assert problems.pop().endswith("the study id is missing (fields.study: study)")
    for i, ((name, (_, message)), found) in enumerate(zip(faults.items(), problems, strict=True)):
        assert found.startswith(f"studies.jsonl, record {i + 1} (study {name}): "), found
        assert re.search(message, found), found
    assert problem(tmp_path).startswith(f"{len(faults) + 1} records in")
    assert len(dataset(tmp_path, on_error="skip")) == 1


def test_nan_is_found_when_the_study_is_read(tmp_path):
    for name, value in (("a", 0.0), ("b", np.nan)):
        np.save(tmp_path / f"{name}.npy", np.full((2, D), value, np.float32))
    write_jsonl(tmp_path, [{"study": "a"}, {"study": "b"}])
    data = dataset(tmp_path, embeddings="{study}.npy")
    with pytest.raises(DataError, match=r"sample b: .*b\.npy: 12 of 12 values are NaN"):
        data[1]
    assert dataset(tmp_path, embeddings="{study}.npy", on_error="skip")[1] is None


def test_misspelt_columns_and_settings(shared):
    folder, _ = shared
    (folder / "t.csv").write_text("study,text,row\na,Fine.,1\n")
    settings = {"embeddings": "e.safetensors"}
    assert "no row has the column 'txt' (fields.report); did you mean 'text'" in problem(
        folder, **settings, fields=StudyFields(report="txt")
    ).replace(". Did you mean", "; did you mean")
    (folder / "u.csv").write_text("x\n")
    assert "expected one table, found t.csv, u.csv; set annotations" in problem(folder, **settings)
    with pytest.raises(ValueError, match=r"may contain \{study\}, but no other mark"):
        StudiesBuilder.Config(embeddings="{id}.npy")
    with pytest.raises(ValueError, match="headings: is for columns that `sections` lists"):
        StudiesBuilder.Config(headings=True)


def test_yaml(tmp_path, shared):
    folder, _ = shared
    write_jsonl(folder, [{"study": f"s{i}"} for i in range(10)])
    text = f"""
model: {{arch: xraygpt, model_type: tiny}}
datasets:
  echo:
    builder: studies
    storage: {folder}
    embeddings: e.safetensors
    split: {{field: null, val_fraction: 0.2, near_duplicates: 0.9, numbers: ignore}}
run: {{task: report_generation, max_steps: 1}}
"""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    config = load(Training, path).datasets["echo"]
    assert config.split.near_duplicates == 0.9 and config.missing("datasets.echo") == []
    path.write_text(text.replace("e.safetensors", "none.safetensors"))
    (missing,) = load(Training, path).datasets["echo"].missing("datasets.echo")
    assert "none.safetensors does not exist" in missing.problem
    path.write_text(text.replace("near_duplicates: 0.9", "near_duplicates: 0"))
    with pytest.raises(ConfigError, match="must be above 0; null compares no reports"):
        load(Training, path)
