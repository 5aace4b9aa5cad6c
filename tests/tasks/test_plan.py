"""Plans: findings decided with the questions of training, then passed in the prompt."""

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
from xraygpt.tasks.questions import replace_questions
from xraygpt.vocabulary import get_vocabulary
from xraygpt.vocabulary.questions import CodeQuestions, PromptFindings, qa_turns

CHEST = get_vocabulary("chest_xray")

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


def test_codes_are_mapped_to_findings_of_the_labeller():
    assert CHEST.coded_findings(CODES["left"]) == {"lung_opacity", "cardiomegaly"}
    assert CHEST.coded_findings(["Lung/hypoinflation"]) == {"hypoinflation"}
    assert CHEST.coded_findings(["normal"]) == {"no_finding"}
    assert CHEST.coded_findings(["pleural effusion/left", "Nipple Shadow"]) == {"pleural_effusion"}
    names = ["lung opacity/left", "support devices"]
    assert CHEST.coded_findings(names) == {"lung_opacity", "support_devices"}


def test_questions_about_findings_are_answered_by_the_codes(corpus):
    data = evaluator_of(corpus, "every_code_question", task="yes_no").data
    first = [r for r in data.records if r.study_id == "study3"]  # "left"
    answers = {r.turns[0]["text"]: r.turns[1]["text"] for r in first}
    assert answers == {
        "<image> Is there cardiomegaly?": "yes.",
        "<image> Is there hypoinflation?": "no.",
        "<image> Is there lung opacity?": "yes.",
        "<image> Is there no finding?": "no.",
    }
    sample = CodeQuestions("<image>", CODES["right"], ["hypoinflation", "scar"], 2, findings=CHEST)
    answers = {
        q["text"].removeprefix("<image> "): a["text"]
        for q, a in zip(*[iter(sample("x"))] * 2, strict=True)
    }
    assert answers == {"Is there hypoinflation?": "yes.", "Is there scar?": "no."}


def test_most_prompts_contain_findings_and_some_findings_are_omitted():
    turns = qa_turns("<image>", "The heart is large.")
    sample = PromptFindings(
        turns, ["Cardiomegaly", "Lung/hypoinflation/mild"], 0.3, vocabulary=CHEST
    )
    texts = Counter(sample(f"0/{i}/s")[0]["text"] for i in range(2000))
    orders = ["cardiomegaly; lung, hypoinflation, mild", "lung, hypoinflation, mild; cardiomegaly"]
    counts = [texts[f"<image><findings>{order}</findings>"] for order in orders]
    full = sum(counts) / 2000
    without = 0.3 + 0.7 * 0.01
    assert texts["<image>"] / 2000 == pytest.approx(without, abs=0.04)
    assert full == pytest.approx(0.7 * 0.81, abs=0.04)
    assert min(counts) > 200
    assert all(sample(f"0/{i}/s")[1]["text"] == "The heart is large." for i in range(5))
    sample = PromptFindings(
        turns, ["Cardiomegaly", "Lung/hypoinflation/mild"], 0.3, "question", vocabulary=CHEST
    )
    texts = Counter(sample(f"0/{i}/s")[0]["text"] for i in range(2000))
    full = texts["<image> Write the report. Seen: cardiomegaly, hypoinflation."] / 2000
    assert full == pytest.approx(0.7 * 0.81, abs=0.04)
    normal = PromptFindings(turns, ["normal"], 0.0, "question", vocabulary=CHEST)("0")[0]["text"]
    assert normal == "<image> Write the report. Seen: nothing abnormal."


def test_replaced_questions_give_the_prompts_of_training(corpus):
    reports = evaluator_of(corpus, "report", ", findings_in_prompt: 0.0")
    questions = evaluator_of(corpus, "every_code_question", task="yes_no")
    samples = [reports.data[i] for i in range(3)]
    prompts = reports.collate.prompts(samples)
    same = {r.study_id: i for i, r in enumerate(questions.data.records) if "opacity" in r.sample_id}
    expected = questions.collate.prompts([questions.data[same[s["study_id"]]] for s in samples])
    batch = replace_questions(reports.model, prompts, ["Is there lung opacity?"] * 3)
    for key in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(batch[key], expected[key]), key
    assert batch["question"] == expected["question"]
    assert torch.equal(batch["media_inputs"]["features"], prompts["media_inputs"]["features"])


