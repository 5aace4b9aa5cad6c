"""An OpenAI-compatible endpoint without a model: it answers by rules and injects faults.

python tools/fake_endpoint.py --port 8000 --faults 0.1

For tests, benchmarks and trials of xraygpt.curate; listens on loopback only. Answers and faults
depend only on the request and its retry count (x-stainless-retry-count), so an interrupted run and
its resumption get the same ones. GET /stats returns the numbers of requests and faults.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from xraygpt.curation.rules import clean
from xraygpt.processors.text import split_sentences
from xraygpt.vocabulary.chest_labeller import mentions

FAULTS = (
    "429", "429_after", "500", "hang", "drop", "cut_body", "wrong_body", "cut_json", "wrong_json",
    "refusal", "length", "prior",
)  # fmt: skip
_SECTION = re.compile(r"^(FINDINGS|IMPRESSION|LAST_PARAGRAPH): (.*)$", re.MULTILINE)


@dataclass
class FakeEndpoint:
    """Settings and state of the endpoint.

    Attributes:
        latency: Seconds per response.
        faults: Fraction of calls that fail, 0 to 1.
        kinds: Faults to choose from.
        hang: Seconds that a hanging call lasts.
        seed: Seed for the faults.
        stats: Number of requests by kind and by fault.
        times: Monotonic time of each call.
        tokens: Total number of tokens in each completion.
        files: Uploaded files and result files by id.
        batches: Batches by id.
        running: Requests in progress.
    """

    latency: float = 0.0
    faults: float = 0.0
    kinds: tuple[str, ...] = FAULTS
    hang: float = 30.0
    seed: int = 0
    stats: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    running: int = 0

    def fault(self, request: bytes, attempt: str) -> str:
        """Return the fault of a request at an attempt, or an empty string."""
        digest = hashlib.sha256(b"%d|%s|%s" % (self.seed, attempt.encode(), request)).digest()
        if int.from_bytes(digest[:6], "big") / 2**48 >= self.faults:
            return ""
        return self.kinds[int.from_bytes(digest[6:10], "big") % len(self.kinds)]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer a request by rules, as a perfect model would."""
    task = request["response_format"]["json_schema"]["name"]
    user = request["messages"][1]["content"]
    if not isinstance(user, str):
        user = "\n".join(part.get("text", "") for part in user)
    text = clean([match[2] for match in _SECTION.finditer(user)]).text
    if task == "summarise":
        return {"summary": text}
    if task == "describe":
        return {"description": f"This is a medical image. {text}"}
    turns = {}
    for sentence in split_sentences(text):
        for mention in mentions(sentence):
            question = f"Is there {mention.finding.replace('_', ' ')}?"
            turns.setdefault(question, {"question": question, "answer": sentence})
    default = [{"question": "What does the picture show?", "answer": text}]
    return {"turns": (list(turns.values()) or default)[:6]}


