"""Tensor stores: atomic, shared between processes, and limited in size."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
import torch

from xraygpt.features.tensor_store import TensorStore, evict_stores, folder_size, mark_used


def filled(folder, names, file_bytes=4096):
    store = TensorStore(folder, file_bytes)
    for name in names:
        store.put(name, torch.full((4, 8), float(name[1:])))
    store.flush()
    return store


def names_of(count, mark="a"):
    return [f"{mark}{i}" for i in range(count)]


def test_stale_temporary_files_are_removed_and_recent_ones_kept(tmp_path):
    folder = filled(tmp_path / "store", names_of(3)).folder
    old, new = (folder / f"{n}.tmp-1" for n in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half a file")
    os.utime(old, (1, 1))
    filled(folder, names_of(3, "b"))
    assert not old.exists() and new.exists()
    assert len(TensorStore(folder)) == 6


def test_tensors_keep_their_dtype(tmp_path):
    store = TensorStore(tmp_path / "store", file_bytes=100)
    tensors = {
        "float": torch.randn(3, 5),
        "half": torch.randn(2, 7).half(),
        "odd": torch.randn(1).half(),  # the next one is not aligned to four bytes
        "next": torch.randn(4),
        "part": torch.arange(10.0)[::2],
    }
    for name, tensor in tensors.items():
        store.put(name, tensor)
    assert len(store) == 5 and store.get("none") is None
    store.flush()
    other = TensorStore(tmp_path / "store")
    for name, tensor in tensors.items():
        assert name in other and torch.equal(other.get(name), tensor)
        assert other.get(name).dtype == tensor.dtype


def test_many_tensors_share_few_files(tmp_path):
    filled(tmp_path, names_of(100))
    files = list(tmp_path.iterdir())
    assert len(files) == 4  # 32 of 128 bytes each
    assert not [p for p in files if ".tmp" in p.name]


def test_tensors_are_mapped_and_not_copied(tmp_path):
    store = TensorStore(tmp_path)
    store.put("large", torch.ones(64 * 2**20 // 4))
    store.flush()
    before = _anonymous()
    large = TensorStore(tmp_path).get("large")
    assert float(large.sum()) == large.numel()
    assert _anonymous() - before < 8 * 2**20


def _anonymous() -> int:
    """Bytes of memory that are not mapped from a file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    values = dict(line.split(":") for line in lines)
    return int(values["Anonymous"].split()[0]) * 1024


def _write(folder, mark):
    filled(folder, names_of(200, mark), file_bytes=1000)


@pytest.mark.slow
def test_several_processes_write_and_a_pickled_store_reads(tmp_path):
    store = TensorStore(tmp_path)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(tmp_path, m)) for m in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    store.refresh()
    assert len(store) == 600
    assert store.get("b17").unique().item() == 17
    moved = pickle.loads(pickle.dumps(store))
    assert moved.get("c199").unique().item() == 199


def test_many_files_are_read_with_few_open(tmp_path, monkeypatch):
    monkeypatch.setattr("xraygpt.features.tensor_store.MAX_OPEN_FILES", 3)
    store = filled(tmp_path, names_of(40), file_bytes=1)
    tensors = [store.get(name) for name in names_of(40)]
    assert len(store._open_files) == 3
    assert [int(tensor[0, 0]) for tensor in tensors] == list(range(40))


def test_a_full_disk_leaves_no_incomplete_file(tmp_path, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xraygpt.features.tensor_store.save_file", full)
    store = TensorStore(tmp_path)
    store.put("one", torch.ones(3))
    with pytest.raises(OSError, match="No space left"):
        store.flush()
    assert not list(tmp_path.iterdir())


def test_the_least_recently_used_stores_are_evicted(tmp_path):
    for n, name in enumerate(("old", "older", "kept", "new")):
        filled(tmp_path / name, names_of(32))
        mark_used(tmp_path / name)
        os.utime(tmp_path / name / ".used", (n, n))
    os.utime(tmp_path / "older" / ".used", (-1, -1))
    size = folder_size(tmp_path / "new")
    room = evict_stores(tmp_path, size, 4 * size, keep=[tmp_path / "kept"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "new", "old"] and room == size
    room = evict_stores(tmp_path, 10 * size, 4 * size, keep=[tmp_path / "kept"])
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and room == 3 * size


def test_a_tensor_of_a_removed_file_is_missing(tmp_path):
    filled(tmp_path, names_of(3))
    store = TensorStore(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    assert store.get("a1") is None and "a1" not in store
