"""GREEN: answers of judges, well and badly formed; the score; answers that cannot be read."""

from __future__ import annotations

import ast
import importlib.util
import re
import types
from pathlib import Path

import numpy as np
import pytest

from xraygpt.common.errors import InputError
from xraygpt.metrics.green import CATEGORIES, MAX_WORDS, green, green_scores, parse, prompt

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
    each = [f"{n}. " + "; ".join(f"error {i}" for i in range(n)) for n in counts]
    return "\n".join(
        f"({letter}) {name}: {text}"
        for letter, name, text in zip("abcdef", NAMES, each, strict=False)
    )


ZERO = (0, 0, 0, 0, 0, 0)

# What a judge says of the significant errors, and the counts that are meant.
SIGNIFICANT = {
    "as asked": (lines(1, 2, 0, 0, 0, 3), (1, 2, 0, 0, 0, 3)),
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
    "names alone": ("\n".join(f"({x}) {n}" for x, n in zip("abcdef", NAMES, strict=True)), ZERO),
    "no name": ("(a) 2\n(b) 0\n(c) edema is left, not right", (2, 0, 1, 0, 0, 0)),
    "no mention": ("(b) Missing a finding: No mention of the effusion", (0, 1, 0, 0, 0, 0)),
    "a size is no count": ("(b) Missing a finding: 2.5 cm nodule", (0, 1, 0, 0, 0, 0)),
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
    said, meant = SIGNIFICANT[case]
    found = parse(answer(said))
    assert found is not None
    assert found.significant == meant
    assert found.insignificant == ZERO


MATCHED = {
    "as asked": ("3. heart; lungs; bones", 3, ("heart", "lungs", "bones")),
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
    said, meant, listed = MATCHED[case]
    found = parse(answer(lines(1), matched=said))
    assert found is not None
    assert (found.matched, found.findings) == (meant, listed)


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
    "the form itself": prompt("a", "b").split("exactly this form")[1],
    "JSON": '{"matched": 3, "significant": {"a": 1}}',
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_answers(case):
    assert parse(UNREADABLE[case]) is None


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
        lambda a: prompt("the heart", "the lungs") + a,
        lambda a: "```\n" + a + "```",
        lambda a: a.replace("\n\n", "\n"),
    ],
)
def test_headings_in_many_dresses(change):
    found = parse(change(answer(lines(1, 0, 2), lines(0, 1), "2. heart; lungs")))
    assert found is not None
    assert found.significant == (1, 0, 2, 0, 0, 0)
    assert found.insignificant == (0, 1, 0, 0, 0, 0)
    assert (found.matched, found.findings) == (2, ("heart", "lungs"))
    assert found.explanation == "Because."
    assert found.score == pytest.approx(2 / 5)


def test_insignificant_errors_may_be_absent():
    whole = answer(lines(1))
    found = parse(whole.replace(whole[whole.index("[Clinically I") : whole.index("[Matched")], ""))
    assert found is not None and found.insignificant is None and found.significant[0] == 1


def test_the_formula():
    assert green(3, 1) == 0.75
    assert green(3, 0) == 1
    assert green(0, 0) == 0
    assert green(0, 5) == 0


def radeval_green() -> types.SimpleNamespace:
    """The two methods of radeval's GREEN that read and score, without the model around them."""
    spec = importlib.util.find_spec("radeval")
    if spec is None:
        pytest.skip("radeval is not installed (pip install --no-deps radeval==2.2.1)")
    path = Path(spec.submodule_search_locations[0]) / "metrics" / "green_score" / "green.py"
    cls = next(n for n in ast.parse(path.read_text()).body if getattr(n, "name", "") == "GREEN")
    cls.body = [
        n for n in cls.body if getattr(n, "name", "") in ("compute_green", "parse_error_counts")
    ]
    space: dict = {"re": re}
    exec(compile(ast.Module([cls], []), str(path), "exec"), space)
    scorer = space["GREEN"]()
    scorer.categories = [
        "Clinically Significant Errors",
        "Clinically Insignificant Errors",
        "Matched Findings",
    ]
    scorer.sub_categories = [f"({x}) {n}" for x, n in zip("abcdef", NAMES, strict=True)]
    return scorer


def test_as_radeval_on_answers_in_form():
    """Equal to the last bit on 200 answers."""
    theirs = radeval_green()
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(200):
        found = int(rng.integers(0, 6))
        text = answer(
            lines(*rng.integers(0, 3, 6)),
            lines(*rng.integers(0, 3, 6)),
            f"{found}. " + "; ".join(["finding"] * found),
        )
        scores.append(theirs.compute_green(text))
        assert parse(text).score == scores[-1]
    assert np.std(scores) > 0.1


def test_the_prompt_holds_both_reports_in_their_places():
    text = prompt("CANDIDATE {x}", "REFERENCE")
    assert text.index("REFERENCE") < text.index("CANDIDATE {x}")
    assert "CANDIDATE {x}" in text.split("Candidate report:")[1]
    for heading in ("Explanation", "Clinically Significant Errors", "Matched Findings"):
        assert f"[{heading}]:" in text
    assert all(f"({letter})" in text for letter in "abcdef")
    assert prompt("word " * 999, "x").count("word") == MAX_WORDS
    assert "(empty)" in prompt(" ", "x")


def test_scores_leave_unreadable_answers_out_and_count_them():
    answers = iter(
        [
            answer(lines(1, 0, 2), matched="3. a; b; c"),  # 3 / 6
            "I cannot judge this.",
            answer(lines(0), matched="2. a; b"),  # 2 / 2
            answer(lines(1), matched="0."),  # 0
        ]
    )
    asked: list[str] = []

    def ask(text: str) -> str:
        asked.append(text)
        return next(answers)

    scores = green_scores(list("pqrs"), list("wxyz"), ask, groups=list("1122"), judge_name="test 1")
    by = {s.name: s for s in scores}
    assert len(asked) == 4 and "Candidate report:\nr\n" in asked[2]
    assert (by["GREEN"].value, by["GREEN"].n) == (pytest.approx((0.5 + 1 + 0) / 3), 3)
    assert (by["GREEN_unreadable"].value, by["GREEN_unreadable"].n) == (0.25, 4)
    assert by["GREEN_matched"].value == pytest.approx(5 / 3)
    assert by["GREEN_errors/false_finding"].value == pytest.approx(2 / 3)
    assert by["GREEN_errors/wrong_location"].value == pytest.approx(2 / 3)
    assert len(by) == 3 + len(CATEGORIES)
    assert by["GREEN"].counts.shape == (4, 2)  # paired comparisons keep their rows
    assert "test 1" in by["GREEN"].signature


def test_when_no_answer_can_be_read_there_is_no_score():
    by = {s.name: s for s in green_scores(["a"], ["b"], lambda _: "?")}
    assert np.isnan(by["GREEN"].value) and by["GREEN"].n == 0
    assert by["GREEN_unreadable"].value == 1
    with pytest.raises(InputError, match="1 predictions for 2"):
        green_scores(["a"], ["b", "c"], lambda _: "?")
