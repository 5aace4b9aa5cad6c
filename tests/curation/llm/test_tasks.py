"""Tasks: form and checks of answers, and training on conversations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.curation.fakes import (
    rewrite_settings,
    run,
    serving,
    write_corpus,
)
from xraygpt.curation.llm.tasks import TASKS

COUNT = 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), COUNT)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "0 turns"),
        ([("Is there an effusion", "A left effusion is seen.")], "without a question mark"),
        ([("Is there an effusion?", "Yes.")], "an answer that is no sentence"),
        ([("Effusion?", "A left effusion.")] * 2, "a question asked twice"),
        ([("Effusion?", "A right effusion is seen.")], "another side: pleural_effusion"),
        ([("Effusion?", "No effusion is seen.")], "newly denied: pleural_effusion"),
        ([("Is there a nodule?", "A nodule is seen.")], "newly affirmed: lung_lesion"),
        ([("How large?", "It measures 7 cm.")], "a number or unit that is not"),
        ([("Has it changed since the prior exam?", "A left effusion.")], "an earlier study"),
    ],
)
def test_conversations_with_wrong_or_new_content_are_rejected(turns, reason: str):
    task = TASKS["vqa"]
    content = json.dumps({"turns": [{"question": q, "answer": a} for q, a in turns]})
    answer, form_errors = task.parse(content)
    assert not form_errors
    reasons = task.check("There is a left pleural effusion. The heart is normal.", answer)
    assert any(reason in r for r in reasons), reasons


def test_unknown_fields_of_an_answer_are_not_quoted():
    """Their names may be report text."""
    _, reasons = TASKS["vqa"].parse('{"turns": [{"question": "q?", "zebra": 1}], "quokka": 2}')
    assert reasons == [
        "not of the form that was asked for: (unknown) extra_forbidden, "
        "turns.0.(unknown) extra_forbidden, turns.0.answer missing"
    ]


def test_conversations_train_as_records(corpus, tmp_path):
    from xraygpt.datasets.records import RecordsBuilder
    from xraygpt.experiment import NO_IMAGES

    with serving() as (url, _):
        result = run(corpus, tmp_path, rewrite_settings(url, "vqa"))
    config = RecordsBuilder.Config(storage=tmp_path, annotations="vqa.jsonl", images="image")
    records = config.build(image_spec=NO_IMAGES).build("train", "eval").records
    assert len(records) == result.manifest["accepted"] > COUNT / 2
    roles = [turn["role"] for turn in records[0].turns]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
