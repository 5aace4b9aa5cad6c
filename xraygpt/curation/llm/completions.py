"""Chat completions: request bodies, token estimates and replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from xraygpt.curation.llm.endpoint import Endpoint
from xraygpt.curation.llm.tasks import Task

CHARACTERS_PER_TOKEN = 4.0
"""For English reports and prompts with a byte-pair vocabulary, as measured in docs/curation.md."""


@dataclass(frozen=True)
class Reply:
    """The outcome of one request.

    Attributes:
        state: ``answered`` (with content), ``refused`` or ``failed``.
        content: The text of the answer, which may be truncated or empty.
        reason: Why the answer was refused, failed or truncated; never text from the endpoint.
        tokens_in: Input tokens, reported by the endpoint or else estimated.
        tokens_out: Output tokens, reported by the endpoint or else estimated.
    """

    state: Literal["answered", "refused", "failed"]
    content: str = ""
    reason: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


def request_body(endpoint: Endpoint, task: Task, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Build the body of a chat completion request."""
    schema = {"name": task.name, "strict": True, "schema": task.schema()}
    return {
        "model": endpoint.model,
        "messages": messages,
        "response_format": {"type": "json_schema", "json_schema": schema},
        **endpoint.decoding(task.output_tokens),
    }


def estimate_tokens(
    messages: list[dict[str, Any]], picture_tokens: int, schema_characters: int = 0
) -> int:
    """Estimate the input tokens of a request.

    Args:
        messages: The messages to send.
        picture_tokens: Tokens per picture.
        schema_characters: Length of the JSON schema for the answer.
    """
    characters, pictures = schema_characters, 0
    for message in messages:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        characters += sum(len(p.get("text", "")) for p in parts)
        pictures += sum("image_url" in p for p in parts)
    return round(characters / CHARACTERS_PER_TOKEN) + pictures * picture_tokens


def parse_completion(completion: Any, estimated_in: int) -> Reply | None:
    """Convert a chat completion to a `Reply`, or None if it is malformed (the SDK does not check).

    Args:
        completion: The object returned by the SDK.
        estimated_in: The input tokens to assume if the endpoint reports none.
    """
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        return None
    message = getattr(choices[0], "message", None)
    content = getattr(message, "content", None)
    if message is None or not isinstance(content, str | None):
        return None
    tokens_in, tokens_out = reported_usage(completion)
    if tokens_in is None:
        tokens_in = estimated_in
    if tokens_out is None:
        tokens_out = round(len(content or "") / CHARACTERS_PER_TOKEN)
    finish_reason = getattr(choices[0], "finish_reason", None)
    if getattr(message, "refusal", None):
        return Reply("refused", "", "the model refused", tokens_in, tokens_out)
    if finish_reason == "content_filter":
        return Reply("refused", "", "the endpoint's content filter", tokens_in, tokens_out)
    reason = "cut off at the limit of tokens" if finish_reason == "length" else ""
    return Reply("answered", content or "", reason, tokens_in, tokens_out)


def reported_usage(completion: Any) -> tuple[int | None, int | None]:
    """Return the input and output tokens that a response reports, or None where it does not."""
    usage = getattr(completion, "usage", None)
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    tokens_in, tokens_out = (c if isinstance(c, int) and c >= 0 else None for c in counts)
    return tokens_in, tokens_out
