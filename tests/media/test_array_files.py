"""Lazy reading of .npz and Parquet, faulty arrays, and labels of rows."""

from __future__ import annotations

import zipfile
from fractions import Fraction

import numpy as np
import pytest
from safetensors.numpy import save_file

from xraygpt.common.errors import DataError
from xraygpt.media import array_files
from xraygpt.media.array_files import array_shape, open_array
from xraygpt.media.base import MediaRef, read_media_file
from xraygpt.media.row_labels import join_row_labels, split_row_labels

MATRIX = np.arange(60, dtype=np.float32).reshape(12, 5)


def write_parquet(path, matrix, *, fixed=True, column="embedding", row_group_size=5):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    flat = arrow.array(matrix.reshape(-1))
    lists = (
        arrow.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
        if fixed
        else arrow.array(matrix.tolist(), arrow.list_(arrow.float64()))
    )
    table = arrow.table({"study": [f"s{i}" for i in range(len(matrix))], column: lists})
    parquet.write_table(table, path, row_group_size=row_group_size)


@pytest.fixture(params=["npy", "npy_fortran", "npz", "npz_compressed", "safetensors", "parquet"])
def file(request, tmp_path):
    kind = request.param
    path = tmp_path / f"m.{kind.split('_')[0]}"
    if kind == "npy_fortran":
        np.save(path, np.asfortranarray(MATRIX))
    elif kind == "npy":
        np.save(path, MATRIX)
    elif kind.startswith("npz"):
        (np.savez_compressed if "compressed" in kind else np.savez)(path, echo=MATRIX)
    elif kind == "safetensors":
        save_file({"echo": MATRIX}, path)
    else:
        write_parquet(path, MATRIX)
    return path


def test_rows_are_the_same_in_every_format(file):
    assert array_shape(str(file)) == (12, 5)
    for ref, expected in (
        (MediaRef(file), MATRIX),
        (MediaRef(file, index=11), MATRIX[11:]),
        (MediaRef(file, frames=(3, 9, 1)), MATRIX[3:9]),  # across Parquet row groups
        (MediaRef(file, frames=(0, 12, 5)), MATRIX[::5]),
    ):
        media = read_media_file(ref)
        assert media.kind == "embedding" and np.array_equal(media.data, expected)
    for ref, message in (
        (MediaRef(file, index=12), "row 12 was requested, but the file has 12"),
        (MediaRef(file, frames=(8, 13, 1)), "rows 8 to 13 .* the file has 12 rows"),
    ):
        with pytest.raises(DataError, match=message):
            read_media_file(ref)


def test_a_stored_member_is_mapped_and_a_compressed_one_is_not_expanded_for_rows(
    tmp_path, monkeypatch
):
    np.savez(tmp_path / "a.npz", x=MATRIX, y=MATRIX[:, :2].astype(np.float16))
    np.savez_compressed(tmp_path / "b.npz", x=MATRIX)
    with open_array(str(tmp_path / "a.npz"), "y") as array:
        rows = array.read([3, 1])
    assert np.array_equal(rows, MATRIX[[3, 1], :2])
    with open_array(str(tmp_path / "a.npz"), "x") as array:
        assert isinstance(array.read(slice(0, 2)), np.memmap)
    monkeypatch.setattr(array_files, "MAX_WHOLE", 100)
    with pytest.raises(DataError, match=r"compressed .* np\.savez or np\.save instead"):
        read_media_file(MediaRef(tmp_path / "b.npz", index=0))
    read_media_file(MediaRef(tmp_path / "a.npz", index=0, tensor="x"))


def test_parquet_decodes_only_the_row_groups_it_needs(tmp_path, monkeypatch):
    write_parquet(tmp_path / "m.parquet", MATRIX)
    decoded = []
    decode = array_files._ParquetColumn._decode

    def counting(self, group):
        decoded.append(group)
        return decode(self, group)

    monkeypatch.setattr(array_files._ParquetColumn, "_decode", counting)
    for index in (5, 6, 9, 11):
        read_media_file(MediaRef(tmp_path / "m.parquet", index=index))
    assert decoded == [1, 2]
    monkeypatch.setattr(array_files, "MAX_WHOLE", 10)
    with pytest.raises(DataError, match=r"row group 0 of the column .* smaller row group"):
        read_media_file(MediaRef(tmp_path / "m.parquet", index=0))


