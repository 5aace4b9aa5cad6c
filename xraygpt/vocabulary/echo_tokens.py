"""Tokens of a sentence: structures, qualities, severities and cues of negation and doubt."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from xraygpt.vocabulary.echo_rules import TokenRule, echo_rules
from xraygpt.vocabulary.echo_sentences import Sentence

_ABBREVIATION = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2,3}(?![A-Za-z0-9])")
_LOWER_ABBREVIATION = re.compile(r"(?<![a-z0-9])[a-z]{2,3}(?![a-z0-9])")
_AMBIGUOUS = {"AS", "MS", "PI", "AI", "AV", "PV", "PR"}  # words, or other terms, in lower case
_ANNULUS = re.compile(r"annul(?:us|ar)")
_NOT_REGURGITATION = re.compile(
    r"\s*(?:jet\b|peak|max|v ?max|velocit|gradient|signal)", re.IGNORECASE
)
_SMALL_WORDS = re.compile(
    r"[\s(]*(?:(?:in|of|the|its|is|are|was|were|both|overall|a|an|and|appears?|remains?|also|"
    r"be|to|now|again|chamber|cavity|longitudinal|estimated|visually)[\s,]*)*"
)


@dataclass(frozen=True)
class Token:
    """A token of a sentence.

    Attributes:
        start: Offset in the sentence.
        end: End in the sentence.
        rule: What it means.
        text: The matched text.
        inner: For a quality of two words ("function … reduced"), the other word's start and end.
    """

    start: int
    end: int
    rule: TokenRule
    text: str
    inner: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """The kind of its rule."""
        return self.rule.kind

    @property
    def polarity_is_absent(self) -> bool:
        """Whether it says that its trait is absent, such as "normal size"."""
        return self.rule.polarity == "absent"

    @property
    def outer(self) -> tuple[int, int]:
        """Start and end, with those of the other word if there is one."""
        if self.inner is None:
            return self.start, self.end
        return min(self.start, self.inner[0]), max(self.end, self.inner[1])


def tokens(sentence: Sentence, subject: str = "") -> list[Token]:
    """Return the tokens of a sentence in its order, with adjectives attached to their nouns.

    Args:
        sentence: The sentence.
        subject: Structure of the sentence before; an annulus is that of the mitral valve if the
            section or the sentence before is about this valve.
    """
    rules, text = echo_rules(), sentence.text
    found: list[Token] = []
    for match in rules.pattern.finditer(text):
        name = match.lastgroup or ""
        rule = TokenRule(name) if name in {"comma", "stop"} else rules.tokens[int(name[1:])]
        if "mitral_valve" in (sentence.heading, subject) and _ANNULUS.fullmatch(match[0]):
            rule = replace(rule, value=("mitral_annulus",))
        found.append(Token(match.start(), match.end(), rule, match[0]))
    found = _add_abbreviations(sentence, found)
    return _attach([t for t in found if t.kind != "void"], text)


def _add_abbreviations(sentence: Sentence, found: list[Token]) -> list[Token]:
    """Add abbreviations in capitals; in a sentence without capitals, those that are no words."""
    original = sentence.original
    is_lower = original == original.lower()
    is_upper = original == original.upper()
    taken = [(t.start, t.end) for t in found]
    added = []
    for match in (_LOWER_ABBREVIATION if is_lower else _ABBREVIATION).finditer(original):
        short = match[0].upper()
        rule = echo_rules().abbreviations.get(short)
        if rule is None or ((is_lower or is_upper) and short in _AMBIGUOUS):
            continue
        is_past = sentence.text[match.start()] == " "
        if is_past or _NOT_REGURGITATION.match(original[match.end() :]):
            continue
        if not any(start < match.end() and match.start() < end for start, end in taken):
            added.append(Token(match.start(), match.end(), rule, match[0]))
    return sorted([*found, *added], key=lambda token: token.start)


def _attach(found: list[Token], text: str) -> list[Token]:
    """Replace "normal", "reduced" and "increased" by qualities of the nouns they belong to."""
    result: list[Token] = []
    for i, token in enumerate(found):
        if token.kind == "noun":
            continue
        if token.kind != "predicate":
            result.append(token)
            continue
        nouns = _nouns_after(found, i, text) or _nouns_before(found, i)
        for noun in nouns:
            rule = _quality(token.rule.value[0], noun.rule.value[0])
            if rule is not None:
                inner = (noun.start, noun.end)
                result.append(Token(token.start, token.end, rule, token.text, inner))
    return sorted(result, key=lambda token: (token.outer[0], token.start))


def _quality(predicate: str, noun: str) -> TokenRule | None:
    """Return what "normal", "impaired" or "increased" says of size or function."""
    if predicate == "normal":
        return TokenRule("quality", (noun,), "absent", "compound")
    expected = {"function": "impaired", "dilation": "increased"}[noun]
    return TokenRule("quality", (noun,), "present", "compound") if predicate == expected else None


def _nouns_after(found: list[Token], index: int, text: str) -> list[Token]:
    """Return the nouns that directly follow: "normal in size and systolic function"."""
    nouns: list[Token] = []
    end = found[index].end
    for token in found[index + 1 :]:
        gap = text[end : token.start]
        if not _SMALL_WORDS.fullmatch(gap):
            break
        if not nouns and token.kind in {"and", "comma"}:
            break
        if token.kind == "noun":
            nouns.append(token)
        elif token.kind not in {"structure", "and", "or", "comma"}:
            if token.kind in {"grade", "quality", "predicate"} and len(nouns) > 1:
                nouns.pop()  # "normal size and function is reduced"
            break
        end = token.end
    return nouns


def _nouns_before(found: list[Token], index: int) -> list[Token]:
    """Return the coordinated nouns before: "size and systolic function are normal"."""
    nouns: list[Token] = []
    for token in reversed(found[:index]):
        if token.kind == "noun":
            nouns.append(token)
        elif token.kind in {"structure", "grade", "neg", "hedge"}:
            if nouns and token.kind != "structure":
                break
        elif token.kind in {"and", "or", "comma"} and nouns:
            continue
        else:
            break
    return nouns[::-1]
