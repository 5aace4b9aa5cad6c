"""Filtered reports and conversations, by rules and by a fake language model."""

from __future__ import annotations

import json
import sys

import pytest

from tests.curation.fakes import FAST, fake_endpoint, serving
from tests.instructions.toy import Toy, write_toy
from tests.instructions.trees import read, write_mimic
from xraygpt.boxes.parsing import parse_boxes
from xraygpt.common.errors import InputError
from xraygpt.curation.llm.endpoint import Endpoint
from xraygpt.curation.llm.limits import Limits
from xraygpt.curation.llm.prompts import load_prompt
from xraygpt.curation.llm.settings import RewriteSettings
from xraygpt.instructions.collections.mimic_cxr import MimicCXR
from xraygpt.instructions.records import ImageRecord, ImageRow, Located
from xraygpt.instructions.stages import (
    CONVERSE,
    FILTER,
    FilteredReport,
    Round,
    Rounds,
    check_conversation,
    check_filtered,
    converse_by_rules,
    filter_by_rules,
    notes,
)
from xraygpt.jobs.conversations import Request, prepare

BOX = (0.1, 0.2, 0.3, 0.4)
IMAGE = ImageRow(1, "i1", "i1.png", "s1", "p/1", "train", "PA", "F", 1000, 800)
RECORD = ImageRecord(
    IMAGE,
    report="There is a right pleural effusion. No pneumothorax.",
    labels={"Pleural Effusion": "positive", "Pneumothorax": "negative", "Edema": "uncertain"},
    phrases=(Located("Right pleural effusion.", (BOX,)), Located("No pneumothorax.", ())),
)


def settings(url: str, task, **changes) -> RewriteSettings:
    return RewriteSettings(
        endpoint=Endpoint(model="fake", base_url=url), task=task, prompt=load_prompt(task.name),
        limits=Limits(concurrency=8), retry_policy=FAST, **changes,
    )  # fmt: skip


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.open()]


# ---- By rules ------------------------------------------------------------------------------------


def test_the_filter_keeps_what_is_seen_on_this_image():
    text, reasons = filter_by_rules(
        "Compared to the prior exam, the left effusion is unchanged.\nThe heart is normal."
    )
    assert not reasons and "heart is normal" in text and "prior" not in text
    assert filter_by_rules("No significant change since the prior study.") == ("", [])


def test_a_report_with_none_of_is_not_dropped():
    """RadVLM drops every reply that contains the letters "None" (fault 19)."""
    report = "None of the lines has moved. There is a right pleural effusion."
    assert "right pleural effusion" in filter_by_rules(report)[0]
    answer = FilteredReport(
        text="None of the ribs is fractured. There is a right pleural effusion."
    )
    assert check_filtered(answer.text, answer) == []


def test_line_breaks_do_not_join_words():
    """RadVLM deletes them (fault 12)."""
    assert filter_by_rules("There is a right\npleural effusion.")[0] == (
        "There is a right pleural effusion."
    )


def test_conversations_by_rules_are_true_of_the_record():
    for number in range(40):
        turns = converse_by_rules(RECORD, grounded=True, seed=number)
        assert 2 <= len(turns) <= 10
        answers = Rounds(rounds=[Round(question=q, answer=a) for q, a in turns])
        assert check_conversation(notes(RECORD, grounded=True)[1], answers) == []
        boxes = [box for _, answer in turns for box in parse_boxes(answer, "unit").boxes]
        assert boxes == [pytest.approx(BOX)]
        assert turns[-1][1] == RECORD.report
    assert converse_by_rules(RECORD, grounded=True) == converse_by_rules(RECORD, grounded=True)
    assert len({str(converse_by_rules(RECORD, grounded=False, seed=n)) for n in range(20)}) > 10
    assert converse_by_rules(ImageRecord(IMAGE, report="Fine."), grounded=True) == []


