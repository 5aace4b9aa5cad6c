"""CMR-VL's two YAML files, unchanged, on its demonstration pictures and movie."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys

import pytest
import torch
import transformers

from tests import processes
from tests.conftest import REPO
from tests.models.stock_vlm.cmr_demo import QUESTIONS, write_cmr_demo
from tests.models.stock_vlm.stock_batches import load_stock

ANSWERS = {kind: answer for kind, (_, answer) in QUESTIONS.items()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory, tiny):
    from tests.conftest import data_root

    if data_root() is None:
        pytest.skip("the real corpora are not available (XRAYGPT_DATA)")
    root = tmp_path_factory.mktemp("cmr")
    return write_cmr_demo(root / "data", data_root()), tiny("qwen2_5_vl"), data_root()


def run(yaml, *options, env=None):
    command = [sys.executable, str(REPO / "train.py"), "--cfg-path", str(yaml)]
    return processes.run(
        [*command, "--options", *options], cwd=REPO, env={**os.environ, **(env or {})},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.data
def test_both_files_of_cmr_vl_run_unchanged(demo, tmp_path):
    """A tiny model learns the six answers by heart, and loses them with other media."""
    data, model, root = demo
    cmr, out = root / "cmr/cmr_vl", tmp_path / "out"
    where = [f"dataset_dir={data}", "video_fps=1.0", "use_unsloth_gc=false", "bf16=false"]
    trained = run(
        cmr / "qwen2_5vl_sft_train.yaml", f"model_name_or_path={model}", f"output_dir={out}",
        "num_train_epochs=80", "learning_rate=0.01", "logging_steps=60", "eval_steps=120",
        *where,
        env={"XRAYGPT_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-3000:]
    rows = [json.loads(line) for line in (out / "trainer_log.jsonl").read_text().splitlines()]
    assert [r["current_steps"] for r in rows if "loss" in r] == [60, 120, 180, 240]
    assert {r["total_steps"] for r in rows} == {240}
    assert list(rows[0]) == [
        "current_steps", "total_steps", "loss", "lr", "epoch", "percentage", "elapsed_time",
        "remaining_time",
    ]  # fmt: skip
    assert re.fullmatch(r"\d+:\d\d:\d\d", rows[0]["remaining_time"])
    assert rows[-1]["epoch"] == 80 and any("eval_loss" in r for r in rows)
    results = json.loads((out / "train_results.json").read_text())
    assert results["epoch"] == 80 and results["train_samples_per_second"] > 0
    load_stock(out)  # the export opens in transformers

    predicted = run(
        cmr / "qwen2_5vl_sft_val.yaml", f"model_name_or_path={out}",
        f"output_dir={tmp_path / 'pred'}", "max_new_tokens=40", *where,
    )  # fmt: skip
    assert predicted.returncode == 0, predicted.stderr[-3000:]
    lines = (tmp_path / "pred/generated_predictions.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert [a["sample_id"] for a in answers] == list(QUESTIONS)
    assert {a["sample_id"]: a["predict"] for a in answers} == ANSWERS
    assert [a["label"] for a in answers] == list(ANSWERS.values())
    counts = {a["sample_id"]: (len(a["images"]), len(a["videos"])) for a in answers}
    assert counts["ten"] == (10, 0) and counts["motion"] == (0, 1)
    assert answers[0]["prompt"].startswith("<|im_start|>system\nYou are a helpful assistant.")
    scores = json.loads((tmp_path / "pred/predict_results.json").read_text())
    assert scores["predict_rouge-l"] == 100.0
    (folder,) = (tmp_path / "pred").glob("test-*")
    wrong = [json.loads(line) for line in (folder / "predictions_shuffled-0.jsonl").open()]
    right = sum(w["prediction"] == ANSWERS[w["sample_id"]] for w in wrong)
    assert right < len(wrong)  # with the media of another study

    again = run(
        cmr / "qwen2_5vl_sft_val.yaml", f"model_name_or_path={out}",
        f"output_dir={tmp_path / 'pred'}", "max_new_tokens=40", *where,
    )  # fmt: skip
    assert again.returncode == 0
    assert (tmp_path / "pred/generated_predictions.jsonl").read_text().splitlines() == lines


@pytest.mark.slow
@pytest.mark.data
def test_answers_are_written_as_they_are_made_and_an_interrupted_prediction_continues(
    demo, tmp_path, monkeypatch
):
    """LLaMA-Factory writes its file at the end (#5265), and loses the ids."""
    from xraygpt.models.stock_vlm.model import StockVlm

    data, model, root = demo
    yaml, out = root / "cmr/cmr_vl/qwen2_5vl_sft_val.yaml", tmp_path / "pred"
    options = [
        f"model_name_or_path={model}", f"dataset_dir={data}", f"output_dir={out}", "bf16=false",
        "per_device_eval_batch_size=1", "max_new_tokens=4", "run.controls=[]",
    ]  # fmt: skip
    original, calls = StockVlm.generate, []

    def stop_at_third(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    def start():
        argv = ["train.py", "--cfg-path", str(yaml), "--options", *options]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            runpy.run_path(str(REPO / "train.py"), run_name="__main__")

    monkeypatch.setattr(StockVlm, "generate", stop_at_third)
    start()
    path = out / "generated_predictions.jsonl"
    first = path.read_text().splitlines()
    assert [json.loads(line)["sample_id"] for line in first] == ["effusion", "lge"]
    start()
    assert len(calls) == 3 + 4  # the two answers are not made again
    lines = path.read_text().splitlines()
    assert lines[:2] == first and len(lines) == len(QUESTIONS)


def test_the_losses_of_llama_factory_are_reproduced(tiny, tmp_path):
    """The labels contain the line feed after the end of an answer, as in LLaMA-Factory."""
    from tests.models.stock_vlm.stock_batches import build, our_batch, samples, stock_batch

    folder = tiny("qwen2_5_vl")
    model = build(folder, text={"end_sym": "<|im_end|>\n"}).eval()
    network, processor = load_stock(folder)
    chosen = [samples()["nine"]]
    ours, stock = our_batch(model, chosen), stock_batch(processor, chosen)
    ids = stock["input_ids"][0].tolist()
    answer = processor.tokenizer("No.<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert ids[-len(answer) :] == answer
    assert ours["labels"][0].tolist() == [-100] * (len(ids) - len(answer)) + answer
    with torch.no_grad():
        stock["labels"] = torch.full_like(stock["input_ids"], -100)
        stock["labels"][0, -len(answer) :] = torch.tensor(answer)
        expected = float(network(**stock).loss)
        assert float(model(ours).loss) / len(answer) == pytest.approx(expected, abs=1e-6)
    assert model.renderer.stop_strings == ["<|im_end|>"]
    assert transformers.__version__
