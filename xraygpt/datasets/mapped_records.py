"""Records in a memory-mapped file, so that the size of a corpus does not affect memory use.

Worker processes share the file.
"""

from __future__ import annotations

import mmap
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from xraygpt.common.paths import cache_root
from xraygpt.datasets.base import Record
from xraygpt.media.base import MediaRef

BUFFER = 2**20  # size of the write buffer, in bytes


class RecordFile:
    """An append-only temporary file without a name, deleted when the last process closes it."""

    def __init__(self) -> None:
        try:
            folder = cache_root()
            folder.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=folder, buffering=BUFFER)  # noqa: SIM115
        except OSError:  # fall back to the system's temporary folder, which may be in memory
            self.file = tempfile.TemporaryFile(buffering=BUFFER)  # noqa: SIM115
        self.size = 0
        self.map: mmap.mmap | None = None

    def append(self, data: bytes) -> int:
        """Append bytes and return their offset."""
        self.file.write(data)
        self.size += len(data)
        return self.size - len(data)

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes between two offsets."""
        if self.map is None or len(self.map) < end:
            self.file.flush()
            self.map = mmap.mmap(self.file.fileno(), self.size, access=mmap.ACCESS_READ)
        return self.map[start:end]


class MappedRecords(Sequence[Record]):
    """Records that are unpickled on access; slices share the file.

    Args:
        records: Records to append, one by one.
        file: File in which the records are stored; None creates a new file.
    """

    def __init__(self, records: Iterable[Record] = (), file: RecordFile | None = None) -> None:
        self._file = file or RecordFile()
        self._offsets = np.empty((0, 3), dtype=np.int64)  # start, end of the media, end
        self._new_offsets = array("q")  # the same for records appended since the last access
        for record in records:
            self.append(record)

    def append(self, record: Record) -> None:
        """Add a record at the end."""
        refs = [tuple(ref) for ref in record.media]  # plain tuples take half the time
        media = pickle.dumps(refs, protocol=pickle.HIGHEST_PROTOCOL)
        rest = (record.sample_id, record.study_id, record.turns, record.meta)
        data = media + pickle.dumps(rest, protocol=pickle.HIGHEST_PROTOCOL)
        self._append_pickled(data, len(media))

    def _append_pickled(self, data: bytes, media_size: int) -> None:
        start = self._file.append(data)
        self._new_offsets.extend((start, start + media_size, start + len(data)))

    def _all_offsets(self) -> np.ndarray:
        if self._new_offsets:
            new = np.frombuffer(self._new_offsets, dtype=np.int64).reshape(-1, 3)
            self._offsets = np.concatenate([self._offsets, new])
            self._new_offsets = array("q")
        return self._offsets

    def __len__(self) -> int:
        return len(self._all_offsets())

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> MappedRecords: ...
    def __getitem__(self, index: int | slice) -> Record | MappedRecords:
        offsets = self._all_offsets()
        if isinstance(index, slice):
            part = MappedRecords(file=self._file)
            part._offsets = offsets[index]
            return part
        start, media_end, end = offsets[index].tolist()
        data = self._file.read(start, end)
        sample_id, study_id, turns, meta = pickle.loads(data[media_end - start :])
        return Record(sample_id, study_id, _unpickle_media(data), turns, meta)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def media(self) -> Iterator[tuple[MediaRef, ...]]:
        """Yield the distinct `Record.media` in order, without unpickling the other data."""
        offsets = self._all_offsets()
        ranges = zip(offsets[:, 0].tolist(), offsets[:, 1].tolist(), strict=True)
        for pickled in dict.fromkeys(self._file.read(start, end) for start, end in ranges):
            yield _unpickle_media(pickled)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the content for a process that does not inherit the file."""
        pickled = [
            (self._file.read(start, end), media_end - start)
            for start, media_end, end in self._all_offsets().tolist()
        ]
        return _from_pickled, (pickled,)


def _unpickle_media(pickled: bytes) -> tuple[MediaRef, ...]:
    return tuple(MediaRef._make(fields) for fields in pickle.loads(pickled))


def _from_pickled(pickled: list[tuple[bytes, int]]) -> MappedRecords:
    records = MappedRecords()
    for data, media_size in pickled:
        records._append_pickled(data, media_size)
    return records
