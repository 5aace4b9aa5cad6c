"""Twenty concurrent users: conversations stay separate, files are deleted, memory does not grow."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO
from tests.demo.trained_model import square

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (find_spec("gradio") and find_spec("psutil")), reason="gradio is not installed"
    ),
]

USERS, VISITS, WARM_UP = 20, 5, 2
YAML = """
model: {arch: xraygpt, model_type: tiny, prompt_template: xraygpt, prompt_path: null}
datasets: {phantoms: {builder: synthetic_cxr, studies: 12, picture_size: 32}}
run:
  task: {name: report_generation, generate: {max_new_tokens: 16}}
  output_dir: out
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(tmp_path):
    """demo.py in a separate process with a separate folder for temporary files."""
    (tmp_path / "demo.yaml").write_text(YAML)
    (tmp_path / "tmp").mkdir()
    port = free_port()
    command = [sys.executable, str(REPO / "demo.py"), "--cfg-path", "demo.yaml"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"],
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
            stderr=log,
        )
        url = f"http://127.0.0.1:{port}/"
        for _ in range(1500):
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.2)
        yield url, process, tmp_path
        process.terminate()
        assert process.wait(120) == 0
    assert not list((tmp_path / "tmp").glob("xraygpt-demo-*"))


class User:
    """A user whose questions contain a word that no other user has."""

    def __init__(self, number: int, url: str, folder: Path) -> None:
        self.canary = f"canary-{number:02d}-{os.urandom(4).hex()}"
        self.image = square(folder, "left" if number % 2 else "right", 100 + number)
        self.url, self.turns = url, 0
        self.errors: list[str] = []

    def run(self, together: threading.Barrier) -> None:
        import gradio_client

        try:
            client = gradio_client.Client(
                self.url,
                verbose=False,
                analytics_enabled=False,
                ssl_verify=False,  # otherwise it reads the system's certificates for each request
                httpx_kwargs={"timeout": 600},  # for slow machines
            )
            try:
                for _ in range(VISITS):
                    self.visit(client)
                    together.wait()
            finally:
                client.close()
        except Exception as error:
            self.errors.append(f"{self.canary}: {type(error).__name__}: {error}")
            together.abort()

    def visit(self, client: Any) -> None:
        from gradio_client import handle_file

        settings = ["greedy", 0.7, 0.9, 1.0, 3, 16, 0, None]
        client.predict([handle_file(self.image)], api_name="/upload")
        client.predict("", *settings, api_name="/draft")
        for turn in range(2):
            question = f"{self.canary} {turn}"
            answer = client.predict(question, *settings, api_name="/ask")
            self.check(json.dumps(answer))
            self.turns += 1
        exported = client.predict("Findings", "Impression", api_name="/export_json")
        content = base64.b64decode(exported["content"]).decode()
        self.check(content)
        report = json.loads(content)
        assert [q for q, _ in report["conversation"]] == [f"{self.canary} {i}" for i in range(2)]
        assert len(report["images"]) == 1
        client.predict(api_name="/clear")

    def check(self, text: str) -> None:
        assert self.canary in text
        assert text.count("canary-") == text.count(self.canary), "another user's conversation"


def wait_until_empty(list_files: Callable[[], list[Path]], deadline: float) -> None:
    while time.monotonic() < deadline and list_files():
        time.sleep(0.5)
    assert not list_files()


def test_twenty_users(server, tmp_path):
    import psutil

    url, process, folder = server
    users = [User(i, url, tmp_path) for i in range(USERS)]
    server_process = psutil.Process(process.pid)
    memory = []  # after each round of visits
    together = threading.Barrier(USERS, lambda: memory.append(server_process.memory_info().rss))
    threads = [threading.Thread(target=user.run, args=(together,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [error for user in users for error in user.errors] == []
    assert all(user.turns == 2 * VISITS for user in users) and len(memory) == VISITS
    early, late = max(memory[:WARM_UP]), max(memory[WARM_UP:])
    assert late <= 1.05 * early, [f"{rss / 2**20:.0f} MiB" for rss in memory]
    root = next((folder / "tmp").glob("xraygpt-demo-*"))
    deadline = time.monotonic() + 240
    wait_until_empty(lambda: list(root.glob("session-*")), deadline)
    wait_until_empty(lambda: list((root / "uploads").iterdir()), deadline)
    log = (folder / "log").read_text()
    assert "canary" not in log and "Traceback" not in log