def test_parquet_lists_of_any_kind_and_their_faults(tmp_path):
    write_parquet(tmp_path / "v.parquet", MATRIX, fixed=False)
    assert np.array_equal(read_media_file(MediaRef(tmp_path / "v.parquet")).data, MATRIX)
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for name, column in (
        ("ragged", arrow.array([[1.0, 2.0], [3.0]])),
        ("null", arrow.array([[1.0, 2.0], None])),
        ("nullvalue", arrow.array([[1.0, 2.0], [3.0, None]])),
    ):
        parquet.write_table(arrow.table({"e": column}), tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match="empty cells, or lists that do not contain 2 numbers"):
            read_media_file(MediaRef(tmp_path / f"{name}.parquet", index=0))
    parquet.write_table(arrow.table({"e": ["text"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"column of lists of numbers; .*: none"):
        read_media_file(MediaRef(tmp_path / "t.parquet", index=0))


def test_pickled_and_faulty_arrays_are_refused(tmp_path):
    objects = np.array([[Fraction(1, 2)]], dtype=object)
    np.save(tmp_path / "o.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "o.npz", x=objects)
    np.save(tmp_path / "t.npy", np.array(["a"]))
    np.savez(tmp_path / "two.npz", a=MATRIX, b=MATRIX)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "o.npy").read_bytes()[:40])
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    for value in (np.nan, np.inf):
        bad = MATRIX.copy()
        bad[7, 2] = value
        np.save(tmp_path / f"{value}.npy", bad)
    np.save(tmp_path / "empty.npy", np.empty((0, 5), np.float32))
    for name, message in (
        ("o.npy", "Python objects .* never read"),
        ("o.npz", "Python objects .* never read"),
        ("t.npy", "dtype <U1; save an array of numbers"),
        ("two.npz", "set `tensor` to one of: a, b"),
        ("cut.npy", "cannot be read as an array"),
        ("cut.npz", "cannot be read as an array"),
        ("nan.npy", "1 of 60 values are NaN or infinite"),
        ("inf.npy", "1 of 60 values are NaN or infinite"),
        ("empty.npy", "there are no embeddings"),
    ):
        with pytest.raises(DataError, match=f"{name}.*{message}"):
            read_media_file(MediaRef(tmp_path / name))
    assert read_media_file(MediaRef(tmp_path / "nan.npy", index=6)).data.shape == (1, 5)
    with pytest.raises(DataError, match=r"nan.npy, index 7: 1 of 5 values"):
        read_media_file(MediaRef(tmp_path / "nan.npy", index=7))


def test_a_member_whose_local_header_is_longer_than_in_the_directory(tmp_path):
    """The extra field of the local header differs, e.g. for files larger than 4 GiB."""
    np.save(tmp_path / "x.npy", MATRIX)
    with (
        zipfile.ZipFile(tmp_path / "m.npz", "w") as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write((tmp_path / "x.npy").read_bytes())
    assert np.array_equal(read_media_file(MediaRef(tmp_path / "m.npz")).data, MATRIX)


def test_row_labels_round_trip():
    labels = join_row_labels(["A4C", "PLAX", ""], ["colour", "", ""])
    assert labels == "A4C:colour|PLAX:|:"
    assert split_row_labels(labels, 3) == [("A4C", "colour"), ("PLAX", ""), ("", "")]
    assert split_row_labels("PLAX", 2) == [("PLAX", "")] * 2
    assert join_row_labels(["", ""], ["", ""]) == "" and split_row_labels("", 1) == [("", "")]
    assert split_row_labels(join_row_labels(["A4C"], [""]), 1) == [("A4C", "")]
    with pytest.raises(DataError, match="for 3 rows, but there are 2"):
        split_row_labels(labels, 2)
    with pytest.raises(DataError, match="2 views, but 1 types"):
        join_row_labels(["a", "b"], [""])
    for label in ("A4C|PLAX", "A4C:colour"):
        for arguments in (([label], [""]), ([""], [label])):
            with pytest.raises(DataError, match=r"contains .* rename it"):
                join_row_labels(*arguments)
