"""Assigns the words of a sentence of an echocardiogram report to each other.

Each quality ("regurgitation", "dilated") is assigned to a structure: the one that it stands next
to, the subject of the sentence, or that of the section. Words of severity, negation and doubt
belong to the quality or the structure that they stand next to, and carry over coordinations ("no
mitral or tricuspid regurgitation").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xraygpt.vocabulary.echo_cues import STOPS, is_denied_after, is_doubted, is_void
from xraygpt.vocabulary.echo_rules import echo_rules, parse_grade
from xraygpt.vocabulary.echo_sentences import Sentence
from xraygpt.vocabulary.echo_tokens import Token, tokens
from xraygpt.vocabulary.traits import GRADES, MILD, SEVERE, Status, TraitValue

_LINK = re.compile(
    r"[\s(,:\-]*(?:(?:is|are|was|were|has|been|appears?|appear|remains?|graded|judged|considered|now|"
    r"currently|to|be|as|at|in|of|degree|severity|present|and|which|again|also|by|colou?r|doppler|"
    r"(?:de|in)creased|reduced|improved|worsened|progressed|jet|eccentric|central|valve|noted|seen|only|still|overall|visually|estimated|fully|at|that|an|a|its)[\s,:(\-]*)*"
)
_OF = re.compile(r"[\s]*(?:of|at|across|through|in|involving|from|over)(?: both| the| its)*\s*")
_CLOSE = re.compile(r"[\s\-]*(?:the )?")
_CHAIN = re.compile(r"[\s,&/]*(?:(?:and|or|nor|as well as|the|both|a)[\s,]*)*")
_NORMAL = re.compile(
    r"\W*(?:(?:the |both )?(?P<of>[a-z ]{2,40}?) )?(?:(?:is|are|appears?) )?(?:entirely )?"
    r"(?:normal|unremarkable)\W*"
)
_PARAVALVULAR = re.compile(r"para ?valvular|peri ?valvular|para ?prosthetic|transvalvular|central")
# Structures of which "normal" says that no trait is present; a normal valve may still leak.
_NORMAL_MEANS = {
    "left_atrium",
    "right_atrium",
    "right_ventricle",
    "ivc",
    "aortic_root",
    "pericardium",
}
_VALVES = {"tavr": "aortic_valve", "mitraclip": "mitral_valve"}
_PART = re.compile(r"\b(?:size|function|wall|motion|valve|flow|pressure)\b")


@dataclass(frozen=True)
class Statement:
    """What one sentence says about one trait.

    Attributes:
        trait: Name of the trait, or `LV_FUNCTION`.
        value: Its value.
        measured: Whether a measurement implies the value, not words.
        local: Whether it holds for a part only, such as one wall or a paravalvular leak, or
            follows from another finding, such as tamponade.
    """

    trait: str
    value: TraitValue
    measured: bool = False
    local: bool = False


class _Grade(NamedTuple):
    """Lowest and highest index in `GRADES`, and whether the quality is denied."""

    low: int
    high: int
    denied: bool


_MODERATE = GRADES.index("moderate")
_ABSENT = _Grade(0, 0, True)
_OPEN = _Grade(MILD, SEVERE, False)
_NOT_SEVERE = _Grade(MILD, _MODERATE, False)


@dataclass(frozen=True)
class _Found:
    """A quality that was read, its structures, and the grade of the last of them."""

    token: Token
    structures: tuple[str, ...]
    grade: _Grade


class SentenceParser:
    """Assigns the tokens of one sentence to each other.

    Args:
        sentence: The sentence.
        subject: Structure that the sentence before was about; empty for none.
    """

    def __init__(self, sentence: Sentence, subject: str = "") -> None:
        self.sentence, self.text, self.subject = sentence, sentence.text, subject
        self.tokens = tokens(sentence, subject)
        self.previous: _Found | None = None
        self._used = 0  # end of the last word of severity after a quality

    @property
    def first_structure(self) -> str:
        """The first structure that the sentence names, if it is only one; otherwise empty."""
        first = next((t for t in self.tokens if t.kind == "structure"), None)
        return first.rule.value[0] if first and len(first.rule.value) == 1 else ""

    def statements(self) -> Iterator[Statement]:
        """Yield the statements of the sentence."""
        said = False
        for token in self.tokens:
            if token.kind in {"quality", "term"}:
                said = True
                yield from self._read(token)
        normal = _NORMAL.fullmatch(self.text)
        if normal and not said:
            yield from self._normal_structures(normal["of"])

    def _normal_structures(self, subject: str | None) -> Iterator[Statement]:
        """Yield what "The left atrium is normal." or "Normal." in a section says."""
        found = [t for t in self.tokens if t.kind == "structure"]
        names = {n for t in found for n in t.rule.value} if subject else {self.sentence.heading}
        rest = self.text if subject else ""
        for token in found:
            rest = rest.replace(token.text.lower(), " ")
        if _PART.search(rest):
            return  # not the structure as a whole
        for (structure, _), trait in echo_rules().combinations.items():
            is_wall_motion = "wall_motion" in names and trait == "wall_motion_hypokinesis"
            if is_wall_motion or (structure in names and structure in _NORMAL_MEANS):
                value = TraitValue("negative", 0, 0, span=self.sentence.span)
                yield Statement(trait, value)

    def _read(self, token: Token) -> Iterator[Statement]:
        """Yield what one quality of the sentence says, for each structure that has it."""
        if is_void(self.tokens, self.text, token):
            return
        quality = token.rule.value[0]
        found: list[tuple[str, _Grade]] = []
        if token.kind == "quality":
            chain = self._structures(token)
            found = [
                (name, self._grade(token, chain[: place + 1], chain))
                for place, structure in enumerate(chain)
                for name in structure.rule.value
            ]
            if not chain:
                grade = self._grade(token, [], [])
                found = [(name, grade) for name in self._implied(quality)]
        last = found[-1][1] if found else self._grade(token, [], [])
        self.previous = _Found(token, tuple(name for name, _ in found), last)
        pairs = [(echo_rules().combinations.get((n, quality), ""), grade) for n, grade in found]
        for trait, grade in pairs if token.kind == "quality" else [(quality, last)]:
            statement = self._statement(token, trait, grade) if trait else None
            if statement:
                yield statement

    def _statement(self, token: Token, trait: str, grade: _Grade) -> Statement | None:
        """Return the statement that a quality of a known structure makes; None if it makes none."""
        low, high, denied = grade
        polarity = token.rule.polarity
        if polarity == "only" and denied:
            return None
        if polarity == "only":
            low = high = SEVERE
        elif polarity == "absent":
            low, high, denied = (MILD, SEVERE, False) if denied else (0, 0, True)
        elif grade == _OPEN and self._is_past(trait):
            return None
        status: Status = "negative" if denied else "positive"
        if not denied and is_doubted(self.tokens, self.text, token):
            status = "uncertain"
        value = TraitValue(status, low, high, span=self.sentence.span)
        local = polarity == "only" or self._is_local(trait, status)
        return Statement(trait, value, local=local)

    @staticmethod
    def _is_ungraded(trait: str) -> bool:
        """Return whether a trait is only present or absent."""
        return any(t.name == trait and t.kind == "present" for t in echo_rules().traits)

    def _is_past(self, trait: str) -> bool:
        """Return whether the sentence gives only the severity of another day."""
        if self._is_ungraded(trait):
            return False
        now = re.search(r"\bnow\b|\bpresent\b|\bcurrent|\bagain\b|\bnew\b", self.text)
        return self.sentence.has_past and not now

    def _is_local(self, trait: str, status: str) -> bool:
        """Return whether a statement is about a part: one wall, or a leak beside a prosthesis."""
        if trait == "wall_motion_hypokinesis" and status == "negative":
            return bool(echo_rules().walls.search(self.text))
        return trait.endswith("regurgitation") and bool(_PARAVALVULAR.search(self.text))

    def _structures(self, token: Token) -> list[Token]:
        """Return the structures that a quality belongs to, in the order of the text."""
        domain = echo_rules().domains[token.rule.value[0]]
        start, end = token.outer
        inside = [t for t in self.tokens if start <= t.start < end and self._fits(t, domain)]
        if inside:
            return inside
        after = self._following(end, domain, token.rule.form)
        if after:
            return after
        before = [t for t in self.tokens if t.end <= start and self._fits(t, domain)]
        if not before:
            return []
        last = self.previous
        limit = last.token.outer[1] if last else 0
        if last and before[-1].start < limit:  # the subject of the previous statement
            kept = [t for t in before if set(t.rule.value) & set(last.structures)]
            if last.structures and not kept and set(last.structures) & domain:
                return []
            return self._unique(kept, last.structures) if kept else [before[-1]]
        return self._chain_before(before)

    @staticmethod
    def _unique(found: list[Token], names: Sequence[str]) -> list[Token]:
        """Return the last token of each structure in `names`."""
        last = {name: t for t in found for name in t.rule.value if name in names}
        return sorted(set(last.values()), key=lambda t: t.start)

    def _fits(self, token: Token, domain: frozenset[str]) -> bool:
        return token.kind == "structure" and bool(set(token.rule.value) & domain)

    def _following(self, end: int, domain: frozenset[str], form: str) -> list[Token]:
        """Return structures after a quality: "dilated left atrium", "stenosis of the …"."""
        later = [t for t in self.tokens if t.start >= end]
        chain: list[Token] = []
        for token in later:
            gap = self.text[end : token.start]
            if not chain:
                link = _OF.fullmatch(gap) or (
                    form in {"adjective", "absent"} and _CLOSE.fullmatch(gap)
                )
                if not link or not self._fits(token, domain):
                    return []
                chain, end = [token], token.end
            elif token.kind == "structure":
                if not _CHAIN.fullmatch(gap) or not self._fits(token, domain):
                    break
                chain.append(token)
                end = token.end
            elif token.kind not in {"and", "or", "comma"}:
                break
        if len(chain) > 1 and self._has_own_quality(chain[-1]):
            chain = chain[:1]
        return chain

    def _has_own_quality(self, structure: Token) -> bool:
        """Return whether a structure is followed by a quality of its own."""
        later = [t for t in self.tokens if t.start >= structure.end]
        if not later or later[0].kind in {"and", "or", "comma", "stop", "break", "with"}:
            return False
        return any(t.kind == "quality" for t in later[:3])

    def _chain_before(self, before: list[Token]) -> list[Token]:
        """Return the nearest structure and those that are coordinated with it."""
        chain = [before[-1]]
        for token in reversed(before[:-1]):
            between = [t for t in self.tokens if token.end <= t.start < chain[0].start]
            kinds = {t.kind for t in between}
            gap = self.text[token.end : chain[0].start]
            for t in between:
                at = t.start - token.end
                gap = gap[:at] + " " * (t.end - t.start) + gap[at + t.end - t.start :]
            allowed = {"and", "or", "comma", "grade", "neg", "insignificant", "not_graded"}
            if not kinds <= allowed or not kinds & {"and", "or", "comma"}:
                break
            if not re.fullmatch(r"\s*(?:(?:the|a|both|valve|of)\s*)*", gap):
                break
            chain.insert(0, token)
        return chain

    def _implied(self, quality: str) -> list[str]:
        """Return the structures of a quality whose sentence names none."""
        domain = echo_rules().domains[quality]
        if self.previous and set(self.previous.structures) & domain:
            return list(self.previous.structures)
        heading = self.sentence.heading
        if quality == "wall_motion":
            return ["right_ventricle"] if heading == "right_ventricle" else ["left_ventricle"]
        terms = {t.rule.value[0] for t in self.tokens if t.kind == "term"}
        for device, valve in _VALVES.items():
            if device in terms and valve in domain:
                return [valve]
        if quality == "calcification" and heading == "mitral_valve":
            return []
        if heading in domain:
            return [heading]
        if self.subject in domain:
            return [self.subject]
        if quality == "function" and heading in {"", "other", "wall_motion"}:
            return ["left_ventricle"]
        return []

    def _grade(self, token: Token, chain: list[Token], whole: list[Token]) -> _Grade:
        """Return the grade of a quality of the last structure in `chain`.

        Args:
            token: The quality.
            chain: The structures up to the one in question.
            whole: All structures of the quality.
        """
        start, end = token.outer
        last = whole[-1] if whole else None
        floor = self._floor(start)
        if last is not None and last.start < start:
            near = [t for t in self.tokens if max(last.end, floor) <= t.start < end]
        else:
            near = [t for t in self.tokens if floor <= t.start < end and t is not token]
        result = self._own(near, token)
        after = None
        if token.kind != "term" or not self._is_ungraded(token.rule.value[0]):
            after = self._grade_after(end if last is None else max(end, last.end), token)
        if result is None and after is not None:
            return after
        for structure in reversed(chain if last is not None and last.start < start else []):
            if result is not None:
                break
            lower = max([floor, *(t.end for t in chain if t.end <= structure.start)])
            region = [t for t in self.tokens if lower <= t.start < structure.start]
            result = self._own(region, token)
        if result is None:
            result = self._inherited(token)
        if is_denied_after(self.tokens, self.text, token, end):
            return _ABSENT
        return result or _OPEN

    def _floor(self, start: int) -> int:
        """Return where the words that belong to a quality at `start` may begin."""
        ends = [t.end for t in self.tokens if t.end <= start and t.kind in STOPS]
        if self.previous is not None and self.previous.token.outer[1] <= start:
            ends.append(self.previous.token.outer[1])
        if self._used <= start:
            ends.append(self._used)
        return max(ends, default=0)

    def _own(self, near: Sequence[Token], token: Token) -> _Grade | None:
        """Return the grade that the nearest of some tokens give; None if there is none."""
        for t in reversed(near):
            if t.kind == "grade" and self._suits(t, token):
                low, high = parse_grade(t.text.lower())
                before = [n for n in near if n.end <= t.start and n.kind in {"neg", "not_graded"}]
                if before and not self.text[before[-1].end : t.start].strip():
                    # "No severe stenosis" leaves milder ones open; "no trace" does not.
                    return _Grade(0, low - 2 if low >= _MODERATE else 0, True)
                return _Grade(low, high, high == 0)
            if t.kind == "insignificant":
                return _Grade(0, MILD, True)
            if t.kind == "not_graded":
                return _NOT_SEVERE
            if t.kind == "neg":
                return _ABSENT
        return None

    def _suits(self, grade: Token, token: Token) -> bool:
        """Return whether a word of severity is one for this quality: effusions have a size."""
        is_size = re.search(r"\b(?:small|large)\b", grade.text)
        return not is_size or "effusion" in token.text

    def _grade_after(self, end: int, token: Token) -> _Grade | None:
        """Return the grade in the words that follow: "mitral regurgitation is mild"."""
        for t in self.tokens:
            if t.start < end:
                continue
            gap = self.text[end : t.start]
            if t.kind in {"comma", "and", "with"} and _LINK.fullmatch(gap):
                continue
            if t.kind == "grade" and _LINK.fullmatch(gap) and self._suits(t, token):
                if self._opens_next(t, gap):
                    return None
                low, high = parse_grade(t.text.lower())
                self._used = t.end
                return _Grade(low, high, high == 0)
            if t.kind == "neg" and re.fullmatch(r"\s*(?::|is|are|-)\s*", gap) and t.text == "no":
                return _ABSENT
            if t.kind == "not_graded" and _LINK.fullmatch(gap):
                return _NOT_SEVERE
            return None
        return None

    def _opens_next(self, grade: Token, gap: str) -> bool:
        """Return whether a word of severity belongs to the next statement: ", mild …"."""
        following = [t for t in self.tokens if t.start >= grade.end][:2]
        starts = (
            bool(following)
            and following[0].kind in {"structure", "quality", "term"}
            and len(self.text[grade.end : following[0].start].split()) < 2
        )
        has_verb = re.search(r"\b(?:is|are|was|were|appears?|remains?|graded|which)\b|:", gap)
        return starts and not has_verb

    def _inherited(self, token: Token) -> _Grade | None:
        """Return the grade of the previous statement if this one is coordinated with it."""
        last = self.previous
        if last is None or last.token.polarity_is_absent:
            return None
        between = [
            t for t in self.tokens if last.token.outer[1] <= t.start and t.end <= token.outer[0]
        ]
        kinds = {t.kind for t in between} - {"structure"}
        if last.grade.denied:
            allowed = {"and", "or", "comma", "hedge"}
        else:  # "mild stenosis and regurgitation", but not "mildly dilated and hypokinetic"
            allowed = {"and", "or"} if token.rule.form == "noun" else set()
        return last.grade if kinds and kinds <= allowed else None
