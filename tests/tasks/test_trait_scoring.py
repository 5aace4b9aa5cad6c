"""Traits in report generation: sampled reports, scores from stored predictions, tables, page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from xraygpt import score as score_command
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.evaluation import scoring
from xraygpt.evaluation.score_table import as_markdown
from xraygpt.evaluation.trait_table import trait_tables
from xraygpt.experiment import Evaluation, build_evaluator
from xraygpt.metrics.traits import CHANCE
from xraygpt.phantom.echo_reports import SOURCE, synthetic_report
from xraygpt.tasks.base import Prediction
from xraygpt.tasks.report_generation import ReportGeneration
from xraygpt.tasks.report_review import review
from xraygpt.tasks.trait_scoring import TraitSettings, score_traits, trait_row
from xraygpt.vocabulary import get_vocabulary

ECHO = get_vocabulary("echo")
NAMES = [trait.name for trait in ECHO.traits]
RULES = {
    "pacemaker": {"mode": "binary", "section": "x", "label_sources": ["pacing wire", "pacemaker"]},
    "pressure": {"mode": "regression", "range": [0, 99], "label_sources": ["RVSP is <#> mmHg"]},
}
YAML = """
imports: [tests.tasks.echo_writer]
model: {arch: echo_writer, llm: {vocab_size: 300, hidden: 16, layers: 1, heads: 1}, prompt_template: xraygpt}
datasets: {echo: {builder: records, storage: %s, annotations: rows.jsonl, vocabulary: echo}}
run:
  task: {name: report_generation, vocabulary: echo, traits: {samples: 6, echovlm_rules: %s}}
  output_dir: %s
  device: cpu
  shuffles: 1
  page_cases: 4
  controls: [shuffled, most_common]
