"""Conversion of the endpoint's requests to conversations.

The endpoint is stateless for its clients: each request contains the full conversation. The most
recent conversations are stored with their caches, so that a follow-up request computes only its own
tokens.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xraygpt.common.errors import InputError, without_path
from xraygpt.conversation.answer import Answer
from xraygpt.conversation.api_schema import ApiError, ApiLimits, ChatRequest, Message
from xraygpt.conversation.chat import ChatEngine, Conversation
from xraygpt.media.base import Media
from xraygpt.models.base import Generation

MAX_STORED = 8
"""Number of conversations whose caches are kept for follow-up requests."""


@dataclass
class Service:
    """A model and the settings of its endpoint.

    Attributes:
        engine: The chat model.
        read_media: Reads an image file as in training.
        name: Model name, for `/v1/models`.
        generation: Decoding settings that apply unless a request sets its own.
        limits: Limits on a request.
        key: Bearer token that requests must send; if empty, none is required.
        facts: Additional values for `/health`.
        strict: Whether images with a warning are refused.
    """

    engine: ChatEngine
    read_media: Callable[[Path], Media]
    name: str
    generation: Generation
    limits: ApiLimits
    key: str
    facts: dict[str, Any]
    strict: bool = False

    def __post_init__(self) -> None:
        self._stored: OrderedDict[str, Conversation] = OrderedDict()
        self._lock = threading.Lock()
        self.waiting = 0

    def start_answer(
        self, request: ChatRequest, generation: Generation
    ) -> tuple[Conversation, Answer]:
        """Start answering the last message of a request.

        Raises:
            ApiError: The messages are not a valid conversation or do not fit in the context.
        """
        conversation, question = self.conversation(request.messages)
        try:
            return conversation, conversation.ask(question, generation)
        except InputError as error:
            raise ApiError(400, str(error), "context_length_exceeded", "messages") from None

    def conversation(self, messages: list[Message]) -> tuple[Conversation, str]:
        """Return the conversation before the last message, and the question in that message.

        Raises:
            ApiError: The messages are not a valid conversation, or an image cannot be read.
        """
        *previous, last = messages
        if last.role != "user":
            raise _invalid_messages("the last message must have the role 'user'")
        if sum(len(m.media_urls()) for m in messages) > self.limits.max_images:
            message = f"the conversation has more than {self.limits.max_images} images and clips"
            raise ApiError(400, message, "too_many_images", "messages")
        key = _key(previous)
        with self._lock:
            stored = self._stored.pop(key, None)
        conversation = stored or self._rebuild(previous)
        return conversation, self._add_question(conversation, last)

    def _add_question(self, conversation: Conversation, message: Message) -> str:
        """Add a message's images and clips, and return its question."""
        for medium in [self._read(kind, url) for kind, url in message.media_urls()]:
            conversation.add_image(medium)
        return message.text()

    def store(self, messages: list[Message], answer: str, conversation: Conversation) -> None:
        """Store a conversation for a follow-up request."""
        reply = Message(role="assistant", content=answer)
        with self._lock:
            self._stored[_key([*messages, reply])] = conversation
            while len(self._stored) > MAX_STORED:
                self._stored.popitem(last=False)

    def _rebuild(self, messages: list[Message]) -> Conversation:
        system = " ".join(m.text() for m in messages if m.role in ("system", "developer"))
        conversation = self.engine.start(system)
        question: str | None = None
        for message in messages:
            if message.role == "user":
                if question is not None:
                    raise _invalid_messages("there are two user messages in a row")
                question = self._add_question(conversation, message)
            elif message.role == "assistant":
                if question is None:
                    raise _invalid_messages("there is no user message before an assistant message")
                conversation.restore(question, message.text())
                question = None
        if question is not None:
            raise _invalid_messages("there are two user messages in a row")
        return conversation

    def _read(self, kind: str, url: str) -> Media:
        """Read the data URI of a part of type ``image_url`` or ``video_url``."""
        name = "image" if kind == "image_url" else "video"
        content = self._decode(name, kind, url)
        if name == "video" and not self.engine.model.reads_clips:
            message = "this model reads no clips; send single frames as image_url"
            raise ApiError(400, message, "invalid_video", "messages")
        with tempfile.TemporaryDirectory(prefix="xraygpt-") as folder:
            path = Path(folder) / "image"
            path.write_bytes(content)
            try:
                media = self.read_media(path)
            except InputError as error:
                message = without_path(error, path, f"the {name}")
                raise ApiError(400, message, f"invalid_{name}", "messages") from None
        if (media.kind == "clip") != (name == "video"):
            found = "a clip: send it as video_url" if name == "image" else "an image: use image_url"
            raise ApiError(400, f"the {name} is {found}", f"invalid_{name}", "messages")
        if self.strict and media.warnings:
            message = f"the {name} was refused: {' '.join(media.warnings)}"
            raise ApiError(400, message, f"{name}_refused", "messages")
        return media

    def _decode(self, name: str, kind: str, url: str) -> bytes:
        """Decode a data URI.

        Raises:
            ApiError: It is no data URI, too large, or not valid base64.
        """
        head, _, data = url.partition(",")
        if not head.startswith("data:") or not head.endswith(";base64"):
            example = "image/png" if name == "image" else "video/mp4"
            message = f"{kind} must be a data URI (data:{example};base64,…); URLs are not fetched"
            raise ApiError(400, message, f"invalid_{kind}", "messages")
        limit = getattr(self.limits, f"max_{name}_bytes")
        if len(data) * 3 // 4 > limit:
            message = f"the {name} is larger than {limit / 2**20:.0f} MiB"
            raise ApiError(400, message, f"{name}_too_large", "messages")
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            message = f"the {name} is not valid base64"
            raise ApiError(400, message, f"invalid_{name}", "messages") from None

    def generation_for(self, request: ChatRequest) -> Generation:
        """Return a request's decoding settings; sampling needs a temperature above 0.

        Raises:
            ApiError: The request asks for more tokens than allowed.
        """
        default = self.generation
        max_tokens = request.max_completion_tokens or request.max_tokens or default.max_new_tokens
        if max_tokens > self.limits.max_new_tokens:
            raise ApiError(
                400, f"max_tokens must be at most {self.limits.max_new_tokens}", "invalid_value",
                "max_tokens",
            )  # fmt: skip
        generation = replace(default, max_new_tokens=max_tokens)
        if request.temperature:
            generation = replace(
                generation, do_sample=True, num_beams=1, temperature=request.temperature,
                top_p=request.top_p or 1.0,
            )  # fmt: skip
        elif request.temperature == 0:
            generation = replace(
                generation, do_sample=False, temperature=1.0, top_p=1.0, candidates=1, references=0,
                recombine=False,
            )  # fmt: skip
        return generation if request.seed is None else replace(generation, seed=request.seed)


def _invalid_messages(message: str) -> ApiError:
    return ApiError(400, message, "invalid_value", "messages")


def _key(messages: list[Message]) -> str:
    content = [[m.role, m.text(), m.media_urls()] for m in messages]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
