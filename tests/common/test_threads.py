"""Threads sleep while they wait, unless somebody decided otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os
{first}
from xraygpt.common.cli import guarded
guarded(lambda: print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "variables", "expected"),
    [
        ("", {}, "None 10000"),
        ("import torch", {}, "None None"),
        ("", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ("", {"GOMP_SPINCOUNT": "5"}, "None 5"),
    ],
)
def test_they_sleep_where_nobody_decided(first, variables, expected):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    free = {k: v for k, v in os.environ.items() if k not in names}
    script = [sys.executable, "-c", SCRIPT.format(first=first)]
    done = subprocess.run(script, env=free | variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
