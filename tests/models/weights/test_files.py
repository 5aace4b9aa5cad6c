"""Files that are no usable weights: each is reported, and no code in them is run."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from xraygpt.common.errors import WeightsError
from xraygpt.models.weights.files import read_state_dict

STATE = {"a.weight": torch.arange(600.0), "b": torch.ones(2, 3)}


class Malicious:
    """Creates a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def saved(path: Path, content, *, old: bool = False) -> bytes:
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path.read_bytes()


def zipped(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "no weights")
    return path.read_bytes()


def safe(path: Path) -> bytes:
    save_file(STATE, path)
    return path.read_bytes()


BAD = {
    "empty.pth": (lambda p: b"", "is empty"),
    "page.pth": (lambda p: b"<!DOCTYPE html><html>Sign in</html>", "is a web page"),
    "error.bin": (lambda p: b"<?xml version='1.0'?><Error>AccessDenied</Error>", "a web page"),
    "pointer.safetensors": (
        lambda p: b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "git lfs pull",
    ),
    "text.pth": (
        lambda p: b"404: Not Found",
        r"is text, not weights \('404: not found'\)",
    ),
    "half.pth": (lambda p: saved(p, STATE)[:-900], "is truncated"),
    "half_old.pth": (lambda p: saved(p, STATE, old=True)[:-900], "is truncated"),
    "half.safetensors": (lambda p: safe(p)[:-100], "is truncated"),
    "zip.pth": (zipped, "is truncated, damaged or not a weight file"),
    "list.pth": (lambda p: saved(p, [1, 2]), "contains a list instead of named tensors"),
    "tensor.pth": (lambda p: saved(p, torch.ones(3)), "contains a Tensor instead of named tensors"),
    "nothing.pth": (lambda p: saved(p, {"epoch": 3}), "contains a dict instead of named tensors"),
    "model_is_none.pth": (
        lambda p: saved(p, {"model": None, "epoch": 3}),
        "instead of named tensors",
    ),
    "code.pth": (lambda p: saved(p, {"model": Malicious(p.parent / "folder")}), "run code"),
    "code_old.pth": (lambda p: saved(p, Malicious(p.parent / "folder"), old=True), "run code"),
    "raw_pickle.pth": (
        lambda p: pickle.dumps(Malicious(p.parent / "folder")),
        "run code|not a weight file",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_files_are_reported_and_not_run(tmp_path, name):
    make, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(make(path))
    with pytest.raises(WeightsError, match=message) as error:
        read_state_dict(path)
    assert name in str(error.value)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s}])
def test_usual_nestings_are_read(tmp_path, wrap, old):
    saved(tmp_path / "x.pth", wrap(STATE), old=old)
    read = read_state_dict(tmp_path / "x.pth")
    assert all(torch.equal(read[k], STATE[k]) for k in STATE) and len(read) == len(STATE)
