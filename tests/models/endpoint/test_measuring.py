"""evaluate.py and predict.py with a served model: controls, verdict, resumption, privacy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPO
from tests.models.endpoint.fake import Body, Fake, failure, images, parts, serving
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.curation.llm.failures import EndpointError
from xraygpt.evaluation.evaluator import Evaluator
from xraygpt.evaluation.predictor import SomeFailed
from xraygpt.experiment import (
    Evaluation,
    Training,
    build_chat,
    build_evaluator,
    build_predictor,
    build_runner,
)

SECRET = "sk-do-not-write-this-anywhere"
COUNT = 36
QUESTION = "Is the picture bright?"


def write_corpus(folder: Path, count: int = COUNT) -> Path:
    """Studies with a bright or a dark picture; sizes differ, and each has a bright left edge."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(count):
        bright = i % 2
        pixels = np.random.default_rng(i).integers(0, 40, (12 + i % 3, 10)) + 200 * bright
        pixels[:, 0] = 255
        name = f"images/p{i}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        answer = "yes" if bright else "no"
        turns = [{"role": "user", "text": QUESTION}, {"role": "assistant", "text": answer}]
        row = {"id": f"p{i}", "study": f"p{i}", "split": "val", "images": [name], "turns": turns}
        rows.append(json.dumps(row))
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    return folder


