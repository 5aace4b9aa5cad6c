"""An OpenAI-compatible endpoint without a model: it answers by rules, and errs as told.

python tools/fake_endpoint.py --port 8000 --faults 0.1

For tests, benchmarks and dry runs of xraygpt.curate on this machine alone. Answers and faults are a
pure function of the request and of how often it was tried (x-stainless-retry-count), so an
interrupted run and its resumption see the same world. GET /stats tells what was asked.
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

KINDS = (
    "429", "429_after", "500", "hang", "drop", "cut_body", "wrong_body", "cut_json", "wrong_json",
    "refusal", "length", "prior",
)  # fmt: skip
_SECTION = re.compile(r"^(FINDINGS|IMPRESSION|LAST_PARAGRAPH): (.*)$", re.MULTILINE)


@dataclass
class Fake:
    """What it does and what it has seen."""

    latency: float = 0.0
    faults: float = 0.0
    kinds: tuple[str, ...] = KINDS
    hang: float = 30.0
    seed: int = 0
    stats: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    running: int = 0

    def fault(self, request: bytes, attempt: str) -> str:
        """The fault of a request at an attempt, or nothing."""
        seed = hashlib.sha256(b"%d|%s|%s" % (self.seed, attempt.encode(), request)).digest()
        if int.from_bytes(seed[:6], "big") / 2**48 >= self.faults:
            return ""
        return self.kinds[int.from_bytes(seed[6:10], "big") % len(self.kinds)]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What a perfect model would say, by rules."""
    task = request["response_format"]["json_schema"]["name"]
    user = request["messages"][1]["content"]
    if not isinstance(user, str):
        user = "\n".join(part.get("text", "") for part in user)
    text = clean([found[2] for found in _SECTION.finditer(user)]).text
    if task == "summarise":
        return {"summary": text}
    if task == "describe":
        return {"description": f"This is a medical image. {text}"}
    turns = {}
    for sentence in split_sentences(text):
        for mention in mentions(sentence):
            question = f"Is there {mention.finding.replace('_', ' ')}?"
            turns.setdefault(question, {"question": question, "answer": sentence})
    plain = [{"question": "What does the picture show?", "answer": text}]
    return {"turns": (list(turns.values()) or plain)[:6]}


