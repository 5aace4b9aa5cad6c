"""Chat model shared by many conversations: builds batches, encodes media, embeds prompts."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xraygpt.answering import Answerer, Prepared
from xraygpt.common.distributed import to_device
from xraygpt.datasets.base import Batch
from xraygpt.datasets.collate import content_digests, original_image, pad_rows
from xraygpt.media.base import Media
from xraygpt.media.content import row_key
from xraygpt.models.base import BaseModel
from xraygpt.models.capabilities import Chats, require
from xraygpt.models.llm.decoding import Decoder
from xraygpt.prompting.renderer import (
    IGNORE_INDEX,
    IMAGE_TOKEN_ID,
    PlacedRun,
    Rendered,
    Run,
)

TokenKey = int | tuple[object, ...]
"""Identifies a prompt token: its id, or (medium, how it was encoded, index) for a media token.
Tokens with equal identifiers after equal prefixes have equal entries in the LLM's cache."""


@dataclass
class EncodedMedium:
    """A medium in a conversation, with its tokens once the medium is encoded."""

    media: Media
    name: str = ""  # in messages
    key: int = field(default_factory=itertools.count().__next__)  # unique
    encoding_key: tuple[object, ...] | None = None  # what the tokens depend on except the medium
    tokens: Tensor | None = None  # (L, W)

    def forget_tokens(self) -> None:
        """Free the tokens, which are recomputed when needed."""
        self.tokens = self.encoding_key = None


