"""Which stack of a study is the short-axis cine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.cardiac.hearts import ring, stack_of
from tests.cardiac.test_long_axis import view
from xraygpt.cardiac.stack import is_parallel
from xraygpt.cardiac.study import Patient, Study, is_other_series, role_from_name


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("cine_sax", "SAX"), ("SAX10", "SAX"), ("CINE_segmented_SAX_b3", "SAX"),
        ("Short Axis", "SAX"), ("sa_cine", "SAX"), ("T1 SAX MOLLI", ""), ("tag_sax", ""),
        ("SAX_flow", ""), ("tfl_sr_sax", ""), ("t2_stir_sax", "T2"), ("PSIR SAX", "LGE"),
        ("cine_tra", ""), ("4CH cine", "4CH"),
    ],
)  # fmt: skip
def test_roles_from_names(name, role):
    assert role_from_name(name) == role


def test_a_named_short_axis_wins_over_a_larger_guess():
    """An axial cine has the role by geometry only."""
    small = np.stack([np.stack([ring(12, 8)] * 3)] * 2)
    large = np.stack([np.stack([ring(12, 8)] * 8)] * 2)
    named, guessed = (
        replace(stack_of(small), name="cine_sax"), replace(stack_of(large), name="cine_16")
    )  # fmt: skip
    study = Study([guessed, named], Patient(), [])
    assert study.with_role("SAX")[0].name == "cine_sax"
    assert is_other_series("cine_tra") and not is_other_series("cine_16")


def test_parallel_stacks():
    stack = stack_of(np.stack([np.stack([ring(12, 8)] * 3)] * 2))
    assert is_parallel(stack, replace(stack, axes=np.array([[0.0, 1, 0], [1, 0, 0]])))
    assert not is_parallel(stack, view())
    assert not is_parallel(stack, replace(stack, axes=None, origins=None))
