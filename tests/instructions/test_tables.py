"""The database of a collection's tables."""

from __future__ import annotations

import gzip
import zipfile

import pytest

from xraygpt.common.errors import DataError
from xraygpt.instructions.tables import Tables

TEXT = '\ufeffid, Value,note\na,1,"two\nlines"\nb,,"x, y"\n\n'


def load(path, *args, **options) -> list[tuple]:
    with Tables(":memory:") as tables:
        tables.load_csv("t", path, *args, **options)
        return list(tables.rows("SELECT * FROM t"))


@pytest.mark.parametrize("kind", ["plain", "gz", "zip"])
def test_csv_files_are_read_plain_or_compressed(tmp_path, kind):
    path = tmp_path / f"t.csv{'' if kind == 'plain' else '.' + kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("t.csv", TEXT)
    else:
        (gzip.open if kind == "gz" else open)(path, "wb").write(TEXT.encode())
    rows = load(path, ("id", "value", "note"), ("absent",), key="id")
    assert rows == [("a", "1", "two\nlines", None), ("b", None, "x, y", None)]


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(TEXT)
    with pytest.raises(DataError, match=r"t.csv: there is no column 'valeu'; did you mean 'Value'"):
        load(path, ("id", "valeu"))
    assert load(path, ("key|id",))[0] == ("a",), "either of two names"


def test_a_row_of_another_length_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(DataError, match="row 3: 3 cells, but the header has 2 columns"):
        load(path, ("a",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "cannot read .*none.csv: No such file"),
        ("t.csv", b"a\n\xff\xfe\n", "is not UTF-8 text"),
        ("t.csv.gz", b"no gzip", "cannot read .*t.csv.gz"),
        ("t.zip", b"no zip", "cannot read .*t.zip"),
        ("t.csv", b"", "there is no column 'a'"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / name, ("a",))


def test_an_archive_with_two_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.csv", TEXT)
        archive.writestr("b.csv", TEXT)
    with pytest.raises(DataError, match="expected one file in the archive, got 2"):
        load(tmp_path / "t.zip", ("id",))
