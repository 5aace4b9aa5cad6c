"""Unmet requirements of the installation are reported before it starts."""

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


def test_a_good_machine_has_no_problems(check, tmp_path, monkeypatch):
    monkeypatch.setattr(check.shutil, "disk_usage", lambda _: Usage(2**40, 1, 2**38))
    assert check.problems(str(tmp_path)) == []


def test_each_problem_names_its_fix(check, tmp_path, monkeypatch):
    monkeypatch.setattr(check.sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(check.shutil, "disk_usage", lambda _: Usage(1, 1, 2**30))
    monkeypatch.setattr(check.os, "access", lambda *_: False)
    monkeypatch.setitem(check.sys.modules, "ensurepip", None)
    messages = check.problems(str(tmp_path))
    fixes = ("PYTHON=python3.12", "python3-venv", "Copy the checkout", "Free some space")
    assert len(messages) == 4
    assert all(fix in message for fix, message in zip(fixes, messages, strict=True))


def test_an_existing_environment_needs_no_space(check, tmp_path, monkeypatch):
    monkeypatch.setattr(check.shutil, "disk_usage", lambda _: Usage(1, 1, 2**30))
    (tmp_path / ".venv" / "lib").mkdir(parents=True)
    assert check.problems(str(tmp_path)) == []


def test_make_reports_a_missing_python(tmp_path):
    """With only a copy of the Makefile, so that nothing is installed."""
    (tmp_path / "Makefile").write_text((REPO / "Makefile").read_text())
    for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_text("")
    result = subprocess.run(
        ["make", "install", "PYTHON=python9"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "python9 not found; install Python 3.11 or newer" in result.stderr
