"""What stands in the way of an installation is said before it starts."""

from __future__ import annotations

import importlib.util
import subprocess
from collections import namedtuple

import pytest

from tests.conftest import REPO

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location("check", REPO / "tools" / "check_machine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_good_machine_hears_nothing(check, tmp_path, monkeypatch):
    monkeypatch.setattr(check.shutil, "disk_usage", lambda _: Usage(2**40, 1, 2**38))
    assert check.problems(str(tmp_path)) == []


def test_each_fault_names_its_way_out(check, tmp_path, monkeypatch):
    monkeypatch.setattr(check.sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(check.shutil, "disk_usage", lambda _: Usage(1, 1, 2**30))
    monkeypatch.setattr(check.os, "access", lambda *_: False)
    monkeypatch.setitem(check.sys.modules, "ensurepip", None)
    said = check.problems(str(tmp_path))
    wanted = ("PYTHON=python3.12", "python3-venv", "Copy the checkout", "Make room")
    assert len(said) == 4 and all(w in s for w, s in zip(wanted, said, strict=True))


def test_an_environment_that_is_there_needs_no_room(check, tmp_path, monkeypatch):
    monkeypatch.setattr(check.shutil, "disk_usage", lambda _: Usage(1, 1, 2**30))
    (tmp_path / ".venv" / "lib").mkdir(parents=True)
    assert check.problems(str(tmp_path)) == []


def test_make_without_that_python_says_which(tmp_path):
    """In a copy of the Makefile alone: nothing is installed."""
    (tmp_path / "Makefile").write_text((REPO / "Makefile").read_text())
    for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_text("")
    done = subprocess.run(
        ["make", "install", "PYTHON=python9"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no python9 here; install Python 3.11 or newer" in done.stderr
