"""Messages about a corpus name the label that the user wrote."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import REPO
from xraygpt.common.errors import DataError
from xraygpt.datasets.builder import build_corpora
from xraygpt.datasets.caption_folder import CaptionFolder
from xraygpt.experiment import NO_IMAGES


def docstrings(tree: ast.AST) -> set[int]:
    """Ids of string constants that are statements, such as docstrings."""
    return {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}


def test_no_message_contains_the_placeholder_label():
    found = []
    for file in [*sorted((REPO / "xraygpt").rglob("*.py")), *sorted(REPO.glob("*.py"))]:
        tree = ast.parse(file.read_text())
        skipped = docstrings(tree)
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and "<label>" in text and id(node) not in skipped:
                found.append(f"{file.relative_to(REPO)}:{node.lineno}")
    assert not found


def test_a_missing_folder_is_reported_under_the_label(tmp_path: Path):
    missing = CaptionFolder.Config(storage=tmp_path / "gone")
    no_images = CaptionFolder.Config(storage=tmp_path)
    first, second = build_corpora({"clinic_a": missing, "clinic_b": no_images}, NO_IMAGES)
    with pytest.raises(DataError, match=r"\(datasets\.clinic_a\.storage\)"):
        first.build("train")
    with pytest.raises(DataError, match=r"\(datasets\.clinic_b\.images\)"):
        second.build("train")
