"""Report text without priors, masks and views, by rules alone: nothing is rephrased.

The recipe is XrayGPT's (Thawkar et al. 2023) but for its last step, the fluent rewriting. What a
sentence says of today stays, what it says of an earlier study goes: "stable cardiomegaly compared
to the prior exam" becomes "cardiomegaly".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from xraygpt.curation.grammar import broken
from xraygpt.processors.text import ReportText, split_sentences
from xraygpt.vocabulary.chest_labeller import mentions

_STUDY = (
    r"(?:exam(?:ination)?|stud(?:y|ies)|film|radiograph|x-?ray|image|imaging|scan|ct|chest|"
    r"comparison|report|cxr|mri|time|date|year|month|week|day)s?"
)
_EARLIER = (
    r"(?:prior|previous|preceding|earlier|last|most recent|recent|comparison|old|older|remote)"
)
# Clauses that speak of an earlier study and of nothing else.
_CLAUSES = [
    re.compile(p, re.IGNORECASE)
    for p in (
        r",?\s*(?:\(?(?:as|when|which is|is)\s+)?compared?\s+(?:to|with)\b[^.;,]*",
        r",?\s*in comparison (?:to|with)\b[^.;,]*",
        r",?\s*\bsimilar(?:ly)? (?:in \w+ )?(?:to|as) (?:that |on |in |seen |the |a )*"
        + _EARLIER
        + r"\b[^.;,]*",
        r",?\s*(?:as|when) (?:seen|noted|described|shown) (?:on|in) (?:the )?"
        + _EARLIER
        + r"\b[^.;,]*",
        r",?\s*\b(?:since|from|than|over|as|to|on|in|with)\s+(?:that of |on |in |a |an |the |his |"
        r"her |this |patient'?s )*" + _EARLIER + r"\s+(?:\S+\s+){0,3}?" + _STUDY + r"\b[^.;,]*",
        r",?\s*(?:with |and )?(?:there (?:has been|is|was) )?(?:\bno|without) "
        r"(?:significant |acute |definite |appreciable |substantial |gross |obvious |major )*"
        r"(?:interval )?change\b[^.;,]*",
        r",?\s*previously (?:seen|noted|described|identified|visualized|demonstrated|reported)",
        r",?\s*(?:since|from) (?:the )?(?:prior|previous|last)s?\b(?:[^.;,]*| *$)",
    )
]
# Words that compare; the rest of the sentence stands without them.
_WORDS = re.compile(
    r"(?:,? ?\b(?:which|that) (?:is|are|remains?|appears?) (?:stabl[ey]|unchanged)\b,?)|"
    r"\b(?:(?:grossly|essentially|relatively|largely|overall|otherwise) (?=stable|unchanged))?"
    r"(?:stabl[ey]|unchanged|persistent(?:ly)?|(?:mild |slight |moderate |marked )?interval(?: "
    r"(?:increase|decrease|improvement|worsening|development|progression) (?:in|of))?|new(?:ly)?|"
    r"(?:once )?again|improv(?:ed|ing)|worsen(?:ed|ing)|redemonstrat(?:ed|ion of))\b[ ,]*",
    re.IGNORECASE,
)
# "Heart size is stable": after the word is gone nothing is said any more.
_EMPTY_END = re.compile(
    r"\s*\b(?:is|are|was|were|has|have|remains?|appears?|appearance|and|or|but|also|been|"
    r"also (?:is|are))\s*$",
    re.IGNORECASE,
)
_REMAINS = re.compile(r"\bremains?\b", re.IGNORECASE)
_RELATIVE_END = re.compile(
    r",?\s*\b(?:which|that)(?:\s+(?:is|are|was|were|has|have|remains?|appears?))*\s*$",
    re.IGNORECASE,
)
_CONNECTIVE_END = re.compile(r"[ ,]*\b(?:and|or|but|also|with|which|that)\s*$", re.IGNORECASE)
# "No change in the nodule" says that there is one.
_NO_CHANGE_IN = re.compile(
    r"^(?:there (?:has been|is|was) )?no (?:significant |acute |definite |gross )*(?:interval )?"
    r"change in (?:the )?(?:(?:appearance|size|position|configuration) of (?:the )?)?",
    re.IGNORECASE,
)
# What a finished text must not hold; `checks.py` refuses it.
COMPARISON = re.compile(
    r"\b(?:compar(?:ed|ison|able)|unchanged|interval|previously|redemonstrat\w*|new(?:ly)?|"
    r"improv(?:ed|ing|ement)|worsen(?:ed|ing)|again (?:seen|noted|shown|demonstrated|identified)|"
    r"ha(?:s|ve) (?:resolved|cleared|progressed)|persist(?:s|ent|ently|ing)|as before|"
    r"(?:since|from|than) (?:the )?(?:prior|previous|yesterday|last)|no longer|little change|"
    r"ha(?:s|ve) (?:been removed|increased|decreased|enlarged|developed|changed)|removal of|"
    r"(?:increas|decreas)\w+ in (?:size|number|extent|prominence|conspicuity)|outside (?:exam|"
    r"stud|film|chest|from)\w*|"
    r"(?:slightly|mildly) (?:increased|decreased)(?= in| from| since|[,.])|"
    + _EARLIER
    + r"\s+(?:[^\s.;]+\s+){0,2}?"
    + _STUDY
    + r")\b|\b(?:no|without) (?:\w+ )?change\b|\bstable\b",
    re.IGNORECASE,
)
MASK = re.compile(r"\bX{3,}\b|_{3,}|XXXX")
_NUMBERED = re.compile(r"^\(?\d{1,2}[.)]\s+")
_DANGLING = re.compile(r"\b(is|are|was|were|appears?) (?:and|or|but|to|,)\s+", re.IGNORECASE)
# "4XXXX" was "4th rib", "dual-XXXX" perhaps "dual-lead"; "x-XXXX" is left to the text processor.
_GLUED = re.compile(
    r"(?!x-X{4,}\b)(?:\w+-)*[A-Za-z0-9]*(?:X{4,}|_{3,})[A-Za-z0-9]*(?:-[A-Za-z0-9]*)*",
    re.IGNORECASE,
)
_M = r"(?:X{4,}|_{3,})"
# What a mask stood for where the words around it leave no choice, and list members without a noun.
_RESOLVED = [
    (re.compile(pattern, re.IGNORECASE), plain)
    for pattern, plain in (
        (r"\bXXXX-A-XXXX\b", "Port-A-Cath"),
        (rf"\b(lymph) {_M}", r"\1 nodes"),
        (rf"\b((?:left|right) costophrenic) {_M}", r"\1 angle"),
        (rf"\b(costophrenic) {_M}(?= blunting)", r"\1 angle"),
        (rf"\b(costophrenic) {_M}", r"\1 angles"),
        (
            rf"\b(sternotomy) {_M}(?= (?:are|and|intact|is|noted|seen|again|in)\b|[.,;])",
            r"\1 wires",
        ),
        (rf"\b(bowel) {_M}(?= pattern)", r"\1 gas"),
        (rf"\b(superior) {_M} {_M}(?= *[.,;]|$)", r"\1 vena cava"),
        (rf"{_M} (?=representing\b)", "possibly "),
        (rf"\bthe pulmonary {_M} and mediastinum are\b", "the mediastinum is"),
        (rf",? (?:the )?pulmonary {_M},? and\b", " and"),
        (rf"(?<!,) and (?:the )?pulmonary {_M} (?:are|appear)\b", " is"),
        (r"\b(a)n interval (?=[^aeiou])", r"\1 "),
        (rf"\bthe pulmonary {_M} and\b", "the"),
    )
]
# "Unchanged since ___", "as compared to ___": the date of an earlier study was masked.
_MASKED_PRIOR = re.compile(
    rf",?\s*\b(?:(?:as )?compared (?:to|with)|since|from|as of|than|dated)\s+(?:the |a |prior |"
    rf"previous |study |exam |film |of |on |dated )*{_M}(?:\s+at \d[\d:]*)?[^.;,]*",
    re.IGNORECASE,
)
_BETWEEN = re.compile(rf"{_M} (?:at|of|in|from|to|by|with|for) {_M}")
# "No abnormality as compared to the prior study" says nothing of today.
_NOTHING_NEW = re.compile(
    rf"^no (?:{_M} |new |acute |interval |significant )*(?:abnormalit\w+|findings?|process|disease)"
    r"[^.;]*\b(?:compar|since|prior|previous|interval)",
    re.IGNORECASE,
)
_DOCTOR = re.compile(rf"\b(dr)\.\s+(?={_M}|[A-Z])", re.IGNORECASE)
_CALLED = re.compile(
    r"\b(?:notification|notified|paged|communicated|telephone[d]?|discussed (?:with|by)|relayed|"
    r"primordial|dictated|dr)\b",
    re.IGNORECASE,
)
_TAG = re.compile(r"<\s*/?\s*br\s*/?\s*>", re.IGNORECASE)
_RUN_ON = re.compile(r"(?<=[a-z])\.(?=[A-Z][a-z])")  # "effusion.The heart"
_VIEWS = re.compile(
    r"^(?:(?:single|two|2|three|3|portable|upright|erect|supine|frontal|lateral|pa|ap|"
    r"posteroanterior|anteroposterior|and|,|/|&|semi-?erect|ap/pa|chest|the)[ .]*)*"
    r"(?:views?|radiographs?|projections?|images?|films?|x-?rays?)\b"
    r"(?: (?:of|the|chest|thorax|were|was|are|is|obtained|provided|submitted|reviewed|performed|"
    r"available|for|review|interpretation|presented|in|and|lateral|frontal|pa|ap|two|with|2))*$",
    re.IGNORECASE,
)
_CLEAN = ReportText(ReportText.Config(masks="remove"))


@dataclass(frozen=True)
class Cleaned:
    """A text and what was done to it.

    Attributes:
        text: The result; may be empty.
        removed: Reason -> sentences that went whole.
        changed: Sentences that lost words.
    """

    text: str
    removed: dict[str, int]
    changed: int


def resolve(text: str) -> str:
    """A text with the masks resolved whose words leave no choice, without tags and run-on stops.

    "Lymph XXXX" are nodes, "sternotomy XXXX" wires. What a mask leaves open stays masked, but for
    "XXXX representing", which becomes "possibly representing": without its word it would affirm.
    """
    for pattern, plain in _RESOLVED:
        text = pattern.sub(plain, text)
    text = _RUN_ON.sub(". ", _TAG.sub(" ", _DOCTOR.sub(r"\1 ", text)))
    return " ".join(text.split())


def clean(sections: list[str], priors: bool = False) -> Cleaned:
    """Findings and impression as one text.

    Args:
        sections: Texts in the order they are to stand in.
        priors: Leave comparisons: "stable" in a figure's caption is most often a finding.
    """
    removed: dict[str, int] = {}
    kept: list[str] = []
    seen: set[str] = set()
    changed, last = 0, ""
    for section in sections:
        before = frozenset(seen)  # within a section "no change" may follow two headings
        for raw in split_sentences(resolve(section)):
            sentence, why = _sentence(raw, priors)
            key = re.sub(r"\W+", " ", sentence).strip().lower()
            if not why and (key in before or key == last):
                why = "said twice"
            if why:
                removed[why] = removed.get(why, 0) + 1
                continue
            changed += sentence != raw
            seen.add(key)
            last = key
            kept.append(sentence)
    return Cleaned(" ".join(kept), removed, changed)


def _unwanted(raw: str) -> str:
    if _VIEWS.match(raw.rstrip(". ")):
        return "view"
    return "communication" if _CALLED.search(raw) and not mentions(raw) else ""


def _sentence(raw: str, priors: bool) -> tuple[str, str]:
    """A sentence without priors and masks, or why it goes."""
    unwanted = _unwanted(raw)
    if unwanted:
        return "", unwanted
    raw = _NUMBERED.sub("", raw)
    if priors:
        text = _tidy(_CLEAN(_GLUED.sub("XXXX", raw)))
        return (text, "") if re.search(r"[A-Za-z]{2}", text) else ("", "nothing left beside masks")
    if _NOTHING_NEW.search(raw):
        return "", "prior study"
    text = _CLEAN(_GLUED.sub("XXXX", _BETWEEN.sub("XXXX", _MASKED_PRIOR.sub("", raw))))
    text = text[:1].upper() + text[1:]
    if not re.search(r"[A-Za-z]{2}", text):
        return "", "nothing left beside masks"
    text, why = _without_priors(text)
    if not why and text != _tidy(raw) and broken(text):
        return "", "broken by what was taken out"
    return text, why


def _without_priors(text: str) -> tuple[str, str]:
    """A sentence without what it says of earlier studies, or why it goes."""
    plain = _NO_CHANGE_IN.sub("", text)
    for clause in _CLAUSES:
        plain = clause.sub("", plain)
    plain = _WORDS.sub("", plain)
    if plain == text:
        return (_tidy(text), "") if not COMPARISON.search(text) else ("", "prior study")
    plain = _RELATIVE_END.sub("", _tidy(plain).rstrip(". "))
    plain = _DANGLING.sub(r"\1 ", _REMAINS.sub("is", plain))
    plain = _tidy(_CONNECTIVE_END.sub("", _tidy(plain).rstrip(". ")))
    says = _says_something(plain)
    if says and not COMPARISON.search(plain):
        return plain, ""
    present = {(m.finding, m.laterality) for m in mentions(text) if m.status == "positive"}
    bare = _tidy(_EMPTY_END.sub("", plain.rstrip(". ")))
    if present and not COMPARISON.search(bare):
        still = {(m.finding, m.laterality) for m in mentions(bare) if m.status == "positive"}
        if still == present:
            return bare, ""
    return "", "prior study"


def _says_something(text: str) -> bool:
    body = text.rstrip(". ")
    return len(re.findall(r"[A-Za-z]{2,}", body)) > 1 and not _EMPTY_END.search(body)


def _tidy(text: str) -> str:
    """White space, stray commas, a capital at the start and a stop at the end."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([.,;:)])", r"\1", text)
    text = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text)
    text = re.sub(r"\(\s*\)", "", text)
    text = re.sub(r"[,;:\s]+\.", ".", text).strip(" ,;:")
    text = re.sub(r"\.{2,}", ".", text)
    if not text.rstrip(". "):
        return ""
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
