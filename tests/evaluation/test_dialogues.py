"""Dialogues with the reference's or the model's own earlier answers, and constant boxes."""

from __future__ import annotations

import pytest

from tests.datasets.test_instruction_items import build, folder  # noqa: F401
from tests.models.endpoint.fake import serving
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.datasets.base import StudyDataset
from xraygpt.evaluation import prediction_file
from xraygpt.evaluation.conditions import OwnHistory, mean_box_answers
from xraygpt.experiment import Evaluation, build_evaluator
from xraygpt.tasks.dialogue import dialogues


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


@pytest.mark.slow
def test_a_model_is_asked_with_both_histories_and_its_words_are_kept(folder, tmp_path):  # noqa: F811
    """Fault 17: expected answers assume the true history. Fault 18: "assistant" cuts an answer."""
    said = "As the assistant told the user: a film."

    def answer(body) -> str:
        return said if len(body["messages"]) == 1 else "It is unknown."

    with serving(answer=answer) as server:
        path = tmp_path / "eval.yaml"
        path.write_text(
            f"model: {{arch: openai_endpoint, base_url: {server.url}, model: m}}\n"
            f"datasets:\n  toy: {{builder: instructions, storage: {folder}, tasks: [conversation],"
            f" dialogue: each_answer}}\n"
            f"run: {{task: conversation, output_dir: {tmp_path}/out, split: train, max_samples: 8,"
            f" controls: [own_history, no_image]}}\n"
        )
        evaluator = build_evaluator(load(Evaluation, path))
        evaluator.run()
        history = [
            [m["content"] for m in body["messages"] if m["role"] == "assistant"]
            for body in server.bodies
            if len(body["messages"]) > 1
        ]
    assert ["A chest X-ray."] in history and [said] in history
    own = prediction_file.read(evaluator.folder / "predictions_own_history.jsonl")
    assert {p.prediction for p in own.values()} == {said, "It is unknown."}
    (row,) = {tuple(r.generated for r in d.rounds) for d in dialogues(list(own.values()))}
    assert row == (said, "It is unknown.")
    asked = len(server.bodies)
    again = build_evaluator(load(Evaluation, path))
    again.run()
    assert len(server.bodies) == asked, "answers of the model's own dialogues are kept, too"
