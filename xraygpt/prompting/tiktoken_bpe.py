"""Converts tokenizers of tiktoken to the JSON format of the library tokenizers, with the same ids.

A tiktoken encoding is a pattern that splits text into pieces, a rank for each token of bytes, and
special tokens. Within a piece, the neighbours whose concatenation has the lowest rank are merged
first. The ranks are the ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from xraygpt.common.errors import DataError

ROLES = ("bos", "eos", "pad")


@dataclass(frozen=True)
class TiktokenData:
    """Data of a tiktoken encoding.

    Attributes:
        pattern: Regular expression whose matches are the pieces of a text.
        ranks: Rank, which is also the id, of each token of bytes.
        specials: Ids of special tokens.
    """

    pattern: str
    ranks: Mapping[bytes, int]
    specials: Mapping[str, int]

    @classmethod
    def from_state(cls, state: Any, where: str) -> TiktokenData:
        """Check the pickled attributes of a `tiktoken.Encoding`.

        Raises:
            DataError: They are incomplete, have other types, or ids occur twice.
        """
        if isinstance(state, str):
            raise DataError(
                f"{where} only names tiktoken's encoding {state!r}, and does not contain it; save "
                "an encoding of your own"
            )
        try:
            data = cls(state["pat_str"], state["mergeable_ranks"], state["special_tokens"])
            data.check(where)
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{where} does not contain a tiktoken encoding: {error!r}") from None
        return data

    def check(self, where: str) -> None:
        """Check the types of all data, that all single bytes are tokens, and that ids are unique.

        Raises:
            DataError: They are not.
        """
        is_typed = (
            isinstance(self.pattern, str)
            and all(isinstance(t, bytes) and isinstance(r, int) for t, r in self.ranks.items())
            and all(isinstance(t, str) and isinstance(r, int) for t, r in self.specials.items())
        )
        if not is_typed:
            raise DataError(f"{where} does not contain a tiktoken encoding: wrong types")
        lacking = [b for b in range(256) if bytes([b]) not in self.ranks]
        if lacking:
            raise DataError(f"{where}: {len(lacking)} of the 256 bytes are no tokens")
        ids = [*self.ranks.values(), *self.specials.values()]
        if len(set(ids)) < len(ids) or min(ids) < 0:
            raise DataError(f"{where}: two tokens have the same id, or an id is negative")

    def byte_lengths(self) -> list[int]:
        """Return the number of bytes of each token by its id; 0 for specials and unused ids."""
        lengths = [0] * (1 + max([*self.ranks.values(), *self.specials.values()]))
        for token, rank in self.ranks.items():
            lengths[rank] = len(token)
        return lengths

    def encode_piece(self, piece: bytes) -> list[int]:
        """Return the ids of one piece, by tiktoken's algorithm."""
        if piece in self.ranks:
            return [self.ranks[piece]]
        parts = [bytes([byte]) for byte in piece]
        while len(parts) > 1:
            ranks = [self.ranks.get(a + b) for a, b in pairwise(parts)]
            known = [(rank, i) for i, rank in enumerate(ranks) if rank is not None]
            if not known:
                break
            _, i = min(known)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [self.ranks[part] for part in parts]


def tokenizer_json(data: TiktokenData) -> str:
    """Return the content of `tokenizer.json`.

    Each pair of tokens whose concatenation is a token can be merged, as in tiktoken, and not only
    the pair that training merged.
    """
    names = byte_names()
    spelled = {token: "".join(names[b] for b in token) for token in data.ranks}
    merges = [
        [spelled[token[:i]], spelled[token[i:]]]
        for token in sorted(data.ranks, key=lambda t: data.ranks[t])
        for i in range(1, len(token))
        if token[:i] in data.ranks and token[i:] in data.ranks
    ]
    vocab = {spelled[token]: rank for token, rank in data.ranks.items()} | dict(data.specials)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": rank, "content": token, **flags, "special": True}
        for token, rank in sorted(data.specials.items(), key=lambda item: item[1])
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    split = {"type": "Split", "pattern": {"Regex": data.pattern}, "behavior": "Isolated"}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{**split, "invert": False}, {**byte_level, "use_regex": False}],
        },
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a token is not merged
            "vocab": vocab,
            "merges": merges,
        },
    }
    return json.dumps(content, ensure_ascii=False, indent=1)


def tokenizer_config(data: TiktokenData) -> str:
    """Return the content of `tokenizer_config.json`, with the specials that name their role."""
    roles = {f"{r}_token": f"<|{r}|>" for r in ROLES if f"<|{r}|>" in data.specials}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return json.dumps({**config, **roles}, indent=1)


def byte_names() -> dict[int, str]:
    """Return the printable character that stands for each byte (Radford et al. 2019, GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def count_differences(data: TiktokenData, content: str, texts: Iterable[str]) -> int:
    """Return how many texts the converted tokenizer encodes with other ids than tiktoken.

    Pieces are those of the converted tokenizer, so this checks the merges, not the pattern.

    Raises:
        DataError: The library tokenizers cannot read the pattern.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare exceptions
        raise DataError(f"the tokenizer's pattern cannot be converted: {error}") from None
    tokenizer.encode_special_tokens = True  # specials in a text are plain text
    codes = {name: byte for byte, name in byte_names().items()}
    different = 0
    for text in texts:
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text)
        expected = [
            i for piece, _ in pieces for i in data.encode_piece(bytes(codes[c] for c in piece))
        ]
        different += tokenizer.encode(text).ids != expected
    return different
