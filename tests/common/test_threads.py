"""Waiting threads sleep soon, unless the user has configured OpenMP."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os
{first}
from xraygpt.common.cli import run_main
run_main(lambda: print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")))
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
def test_spinning_is_limited_unless_configured(first, variables, expected):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    script = [sys.executable, "-c", SCRIPT.format(first=first)]
    result = subprocess.run(
        script, env=clean | variables, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == expected
