"""The bodies of chat completion requests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xraygpt.common.errors import InputError
from xraygpt.curation.llm.completions import estimate_tokens
from xraygpt.curation.llm.items import PICTURE_TOKENS
from xraygpt.models.base import Generation
from xraygpt.models.endpoint.messages import Message
from xraygpt.models.endpoint.pictures import Picture, PictureFormat, picture_part

_REFUSED = (
    "num_beams", "length_penalty", "repetition_penalty", "no_repeat_ngram_size", "guidance",
    "candidates", "references", "recombine",
)  # fmt: skip
OWN_FIELDS = ("model", "messages", "max_tokens", "max_completion_tokens", "stream", "n", "tools")
"""Request fields that `model.extra` may not set."""
_MESSAGE_TOKENS = 8  # estimated tokens around the text of a message


@dataclass(frozen=True)
class RequestFormat:
    """Everything in a request except its messages.

    Attributes:
        url: The address, on which an answer depends as well.
        model: Name of the model.
        token_limit: Name of the field for the maximum number of tokens.
        extra: Further fields.
        omit: Names of fields that are not sent.
        pictures: How images are sent.
    """

    url: str
    model: str
    token_limit: str
    extra: Mapping[str, Any]
    omit: Sequence[str]
    pictures: PictureFormat


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to be sent.

    Attributes:
        key: Hash of everything its answer depends on.
        body: The body.
        estimated_in: Estimated input tokens.
    """

    key: str
    body: dict[str, Any]
    estimated_in: int


@dataclass(frozen=True)
class Question:
    """One row of a batch.

    Attributes:
        sample_id: Id of the sample, for messages.
        messages: The conversation.
        media: The pictures of each medium in the batch.
    """

    sample_id: str
    messages: Sequence[Message]
    media: Sequence[Sequence[Picture]]

    def prepare(self, form: RequestFormat, decoding: Mapping[str, Any]) -> Prepared:
        """Encode the pictures and build the request; safe to call in a thread."""
        messages = [
            {"role": message.role, "content": self._content(message, form.pictures)}
            for message in self.messages
        ]
        fields = {**decoding, **form.extra}
        kept = {name: value for name, value in fields.items() if name not in form.omit}
        body = {"model": form.model, "messages": messages, **kept}
        text = json.dumps([form.url, body], sort_keys=True)
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        around = _MESSAGE_TOKENS * len(messages)
        return Prepared(key, body, around + estimate_tokens(messages, PICTURE_TOKENS))

    def _content(self, message: Message, how: PictureFormat) -> str | list[dict[str, Any]]:
        if all(isinstance(part, str) for part in message.parts):
            return "\n".join(map(str, message.parts))
        content: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
                continue
            for picture in self.media[part]:
                if picture.label:
                    content.append({"type": "text", "text": picture.label})
                content.append(picture_part(picture.pixels, how))
        return content


def decoding_fields(generation: Generation, token_limit: str) -> dict[str, Any]:
    """Return the request fields for decoding settings.

    Args:
        generation: The settings.
        token_limit: Name of the field for the maximum number of tokens.

    Raises:
        InputError: An endpoint cannot honour a setting.
    """
    refuse_settings(generation)
    fields: dict[str, Any] = {token_limit: generation.max_new_tokens, "temperature": 0.0}
    if generation.do_sample:
        fields["temperature"], fields["seed"] = generation.temperature, generation.seed
        if generation.top_p != 1:
            fields["top_p"] = generation.top_p
    return fields


def refuse_settings(generation: Generation) -> None:
    """Refuse decoding settings that an endpoint cannot honour.

    Raises:
        InputError: The message names the settings.
    """
    default = Generation()
    changed = [name for name in _REFUSED if getattr(generation, name) != getattr(default, name)]
    if changed:
        raise InputError(
            f"run.task.generate: an endpoint cannot honour {', '.join(changed)}; remove "
            f"{'it' if len(changed) == 1 else 'them'}. Fields that your server itself understands, "
            "such as vLLM's repetition_penalty, belong in model.extra"
        )
