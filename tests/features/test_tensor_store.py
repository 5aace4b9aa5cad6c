"""A store of tensors: whole or not there, for many processes, and bounded."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
import torch

from xraygpt.features.tensor_store import TensorStore, make_room, size_of, used_now


def filled(folder, names, shard_bytes=4096):
    store = TensorStore(folder, shard_bytes)
    for name in names:
        store.put(name, torch.full((4, 8), float(name[1:])))
    store.flush()
    return store


def names_of(count, mark="a"):
    return [f"{mark}{i}" for i in range(count)]


def test_what_a_kill_left_is_swept_and_what_is_being_written_stays(tmp_path):
    folder = filled(tmp_path / "store", names_of(3)).folder
    old, new = (folder / f"{n}.tmp-1" for n in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half a shard")
    os.utime(old, (1, 1))
    filled(folder, names_of(3, "b"))
    assert not old.exists() and new.exists()
    assert len(TensorStore(folder)) == 6


def test_what_was_put_comes_back_in_its_dtype(tmp_path):
    store = TensorStore(tmp_path / "store", shard_bytes=100)
    wanted = {
        "whole": torch.randn(3, 5),
        "half": torch.randn(2, 7).half(),
        "odd": torch.randn(1).half(),  # what lies behind it is not aligned to four bytes
        "behind": torch.randn(4),
        "part": torch.arange(10.0)[::2],
    }
    for name, one in wanted.items():
        store.put(name, one)
    assert len(store) == 5 and store.get("none") is None
    store.flush()
    other = TensorStore(tmp_path / "store")
    for name, one in wanted.items():
        assert name in other and torch.equal(other.get(name), one)
        assert other.get(name).dtype == one.dtype


def test_few_files_hold_many(tmp_path):
    filled(tmp_path, names_of(100))
    files = list(tmp_path.iterdir())
    assert len(files) == 4  # 32 of 128 bytes each
    assert not [p for p in files if ".tmp" in p.name]


def test_what_is_mapped_takes_no_memory_of_its_own(tmp_path):
    store = TensorStore(tmp_path)
    store.put("large", torch.ones(64 * 2**20 // 4))
    store.flush()
    before = _anonymous()
    large = TensorStore(tmp_path).get("large")
    assert float(large.sum()) == large.numel()
    assert _anonymous() - before < 8 * 2**20


def _anonymous() -> int:
    """Bytes of memory that no file stands for."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    found = dict(line.split(":") for line in lines)
    return int(found["Anonymous"].split()[0]) * 1024


def _write(folder, mark):
    filled(folder, names_of(200, mark), shard_bytes=1000)


@pytest.mark.slow
def test_processes_write_at_once_and_a_pickled_one_reads(tmp_path):
    store = TensorStore(tmp_path)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(tmp_path, m)) for m in "abc"]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    store.refresh()
    assert len(store) == 600
    assert store.get("b17").unique().item() == 17
    moved = pickle.loads(pickle.dumps(store))
    assert moved.get("c199").unique().item() == 199


def test_many_shards_are_read_with_few_open(tmp_path, monkeypatch):
    monkeypatch.setattr("xraygpt.features.tensor_store.OPEN", 3)
    store = filled(tmp_path, names_of(40), shard_bytes=1)
    kept = [store.get(name) for name in names_of(40)]
    assert len(store._open) == 3
    assert [int(one[0, 0]) for one in kept] == list(range(40))


def test_a_full_disk_leaves_no_half_shard(tmp_path, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xraygpt.features.tensor_store.save_file", full)
    store = TensorStore(tmp_path)
    store.put("one", torch.ones(3))
    with pytest.raises(OSError, match="No space left"):
        store.flush()
    assert not list(tmp_path.iterdir())


def test_room_is_made_by_age_of_use(tmp_path):
    for n, name in enumerate(("old", "older", "kept", "new")):
        filled(tmp_path / name, names_of(32))
        used_now(tmp_path / name)
        os.utime(tmp_path / name / ".used", (n, n))
    os.utime(tmp_path / "older" / ".used", (-1, -1))
    each = size_of(tmp_path / "new")
    left = make_room(tmp_path, each, 4 * each, keep=[tmp_path / "kept"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "new", "old"] and left == each
    left = make_room(tmp_path, 10 * each, 4 * each, keep=[tmp_path / "kept"])
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and left == 3 * each


def test_one_taken_away_meanwhile_is_missing(tmp_path):
    filled(tmp_path, names_of(3))
    store = TensorStore(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    assert store.get("a1") is None and "a1" not in store
