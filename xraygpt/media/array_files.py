"""Lazy access to arrays in `.npy`, `.npz`, `.safetensors` and Parquet files.

Only the header of a file is read when it is opened, and only the requested rows afterwards. Nothing
is ever unpickled: arrays of Python objects are refused.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from xraygpt.common.errors import DataError
from xraygpt.common.requirements import INSTALL_PARQUET

ARRAY_SUFFIXES = (".npy", ".safetensors", ".npz", ".parquet")
MAX_WHOLE = 256 * 2**20
"""Most bytes that are decoded for one row: a compressed array, or a Parquet row group."""
_NUMBERS = "biuf"  # kinds of numpy dtypes

Rows = int | slice | list[int]


@dataclass(frozen=True)
class LazyArray:
    """An array on disk.

    Attributes:
        shape: Its shape.
        read: Returns the elements of the first axis that an index selects.
    """

    shape: tuple[int, ...]
    read: Callable[[Rows], np.ndarray]


@contextmanager
def open_array(file: str, name: str = "") -> Iterator[LazyArray]:
    """Context manager that opens an array.

    Args:
        file: A file with one of the `ARRAY_SUFFIXES`.
        name: Name of the tensor, of the member of an `.npz` file, or of the Parquet column; "" if
            there is only one.

    Raises:
        DataError: The file does not contain this array, or one that can be read row by row.
    """
    if file.endswith(".safetensors"):
        with _open_safetensors(file, name) as array:
            yield array
    elif file.endswith(".npz"):
        yield _open_npz(file, name)
    elif file.endswith(".parquet"):
        yield _open_parquet(file, name)
    else:
        yield _open_npy(file)


def array_shape(file: str, name: str = "") -> tuple[int, ...]:
    """Return the shape of an array, of which only the header is read.

    Raises:
        DataError: The file is missing or damaged, or see `open_array`.
    """
    try:
        with open_array(file, name) as array:
            return array.shape
    except DataError:
        raise
    except Exception as error:  # damaged files fail in many ways
        raise DataError(f"{file}: cannot be read as an array ({error})") from None


def _choose(file: str, name: str, names: Sequence[str], kind: str) -> str:
    """Return the requested name, or the only one there is."""
    if not name and len(names) != 1:
        listed = ", ".join(names) or "none"
        raise DataError(
            f"{file} does not contain exactly one {kind}; set `tensor` to one of: {listed}"
        )
    chosen = name or names[0]
    if chosen not in names:
        raise DataError(f"{file} has no {kind} '{name}'; it contains {', '.join(names)}")
    return chosen


# ---- .npy and .npz -------------------------------------------------------------------------------


def _read_header(file: str, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header in numpy's format: the shape, whether it is in Fortran order, the dtype."""
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        reader = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(stream)
    if dtype.hasobject:
        raise DataError(
            f"{file}: the array contains Python objects (dtype {dtype}), which are never read, "
            "since unpickling can run code; save an array of numbers"
        )
    if dtype.kind not in _NUMBERS:
        raise DataError(f"{file}: the array has dtype {dtype}; save an array of numbers")
    return shape, fortran, dtype


def _map(file: str, header: tuple[tuple[int, ...], bool, np.dtype[Any]], offset: int) -> LazyArray:
    """Map an array whose numbers start at an offset in a file."""
    shape, fortran, dtype = header
    array: np.ndarray
    if 0 in shape:
        array = np.empty(shape, dtype)
    else:
        order = "F" if fortran else "C"
        array = np.memmap(file, dtype, "r", offset, shape, order)  # type: ignore[call-overload]
    return _in_memory(array)


def _in_memory(array: np.ndarray) -> LazyArray:
    # An array without axes has no rows to select.
    return LazyArray(array.shape, lambda rows: array[rows] if array.ndim else array)


def _open_npy(file: str) -> LazyArray:
    with Path(file).open("rb") as stream:
        header = _read_header(file, stream)
        return _map(file, header, stream.tell())


def _open_npz(file: str, name: str) -> LazyArray:
    with zipfile.ZipFile(file) as archive:
        members = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        info = archive.getinfo(f"{_choose(file, name, members, 'array')}.npy")
        with archive.open(info) as stream:
            header = _read_header(file, stream)
            if info.compress_type == zipfile.ZIP_STORED:
                return _map(file, header, _data_offset(file, info) + stream.tell())
            return _in_memory(_decompress(file, header, stream))


def _data_offset(file: str, info: zipfile.ZipInfo) -> int:
    """Return where a stored member begins; the local header's lengths may differ from `info`."""
    with Path(file).open("rb") as stream:
        stream.seek(info.header_offset + 26)  # .ZIP File Format Specification, 4.3.7
        lengths = np.frombuffer(stream.read(4), "<u2")
    return info.header_offset + 30 + int(lengths.sum(dtype=np.int64))


