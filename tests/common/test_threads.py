"""Waiting threads sleep soon, unless the user has configured OpenMP; jobs have a thread each."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from xraygpt.common.threads import in_threads

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


def test_jobs_have_one_thread_each_and_keep_their_order():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        jobs = [lambda i=i: (i, torch.get_num_threads(), torch.is_inference_mode_enabled())
                for i in range(7)]  # fmt: skip
        assert in_threads(jobs) == [(i, 1, True) for i in range(7)]
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            in_threads([lambda: 1 / 0])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
