"""GREEN: well and badly formed answers of judges, the score, answers that cannot be parsed."""

from __future__ import annotations

import ast
import importlib.util
import re
import types
from pathlib import Path

import numpy as np
import pytest

from xraygpt.common.errors import InputError
from xraygpt.metrics.green import (
    CATEGORIES,
    MAX_WORDS,
    build_prompt,
    green_score,
    green_scores,
    parse_judgement,
)

NAMES = [
    "False report of a finding in the candidate",
    "Missing a finding present in the reference",
    "Misidentification of a finding's anatomic location/position",
    "Misassessment of the severity of a finding",
    "Mentioning a comparison that isn't in the reference",
    "Omitting a comparison detailing a change from a prior study",
]


def answer(significant: str, insignificant: str = "", matched: str = "1. heart") -> str:
    return (
        f"[Explanation]:\nBecause.\n\n[Clinically Significant Errors]:\n{significant}\n\n"
        f"[Clinically Insignificant Errors]:\n{insignificant}\n\n[Matched Findings]:\n{matched}\n"
    )


def lines(*counts: int) -> str:
    items = [f"{n}. " + "; ".join(f"error {i}" for i in range(n)) for n in counts]
    return "\n".join(
        f"({letter}) {name}: {text}"
        for letter, name, text in zip("abcdef", NAMES, items, strict=False)
    )


ZERO = (0, 0, 0, 0, 0, 0)

# Texts of a judge about the significant errors, and their counts.
SIGNIFICANT = {
    "as requested": (lines(1, 2, 0, 0, 0, 3), (1, 2, 0, 0, 0, 3)),
    "only some lines": ("(b) Missing a finding: 2. edema; nodule", (0, 2, 0, 0, 0, 0)),
    "none": ("None.", ZERO),
    "no errors": ("No clinically significant errors.", ZERO),
    "there are none": ("There are no significant errors in the candidate.", ZERO),
    "nought": ("0", ZERO),
    "nothing at all": ("", ZERO),
    "digits for letters": ("(1) False report: 1. edema\n(4) Severity: 2. x; y", (1, 0, 0, 2, 0, 0)),
    "bare letters": ("a) False report: 1\nb. Missing: 0", (1, 0, 0, 0, 0, 0)),
    "Markdown": ("- **(a)** False report: **1**. edema\n* (d) Severity: 0", (1, 0, 0, 0, 0, 0)),
    "capitals": ("(A) FALSE REPORT: 1. EDEMA", (1, 0, 0, 0, 0, 0)),
    "no counts": (
        "(a) False report of a finding: edema; nodule.\n(b) Missing a finding: none",
        (2, 0, 0, 0, 0, 0),
    ),
    "names only": ("\n".join(f"({x}) {n}" for x, n in zip("abcdef", NAMES, strict=True)), ZERO),
    "no name": ("(a) 2\n(b) 0\n(c) edema is left, not right", (2, 0, 1, 0, 0, 0)),
    "no mention": ("(b) Missing a finding: No mention of the effusion", (0, 1, 0, 0, 0, 0)),
    "a size is not a count": ("(b) Missing a finding: 2.5 cm nodule", (0, 1, 0, 0, 0, 0)),
    "nor one in mm": ("(b) Missing a finding: 8 mm nodule; edema", (0, 2, 0, 0, 0, 0)),
    "two colons": ("(c) Location (such as: side): 2. a; b", (0, 0, 2, 0, 0, 0)),
    "a letter twice": ("(a) False report: 1. x\n(a) False report: 2. y; z", (3, 0, 0, 0, 0, 0)),
    "items below": ("(a) False report of a finding:\n  - edema\n  - nodule", (2, 0, 0, 0, 0, 0)),
    "a count and items below": ("(a) False report: 2.\n - edema\n - nodule", (2, 0, 0, 0, 0, 0)),
    "number with the word": ("(a) False report: 1 error (edema)", (1, 0, 0, 0, 0, 0)),
    "number in brackets": ("(a) False report: (2) edema; nodule", (2, 0, 0, 0, 0, 0)),
}


