"""Prediction from a YAML file of LLaMA-Factory, with controls and its output files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.evaluation.conditions import TRUE
from xraygpt.evaluation.generated_predictions import GeneratedPredictions
from xraygpt.experiment import Evaluation, build_evaluator

RESULTS = ("predict_results.json", "all_results.json")
_NAMES = {"BLEU-4": "bleu-4", "ROUGE-1": "rouge-1", "ROUGE-2": "rouge-2", "ROUGE-L": "rouge-l"}


def predict(experiment: Evaluation) -> tuple[Path, dict[str, Any]]:
    """Answer all samples and their controls.

    Args:
        experiment: The translation of a YAML file with `do_predict`.

    Returns:
        The folder of the result page, and the content of scores.json.
    """
    began = time.monotonic()
    evaluator = build_evaluator(experiment)
    output = experiment.run.output_dir
    evaluator.predictor.listener = GeneratedPredictions(
        output, evaluator.model.renderer.render_text
    )
    result = evaluator.run()
    seconds = time.monotonic() - began
    scores = {s["name"]: s["value"] for s in result["scores"] if s["condition"] == TRUE}
    rows: dict[str, Any] = {
        f"predict_{new}": round(100 * scores[name], 4)
        for name, new in _NAMES.items()
        if isinstance(scores.get(name), float)
    }
    rows["predict_runtime"] = round(seconds, 4)
    rows["predict_samples_per_second"] = round(result["n"] / seconds, 3)
    rows["verdict"] = result["verdict"]
    for name in RESULTS:
        path = output / name
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        merged = {**(earlier if name == RESULTS[1] else {}), **rows}
        write_text_atomic(path, json.dumps(merged, indent=4) + "\n")
    return evaluator.folder, result