class Engine:
    """A chat model shared by many conversations; `lock` serialises its use.

    Args:
        model: Model on its device; it is switched to evaluation mode.
        answerer: Decides how questions are answered; None passes all to the language model.

    Raises:
        InputError: The model cannot chat; the message gives the reason.
    """

    def __init__(self, model: BaseModel, answerer: Answerer | None = None) -> None:
        self.answerer = answerer
        self.chats = require(model, Chats)
        self.model = model.eval()
        self.renderer = model.renderer
        self.decoder = Decoder(self.chats.llm, model.renderer)
        self.lock = threading.Lock()
        self.device = model.device

    def prepare(self, question: str, media: Sequence[EncodedMedium], report: str = "") -> Prepared:
        """Prepare a question; see `Answerer.prepare`. The caller must not hold the lock."""
        if self.answerer is None:
            return Prepared(question)
        with self.lock, torch.inference_mode():
            return self.answerer.prepare(question, [medium.media for medium in media], report)

    def token_runs(self, media: Sequence[EncodedMedium]) -> list[Run]:
        """Return the token runs of all media in a conversation."""
        if not media or self.model.media_collator is None:
            return []
        return self.model.media_collator.token_runs([medium.media for medium in media])

    def batch(
        self,
        rendered: Rendered,
        media: Sequence[Media],
        question: str,
        media_inputs: dict[str, Tensor] | None = None,
    ) -> Batch:
        """Build a batch of one row from a conversation, on the model's device.

        Args:
            rendered: The rendered conversation.
            media: The media in it, in order.
            question: Text read by a Q-Former that is conditioned on the question.
            media_inputs: The media as the model's collator stacks them; None stacks all media.
        """
        collator = self.model.media_collator
        if media_inputs is None:
            media_inputs = collator.stack([media]) if collator is not None and media else {}
        ids, labels, mask, runs = pad_rows([rendered], 0, left=True)
        batch = Batch(
            input_ids=ids,
            labels=labels,
            attention_mask=mask,
            runs=runs,
            originals=[original_image(medium) for medium in media],
            media_inputs=media_inputs,
            extra={},
            question=[question],
            content_key=[row_key(content_digests(collator, media))],
            sample_id=["chat"],
            skipped=0,
        )
        moved: Batch = to_device(batch, self.device)
        return moved

    @torch.no_grad()
    def encode(self, media: Sequence[EncodedMedium], question: str) -> list[Tensor]:
        """Return the tokens (L, W) of each medium, computing those that are not stored yet.

        Args:
            media: All media in the conversation, in order.
            question: Text read by a Q-Former that is conditioned on the question.
        """
        asked = (question,) if self.model.reads_question else ()
        keys = [(*asked, context) for context in self._contexts(media)]
        missing = [i for i, key in enumerate(keys) if media[i].encoding_key != key]
        for part in self._encoded_together(media, missing):
            tokens = self.chats.media_tokens(self._batch_of(media, part, question))
            for i, values in zip(part, tokens, strict=True):
                media[i].tokens, media[i].encoding_key = values, keys[i]
        return [medium.tokens for medium in media if medium.tokens is not None]

    def _contexts(self, media: Sequence[EncodedMedium]) -> list[Hashable]:
        """Return what the tokens of each medium depend on, apart from the medium."""
        contexts = getattr(self.model.media_collator, "contexts", None)
        if contexts is not None:
            found: list[Hashable] = contexts([medium.media for medium in media])
            return found
        together = self._depend_on_each_other(media)
        return [tuple(medium.key for medium in media) if together else ()] * len(media)

    def _encoded_together(
        self, media: Sequence[EncodedMedium], missing: Sequence[int]
    ) -> list[Sequence[int]]:
        """Return groups of media to encode: only missing ones, if the collator can tell them apart.

        Otherwise, a medium whose token run differs when it is alone needs all others.
        """
        if not missing or hasattr(self.model.media_collator, "stack_part"):
            return [missing] if missing else []
        if self._depend_on_each_other(media):
            return [range(len(media))]
        return [[i] for i in missing]

    def _depend_on_each_other(self, media: Sequence[EncodedMedium]) -> bool:
        runs = self.token_runs(media)
        return not all(
            self.token_runs([medium]) == [run] for medium, run in zip(media, runs, strict=True)
        )

    def _batch_of(
        self, media: Sequence[EncodedMedium], indices: Sequence[int], question: str
    ) -> Batch:
        """Build a batch of some media of a conversation, without text."""
        part = [media[i].media for i in indices]
        stack_part = getattr(self.model.media_collator, "stack_part", None)
        if stack_part is None:
            runs = self.token_runs([media[i] for i in indices])
            return self.batch(render_runs(runs), part, question)
        runs = self.token_runs(media)
        inputs = stack_part([medium.media for medium in media], indices)
        return self.batch(render_runs([runs[i] for i in indices]), part, question, inputs)

    def token_keys(self, rendered: Rendered, media: Sequence[EncodedMedium]) -> list[TokenKey]:
        """Return a key for each prompt token, for comparing a prompt with the cache."""
        keys: list[TokenKey] = list(rendered["input_ids"])
        for run, medium in zip(rendered["runs"], media, strict=True):
            for i in range(run.length):
                keys[run.start + i] = (medium.key, medium.encoding_key, i)
        return keys

    @torch.no_grad()
    def embed(
        self, rendered: Rendered, media: Sequence[EncodedMedium], question: str
    ) -> tuple[Tensor, Tensor | None, Callable[[], Tensor | None]]:
        """Embed a prompt for the language model.

        Returns:
            (1, T, W) embeddings; (1, T) or (A, 1, T) position ids, or None; and a function that
            returns the embeddings with every medium replaced by an average one.
        """
        tokens = self.encode(media, question)
        shown = [medium.media for medium in media]
        stack_part = getattr(self.model.media_collator, "stack_part", None)
        # The tokens are known, so that no pixels are needed.
        inputs = stack_part(shown, ()) if stack_part is not None and media else None
        batch = self.batch(rendered, shown, question, inputs)
        embed_average = getattr(self.model, "embed_average", None)
        return (
            self.chats.embed(batch, tokens),
            self.model.positions(batch),
            lambda: None if embed_average is None else embed_average(batch),
        )


def render_runs(runs: Sequence[Run]) -> Rendered:
    """Render media without text, as placeholder tokens only."""
    placed, start = [], 0
    for run in runs:
        placed.append(PlacedRun(run.kind, start, run.length))
        start += run.length
    return Rendered(input_ids=[IMAGE_TOKEN_ID] * start, labels=[IGNORE_INDEX] * start, runs=placed)
