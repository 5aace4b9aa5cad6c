"""Downloading weights from a local server with the API of the hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tests.conftest import REPO

COMMIT = "a" * 40


class Hub:
    """A hub with one model. `cut` truncates the next large response after so many bytes."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.files = {
            "config.json": b'{"model_type": "tiny"}',
            "model.safetensors": rng.bytes(24_000_000),
            "pytorch_model.bin": b"a second copy",
            "picture.png": b"not weights",
            "pytorch_model.bin.index.json": b"{}",
            "dino_head.safetensors": b"another model",
        }
        self.served: list[tuple[str, str | None]] = []  # file and range of every GET
        self.cut: int | None = None
        self.status: tuple[int, str] | None = None
        self.stall: threading.Event | None = (
            None  # a truncated response waits for it before it ends
        )
        self.claimed: dict[str, str] = {}  # wrong SHA-256 values in the hub's metadata

    def info(self) -> dict:
        siblings = []
        for name, content in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            sibling = {"rfilename": name, "size": len(content), "blobId": git}
            if len(content) > 1000:
                sha = self.claimed.get(name, hashlib.sha256(content).hexdigest())
                sibling["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        return {"id": "lab/tiny", "modelId": "lab/tiny", "sha": COMMIT, "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_): ...

    def do_GET(self) -> None:
        self.answer(True)

    def do_HEAD(self) -> None:
        self.answer(False)

    def answer(self, body: bool) -> None:
        match = re.fullmatch(r"/lab/tiny/resolve/([^/]+)/(.+)", self.path)
        if self.hub.status is not None:
            self.error(*self.hub.status)
        elif self.path.startswith("/api/models/lab/tiny"):
            self.start(200, json.dumps(self.hub.info()).encode(), body)
        elif match and match[2] in self.hub.files:
            self.file(match[2], body)
        else:
            self.error(404, "RepoNotFound")

    def error(self, code: int, kind: str) -> None:
        self.start(code, b"", False, {"X-Error-Code": kind})

    def start(self, code: int, content: bytes, body: bool, extra: dict | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def file(self, name: str, body: bool) -> None:
        content, range_header = self.hub.files[name], self.headers.get("Range") if body else None
        start = int(re.match(r"bytes=(\d+)-", range_header)[1]) if range_header else 0
        facts = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if range_header:
            facts["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if body:
            self.hub.served.append((name, range_header))
        self.start(206 if range_header else 200, content[start:], False, facts)
        if body:
            self.send_body(content, start)

    def send_body(self, content: bytes, start: int) -> None:
        cut = self.hub.cut if len(content) > 1000 else None
        self.wfile.write(content[start:] if cut is None else content[start : start + cut])
        if cut is not None:
            self.hub.cut = None
            self.wfile.flush()
            if self.hub.stall:
                self.hub.stall.wait(60)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def hub(tmp_path):
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.out = tmp_path / "weights"
    yield hub
    server.shutdown()
    server.server_close()


def command(hub: Hub, *arguments: object) -> dict:
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(hub.out.parent / "home")}
    settings |= {"HF_HUB_DOWNLOAD_TIMEOUT": "20", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    args = [sys.executable, "-m", "xraygpt.download", *map(str, arguments), "--out", str(hub.out)]
    return {"args": args, "cwd": REPO, "env": {**os.environ, **settings}}


def download(hub: Hub, *arguments: object) -> subprocess.CompletedProcess:
    result = subprocess.run(**command(hub, *arguments), capture_output=True, text=True)
    assert "Traceback" not in result.stderr, result.stderr
    return result


def lock(hub: Hub) -> dict:
    return json.loads((hub.out / "weights.lock.json").read_text())["lab/tiny"]


@pytest.mark.slow
def test_the_first_download_writes_the_lock_and_the_second_downloads_nothing(hub):
    first = download(hub, "lab/tiny")
    assert first.returncode == 0, first.stderr
    assert lock(hub)["revision"] == COMMIT
    assert set(lock(hub)["files"]) == {"config.json", "model.safetensors"}
    for name, facts in lock(hub)["files"].items():
        content = (hub.out / "tiny" / name).read_bytes()
        assert content == hub.files[name]
        expected = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert facts == expected
    hub.served.clear()
    assert download(hub, "lab/tiny").returncode == 0
    assert hub.served == []
    hub.status = (503, "")
    assert download(hub, "lab/tiny", "--offline").returncode == 0


@pytest.mark.slow
def test_a_changed_byte_is_refused_with_both_hashes(hub):
    download(hub, "lab/tiny")
    file = hub.out / "tiny" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[1_000_000] ^= 1
    file.write_bytes(content)
    for offline in ((), ("--offline",)):
        result = download(hub, "lab/tiny", *offline)
        assert result.returncode != 0
        for data in (bytes(content), hub.files["model.safetensors"]):
            assert hashlib.sha256(data).hexdigest() in result.stderr
    file.unlink()
    assert "lacks 1 of 2 files: model.safetensors" in download(hub, "lab/tiny", "--offline").stderr
    assert download(hub, "lab/tiny").returncode == 0
    assert file.read_bytes() == hub.files["model.safetensors"]


@pytest.mark.slow
def test_a_file_that_differs_from_its_metadata_is_refused(hub):
    hub.claimed["model.safetensors"] = "c" * 64
    result = download(hub, "lab/tiny")
    assert result.returncode != 0
    assert "c" * 64 in result.stderr
    assert hashlib.sha256(hub.files["model.safetensors"]).hexdigest() in result.stderr
    assert not (hub.out / "weights.lock.json").exists()


@pytest.mark.slow
def test_a_file_changed_under_the_same_commit_is_refused(hub):
    download(hub, "lab/tiny")
    old = hashlib.sha256(hub.files["model.safetensors"]).hexdigest()
    hub.files["model.safetensors"] = b"x" * 24_000_000
    (hub.out / "tiny" / "model.safetensors").unlink()
    hub.served.clear()
    result = download(hub, "lab/tiny")
    assert result.returncode != 0
    assert old in result.stderr
    assert hashlib.sha256(b"x" * 24_000_000).hexdigest() in result.stderr
    assert hub.served == []


@pytest.mark.slow
def test_a_broken_connection_is_resumed(hub):
    hub.cut = 15_000_000
    result = download(hub, "lab/tiny")
    assert result.returncode == 0, result.stderr
    assert (hub.out / "tiny" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    ranges = [requested for name, requested in hub.served if name == "model.safetensors"]
    assert ranges == [None, "bytes=10485760-"]


@pytest.mark.slow
def test_a_killed_download_is_resumed(hub):
    hub.cut, hub.stall = 15_000_000, threading.Event()
    process = subprocess.Popen(**command(hub, "lab/tiny"), stderr=subprocess.DEVNULL)
    part = hub.out / "tiny" / "model.safetensors.part"
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size >= 10_000_000):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    hub.stall.set()
    assert not (hub.out / "tiny" / "model.safetensors").exists()
    assert download(hub, "lab/tiny").returncode == 0
    assert (hub.out / "tiny" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert hub.served[-1] == ("model.safetensors", "bytes=10485760-")
    assert not part.exists()


@pytest.mark.slow
def test_files_selected_by_a_pattern_are_not_the_full_model(hub):
    assert download(hub, "lab/tiny", "--include", "config.json").returncode == 0
    assert not lock(hub)["whole"]
    assert download(hub, "lab/tiny").returncode == 0
    assert lock(hub)["whole"]
    assert (hub.out / "tiny" / "model.safetensors").is_file()
    assert download(hub, "lab/tiny", "--include", "*.bin").returncode == 0
    (hub.out / "tiny" / "pytorch_model.bin").unlink()
    assert "lacks 1 of 3 files" in download(hub, "lab/tiny", "--offline").stderr
    assert download(hub, "lab/tiny").returncode == 0
    assert download(hub, "lab/tiny", "--offline").returncode == 0


@pytest.mark.slow
def test_an_existing_small_file_is_verified(hub):
    (hub.out / "tiny").mkdir(parents=True)
    (hub.out / "tiny" / "config.json").write_bytes(hub.files["config.json"].replace(b"i", b"o"))
    assert "differs from the file on the hub" in download(hub, "lab/tiny").stderr


@pytest.mark.parametrize("name", ["/outside.txt", "../../outside.txt", "a/../../b.txt"])
def test_a_name_outside_the_folder_is_refused(hub, name):
    hub.files[name] = b"x"
    result = download(hub, "lab/tiny")
    assert result.returncode != 0
    assert "points outside its folder" in result.stderr
    assert hub.served == []


@pytest.mark.slow
def test_a_partial_file_that_is_too_long_is_replaced(hub):
    part = hub.out / "tiny" / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 24_000_001)
    assert download(hub, "lab/tiny").returncode == 0


@pytest.mark.slow
def test_mistakes_are_explained(hub):
    for name in ("./vicuna", "lab/", "/tmp", "my models/x y"):
        assert "nor the owner/name of a model" in download(hub, name).stderr
    assert "nor the owner/name of a model" in download(hub, "vicuna").stderr
    assert "never downloaded" in download(hub, "lab/tiny", "--offline").stderr
    assert "has no file matching" in download(hub, "lab/tiny", "--include", "*.gguf").stderr
    download(hub, "lab/tiny")
    result = download(hub, "lab/tiny", "--revision", "d" * 40)
    assert COMMIT in result.stderr
    assert "remove the entry" in result.stderr
    for status, message in (
        ((404, "RepoNotFound"), "has no lab/other"),
        ((403, "GatedRepo"), "requires that you accept an agreement"),
    ):
        hub.status = status
        assert message in download(hub, "lab/other").stderr
    hub.status = None
    (hub.out / "weights.lock.json").write_text("[1]")
    assert "is not a valid lock file" in download(hub, "lab/tiny").stderr


def test_named_models_are_listed_without_a_network(hub):
    hub.status = (503, "")
    result = download(hub, "--list")
    assert result.returncode == 0
    assert "lmsys/vicuna-7b-v1.5" in result.stdout
