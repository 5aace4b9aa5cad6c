"""A chat completion server in a thread, whose answers are a function of the pixels it gets."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Body = dict[str, Any]
USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


def parts(body: Body) -> list[Body]:
    """The parts of the last message."""
    content = body["messages"][-1]["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def decode(part: Body) -> np.ndarray:
    """The pixels of an image part, as the server sees them."""
    head, _, data = part["image_url"]["url"].partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def images(body: Body) -> list[np.ndarray]:
    return [decode(part) for part in parts(body) if part["type"] == "image_url"]


@dataclass
class Fake:
    """Settings and state of the server.

    Attributes:
        answer: The text for a request's body.
        faults: (status, headers, body) of the first responses, one after another.
        bodies: All requests.
        headers: The headers of all requests, with lower-case names.
        url: Base URL of the server.
    """

    answer: Callable[[Body], str] = lambda body: "yes"
    faults: list[tuple[int, dict[str, str], Body]] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    model: str = "m"
    url: str = ""


def failure(status: int, code: str = "", message: str = "failed", **headers: str) -> Any:
    error = {"message": message, "type": "error", "code": code or None}
    return status, {k.replace("_", "-"): v for k, v in headers.items()}, {"error": error}


@contextmanager
def serving(**settings: Any) -> Iterator[Fake]:
    fake, lock = Fake(**settings), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                fake.bodies.append(body)
                fake.headers.append({k.lower(): v for k, v in self.headers.items()})
                fault = fake.faults.pop(0) if fake.faults else None
            if fault is None and body["model"] != fake.model:
                fault = failure(404, "model_not_found")
            if fault is None:
                message = {"role": "assistant", "content": fake.answer(body)}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                fault = (200, {}, {"choices": [choice], "usage": USAGE})
            status, headers, response = fault
            data = json.dumps(response).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