def test_the_first_run_of_the_filter_reads_the_raw_reports(tmp_path):
    """RadVLM's filter opens its own output and finds nothing to do (fault 3)."""
    root = write_mimic(tmp_path / "MIMIC-CXR-JPG")
    collection = MimicCXR(MimicCXR.Config(root=root), "mimic")
    written = prepare(
        collection, tmp_path / "out", Request("filter", ("train", "val", "test")), None
    )
    assert {row["study_id"] for row in written.rows} == {"11", "12", "14"}, "one for each study"
    again = MimicCXR.Config(root=root, filtered_reports=tmp_path / "out/filtered_reports.jsonl")
    records, _ = read(MimicCXR(again))
    assert records["d1"].report == "Made-up line one. Line two."
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["provider"] == "rules" and manifest["use"] == "research use only"


def test_conversations_become_items(tmp_path):
    root = write_toy(tmp_path / "TOY")
    collection = Toy(Toy.Config(root=root))
    written = prepare(collection, tmp_path / "out", Request("converse", grounded=True), None)
    assert len(written.rows) >= 8 and {row["kind"] for row in written.rows} == {"grounding"}
    path = tmp_path / "out/conversations.jsonl"
    records, remarks = read(Toy(Toy.Config(root=root, conversations={"grounding": path})))
    stored = [r.conversations["grounding"] for r in records.values()]
    assert sum(len(turns) > 1 for turns in stored) == len(written.rows) and remarks == []


# ---- Checks --------------------------------------------------------------------------------------


def reasons(*turns: tuple[str, str], record: ImageRecord = RECORD) -> list[str]:
    answer = Rounds(rounds=[Round(question=q, answer=a) for q, a in turns])
    return check_conversation(notes(record, grounded=True)[1], answer)


