"""Help comes without torch, which takes seconds to load."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPO

ASK = """
import runpy, sys
sys.argv = [{what!r}, "--help"]
try:
    {run}
except SystemExit as end:
    assert not end.code, end.code
heavy = sorted({{"torch", "transformers", "gradio", "numpy"}} & set(sys.modules))
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "what", ["train.py", "evaluate.py", "predict.py", "demo.py", "xraygpt.serve", "xraygpt"]
)
def test_help_loads_nothing_heavy(what: str) -> None:
    run = f'runpy.run_path({str(REPO / what)!r}, run_name="__main__")'
    if not what.endswith(".py"):
        run = f'runpy.run_module({what!r}, run_name="__main__")'
    if what == "xraygpt":
        run = "import xraygpt"
    code = ASK.format(what=what, run=run)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert what == "xraygpt" or "--cfg-path" in done.stdout
