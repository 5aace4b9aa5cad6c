"""What the code promises about itself: sizes, types, import direction, a docstring a setting."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import REPO

PACKAGE = REPO / "xraygpt"
FILES = sorted(PACKAGE.rglob("*.py"))
# Imports run from left to right only.
ORDER = [
    "common",
    "media",
    "processors",
    "prompting",
    "vocabulary",
    "phantom",
    "metrics",
    "curation",
    "datasets",
    "models",
    "features",
    "tasks",
    "runners",
    "evaluation",
    "conversation",
    "experiment",
    "loading",
    "compare",
    "jobs",
    "validate",
    "score",
    "probe",
    "synthesize",
    "convert",
    "pack",
    "download",
    "curate",
    "serve",
    "demo",
    "quickstart",
]
MAX_FILE, MAX_FUNCTION = 500, 60


def code_lines(node: ast.AST, source: list[str]) -> int:
    """Lines of a function without blanks, comments and its docstring."""
    doc = ast.get_docstring(node, clean=False)
    lines = source[node.lineno - 1 : node.end_lineno]
    code = [s for s in (line.strip() for line in lines) if s and not s.startswith("#")]
    return len(code) - (len(doc.strip().splitlines()) if doc else 0)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes(path: Path):
    source = path.read_text().splitlines()
    assert len(source) <= MAX_FILE
    for node in ast.walk(ast.parse("\n".join(source))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert code_lines(node, source) <= MAX_FUNCTION, node.name
            arguments = node.args.args
            assert len([a for a in arguments if a.arg != "self"]) <= 8, node.name


def test_imports_run_one_way():
    wrong = []
    for path in FILES:
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own not in ORDER:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                parts = name.split(".")
                known = parts[0] == "xraygpt" and len(parts) > 1 and parts[1] in ORDER
                if known and ORDER.index(parts[1]) > ORDER.index(own):
                    wrong.append(f"{path.relative_to(REPO)} imports {name}")
    assert not wrong


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = (
        "import sys, xraygpt, xraygpt.common.registry, xraygpt.common.config, xraygpt.curate; "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "timm"} & set(done.stdout.split())


def configs() -> list[type]:
    from xraygpt.common.registry import BUILDERS, MODELS, OPTIMIZERS, PROCESSORS, RUNNERS, TASKS
    from xraygpt.evaluation.evaluator import Evaluator
    from xraygpt.experiment import Evaluation, Training
    from xraygpt.models.base import Generation
    from xraygpt.models.llm.small_llm import LoraSettings, SmallLLM
    from xraygpt.models.qformer_llm.qformer import QFormerConfig

    found = [
        Training,
        Evaluation,
        Evaluator.Config,
        Generation,
        LoraSettings,
        SmallLLM,
        QFormerConfig,
    ]
    for kind in (MODELS, PROCESSORS, BUILDERS, TASKS, RUNNERS, OPTIMIZERS):
        found += [kind.get(name).Config for name in kind]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("config", configs(), ids=lambda c: c.__qualname__)
def test_every_setting_has_a_docstring(config: type):
    documented: set[str] = set()
    for cls in config.__mro__:
        if not dataclasses.is_dataclass(cls):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        body = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)).body
        for field, after in itertools.pairwise(body):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_text:
                documented.add(field.target.id)
    missing = {f.name for f in dataclasses.fields(config)} - documented
    assert not missing


def test_disk_to_loss_passes_seven_files():
    """The way of a sample as docs/architecture.md tells it; each file exists and is short."""
    page = (REPO / "docs" / "architecture.md").read_text()
    way = [f for f in FILES if f"`{f.relative_to(REPO)}`" in page.split("## Elsewhere")[0]]
    assert 5 <= len(way) <= 7
    assert all(len(f.read_text().splitlines()) <= MAX_FILE for f in way)
