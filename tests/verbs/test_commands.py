"""Every command of the README and docs exists, its options parse, and the quick ones are run."""

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

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
ROOTS = {"train.py": Training} | dict.fromkeys(("evaluate.py", "predict.py", "demo.py"), Evaluation)


def spoken(tmp_path: Path, page: Path) -> list[list[str]]:
    """The commands of a page's bash blocks, as a shell would start them."""
    names = ("python", "make", "torchrun", "accelerate", ".venv/bin/python")
    log = tmp_path / "log"
    tmp_path.mkdir(exist_ok=True)
    log.touch()
    for name in names:
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(parents=True, exist_ok=True)
        note = "import json, sys; print(json.dumps(sys.argv[1:]))"
        python = f'{sys.executable} -I -S -c "{note}"'  # bare, so that it starts at once
        stub.write_text(f'#!/bin/sh\n{python} {name} "$@" >> {log}\n')
        stub.chmod(0o755)
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
        env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-eu", "-c", block],
            cwd=tmp_path / "bin",
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (page.name, block, done.stderr)
    return [json.loads(line) for line in log.read_text().splitlines()]


def script_of(command: list[str]) -> list[str]:
    """Without the interpreter or launcher: ``["train.py", …]`` or ``["-m", …]``."""
    if command[0] in ("torchrun", "accelerate"):
        return command[next(i for i, a in enumerate(command) if a.endswith(".py")) :]
    return command[1:]


@cache
def help_of(target: tuple[str, ...]) -> str:
    """What a command line says of itself."""
    command = [sys.executable, *target, "--help"]
    return processes.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist_and_parse(page, tmp_path):
    mine = tmp_path / "my.yaml"
    mine.write_text(toy_yaml(tmp_path, RUN % tmp_path, MODEL))
    for command in spoken(tmp_path, page):
        if command[0] == "make":
            dry = subprocess.run(["make", "-n", *command[1:]], cwd=REPO, capture_output=True)
            assert dry.returncode == 0, command
            continue
        words = script_of(command)
        if words[0] in ROOTS:
            path = words[words.index("--cfg-path") + 1]
            options = []
            if "--options" in words:
                options = words[words.index("--options") + 1 :]
                options = options[: next((i for i, o in enumerate(options) if o[0] == "-"), None)]
            load(ROOTS[words[0]], mine if path == "my.yaml" else REPO / path, options)
        else:  # anything else must be a verb of ours or a benchmark
            assert re.match(r"-m xraygpt\.|(?:benchmarks|tools)/\w+\.py", " ".join(words)), command
        flags = {w for w in words if w.startswith("--")}
        first = next((i for i, w in enumerate(words[1:], 1) if w.startswith("--")), len(words))
        target = (
            words[:first]
            if words[:2] == ["-m", "xraygpt.curate"]
            else words[: 1 + (words[0] == "-m")]
        )
        said = help_of(tuple(target))
        assert all(re.search(rf"{re.escape(f)}\b", said) for f in flags), command


@pytest.mark.slow
def test_commands_about_a_yaml_of_ones_own_run(tmp_path):
    """Those of "What helps while you work", with a toy corpus."""
    corpus = write_toy_corpus(tmp_path / "corpus")
    mine = tmp_path / "my.yaml"
    mine.write_text(toy_yaml(corpus, RUN % (tmp_path / "out"), MODEL))
    spoken_here = spoken(tmp_path / "stubs", REPO / "README.md")
    commands = [c for c in spoken_here if "my.yaml" in c and c[0] == "python"]
    assert len(commands) == 4
    for command in commands:
        words = [str(mine) if w == "my.yaml" else w for w in command[1:]]
        if "run.max_steps=20" in words:  # another model: into another folder
            words += ["run.max_steps=2", f"run.output_dir={tmp_path / 'short'}"]
        done = processes.run(
            [sys.executable, *words], cwd=REPO, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stderr[-800:])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    gone = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert not gone
