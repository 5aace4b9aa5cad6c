"""A model that many conversations share: their prompts as ids, media and embeddings."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xraygpt.common.distributed import to_device
from xraygpt.datasets.base import Batch
from xraygpt.datasets.collate import original_of, padded
from xraygpt.media.base import Media
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

Cell = int | tuple[object, ...]
"""What stands at a place of a prompt: an id, or which token of which medium, as it was read."""


@dataclass
class Shown:
    """A medium of a conversation and what the model made of it."""

    media: Media
    key: int = field(default_factory=itertools.count().__next__)  # no other has it
    read_as: tuple[object, ...] | None = None  # what its tokens depend on beside it
    tokens: Tensor | None = None  # (L, H)


class Engine:
    """A model that many conversations share, one answer at a time.

    Args:
        model: On its device; is put into evaluation mode.

    Raises:
        InputError: The model cannot chat; says why.
    """

    def __init__(self, model: BaseModel) -> None:
        self.chats = require(model, Chats)
        self.model = model.eval()
        self.renderer = model.renderer
        self.decoder = Decoder(self.chats.llm, model.renderer)
        self.lane = threading.Lock()
        self.device = model.device

    def plan(self, shown: Sequence[Shown]) -> list[Run]:
        """Placeholders of each medium of a conversation."""
        if not shown or self.model.media_collator is None:
            return []
        return self.model.media_collator.token_runs([one.media for one in shown])

    def batch(self, rendered: Rendered, media: Sequence[Media], asked: str) -> Batch:
        """A conversation as a batch of one row, on the model's device.

        Args:
            rendered: Its ids.
            media: All of its media, in order.
            asked: What a model that reads the question beside an image reads.
        """
        ids, labels, mask, runs = padded([rendered], 0, left=True)
        media_collator = self.model.media_collator
        batch = Batch(
            input_ids=ids,
            labels=labels,
            attention_mask=mask,
            runs=runs,
            originals=[original_of(one) for one in media],
            media_inputs=media_collator.stack([media])
            if media_collator is not None and media
            else {},
            extra={},
            question=[asked],
            sample_id=["chat"],
            skipped=0,
        )
        moved: Batch = to_device(batch, self.device)
        return moved

    @torch.no_grad()
    def read(self, shown: Sequence[Shown], asked: str) -> list[Tensor]:
        """(L, H) tokens of each medium, unless they were made before.

        A medium that takes other places alone than among the others is encoded with all of them.

        Args:
            shown: All media of the conversation, in order.
            asked: What a model that reads the question beside an image reads.
        """
        runs = self.plan(shown)
        question = (asked,) if self.model.reads_question else ()
        alone = [self.plan([one]) == [run] for one, run in zip(shown, runs, strict=True)]
        together = tuple(one.key for one in shown) if not all(alone) else ()
        wanted = [one for one in shown if one.read_as != (*question, together)]
        if wanted and together:
            self._encode(shown, runs, asked, (*question, together))
        else:
            for one in wanted:
                self._encode([one], self.plan([one]), asked, (*question, together))
        return [one.tokens for one in shown if one.tokens is not None]

    def _encode(
        self, shown: Sequence[Shown], runs: Sequence[Run], asked: str, read_as: tuple[object, ...]
    ) -> None:
        media = [one.media for one in shown]
        tokens = self.chats.media_tokens(self.batch(bare(runs), media, asked))
        for one, made in zip(shown, tokens, strict=True):
            one.tokens, one.read_as = made, read_as

    def cells(self, rendered: Rendered, shown: Sequence[Shown]) -> list[Cell]:
        """What stands at every place of a prompt; equal cells have equal keys and values."""
        cells: list[Cell] = list(rendered["input_ids"])
        for run, one in zip(rendered["runs"], shown, strict=True):
            for i in range(run.length):
                cells[run.start + i] = (one.key, one.read_as, i)
        return cells

    @torch.no_grad()
    def embed(
        self, rendered: Rendered, shown: Sequence[Shown], asked: str
    ) -> tuple[Tensor, Tensor | None, Callable[[], Tensor | None]]:
        """A prompt as the language model reads it.

        Returns:
            (1, T, H) embeddings; (1, T) or (A, 1, T) position ids, or None; and, on request, the
            embeddings with an average medium in every medium's place.
        """
        tokens = self.read(shown, asked)
        batch = self.batch(rendered, [one.media for one in shown], asked)
        average = getattr(self.model, "embed_average", None)
        return (
            self.chats.embed(batch, tokens),
            self.model.positions(batch),
            lambda: None if average is None else average(batch),
        )


def bare(runs: Sequence[Run]) -> Rendered:
    """Media without text: their placeholders in a row."""
    placed, start = [], 0
    for run in runs:
        placed.append(PlacedRun(run.kind, start, run.length))
        start += run.length
    return Rendered(input_ids=[IMAGE_TOKEN_ID] * start, labels=[IGNORE_INDEX] * start, runs=placed)
