"""GREEN: a language model counts the errors and the correct findings in a report.

The judge lists clinically significant errors in six categories, insignificant ones in the same six,
and the findings that both reports share. The score of a report is::

    GREEN = matched / (matched + significant errors), 0 if nothing matches

(Ostmeier et al. 2024, "GREEN: Generative Radiology Report Evaluation and Error Notation"). The
judge is any function from a prompt to an answer: the authors' model, another model, or an API.
Answers that cannot be parsed are excluded from the mean and counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.metrics.statistics import Score, mean_score, ratio_score, share_of_sums

#: The categories of errors, (a) to (f).
CATEGORIES: tuple[str, ...] = (
    "false_finding",
    "missing_finding",
    "wrong_location",
    "wrong_severity",
    "false_comparison",
    "missing_comparison",
)
MAX_WORDS = 300  # per report in the prompt, the authors' limit

_PROMPT = """\
You compare a candidate chest X-ray report with a reference written by radiologists and count what \
is wrong in the candidate. Judge the clinical content, not the style.

Errors fall into six categories:
(a) False report of a finding in the candidate: it names one that the reference does not support.
(b) Missing a finding present in the reference.
(c) Misidentification of a finding's anatomic location or side.
(d) Misassessment of the severity of a finding.
(e) Mentioning a comparison that is not in the reference, such as a change since a prior study.
(f) Omitting a comparison with a prior study that the reference makes.

An error is significant if it could change what is done for the patient, else insignificant. A
matched finding is one that both reports state alike, normal ones included.

Reference report:
{reference}

Candidate report:
{candidate}

Answer in exactly this form, with a count on every line, 0 where there is none:

[Explanation]:
<why, in a few sentences>

[Clinically Significant Errors]:
(a) <category>: <count>. <error>; <error>; ...
(b) ... and so on to (f)

[Clinically Insignificant Errors]:
(a) <category>: <count>. <error>; <error>; ...
(b) ... and so on to (f)

[Matched Findings]:
<count>. <finding>; <finding>; ...
"""


@dataclass(frozen=True)
class Judgement:
    """A judge's parsed answer about one pair."""

    explanation: str
    significant: tuple[int, ...]  # six counts, in the order of CATEGORIES
    insignificant: tuple[int, ...] | None  # None if the answer has no such part
    matched: int
    findings: tuple[str, ...]  # the listed matched findings; may be fewer than `matched`

    @property
    def score(self) -> float:
        """GREEN, in [0, 1]."""
        return green_score(self.matched, sum(self.significant))


def green_score(matched: int, significant: int) -> float:
    """Compute GREEN from the numbers of matched findings and significant errors, in [0, 1]."""
    return matched / (matched + significant) if matched else 0.0


def build_prompt(prediction: str, reference: str) -> str:
    """Build the judge's prompt for one pair; reports are truncated to `MAX_WORDS` words."""
    texts = [" ".join(text.split()[:MAX_WORDS]) or "(empty)" for text in (prediction, reference)]
    return _PROMPT.format(candidate=texts[0], reference=texts[1])


_SECTIONS = {
    "explanation": "explanation",
    "clinically significant errors": "significant",
    "clinically insignificant errors": "insignificant",
    "matched findings": "matched",
}
# A heading at the start of a line: in brackets, before a colon or alone, in any Markdown.
_HEADING = re.compile(
    rf"^[ \t>#*_`]*(?P<open>\[)?[ \t]*(?P<name>{'|'.join(_SECTIONS)})[ \t]*"
    r"(?:(?(open)\])[ \t*_`]*:[ \t*_`]*|(?(open)\]|(?!))[ \t*_`]*|[ \t*_`]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_REASONING = re.compile(r"\A.*</think>", re.DOTALL)
_LETTER = re.compile(r"^[ \t>*_`•-]*\(?([a-f1-6])[).:](?![0-9])[ \t*_`]*", re.IGNORECASE)
# A count: an integer that is not part of a measurement such as "2.5 cm" or "3 mm".
_NUMBER = r"[\s(<*_`\[]*(\d{1,3})(?![\d%/]|\.\d)(?!\s*(?:cm|mm|ml|th)\b)"
_COUNT = re.compile(_NUMBER)
_COLON_COUNT = re.compile(rf":{_NUMBER}")
_NONE = re.compile(
    r"\W*(?:(?:none|nil|n/a|not applicable|zero)\b|(?:there (?:are|is|were|was) )?no\b\W*"
    r"(?:$|(?:errors?|such|other|issues?|clinically|significant|insignificant|match\w*|findings?)\b))",
    re.IGNORECASE,
)
# Only the name of a category: such a line lists no error.
_CATEGORY_NAME = re.compile(
    r"(?:\b(?:false|report|of|a|finding|s|in|the|candidate|missing|present|reference|that|is|isn|t|"
    r"not|there|misidentification|anatomic|location|position|side|or|misassessment|severity|"
    r"mentioning|comparison|omitting|detailing|change|from|with|prior|study|errors?|type)\b|\W)*",
    re.IGNORECASE,
)
_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\(?\d{1,3}[.)])[ \t]+(?=\S)")


def parse_judgement(answer: str) -> Judgement | None:
    """Parse a judge's answer, or return None if it is not in the required form.

    Headings may be in any case and any Markdown style. If a heading occurs twice, the last one
    counts, because a model may repeat the form first. Both the significant errors and the matched
    findings are required, and the latter must not be empty, as they are in a truncated answer. The
    line of a category contains its count, or a list without a count, whose items are counted; a
    line with only the category's name counts as 0. The counts of a letter that occurs twice are
    added.
    """
    sections = _split_sections(_REASONING.sub("", answer))
    if "significant" not in sections or "matched" not in sections:
        return None
    significant = _parse_errors(sections["significant"])
    matched = _parse_matched(sections["matched"])
    if significant is None or matched is None:
        return None
    insignificant = (
        _parse_errors(sections["insignificant"]) if "insignificant" in sections else None
    )
    return Judgement(sections.get("explanation", ""), significant, insignificant, *matched)


