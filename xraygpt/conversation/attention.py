"""Where a model looked for a word or a sentence of its answer.

    heat over patches = attention of these tokens to the image's queries (LLM)
                      x cross-attention from the queries to the patches (Q-Former)

both averaged over layers and heads, as in the joint attention of Abnar and Zuidema (2020) without
its residual path. What all words of the answer attend to says nothing of these words, and what the
queries always look at says nothing of this image. So the first factor counts above the mean of the
whole answer, the second above its average over reference images, where there are any.

An explanation of a machine, no evidence of a disease: `tests/conversation/test_attention.py` holds
it to phantoms, whose lesions are known to the pixel. Notation: Q queries, L patches, F frames.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from xraygpt.common.errors import InputError
from xraygpt.conversation.answer import Replay
from xraygpt.conversation.chat import Conversation
from xraygpt.conversation.engine import Engine, Shown, bare
from xraygpt.media.base import Media, of_tensor
from xraygpt.models.capabilities import AttentionMaps, require
from xraygpt.models.tracing import eager_attention
from xraygpt.processors.image import Fit

FEWEST, MOST_ROWS = 8, 400
"""Reference images, below which no average is taken; tokens of an answer that stand for it."""


@dataclass(frozen=True)
class Look:
    """One image of a conversation, as looked at for some words of an answer.

    Attributes:
        heat: (h, w) float32, at least 0, one value a patch; (F, h, w) for a clip. All images of a
            conversation share its unit; all 0 where nothing is above the average.
        share: Of the attention that these words gave to images, this image's part, in [0, 1].
        to_images: Of all their attention, the part that went to images, in [0, 1].
    """

    heat: Tensor
    share: float
    to_images: float


class Attention:
    """Looks again at answers of an engine's conversations.

    Args:
        engine: Whose; a model that cannot show where it looked says so when it is asked.

    Attributes:
        references: How many images the average was taken of; 0 if none is taken off.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.references = 0
        self._average: Tensor | None = None

    def compare_with(self, images: Iterable[Media | Tensor]) -> int:
        """Take the average over these images; fewer than `FEWEST` change nothing.

        Args:
            images: As the model's image processor makes them.

        Returns:
            How many there were.
        """
        total: Any = 0
        count = 0
        for image in images:
            total = total + self._traced([as_media(image)], "")[0][1].mean(dim=0)
            count += 1
        if count >= FEWEST:
            self._average, self.references = total / count, count
        return count

    def look(self, conversation: Conversation, start: int, end: int, turn: int = -1) -> list[Look]:
        """Where the model looked when it chose some words.

        Args:
            conversation: Has answered.
            start: Of the words in the answer's text, in characters.
            end: Behind their last character.
            turn: Which exchange; -1 is the last.

        Returns:
            One for each image shown until then.

        Raises:
            InputError: There was no such answer, no image, or no such place in the answer; or the
                model cannot show where it looked.
        """
        replay = conversation.replay(turn)
        if not replay.images:
            raise InputError("no image was shown before this answer")
        first, last = self._tokens(replay, start, end)
        traced = self._traced([image.media for image in replay.images], replay.asked)
        rows, first, last = self._rows(replay, first, last)
        attended = self._to_queries(replay, [tokens for tokens, _ in traced], rows)
        to_queries = attended[first:last].mean(dim=0)
        more = _above(to_queries, attended.mean(dim=0))
        total = float(to_queries.sum())
        looks, at = [], 0
        for tokens, cross in traced:
            own = slice(at, at + len(tokens))
            weights = more[own].view(cross.shape[0], 1, -1)
            at += len(tokens)
            if self._average is not None and self._average.shape == cross.shape[1:]:
                cross = (cross - self._average).clamp(min=0)
            heat = _grid((weights @ cross).squeeze(1))
            share = float(to_queries[own].sum()) / total if total else 0.0
            looks.append(Look(heat if len(heat) > 1 else heat[0], share, total))
        return looks

    def _tokens(self, replay: Replay, start: int, end: int) -> tuple[int, int]:
        """Range of the answer's tokens in which these characters lie."""
        if not 0 <= start < end <= len(replay.answer):
            raise InputError(f"the answer has {len(replay.answer)} characters, not {start}..{end}")
        ids = replay.ids[replay.start :]
        decode = self.engine.renderer.tokenizer.decode
        before = decode(ids, skip_special_tokens=True).find(replay.answer)
        start, end = start + max(before, 0), end + max(before, 0)

        def length(count: int) -> int:
            return len(decode(ids[:count], skip_special_tokens=True))

        counts = range(len(ids) + 1)
        first = bisect.bisect_right(counts, start, key=length) - 1
        last = bisect.bisect_left(counts, end, key=length)
        return first, max(min(last, len(ids)), first + 1)

    @torch.inference_mode()
    def _traced(self, media: Sequence[Media], asked: str) -> list[tuple[Tensor, Tensor]]:
        """Of each medium its (F · Q, H) tokens, and (F, Q, P) shares of its patches in them."""
        engine = self.engine
        with engine.lane:
            runs = engine.plan([Shown(one) for one in media])
            batch = engine.batch(bare(runs), media, asked)
            traced = require(engine.model, AttentionMaps).traced_tokens(batch)
            return [(tokens, shares.cpu()) for tokens, shares in traced]

    def _rows(self, replay: Replay, first: int, last: int) -> tuple[slice, int, int]:
        """Rows that chose the answer's tokens, and where those first..last are among them.

        The token at place t is chosen by the row at t - 1. Of a long answer `MOST_ROWS` around
        these tokens stand for the whole.
        """
        begin, end = self._tokens(replay, 0, len(replay.answer))  # without its end mark
        begin = max(begin, min(first, end - MOST_ROWS))
        end = max(last, min(end, begin + MOST_ROWS))
        rows = slice(replay.start + begin - 1, replay.start + end - 1)
        return rows, first - begin, last - begin

    @torch.inference_mode()
    def _to_queries(self, replay: Replay, images: Sequence[Tensor], rows: slice) -> Tensor:
        """(rows, all queries) attention of these rows."""
        engine = self.engine
        llm = engine.chats.llm
        with engine.lane:
            media = [image.media for image in replay.images]
            batch = engine.batch(replay.rendered, media, replay.asked)
            embeds = engine.chats.embed(batch, images)[:, : rows.stop]
            places = engine.model.positions(batch)
            cache = DynamicCache(config=llm.config)

            def read(part: slice, **more: Any) -> Any:
                own = {} if places is None else {"position_ids": places[..., part]}
                return llm(
                    inputs_embeds=embeds[:, part], past_key_values=cache, use_cache=True,
                    logits_to_keep=1, **own, **more,
                )  # fmt: skip

            if rows.start:
                read(slice(0, rows.start))
            with eager_attention(llm):
                out = read(slice(rows.start, rows.stop), output_attentions=True)
        at = [i for r in replay.rendered["runs"] for i in range(r.start, r.start + r.length)]
        # A sliding window keeps its last places alone; what it has dropped was not looked at.
        each = [F.pad(a, (rows.stop - a.shape[-1], 0))[0, ..., at] for a in out.attentions]
        return torch.stack([a.float().mean(dim=0).cpu() for a in each]).mean(dim=0)


