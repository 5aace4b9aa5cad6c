"""Requests, limits and errors of the OpenAI-compatible endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True, kw_only=True)
class ApiLimits:
    """Limits on a request."""

    max_image_bytes: int = 32 * 2**20
    """Maximum size of one image after base64 decoding."""
    max_video_bytes: int = 64 * 2**20
    """Maximum size of one clip after base64 decoding."""
    max_images: int = 8
    """Maximum number of images and clips in one conversation."""
    max_body_bytes: int = 96 * 2**20
    """Maximum size of one request."""
    max_waiting: int = 32
    """Maximum number of requests waiting for the model; further requests get status 429."""
    max_new_tokens: int = 1024
    """Upper limit of `max_tokens`."""


class ApiError(Exception):
    """An error that is returned in OpenAI's format."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


class _Schema(BaseModel):
    model_config = ConfigDict(extra="ignore")


class MediaUrl(_Schema):
    """An image or a clip as a data URI."""

    url: str


class TextPart(_Schema):
    """Text in a message."""

    type: Literal["text"]
    text: str


class ImagePart(_Schema):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: MediaUrl


class VideoPart(_Schema):
    """A clip in a message: a video, or a DICOM file with several frames."""

    type: Literal["video_url"]
    video_url: MediaUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(_Schema):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def text(self) -> str:
        """Return all text in the message."""
        if isinstance(self.content, str):
            return self.content
        return " ".join(p.text for p in self.content if isinstance(p, TextPart))

    def media_urls(self) -> list[tuple[str, str]]:
        """Return the type and the data URI of each medium in the message, in order."""
        if isinstance(self.content, str):
            return []
        return [
            (p.type, p.image_url.url if isinstance(p, ImagePart) else p.video_url.url)
            for p in self.content
            if not isinstance(p, TextPart)
        ]


class ChatRequest(_Schema):
    """The supported fields of OpenAI's request; others are ignored."""

    model: str = ""
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    n: int = Field(1, ge=1, le=1)
    stream: bool = False
