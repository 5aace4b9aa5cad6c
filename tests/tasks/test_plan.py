"""A plan before the report: asked in the words of training, written into its question."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from tests.conftest import write_toy_corpus
from xraygpt.common.config import load
from xraygpt.common.errors import ConfigError
from xraygpt.experiment import Evaluation, build_evaluator
from xraygpt.tasks import plan as planning
from xraygpt.vocabulary import vocabulary_of
from xraygpt.vocabulary.questions import CodeQuestions, PromptFindings, pair

CHEST = vocabulary_of("chest_xray")

CODES = {
    "left": ["Opacity/lung/left", "Cardiomegaly"],
    "right": ["Lung/hypoinflation"],
    "none": ["normal"],
}
YAML = """
model: {arch: xraygpt, model_type: tiny, prompt_template: xraygpt, prompt_path: %s}
datasets:
  toy: {builder: records, storage: %s, min_code_count: 3, ask: findings, target: %s%s}
run: {task: %s, output_dir: %s, split: val}
"""


@pytest.fixture
def corpus(tmp_path):
    folder = write_toy_corpus(tmp_path / "corpus")
    path = folder / "corpus.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["codes"] = CODES[("left", "right", "none")[i % 3]]
        row["findings"] = row.pop("turns")[1]["text"]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "prompts.txt").write_text("What does it show?\n")
    return folder


def evaluator_of(corpus, target, more="", task="report_generation"):
    base = corpus.parent
    path = base / "eval.yaml"
    path.write_text(YAML % (base / "prompts.txt", corpus, target, more, task, base / "out"))
    return build_evaluator(load(Evaluation, path))


def test_codes_in_the_labellers_names():
    assert CHEST.coded_findings(CODES["left"]) == {"lung_opacity", "cardiomegaly"}
    assert CHEST.coded_findings(["Lung/hypoinflation"]) == {"hypoinflation"}
    assert CHEST.coded_findings(["normal"]) == {"no_finding"}
    assert CHEST.coded_findings(["pleural effusion/left", "Nipple Shadow"]) == {"pleural_effusion"}
    written = ["lung opacity/left", "support devices"]
    assert CHEST.coded_findings(written) == {"lung_opacity", "support_devices"}


def test_questions_about_findings_are_answered_by_the_codes(corpus):
    data = evaluator_of(corpus, "every_code_question", task="yes_no").data
    first = [r for r in data.records if r.study_id == "study3"]  # "left"
    asked = {r.turns[0]["text"]: r.turns[1]["text"] for r in first}
    assert asked == {
        "<image> Is there cardiomegaly?": "yes.",
        "<image> Is there hypoinflation?": "no.",
        "<image> Is there lung opacity?": "yes.",
        "<image> Is there no finding?": "no.",
    }
    drawn = CodeQuestions("<image>", CODES["right"], ["hypoinflation", "scar"], 2, findings=CHEST)
    said = {
        q["text"].removeprefix("<image> "): a["text"]
        for q, a in zip(*[iter(drawn("x"))] * 2, strict=True)
    }
    assert said == {"Is there hypoinflation?": "yes.", "Is there scar?": "no."}


def test_findings_are_told_in_most_draws_and_some_are_left_out():
    turns = pair("<image>", "The heart is large.")
    told = PromptFindings(turns, ["Cardiomegaly", "Lung/hypoinflation/mild"], 0.3, vocabulary=CHEST)
    texts = Counter(told(f"0/{i}/s")[0]["text"] for i in range(2000))
    both = ["cardiomegaly; lung, hypoinflation, mild", "lung, hypoinflation, mild; cardiomegaly"]
    full = sum(texts[f"<image><findings>{words}</findings>"] for words in both) / 2000
    alone = 0.3 + 0.7 * 0.01
    assert texts["<image>"] / 2000 == pytest.approx(alone, abs=0.04)
    assert full == pytest.approx(0.7 * 0.81, abs=0.04)
    assert min(texts[f"<image><findings>{words}</findings>"] for words in both) > 200  # any order
    assert all(told(f"0/{i}/s")[1]["text"] == "The heart is large." for i in range(5))
    asked = PromptFindings(
        turns, ["Cardiomegaly", "Lung/hypoinflation/mild"], 0.3, "question", vocabulary=CHEST
    )
    texts = Counter(asked(f"0/{i}/s")[0]["text"] for i in range(2000))
    full = texts["<image> Write the report. Seen: cardiomegaly, hypoinflation."] / 2000
    assert full == pytest.approx(0.7 * 0.81, abs=0.04)
    normal = PromptFindings(turns, ["normal"], 0.0, "question", vocabulary=CHEST)("0")[0]["text"]
    assert normal == "<image> Write the report. Seen: nothing abnormal."


def test_another_question_to_the_same_images_is_what_training_would_ask(corpus):
    reports = evaluator_of(corpus, "report", ", findings_in_prompt: 0.0")
    questions = evaluator_of(corpus, "every_code_question", task="yes_no")
    samples = [reports.data[i] for i in range(3)]
    prompts = reports.collate.prompts(samples)
    same = {r.study_id: i for i, r in enumerate(questions.data.records) if "opacity" in r.sample_id}
    wanted = questions.collate.prompts([questions.data[same[s["study_id"]]] for s in samples])
    asked = planning.ask(reports.model, prompts, ["Is there lung opacity?"] * 3)
    for key in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(asked[key], wanted[key]), key
    assert asked["question"] == wanted["question"]
    assert torch.equal(asked["media_inputs"]["features"], prompts["media_inputs"]["features"])


def test_the_report_is_asked_for_with_what_is_held_likely(corpus, monkeypatch):
    evaluator = evaluator_of(
        corpus, "report", task="{name: report_generation, plan: {threshold: 0.6}}"
    )
    held = {"lung_opacity": [0.7, 0.1, 0.1], "cardiomegaly": [0.6, 0.59, 0.2]}
    seen: list[str] = []

    def probability(model, prompts, yes, no):
        name = prompts["question"][0].removeprefix("Is there ").removesuffix("?").replace(" ", "_")
        seen.append(name)
        return torch.tensor(held.get(name, [0.0] * 3))

    said: list[list[str]] = []
    monkeypatch.setattr(planning, "yes_probability", probability)
    monkeypatch.setattr(
        evaluator.model, "generate", lambda batch, *_: said.append(batch["question"])
    )
    samples = [evaluator.data[i] for i in range(3)]
    evaluator.task.predict(evaluator.model, evaluator.collate.prompts(samples))
    assert said == [[
        "(found: cardiomegaly; lung opacity) What does it show?",
        "(found: normal) What does it show?",
        "(found: normal) What does it show?",
    ]]  # fmt: skip
    assert "pleural_effusion" in seen and not {"no_finding", "other_finding"} & set(seen)


def test_a_plan_of_unknown_findings_is_refused(corpus):
    with pytest.raises(ConfigError, match="heart is none of"):
        evaluator_of(corpus, "report", task="{name: report_generation, plan: {findings: [heart]}}")


def test_one_study_is_asked_as_a_batch_is(corpus):
    evaluator = evaluator_of(corpus, "report", ", findings_in_prompt: 0.0")
    model, plan = evaluator.model, planning.Plan(threshold=0.5, findings=["lung_opacity", "edema"])
    sample = evaluator.data[0]
    batch, _ = planning.with_plan(model, evaluator.collate.prompts([sample]), plan)
    one = planning.planned_question(model, plan, sample["media"], "What does it show?")
    assert f"(found: {one.caption}) {one.question}" == batch["question"][0]
    sure = planning.Plan(threshold=1.0, findings=["edema", "scar"], thresholds={"edema": 0.0})
    one = planning.planned_question(model, sure, sample["media"], "Say.")
    assert (one.caption, one.question) == ("edema", "Say.")
    sure = planning.Plan(threshold=0.0, findings=["edema", "lung_opacity"])
    one = planning.planned_question(model, sure, sample["media"], "Say.")
    assert (one.caption, one.question) == ("edema; lung opacity", "Say.")


def test_what_is_told_stands_where_training_told_it(corpus):
    """A model asked after a plan gets, to the id, the prompt of a sample with told findings."""
    reports = evaluator_of(corpus, "report")
    sample = reports.data[0]
    prompts = reports.collate.prompts([sample])
    told = PromptFindings(pair("<image>", "x"), ["Cardiomegaly"], 0.0, vocabulary=CHEST)
    draw = next(d for d in map(str, range(99)) if "findings" in told(d)[0]["text"])
    wanted = reports.collate.prompts([{**sample, "turns": told(draw)}])
    asked = planning.ask(reports.model, prompts, ["What does it show?"], ["cardiomegaly"])
    assert torch.equal(asked["input_ids"], wanted["input_ids"])
    words = reports.model.tokenizer.decode([i for i in wanted["input_ids"][0] if i >= 0])
    assert "<Img>; cardiomegaly</Img> What does it show?" in words.replace("> ;", ">;")


def test_a_users_own_question_is_not_replaced(corpus, monkeypatch):
    evaluator = evaluator_of(
        corpus, "report", task="{name: report_generation, plan: {findings: [edema]}}"
    )
    said: list[list[str]] = []
    model = evaluator.model
    monkeypatch.setattr(planning, "yes_probability", lambda *_: torch.ones(2))
    monkeypatch.setattr(model, "generate", lambda batch, *_: said.append(batch["question"]))
    own, plain = evaluator.data[0], evaluator.data[1]
    own = {**own, "turns": [{"role": "user", "text": "<image> Is it large?"}, *own["turns"][1:]]}
    evaluator.task.predict(model, evaluator.collate.prompts([own, plain]))
    assert said == [["Is it large?", "(found: edema) What does it show?"]]


@pytest.mark.slow
def test_what_was_asked_instead_is_kept_beside_the_answer(corpus, monkeypatch):
    plan = "{name: report_generation, plan: {findings: [edema]}, generate: {max_new_tokens: 4}}"
    monkeypatch.setattr(
        plan, "yes_probability", lambda model, prompts, *_: torch.ones(len(prompts["input_ids"]))
    )
    for _ in range(2):  # the second time from the file
        evaluator = evaluator_of(corpus, "report", task=plan)
        evaluator.run()
        path = evaluator.folder / "predictions_true.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        asked = "(found: edema) What does it show?"
        assert {r["meta"]["asked"] for r in rows} == {asked}
        assert asked in (evaluator.folder / "report.html").read_text()


def test_val_is_never_told_the_findings(corpus):
    evaluator = evaluator_of(corpus, "report", ", findings_in_prompt: 0.0")
    told = [str(evaluator.train.turns_of(i, 1)) for i in range(len(evaluator.train))]
    asked = [str(evaluator.data.turns_of(i, 1)) for i in range(len(evaluator.data))]
    assert sum("<findings>" in t for t in told) > 0.8 * len(told)
    assert not any("<findings>" in t for t in asked)
    for wrong, why in (
        (", findings_in_prompt: 30", "must lie in"),
        (", question_sides: true", "sides"),
    ):
        with pytest.raises(ConfigError, match=why):
            evaluator_of(corpus, "code_questions", wrong)


def test_agreement_is_the_f1_of_what_was_told():
    told = [["cardiomegaly, mild", "pleural effusion, left"], ["normal"], []]
    bonus = planning.agreement_with(told, 0.5, CHEST)
    both = "The heart is enlarged. There is a left pleural effusion."
    assert bonus(0, both) == 0.5
    assert bonus(0, "The heart is enlarged.") == pytest.approx(0.5 * 2 / 3)
    assert bonus(0, "Heart size is normal. The lungs are clear.") < 0.2
    clear = "The heart is normal in size. The lungs are clear. No acute disease."
    assert bonus(1, clear) == 0.5 and bonus(1, both) == 0
    assert bonus(2, both) == 0
    with pytest.raises(ValueError, match="at least 0"):
        planning.Plan(agreement=-0.5)


def test_findings_of_a_clip_are_told_beside_it():
    turns = pair("<image> <video> Report?", "x")
    told = PromptFindings(turns, ["Edema"], 0.0, vocabulary=CHEST)
    draw = next(d for d in map(str, range(99)) if "findings" in told(d)[0]["text"])
    marks = [p for p in told(draw)[0]["content"] if not isinstance(p, str)]
    assert [(p.mark, p.caption) for p in marks] == [("<image>", ""), ("<video>", "edema")]
    asked = PromptFindings(turns, ["Edema"], 0.0, "question", vocabulary=CHEST)
    assert asked("1")[0]["text"].startswith("<image> <video> Write the report.")
