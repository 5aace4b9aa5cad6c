"""Records in a mapped file: a corpus of any size takes no memory of its own, in no worker."""

from __future__ import annotations

import mmap
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from xraygpt.common.paths import cache_root
from xraygpt.datasets.base import Record
from xraygpt.media.base import MediaRef

BUFFER = 2**20  # bytes written at once


class RecordFile:
    """A file without a name, gone with the last process that holds it."""

    def __init__(self) -> None:
        try:
            folder = cache_root()
            folder.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=folder, buffering=BUFFER)  # noqa: SIM115
        except OSError:  # the system's folder, which may be memory
            self.file = tempfile.TemporaryFile(buffering=BUFFER)  # noqa: SIM115
        self.size = 0
        self.map: mmap.mmap | None = None

    def append(self, data: bytes) -> int:
        """Returns where it begins."""
        self.file.write(data)
        self.size += len(data)
        return self.size - len(data)

    def read(self, begin: int, end: int) -> bytes:
        """What was appended there."""
        if self.map is None or len(self.map) < end:
            self.file.flush()
            self.map = mmap.mmap(self.file.fileno(), self.size, access=mmap.ACCESS_READ)
        return self.map[begin:end]


class MappedRecords(Sequence[Record]):
    """Records that are unpickled whenever they are asked for; a slice shares the file.

    Args:
        records: Put into `file` one by one.
        file: Where; None makes one.
    """

    def __init__(self, records: Iterable[Record] = (), file: RecordFile | None = None) -> None:
        self._file = file or RecordFile()
        self._spans = np.empty((0, 3), dtype=np.int64)  # begin, end of the images, end
        self._new: list[tuple[int, int, int]] = []
        for record in records:
            self.append(record)

    def append(self, record: Record) -> None:
        """Add one."""
        refs = [tuple(image) for image in record.media]  # plain: half the time
        images = pickle.dumps(refs, protocol=pickle.HIGHEST_PROTOCOL)
        rest = (record.sample_id, record.study_id, record.turns, record.meta)
        data = images + pickle.dumps(rest, protocol=pickle.HIGHEST_PROTOCOL)
        begin = self._file.append(data)
        self._new.append((begin, begin + len(images), begin + len(data)))

    def _settled(self) -> np.ndarray:
        if self._new:
            self._spans = np.concatenate([self._spans, np.array(self._new, dtype=np.int64)])
            self._new = []
        return self._spans

    def __len__(self) -> int:
        return len(self._settled())

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> MappedRecords: ...
    def __getitem__(self, index: int | slice) -> Record | MappedRecords:
        spans = self._settled()
        if isinstance(index, slice):
            part = MappedRecords(file=self._file)
            part._spans = spans[index]
            return part
        begin, middle, end = spans[index].tolist()
        data = self._file.read(begin, end)
        sample_id, study_id, turns, meta = pickle.loads(data[middle - begin :])
        return Record(sample_id, study_id, _images(data), turns, meta)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def media(self) -> Iterator[tuple[MediaRef, ...]]:
        """Of the records, those of several but once; nothing else is unpickled."""
        spans = self._settled()
        pairs = zip(spans[:, 0].tolist(), spans[:, 1].tolist(), strict=True)
        for pickled in dict.fromkeys(self._file.read(begin, end) for begin, end in pairs):
            yield _images(pickled)

    def __reduce__(self) -> tuple[object, ...]:
        """For a process that does not inherit the file."""
        spans = self._settled().tolist()
        return _again, ([(self._file.read(b, end), middle - b) for b, middle, end in spans],)


def _images(pickled: bytes) -> tuple[MediaRef, ...]:
    return tuple(MediaRef._make(each) for each in pickle.loads(pickled))


def _again(pickled: list[tuple[bytes, int]]) -> MappedRecords:
    records = MappedRecords()
    for data, images in pickled:
        begin = records._file.append(data)
        records._new.append((begin, begin + images, begin + len(data)))
    return records
