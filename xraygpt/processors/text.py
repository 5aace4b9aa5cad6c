"""Clean report texts."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any, Literal

from xraygpt.common.registry import registry
from xraygpt.processors.base import BaseProcessor

_INCOMPLETE = re.compile(
    r"\b(?:the|an?)\s+(?:is|are|was|were|has|have|and|or|of|in|with)\b"
    r"|^there\s+(?!is\b|are\b|was\b|were\b|has\b|have\b|may\b|might\b|appears?\b|does\b|do\b|remains?\b"
    r"|continues?\b|can\b|could\b|also\b|again\b)"
    r"|^(?:is|are|was|were|of|and|with)\b|\b(?:the|an?|of|is|are|in|with|and)\s*[.,;]?$",
    re.IGNORECASE,
)
log = logging.getLogger(__name__)

_MASK = r"(?:\bX{3,}\b|_{3,})"  # de-identification: XXXX in OpenI, ___ in MIMIC-CXR
# Masks whose original words are certain from their context.
_RESTORABLE = [
    (re.compile(rf"\b(x|X)-{_MASK}"), r"\1-ray"),
    (re.compile(rf"\b([Tt]here are no) {_MASK} of\b"), r"\1 signs of"),
    (re.compile(rf"\b([Nn]o|without) {_MASK} of\b"), r"\1 evidence of"),
    (re.compile(rf"{_MASK}[- ]year[- ]old\b\s*"), ""),
]

_NUMBER = r"\d+(?:\.\d+)?"
# "Measuring 7 XXXX in diameter", "a XXXX 1.2 x 3 XXXX nodule": without its unit, a number is noise.
# "Rib 8 XXXX" and "grade 2 XXXX" are names, not measurements.
_MASKED_MEASUREMENT = re.compile(
    rf"(?P<article>\ban? )?(?P<clause>,? ?\b(?:which measures|measuring) )?(?:{_MASK} )*"
    r"(?:\b(?:approximately|about|around|roughly|nearly|up to) )?"
    r"(?<![\w.])(?<!\brib )(?<!\bribs )(?<!\bgrade )(?<!\blevel )"
    rf"{_NUMBER}(?: ?(?:x|by|to|-|) ?{_NUMBER})* ?-?{_MASK}(?: ?(?:x|by) ?{_NUMBER} ?{_MASK})*"
    r"(?: in (?:(?:greatest|maximum|maximal|largest) )?"
    r"(?:diameter|dimension|size|length|width|thickness))?(?(clause),?)(?P<next> \w)?",
    re.IGNORECASE,
)


def remove_masked_measurements(text: str) -> str:
    """Remove numbers whose unit is masked, and correct the article before them.

    "There is a XXXX 7 XXXX opacity" becomes "There is an opacity".
    """

    def replace(match: re.Match[str]) -> str:
        article, following = match["article"] or "", match["next"] or ""
        before = text[: match.start()]
        if article and following:
            return article[0] + ("n" if following[1].lower() in "aeiou" else "") + following
        if following and (not before or before[-1].isspace()):
            starts_sentence = not before or before.rstrip().endswith(".")
            following = following[1].upper() if starts_sentence else following[1]
        return article.rstrip() + following

    return _MASKED_MEASUREMENT.sub(replace, text)


@registry.register_processor("report_text")
class ReportText(BaseProcessor):
    """Collapses white space and handles de-identification masks."""

    @dataclass(kw_only=True)
    class Config(BaseProcessor.Config):
        """Settings of report cleaning."""

        masks: Literal["remove", "drop_sentence", "keep"] = "remove"
        """Treatment of the masks `XXXX` and `___`. `remove` restores those whose original words are
        certain ("chest x-XXXX") and deletes the others. `drop_sentence` also restores the former,
        but drops sentences with other masks, unless no sentence would remain. `keep` changes
        nothing."""
        lower: bool = False
        """Whether to convert the text to lower case."""
        max_words: int | None = None
        """Truncate to this many words, after a sentence if possible; None does not truncate."""

    config: Config

    def __call__(self, item: str, rng_key: str = "") -> str:
        """Clean one report text."""
        text = re.sub(r"\s+", " ", item).strip()
        if self.config.masks != "keep":
            text = self._unmask(text)
        if self.config.max_words is not None:
            text = _truncate(text, self.config.max_words)
        return text.lower() if self.config.lower else text

    def _unmask(self, text: str) -> str:
        for pattern, replacement in _RESTORABLE:
            text = pattern.sub(replacement, text)
        if self.config.masks == "drop_sentence":
            sentences = [s for s in split_sentences(text) if not re.search(_MASK, s)]
            text = " ".join(sentences) if sentences else text
        text = remove_masked_measurements(text)
        text = re.sub(rf"\s*{_MASK}", "", text)
        text = re.sub(r"\s+([.,;:)])", r"\1", text)
        text = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text)
        return re.sub(r"\(\s*\)|\s{2,}", " ", text).strip(" ,;:")


@registry.register_processor("identity")
class Identity(BaseProcessor):
    """Returns the text unchanged."""

    @dataclass(kw_only=True)
    class Config(BaseProcessor.Config):
        """This processor has no settings."""

    def __call__(self, item: str, rng_key: str = "") -> str:
        """Return `item` unchanged."""
        return item


@registry.register_processor("blip_caption")
class BlipCaption(Identity):
    """Returns the text unchanged; XrayGPT's configurations name it, but its code never calls it."""

    @dataclass(kw_only=True)
    class Config(BaseProcessor.Config):
        """XrayGPT's settings, which are accepted but have no effect."""

        prompt: str = ""
        """Has no effect."""
        max_words: int = 50
        """Has no effect."""

    def __init__(self, config: Any, **runtime: Any) -> None:
        super().__init__(config, **runtime)
        log.warning(
            "text_processor blip_caption does not change reports, since XrayGPT never calls it; "
            "use report_text to clean reports"
        )


def lacks_word(sentence: str) -> bool:
    """Return whether an English sentence lacks a word, such as "The are intact".

    Reports in which identifying words were removed teach a model to write such sentences.
    """
    return bool(_INCOMPLETE.search(sentence))


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return the start and end of each sentence in a text."""
    spans, end = [], 0
    for sentence in split_sentences(text):
        start = text.index(sentence, end)
        end = start + len(sentence)
        spans.append((start, end))
    return spans


def split_sentences(text: str) -> list[str]:
    """Split a report into sentences, but not at numbers like 1.5 or list markers like "2."."""
    return [s for s in re.split(r"(?<=[.!?])(?<!\b\d\.)\s+(?=\S)", text) if s]


def _truncate(text: str, max_words: int) -> str:
    words = text.split()
    if len(words) <= max_words:
        return text
    truncated = " ".join(words[:max_words])
    end = max(truncated.rfind(". "), len(truncated) - 1 if truncated.endswith(".") else -1)
    return truncated[: end + 1] if end > 0 else truncated