def as_media(image: Media | Tensor) -> Media:
    """A processed image, as a medium."""
    return of_tensor(image) if isinstance(image, Tensor) else image


def _above(own: Tensor, mean: Tensor) -> Tensor:
    """Shares of queries above their mean shares; the shares themselves where nothing is.

    That is so where the words are the whole answer.
    """
    shares = own / own.sum().clamp(min=1e-12)
    more = (shares - mean / mean.sum().clamp(min=1e-12)).clamp(min=0)
    return more if float(more.sum()) > 1e-6 else shares


def on_image(heat: Tensor, fit: Fit, height: int, width: int) -> np.ndarray:
    """A map of patches -> one of the picture's own pixels.

    Args:
        heat: (h, w), of `Look.heat`.
        fit: How the image processor made the picture square.
        height: Of the picture.
        width: Of the picture.

    Returns:
        (height, width) float32, at least 0; 0 where the model was not shown the picture.
    """
    side = {"squash": None, "pad": max(height, width), "crop": min(height, width)}[fit]
    square = (height, width) if side is None else (side, side)
    grown = F.interpolate(heat[None, None].float(), square, mode="bilinear", align_corners=False)
    found = grown[0, 0].numpy()
    if side is None:
        return found
    top, left = (side - height) // 2, (side - width) // 2
    if fit == "pad":
        return found[top : top + height, left : left + width]
    placed = np.zeros((height, width), np.float32)
    placed[-top : side - top, -left : side - left] = found
    return placed


def _grid(heat: Tensor) -> Tensor:
    """(F, L) -> (F, h, w); tokens before the grid, such as a class token, are left out.

    Raises:
        InputError: L is no square grid.
    """
    count = heat.shape[-1]
    for extra in range(min(9, count)):
        side = round((count - extra) ** 0.5)
        if side * side == count - extra and side > 1:
            return heat[:, extra:].reshape(len(heat), side, side)
    raise InputError(f"{count} features are no grid of patches, so no place can be named")
