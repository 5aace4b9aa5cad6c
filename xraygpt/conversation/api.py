"""An OpenAI-compatible endpoint on the chat engine: chat completions with images, streamed or not.

Stateless for its callers: each request brings the whole conversation. The caches of the last few
are kept, so a request that goes on with one of them computes its own tokens alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import tempfile
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from xraygpt.common.errors import InputError, without_path
from xraygpt.conversation.answer import Answer
from xraygpt.conversation.chat import ChatEngine, Conversation
from xraygpt.media.base import Media
from xraygpt.models.base import Generation
from xraygpt.prompting.content import without_marks
from xraygpt.tasks.plan import Planned

NOTICE = "AI output, not verified. Research use only, not for diagnosis."
KEPT = 8
"""Conversations whose caches are kept."""


@dataclass(frozen=True, kw_only=True)
class ApiLimits:
    """What a request may bring."""

    max_image_bytes: int = 32 * 2**20
    """Of one image, decoded from base64."""
    max_images: int = 8
    """Of one conversation."""
    max_body_bytes: int = 96 * 2**20
    """Of one request."""
    max_waiting: int = 32
    """Requests that may wait for the model; more are told to come back."""
    max_new_tokens: int = 1024
    """Most that `max_tokens` may ask for."""


class ApiError(Exception):
    """Becomes an error as OpenAI's clients read it."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class ImageUrl(_Part):
    """Where an image is: a data URI."""

    url: str


class TextPart(_Part):
    """Words."""

    type: Literal["text"]
    text: str


class ImagePart(_Part):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Part):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def text(self) -> str:
        """Its words."""
        if isinstance(self.content, str):
            return self.content
        return " ".join(p.text for p in self.content if isinstance(p, TextPart))

    def images(self) -> list[str]:
        """URLs of its images."""
        if isinstance(self.content, str):
            return []
        return [p.image_url.url for p in self.content if isinstance(p, ImagePart)]


class ChatRequest(_Part):
    """What of OpenAI's request is understood; other fields are passed over."""

    model: str = ""
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    n: int = Field(1, ge=1, le=1)
    stream: bool = False