YAML = """
model:
  arch: openai_endpoint
  base_url: {url}
  model: m
  api_key_env: TEST_ENDPOINT_KEY
  retries: {{max_attempts: 2, initial_wait: 0.01, timeout: 5}}
datasets:
  pictures: {{builder: records, storage: {corpus}, annotations: corpus.jsonl, input_check: false}}
run:
  task: vqa
  output_dir: {out}
  split: val
  device: cpu
  shuffles: 1
  batch_size_eval: 8
  page_cases: 4
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("pictures") / "corpus")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_ENDPOINT_KEY", SECRET)


def write_yaml(fake: Fake, corpus: Path, base: Path) -> Path:
    path = base / "eval.yaml"
    path.write_text(YAML.format(url=fake.url, corpus=corpus, out=base / "out"))
    return path


def evaluator_of(fake: Fake, corpus: Path, base: Path, *options: str) -> Evaluator:
    return build_evaluator(load(Evaluation, write_yaml(fake, corpus, base), options))


def looks(body: Body) -> str:
    """Answer from the pixels."""
    return "yes" if images(body)[0].mean() > 128 else "no"


def accuracy(result: dict[str, Any], condition: str) -> float:
    rows = (r for r in result["scores"] if r["name"] == "accuracy")
    return next(r["value"] for r in rows if r["condition"] == condition)


@pytest.mark.slow
def test_the_verdict_sees_that_the_model_looks_at_the_image(corpus, tmp_path):
    with serving(answer=looks) as fake:
        controls = "run.controls=[shuffled,blank,mirrored]"
        evaluator = evaluator_of(fake, corpus, tmp_path, controls)
        result = evaluator.run()
    assert result["verdict"]["outcome"] == "reads the image"
    assert accuracy(result, "true") == 1.0
    assert accuracy(result, "shuffled") == 0.0
    assert accuracy(result, "blank") == 0.5
    assert result["losses"] == [] and "likelihoods" in result["left_out"]["loss"]
    black = [body for body in fake.bodies if not images(body)[0].any()]
    assert {images(body)[0].shape for body in black} == {(12, 10), (13, 10), (14, 10)}
    assert len(black) == 3  # equal requests are sent once
    edges = Counter(bool(images(b)[0][:, -1].min() == 255) for b in fake.bodies)
    assert edges == {True: COUNT, False: COUNT + 3}  # mirrored; others
    assert all(parts(b)[-1]["text"] == QUESTION for b in fake.bodies)
    written = [p for p in tmp_path.rglob("*") if p.suffix in (".json", ".jsonl", ".html", ".md")]
    assert len(written) >= 8
    assert not any(SECRET in path.read_text() for path in written)
    identity = json.loads((evaluator.folder / "settings.json").read_text())["identity"]["model"]
    assert identity["base_url"] == fake.url and identity["model"] == "m"
    assert "limits" not in identity


@pytest.mark.slow
def test_a_model_that_ignores_the_image_is_found_out(corpus, tmp_path):
    with serving(answer=lambda body: "yes") as fake:
        result = evaluator_of(fake, corpus, tmp_path).run()
    assert result["verdict"]["outcome"] == "ignores the image"
    assert accuracy(result, "true") == accuracy(result, "shuffled") == 0.5


@pytest.mark.slow
def test_an_interrupted_evaluation_sends_only_the_missing_requests(corpus, tmp_path):
    options = ("run.controls=[blank]", "model.limits.concurrency=1")
    with serving(answer=looks) as fake:
        fake.faults = [(200, {}, completion("yes"))] * 13 + [failure(401)]
        with pytest.raises(EndpointError, match="401"):
            evaluator_of(fake, corpus, tmp_path, *options).run()
        assert len(fake.bodies) == 14
        # More attempts, another budget and another key do not start a new run.
        result = evaluator_of(fake, corpus, tmp_path, *options, "model.limits.max_tokens=99999")
        scores = result.run()
        sent = [json.dumps(body) for body in fake.bodies]
    assert len(sent) == COUNT + 3 + 1 and len(set(sent)) == COUNT + 3
    assert scores["n"] == COUNT and len(list((tmp_path / "out").iterdir())) == 1


def completion(text: str) -> Body:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


@pytest.mark.slow
def test_a_killed_command_continues_with_the_missing_requests(corpus, tmp_path):
    def slowly(body: Body) -> str:
        time.sleep(0.03)
        return looks(body)

    environment = {**os.environ, "PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": ""}
    with serving(answer=slowly) as fake:
        path = write_yaml(fake, corpus, tmp_path)
        command = [sys.executable, "evaluate.py", "--cfg-path", str(path), "--options"]
        command += ["run.controls=[shuffled]", "model.limits.concurrency=2"]
        process = subprocess.Popen(command, cwd=REPO, env=environment, stdout=subprocess.PIPE)
        deadline = time.monotonic() + 300
        while len(fake.bodies) < 12 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        killed_after = len(fake.bodies)
        assert 12 <= killed_after < COUNT
        done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "reads the image" in done.stdout
    assert "untrained" not in done.stderr and SECRET not in done.stdout + done.stderr
    # Only the calls that were in progress when the process was killed are repeated.
    assert COUNT <= len(fake.bodies) <= COUNT + 2


@pytest.mark.slow
def test_prediction_reports_the_sample_that_is_too_long_and_answers_the_others(corpus, tmp_path):
    with serving(answer=looks, faults=[failure(400, "context_length_exceeded")]) as fake:
        options = ["model.limits.concurrency=1"]
        experiment = load(Evaluation, write_yaml(fake, corpus, tmp_path), options)
        predictor = build_predictor(
            experiment, corpus / "images", output_dir=tmp_path / "p", question="Bright?", workers=0
        )
        with pytest.raises(SomeFailed, match="longer than the model's context"):
            predictor.run()
        assert len(fake.bodies) == COUNT  # the rest of its batch is not sent again
    lines = (predictor.folder / "predictions.jsonl").read_text().splitlines()
    rows = {row["sample_id"]: row["prediction"] for row in map(json.loads, lines)}
    assert len(rows) == COUNT - 1
    assert all(text == ("yes" if int(Path(n).stem[1:]) % 2 else "no") for n, text in rows.items())


@pytest.mark.slow
def test_prediction_stops_at_once_when_the_endpoint_cannot_be_used(corpus, tmp_path):
    with serving(model="other") as fake:
        experiment = load(Evaluation, write_yaml(fake, corpus, tmp_path))
        predictor = build_predictor(
            experiment, corpus / "images", output_dir=tmp_path / "p", question="Bright?", workers=0
        )
        with pytest.raises(EndpointError, match=r"model\.model"):
            predictor.run()
    assert len(fake.bodies) <= 16  # one batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run.task.generate={num_beams: 3}"], "an endpoint cannot honour num_beams"),
        (["run.task=language_modeling"], "cannot be trained or compute the loss"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused_before_anything_is_sent(
    corpus, tmp_path, options, message
):
    with serving() as fake, pytest.raises(InputError, match=message):
        evaluator_of(fake, corpus, tmp_path, *options)
    assert not fake.bodies


def test_likelihoods_are_refused(corpus, tmp_path):
    fake = Fake(url="http://127.0.0.1:9/v1")
    evaluator = evaluator_of(fake, corpus, tmp_path, "run.task=yes_no", "run.controls=[shuffled]")
    with pytest.raises(InputError, match="neither likelihoods of given answers nor weights"):
        evaluator.run()


def test_training_and_chat_are_refused(corpus, tmp_path):
    fake = Fake(url="http://127.0.0.1:9/v1")
    path = write_yaml(fake, corpus, tmp_path)
    with pytest.raises(InputError, match="which you can chat with directly"):
        build_chat(load(Evaluation, path), "cpu")
    text = path.read_text().partition("run:")[0]
    run = f"run: {{task: language_modeling, max_steps: 1, output_dir: {tmp_path / 'o'}}}\n"
    path.write_text(text + run)
    with pytest.raises(InputError, match="cannot be trained"):
        build_runner(load(Training, path))


@pytest.mark.slow
def test_our_own_server_can_be_the_endpoint(corpus, tmp_path):
    """The answers are those of the model behind the server."""
    from tests.conversation.test_api import SHORT, Served, build_service

    server = Served(build_service())
    try:
        fake = Fake(url=f"{server.url}/v1")
        tokens = f"run.task.generate.max_new_tokens={SHORT.max_new_tokens}"
        options = ("run.max_samples=4", "run.controls=[blank]", tokens, "model.model=tiny")
        evaluator = evaluator_of(fake, corpus, tmp_path, *options)
        result = evaluator.run()
    finally:
        server.stop()
    assert result["n"] == 4 and result["verdict"]["outcome"] == "undecided"
    lines = (evaluator.folder / "predictions_true.jsonl").read_text().splitlines()
    assert all(json.loads(line)["prediction"] for line in lines)
