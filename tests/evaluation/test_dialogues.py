"""Dialogues with the reference's or the model's own earlier answers, and constant boxes."""

from __future__ import annotations

import pytest

from tests.datasets.test_instruction_items import build, folder  # noqa: F401
from xraygpt.common.errors import InputError
from xraygpt.datasets.base import StudyDataset
from xraygpt.evaluation.conditions import OwnHistory, mean_box_answers


def test_own_answers_replace_the_references_earlier_ones(folder):  # noqa: F811
    data = build(folder, tasks=["conversation"], dialogue="each_answer")
    own = OwnHistory(data)
    rounds = own.rounds(range(len(data)))
    assert [len(part) for part in rounds] == [len(data) // 2] * 2
    for i in rounds[0]:
        own.remember(i, f"own answer {i}")
    for first, second in zip(*rounds, strict=True):
        assert data.records[first].meta["dialogue"] == data.records[second].meta["dialogue"]
        texts = [turn["text"] for turn in own.get_turns(second)]
        assert texts[1] == f"own answer {first}" and texts[2:] == ["Of whom?", "Unknown."]
        assert [t["text"] for t in own[second]["turns"]] == texts
        assert data.get_turns(second)[1]["text"] == "A chest X-ray.", "the data are unchanged"


def test_the_constant_box_is_the_mean_of_the_training_boxes_of_the_phrase(folder):  # noqa: F811
    train = build(folder, tasks=["region_grounding", "detection"])
    answers = mean_box_answers(train, train)
    for record in train.records:
        boxes = answers[record.sample_id].payload["boxes"]
        if "phrase" in record.meta:
            assert [b["box"] for b in boxes] == [pytest.approx(record.meta["boxes"][0]["box"])]
        else:
            assert {b["label"] for b in boxes} >= {"ILD", "Nodule/Mass"}
            assert all(0 < b["score"] <= 1 for b in boxes)
    empty = StudyDataset([], train.read_media)
    with pytest.raises(InputError, match="no training split with boxes"):
        mean_box_answers(train, empty)
