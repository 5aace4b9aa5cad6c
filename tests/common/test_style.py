"""Rules for the code: sizes, import direction, docstrings."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO

PACKAGE = REPO / "xraygpt"
FILES = sorted(PACKAGE.rglob("*.py"))
# Imports run from left to right only.
ORDER = [
    "common",
    "media",
    "boxes",
    "measure",
    "segmentation",
    "studies",
    "cardiac",
    "ultrasound",
    "processors",
    "prompting",
    "vocabulary",
    "phantom",
    "metrics",
    "curation",
    "instructions",
    "datasets",
    "models",
    "features",
    "tasks",
    "answering",
    "runners",
    "evaluation",
    "judging",
    "conversation",
    "experiment",
    "requirements_check",
    "loading",
    "compare",
    "jobs",
    "validate",
    "score",
    "probe",
    "synthesize",
    "convert",
    "convert_echo",
    "pack",
    "embed",
    "sweep",
    "prepare_nnunet",
    "prepare_ultrasound",
    "prepare_images",
    "prepare_conversations",
    "prepare_instructions",
    "download",
    "curate",
    "serve",
    "demo",
    "quickstart",
]
MAX_FILE, MAX_CLASS, MAX_FUNCTION = 450, 340, 60  # lines
MIN_DOCSTRING = 3  # words


def code_lines(node: ast.AST, source: list[str]) -> int:
    """Number of lines of a function without blank lines, comments and its docstring."""
    doc = ast.get_docstring(node, clean=False)
    lines = source[node.lineno - 1 : node.end_lineno]
    code = [s for s in (line.strip() for line in lines) if s and not s.startswith("#")]
    return len(code) - (len(doc.strip().splitlines()) if doc else 0)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes(path: Path):
    source = path.read_text().splitlines()
    assert len(source) <= MAX_FILE
    for node in ast.walk(ast.parse("\n".join(source))):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < MAX_CLASS, node.name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert code_lines(node, source) <= MAX_FUNCTION, node.name
            arguments = node.args.args
            assert len([a for a in arguments if a.arg != "self"]) <= 8, node.name


def imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def position(module: list[str]) -> int | None:
    """Index in ORDER of a module's first name below the package; None if it is not listed."""
    return ORDER.index(module[1]) if module[1:] and module[1] in ORDER else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path):
    importer = position(list(path.relative_to(REPO).with_suffix("").parts))
    if importer is None:
        return
    for name in imported_modules(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "xraygpt":
            assert (position(parts) or 0) <= importer, name


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = (
        "import sys, xraygpt, xraygpt.common.registry, xraygpt.common.config, xraygpt.curate; "
        "print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch", "transformers", "timm"} & set(result.stdout.split())


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of docstrings of modules, classes, functions, fields and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, text
        if isinstance(node, ast.Module | ast.ClassDef):
            for before, after in itertools.pairwise(node.body):
                if isinstance(before, ast.Assign | ast.AnnAssign) and is_string(after):
                    yield after.lineno, ast.literal_eval(after.value)


def is_string(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_docstrings_say_something(path: Path):
    found = list(docstrings(ast.parse(path.read_text())))
    short = [(line, text) for line, text in found if len(text.split()) < MIN_DOCSTRING]
    assert not short


def test_a_sample_passes_eight_files_from_disk_to_loss():
    """The files that docs/architecture.md lists exist and are short."""
    page = (REPO / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^\d\. `(xraygpt/[a-z_/]+\.py)`", page, re.M)
    assert len(listed) == 8
    assert all(len((REPO / f).read_text().splitlines()) <= MAX_FILE for f in listed)


def test_the_package_table_has_the_import_order():
    page = (REPO / "docs" / "architecture.md").read_text()
    table = re.findall(r"^\| `xraygpt/([a-z_]+)(?:/|\.py)`", page, re.M)
    assert table == [name for name in ORDER if name in table]
    assert {p.parent.name for p in PACKAGE.glob("*/__init__.py")} <= set(table)