"""  # noqa: E501


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("echo")
    count = 80
    matrix = np.zeros((count, 1, 16), np.float32)
    matrix[:, 0, 0] = np.arange(count)
    save_file({"studies": matrix}, base / "rows.safetensors")
    rows = []
    for i in range(count):
        media = [{"path": "rows.safetensors", "tensor": "studies", "index": i}]
        turns = [
            {"role": "user", "text": "<image> Report."},
            {"role": "assistant", "text": synthetic_report(i)[0]},
        ]
        split = "train" if i < 10 else "val"
        rows.append({"id": f"s{i}", "study": f"s{i}", "split": split, "images": media,
                     "turns": turns, "source": SOURCE})  # fmt: skip
    (base / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (base / "rules.json").write_text(json.dumps(RULES))
    return base


@pytest.fixture(scope="module")
def evaluated(corpus, tmp_path_factory):
    """The evaluator, after its run, and the result."""
    out = tmp_path_factory.mktemp("out")
    path = out / "eval.yaml"
    path.write_text(YAML % (corpus, corpus / "rules.json", out / "results"))
    evaluator = build_evaluator(load(Evaluation, path))
    return evaluator, evaluator.run()


def values(result: dict, condition: str = "true") -> dict[str, dict]:
    return {r["name"]: r for r in result["scores"] if r["condition"] == condition}


@pytest.mark.slow
def test_a_model_that_reads_its_input_beats_the_controls_and_chance(evaluated):
    _, result = evaluated
    true, shuffled, common = (values(result, c) for c in ("true", "shuffled", "most_common"))
    for name in ("traits_balanced_accuracy", "traits_AUROC", "traits_R2"):
        chance = CHANCE[name.removeprefix("traits_")]
        assert true[name]["low"] > chance + 0.2
        assert shuffled[name]["value"] < true[name]["value"] - 0.2
        assert shuffled[name]["true_minus"]["low"] > 0
    # One report for all studies: each trait is at chance, and there are no probabilities.
    assert common["traits_balanced_accuracy"]["value"] == pytest.approx(0.5)
    assert "traits_AUROC" not in common
    assert "AUROC of traits" not in result["left_out"]
    assert result["verdict"]["outcome"] == "reads the image"
    assert result["verdict"]["score"] == "traits_balanced_accuracy"
    areas = {n: r["value"] for n, r in true.items() if n.startswith("trait/AUROC/")}
    accuracies = [true[n.replace("AUROC", "balanced_accuracy")]["value"] for n in areas]
    assert len(areas) >= 10 and list(areas.values()) != pytest.approx(accuracies)
    assert true["echovlm/pacemaker"]["value"] > 0.7 and true["echovlm_core"]["n"] == 70


@pytest.mark.slow
def test_tables_have_the_traits_in_order_with_chance(evaluated):
    evaluator, result = evaluated
    main, details, echovlm = trait_tables(result["scores"])
    assert list(dict.fromkeys(row[0] for row in main.rows)) == [*NAMES, "mean"]
    left_out = [row[0] for row in main.rows if row[1] == "left out"]
    assert left_out and {f"trait/{name}" for name in left_out} <= set(result["left_out"])
    assert len(left_out) < 10
    assert [row[0] for row in details.rows] == NAMES
    column = main.header.index("chance")
    assert {row[column] for row in main.rows if row[1] != "left out"} == {"0.5", "0"}
    positive = {row[0]: row[-1] for row in main.rows}
    assert positive["mitral_regurgitation"] == str(
        values(result)["trait/sensitivity/mitral_regurgitation"]["n"]
    )
    assert positive["ejection_fraction"] == ""
    assert [row[0] for row in echovlm.rows] == ["pacemaker", "pressure", "average"]
    for table in (main, details, echovlm):
        assert all(len(row) == len(table.header) for row in table.rows)
    text = (evaluator.folder / "scores.md").read_text()
    assert text.count("| trait/") == 0 and "| mean | R2 | 0 | " in text
    page = (evaluator.folder / "report.html").read_text()
    assert "<h2>Traits</h2>" in page and "echovlm-compatible" in page


@pytest.mark.slow
def test_scores_come_from_stored_predictions_alone(evaluated, monkeypatch, capsys):
    evaluator, result = evaluated
    lines = (evaluator.folder / "predictions_true.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(len(row["payload"]["trait_samples"]) == 6 for row in rows)
    before = {(r["name"], r["condition"]): r for r in result["scores"]}
    monkeypatch.setattr("xraygpt.experiment.build_model", None)
    monkeypatch.setattr("sys.argv", ["score", str(evaluator.folder)])
    score_command.main()
    assert "| mean | AUROC | 0.5 | " in capsys.readouterr().out
    again = json.loads((evaluator.folder / "scores.json").read_text())
    assert len(again["scores"]) == len(before)
    for row in again["scores"]:
        np.testing.assert_equal(row, before[row["name"], row["condition"]])


@pytest.mark.slow
def test_changing_a_number_in_a_stored_report_changes_the_score(evaluated, tmp_path):
    evaluator, result = evaluated
    task = scoring.build_task(evaluator.identity["task"])
    path = evaluator.folder / "predictions_true.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    predictions = [Prediction.from_row(row, evaluator.folder) for row in rows]
    index = next(i for i, p in enumerate(predictions) if "60 %" in p.prediction)
    changed = predictions[index].prediction.replace("60 %", "25 %")
    predictions[index] = Prediction.from_row({**rows[index], "prediction": changed}, tmp_path)
    after = {s.name: s.value for s in task.score(predictions)}
    before = {name: row["value"] for name, row in values(result).items()}
    name = "trait/MAE/ejection_fraction"
    assert after[name] != before[name] and after["traits_R2"] != before["traits_R2"]


def predictions_of(texts: list[str], references: list[str], **payload) -> list[Prediction]:
    pairs = enumerate(zip(texts, references, strict=True))
    return [Prediction(f"{i}", f"{i}", "", a, b, 0, payload=payload) for i, (a, b) in pairs]


def test_missing_or_wrong_rules_leave_the_average_out(tmp_path):
    predictions = predictions_of(["LVEF 50 %."] * 2, ["LVEF 50 %.", "LVEF 60 %."])
    settings = TraitSettings(echovlm_rules=tmp_path / "nowhere.json")
    scores, left_out = score_traits(predictions, settings, ECHO)
    assert "nowhere.json" in left_out["echovlm_core"]
    assert not [s for s in scores if s.name.startswith("echovlm")]
    assert any(s.name == "trait/MAE/ejection_fraction" for s in scores)


def test_probabilities_of_a_classifier_are_used_for_the_traits_that_have_them():
    texts = ["Severe mitral regurgitation.", "No mitral regurgitation."] * 2
    predictions = [
        Prediction(f"{i}", f"{i}", "", text, text, 0,
                   payload={"probabilities": {"mitral_regurgitation": 0.9 - 0.2 * i}})
        for i, text in enumerate(texts)
    ]  # fmt: skip
    scores, left_out = score_traits(predictions, TraitSettings(), ECHO)
    areas = {s.name: s for s in scores if s.name.startswith("trait/AUROC/")}
    assert list(areas) == ["trait/AUROC/mitral_regurgitation"]
    assert areas["trait/AUROC/mitral_regurgitation"].value == 0.75
    assert "probabilities of the model" in areas["trait/AUROC/mitral_regurgitation"].signature
    assert "AUROC of traits" not in left_out


def test_a_vocabulary_without_traits_has_no_such_scores():
    chest = get_vocabulary("chest_xray")
    predictions = predictions_of(["Clear lungs."], ["Clear lungs."])
    assert score_traits(predictions, TraitSettings(), chest) == ([], {})
    with pytest.raises(ValueError, match=r"traits\.samples: needs a vocabulary with traits"):
        ReportGeneration.Config(traits=TraitSettings(samples=4))
    with pytest.raises(ValueError, match="must be 0 or at least 2"):
        TraitSettings(samples=1)


def test_invalid_rules_stop_an_evaluation_before_it_decodes(tmp_path):
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"a": {"mode": "regression", "label_sources": ["(<#>"]}}))
    task = ReportGeneration(ReportGeneration.Config(traits=TraitSettings(echovlm_rules=path)))
    with pytest.raises(InputError, match="not a valid regular expression"):
        task.fit(list)


def test_positive_traits_and_numbers_of_a_sample_are_stored():
    text = "LVEF 55-60 %. Mild mitral regurgitation. Severe aortic stenosis. Possible TAVR."
    row = trait_row(ECHO.read_traits(text), ECHO.traits)
    assert row == {"ejection_fraction": 57.5, "aortic_stenosis": 1.0, "tavr": 1.0}


def test_contradicting_sentences_of_a_report_are_marked():
    text = "LVEF is 65 %. The valve is thickened. Systolic function is severely reduced."
    remarks = review(text, [], ECHO)
    assert [text[r["start"] : r["end"]] for r in remarks] == [
        "LVEF is 65 %.", "Systolic function is severely reduced."
    ]  # fmt: skip
    assert "contradicts “LVEF is 65 %.”" in remarks[1]["text"]


def test_left_out_traits_are_listed():
    row = {"name": "ROUGE-L", "value": 1, "low": 1, "high": 1, "n": 1, "condition": "true"}
    result = {"split": "val", "n": 1, "losses": [], "scores": [row], "left_out": {"trait/a": "why"}}
    assert "- trait/a: why" in as_markdown(result) and "Traits" not in as_markdown(result)


def test_another_vocabulary_than_that_of_the_corpus_is_warned_of(corpus, tmp_path, caplog):
    path = tmp_path / "eval.yaml"
    path.write_text(YAML % (corpus, corpus / "rules.json", tmp_path / "out"))
    options = ["run.task.vocabulary=chest_xray", "run.task.traits.samples=0"]
    build_evaluator(load(Evaluation, path, options))
    assert "set run.task.vocabulary: echo" in caplog.text
    caplog.clear()
    build_evaluator(load(Evaluation, path))
    assert "run.task.vocabulary" not in caplog.text
