"""How the options of a multiple-choice question are written in its text, and found there again."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
_OPTION = re.compile(rf"(?:^|\s)([{LETTERS}])\. (?=\S)")


def write_options(question: str, options: Sequence[str]) -> str:
    """Return the question with one line for each option: ``A. mild``."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([question.strip(), *lines])


def option_letters(question: str) -> str:
    """Return the letters of the options in a question, such as ``ABCD``; "" if it has none.

    White space may have been collapsed. Only letters in a row from A on count, so that "hepatitis
    C. What …" is no option.
    """
    found = ""
    for match in _OPTION.finditer(question):
        if len(found) < len(LETTERS) and match[1] == LETTERS[len(found)]:
            found += match[1]
    return found if len(found) > 1 else ""