def completion(request: dict[str, Any], fault: str) -> dict[str, Any]:
    """Build the body of a chat completion, with the given fault in its content."""
    content = json.dumps(answer(request))
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if fault in ("cut_json", "length"):
        message["content"] = content[: len(content) // 2]
    elif fault == "wrong_json":
        message["content"] = json.dumps({"text": "of another shape"})
    elif fault == "prior":
        message["content"] = content.replace('"}', ' Unchanged since the prior exam."}')
    elif fault == "refusal":
        message.update(content=None, refusal="I cannot help with that.")
    prompt_tokens = len(json.dumps(request["messages"])) // 4
    completion_tokens = len(content) // 4
    return {
        "id": "fake", "object": "chat.completion", "created": 0, "model": request["model"],
        "choices": [{
            "index": 0, "message": message, "logprobs": None,
            "finish_reason": "length" if fault == "length" else "stop",
        }],
        "usage": {
            "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }  # fmt: skip


@dataclass
class Response:
    """An HTTP response; if it has no body, the connection is closed."""

    status: int
    body: bytes | None
    headers: tuple[str, ...] = ()


async def chat(fake: FakeEndpoint, data: bytes, headers: dict[str, str]) -> Response:
    """Handle POST /v1/chat/completions."""
    fault = fake.fault(data, headers.get("x-stainless-retry-count", "0"))
    fake.stats["calls"] += 1
    fake.stats[fault or "good"] += 1
    fake.times.append(time.monotonic())
    if fake.latency:
        await asyncio.sleep(fake.latency)
    if fault == "hang":
        await asyncio.sleep(fake.hang)
    if fault in ("hang", "drop"):
        return Response(0, None)
    if fault in ("429", "429_after"):
        wait = ("retry-after-ms: 30",) if fault == "429_after" else ()
        return Response(429, error("rate limit", "rate_limit_exceeded"), wait)
    if fault == "500":
        return Response(500, error("the server had an error", None))
    if fault == "wrong_body":
        return Response(200, b'{"hello": ["world"]}')
    body = completion(json.loads(data), fault)
    fake.tokens.append(body["usage"]["total_tokens"])
    text = json.dumps(body).encode()
    return Response(200, text[: len(text) // 2] if fault == "cut_body" else text)


def error(message: str, code: str | None) -> bytes:
    """Build an error body in OpenAI's format."""
    return json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode()


def upload(fake: FakeEndpoint, data: bytes, headers: dict[str, str]) -> Response:
    """Handle POST /v1/files (multipart)."""
    boundary = headers["content-type"].partition("boundary=")[2].strip('"').encode()
    parts = data.split(b"--" + boundary)
    content = next(p.partition(b"\r\n\r\n")[2][:-2] for p in parts if b'name="file"' in p)
    file_id = f"file-{len(fake.files)}"
    fake.files[file_id] = content
    fake.stats["files"] += 1
    file = {
        "id": file_id, "object": "file", "bytes": len(content), "created_at": 0, "filename": "x",
        "purpose": "batch", "status": "processed",
    }  # fmt: skip
    return Response(200, json.dumps(file).encode())


def new_batch(fake: FakeEndpoint, data: bytes) -> Response:
    """Handle POST /v1/batches: answer every line at once, or let it fail as a call would."""
    request = json.loads(data)
    batch_id = f"batch_{len(fake.batches)}"
    results: dict[str, list[dict[str, Any]]] = {"output_file_id": [], "error_file_id": []}
    for line in fake.files[request["input_file_id"]].splitlines():
        key, row = answer_line(fake, json.loads(line))
        results[key].append(row)
    result_files = {}
    for key, rows in results.items():
        result_files[key] = f"{batch_id}-{key}" if rows else None
        if rows:
            fake.files[f"{batch_id}-{key}"] = "\n".join(map(json.dumps, reversed(rows))).encode()
    fake.batches[batch_id] = {
        "id": batch_id, "object": "batch", "endpoint": request["endpoint"], "created_at": 0,
        "input_file_id": request["input_file_id"], "completion_window": "24h",
        "status": "in_progress", "polls": 0, **result_files,
    }  # fmt: skip
    fake.stats["batches"] += 1
    return Response(200, json.dumps(fake.batches[batch_id]).encode())


def answer_line(fake: FakeEndpoint, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Answer one line of a batch; return the key of its result file and the row for that file."""
    request = row["body"]
    attempt = row["custom_id"].rpartition("-")[2]
    fault = fake.fault(json.dumps(request, sort_keys=True).encode(), attempt)
    fake.stats[fault or "good"] += 1
    if fault in ("429", "429_after", "500", "hang", "drop", "cut_body", "wrong_body"):
        key = "error_file_id"
        response = {"status_code": 500, "body": json.loads(error("it failed", None))}
    else:
        key = "output_file_id"
        body = completion(request, fault)
        response = {"status_code": 200, "request_id": "x", "body": body}
    return key, {"id": "x", "custom_id": row["custom_id"], "response": response, "error": None}


def poll(batch: dict[str, Any]) -> None:
    """Update the status of a batch, which is completed on the second poll."""
    batch["polls"] += 1
    batch["status"] = "completed" if batch["polls"] > 1 else "in_progress"


async def route(
    fake: FakeEndpoint, method: str, path: str, data: bytes, headers: dict[str, str]
) -> Response:
    """Pass a request to its handler."""
    if path == "/stats":
        stats = {**fake.stats, "times": fake.times, "tokens": fake.tokens}
        return Response(200, json.dumps(stats).encode())
    if path == "/v1/chat/completions" and method == "POST":
        return await chat(fake, data, headers)
    if path == "/v1/files":
        return upload(fake, data, headers)
    if path == "/v1/batches" and method == "POST":
        return new_batch(fake, data)
    if path.split("?")[0] == "/v1/batches":
        page = {"object": "list", "data": list(fake.batches.values()), "has_more": False}
        return Response(200, json.dumps(page).encode())
    return stored_object(fake, path)


def stored_object(fake: FakeEndpoint, path: str) -> Response:
    """Handle GET requests for one batch or file."""
    object_id = path.split("/")[3] if path.count("/") >= 3 else ""
    if object_id in fake.batches:
        batch = fake.batches[object_id]
        poll(batch)
        return Response(200, json.dumps(batch).encode())
    if object_id in fake.files:
        content_type = ("content-type: application/octet-stream",)
        return Response(200, fake.files[object_id], content_type)
    return Response(404, error("no such path", "not_found"))


async def serve(
    fake: FakeEndpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Serve one keep-alive connection."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            request_line, *lines = head.decode("latin-1").split("\r\n")
            method, path, _ = request_line.split(" ")
            headers = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in lines if x)}
            data = await reader.readexactly(int(headers.get("content-length", "0")))
            fake.running += 1
            fake.stats["requests"] += 1
            fake.stats["most_at_once"] = max(fake.stats["most_at_once"], fake.running)
            try:
                response = await route(fake, method, path, data, headers)
            finally:
                fake.running -= 1
            if response.body is None:
                break
            writer.write(encode_response(response))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass
    finally:
        writer.close()


def encode_response(response: Response) -> bytes:
    """Return the status line, headers and body as bytes."""
    body = response.body or b""
    headers = response.headers
    if not any(header.startswith("content-type") for header in headers):
        headers = (*headers, "content-type: application/json")
    head = [f"HTTP/1.1 {response.status} X", *headers, f"content-length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + body


async def run(fake: FakeEndpoint, port: int) -> None:
    """Print the base URL, then serve on loopback until interrupted."""
    server = await asyncio.start_server(
        lambda r, w: serve(fake, r, w), "127.0.0.1", port, limit=2**24, backlog=512
    )
    bound_port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"http://127.0.0.1:{bound_port}/v1\n")
    sys.stdout.flush()
    async with server:
        await server.serve_forever()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8000, help="port; 0 chooses any free port")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds per response")
    parser.add_argument(
        "--faults", type=float, default=0.0, help="fraction of calls that fail, 0 to 1"
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=FAULTS, default=FAULTS, help="faults to inject"
    )
    parser.add_argument(
        "--hang", type=float, default=30.0, help="seconds that a hanging call lasts"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    fake = FakeEndpoint(args.latency, args.faults, tuple(args.kinds), args.hang, args.seed)
    try:
        asyncio.run(run(fake, args.port))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"port {args.port}: {error.strerror}; pass --port 0 to use any free port")


if __name__ == "__main__":
    main()
