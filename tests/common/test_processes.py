"""A forked command behaves like a new process and does not affect later ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests import processes
from tests.conftest import REPO

pytestmark = pytest.mark.slow
REPORT = """
import json, os, random, sys, threading
import numpy, torch
print(json.dumps({
    "env": os.environ.get("MINE"), "cwd": os.getcwd(), "argv": sys.argv, "name": __name__,
    "threads": threading.active_count(), "random": [random.random(), float(numpy.random.rand())],
    "torch": float(torch.rand(1)), "plug_in": "my_plug_in" in sys.modules,
}))
sys.modules["my_plug_in"] = sys
torch.manual_seed(5)
os.environ["MINE"] = "changed"
"""


def python(*args: str, **options) -> subprocess.CompletedProcess:
    return processes.run([sys.executable, *args], capture_output=True, text=True, **options)


def test_each_process_starts_fresh(tmp_path):
    env = {**os.environ, "MINE": "yes"}
    command = ("-c", REPORT, "x")
    reports = [json.loads(python(*command, cwd=tmp_path, env=env).stdout) for _ in range(2)]
    random = [report.pop("random") for report in reports]
    assert reports[0] == reports[1]  # as in new processes, only torch has a fixed seed
    assert random[0][0] != random[1][0] and random[0][1] != random[1][1]
    expected = {"env": "yes", "cwd": str(tmp_path), "argv": ["-c", "x"], "name": "__main__"}
    assert reports[0].items() >= (expected | {"threads": 1, "plug_in": False}).items()
    assert "MINE" not in os.environ


@pytest.mark.parametrize("start", [subprocess.run, processes.run])
@pytest.mark.parametrize(("code", "returned", "stderr"), [
    ("pass", 0, ""), ("import sys; sys.exit(3)", 3, ""), ("raise SystemExit('no')", 1, "no\n"),
    ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ("import atexit, sys; atexit.register(print, 'end', file=sys.stderr)", 0, "end\n"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
])  # fmt: skip
def test_it_ends_like_a_cold_start(start, code, returned, stderr):
    result = start([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == returned and result.stderr.endswith(stderr)
    assert bool(result.stderr) == bool(stderr)


def test_it_reads_stdin_and_is_killed_with_its_group():
    assert python("-c", "print(input() * 2)", input="ab\n").stdout == "abab\n"
    waits = "import time; print('up', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", waits]
    with processes.Popen(
        command, stdout=processes.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout.readline() == "up\n" and child.poll() is None
        assert os.getpgid(child.pid) == child.pid
        os.killpg(child.pid, signal.SIGTERM)
    assert child.returncode == -signal.SIGTERM


def test_modules_and_scripts_are_found():
    assert "usage:" in python("-m", "xraygpt.score", "--help", cwd=REPO).stdout
    assert "--cfg-path" in python("train.py", "--help", cwd=REPO).stdout
    result = python("-c", "import xraygpt; print(xraygpt.__file__)")
    assert result.stdout.startswith(str(REPO))
