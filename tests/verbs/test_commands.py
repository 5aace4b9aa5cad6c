"""All commands in the README and docs exist and their options parse; quick ones are run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests import processes
from tests.conftest import REPO, toy_yaml, write_toy_corpus
from tests.runners.test_train_loop import MODEL, RUN, environment
from xraygpt.common.config import load
from xraygpt.experiment import Evaluation, Training
from xraygpt.requirements_check import names_analysis
from xraygpt.studies.base import StudyAnalysis

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
ROOTS = {"train.py": Training} | dict.fromkeys(("evaluate.py", "predict.py", "demo.py"), Evaluation)


def commands_of(tmp_path: Path, page: Path) -> list[list[str]]:
    """The commands in a page's bash blocks, as a shell would start them."""
    names = ("python", "make", "torchrun", "accelerate", ".venv/bin/python")
    log = tmp_path / "log"
    tmp_path.mkdir(exist_ok=True)
    log.touch()
    for name in names:
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(parents=True, exist_ok=True)
        note = "import json, sys; print(json.dumps(sys.argv[1:]))"
        python = f'{sys.executable} -I -S -c "{note}"'  # isolated, so that it starts fast
        stub.write_text(f'#!/bin/sh\n{python} {name} "$@" >> {log}\n')
        stub.chmod(0o755)
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
        env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        result = subprocess.run(
            ["bash", "-eu", "-c", block],
            cwd=tmp_path / "bin",
            env=env,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, (page.name, block, result.stderr)
    return [json.loads(line) for line in log.read_text().splitlines()]


def script_of(command: list[str]) -> list[str]:
    """A command without interpreter or launcher: ``["train.py", …]`` or ``["-m", …]``."""
    if command[0] in ("torchrun", "accelerate"):
        return command[next(i for i, a in enumerate(command) if a.endswith(".py")) :]
    return command[1:]


@cache
def help_of(target: tuple[str, ...]) -> str:
    """The help text of a command."""
    command = [sys.executable, *target, "--help"]
    return processes.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout


def check_config(words: list[str], own_yaml: Path) -> None:
    """Load the YAML of an entry point with the options of its command line."""
    path = words[words.index("--cfg-path") + 1]
    options = []
    if "--options" in words:
        options = words[words.index("--options") + 1 :]
        options = options[: next((i for i, o in enumerate(options) if o[0] == "-"), None)]
    yaml = own_yaml if path == "my.yaml" else REPO / path
    load(StudyAnalysis if names_analysis(yaml, options) else ROOTS[words[0]], yaml, options)


def help_target(words: list[str]) -> tuple[str, ...]:
    """The part of a command whose help text lists its options."""
    if words[:2] != ["-m", "xraygpt.curate"]:
        return tuple(words[: 1 + (words[0] == "-m")])
    first = next((i for i, w in enumerate(words[1:], 1) if w.startswith("--")), len(words))
    return tuple(words[:first])


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist_and_parse(page, tmp_path):
    own_yaml = tmp_path / "my.yaml"
    own_yaml.write_text(toy_yaml(tmp_path, RUN % tmp_path, MODEL))
    for command in commands_of(tmp_path, page):
        if command[0] == "make":
            dry_run = subprocess.run(["make", "-n", *command[1:]], cwd=REPO, capture_output=True)
            assert dry_run.returncode == 0, command
            continue
        words = script_of(command)
        if words[0] in ROOTS:
            check_config(words, own_yaml)
        else:  # otherwise it must be a module of the package, a benchmark or a tool
            assert re.match(r"-m xraygpt\.|(?:benchmarks|tools)/\w+\.py", " ".join(words)), command
        flags = {w for w in words if w.startswith("--")}
        help_text = help_of(help_target(words))
        assert all(re.search(rf"{re.escape(f)}\b", help_text) for f in flags), command


@pytest.mark.slow
def test_commands_for_an_own_yaml_run(tmp_path):
    """Runs the README's commands for `my.yaml` with a toy corpus."""
    corpus = write_toy_corpus(tmp_path / "corpus")
    own_yaml = tmp_path / "my.yaml"
    own_yaml.write_text(toy_yaml(corpus, RUN % (tmp_path / "out"), MODEL))
    all_commands = commands_of(tmp_path / "stubs", REPO / "docs" / "commands.md")
    commands = [c for c in all_commands if "my.yaml" in c and c[0] == "python"]
    assert len(commands) == 4
    for command in commands:
        words = [str(own_yaml) if w == "my.yaml" else w for w in command[1:]]
        if "run.max_steps=20" in words:  # another model needs another folder
            words += ["run.max_steps=2", f"run.output_dir={tmp_path / 'short'}"]
        result = processes.run(
            [sys.executable, *words], cwd=REPO, env=environment(), capture_output=True, text=True
        )
        assert result.returncode == 0, (command, result.stderr[-800:])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_point_to_existing_files(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert not missing
