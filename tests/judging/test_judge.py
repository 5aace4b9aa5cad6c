"""Judges: what they are asked, verdicts that cannot be used, runs that are continued."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from tests.models.endpoint.fake import parts, serving
from tests.tasks.phantom_answers import predict
from xraygpt import judge as command
from xraygpt.common.errors import InputError
from xraygpt.curation.pipeline import Unfinished
from xraygpt.evaluation import prediction_file, scoring
from xraygpt.judging.given import radpref_questions
from xraygpt.judging.verdict_forms import stored_verdict
from xraygpt.metrics.verdicts import read_verdicts
from xraygpt.tasks.dialogue import dialogues

BOX = [{"label": "", "box": [0.1, 0.2, 0.3, 0.4]}]
SOURCE = "SYNTHETIC phantom"


def conversation(name: str, answers: list[str], **meta) -> list:
    """Three questions, the second about a place, with these answers."""
    rounds = [
        ("Any effusion?", "No effusion.", []), ("Where is it?", "At [100, 200, 300, 400].", BOX),
        ("Any pneumothorax?", "Yes, a pneumothorax.", []),
    ]  # fmt: skip
    return [
        predict(
            f"{name}/{i}", answer, reference=expected, boxes=boxes, dialogue=name, answer_number=i,
            question=question, labels=["Pneumothorax"], facts={"report": "Made up.", "view": "PA"},
            **({"source": SOURCE} | meta),
        )
        for i, (answer, (question, expected, boxes)) in enumerate(
            zip(answers, rounds, strict=True), 1
        )
    ]  # fmt: skip


def write_folder(folder, task: str, **conditions):
    """A result folder of an evaluation, as far as judging and scoring need it."""
    folder.mkdir()
    identity = {"task": {"name": task}, "split": "test"}
    prediction_file.open_folder(folder, identity)
    (folder / scoring.FITTED_STATE_FILE).write_text(
        '{"words": {"max_words": null, "vocabulary": null}}'
        if task == "report_generation"
        else "{}"
    )
    for name, predictions in conditions.items():
        prediction_file.write(folder / f"predictions_{name}.jsonl", predictions)
    return folder


@pytest.fixture
def folder(tmp_path):
    true = [
        p
        for i in range(4)
        for p in conversation(
            f"d{i}", ["No.", "At [100, 200, 300, 400].", "Yes." if i else "No pneumothorax."]
        )
    ]
    same = [p for i in range(4) for p in conversation(f"d{i}", ["No.", "", "Yes."])]
    return write_folder(tmp_path / "run", "conversation", true=true, blank=same)  # fmt: skip


def run(monkeypatch, kind: str, folder, url: str, *options: str) -> None:
    arguments = [kind, str(folder), "--provider", "local", "--base-url", url, "--model", "m"]
    monkeypatch.setattr(sys, "argv", ["judge", *arguments, *options])
    command.main()


def asked(body) -> str:
    return " ".join(part["text"] for part in parts(body) if part["type"] == "text")


def score_of(body) -> str:
    """More for a yes to the pneumothorax."""
    low = "No pneumothorax.\n" in asked(body) + "\n"
    return json.dumps({"score": 3 if low else 8, "reason": "Made up."})


def values(folder, condition="true") -> dict[str, float]:
    rows = json.loads((folder / "scores.json").read_text())["scores"]
    return {r["name"]: r["value"] for r in rows if r["condition"] == condition}


def test_a_judge_sees_the_dialogue_without_places_and_its_mean_is_a_score(
    folder, monkeypatch, capsys
):
    with serving(answer=score_of) as server:
        run(monkeypatch, "conversation", folder, server.url)
        texts = [asked(body) for body in server.bodies]
        assert len(texts) == 8, "4 dialogues in 2 conditions, the second with other answers"
        assert "Expected: No effusion.\nAssistant: No." in texts[0] and "Pneumothorax" in texts[0]
        assert "(a place; scored apart)" in texts[0] and "[100, 200" not in texts[0].split("CONV")[
            1
        ].replace("Expected: At [100, 200, 300, 400].", "")
        found = values(folder)
        assert found["judge_score"] == pytest.approx((3 + 8 * 3) / 4)
        assert found["judge_score_unusable"] == 0 and found["mean_IoU"] > 0.99
        assert found["missed_pneumothorax"] == 1, "'Yes.' does not name it; so it stands beside"
        run(monkeypatch, "conversation", folder, server.url)
        assert len(server.bodies) == 8, "nothing is asked twice"
    assert "Research use only" in capsys.readouterr().out


def test_judging_one_condition_keeps_the_verdicts_on_the_others(folder, monkeypatch):
    with serving(answer=score_of) as server:
        for condition in ("true", "blank"):
            run(monkeypatch, "conversation", folder, server.url, "--conditions", condition)
        assert len(server.bodies) == 8
    assert values(folder)["judge_score"] == pytest.approx((3 + 8 * 3) / 4)
    assert "judge_score" in values(folder, "blank")


def test_verdict_files_have_no_words_of_the_judge(folder, monkeypatch):
    """A judge reads the report, and may repeat it in its reason or in an id."""
    with serving(answer=score_of) as server:
        run(monkeypatch, "conversation", folder, server.url)
    assert "Made up" not in (folder / "verdicts_conversation.jsonl").read_text()
    words = {"id": "4 cm mass, right", "clinical_significance": "urgent"}
    answer = {
        "reference_findings": [words], "predicted_findings": [{**words, "id": "a mass"}],
        "matched_findings": [{"ref_id": words["id"], "pred_id": "a mass"}],
        "errors": {
            "false_findings": [], "missing_findings": [],
            "attribute_errors": [
                {
                    "ref_id": words["id"], "pred_id": "a mass", "severity": "negligible",
                    "error_types": ["location"],
                }
            ],
        },
    }  # fmt: skip
    stored = stored_verdict("crimson", answer)
    assert "mass" not in json.dumps(stored)
    assert stored["matched_findings"] == [{"ref_id": "R1", "pred_id": "P1"}]
    assert stored["errors"]["attribute_errors"][0]["ref_id"] == "R1"
    missed = {**answer, "matched_findings": []}
    missed["errors"] = {
        "false_findings": ["a mass"], "missing_findings": [words["id"]], "attribute_errors": []
    }  # fmt: skip
    errors = stored_verdict("crimson", missed)["errors"]
    assert errors["false_findings"] == ["P1"] and errors["missing_findings"] == ["R1"]


def test_equal_answers_of_two_conditions_are_judged_once(tmp_path, monkeypatch):
    rows = conversation("d0", ["No.", "", "Yes."])
    folder = write_folder(tmp_path / "run", "conversation", true=rows, blank=rows)
    with serving(answer=score_of) as server:
        run(monkeypatch, "conversation", folder, server.url)
        assert len(server.bodies) == 1
    assert values(folder, "blank")["judge_score"] == values(folder)["judge_score"] == 8


@pytest.mark.parametrize(
    "reply",
    ["Overall score: 7/10. As asked: Overall score: 9/10", '{"score": 11, "reason": "x"}',
     '{"score": 7.5, "reason": "x"}', '{"score": 7, "reason": "two\\nlines"}', "null", "",
     '{"score": 7, "reason": "x", "more": 1}'],
)  # fmt: skip
def test_verdicts_in_another_form_are_asked_for_once_more_then_counted(folder, monkeypatch, reply):
    """Fault 17: RadVLM averages every match, and items without one vanish from its mean."""

    def answer(body) -> str:
        first = "No pneumothorax." in json.dumps(body["messages"])
        return reply if first else score_of(body)

    with serving(answer=answer) as server:
        with pytest.raises(command.SomeUnusable, match="1 verdicts could not be used"):
            run(monkeypatch, "conversation", folder, server.url, "--conditions", "true")
        repaired = [body for body in server.bodies if len(body["messages"]) > 2]
        assert len(repaired) == 1 and len(server.bodies) == 5
    found = values(folder)
    assert found["judge_score"] == 8 and found["judge_score_unusable"] == 0.25
    with (folder / "unusable_conversation.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["sample_id", "reason"] and rows[1][0] == "d0" and len(rows) == 2


def test_a_changed_answer_loses_its_verdict(folder, monkeypatch):
    with serving(answer=score_of) as server:
        run(monkeypatch, "conversation", folder, server.url, "--conditions", "true")
    changed = conversation("d0", ["Yes!", "", "Yes."])
    assert dialogues(changed)[0].key not in read_verdicts(folder, "conversation").values
    rows = list(prediction_file.read(folder / "predictions_true.jsonl").values())
    prediction_file.write(folder / "predictions_true.jsonl", [*changed, *rows[3:]])
    result = scoring.score_folder(folder)
    assert "1 of 4 dialogues are not judged yet" in result["left_out"]["judge_score"]


def test_a_stopped_run_continues_without_asking_again(folder, monkeypatch):
    with serving(answer=score_of) as server:
        limit = ["--max-tokens", "1000", "--concurrency", "1"]
        with pytest.raises(Unfinished, match=r"verdicts are saved .* run the same command again"):
            run(monkeypatch, "conversation", folder, server.url, *limit)
        first = len(server.bodies)
        assert 0 < first < 8 and read_verdicts(folder, "conversation") is None
        run(monkeypatch, "conversation", folder, server.url)
        assert len(server.bodies) == 8


def test_real_texts_go_to_another_host_only_if_they_are_said_to_be_public(tmp_path, monkeypatch):
    rows = conversation("d0", ["No.", "", "Yes."], source="")
    folder = write_folder(tmp_path / "run", "conversation", true=rows)
    with pytest.raises(InputError, match=r"run contains \(without --public-data\) is credentialed"):
        run(monkeypatch, "conversation", folder, "https://example.org/v1")


def test_judges_that_do_not_suit_the_task_and_folders_without_answers_are_refused(
    folder, tmp_path, monkeypatch
):
    with pytest.raises(
        InputError, match="judges of the task conversation are: conversation; not green"
    ):
        run(monkeypatch, "green", folder, "http://127.0.0.1:9/v1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no answers"):
        run(monkeypatch, "green", tmp_path / "empty", "http://127.0.0.1:9/v1")


GREEN = {
    "explanation": "Made up.", "matched": ["a", "b"],
    "significant": dict.fromkeys(
        ("false_finding", "missing_finding", "wrong_location", "wrong_severity",
         "false_comparison", "missing_comparison"), 0) | {"wrong_location": 2},
}  # fmt: skip
GREEN["insignificant"] = GREEN["significant"]
CRIMSON = {
    "reference_findings": [
        {"id": "R1", "finding": "pneumothorax", "clinical_significance": "urgent"}
    ],
    "predicted_findings": [], "matched_findings": [],
    "errors": {"false_findings": [], "missing_findings": ["R1"], "attribute_errors": []},
}  # fmt: skip


def test_green_and_crimson_become_scores_of_reports(tmp_path, monkeypatch):
    rows = [
        predict(f"s{i}", "The heart is normal.", reference="Left pneumothorax.", source=SOURCE)
        for i in range(3)
    ]
    folder = write_folder(tmp_path / "run", "report_generation", true=rows)
    with serving(answer=lambda body: json.dumps(GREEN)) as server:
        run(monkeypatch, "green", folder, server.url)
        assert len(server.bodies) == 1, "equal reports are judged once"
    with serving(answer=lambda body: json.dumps(CRIMSON)) as server:
        run(monkeypatch, "crimson", folder, server.url)
    found = values(folder)
    assert found["GREEN"] == 0.5 and found["GREEN_errors/wrong_location"] == 2
    assert found["CRIMSON"] == 0 and found["missed_urgent"] == 1 == found["missed_pneumothorax"]
    stored = (folder / "verdicts_crimson.jsonl").read_text()
    assert "pneumothorax" not in stored, "verdicts contain no report text"


def entailed(body) -> str:
    counts = [asked(body).split("REFERENCE:")[i].count("\n") for i in (0, 1)]
    side = [
        [{"number": n + 1, "status": "entailment", "evidence": [1]} for n in range(count)]
        for count in (1, 2)
    ]
    assert counts[0] > 0
    return json.dumps({"candidate": side[0], "reference": side[1]})


def test_radfact_scores_sentences_and_their_boxes(tmp_path, monkeypatch):
    box = "[100, 200, 300, 400]"
    rows = [predict("a", f"Nodule {box}.", reference=f"A nodule {box}. No effusion.", boxes=BOX,
                    source=SOURCE)]  # fmt: skip
    folder = write_folder(tmp_path / "run", "grounded_report", true=rows)
    with serving(answer=entailed) as server:
        run(monkeypatch, "radfact", folder, server.url)
    found = values(folder)
    assert found["RadFact_logical_precision"] == 1 == found["RadFact_spatial_precision"]
    assert found["RadFact_grounding_recall"] == 1


def test_a_judge_is_measured_on_radpref(real_data, tmp_path, monkeypatch, capsys):
    from xraygpt.metrics.agreement import judge_values, read_radpref

    data = real_data / "metric_truth"
    assert len(radpref_questions(data, "green")) == 200
    with serving(answer=lambda body: json.dumps(GREEN)) as server:
        run(monkeypatch, "green", data, server.url, "--out", str(tmp_path / "out"), "--public-data")
    values = judge_values(tmp_path / "out", read_radpref(data))
    assert set(values["GREEN by m"]) == {0.5}
    assert "200 verdicts" in capsys.readouterr().out
