"""Numbers in the form of published tables: ReXrank's files, RadVLM's and MAIRA-2's columns."""

from __future__ import annotations

import csv

from tests.judging.test_judge import write_folder
from tests.tasks.phantom_answers import predict
from xraygpt.evaluation import scoring
from xraygpt.evaluation.score_table import as_markdown


def test_rexranks_files_have_one_row_for_each_study(tmp_path):
    rows = [
        predict("a/1", 'Heart, "large".\nNo effusion.', reference="Normal."),
        predict("b", "", reference="Findings: x Impression: y"),
    ]
    rows.append(rows[0].__class__(**{**vars(rows[0]), "sample_id": "a/2", "prediction": "other"}))
    folder = write_folder(tmp_path / "run", "report_generation", true=rows)
    found = []
    for path in scoring.write_rexrank(folder):
        with path.open(newline="") as file:
            found.append(list(csv.reader(file)))
    assert found[0] == [["study_id", "report"], ["a/1", "Normal."],
                        ["b", "Findings: x Impression: y"]]  # fmt: skip
    assert found[1][1] == ["a/1", 'Heart, "large".\nNo effusion.'] and found[1][2] == ["b", ""]


def test_scores_of_published_protocols_stand_in_tables_of_their_own():
    def row(name: str) -> dict:
        return {"name": name, "condition": "true", "value": 0.25, "low": 0.1, "high": 0.3, "n": 9}

    result = {
        "split": "test", "n": 9, "losses": [],
        "scores": [row("radvlm_mAP_50"), row("radvlm_avg_IoU"), row("RadFact_logical_precision")],
    }  # fmt: skip
    text = as_markdown(result)
    assert "Metrics of RadVLM:" in text and "Metrics of MAIRA-2:" in text
    assert "| true | 0.250 | 0.250 | – |" in text
