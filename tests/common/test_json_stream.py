"""Files of records are read one by one, and faults are named with their place."""

from __future__ import annotations

import builtins
import json
import re
import tracemalloc

import pytest

from xraygpt.common import json_stream
from xraygpt.common.errors import DataError
from xraygpt.common.json_stream import iter_records, read_json_object

ROWS = [{"a": i, "t": 'x[]{}\\"é,' * (i % 5), "n": [1.5, None, True]} for i in range(40)]


def write(tmp_path, text, name="x.json"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def fault(path):
    with pytest.raises(DataError) as caught:
        list(iter_records(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_read_as_json_does_wherever_the_window_ends(
    tmp_path, monkeypatch, chunk, indent
):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    for text in (json.dumps(ROWS, indent=indent), json.dumps(ROWS, ensure_ascii=False)):
        assert list(iter_records(write(tmp_path, text))) == list(enumerate(ROWS))


@pytest.mark.parametrize("chunk", [1, 5, 2**20])
def test_numbers_are_not_cut_by_the_window(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    values = [12345, -1.5e10, True, None, "a", [], {}]
    assert [v for _, v in iter_records(write(tmp_path, json.dumps(values)))] == values


def test_other_layouts(tmp_path):
    lines = "\n".join(json.dumps(row) for row in ROWS)
    assert list(iter_records(write(tmp_path, lines + "\n\n", "x.jsonl"))) == list(enumerate(ROWS))
    assert list(iter_records(write(tmp_path, lines))) == list(enumerate(ROWS))  # as `datasets` does
    assert list(iter_records(write(tmp_path, "\ufeff" + json.dumps(ROWS[0])))) == [(0, ROWS[0])]
    assert list(iter_records(write(tmp_path, " [ ] "))) == []
    table = list(iter_records(write(tmp_path, "a,b\n1,x\n2,y\n", "x.csv")))
    assert table == [(0, {"a": "1", "b": "x"}), (1, {"a": "2", "b": "y"})]


@pytest.mark.parametrize("chunk", [1, 8, 2**20])
def test_a_comma_after_the_last_record_is_named_with_its_line(tmp_path, monkeypatch, chunk):
    """README of CMR-VL shows such a file."""
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    message = fault(write(tmp_path, '[\n{"a": 1},\n{"a": 2},\n\n]\n'))
    assert "line 3 is not JSON: a comma follows the last record (record 1); remove it" in message


@pytest.mark.parametrize("chunk", [1, 8, 2**20])
def test_a_comma_after_the_last_entry_of_a_record_is_named_with_its_line(
    tmp_path, monkeypatch, chunk
):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    for text in ('[\n{"a": 1},\n{"a": 2,\n\n}\n]', '[\n{"a": 1},\n{"a": [2,\n]\n}\n]'):
        message = fault(write(tmp_path, text))
        assert "line 3 is not JSON: a comma follows the last entry; remove it" in message


@pytest.mark.parametrize("chunk", [1, 8, 2**20])
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('[\n{"a": 1},\n{"a": ', "line 3 is not JSON: Expecting value"),
        ('[\n{"a": 1},\n{"a": "x', "line 3 is not JSON: Unterminated string"),
        ('[\n{"a": 1}\n', "line 3 is not JSON: the end is missing after record 0"),
        ('[\n{"a": 1},\n', "line 3 is not JSON: the end is missing after record 0"),
        ("[\n", "line 2 is not JSON: the end is missing"),
        ('[\n{"a": 1}\n{"a": 2}]', "line 3 is not JSON: a comma is missing after record 0"),
        ('[\n{"a": 1}] x', "line 2 is not JSON: there is text after the end"),
        ("[\n{'a': 1}]", "line 2 is not JSON: Expecting property name"),
        ("", "is empty"),
        (" \n", "is empty"),
    ],
)
def test_each_fault_of_an_array_is_named_with_its_line(tmp_path, monkeypatch, chunk, text, part):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    assert part in fault(write(tmp_path, text))


def test_a_fault_is_found_without_reading_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", 64)
    path = write(tmp_path, "[{'a': 1}, " + '{"b": 2}, ' * 5000 + "{}]")
    reads = []
    monkeypatch.setattr(
        json_stream._Array, "_read_more", lambda self, old=json_stream._Array._read_more: (
            reads.append(1), old(self)
        )[1],
    )  # fmt: skip
    fault(path)
    assert len(reads) < 4


def test_a_bad_line_of_jsonl_is_named(tmp_path):
    message = fault(write(tmp_path, '{"a": 1}\n\n{"a": \n', "x.jsonl"))
    assert "line 3 is not JSON: Expecting value" in message


def test_files_that_cannot_be_read_are_named(tmp_path):
    assert "No such file" in fault(tmp_path / "gone.json")
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    assert "is not UTF-8" in fault(tmp_path / "latin.json")
    assert "cannot be read as Parquet" in fault(write(tmp_path, "no", "x.parquet"))


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [{"id": i, "messages": [{"role": "user", "content": str(i)}]} for i in range(600)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert list(iter_records(tmp_path / "x.parquet")) == list(enumerate(rows))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert "Parquet needs pyarrow; type pip install" in fault(write(tmp_path, "", "x.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    peaks = []
    for count in (1000, 20_000):
        rows = ({"id": i, "text": "effusion " * 30, "images": [f"{i}.png"]} for i in range(count))
        path = tmp_path / f"{count}.{suffix}"
        if suffix == "json":
            path.write_text(json.dumps(list(rows)))
        else:
            path.write_text("\n".join(json.dumps(row) for row in rows))
        tracemalloc.start()
        assert sum(1 for _ in iter_records(path)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    small_bytes = 1000 * 330
    assert peaks[1] < 3 * max(peaks[0], small_bytes) + 2 * json_stream.CHUNK
    assert peaks[1] < 20_000 * 330


def test_an_object_is_read_and_its_faults_are_named(tmp_path):
    path = write(tmp_path, '{"a": {"file_name": "x"}}')
    assert read_json_object(path) == {"a": {"file_name": "x"}}
    for text, part in (
        ('{\n"a": 1,\n\n}', "line 2 is not JSON: a comma follows the last entry; remove it"),
        ('{\n"a": \n', "line 3 is not JSON: Expecting value"),
        ("[]", "expected an object, got list"),
    ):
        with pytest.raises(DataError, match=re.escape(part)):
            read_json_object(write(tmp_path, text))
    with pytest.raises(DataError, match="No such file"):
        read_json_object(tmp_path / "gone.json")
