"""A forked command is a process like any other: nothing of its own reaches another one."""

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
TELL = """
import json, os, random, sys, threading
import numpy, torch
print(json.dumps({
    "env": os.environ.get("MINE"), "cwd": os.getcwd(), "argv": sys.argv, "name": __name__,
    "threads": threading.active_count(), "drawn": [random.random(), float(numpy.random.rand())],
    "torch": float(torch.rand(1)), "plug_in": "my_plug_in" in sys.modules,
}))
sys.modules["my_plug_in"] = sys
torch.manual_seed(5)
os.environ["MINE"] = "changed"
"""


def python(*words: str, **how) -> subprocess.CompletedProcess:
    return processes.run([sys.executable, *words], capture_output=True, text=True, **how)


def test_nothing_is_left_of_the_one_before(tmp_path):
    env = {**os.environ, "MINE": "yes"}
    told = [json.loads(python("-c", TELL, "x", cwd=tmp_path, env=env).stdout) for _ in range(2)]
    drawn = [one.pop("drawn") for one in told]
    assert told[0] == told[1]  # as after a start, torch draws the same and Python does not
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]
    expected = {"env": "yes", "cwd": str(tmp_path), "argv": ["-c", "x"], "name": "__main__"}
    assert told[0].items() >= (expected | {"threads": 1, "plug_in": False}).items()
    assert "MINE" not in os.environ


@pytest.mark.parametrize("start", [subprocess.run, processes.run])
@pytest.mark.parametrize(("code", "returned", "said"), [
    ("pass", 0, ""), ("import sys; sys.exit(3)", 3, ""), ("raise SystemExit('no')", 1, "no\n"),
    ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ("import atexit, sys; atexit.register(print, 'end', file=sys.stderr)", 0, "end\n"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
])  # fmt: skip
def test_it_ends_as_a_cold_one_does(start, code, returned, said):
    done = start([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == returned and done.stderr.endswith(said)
    assert bool(done.stderr) == bool(said)


def test_it_reads_and_is_killed_with_its_group():
    assert python("-c", "print(input() * 2)", input="ab\n").stdout == "abab\n"
    waits = "import time; print('up', flush=True); time.sleep(600)"
    line = [sys.executable, "-c", waits]
    with processes.Popen(line, stdout=processes.PIPE, text=True, start_new_session=True) as one:
        assert one.stdout.readline() == "up\n" and one.poll() is None
        assert os.getpgid(one.pid) == one.pid
        os.killpg(one.pid, signal.SIGTERM)
    assert one.returncode == -signal.SIGTERM


def test_modules_and_scripts_are_found():
    assert "usage:" in python("-m", "xraygpt.score", "--help", cwd=REPO).stdout
    assert "--cfg-path" in python("train.py", "--help", cwd=REPO).stdout
    done = python("-c", "import xraygpt; print(xraygpt.__file__)")
    assert done.stdout.startswith(str(REPO))
