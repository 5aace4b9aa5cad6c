"""Report text -> report text."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any, Literal

from xraygpt.common.registry import registry
from xraygpt.processors.base import BaseProcessor

log = logging.getLogger(__name__)

_MASK = r"(?:\bX{3,}\b|_{3,})"  # OpenI writes XXXX, MIMIC-CXR ___ for what was removed
# What a mask certainly stood for, from the words around it.
_RESTORED = [
    (re.compile(rf"\b(x|X)-{_MASK}"), r"\1-ray"),
    (re.compile(rf"\b([Tt]here are no) {_MASK} of\b"), r"\1 signs of"),
    (re.compile(rf"\b([Nn]o|without) {_MASK} of\b"), r"\1 evidence of"),
    (re.compile(rf"{_MASK}[- ]year[- ]old\b\s*"), ""),
]


@registry.register_processor("report_text")
class ReportText(BaseProcessor):
    """Collapse white space and deal with the marks of de-identification."""

    @dataclass(kw_only=True)
    class Config(BaseProcessor.Config):
        """Settings of the cleaner."""

        masks: Literal["remove", "drop_sentence", "keep"] = "remove"
        """What becomes of `XXXX` and `___`: `remove` restores the few that are certain ("chest
        x-XXXX") and takes the others out; `drop_sentence` drops each sentence that still holds one
        unless none would be left; `keep` leaves them."""
        lower: bool = False
        """Lower-case the text."""
        max_words: int | None = None
        """Cut after this many words, at a sentence's end if there is one; None never cuts."""

    config: Config

    def __call__(self, item: str, rng_key: str = "") -> str:
        """Clean one text; text in, text out."""
        text = re.sub(r"\s+", " ", item).strip()
        if self.config.masks != "keep":
            text = self._unmask(text)
        if self.config.max_words is not None:
            text = _cut(text, self.config.max_words)
        return text.lower() if self.config.lower else text

    def _unmask(self, text: str) -> str:
        for pattern, plain in _RESTORED:
            text = pattern.sub(plain, text)
        if self.config.masks == "drop_sentence":
            kept = [s for s in split_sentences(text) if not re.search(_MASK, s)]
            text = " ".join(kept) if kept else text
        text = re.sub(rf"\s*{_MASK}", "", text)
        text = re.sub(r"\s+([.,;:)])", r"\1", text)
        text = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text)
        return re.sub(r"\(\s*\)|\s{2,}", " ", text).strip(" ,;:")


@registry.register_processor("identity")
class Identity(BaseProcessor):
    """The text as it stands."""

    @dataclass(kw_only=True)
    class Config(BaseProcessor.Config):
        """No settings."""

    def __call__(self, item: str, rng_key: str = "") -> str:
        """Return `item`."""
        return item


@registry.register_processor("blip_caption")
class BlipCaption(Identity):
    """Configured throughout the lineage and never called there; it leaves reports alone."""

    @dataclass(kw_only=True)
    class Config(BaseProcessor.Config):
        """The original's settings, accepted and without effect."""

        prompt: str = ""
        """No effect."""
        max_words: int = 50
        """No effect."""

    def __init__(self, config: Any, **runtime: Any) -> None:
        super().__init__(config, **runtime)
        log.warning(
            "text_processor blip_caption leaves reports as they are, as in XrayGPT, where it was "
            "never called; name report_text to clean them"
        )


def split_sentences(text: str) -> list[str]:
    """Sentences of a report; a number such as 1.5 or a list mark such as "2." ends none."""
    return [s for s in re.split(r"(?<=[.!?])(?<!\b\d\.)\s+(?=\S)", text) if s]


def _cut(text: str, max_words: int) -> str:
    words = text.split()
    if len(words) <= max_words:
        return text
    cut = " ".join(words[:max_words])
    end = max(cut.rfind(". "), len(cut) - 1 if cut.endswith(".") else -1)
    return cut[: end + 1] if end > 0 else cut
