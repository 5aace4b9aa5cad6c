"""docs/curation.md is run as it stands, against the project's fake endpoint."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.curation.fakes import write_corpus
from tests.verbs.test_docs import blocks


@pytest.mark.slow
def test_every_command_of_the_page(tmp_path: Path):
    """In order, in one folder; only the port is another, and the audit is marked in between."""
    for name in ("tools", "prompts", "train.py", "train_configs", "xraygpt"):
        (tmp_path / name).symlink_to(REPO / name)
    write_corpus(tmp_path, 80)
    (tmp_path / "png").rename(tmp_path / "NLMCXR_png")
    environment = {k: v for k, v in os.environ.items() if "XRAYGPT_DATA" not in k} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPO),
    }
    port, server, outputs = "0", None, []
    try:
        for block in blocks("curation.md", "bash"):
            if block.startswith("python tools/fake_endpoint.py"):
                command = block.replace("8000", "0").replace("python", sys.executable, 1).split()
                server = subprocess.Popen(
                    [*command, "--hang", "12"], cwd=tmp_path, env=environment,
                    stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                port = str(server.stdout.readline()).strip()
                continue
            if "--marks" in block:
                marks = tmp_path / "audit.csv"
                rows = list(csv.DictReader((tmp_path / "data/openi_summaries/audit.csv").open()))
                marks.write_text("item,mark\n" + "".join(f"{r['item']},good\n" for r in rows))
            script = block.replace("--provider local", f"--provider local --base-url {port}")
            done = subprocess.run(
                ["bash", "-ec", script], cwd=tmp_path, env=environment, capture_output=True,
                text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, (block, done.stdout, done.stderr[-2000:])
            outputs.append(done.stdout)
    finally:
        if server is not None:
            server.kill()
    said = "\n".join(outputs)
    assert "80 rows to process, nothing was sent" in said
    assert "30 of 30 marked rows are good" in said
    manifest = json.loads((tmp_path / "data/openi_summaries/manifest.json").read_text())
    assert manifest["accepted"] > 70
    assert manifest["privacy"] == "sent to 127.0.0.1: this machine"
    (run,) = (tmp_path / "output/xraygpt_openi_finetune").iterdir()
    assert (run / "checkpoints").is_dir()