def _decompress(
    file: str, header: tuple[tuple[int, ...], bool, np.dtype[Any]], stream: IO[bytes]
) -> np.ndarray:
    shape, fortran, dtype = header
    count = int(np.prod(shape, dtype=np.int64))
    size = count * dtype.itemsize
    if size > MAX_WHOLE:
        raise DataError(
            f"{file}: the array is compressed and takes {size / 2**20:.0f} MiB, too much to be "
            f"decompressed for each row (limit {MAX_WHOLE / 2**20:.0f} MiB); save it with np.savez "
            "or np.save instead of np.savez_compressed"
        )
    values = np.frombuffer(stream.read(size), dtype, count)
    return values.reshape(shape, order="F" if fortran else "C")


# ---- .safetensors --------------------------------------------------------------------------------


@contextmanager
def _open_safetensors(file: str, name: str) -> Iterator[LazyArray]:
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        tensor = tensors.get_slice(_choose(file, name, sorted(tensors.keys()), "tensor"))

        def read(rows: Rows) -> np.ndarray:
            if isinstance(rows, list):
                chosen: torch.Tensor = torch.stack([tensor[i] for i in rows])
            else:
                chosen = tensor[rows]
            array: np.ndarray = (chosen if chosen.dtype == torch.uint8 else chosen.float()).numpy()
            return array

        yield LazyArray(tuple(tensor.get_shape()), read)


# ---- Parquet -------------------------------------------------------------------------------------


def _open_parquet(file: str, name: str) -> LazyArray:
    status = Path(file).stat()
    table = _parquet_column(file, name, (os.getpid(), status.st_mtime_ns, status.st_size))
    return LazyArray((table.starts[-1], table.width), table.read)


@lru_cache(maxsize=8)
def _parquet_column(file: str, name: str, version: tuple[int, ...]) -> _ParquetColumn:
    """Open a column; kept for later rows of the same file (`version`: process, time, size)."""
    return _ParquetColumn(file, name)


class _ParquetColumn:
    """A column of lists of equally many numbers, of which whole row groups are decoded."""

    def __init__(self, file: str, name: str) -> None:
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise DataError(f"{file}: Parquet needs pyarrow; {INSTALL_PARQUET}") from None
        self.file, self._arrow = file, arrow
        self._table = parquet.ParquetFile(file, memory_map=True)
        schema = self._table.schema_arrow
        lists = [f.name for f in schema if _is_list_of_numbers(f.type)]
        self.name = _choose(file, name, lists, "column of lists of numbers")
        metadata = self._table.metadata
        counts = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        self.starts: list[int] = [0, *np.cumsum(counts, dtype=np.int64).tolist()]
        self.width = self._find_width(schema.field(self.name).type)
        self._group: tuple[int, np.ndarray] | None = None  # the row group decoded last

    def _find_width(self, kind: Any) -> int:
        if self._arrow.types.is_fixed_size_list(kind):
            return int(kind.list_size)
        batches = self._table.iter_batches(1, columns=[self.name], use_threads=False)
        first = next(iter(batches), None)
        return 0 if first is None else len(first.column(0)[0].as_py() or ())

    def read(self, rows: Rows) -> np.ndarray:
        """Return rows, (width,) for an index and (n, width) otherwise."""
        if isinstance(rows, int):
            return self._row(rows)
        indices = range(*rows.indices(self.starts[-1])) if isinstance(rows, slice) else rows
        chosen = [self._row(i) for i in indices]
        return np.stack(chosen) if chosen else np.empty((0, self.width), np.float32)

    def _row(self, index: int) -> np.ndarray:
        group = int(np.searchsorted(self.starts, index, "right")) - 1
        decoded = self._group  # a local name, since other threads may replace the attribute
        if decoded is None or decoded[0] != group:
            self._group = decoded = group, self._decode(group)
        row: np.ndarray = decoded[1][index - self.starts[group]]
        return row

    def _decode(self, group: int) -> np.ndarray:
        """Decode this column of a row group, (rows, width)."""
        metadata = self._table.metadata.row_group(group)
        columns = [metadata.column(i) for i in range(metadata.num_columns)]
        size = sum(
            c.total_uncompressed_size
            for c in columns
            if c.path_in_schema.split(".")[0] == self.name
        )
        if size > MAX_WHOLE:
            raise DataError(
                f"{self.file}: row group {group} of the column {self.name} takes "
                f"{size / 2**20:.0f} MiB, too much to be decoded for each row (limit "
                f"{MAX_WHOLE / 2**20:.0f} MiB); write the file with smaller row groups, or use "
                ".safetensors"
            )
        column = self._table.read_row_group(group, [self.name], use_threads=False).column(0)
        lists = column.combine_chunks()
        values = lists.flatten()
        rows = metadata.num_rows
        lengths = self._arrow.compute.list_value_length(lists).drop_null().to_numpy()
        if len(lengths) != rows or values.null_count or (lengths != self.width).any():
            first = self.starts[group]
            raise DataError(
                f"{self.file}: the column {self.name} has empty cells, or lists that do not "
                f"contain {self.width} numbers, in rows {first} to {first + rows - 1}"
            )
        decoded: np.ndarray = values.to_numpy(zero_copy_only=False).reshape(rows, self.width)
        return decoded


def _is_list_of_numbers(kind: Any) -> bool:
    from pyarrow import types

    is_list = types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)
    return is_list and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type))
