"""Items to rewrite: their keys, the messages sent for them, and the checks of the replies."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from xraygpt.curation.llm.completions import Reply, estimate_tokens
from xraygpt.curation.llm.endpoint import Endpoint
from xraygpt.curation.llm.ledger_rows import DONE, FAILED, INVALID, REFUSED, Draft, Row, row_key
from xraygpt.curation.llm.prompts import Prompt
from xraygpt.curation.llm.tasks import Task
from xraygpt.media.pixels import read_image

PICTURE_SIDE = 1024
"""Maximum length of the longer side of a picture that is sent, in pixels."""
PICTURE_TOKENS = 765
"""Estimated tokens of such a picture: what GPT-4o counts for 1024×1024 pixels."""


@dataclass(frozen=True)
class Item:
    """A report, or a picture with its notes, to rewrite.

    Attributes:
        key: The key of its ledger row.
        source_id: Id of the report; for a picture, followed by a slash and the name of the picture.
        sections: Heading -> text, for the prompt.
        source: The text that the answer is checked against.
        picture: The picture to send, for tasks that use pictures.
    """

    key: str
    source_id: str
    sections: dict[str, str]
    source: str
    picture: Path | None = None


def item_key(
    endpoint: Endpoint,
    task: Task,
    prompt: Prompt,
    source_id: str,
    sections: dict[str, str],
    picture_sha256: str = "",
) -> str:
    """Hash everything an answer depends on."""
    return row_key(
        prompt=prompt.sha256,
        version=prompt.version,
        task=task.name,
        schema=task.schema(),
        model=endpoint.model,
        decoding=endpoint.decoding(task.output_tokens),
        source_id=source_id,
        source=sections,
        picture=picture_sha256,
    )


def build_messages(
    item: Item, prompt: Prompt, rejected: Draft | None = None
) -> list[dict[str, Any]]:
    """Build the messages for an item.

    Args:
        item: The item.
        prompt: The prompt.
        rejected: The rejected first answer, if its repair is to be requested.
    """
    content: Any = prompt.render_user(item.sections)
    if item.picture is not None:
        content = [
            {"type": "text", "text": content},
            {"type": "image_url", "image_url": {"url": encode_picture(item.picture)}},
        ]
    messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": content}]
    return messages if rejected is None else build_repair_messages(messages, prompt, rejected)


def build_repair_messages(
    messages: list[dict[str, Any]], prompt: Prompt, rejected: Draft
) -> list[dict[str, Any]]:
    """Add a rejected answer and the request to repair it."""
    return [
        *messages,
        {"role": "assistant", "content": rejected.content or "(empty)"},
        {"role": "user", "content": prompt.render_repair(rejected.reasons)},
    ]


def encode_picture(path: Path, side: int = PICTURE_SIDE) -> str:
    """Encode a picture as a JPEG data URL, with its longer side at most `side` pixels."""
    pixels = read_image(path).pixels
    image = Image.fromarray((pixels * 255).round().astype("uint8"))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def estimate_request_tokens(task: Task, messages: list[dict[str, Any]]) -> int:
    """Estimate the input tokens of a request, including its JSON schema."""
    return estimate_tokens(messages, PICTURE_TOKENS, len(json.dumps(task.schema())))


def check_reply(task: Task, item: Item, reply: Reply) -> tuple[Any, list[str]]:
    """Parse and check a reply.

    Returns:
        The answer (or None) and the reasons to reject it.
    """
    if reply.state != "answered" or reply.reason:
        return None, [reply.reason]
    if not reply.content.strip():
        return None, ["the answer is empty"]
    answer, reasons = task.parse(reply.content)
    return answer, reasons or task.check(item.source, answer)


def final_row(
    prompt: Prompt,
    item: Item,
    reply: Reply,
    answer: Any,
    reasons: Sequence[str],
    rejected: Draft | None,
) -> Row:
    """Build the ledger row of an item after its last call.

    Args:
        prompt: The prompt.
        item: The item.
        reply: The last reply.
        answer: The parsed answer in that reply.
        reasons: Why the answer is rejected.
        rejected: The rejected first answer, if `reply` is its repair.
    """
    state, reason, text = FAILED, reply.reason, None
    if reply.state == "refused":
        state = REFUSED
    elif reply.state == "answered" and reasons:
        state, reason = INVALID, "; ".join(reasons)
    elif reply.state == "answered":
        state, reason, text = DONE, "", answer.model_dump_json()
    return Row(
        item.key,
        item.source_id,
        state,
        reason,
        text,
        prompt.repair_sha256 if rejected else "",
        rejected.dump() if rejected else None,
        reply.tokens_in + (rejected.tokens_in if rejected else 0),
        reply.tokens_out + (rejected.tokens_out if rejected else 0),
    )
