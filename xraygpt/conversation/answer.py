"""Streamed answers, shared by the generating thread and the reader."""

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

from xraygpt.conversation.engine import EncodedMedium
from xraygpt.models.llm.decoding import Decoder
from xraygpt.prompting.renderer import Rendered
from xraygpt.tasks.payload import Payload

FinishReason = Literal["end", "length", "cancelled"]


@dataclass(frozen=True)
class AnswerContext:
    """An earlier answer and the prompt it was generated from.

    Attributes:
        rendered: Token ids and runs of the full prompt and the answer.
        start: Index of the answer's first token id.
        answer: Text of the answer.
        media: All media shown up to this answer.
        question: Text read by a Q-Former that is conditioned on the question.
    """

    rendered: Rendered
    start: int
    answer: str
    media: list[EncodedMedium]
    question: str

    @property
    def ids(self) -> list[int]:
        """Token ids of the full prompt and the answer, with IMAGE_TOKEN_ID for media tokens."""
        return self.rendered["input_ids"]


class Answer:
    """An answer that is being generated: iterate over its pieces of text, or wait for `text()`.

    Attributes:
        dropped: Number of old question-answer pairs omitted because the context is full.
        prompt_tokens: Length of the prompt, including the earlier conversation.
        cached_tokens: Prompt tokens that were already in the key-value cache.
        seed: Sampling seed; None for greedy and beam search.
        payload: Findings, probabilities and remarks that accompany the text.
        progress: Share of the maximum length that has been generated, in [0, 1].
        finish_reason: ``end`` (the model stopped), ``length``, ``cancelled``, or None while
            generating.
    """

    def __init__(self, dropped: int, prompt_tokens: int, seed: int | None) -> None:
        self.dropped, self.prompt_tokens, self.seed = dropped, prompt_tokens, seed
        self.cached_tokens = 0
        self.payload = Payload()
        self.progress = 0.0
        self.finish_reason: FinishReason | None = None
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._done = threading.Event()
        self._text = ""
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        """Yield pieces of text; joined they equal `text()`.

        Raises:
            Exception: Any exception raised during generation.
        """
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._pieces.put(None)  # a second iteration ends at once
        if self._error is not None:
            raise self._error

    def pieces(self, seconds: float) -> Iterator[str]:
        """Yield like `__iter__`, and also "" whenever there is no new text for some seconds."""
        while True:
            try:
                piece = self._pieces.get(timeout=seconds)
            except queue.Empty:
                yield ""
                continue
            if piece is None:
                break
            yield piece
        self._pieces.put(None)
        if self._error is not None:
            raise self._error

    def text(self) -> str:
        """Wait for the answer and return its full text.

        Raises:
            Exception: Any exception raised during generation.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._text

    @property
    def is_done(self) -> bool:
        """Whether generation has finished, successfully or not."""
        return self._done.is_set()

    def wait(self) -> None:
        """Block until generation has finished, successfully or not."""
        self._done.wait()

    def add_piece(self, piece: str) -> None:
        """Publish a piece of text; called by the generating thread."""
        self._pieces.put(piece)

    def finish(
        self,
        text: str,
        reason: FinishReason | None,
        error: BaseException | None = None,
        payload: Payload | None = None,
    ) -> None:
        """Publish the result; called by the generating thread."""
        self._text, self.finish_reason, self._error = text, reason, error
        self.payload, self.progress = payload or Payload(), 1.0
        self._done.set()
        self._pieces.put(None)


class StepCriteria(StoppingCriteria):
    """Stops all rows once an event is set, and reports the progress of each step.

    Args:
        cancel: The event.
        answer: The answer that is being generated.
        max_new_tokens: Maximum length of the answer.
    """

    def __init__(self, cancel: threading.Event, answer: Answer, max_new_tokens: int) -> None:
        self.cancel, self.answer, self.max_new_tokens = cancel, answer, max_new_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Return a boolean tensor of shape (B,): whether generation should stop for each row."""
        self.answer.progress = input_ids.shape[1] / self.max_new_tokens
        return torch.full((len(input_ids),), self.cancel.is_set(), device=input_ids.device)


class AnswerStreamer(BaseStreamer):
    """Passes new text to an `Answer`, holding back what may be the start of a stop string."""

    def __init__(self, decoder: Decoder, answer: Answer) -> None:
        self.decoder, self.answer = decoder, answer
        self.ids: list[int] = []
        self.num_sent = 0
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Receive token ids; the first call passes the prompt, which is skipped."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        self.send(self.decoder.safe_text(self.ids))

    def end(self) -> None:
        """Do nothing: the caller sends the final text with `send`."""

    def send(self, text: str) -> None:
        """Publish the part of the text that has not been published yet."""
        if len(text) > self.num_sent:
            self.answer.add_piece(text[self.num_sent :])
            self.num_sent = len(text)