@pytest.mark.parametrize("case", SIGNIFICANT)
def test_significant_errors(case):
    text, expected = SIGNIFICANT[case]
    judgement = parse_judgement(answer(text))
    assert judgement is not None
    assert judgement.significant == expected
    assert judgement.insignificant == ZERO


MATCHED = {
    "as requested": ("3. heart; lungs; bones", 3, ("heart", "lungs", "bones")),
    "no list": ("4", 4, ()),
    "more than listed": ("5. heart; lungs", 5, ("heart", "lungs")),
    "none": ("None", 0, ()),
    "no matches": ("No matched findings.", 0, ()),
    "nought": ("0.", 0, ()),
    "numbered": ("1. heart\n2. lungs\n3. bones", 3, ("heart", "lungs", "bones")),
    "dotted": ("- heart\n- lungs", 2, ("heart", "lungs")),
    "one dot": ("- heart", 1, ("heart",)),
    "with the word": ("2 findings: heart; lungs", 2, ("findings: heart", "lungs")),
    "fenced": ("2. heart; lungs\n```", 2, ("heart", "lungs")),
}


@pytest.mark.parametrize("case", MATCHED)
def test_matched_findings(case):
    text, expected, listed = MATCHED[case]
    judgement = parse_judgement(answer(lines(1), matched=text))
    assert judgement is not None
    assert (judgement.matched, judgement.findings) == (expected, listed)


UNREADABLE = {
    "empty": "",
    "a refusal": "I'm sorry, I can't assess medical reports.",
    "prose": "The candidate matches the reference in two findings and has no significant errors.",
    "cut before the matches": answer(lines(1)).split("[Matched")[0],
    "cut at the matches": answer(lines(1), matched=""),
    "no significant part": "[Explanation]:\nx\n\n[Matched Findings]:\n2. a; b",
    "errors of no category": answer("The candidate invents an effusion and misses a nodule."),
    "a sum of no category": answer("3"),
    "matches in prose": answer(lines(1), matched="Both speak of the heart."),
    "the form itself": build_prompt("a", "b").split("exactly this form")[1],
    "JSON": '{"matched": 3, "significant": {"a": 1}}',
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_answers(case):
    assert parse_judgement(UNREADABLE[case]) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a,
        lambda a: a.replace("[", "**[").replace("]:", "]:**"),
        lambda a: re.sub(r"\[(.*?)\]:", r"### \1", a),
        lambda a: re.sub(r"\[(.*?)\]:\n", r"**\1:** ", a),
        lambda a: re.sub(r"\[(.*?)\]:", r"[\1]", a),
        lambda a: a.replace("Errors]", "errors]").replace("[Matched F", "[matched f"),
        lambda a: a.replace("\n", "\r\n"),
        lambda a: "<think>\n[Matched Findings]: 9. x\n</think>\n" + a + "</s>",
        lambda a: build_prompt("the heart", "the lungs") + a,
        lambda a: "```\n" + a + "```",
        lambda a: a.replace("\n\n", "\n"),
    ],
)
def test_heading_variants(change):
    judgement = parse_judgement(change(answer(lines(1, 0, 2), lines(0, 1), "2. heart; lungs")))
    assert judgement is not None
    assert judgement.significant == (1, 0, 2, 0, 0, 0)
    assert judgement.insignificant == (0, 1, 0, 0, 0, 0)
    assert (judgement.matched, judgement.findings) == (2, ("heart", "lungs"))
    assert judgement.explanation == "Because."
    assert judgement.score == pytest.approx(2 / 5)


def test_insignificant_errors_are_optional():
    text = answer(lines(1))
    part = text[text.index("[Clinically I") : text.index("[Matched")]
    judgement = parse_judgement(text.replace(part, ""))
    assert judgement is not None
    assert judgement.insignificant is None and judgement.significant[0] == 1


def test_the_formula():
    assert green_score(3, 1) == 0.75
    assert green_score(3, 0) == 1
    assert green_score(0, 0) == 0
    assert green_score(0, 5) == 0


