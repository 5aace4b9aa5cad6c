"""Numbers as text: the same form everywhere, and never "-0.000"."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import REPO
from xraygpt.common.numbers import decimal, interval, with_interval

# Packages and commands that write scores, losses or probabilities for a reader.
WRITERS = ("evaluation", "metrics", "jobs", "runners", "quickstart.py", "score.py", "compare.py")
SIGNED_NAMES = {"value", "low", "high", "difference", "gap", "score", "loss"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.0, "0.000"), (-0.0004, "0.000"), (-0.0006, "-0.001"), (0.2195, "0.220"), (1, "1.000")],
)
def test_a_value_that_rounds_to_zero_has_no_minus_sign(value, text):
    assert decimal(value) == text


def test_signs_digits_and_undefined_values():
    assert decimal(-0.00001, signed=True) == "+0.000"
    assert decimal(0.25, 2, signed=True) == "+0.25"
    assert decimal(float("nan")) == "nan"
    row = {"value": -0.0001, "low": -0.00049, "high": 0.0123}
    assert with_interval(row) == "0.000 (0.000 to 0.012)"
    assert interval(row, 1) == "0.0 to 0.0"


def test_scores_are_written_by_these_functions_only():
    """A format such as `{row['value']:.3f}` would print "-0.000" for some difference."""
    found = []
    for name in WRITERS:
        path = REPO / "xraygpt" / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
                    words = set(re.findall(r"[a-z]+", ast.unparse(node.value)))
                    digits = re.search(r"\.[1-9]f", ast.unparse(node.format_spec))
                    if digits and words & SIGNED_NAMES and "numbers.py" not in file.name:
                        found.append(f"{file.name}:{node.lineno}: {ast.unparse(node)}")
    allowed = [f for f in found if f.startswith("page_charts.py")]  # positions in per cent
    assert found == allowed
    assert "|format(" not in (REPO / "xraygpt" / "data" / "result_page.html").read_text()
