"""Scores with third-party weights: computed if the settings name them, otherwise left out."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from xraygpt.metrics import bertscore, chexbert, radgraph
from xraygpt.tasks.clinical import ClinicalMetrics, ClinicalScorer

PREDICTIONS = ["The heart is enlarged.", "No effusion.", ""]
REFERENCES = ["The heart is enlarged.", "Left effusion.", "Clear lungs."]
STUDIES = ["a", "b", "c"]


def test_without_weights_every_score_names_the_missing_setting():
    scores, left_out = ClinicalScorer(ClinicalMetrics()).score(PREDICTIONS, REFERENCES, STUDIES)
    assert scores == []
    assert set(left_out) == {"BERTScore", "CheXbert F1", "RadGraph F1", "RadCliQ-v1", "GREEN"}
    for name, key in (("BERTScore", "bertscore"), ("GREEN", "judge_url"), ("RadCliQ-v1", "bert")):
        assert f"run.task.clinical.{key}" in left_out[name]


def test_a_wrong_path_only_affects_its_score(tmp_path):
    settings = ClinicalMetrics(bertscore=tmp_path / "nowhere")
    _, left_out = ClinicalScorer(settings).score(PREDICTIONS, REFERENCES, STUDIES)
    assert "nowhere" in left_out["BERTScore"]


def test_incomplete_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="judge_url: also needs judge_model"):
        ClinicalMetrics(judge_url="http://127.0.0.1:1")
    with pytest.raises(ValueError, match="chexbert: also needs chexbert_bert"):
        ClinicalMetrics(chexbert=tmp_path)


def test_radcliq_combines_three_metrics(tmp_path, monkeypatch):
    """With fake models, a perfect report scores better than a wrong one."""

    class Bert:
        signature = "BERTScore"

        def __init__(self, *_: object) -> None: ...

        def score(self, predictions, references, **_):
            pairs = zip(predictions, references, strict=True)
            same = np.array([float(p == r) for p, r in pairs])
            return bertscore.Overlap(same, same, same)

    class Labels:
        def __init__(self, *_: object) -> None: ...

        def label(self, texts):
            rows = [[chexbert.POSITIVE if "enlarged" in t else chexbert.BLANK] * 14 for t in texts]
            return np.array(rows)

        def embed(self, texts):
            return np.array([[len(t) + 1.0, "enlarged" in t] for t in texts])

    annotated = []

    def annotate(texts, folder):
        annotated.extend(texts)
        entity = {"tokens": "heart", "label": "Anatomy::definitely present", "relations": []}
        return [{"entities": {"1": {**entity, "tokens": t}} if t else {}} for t in texts]

    monkeypatch.setattr(bertscore, "BertScorer", Bert)
    monkeypatch.setattr(chexbert, "CheXbert", Labels)
    monkeypatch.setattr(radgraph, "annotate", annotate)
    clinical = ClinicalScorer(
        ClinicalMetrics(
            bertscore=tmp_path, chexbert=tmp_path, chexbert_bert=tmp_path, radgraph=tmp_path
        )
    )
    right, left_out = clinical.score(REFERENCES, REFERENCES, STUDIES)
    wrong, _ = clinical.score(PREDICTIONS, REFERENCES, STUDIES)
    assert set(left_out) == {"GREEN"}
    assert len(annotated) == len(set(annotated))  # each text is annotated once
    good, bad = ({s.name: s.value for s in scores} for scores in (right, wrong))
    assert good["RadCliQ-v1"] < bad["RadCliQ-v1"]  # lower is better
    assert good["BERTScore_F1"] == 1 > bad["BERTScore_F1"]
    assert good["RadGraph_partial"] == 1 > bad["RadGraph_partial"]


def test_green_uses_the_configured_endpoint(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("XRAYGPT_JUDGE_KEY", "secret-key")
    keys: list[str] = []
    answer = (
        "[Explanation]:\\nfine\\n[Clinically Significant Errors]:\\n(a) x: 0\\n"
        "[Clinically Insignificant Errors]:\\n(a) x: 0\\n[Matched Findings]:\\n1. heart"
    )

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self):
            keys.append(self.headers["Authorization"])
            self.rfile.read(int(self.headers["Content-Length"]))
            body = (
                '{"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": '
                '[{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", '
                f'"content": "{answer}"}}}}]}}'
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        settings = ClinicalMetrics(judge_url=url, judge_model="m")
        scores, left_out = ClinicalScorer(settings).score(REFERENCES[:1], REFERENCES[:1], ["a"])
    finally:
        server.shutdown()
        server.server_close()
    by_name = {s.name: s for s in scores}
    assert "GREEN" not in left_out and by_name["GREEN"].value == 1
    assert "m" in by_name["GREEN"].signature and keys == ["Bearer secret-key"]