def radeval_green() -> types.SimpleNamespace:
    """The two methods of radeval's GREEN that parse and score, without the model."""
    spec = importlib.util.find_spec("radeval")
    if spec is None:
        pytest.skip("radeval is not installed (pip install --no-deps radeval==2.2.1)")
    path = Path(spec.submodule_search_locations[0]) / "metrics" / "green_score" / "green.py"
    body = ast.parse(path.read_text()).body
    cls = next(n for n in body if getattr(n, "name", "") == "GREEN")
    cls.body = [
        n for n in cls.body if getattr(n, "name", "") in ("compute_green", "parse_error_counts")
    ]
    namespace: dict = {"re": re}
    exec(compile(ast.Module([cls], []), str(path), "exec"), namespace)
    scorer = namespace["GREEN"]()
    scorer.categories = [
        "Clinically Significant Errors",
        "Clinically Insignificant Errors",
        "Matched Findings",
    ]
    scorer.sub_categories = [f"({x}) {n}" for x, n in zip("abcdef", NAMES, strict=True)]
    return scorer


def test_scores_equal_radeval_on_well_formed_answers():
    """Bit-identical on 200 answers."""
    reference = radeval_green()
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(200):
        count = int(rng.integers(0, 6))
        text = answer(
            lines(*rng.integers(0, 3, 6)),
            lines(*rng.integers(0, 3, 6)),
            f"{count}. " + "; ".join(["finding"] * count),
        )
        scores.append(reference.compute_green(text))
        assert parse_judgement(text).score == scores[-1]
    assert np.std(scores) > 0.1


def test_the_prompt_contains_both_reports():
    text = build_prompt("CANDIDATE {x}", "REFERENCE")
    assert text.index("REFERENCE") < text.index("CANDIDATE {x}")
    assert "CANDIDATE {x}" in text.split("Candidate report:")[1]
    for heading in ("Explanation", "Clinically Significant Errors", "Matched Findings"):
        assert f"[{heading}]:" in text
    assert all(f"({letter})" in text for letter in "abcdef")
    assert build_prompt("word " * 999, "x").count("word") == MAX_WORDS
    assert "(empty)" in build_prompt(" ", "x")


def test_unreadable_answers_are_excluded_and_counted():
    answers = iter(
        [
            answer(lines(1, 0, 2), matched="3. a; b; c"),  # 3 / 6
            "I cannot judge this.",
            answer(lines(0), matched="2. a; b"),  # 2 / 2
            answer(lines(1), matched="0."),  # 0
        ]
    )
    prompts: list[str] = []

    def ask(text: str) -> str:
        prompts.append(text)
        return next(answers)

    scores = green_scores(list("pqrs"), list("wxyz"), ask, groups=list("1122"), judge_name="test 1")
    by_name = {s.name: s for s in scores}
    assert len(prompts) == 4 and "Candidate report:\nr\n" in prompts[2]
    assert (by_name["GREEN"].value, by_name["GREEN"].n) == (pytest.approx((0.5 + 1 + 0) / 3), 3)
    assert (by_name["GREEN_unreadable"].value, by_name["GREEN_unreadable"].n) == (0.25, 4)
    assert by_name["GREEN_matched"].value == pytest.approx(5 / 3)
    assert by_name["GREEN_errors/false_finding"].value == pytest.approx(2 / 3)
    assert by_name["GREEN_errors/wrong_location"].value == pytest.approx(2 / 3)
    assert len(by_name) == 3 + len(CATEGORIES)
    assert by_name["GREEN"].counts.shape == (4, 2)  # all rows remain, for paired comparisons
    assert "test 1" in by_name["GREEN"].signature


def test_without_a_readable_answer_the_score_is_nan():
    by_name = {s.name: s for s in green_scores(["a"], ["b"], lambda _: "?")}
    assert np.isnan(by_name["GREEN"].value) and by_name["GREEN"].n == 0
    assert by_name["GREEN_unreadable"].value == 1
    with pytest.raises(InputError, match="1 predictions for 2"):
        green_scores(["a"], ["b", "c"], lambda _: "?")
