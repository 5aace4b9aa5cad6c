"""The LLM's key-value cache of one conversation, reused for the common prefix of prompts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from transformers import DynamicCache

from xraygpt.conversation.engine import TokenKey


class PrefixCache:
    """Keys and values for the last prompt and answer, and the tokens to which they belong.

    Args:
        llm: The causal language model.

    Attributes:
        kv: Cache object of transformers; None if nothing is cached.
        token_keys: One key for each cached position.
    """

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.kv: Any = None
        self.token_keys: list[TokenKey] = []

    def __len__(self) -> int:
        return len(self.token_keys)

    def clear(self) -> None:
        """Free the cache."""
        self.kv, self.token_keys = None, []

    def crop_to_prefix(self, prompt: Sequence[TokenKey]) -> None:
        """Crop to the longest common prefix with a prompt, without the prompt's last token."""
        if self.kv is None:
            self.kv = DynamicCache(config=self.llm.config)
            self.token_keys = []
        pairs = zip(self.token_keys, prompt[:-1], strict=False)
        self._crop(sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    def record(self, token_keys: Sequence[TokenKey]) -> None:
        """Record the tokens that the LLM has processed; the last token may be unprocessed."""
        self.token_keys = list(token_keys[: int(self.kv.get_seq_length())])
        self._crop(len(self.token_keys))

    def _crop(self, length: int) -> None:
        excess = int(self.kv.get_seq_length()) - length
        if excess > 0:
            self.kv.crop(-excess)
        self.token_keys = self.token_keys[:length]
