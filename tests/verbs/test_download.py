"""Fetching weights, against a server on loopback that speaks as the hub does."""

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
    """One model. `cut` ends the next answer with a body after so many bytes."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.files = {
            "config.json": b'{"model_type": "tiny"}',
            "model.safetensors": rng.bytes(24_000_000),
            "pytorch_model.bin": b"a second copy",
            "picture.png": b"no weights",
            "pytorch_model.bin.index.json": b"{}",
            "dino_head.safetensors": b"another model beside it",
        }
        self.served: list[tuple[str, str | None]] = []  # file and range of every GET
        self.cut: int | None = None
        self.status: tuple[int, str] | None = None
        self.stall: threading.Event | None = None  # what a cut answer waits for before it ends
        self.claimed: dict[str, str] = {}  # SHA-256 that the hub says instead of the true one

    def info(self) -> dict:
        siblings = []
        for name, content in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            one = {"rfilename": name, "size": len(content), "blobId": git}
            if len(content) > 1000:
                sha = self.claimed.get(name, hashlib.sha256(content).hexdigest())
                one["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 130}
            siblings.append(one)
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
        found = re.fullmatch(r"/lab/tiny/resolve/([^/]+)/(.+)", self.path)
        if self.hub.status is not None:
            self.nothing(*self.hub.status)
        elif self.path.startswith("/api/models/lab/tiny"):
            self.start(200, json.dumps(self.hub.info()).encode(), body)
        elif found and found[2] in self.hub.files:
            self.file(found[2], body)
        else:
            self.nothing(404, "RepoNotFound")

    def nothing(self, code: int, kind: str) -> None:
        self.start(code, b"", False, {"X-Error-Code": kind})

    def start(self, code: int, content: bytes, body: bool, more: dict | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def file(self, name: str, body: bool) -> None:
        content, asked = self.hub.files[name], self.headers.get("Range") if body else None
        start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if body:
            self.hub.served.append((name, asked))
        facts = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if asked:
            facts["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.start(206 if asked else 200, content[start:], False, facts)
        if not body:
            return
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
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (Handler,), {"hub": hub}))
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
    line = [sys.executable, "-m", "xraygpt.download", *map(str, arguments), "--out", str(hub.out)]
    return {"args": line, "cwd": REPO, "env": {**os.environ, **settings}}


def download(hub: Hub, *arguments: object) -> subprocess.CompletedProcess:
    done = subprocess.run(**command(hub, *arguments), capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def lock(hub: Hub) -> dict:
    return json.loads((hub.out / "weights.lock.json").read_text())["lab/tiny"]


@pytest.mark.slow
def test_the_first_download_writes_the_lock_and_the_second_fetches_nothing(hub):
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
        done = download(hub, "lab/tiny", *offline)
        assert done.returncode != 0
        for data in (bytes(content), hub.files["model.safetensors"]):
            assert hashlib.sha256(data).hexdigest() in done.stderr
    file.unlink()
    assert "lacks 1 of 2 files: model.safetensors" in download(hub, "lab/tiny", "--offline").stderr
    assert download(hub, "lab/tiny").returncode == 0
    assert file.read_bytes() == hub.files["model.safetensors"]


@pytest.mark.slow
def test_a_hub_whose_file_is_not_what_it_says_is_refused(hub):
    hub.claimed["model.safetensors"] = "c" * 64
    done = download(hub, "lab/tiny")
    assert done.returncode != 0
    assert "c" * 64 in done.stderr
    assert hashlib.sha256(hub.files["model.safetensors"]).hexdigest() in done.stderr
    assert not (hub.out / "weights.lock.json").exists()


@pytest.mark.slow
def test_a_file_changed_under_the_same_commit_is_refused(hub):
    download(hub, "lab/tiny")
    old = hashlib.sha256(hub.files["model.safetensors"]).hexdigest()
    hub.files["model.safetensors"] = b"x" * 24_000_000
    (hub.out / "tiny" / "model.safetensors").unlink()
    hub.served.clear()
    done = download(hub, "lab/tiny")
    assert done.returncode != 0
    assert old in done.stderr
    assert hashlib.sha256(b"x" * 24_000_000).hexdigest() in done.stderr
    assert hub.served == []


@pytest.mark.slow
def test_a_broken_line_is_gone_on_from(hub):
    hub.cut = 15_000_000
    done = download(hub, "lab/tiny")
    assert done.returncode == 0, done.stderr
    assert (hub.out / "tiny" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    ranges = [asked for name, asked in hub.served if name == "model.safetensors"]
    assert ranges == [None, "bytes=10485760-"]


@pytest.mark.slow
def test_a_killed_download_is_gone_on_from(hub):
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
def test_a_part_asked_for_by_a_pattern_is_not_the_whole(hub):
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
def test_a_small_file_that_was_there_before_is_checked_too(hub):
    (hub.out / "tiny").mkdir(parents=True)
    (hub.out / "tiny" / "config.json").write_bytes(hub.files["config.json"].replace(b"i", b"o"))
    assert "is another file than the hub has" in download(hub, "lab/tiny").stderr


@pytest.mark.parametrize("name", ["/outside.txt", "../../outside.txt", "a/../../b.txt"])
def test_a_name_that_leads_out_of_the_folder_is_refused(hub, name):
    hub.files[name] = b"x"
    done = download(hub, "lab/tiny")
    assert done.returncode != 0
    assert "leads out of its folder" in done.stderr
    assert hub.served == []


@pytest.mark.slow
def test_a_part_that_is_too_long_is_begun_anew(hub):
    part = hub.out / "tiny" / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 24_000_001)
    assert download(hub, "lab/tiny").returncode == 0


@pytest.mark.slow
def test_mistakes_are_named(hub):
    for odd in ("./vicuna", "lab/", "/tmp", "my models/x y"):
        assert "no owner/name of the hub" in download(hub, odd).stderr
    assert "no owner/name of the hub" in download(hub, "vicuna").stderr
    assert "never fetched" in download(hub, "lab/tiny", "--offline").stderr
    assert "holds no file that" in download(hub, "lab/tiny", "--include", "*.gguf").stderr
    download(hub, "lab/tiny")
    other = download(hub, "lab/tiny", "--revision", "d" * 40)
    assert COMMIT in other.stderr
    assert "take its entry out" in other.stderr
    for status, says in (
        ((404, "RepoNotFound"), "has no lab/other"),
        ((403, "GatedRepo"), "asks for an agreement"),
    ):
        hub.status = status
        assert says in download(hub, "lab/other").stderr
    hub.status = None
    (hub.out / "weights.lock.json").write_text("[1]")
    assert "is no lock file" in download(hub, "lab/tiny").stderr


def test_named_sets_are_listed_without_a_network(hub):
    hub.status = (503, "")
    done = download(hub, "--list")
    assert done.returncode == 0
    assert "lmsys/vicuna-7b-v1.5" in done.stdout
