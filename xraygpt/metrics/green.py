"""GREEN: a language model counts the errors of a report and what it got right.

The judge lists clinically significant errors in six categories, insignificant ones in the same six,
and the findings that both reports share. The score of a report is::

    GREEN = matched / (matched + significant errors), 0 where nothing matches

(Ostmeier et al. 2024, "GREEN: Generative Radiology Report Evaluation and Error Notation"). The
judge is any function from a prompt to an answer: the authors' model, another one, an interface.
An answer that cannot be read is left out of the mean and counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.metrics.statistics import Score, mean_score, ratio_score

#: The categories of errors, (a) to (f).
CATEGORIES: tuple[str, ...] = (
    "false_finding",
    "missing_finding",
    "wrong_location",
    "wrong_severity",
    "false_comparison",
    "missing_comparison",
)
MAX_WORDS = 300  # of each report in the prompt, as the authors cut them

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
    """What a judge said of one pair."""

    explanation: str
    significant: tuple[int, ...]  # six counts, as CATEGORIES
    insignificant: tuple[int, ...] | None  # None where the answer has no such part
    matched: int
    findings: tuple[str, ...]  # the matched ones as listed; may be fewer than `matched`

    @property
    def score(self) -> float:
        """GREEN, in [0, 1]."""
        return green(self.matched, sum(self.significant))


def green(matched: int, significant: int) -> float:
    """GREEN of counts: matched findings over these and the clinically significant errors."""
    return matched / (matched + significant) if matched else 0.0


def prompt(prediction: str, reference: str) -> str:
    """What the judge is asked about one pair; reports are cut to `MAX_WORDS` words."""
    cut = [" ".join(text.split()[:MAX_WORDS]) or "(empty)" for text in (prediction, reference)]
    return _PROMPT.format(candidate=cut[0], reference=cut[1])


_SECTIONS = {
    "explanation": "explanation",
    "clinically significant errors": "significant",
    "clinically insignificant errors": "insignificant",
    "matched findings": "matched",
}
# A heading stands at the start of a line, in brackets, before a colon or alone, in any Markdown.
_HEADING = re.compile(
    rf"^[ \t>#*_`]*(?P<open>\[)?[ \t]*(?P<name>{'|'.join(_SECTIONS)})[ \t]*"
    r"(?:(?(open)\])[ \t*_`]*:[ \t*_`]*|(?(open)\]|(?!))[ \t*_`]*|[ \t*_`]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_THOUGHT = re.compile(r"\A.*</think>", re.DOTALL)
_LETTER = re.compile(r"^[ \t>*_`•-]*\(?([a-f1-6])[).:](?![0-9])[ \t*_`]*", re.IGNORECASE)
# A count: a whole number that does not begin a measure such as "2.5 cm" or "3 mm".
_NUMBER = r"[\s(<*_`\[]*(\d{1,3})(?![\d%/]|\.\d)(?!\s*(?:cm|mm|ml|th)\b)"
_COUNT = re.compile(_NUMBER)
_COLON_COUNT = re.compile(rf":{_NUMBER}")
_NONE = re.compile(
    r"\W*(?:(?:none|nil|n/a|not applicable|zero)\b|(?:there (?:are|is|were|was) )?no\b\W*"
    r"(?:$|(?:errors?|such|other|issues?|clinically|significant|insignificant|match\w*|findings?)\b))",
    re.IGNORECASE,
)
# A category's name and nothing else: such a line names no error.
_NAME = re.compile(
    r"(?:\b(?:false|report|of|a|finding|s|in|the|candidate|missing|present|reference|that|is|isn|t|"
    r"not|there|misidentification|anatomic|location|position|side|or|misassessment|severity|"
    r"mentioning|comparison|omitting|detailing|change|from|with|prior|study|errors?|type)\b|\W)*",
    re.IGNORECASE,
)
_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\(?\d{1,3}[.)])[ \t]+(?=\S)")


def parse(answer: str) -> Judgement | None:
    """Read a judge's answer; None where it cannot be read.

    Headings may be in any case and Markdown; where a heading comes twice the last one counts, so
    that a model which repeats the form first is read. Both the significant errors and the matched
    findings must be there, and the latter must not be empty: that is how a cut answer ends. An
    error's line holds its count, or a list without a count, whose items are counted; a line of the
    category's name alone is none. A letter that comes twice is summed.
    """
    sections = _sections(_THOUGHT.sub("", answer))
    if "significant" not in sections or "matched" not in sections:
        return None
    significant = _errors(sections["significant"])
    matched = _matched(sections["matched"])
    if significant is None or matched is None:
        return None
    insignificant = _errors(sections["insignificant"]) if "insignificant" in sections else None
    return Judgement(sections.get("explanation", ""), significant, insignificant, *matched)


def _sections(answer: str) -> dict[str, str]:
    """Text below each heading, without fences."""
    heads = list(_HEADING.finditer(answer))
    found: dict[str, str] = {}
    for i, head in enumerate(heads):
        end = heads[i + 1].start() if i + 1 < len(heads) else len(answer)
        body = answer[head.end() : end].replace("```", "").replace("</s>", "")
        found[_SECTIONS[head["name"].lower()]] = body.strip()
    return found


def _errors(body: str) -> tuple[int, ...] | None:
    """Counts of the six categories; None where something is said that belongs to none of them."""
    blocks: list[tuple[int, str, list[str]]] = []  # category, its line, lines below
    for line in body.splitlines():
        marker = _LETTER.match(line)
        if marker:
            letter = marker[1].lower()
            place = int(letter) - 1 if letter.isdigit() else ord(letter) - ord("a")
            blocks.append((place, line[marker.end() :].strip(), []))
        elif blocks and _ITEM.match(line):
            blocks[-1][2].append(line)
    counts = [0] * len(CATEGORIES)
    for place, line, below in blocks:
        counts[place] += _count(line, len(below))
    if blocks or not body or _NONE.match(body) or body.strip(" .*_`") == "0":
        return tuple(counts)
    return None


def _count(line: str, below: int) -> int:
    """Errors of one category.

    Args:
        line: Behind the letter: ``name: 2. x; y``, ``2``, ``none``, ``name: x; y`` or ``name``.
        below: Items listed on lines of their own.
    """
    name, colon, rest = line.partition(":")
    if _NONE.match(line) or _NONE.match(rest.strip()):
        return 0
    number = _COUNT.match(line) or _COLON_COUNT.search(line)
    if number:
        return int(number[1])
    said = rest if colon else name
    if not colon and _NAME.fullmatch(name):
        said = ""
    return len(_items(said)) or below


def _matched(body: str) -> tuple[int, tuple[str, ...]] | None:
    """Number and list of matched findings; a numbered or dotted list counts its items."""
    lines = [line for line in body.splitlines() if line.strip()]
    items = [_ITEM.sub("", line).strip() for line in lines if _ITEM.match(line)]
    if len(items) > 1:
        return len(items), tuple(items)
    number = _COUNT.match(body)
    if number:
        return int(number[1]), tuple(_items(body[number.end() :].lstrip(" .:)>*_`-")))
    if _NONE.match(body):
        return 0, ()
    return (1, tuple(items)) if items else None


def _items(text: str) -> list[str]:
    return [part for part in (p.strip(" .\n*_`<>-") for p in text.split(";")) if part]


def judge(
    predictions: Sequence[str], references: Sequence[str], ask: Callable[[str], str]
) -> list[Judgement | None]:
    """Ask about every pair, in order; None for each answer that cannot be read.

    Args:
        predictions: n generated reports.
        references: n written ones.
        ask: From a prompt to the judge's answer.

    Raises:
        InputError: If the counts differ.
    """
    if len(predictions) != len(references):
        raise InputError(
            f"{len(predictions)} predictions for {len(references)} references; give one each"
        )
    return [parse(ask(prompt(p, r))) for p, r in zip(predictions, references, strict=True)]


def green_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    ask: Callable[[str], str],
    groups: Sequence[str] | None = None,
    *,
    judge_name: str = "a judge unnamed",
) -> list[Score]:
    """GREEN of reports with what it is made of.

    Args:
        predictions: Generated reports.
        references: Written ones.
        ask: See `judge`.
        groups: Per sample its study, which intervals resample.
        judge_name: Model and version, part of the signature: judges differ.

    Returns:
        ``GREEN`` (mean over the answers that could be read; nan where none could),
        ``GREEN_unreadable`` (share of answers that could not, over all),
        ``GREEN_matched`` and ``GREEN_errors/<category>`` (mean matched findings and significant
        errors a report, over those read).

    Raises:
        InputError: See `judge`.
    """
    found = judge(predictions, references, ask)
    signature = f"GREEN by {judge_name}"
    unread = [float(one is None) for one in found]
    scores = [
        _mean_of_read("GREEN", [j.score if j else None for j in found], signature, groups),
        mean_score("GREEN_unreadable", unread, f"{signature}; answers not readable / n", groups),
        _mean_of_read(
            "GREEN_matched", [j.matched if j else None for j in found], signature, groups
        ),
    ]
    for i, name in enumerate(CATEGORIES):
        values = [j.significant[i] if j else None for j in found]
        scores.append(_mean_of_read(f"GREEN_errors/{name}", values, signature, groups))
    return scores


def _mean_of_read(
    name: str, values: Sequence[float | None], signature: str, groups: Sequence[str] | None
) -> Score:
    """Mean of the values there are; the rows of the others stay, with weight 0."""
    rows = [[0.0, 0.0] if v is None else [float(v), 1.0] for v in values]
    counts = np.array(rows).reshape(-1, 2)
    score = ratio_score(name, counts, _share, signature, groups)
    return replace(score, n=int(counts[:, 1].sum()))


def _share(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1]) if sums[1] else float("nan")
