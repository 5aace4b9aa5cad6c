"""The commands of docs/curation.md work unchanged, against the project's fake endpoint."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.curation.fakes import write_corpus
from tests.verbs.test_docs import blocks


def environment() -> dict[str, str]:
    """The environment without XRAYGPT_DATA, with this Python first on the path."""
    return {k: v for k, v in os.environ.items() if "XRAYGPT_DATA" not in k} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPO),
    }


@contextmanager
def serving(block: str, folder: Path) -> Iterator[str]:
    """Run the page's command of the fake endpoint on a free port; gives its base URL."""
    command = block.replace("8000", "0").replace("python", sys.executable, 1).split()
    server = subprocess.Popen(
        [*command, "--hang", "12"], cwd=folder, env=environment(), stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        yield str(server.stdout.readline()).strip()
    finally:
        server.kill()


def write_marks(folder: Path) -> None:
    """Mark all rows of the audit as good."""
    with (folder / "data/openi_summaries/audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = "".join(f"{row['item']},good\n" for row in rows)
    (folder / "audit.csv").write_text(f"item,mark\n{lines}")


def run_block(block: str, url: str, folder: Path) -> str:
    """Run a code block and return its output."""
    script = block.replace("--provider local", f"--provider local --base-url {url}")
    done = subprocess.run(
        ["bash", "-ec", script], cwd=folder, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, (block, done.stdout, done.stderr[-2000:])
    return done.stdout


@pytest.mark.slow
def test_every_command_of_the_page(tmp_path: Path):
    """In order, in one folder; only the port differs, and the audit is marked in between."""
    for name in ("tools", "prompts", "train.py", "train_configs", "xraygpt"):
        (tmp_path / name).symlink_to(REPO / name)
    write_corpus(tmp_path, 80)
    (tmp_path / "png").rename(tmp_path / "NLMCXR_png")
    commands = blocks("curation.md", "bash")
    (server,) = (block for block in commands if block.startswith("python tools/fake_endpoint.py"))
    commands.remove(server)
    # The recipes' table needs the published downloads: tests/curation/test_recipe_table.py.
    commands = [block for block in commands if "--codes" not in block]
    outputs = []
    with serving(server, tmp_path) as url:
        for block in commands:
            if "--marks" in block:
                write_marks(tmp_path)
            outputs.append(run_block(block, url, tmp_path))
    output = "\n".join(outputs)
    assert "80 rows to process, nothing was sent" in output
    assert "30 of 30 marked rows are good" in output
    manifest = json.loads((tmp_path / "data/openi_summaries/manifest.json").read_text())
    assert manifest["accepted"] > 70
    assert manifest["privacy"] == "sent to 127.0.0.1: this machine"
    (run,) = (tmp_path / "output/xraygpt_openi_finetune").iterdir()
    assert (run / "checkpoints").is_dir()