def completion(request: dict[str, Any], fault: str) -> dict[str, Any]:
    """The body of a chat completion; `fault` may spoil its content."""
    content: str | None = json.dumps(answer(request))
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if fault in ("cut_json", "length"):
        message["content"] = content[: len(content) // 2]
    elif fault == "wrong_json":
        message["content"] = json.dumps({"text": "of another shape"})
    elif fault == "prior":
        message["content"] = content.replace('"}', ' Unchanged since the prior exam."}')
    elif fault == "refusal":
        message.update(content=None, refusal="I cannot help with that.")
    said = json.dumps(request["messages"])
    read, wrote = len(said) // 4, len(content) // 4
    return {
        "id": "fake", "object": "chat.completion", "created": 0, "model": request["model"],
        "choices": [{
            "index": 0, "message": message, "logprobs": None,
            "finish_reason": "length" if fault == "length" else "stop",
        }],
        "usage": {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote},
    }  # fmt: skip


@dataclass
class Response:
    """Status, body, headers; no body closes the connection."""

    status: int
    body: bytes | None
    headers: tuple[str, ...] = ()


async def chat(fake: Fake, data: bytes, headers: dict[str, str]) -> Response:
    """POST /v1/chat/completions."""
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
    made = completion(json.loads(data), fault)
    fake.tokens.append(made["usage"]["total_tokens"])
    text = json.dumps(made).encode()
    return Response(200, text[: len(text) // 2] if fault == "cut_body" else text)


def error(message: str, code: str | None) -> bytes:
    """An error as OpenAI writes it."""
    return json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode()


def upload(fake: Fake, data: bytes, headers: dict[str, str]) -> Response:
    """POST /v1/files, multipart."""
    boundary = headers["content-type"].partition("boundary=")[2].strip('"').encode()
    parts = data.split(b"--" + boundary)
    content = next(p.partition(b"\r\n\r\n")[2][:-2] for p in parts if b'name="file"' in p)
    name = f"file-{len(fake.files)}"
    fake.files[name] = content
    fake.stats["files"] += 1
    made = {"id": name, "object": "file", "bytes": len(content), "created_at": 0, "filename": "x"}
    return Response(200, json.dumps({**made, "purpose": "batch", "status": "processed"}).encode())


def new_batch(fake: Fake, data: bytes) -> Response:
    """POST /v1/batches: every line is answered at once, or fails as a call would."""
    wanted = json.loads(data)
    good, bad = [], []
    for line in fake.files[wanted["input_file_id"]].splitlines():
        row = json.loads(line)
        request = row["body"]
        attempt = row["custom_id"].rpartition("-")[2]
        fault = fake.fault(json.dumps(request, sort_keys=True).encode(), attempt)
        fake.stats[fault or "good"] += 1
        if fault in ("429", "429_after", "500", "hang", "drop", "cut_body", "wrong_body"):
            what = {"status_code": 500, "body": json.loads(error("it failed", None))}
            bad.append({"id": "x", "custom_id": row["custom_id"], "response": what, "error": None})
            continue
        what = {"status_code": 200, "request_id": "x", "body": completion(request, fault)}
        good.append({"id": "x", "custom_id": row["custom_id"], "response": what, "error": None})
    name = f"batch_{len(fake.batches)}"
    out = {}
    for key, rows in (("output_file_id", good), ("error_file_id", bad)):
        out[key] = f"{name}-{key}" if rows else None
        if rows:
            fake.files[f"{name}-{key}"] = "\n".join(map(json.dumps, reversed(rows))).encode()
    fake.batches[name] = {
        "id": name, "object": "batch", "endpoint": wanted["endpoint"], "created_at": 0,
        "input_file_id": wanted["input_file_id"], "completion_window": "24h",
        "status": "in_progress", "polls": 0, **out,
    }  # fmt: skip
    fake.stats["batches"] += 1
    return Response(200, json.dumps(fake.batches[name]).encode())


def poll(batch: dict[str, Any]) -> None:
    """A batch is done when it is looked at for the second time."""
    batch["polls"] += 1
    batch["status"] = "completed" if batch["polls"] > 1 else "in_progress"


async def route(
    fake: Fake, method: str, path: str, data: bytes, headers: dict[str, str]
) -> Response:
    """Find the answer to a request."""
    if path == "/stats":
        return Response(
            200, json.dumps({**fake.stats, "times": fake.times, "tokens": fake.tokens}).encode()
        )
    if path == "/v1/chat/completions" and method == "POST":
        return await chat(fake, data, headers)
    if path == "/v1/files":
        return upload(fake, data, headers)
    if path == "/v1/batches" and method == "POST":
        return new_batch(fake, data)
    if path.split("?")[0] == "/v1/batches":
        made = {"object": "list", "data": list(fake.batches.values()), "has_more": False}
        return Response(200, json.dumps(made).encode())
    name = path.split("/")[3] if path.count("/") >= 3 else ""
    if name in fake.batches:
        batch = fake.batches[name]
        poll(batch)
        return Response(200, json.dumps(batch).encode())
    if name in fake.files:
        return Response(200, fake.files[name], ("content-type: application/octet-stream",))
    return Response(404, error("no such address", "not_found"))


async def serve(fake: Fake, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, kept alive."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            first, *lines = head.decode("latin-1").split("\r\n")
            method, path, _ = first.split(" ")
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
            more = response.headers or ("content-type: application/json",)
            if not any(h.startswith("content-type") for h in more):
                more = (*more, "content-type: application/json")
            top = [f"HTTP/1.1 {response.status} X", *more, f"content-length: {len(response.body)}"]
            writer.write("\r\n".join([*top, "", ""]).encode() + response.body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass
    finally:
        writer.close()


async def run(fake: Fake, port: int) -> None:
    """Serve on loopback until interrupted; the first line on stdout is the address."""
    server = await asyncio.start_server(
        lambda r, w: serve(fake, r, w), "127.0.0.1", port, limit=2**24, backlog=512
    )
    bound = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"http://127.0.0.1:{bound}/v1\n")
    sys.stdout.flush()
    async with server:
        await server.serve_forever()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds of each answer")
    parser.add_argument(
        "--faults", type=float, default=0.0, help="share of calls that fail, 0 to 1"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of faults")
    parser.add_argument("--hang", type=float, default=30.0, help="seconds a hanging call lasts")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    fake = Fake(given.latency, given.faults, tuple(given.kinds), given.hang, given.seed)
    try:
        asyncio.run(run(fake, given.port))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as problem:
        sys.exit(f"port {given.port}: {problem.strerror}; --port 0 takes any free one")


if __name__ == "__main__":
    main()