@dataclass
class Service:
    """What the endpoint needs.

    Attributes:
        engine: The model.
        read_media: File -> image, as in training.
        name: Of the model, for `/v1/models`.
        how: Decoding where a request says nothing.
        limits: What a request may bring.
        key: Requests must bring it as a bearer token; empty asks for none.
        facts: For `/health`.
        plan: Images and the question for a report -> that question, with what was found in them;
            asked where a conversation begins with images and one of the model's own prompts,
            or none. None tells nothing.
    """

    engine: ChatEngine
    read_media: Callable[[Path], Media]
    name: str
    how: Generation
    limits: ApiLimits
    key: str
    facts: dict[str, Any]
    plan: Callable[[Sequence[Media], str], Planned] | None = None

    def __post_init__(self) -> None:
        self._kept: OrderedDict[str, Conversation] = OrderedDict()
        self._lock = threading.Lock()
        self.waiting = 0

    def conversation(self, messages: list[Message]) -> tuple[Conversation, Planned]:
        """A conversation that stands before the last message, and the question.

        Raises:
            ApiError: The messages make no conversation, or an image cannot be read.
        """
        *before, last = messages
        if last.role != "user":
            raise ApiError(400, "the last message must be the user's", "invalid_value", "messages")
        if sum(len(m.images()) for m in messages) > self.limits.max_images:
            raise ApiError(
                400, f"more than {self.limits.max_images} images", "too_many_images", "messages"
            )
        key = _key(before)
        with self._lock:
            found = self._kept.pop(key, None)
        conversation = found or self._rebuilt(before)
        return conversation, self._asked(conversation, last)

    def _asked(self, conversation: Conversation, message: Message) -> Planned:
        """Show a message's images; its question, for a first report with what was found in them."""
        images = [self._image(url) for url in message.images()]
        for image in images:
            conversation.add_image(image)
        text = message.text()
        plain = [" ".join(without_marks(p).split()) for p in self.engine.renderer.prompts]
        opens = bool(images) and not conversation.exchanges
        if self.plan is None or not opens or " ".join(text.split()) not in ("", *plain):
            return Planned(text)
        return self.plan(images, text or (plain[0] if plain else ""))

    def keep(self, messages: list[Message], answer: str, conversation: Conversation) -> None:
        """Keep a conversation for the request that goes on with it."""
        said = Message(role="assistant", content=answer)
        with self._lock:
            self._kept[_key([*messages, said])] = conversation
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)

    def _rebuilt(self, messages: list[Message]) -> Conversation:
        system = " ".join(m.text() for m in messages if m.role in ("system", "developer"))
        conversation = self.engine.start(system)
        asked: Planned | None = None
        for message in messages:
            if message.role == "user":
                if asked is not None:
                    raise ApiError(400, "two user messages in a row", "invalid_value", "messages")
                asked = self._asked(conversation, message)
            elif message.role == "assistant":
                if asked is None:
                    raise ApiError(
                        400, "an assistant message answers nothing", "invalid_value", "messages"
                    )
                conversation.recall(asked.question, message.text(), asked.caption)
                asked = None
        if asked is not None:
            raise ApiError(400, "two user messages in a row", "invalid_value", "messages")
        return conversation

    def _image(self, url: str) -> Media:
        head, _, data = url.partition(",")
        if not head.startswith("data:") or not head.endswith(";base64"):
            raise ApiError(
                400,
                "image_url must be a data URI (data:image/png;base64,…); no address is fetched",
                "invalid_image_url",
                "messages",
            )
        if len(data) * 3 // 4 > self.limits.max_image_bytes:
            raise ApiError(400, "the image is too large", "image_too_large", "messages")
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise ApiError(400, "the image is no base64", "invalid_image", "messages") from None
        with tempfile.TemporaryDirectory(prefix="xraygpt-") as folder:
            path = Path(folder) / "image"
            path.write_bytes(content)
            try:
                return self.read_media(path)
            except InputError as error:
                raise ApiError(
                    400, without_path(error, path), "invalid_image", "messages"
                ) from None

    def decoding(self, asked: ChatRequest) -> Generation:
        """How to decode, greedily unless a temperature above 0 is asked for.

        Raises:
            ApiError: More tokens than the endpoint gives.
        """
        most = asked.max_completion_tokens or asked.max_tokens or self.how.max_new_tokens
        if most > self.limits.max_new_tokens:
            raise ApiError(
                400, f"max_tokens is at most {self.limits.max_new_tokens}", "invalid_value",
                "max_tokens",
            )  # fmt: skip
        how = replace(self.how, max_new_tokens=most)
        if asked.temperature:
            how = replace(
                how, do_sample=True, num_beams=1, temperature=asked.temperature,
                top_p=asked.top_p or 1.0,
            )  # fmt: skip
        elif asked.temperature == 0:
            how = replace(
                how, do_sample=False, temperature=1.0, top_p=1.0, candidates=1, references=0
            )
        return replace(how, seed=asked.seed) if asked.seed is not None else how


def _key(messages: list[Message]) -> str:
    said = [[m.role, m.text(), m.images()] for m in messages]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def make_app(service: Service) -> FastAPI:
    """The application; serve it with uvicorn."""
    app = FastAPI(title="xraygpt", description=NOTICE, docs_url=None, redoc_url=None)

    @app.exception_handler(ApiError)
    async def _told(_: Request, error: ApiError) -> JSONResponse:
        return _error(error)

    @app.exception_handler(RequestValidationError)
    async def _malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        # Places and kinds of faults; their inputs may be patients' texts.
        found = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()[:3]]
        return _error(ApiError(400, "; ".join(found), "invalid_request"))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": service.name, "notice": NOTICE, **service.facts}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        card = {"id": service.name, "object": "model", "created": 0, "owned_by": "xraygpt"}
        return {"object": "list", "data": [card]}

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        return await _chat(service, asked, request)

    app.add_middleware(_Guard, service=service)
    return app