def record_questions(prompts: list[list[str]]):
    """A replacement for `generate` that records the questions of each batch."""

    def generate(batch, *_):
        prompts.append(batch["question"])
        return [""] * len(batch["question"])

    return generate


def test_the_prompt_contains_the_predicted_findings(corpus, monkeypatch):
    evaluator = evaluator_of(
        corpus, "report", task="{name: report_generation, plan: {threshold: 0.6}}"
    )
    probabilities = {"lung_opacity": [0.7, 0.1, 0.1], "cardiomegaly": [0.6, 0.59, 0.2]}
    names: list[str] = []

    def probability(model, prompts, yes, no):
        name = prompts["question"][0].removeprefix("Is there ").removesuffix("?").replace(" ", "_")
        names.append(name)
        return torch.tensor(probabilities.get(name, [0.0] * 3))

    prompts: list[list[str]] = []
    monkeypatch.setattr(planning, "yes_probability", probability)
    monkeypatch.setattr(
        evaluator.model,
        "generate",
        record_questions(prompts),
    )
    samples = [evaluator.data[i] for i in range(3)]
    evaluator.task.predict(evaluator.model, evaluator.collate.prompts(samples))
    assert prompts == [[
        "(found: cardiomegaly; lung opacity) What does it show?",
        "(found: normal) What does it show?",
        "(found: normal) What does it show?",
    ]]  # fmt: skip
    assert "pleural_effusion" in names and not {"no_finding", "other_finding"} & set(names)


def test_a_plan_of_unknown_findings_is_refused(corpus):
    with pytest.raises(ConfigError, match="heart is not one of"):
        evaluator_of(corpus, "report", task="{name: report_generation, plan: {findings: [heart]}}")


def test_a_single_study_is_planned_like_a_batch(corpus):
    evaluator = evaluator_of(corpus, "report", ", findings_in_prompt: 0.0")
    model, plan = evaluator.model, planning.Plan(threshold=0.5, findings=["lung_opacity", "edema"])
    sample = evaluator.data[0]
    prompts = evaluator.collate.prompts([sample])
    batch, _ = planning.add_plan(model, prompts, plan)
    planned = planning.plan_question(model, plan, prompts, "What does it show?")
    assert f"(found: {planned.caption}) {planned.question}" == batch["question"][0]
    plan = planning.Plan(threshold=1.0, findings=["edema", "scar"], thresholds={"edema": 0.0})
    planned = planning.plan_question(model, plan, prompts, "Say.")
    assert (planned.caption, planned.question) == ("edema", "Say.")
    plan = planning.Plan(threshold=0.0, findings=["edema", "lung_opacity"])
    planned = planning.plan_question(model, plan, prompts, "Say.")
    assert (planned.caption, planned.question) == ("edema; lung opacity", "Say.")


def test_the_caption_is_in_the_same_place_as_in_training(corpus):
    """A plan gives exactly the token ids of a training sample with the same findings."""
    reports = evaluator_of(corpus, "report")
    sample = reports.data[0]
    prompts = reports.collate.prompts([sample])
    sample_turns = PromptFindings(qa_turns("<image>", "x"), ["Cardiomegaly"], 0.0, vocabulary=CHEST)
    key = next(k for k in map(str, range(99)) if "findings" in sample_turns(k)[0]["text"])
    expected = reports.collate.prompts([{**sample, "turns": sample_turns(key)}])
    batch = replace_questions(reports.model, prompts, ["What does it show?"], ["cardiomegaly"])
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    text = reports.model.tokenizer.decode([i for i in expected["input_ids"][0] if i >= 0])
    assert "<Img>; cardiomegaly</Img> What does it show?" in text.replace("> ;", ">;")


