"""An answer as it comes: what the thread that listens and the thread that generates share."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from xraygpt.conversation.engine import Shown
from xraygpt.models.llm.decoding import Decoder
from xraygpt.prompting.renderer import Rendered

Ended = Literal["end", "length", "cancelled"]


@dataclass(frozen=True)
class Replay:
    """What the model had before it when it had given an answer.

    Attributes:
        rendered: Of the whole prompt and the answer.
        start: Place of the answer's first id.
        answer: Its text.
        images: All media shown until then.
        asked: What a model that reads the question beside an image read.
    """

    rendered: Rendered
    start: int
    answer: str
    images: list[Shown]
    asked: str

    @property
    def ids(self) -> list[int]:
        """Of the whole prompt and the answer, IMAGE_TOKEN_ID at every token of a medium."""
        return self.rendered["input_ids"]


class Answer:
    """An answer under way: iterate over its pieces of text as they come, or take `text()`.

    Attributes:
        dropped: Exchanges that were left out of the prompt because the context is full.
        prompt_tokens: Of the whole conversation before this answer.
        cached_tokens: How many of these had been computed before.
        seed: Of sampling; None for greedy and beam search.
        ended: ``end`` (the model closed it), ``length``, ``cancelled``, or None while under way.
    """

    def __init__(self, dropped: int, prompt_tokens: int, seed: int | None) -> None:
        self.dropped, self.prompt_tokens, self.seed = dropped, prompt_tokens, seed
        self.cached_tokens = 0
        self.ended: Ended | None = None
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._done = threading.Event()
        self._text = ""
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        """Pieces of text; together they are `text()`.

        Raises:
            Exception: What went wrong while answering.
        """
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._pieces.put(None)  # for whoever iterates again
        if self._error is not None:
            raise self._error

    def text(self) -> str:
        """The whole answer, when it is there.

        Raises:
            Exception: What went wrong while answering.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._text

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self._done.is_set()

    def wait(self) -> None:
        """Until it is over, however it ended."""
        self._done.wait()

    def add(self, piece: str) -> None:
        """For who generates: tell a piece."""
        self._pieces.put(piece)

    def finish(self, text: str, ended: Ended | None, error: BaseException | None = None) -> None:
        """For who generates: it is over."""
        self._text, self.ended, self._error = text, ended, error
        self._done.set()
        self._pieces.put(None)


class Cancelled(StoppingCriteria):
    """Stops every row when somebody asked for it."""

    def __init__(self, asked: threading.Event) -> None:
        self.asked = asked

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """(B,) whether to stop."""
        return torch.full((len(input_ids),), self.asked.is_set(), device=input_ids.device)


class Pieces(BaseStreamer):
    """Tokens as they come -> pieces of text, without what may be the start of a stop string."""

    def __init__(self, decoder: Decoder, answer: Answer, cancel: threading.Event) -> None:
        self.decoder, self.answer, self.cancel = decoder, answer, cancel
        self.ids: list[int] = []
        self.told = 0
        self.begun = False

    def put(self, value: Tensor) -> None:
        """The prompt first, which is passed over, then token after token."""
        if not self.begun:
            self.begun = True
            return
        self.ids += value.flatten().tolist()
        self._tell(self.decoder.safe_text(self.ids))

    def end(self) -> None:
        """Nothing: `rest` says what was held back."""

    def rest(self, text: str) -> None:
        """What of the finished text was not told yet."""
        self._tell(text)

    def _tell(self, text: str) -> None:
        if len(text) > self.told:
            self.answer.add(text[self.told :])
            self.told = len(text)