class _Guard:
    """Checks size and key before a request is read; puts the notice on every answer."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noticed(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-notice", NOTICE.encode())]
            await send(message)

        refused = self._refused(scope) if scope["type"] == "http" else None
        if refused is not None:
            await _error(refused)(scope, receive, noticed)
        else:
            await self.app(scope, receive, noticed)

    def _refused(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        limit = self.service.limits.max_body_bytes
        # Without a length the size is not known before all of it was read.
        if scope["method"] == "POST" and not (length.isdigit() and int(length) <= limit):
            return ApiError(413, "the request is too large, or without a length", "too_large")
        if scope["path"] != "/health" and self.service.key:
            brought = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(brought.encode(), self.service.key.encode()):
                return ApiError(401, "the key is wrong or absent", "invalid_api_key")
        return None


class _Streamed(StreamingResponse):
    """A stream that tells when whoever listens has gone, and when it is over."""

    def __init__(self, body: AsyncIterator[str], gone: Callable[[], None]) -> None:
        super().__init__(body, media_type="text/event-stream")
        self.gone = gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                continue
            self.gone()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            try:
                await self.stream_response(send)
            finally:
                tasks.cancel_scope.cancel()


async def _chat(service: Service, asked: ChatRequest, request: Request) -> Response:
    if asked.model not in ("", service.name):
        raise ApiError(404, f"no model {asked.model!r}; {service.name} is here", "model_not_found")
    if service.waiting >= service.limits.max_waiting:
        return _error(ApiError(429, "too many requests wait; come back soon", "overloaded"), wait=5)
    how = service.decoding(asked)
    service.waiting += 1
    try:
        conversation, answer = await run_in_threadpool(_begin, service, asked, how)
    except BaseException:
        service.waiting -= 1
        raise
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.name,
        "system_fingerprint": str(service.facts.get("weights", ""))[:16],
    }  # fmt: skip
    if asked.stream:
        body = _stream(service, asked, conversation, answer, head)
        return _Streamed(body, conversation.cancel)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, request, conversation.cancel)
            text = await run_in_threadpool(answer.text)
            tasks.cancel_scope.cancel()
    finally:
        conversation.cancel()
        service.waiting -= 1
    service.keep(asked.messages, text, conversation)
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": _reason(answer), "logprobs": None}
    usage = _usage(answer, conversation)
    return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})


async def _watch(request: Request, gone: Callable[[], None]) -> None:
    """Tell when whoever asked has gone."""
    while not await request.is_disconnected():
        await anyio.sleep(0.2)
    gone()


def _begin(service: Service, asked: ChatRequest, how: Generation) -> tuple[Conversation, Answer]:
    conversation, planned = service.conversation(asked.messages)
    try:
        return conversation, conversation.ask(
            planned.question, how, caption=planned.caption, bonus=planned.bonus
        )
    except InputError as error:
        raise ApiError(400, str(error), "context_length_exceeded", "messages") from None


async def _stream(
    service: Service,
    asked: ChatRequest,
    conversation: Conversation,
    answer: Answer,
    head: dict[str, Any],
) -> AsyncIterator[str]:
    def event(delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
        return f"data: {json.dumps(chunk)}\n\n"

    try:
        yield event({"role": "assistant", "content": ""})
        async for piece in iterate_in_threadpool(iter(answer)):
            yield event({"content": piece})
        service.keep(asked.messages, answer.text(), conversation)
        yield event({}, _reason(answer))
        yield "data: [DONE]\n\n"
    finally:
        conversation.cancel()
        service.waiting -= 1


def _reason(answer: Answer) -> str:
    return "length" if answer.ended == "length" else "stop"


def _usage(answer: Answer, conversation: Conversation) -> dict[str, Any]:
    wrote = len(conversation.exchanges[-1].ids)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": wrote,
        "total_tokens": answer.prompt_tokens + wrote,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
    }


def _error(error: ApiError, wait: int = 0) -> JSONResponse:
    told = {
        "message": error.message, "type": "invalid_request_error", "param": error.param,
        "code": error.code,
    }  # fmt: skip
    headers = {"retry-after": str(wait)} if wait else None
    return JSONResponse({"error": told}, error.status, headers)
