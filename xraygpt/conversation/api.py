"""OpenAI-compatible endpoint for chat completions with images, streamed or not."""

from __future__ import annotations

import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from xraygpt.conversation.answer import Answer
from xraygpt.conversation.api_schema import ApiError, ChatRequest
from xraygpt.conversation.api_service import Service
from xraygpt.conversation.chat import Conversation

NOTICE = "AI output, not verified. Research use only, not for diagnosis."


def make_app(service: Service) -> FastAPI:
    """Build the application, to be served with uvicorn."""
    app = FastAPI(title="xraygpt", description=NOTICE, docs_url=None, redoc_url=None)

    @app.exception_handler(ApiError)
    async def _on_api_error(_: Request, error: ApiError) -> JSONResponse:
        return _error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _on_invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
        # Report only field names and messages, because the values may contain patients' texts.
        details = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()[:3]]
        return _error_response(ApiError(400, "; ".join(details), "invalid_request"))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": service.name, "notice": NOTICE, **service.facts}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        card = {"id": service.name, "object": "model", "created": 0, "owned_by": "xraygpt"}
        return {"object": "list", "data": [card]}

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _complete(service, body, request)

    app.add_middleware(_Guard, service=service)
    return app


class _Guard:
    """Checks size and key before a request is read, and adds the notice to every response."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_notice(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-notice", NOTICE.encode())]
            await send(message)

        error = self._check(scope) if scope["type"] == "http" else None
        if error is not None:
            await _error_response(error)(scope, receive, send_with_notice)
        else:
            await self.app(scope, receive, send_with_notice)

    def _check(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        limit = self.service.limits.max_body_bytes
        # Without a length, the size would be known only after reading the whole request.
        if scope["method"] == "POST" and not (length.isdigit() and int(length) <= limit):
            return ApiError(
                413, "the request is too large or has no content-length header", "too_large"
            )
        if scope["path"] != "/health" and self.service.key:
            token = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(token.encode(), self.service.key.encode()):
                return ApiError(401, "the API key is wrong or missing", "invalid_api_key")
        return None


class _EventStream(StreamingResponse):
    """Event stream that calls `on_disconnect` when the client disconnects or the stream ends."""

    def __init__(self, body: AsyncIterator[str], on_disconnect: Callable[[], None]) -> None:
        super().__init__(body, media_type="text/event-stream")
        self.on_disconnect = on_disconnect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                continue
            self.on_disconnect()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            try:
                await self.stream_response(send)
            finally:
                tasks.cancel_scope.cancel()


async def _complete(service: Service, body: ChatRequest, request: Request) -> Response:
    if body.model not in ("", service.name):
        message = f"model {body.model!r} not found; this server provides {service.name}"
        raise ApiError(404, message, "model_not_found")
    if service.waiting >= service.limits.max_waiting:
        error = ApiError(429, "too many requests are waiting; try again later", "overloaded")
        return _error_response(error, retry_after=5)
    generation = service.generation_for(body)
    service.waiting += 1
    try:
        conversation, answer = await run_in_threadpool(service.start_answer, body, generation)
    except BaseException:
        service.waiting -= 1
        raise
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.name,
        "system_fingerprint": str(service.facts.get("weights", ""))[:16],
    }  # fmt: skip
    if body.stream:
        events = _events(service, body, conversation, answer, head)
        return _EventStream(events, conversation.cancel)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch_disconnect, request, conversation.cancel)
            text = await run_in_threadpool(answer.text)
            tasks.cancel_scope.cancel()
    finally:
        conversation.cancel()
        service.waiting -= 1
    service.store(body.messages, text, conversation)
    reply = {"role": "assistant", "content": text, "refusal": None}
    choice = {
        "index": 0, "message": reply, "finish_reason": _finish_reason(answer), "logprobs": None,
    }  # fmt: skip
    usage = _usage(answer, conversation)
    return JSONResponse(
        {
            **head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage,
            **answer.payload,
            "warnings": conversation.warnings,
        }
    )


async def _watch_disconnect(request: Request, on_disconnect: Callable[[], None]) -> None:
    while not await request.is_disconnected():
        await anyio.sleep(0.2)
    on_disconnect()


async def _events(
    service: Service,
    body: ChatRequest,
    conversation: Conversation,
    answer: Answer,
    head: dict[str, Any],
) -> AsyncIterator[str]:
    def event(delta: dict[str, Any], reason: str | None = None, **details: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        chunk = {**head, "object": "chat.completion.chunk", "choices": [choice], **details}
        return f"data: {json.dumps(chunk)}\n\n"

    try:
        yield event({"role": "assistant", "content": ""})
        async for piece in iterate_in_threadpool(iter(answer)):
            yield event({"content": piece})
        service.store(body.messages, answer.text(), conversation)
        details = {**answer.payload, "warnings": conversation.warnings}
        yield event({}, _finish_reason(answer), **details)
        yield "data: [DONE]\n\n"
    finally:
        conversation.cancel()
        service.waiting -= 1


def _finish_reason(answer: Answer) -> str:
    return "length" if answer.finish_reason == "length" else "stop"


def _usage(answer: Answer, conversation: Conversation) -> dict[str, Any]:
    completion_tokens = len(conversation.history[-1].answer_ids)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": answer.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
    }


def _error_response(error: ApiError, retry_after: int = 0) -> JSONResponse:
    content = {
        "message": error.message, "type": "invalid_request_error", "param": error.param,
        "code": error.code,
    }  # fmt: skip
    headers = {"retry-after": str(retry_after)} if retry_after else None
    return JSONResponse({"error": content}, error.status, headers)
