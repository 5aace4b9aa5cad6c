"""Unmet requirements of the installation are reported before it starts."""

from __future__ import annotations

import importlib.util
import os
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


def test_the_cpu_build_needs_less_space(check, tmp_path, monkeypatch):
    monkeypatch.setattr(check.shutil, "disk_usage", lambda _: Usage(1, 1, 6 * 2**30))
    (message,) = check.problems(str(tmp_path))
    assert "(4 with CPU=1)" in message
    assert check.problems(str(tmp_path), check.NEEDED_GIB_CPU) == []


def make(folder, *arguments):
    """Run make with a copy of the Makefile and empty lists of packages."""
    names = ("requirements.txt", "requirements-dev.txt", "requirements-parity.txt")
    for name in (*names, "constraints.txt", "pyproject.toml"):
        if not (folder / name).exists():  # stamps stay newer than the lists
            (folder / name).write_text("")
    (folder / "Makefile").write_text((REPO / "Makefile").read_text())
    inherited = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # set where make runs these tests
    env = {name: value for name, value in os.environ.items() if name not in inherited}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)


def test_make_reports_a_missing_python(tmp_path):
    """With only a copy of the Makefile, so that nothing is installed."""
    result = make(tmp_path, "install", "PYTHON=python9")
    assert result.returncode == 2
    assert "python9 not found; install Python 3.11 or newer" in result.stderr


@pytest.mark.parametrize("goal", ["quickstart", "demo", "test", "test-fast", "style"])
def test_each_goal_installs_what_it_needs_and_only_install_says_what_is_next(tmp_path, goal):
    output = make(tmp_path, "--dry-run", goal).stdout
    assert "-m venv .venv" in output and "-r requirements-dev.txt" in output
    assert ("requirements-parity.txt" in output) is goal.startswith("test")
    assert "Type next" not in output


@pytest.mark.parametrize("goal", ["install", "install-dev"])
def test_the_last_line_says_what_to_type_next(tmp_path, goal):
    last = make(tmp_path, "--dry-run", goal).stdout.splitlines()[-1]
    assert "Type next: make " in last


def test_only_cpu_takes_torch_from_its_own_index_before_everything_else(tmp_path):
    lines = make(tmp_path, "--dry-run", "install", "CPU=1", "TORCH_INDEX=https://x").stdout
    torch = lines.index("--no-deps --index-url https://x torch torchvision")
    assert torch < lines.index("-r requirements-dev.txt")
    assert "--index-url" not in make(tmp_path, "--dry-run", "install").stdout


def test_cpu_does_not_pass_over_an_environment_with_cuda_libraries(tmp_path):
    (tmp_path / ".venv/lib/python3.11/site-packages/nvidia").mkdir(parents=True)
    (tmp_path / ".venv/bin").mkdir()
    make(tmp_path, "--touch", "install")
    assert "make clean" in make(tmp_path, "install", "CPU=1").stderr
    result = make(tmp_path, "install")
    assert result.returncode == 0, result.stderr
