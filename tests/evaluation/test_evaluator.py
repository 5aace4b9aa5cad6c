"""Evaluation: controls show whether a model reads images, and interrupted runs continue."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import ANSWERS, REPO, toy_yaml
from tests.runners.test_train_loop import MODEL
from xraygpt import compare as compare_command
from xraygpt import probe, score
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.datasets.base import Record, StudyDataset, reference_text
from xraygpt.datasets.controls import derangement, most_common_row
from xraygpt.evaluation import prediction_file, result_page, score_table, scoring
from xraygpt.evaluation.case_selection import BEST, RANDOM, WORST, select_cases
from xraygpt.evaluation.compare import compare
from xraygpt.evaluation.evaluator import Evaluator
from xraygpt.experiment import Evaluation, build_evaluator
from xraygpt.media.base import MediaRef
from xraygpt.prompting.renderer import Turn
from xraygpt.tasks.base import CONTROLS

RUN = """
  task: {name: report_generation, generate: {max_new_tokens: 16}}
  output_dir: %s
  device: cpu
"""


def evaluator_of(base: Path, out: Path, *options: str, ckpt: bool = True) -> Evaluator:
    weights = f"  ckpt: {base / 'out'}\n" if ckpt else ""
    path = out / "eval.yaml"
    path.write_text(toy_yaml(base / "corpus", RUN % (out / "results"), MODEL + weights))
    return build_evaluator(load(Evaluation, path, options))


def value(result: dict, name: str, condition: str = "true") -> dict:
    return next(r for r in result["scores"] if r["name"] == name and r["condition"] == condition)


def loss(result: dict, name: str) -> dict:
    return next(r for r in result["losses"] if r["name"] == name)


@pytest.mark.slow
def test_a_model_that_reads_images_beats_every_control(reading, tmp_path):
    result = evaluator_of(reading, tmp_path).run()
    gap = loss(result, "loss_shuffled_minus_true")
    assert gap["low"] > 0.05 and gap["n"] == 12
    assert loss(result, "loss_blank_minus_true")["low"] > 0
    true = value(result, "ROUGE-L")["value"]
    assert true > 0.9
    assert value(result, "COCO ROUGE-L")["value"] > 0.9
    assert "METEOR" in result["left_out"]
    for control in ("shuffled", "blank", "most_common"):
        row = value(result, "ROUGE-L", control)
        assert row["true_minus"]["value"] == pytest.approx(true - row["value"])
        assert row["true_minus"]["low"] > 0.2
    assert value(result, "ROUGE-L", "shuffled")["seeds"] == 5


@pytest.mark.slow
def test_the_nearest_training_image_is_found_by_its_features(reading, tmp_path):
    """Pooled random features separate images with a bright square from those without."""
    evaluator = evaluator_of(reading, tmp_path)
    evaluator.run()
    rows = (evaluator.folder / "predictions_nearest.jsonl").read_text().splitlines()
    answers = [json.loads(r) for r in rows]
    normal = [r for r in answers if r["reference"] == ANSWERS["none"]]
    assert len(answers) == 12 and len(normal) == 4
    assert all(r["prediction"] == r["reference"] for r in normal)
    assert {r["prediction"] for r in answers} > {ANSWERS["none"]}


@pytest.mark.slow
def test_without_frozen_features_the_nearest_control_is_left_out(reading, tmp_path):
    result = evaluator_of(reading, tmp_path, "run.feature_cache=false").run()
    assert "features are not cached" in result["left_out"]["control nearest"]
    assert not [r for r in result["scores"] if r["condition"] == "nearest"]


@pytest.mark.slow
def test_scoring_again_only_needs_the_predictions(reading, tmp_path, monkeypatch):
    evaluator = evaluator_of(reading, tmp_path, "run.task.protocol=r2gen")
    result = evaluator.run()
    assert "words known" in value(result, "COCO BLEU-4")["signature"]
    before = (evaluator.folder / "scores.json").read_text()
    (evaluator.folder / "scores.json").unlink()
    monkeypatch.setattr("xraygpt.experiment.build_model", None)  # no model is built
    again = scoring.score_folder(evaluator.folder)
    assert again["scores"] == json.loads(before)["scores"] and again["n"] == 12
    path = evaluator.folder / "predictions_blank.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))  # interrupted
    assert scoring.score_folder(evaluator.folder)["n"] == 9
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))  # just started
    rest = scoring.score_folder(evaluator.folder)
    assert rest["n"] == 12 and not [r for r in rest["scores"] if r["condition"] == "blank"]
    (evaluator.folder / scoring.FITTED_STATE_FILE).unlink()
    with pytest.raises(InputError, match="repeat the evaluate"):
        scoring.score_folder(evaluator.folder)


@pytest.mark.slow
def test_a_score_that_fails_in_one_condition_is_left_out_of_all(reading, tmp_path, monkeypatch):
    evaluator = evaluator_of(reading, tmp_path, "run.shuffles=1")
    original, calls = evaluator.task.score, []

    def flaky(predictions):
        calls.append(predictions)
        return original(predictions)[: 3 if len(calls) == 2 else None]

    monkeypatch.setattr(evaluator.task, "score", flaky)
    result = evaluator.run()
    assert {r["name"] for r in result["scores"]} == {"BLEU-1", "BLEU-2", "BLEU-3"}
    assert "could not be computed for every condition" in result["left_out"]["ROUGE-L"]


@pytest.mark.slow
def test_scoring_again_does_not_use_the_judge(reading, tmp_path):
    options = [
        "run.task.clinical.judge_url=http://127.0.0.1:9/v1",
        "run.task.clinical.judge_model=m",
    ]
    evaluator = evaluator_of(reading, tmp_path, *options)
    evaluator.task.go_offline()
    evaluator.run()
    again = scoring.score_folder(evaluator.folder)
    assert "never contacts one" in again["left_out"]["GREEN"]


@pytest.mark.slow
def test_the_commands_print_tables(reading, tmp_path, monkeypatch, capsys):
    evaluator = evaluator_of(reading, tmp_path, "run.shuffles=1")
    evaluator.run()
    files = [str(evaluator.folder / f"predictions_{name}.jsonl") for name in ("true", "blank")]
    monkeypatch.setattr("sys.argv", ["score", str(evaluator.folder)])
    score.main()
    assert "| COCO ROUGE-L | " in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["x", *files])
    compare_command.main()
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("| ROUGE-L"))
    assert line.endswith("| 12 |") and float(line.split("|")[5]) < 0.05
    yaml = tmp_path / "eval.yaml"
    monkeypatch.setattr("sys.argv", ["probe", "--cfg-path", str(yaml), "--min-positives", "4"])
    probe.main()
    out = capsys.readouterr().out
    assert "| no_finding | 4 |" in out and "Research use only" in out


def test_scoring_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"no predictions_true\.jsonl"):
        scoring.score_folder(tmp_path)
    (tmp_path / "predictions_true.jsonl").write_text('{"signature": "x"}\n')
    with pytest.raises(InputError, match=r"no settings\.json that says which task"):
        scoring.score_folder(tmp_path)


@pytest.mark.slow
def test_an_untrained_model_does_not_beat_the_controls(reading, tmp_path):
    result = evaluator_of(reading, tmp_path, ckpt=False).run()
    gap = loss(result, "loss_shuffled_minus_true")
    assert gap["low"] < 0.02


@pytest.mark.slow
def test_predictions_are_streamed_and_reused(reading, tmp_path, monkeypatch):
    first = evaluator_of(reading, tmp_path, "run.batch_size_eval=4")
    calls = 0
    original = first.task.predict

    def dies(model, batch):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(model, batch)

    monkeypatch.setattr(first.task, "predict", dies)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    path = first.folder / "predictions_true.jsonl"
    assert len(path.read_text().splitlines()) == 8
    with path.open("a") as file:
        file.write('{"sample_id": "torn')  # as after a kill
    second = evaluator_of(reading, tmp_path, "run.batch_size_eval=4")
    answered = []
    predict = second.task.predict
    monkeypatch.setattr(
        second.task, "predict", lambda m, b: answered.extend(b["sample_id"]) or predict(m, b)
    )
    result = second.run()
    assert second.folder == first.folder
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    settings = json.loads((path.parent / "settings.json").read_text())
    assert settings["signature"] == result["signature"]
    assert len({r["sample_id"] for r in rows}) == 12
    done_before = {r["sample_id"] for r in rows[:8]}
    assert not done_before & set(answered[:4])
    assert {r["reference"] for r in rows} <= set(ANSWERS.values())


@pytest.mark.slow
def test_shards_give_the_results_of_a_single_run(reading, tmp_path, monkeypatch):
    """Shards answer each image and question once; the last command decodes nothing."""
    (tmp_path / "single").mkdir()
    (tmp_path / "sharded").mkdir()
    single = evaluator_of(reading, tmp_path / "single", "run.shuffles=2")
    expected = single.run()
    answered = []
    for number in (1, 2, 3):
        shard = evaluator_of(reading, tmp_path / "sharded", "run.shuffles=2")
        predict = shard.task.predict
        monkeypatch.setattr(
            shard.task,
            "predict",
            lambda m, b, predict=predict: answered.extend(b["sample_id"]) or predict(m, b),
        )
        assert 4 <= shard.answer_shard(number, 3) <= 5
    assert len(answered) == 12 + 1  # the images of all studies, and one black image
    last = evaluator_of(reading, tmp_path / "sharded", "run.shuffles=2")
    monkeypatch.setattr(last.task, "predict", lambda *_: pytest.fail("decoded again"))
    assert last.folder.name == single.folder.name
    result = last.run()
    assert result["scores"] == expected["scores"] and result["losses"] == expected["losses"]
    for path in single.folder.glob("predictions_*.jsonl"):
        rows = [prediction_file.read(e.folder / path.name) for e in (single, last)]
        assert rows[0] == rows[1], path.name
    scores = [scoring.score_folder(e.folder)["scores"] for e in (single, last)]
    assert scores[0] == scores[1]


def test_a_task_without_answers_has_no_shards(reading, tmp_path):
    evaluator = evaluator_of(reading, tmp_path)
    evaluator.task.generates = False
    with pytest.raises(InputError, match="omit --shard"):
        evaluator.answer_shard(1, 2)


def test_another_checkpoint_or_split_is_another_folder(reading, tmp_path):
    evaluators = [
        evaluator_of(reading, tmp_path),
        evaluator_of(reading, tmp_path, "run.split=train"),
        evaluator_of(reading, tmp_path, ckpt=False),
    ]
    assert len({e.folder for e in evaluators}) == 3


def test_an_empty_split_is_an_error(reading, tmp_path):
    with pytest.raises(InputError, match="the split 'test' of this corpus has no samples"):
        evaluator_of(reading, tmp_path, "run.split=test")


def records(texts: list[str], studies: list[str]) -> list[Record]:
    return [
        Record(f"s{i}", study, (MediaRef(Path(f"{i}.png")),), (Turn(role="assistant", text=text),))
        for i, (text, study) in enumerate(zip(texts, studies, strict=True))
    ]


def test_derangement_by_study_and_by_text():
    texts = ["normal"] * 20 + [f"finding {i}" for i in range(40)]
    studies = [f"study{i // 2}" for i in range(60)]
    rows = records(texts, studies)
    orders = [derangement(rows, texts, seed) for seed in range(5)]
    for order in orders:
        assert sorted(order) == list(range(60))
        for i, j in enumerate(order):
            assert studies[i] != studies[j]
            assert texts[i] != texts[j]
    assert len({tuple(o) for o in orders}) == 5


def test_shuffled_images_match_earlier_results():
    """A seed must always give the same images, or published control scores change."""
    texts = [str(i % 5) for i in range(12)]
    rows = records(texts, [f"study{i // 2}" for i in range(12)])
    assert derangement(rows[:8], texts, 3) == [3, 4, 0, 7, 6, 2, 5, 1]
    pairs = [replace(row, media=row.media * 2) for row in rows[8:]]
    order = derangement([*rows[:8], *pairs], texts, 3)
    assert order == [3, 4, 0, 7, 6, 2, 5, 1, 10, 11, 8, 9]


def test_most_common_answer():
    texts = ["b", "a", "b", "a", "c"]
    data = StudyDataset(records(texts, texts), lambda ref, rng_key: None)
    assert reference_text(data.get_turns(most_common_row(data))) == "a"


@pytest.mark.slow
def test_the_page_shows_cases_scores_and_curves_and_fetches_nothing(reading, tmp_path):
    evaluator = evaluator_of(reading, tmp_path, "run.page_cases=5")
    evaluator.run()
    page = (evaluator.folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<article") == 5 == page.count("data:image/jpeg;base64,")
    assert "Research use only" in page and "5 of 12 cases: the best, the worst" in page
    assert page.count("<polyline") == 1  # the training loss; there is no val loss
    assert "✓ no_finding" in page  # "Clear lungs." in both texts
    outside = re.findall(r"(?:src|href)=\"(?!data:)[^\"]+|https?://[^\s\"<]+", page)
    assert not outside
    assert len(page) < 400_000


def test_best_and_worst_cases_are_always_on_the_page():
    rng = random.Random(0)
    agreed, wrong = ([rng.randint(0, 9) for _ in range(300)] for _ in range(2))
    agreed[7], wrong[7], wrong[123] = 30, 0, 50
    reasons = select_cases(agreed, wrong, 40, seed=0)
    assert list(reasons) == sorted(reasons) and len(reasons) == 40
    counts = Counter(reasons.values())
    assert counts == {BEST: 4, WORST: 4, RANDOM: 32}
    assert reasons[7] == BEST and reasons[123] == WORST
    others = [wrong[i] for i in range(300) if reasons.get(i) not in (BEST, WORST)]
    for i, reason in reasons.items():
        assert reason != WORST or wrong[i] >= max(others)
        assert reason != BEST or wrong[i] <= min(others)
    sampled = [i for i in reasons if reasons[i] == RANDOM]
    assert sampled != [i for i in select_cases(agreed, wrong, 40, 1) if i in sampled]
    assert set(select_cases([1, 2], [0, 0], 5, 0).values()) == {""}


def test_text_on_the_page_is_escaped(tmp_path):
    markup = "<script>alert(1)</script>"
    case = result_page.Case(
        sample_id=markup,
        images=(),
        prompt=markup,
        prediction=markup,
        reference=markup,
        missed=[markup],
    )
    path = tmp_path / "page.html"
    result_page.write_page(path, title="t", subtitle="s", cases=[case], facts={"x": markup})
    assert markup not in path.read_text()


def test_tables_have_the_columns_of_published_metrics():
    def row(name: str, condition: str, value: float) -> dict:
        facts = {"name": name, "condition": condition, "value": value, "low": 0.0, "high": 1.0}
        return {**facts, "n": 9, "true_minus": {"value": 0.1, "low": 0.0, "high": 0.2}}

    names = ("COCO BLEU-4", "COCO BLEU-1", "BLEU-2", "distinct")
    scores = [row(n, c, 0.25 if c == "true" else 0.125) for n in names for c in ("true", "blank")]
    result = {"split": "val", "n": 9, "losses": [], "scores": scores}
    lines = score_table.as_markdown(result).splitlines()
    start = lines.index("Metrics of the ReXrank leaderboard:")
    columns = [c.strip() for c in lines[start + 2].strip("| ").split("|")]
    cells = [c.strip() for c in lines[start + 4].strip("| ").split("|")]
    row_cells = dict(zip(columns, cells, strict=True))
    assert row_cells["condition"] == "true" and row_cells["BLEU-2"] == "0.250"
    assert row_cells["GREEN"] == "–"
    assert "RaTEScore" in row_cells and "SembScore" in row_cells
    start = lines.index("Metrics of papers on IU X-ray:")
    assert "METEOR" in lines[start + 2] and lines[start + 5].startswith("| blank | 0.125 |")


def test_every_control_has_a_colour_on_the_page():
    page = (REPO / "xraygpt" / "data" / "result_page.html").read_text()
    for condition in ("true", *CONTROLS):
        assert page.count(f"--{condition}:") == 2  # on light and on dark


@pytest.mark.slow
def test_a_task_without_answers_is_evaluated_by_its_loss(reading, tmp_path):
    result = evaluator_of(reading, tmp_path, "run.task={name: image_text_pretrain}").run()
    assert result["scores"] == [] and loss(result, "loss_shuffled_minus_true")["low"] > 0.05
    page = (next((tmp_path / "results").iterdir()) / "report.html").read_text()
    assert "loss_shuffled_minus_true" in page or "nats" in page


def test_warnings_are_stored_with_every_prediction_and_shown(reading, tmp_path):
    evaluator = evaluator_of(reading, tmp_path, "run.shuffles=1")
    result = evaluator.run()
    assert result["input_check"].startswith("12 of 12 images may not be what the model expects")
    for condition, expected in (("true", 2), ("shuffled-0", 2), ("blank", 0)):
        rows = prediction_file.read_rows(evaluator.folder / f"predictions_{condition}.jsonl")
        assert {len(row["warnings"]) for row in rows} == {expected}, condition
    page = (evaluator.folder / "report.html").read_text()
    assert page.count('class="warning">It has only 32 × 32 pixels.') == 12
    assert "12 of 12 images may not" in page
    stored = json.loads((evaluator.folder / "input_check.json").read_text())
    assert len(stored) == 12
    with pytest.raises(
        InputError, match=r"--strict: 12 of 12 images .*\(s3\.png, s7\.png, s11\.png, …\)"
    ):
        strict = evaluator_of(reading, tmp_path, "run.shuffles=1")
        strict.strict = True
        strict.run()
    unchecked = evaluator_of(reading, tmp_path, "run.shuffles=1", "datasets.toy.input_check=false")
    assert unchecked.run()["input_check"] == ""


def test_old_folders_with_a_heading_are_scored_and_compared(reading, tmp_path):
    evaluator = evaluator_of(reading, tmp_path, "run.shuffles=1")
    expected = evaluator.run()["scores"]
    settings = evaluator.folder / "settings.json"
    heading = json.dumps(json.loads(settings.read_text()))
    settings.unlink()
    for file in evaluator.folder.glob("predictions_*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            del row["warnings"]
        file.write_text("\n".join([heading, *map(json.dumps, rows)]) + "\n")
    assert scoring.score_folder(evaluator.folder)["scores"] == expected
    assert compare(evaluator.folder, evaluator.folder, permutations=10)
    assert evaluator_of(reading, tmp_path, "run.shuffles=1").run()["scores"] == expected  # resumed


def test_a_folder_of_other_settings_is_not_overwritten(tmp_path):
    prediction_file.open_folder(tmp_path / "a", {"question": 1})
    prediction_file.open_folder(tmp_path / "a", {"question": 1})
    with pytest.raises(InputError, match="made with other settings"):
        prediction_file.open_folder(tmp_path / "a", {"question": 2})
    assert json.loads((tmp_path / "a/settings.json").read_text())["identity"] == {"question": 1}