def _split_sections(answer: str) -> dict[str, str]:
    """Return the text below each heading, without code fences."""
    headings = list(_HEADING.finditer(answer))
    ends = [heading.start() for heading in headings[1:]] + [len(answer)]
    sections: dict[str, str] = {}
    for heading, end in zip(headings, ends, strict=False):
        body = answer[heading.end() : end].replace("```", "").replace("</s>", "")
        sections[_SECTIONS[heading["name"].lower()]] = body.strip()
    return sections


def _parse_errors(body: str) -> tuple[int, ...] | None:
    """Count the errors in the six categories; None for a text that belongs to none of them."""
    blocks: list[tuple[int, str, list[str]]] = []  # category, its line, the items below it
    for line in body.splitlines():
        marker = _LETTER.match(line)
        if marker:
            letter = marker[1].lower()
            category = int(letter) - 1 if letter.isdigit() else ord(letter) - ord("a")
            blocks.append((category, line[marker.end() :].strip(), []))
        elif blocks and _ITEM.match(line):
            blocks[-1][2].append(line)
    counts = [0] * len(CATEGORIES)
    for category, line, items in blocks:
        counts[category] += _count_errors(line, len(items))
    if blocks or not body or _NONE.match(body) or body.strip(" .*_`") == "0":
        return tuple(counts)
    return None


def _count_errors(line: str, items: int) -> int:
    """Count the errors in one category.

    Args:
        line: The text after the letter: ``name: 2. x; y``, ``2``, ``none``, ``name: x; y`` or
            ``name``.
        items: Number of items listed on separate lines below it.
    """
    name, colon, rest = line.partition(":")
    if _NONE.match(line) or _NONE.match(rest.strip()):
        return 0
    number = _COUNT.match(line) or _COLON_COUNT.search(line)
    if number:
        return int(number[1])
    errors = rest if colon else name
    if not colon and _CATEGORY_NAME.fullmatch(name):
        errors = ""
    return len(_split_items(errors)) or items


def _parse_matched(body: str) -> tuple[int, tuple[str, ...]] | None:
    """Return the number and list of matched findings; the items of a marked list are counted."""
    lines = [line for line in body.splitlines() if line.strip()]
    items = [_ITEM.sub("", line).strip() for line in lines if _ITEM.match(line)]
    if len(items) > 1:
        return len(items), tuple(items)
    number = _COUNT.match(body)
    if number:
        return int(number[1]), tuple(_split_items(body[number.end() :].lstrip(" .:)>*_`-")))
    if _NONE.match(body):
        return 0, ()
    return (1, tuple(items)) if items else None


def _split_items(text: str) -> list[str]:
    return [part for part in (p.strip(" .\n*_`<>-") for p in text.split(";")) if part]


def judge(
    predictions: Sequence[str], references: Sequence[str], ask: Callable[[str], str]
) -> list[Judgement | None]:
    """Have every pair judged, in order; an answer that cannot be parsed becomes None.

    Args:
        predictions: The n generated reports.
        references: The n reference reports.
        ask: Maps a prompt to the judge's answer.

    Raises:
        InputError: If the counts differ.
    """
    if len(predictions) != len(references):
        raise InputError(
            f"{len(predictions)} predictions for {len(references)} references; expected one each"
        )
    return [
        parse_judgement(ask(build_prompt(p, r)))
        for p, r in zip(predictions, references, strict=True)
    ]


def green_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    ask: Callable[[str], str],
    groups: Sequence[str] | None = None,
    *,
    judge_name: str = "a judge unnamed",
) -> list[Score]:
    """Compute GREEN and its parts for reports.

    Args:
        predictions: Generated reports.
        references: Reference reports.
        ask: See `judge`.
        groups: The study of each sample; intervals resample whole studies.
        judge_name: Model and version; part of the signature, because judges differ.

    Returns:
        ``GREEN`` (mean over the answers that could be parsed; nan if none could),
        ``GREEN_unreadable`` (fraction of all answers that could not be parsed), ``GREEN_matched``
        and ``GREEN_errors/<category>`` (mean matched findings and significant errors per report,
        over the parsed answers).

    Raises:
        InputError: See `judge`.
    """
    judgements = judge(predictions, references, ask)
    signature = f"GREEN by {judge_name}"
    unreadable = [float(j is None) for j in judgements]
    unreadable_signature = f"{signature}; answers not readable / n"
    matched = [j.matched if j else None for j in judgements]
    scores = [
        _mean_of_parsed("GREEN", [j.score if j else None for j in judgements], signature, groups),
        mean_score("GREEN_unreadable", unreadable, unreadable_signature, groups),
        _mean_of_parsed("GREEN_matched", matched, signature, groups),
    ]
    for i, name in enumerate(CATEGORIES):
        values = [j.significant[i] if j else None for j in judgements]
        scores.append(_mean_of_parsed(f"GREEN_errors/{name}", values, signature, groups))
    return scores


def _mean_of_parsed(
    name: str, values: Sequence[float | None], signature: str, groups: Sequence[str] | None
) -> Score:
    """Average the values that are not None; the rows of the others are kept with weight 0."""
    rows = [[0.0, 0.0] if v is None else [float(v), 1.0] for v in values]
    counts = np.array(rows).reshape(-1, 2)
    score = ratio_score(name, counts, share_of_sums, signature, groups)
    return replace(score, n=int(counts[:, 1].sum()))
