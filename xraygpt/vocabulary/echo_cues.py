"""Words of a sentence that deny, doubt or void a statement on a trait, and how far they reach."""

from __future__ import annotations

import re
from collections.abc import Sequence

from xraygpt.vocabulary.echo_tokens import Token

STOPS = ("break", "stop")
"""Kinds of tokens that end the reach of words: "but", a semicolon."""

_MAX_REACH = 60  # characters between a statement and the words
_VERB = re.compile(r"[,;]|\b(?:is|are|was|were|shows?|reveals?)\b")


def is_denied_after(tokens: Sequence[Token], text: str, token: Token, end: int) -> bool:
    """Return whether words after a quality deny it: "is absent", "was not seen".

    Args:
        tokens: Tokens of the sentence.
        text: The sentence in lower case.
        token: The quality.
        end: End of the quality and its structures.
    """
    for t in tokens:
        if t.start < end:
            continue
        if t.kind == "neg_after":
            gap = text[end : t.start]
            return len(gap) <= _MAX_REACH and "," not in gap.strip(" ,")
        is_same = t.kind == "quality" and t.rule.value == token.rule.value
        if t.kind in {*STOPS, "quality", "term", "grade", "with"} and not is_same:
            return False
    return False


def is_doubted(tokens: Sequence[Token], text: str, token: Token) -> bool:
    """Return whether words before or shortly after the quality doubt it.

    Args:
        tokens: Tokens of the sentence.
        text: The sentence in lower case.
        token: The quality.
    """
    start, end = token.outer
    floor = max([t.end for t in tokens if t.end <= start and t.kind in STOPS], default=0)
    for t in tokens:
        if t.kind != "hedge":
            continue
        if floor <= t.start and t.end <= end:
            between = [b for b in tokens if t.end <= b.start < token.start]
            if not any(b.kind in {"quality", "term", "with"} for b in between):
                return True
        gap = text[end : t.start]
        if t.start >= end and len(gap) <= _MAX_REACH // 2 and not re.search("[,;]", gap):
            later = [b for b in tokens if end <= b.start < t.start]
            if not any(b.kind in {"quality", "term", *STOPS} for b in later):
                return True
    return "?" in text[end : end + 2]


def is_void(tokens: Sequence[Token], text: str, token: Token) -> bool:
    """Return whether a quality is only planned or asked for, or could not be assessed.

    Args:
        tokens: Tokens of the sentence.
        text: The sentence in lower case.
        token: The quality.
    """
    start, end = token.outer
    for t in tokens:
        is_before = t.kind == "void_before" and 0 <= start - t.end <= _MAX_REACH
        if is_before and not _VERB.search(text[t.end : start]):
            return True
        if t.kind == "void_after" and t.start >= end and t.start - end <= _MAX_REACH:
            later = [b for b in tokens if end <= b.start < t.start]
            if not any(b.kind in {*STOPS, "comma", "with"} for b in later):
                return True
    return False