GOOD = ("What do you see?", "There is a right pleural effusion.")
CASES = {
    "too short": ([GOOD], "1 rounds, 2 to 10 are wanted"),
    "too long": ([GOOD] * 11, "11 rounds, 2 to 10 are wanted"),
    "empty": ([GOOD, ("And?", " ")], "an empty question or answer"),
    "names its source": ([GOOD, ("Sure?", "The report says so.")], "it mentions the notes"),
    "compares": ([GOOD, ("More?", "It is unchanged.")], "it compares with an earlier study"),
    "an invented box": ([GOOD, ("Where?", "At [0.5, 0.2, 0.7, 0.4].")], "a box that is not in"),
    "a box in a question": ([GOOD, ("At [0.1, 0.2, 0.3, 0.4]?", "Yes.")], "a question contains"),
    "a damaged box": ([GOOD, ("Where?", "At [0.1, 0.2, 0.3].")], "a damaged box"),
    "an invented finding": ([GOOD, ("Air?", "There is a pneumothorax.")], "pneumothorax is aff"),
    "a lost finding": ([("And?", "It is fine."), ("Fluid?", "There is no pleural effusion.")],
                       "pleural effusion is denied"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_conversations_are_rejected_with_a_reason(case):
    turns, reason = CASES[case]
    assert any(found.startswith(reason) for found in reasons(*turns)), reasons(*turns)


def test_a_good_conversation_passes_and_two_decimals_are_close_enough():
    assert reasons(GOOD, ("Where?", "At [0.10, 0.20, 0.30, 0.40].")) == []
    record = ImageRecord(IMAGE, phrases=(Located("X", ((0.104, 0.196, 0.304, 0.404),)),))
    assert reasons(("A?", "B."), ("Where?", "[0.10, 0.20, 0.30, 0.40]"), record=record) == []


def test_a_filtered_report_may_be_empty_only_if_nothing_is_left():
    report = "There is a right pleural effusion."
    assert check_filtered("No change since the prior study.", FilteredReport(text="")) == []
    assert check_filtered(report, FilteredReport(text=" ")) == [
        "findings of this image are missing"
    ]
    assert check_filtered(report, FilteredReport(text="There is a left pleural effusion."))


def test_the_notes_show_boxes_only_if_grounded():
    sections, facts = notes(RECORD, grounded=True)
    assert sections["places"] == "Right pleural effusion.: [0.10, 0.20, 0.30, 0.40]"
    assert (sections["findings"], sections["doubtful"]) == ("pleural effusion", "edema")
    assert (sections["view"], sections["sex"]) == ("PA", "female")
    assert json.loads(facts)["boxes"] == [list(BOX)]
    assert "places" not in notes(RECORD, grounded=False)[0]


# ---- By a language model -------------------------------------------------------------------------


def answer_rounds(request: dict) -> dict:
    """Answer as a good model would; a first answer about every third image is wrong."""
    if request["response_format"]["json_schema"]["name"] == "filter":
        return {"text": request["messages"][1]["content"].partition(": ")[2]}
    user = request["messages"][1]["content"]
    repaired = len(request["messages"]) > 2
    wrong = "[0.10, 0.20" in user and "Report 2" in user and not repaired
    box = "[0.9, 0.9, 0.95, 0.95]" if wrong or "Report 7" in user else "[0.10, 0.20, 0.30, 0.40]"
    return {"rounds": [
        {"question": "What is this?", "answer": "This is a chest X-ray."},
        {"question": "Where is it?", "answer": f"It is at {box}."},
    ]}  # fmt: skip


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr(fake_endpoint, "answer", answer_rounds)
    with serving() as (url, fake):
        yield url, fake


def test_a_model_writes_conversations_repairs_once_and_the_rest_is_held_back(tmp_path, endpoint):
    url, _ = endpoint
    collection = Toy(Toy.Config(root=write_toy(tmp_path / "TOY")))
    request = Request("converse", grounded=True, frontal=False)
    written = prepare(collection, tmp_path / "out", request, settings(url, CONVERSE))
    kept = {row["image_id"] for row in written.rows}
    assert "i0002" in kept, "repaired"
    assert [name for name, _ in written.held_back] == ["i0007"]
    assert "a box that is not in the notes" in written.held_back[0][1]
    assert len(kept) == 9 and written.calls == 12
    again = prepare(collection, tmp_path / "out", request, settings(url, CONVERSE))
    assert again.calls == 0 and again.rows == written.rows, "answers are not paid for twice"
    assert "i0007" in (tmp_path / "out/held_back.csv").read_text()


def test_the_batch_api_gives_the_same_conversations(tmp_path, endpoint):
    url, _ = endpoint
    collection = Toy(Toy.Config(root=write_toy(tmp_path / "TOY")))
    request = Request("converse", grounded=True, frontal=False)
    single = prepare(collection, tmp_path / "single", request, settings(url, CONVERSE))
    batch = settings(url, CONVERSE, batch=True, poll_seconds=0.02)
    batched = prepare(collection, tmp_path / "batch", request, batch)
    assert batched.rows == single.rows and batched.held_back == single.held_back


def test_a_model_filters_reports(tmp_path, endpoint):
    collection = Toy(Toy.Config(root=write_toy(tmp_path / "TOY")))
    written = prepare(
        collection, tmp_path / "out", Request("filter"), settings(endpoint[0], FILTER)
    )
    assert written.rows[0]["text"].startswith("Report 1. The heart is normal.")


def test_credentialed_texts_are_not_sent_to_another_host(tmp_path):
    root = write_mimic(tmp_path / "MIMIC-CXR-JPG")
    collection = MimicCXR(MimicCXR.Config(root=root), "mimic")
    remote = settings("https://models.example.org/v1", FILTER)
    with pytest.raises(InputError, match="MIMIC-CXR-JPG is credentialed data: its reports may not"):
        prepare(collection, tmp_path / "out", Request("filter"), remote)
    assert not (tmp_path / "out").exists()


def test_the_command_and_its_mistakes(tmp_path, monkeypatch, capsys):
    from xraygpt.prepare_conversations import main

    root = write_toy(tmp_path / "TOY")

    def run(*args) -> None:
        monkeypatch.setattr(sys, "argv", ["prepare_conversations", *map(str, args)])
        main()

    options = ("--collection", "toy", "--root", root, "--out", tmp_path / "out")
    run("filter", *options, "--imports", "tests.instructions.toy")
    assert "6 written, 0 held back. Research use only." in capsys.readouterr().out
    with pytest.raises(InputError, match="did you mean 'toy'"):
        run("converse", "--collection", "toyy", "--out", tmp_path / "out")
    with pytest.raises(InputError, match="--model needs a language model"):
        run("converse", *options, "--model", "x")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://x.example.org")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "k")
    monkeypatch.setenv("AZURE_API_VERSION", "2024-06-01")
    run("converse", *options, "--provider", "azure", "--model", "gpt", "--dry-run")
    assert "privacy  would be sent to x.example.org" in capsys.readouterr().out
    Endpoint(provider="azure", model="gpt").create_sdk_client(1.0)
