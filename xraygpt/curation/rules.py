"""Removal of priors, masks and view descriptions from report text by rules; nothing is rephrased.

These are the steps of XrayGPT (Thawkar et al. 2023), except for its final fluent rewriting. What a
sentence states about the current study is kept and what it states about earlier studies is removed:
"stable cardiomegaly compared to the prior exam" becomes "cardiomegaly".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from xraygpt.curation.grammar import is_broken
from xraygpt.processors.text import ReportText, remove_masked_measurements, split_sentences
from xraygpt.vocabulary.chest_labeller import mentions

_STUDY = (
    r"(?:exam(?:ination)?|stud(?:y|ies)|film|radiograph|x-?ray|image|imaging|scan|ct|chest|"
    r"comparison|report|cxr|mri|time|date|year|month|week|day)s?"
)
_EARLIER = (
    r"(?:prior|previous|preceding|earlier|last|most recent|recent|comparison|old|older|remote)"
)
# Clauses that are only about an earlier study.
_PRIOR_CLAUSES = [
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
# Words of comparison; the rest of the sentence remains valid without them.
_COMPARING_WORDS = re.compile(
    r"(?:,? ?\b(?:which|that) (?:is|are|remains?|appears?) (?:stabl[ey]|unchanged)\b,?)|"
    r"\b(?:(?:grossly|essentially|relatively|largely|overall|otherwise) (?=stable|unchanged))?"
    r"(?:stabl[ey]|unchanged|persistent(?:ly)?|(?:mild |slight |moderate |marked )?interval(?: "
    r"(?:increase|decrease|improvement|worsening|development|progression) (?:in|of))?|new(?:ly)?|"
    r"(?:once )?again|improv(?:ed|ing)|worsen(?:ed|ing)|redemonstrat(?:ed|ion of))\b[ ,]*",
    re.IGNORECASE,
)
# "Heart size is stable": nothing is stated once the word is removed.
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
# "No change in the nodule" states that there is a nodule.
_NO_CHANGE_IN = re.compile(
    r"^(?:there (?:has been|is|was) )?no (?:significant |acute |definite |gross )*(?:interval )?"
    r"change in (?:the )?(?:(?:appearance|size|position|configuration) of (?:the )?)?",
    re.IGNORECASE,
)
# Must not occur in a finished text: `checks.py` rejects any match.
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
# "4XXXX" was "4th rib", "dual-XXXX" was perhaps "dual-lead"; the text processor handles "x-XXXX".
_PARTLY_MASKED = re.compile(
    r"(?!x-X{4,}\b)(?:\w+-)*[A-Za-z0-9]*(?:X{4,}|_{3,})[A-Za-z0-9]*(?:-[A-Za-z0-9]*)*",
    re.IGNORECASE,
)
_MASKED = r"(?:X{4,}|_{3,})"
# Masks whose words are certain from the context, and list members that consist only of a mask.
_RESTORABLE = [
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"\bXXXX-A-XXXX\b", "Port-A-Cath"),
        (rf"\b(lymph) {_MASKED}", r"\1 nodes"),
        (rf"\b((?:left|right) costophrenic) {_MASKED}", r"\1 angle"),
        (rf"\b(costophrenic) {_MASKED}(?= blunting)", r"\1 angle"),
        (rf"\b(costophrenic) {_MASKED}", r"\1 angles"),
        (
            rf"\b(sternotomy) {_MASKED}(?= (?:are|and|intact|is|noted|seen|again|in)\b|[.,;])",
            r"\1 wires",
        ),
        (rf"\b(bowel) {_MASKED}(?= pattern)", r"\1 gas"),
        (rf"\b(superior) {_MASKED} {_MASKED}(?= *[.,;]|$)", r"\1 vena cava"),
        (rf"{_MASKED} (?=representing\b)", "possibly "),
        (rf"\bthe pulmonary {_MASKED} and mediastinum are\b", "the mediastinum is"),
        (rf",? (?:the )?pulmonary {_MASKED},? and\b", " and"),
        (rf"(?<!,) and (?:the )?pulmonary {_MASKED} (?:are|appear)\b", " is"),
        (r"\b(a)n interval (?=[^aeiou])", r"\1 "),
        (rf"\b(at) {_MASKED} (?=\d)", r"\1 least "),
        (rf"\bthe pulmonary {_MASKED} and\b", "the"),
    )
]
# "Unchanged since ___", "as compared to ___": the date of an earlier study was masked.
_MASKED_PRIOR = re.compile(
    rf",?\s*\b(?:(?:as )?compared (?:to|with)|since|from|as of|than|dated)\s+(?:the |a |prior |"
    rf"previous |study |exam |film |of |on |dated )*{_MASKED}(?:\s+at \d[\d:]*)?[^.;,]*",
    re.IGNORECASE,
)
_TWO_MASKS = re.compile(rf"{_MASKED} (?:at|of|in|from|to|by|with|for) {_MASKED}")
# "No abnormality as compared to the prior study" states nothing about the current study.
_NOTHING_NEW = re.compile(
    rf"^no (?:{_MASKED} |new |acute |interval |significant )*"
    r"(?:abnormalit\w+|findings?|process|disease)[^.;]*\b(?:compar|since|prior|previous|interval)",
    re.IGNORECASE,
)
_DOCTOR = re.compile(rf"\b(dr)\.\s+(?={_MASKED}|[A-Z])", re.IGNORECASE)
_COMMUNICATION = re.compile(
    r"\b(?:notification|notified|paged|communicated|telephone[d]?|discussed (?:with|by)|relayed|"
    r"primordial|dictated|dr)\b",
    re.IGNORECASE,
)
_LINE_BREAK = re.compile(r"<\s*/?\s*br\s*/?\s*>", re.IGNORECASE)
_MISSING_SPACE = re.compile(r"(?<=[a-z])\.(?=[A-Z][a-z])")  # "effusion.The heart"
_VIEW_DESCRIPTION = re.compile(
    r"^(?:(?:single|two|2|three|3|portable|upright|erect|supine|frontal|lateral|pa|ap|"
    r"posteroanterior|anteroposterior|and|,|/|&|semi-?erect|ap/pa|chest|the)[ .]*)*"
    r"(?:views?|radiographs?|projections?|images?|films?|x-?rays?)\b"
    r"(?: (?:of|the|chest|thorax|were|was|are|is|obtained|provided|submitted|reviewed|performed|"
    r"available|for|review|interpretation|presented|in|and|lateral|frontal|pa|ap|two|with|2))*$",
    re.IGNORECASE,
)
_REMOVE_MASKS = ReportText(ReportText.Config(masks="remove"))


@dataclass(frozen=True)
class Cleaned:
    """A cleaned text, with counts of the changes.

    Attributes:
        text: The result, which may be empty.
        removed: Reason -> number of sentences removed for it.
        changed: Number of sentences that lost words.
    """

    text: str
    removed: dict[str, int]
    changed: int


def resolve_masks(text: str) -> str:
    """Restore masks that are certain from their context, remove tags and split joined sentences.

    "Lymph XXXX" becomes "lymph nodes", and "sternotomy XXXX" becomes "sternotomy wires". Other
    masks are kept, except that "XXXX representing" becomes "possibly representing", because the
    sentence would affirm the finding without the mask.
    """
    for pattern, replacement in _RESTORABLE:
        text = pattern.sub(replacement, text)
    text = _MISSING_SPACE.sub(". ", _LINE_BREAK.sub(" ", _DOCTOR.sub(r"\1 ", text)))
    return " ".join(text.split())


def clean(sections: list[str], priors: bool = False) -> Cleaned:
    """Clean sections and join them.

    Args:
        sections: The texts of the sections, in order.
        priors: Whether to keep comparisons; "stable" in a figure caption is usually a finding.
    """
    removed: dict[str, int] = {}
    sentences: list[str] = []
    seen: set[str] = set()
    changed, previous = 0, ""
    for section in sections:
        seen_before = frozenset(seen)  # within one section, "no change" may follow two headings
        for raw in split_sentences(resolve_masks(section)):
            sentence, reason = _clean_sentence(raw, priors)
            key = re.sub(r"\W+", " ", sentence).strip().lower()
            if not reason and (key in seen_before or key == previous):
                reason = "said twice"
            if reason:
                removed[reason] = removed.get(reason, 0) + 1
                continue
            changed += sentence != raw
            seen.add(key)
            previous = key
            sentences.append(sentence)
    return Cleaned(" ".join(sentences), removed, changed)


def _clean_sentence(raw: str, priors: bool) -> tuple[str, str]:
    """Return a sentence without priors and masks, or an empty text and why it is removed."""
    reason = _no_finding_reason(raw)
    if reason:
        return "", reason
    raw = _NUMBERED.sub("", raw)
    if priors:
        text = _tidy(_REMOVE_MASKS(_PARTLY_MASKED.sub("XXXX", raw)))
        return (text, "") if _has_word(text) else ("", "nothing left beside masks")
    if _NOTHING_NEW.search(raw):
        return "", "prior study"
    text = _TWO_MASKS.sub("XXXX", _MASKED_PRIOR.sub("", remove_masked_measurements(raw)))
    text = _REMOVE_MASKS(_PARTLY_MASKED.sub("XXXX", text))
    text = text[:1].upper() + text[1:]
    if not _has_word(text):
        return "", "nothing left beside masks"
    text, reason = _without_priors(text)
    if not reason and text != _tidy(raw) and is_broken(text):
        return "", "broken by what was taken out"
    return text, reason


def _no_finding_reason(raw: str) -> str:
    """Return why a sentence is not about findings, or an empty text if it is."""
    if _VIEW_DESCRIPTION.match(raw.rstrip(". ")):
        return "view"
    return "communication" if _COMMUNICATION.search(raw) and not mentions(raw) else ""


def _has_word(text: str) -> bool:
    return re.search(r"[A-Za-z]{2}", text) is not None


def _without_priors(text: str) -> tuple[str, str]:
    """Return a sentence without statements about earlier studies, or why it is removed."""
    shorter = _NO_CHANGE_IN.sub("", text)
    for clause in _PRIOR_CLAUSES:
        shorter = clause.sub("", shorter)
    shorter = _COMPARING_WORDS.sub("", shorter)
    if shorter == text:
        return (_tidy(text), "") if not COMPARISON.search(text) else ("", "prior study")
    shorter = _complete_sentence(shorter)
    if _states_something(shorter) and not COMPARISON.search(shorter):
        return shorter, ""
    # "The cardiomegaly is": without the verb, the text still affirms the finding.
    shorter = _tidy(_EMPTY_END.sub("", shorter.rstrip(". ")))
    affirmed = _affirmed_findings(text)
    if affirmed and not COMPARISON.search(shorter) and _affirmed_findings(shorter) == affirmed:
        return shorter, ""
    return "", "prior study"


def _complete_sentence(text: str) -> str:
    """Remove the relative pronouns and connectives that removed words leave behind."""
    text = _RELATIVE_END.sub("", _tidy(text).rstrip(". "))
    text = _DANGLING.sub(r"\1 ", _REMAINS.sub("is", text))
    return _tidy(_CONNECTIVE_END.sub("", _tidy(text).rstrip(". ")))


def _affirmed_findings(text: str) -> set[tuple[str, str | None]]:
    return {(m.finding, m.laterality) for m in mentions(text) if m.status == "positive"}


def _states_something(text: str) -> bool:
    body = text.rstrip(". ")
    return len(re.findall(r"[A-Za-z]{2,}", body)) > 1 and not _EMPTY_END.search(body)


def _tidy(text: str) -> str:
    """Correct white space, stray commas, the initial capital and the full stop."""
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