def test_a_question_of_the_user_is_unchanged(corpus, monkeypatch):
    evaluator = evaluator_of(
        corpus, "report", task="{name: report_generation, plan: {findings: [edema]}}"
    )
    prompts: list[list[str]] = []
    model = evaluator.model
    monkeypatch.setattr(planning, "yes_probability", lambda *_: torch.ones(2))
    monkeypatch.setattr(
        model,
        "generate",
        record_questions(prompts),
    )
    custom, standard = evaluator.data[0], evaluator.data[1]
    question = {"role": "user", "text": "<image> Is it large?"}
    custom = {**custom, "turns": [question, *custom["turns"][1:]]}
    evaluator.task.predict(model, evaluator.collate.prompts([custom, standard]))
    assert prompts == [["Is it large?", "(found: edema) What does it show?"]]


@pytest.mark.slow
def test_the_rewritten_prompt_is_stored_with_the_answer(corpus, monkeypatch):
    task = "{name: report_generation, plan: {findings: [edema]}, generate: {max_new_tokens: 4}}"
    monkeypatch.setattr(
        planning,
        "yes_probability",
        lambda model, prompts, *_: torch.ones(len(prompts["input_ids"])),
    )
    for _ in range(2):  # the second time from the file
        evaluator = evaluator_of(corpus, "report", task=task)
        evaluator.run()
        path = evaluator.folder / "predictions_true.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        prompt = "(found: edema) What does it show?"
        assert {r["meta"]["asked"] for r in rows} == {prompt}
        assert prompt in (evaluator.folder / "report.html").read_text()


def test_val_prompts_never_contain_the_findings(corpus):
    evaluator = evaluator_of(corpus, "report", ", findings_in_prompt: 0.0")
    train = [str(evaluator.train.get_turns(i, 1)) for i in range(len(evaluator.train))]
    val = [str(evaluator.data.get_turns(i, 1)) for i in range(len(evaluator.data))]
    assert sum("<findings>" in t for t in train) > 0.8 * len(train)
    assert not any("<findings>" in t for t in val)
    for setting, message in (
        (", findings_in_prompt: 30", "must be in"),
        (", question_sides: true", "sides"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluator_of(corpus, "code_questions", setting)


def test_agreement_is_the_f1_with_the_plan():
    findings = [["cardiomegaly, mild", "pleural effusion, left"], ["normal"], []]
    bonus = planning.agreement_bonus(findings, 0.5, CHEST)
    both = "The heart is enlarged. There is a left pleural effusion."
    assert bonus(0, both) == 0.5
    assert bonus(0, "The heart is enlarged.") == pytest.approx(0.5 * 2 / 3)
    assert bonus(0, "Heart size is normal. The lungs are clear.") < 0.2
    clear = "The heart is normal in size. The lungs are clear. No acute disease."
    assert bonus(1, clear) == 0.5 and bonus(1, both) == 0
    assert bonus(2, both) == 0
    with pytest.raises(ValueError, match="at least 0"):
        planning.Plan(agreement=-0.5)


def test_contradictions_repetitions_and_missing_words_cost_agreement():
    bonus = planning.agreement_bonus([["cardiomegaly"], []], 0.5, CHEST)
    contradiction, flaw = planning.CONTRADICTION, planning.FLAW
    assert bonus(0, "The heart is enlarged. Heart size is normal.") == 0.5 - contradiction
    assert bonus(1, "There is a left effusion. No pleural effusion.") == -contradiction
    assert bonus(1, "There is a left effusion. No right pleural effusion.") == 0
    assert bonus(0, "The heart is enlarged. The are intact.") == 0.5 - flaw
    assert bonus(0, "The heart is enlarged. There is cardiomegaly.") == 0.5 - flaw
    assert bonus(1, "No effusion or pneumothorax. No effusion. No edema.") == -flaw
    assert bonus(1, "There is a left effusion. There is a right effusion.") == 0


def test_findings_are_placed_next_to_the_last_medium():
    turns = qa_turns("<image> <video> Report?", "x")
    sample = PromptFindings(turns, ["Edema"], 0.0, vocabulary=CHEST)
    key = next(k for k in map(str, range(99)) if "findings" in sample(k)[0]["text"])
    marks = [p for p in sample(key)[0]["content"] if not isinstance(p, str)]
    assert [(p.mark, p.caption) for p in marks] == [("<image>", ""), ("<video>", "edema")]
    sample = PromptFindings(turns, ["Edema"], 0.0, "question", vocabulary=CHEST)
    assert sample("1")[0]["text"].startswith("<image> <video> Write the report.")
