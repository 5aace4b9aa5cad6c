"""Models in environments of their own: the stub worker, and workers that misbehave."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import REPO
from tests.models.stock_vlm.stock_batches import sample
from xraygpt.common.errors import ConfigError, DataError, InputError
from xraygpt.datasets.collate import Collator
from xraygpt.models.base import Generation
from xraygpt.models.worker.model import Worker

STUB = REPO / "workers/stub/worker.py"
DESCRIPTION = '{"protocol": 1, "model": "m", "revision": "1", "tasks": ["region_grounding"]}'


@pytest.fixture
def build(tmp_path):
    """Builds workers and closes them."""
    made = []

    def worker(script=STUB, **keys) -> Worker:
        model = Worker.Config.from_keys(script=str(script), python=sys.executable, **keys).build()
        model.keep_answers(tmp_path / "run")
        made.append(model)
        return model

    yield worker
    for model in made:
        model.close()


def batch(model: Worker, task: str = "region_grounding", *values: int, question="<image>Where?"):
    samples = []
    for i, value in enumerate(values or (50,)):
        one = sample(f"s{i}", question, "", [np.full((20, 30), value, np.uint8)])
        one["media"][0] = one["media"][0].with_data(torch.full((1, 20, 30), value / 255))
        samples.append({**one, "meta": {"phrase": "left lung"}})
    collate = Collator(model.renderer, model.media_collator, max_len=model.context_len)
    return {**collate.prompts(samples), "task": task}


def script(folder: Path, body: str) -> Path:
    path = folder / "worker.py"
    path.write_text(f"import json, sys, time\nprint('{DESCRIPTION}', flush=True)\n{body}")
    return path


ECHO = """
for line in sys.stdin:
    if line.strip():
        row = json.loads(line)
        print(json.dumps({"id": row["id"], "text": json.dumps(row)}), flush=True)
"""


def test_answers_depend_on_the_image_and_boxes_are_passed_on(build):
    model = build()
    texts = model.generate(batch(model, "abnormality_classification", 30, 200), Generation())
    assert texts == ["No finding. Mean grey 30.", "Cardiomegaly."]
    (pointed,) = model.point(batch(model), Generation())
    assert pointed.boxes == [(0.25, 0.25, 0.75, 0.75)]
    assert model.facts() == {"model": "stub", "revision": "1"}


def test_a_worker_is_told_the_task_the_phrase_the_dialogue_and_the_limit(build, tmp_path):
    model = build(script(tmp_path, ECHO))
    (text,) = model.generate(batch(model), Generation(max_new_tokens=17))
    row = json.loads(text)
    assert row["task"] == "region_grounding" and row["phrase"] == "left lung"
    assert row["turns"] == [{"role": "user", "text": "Where?"}] and row["max_new_tokens"] == 17
    assert not Path(row["images"][0]).exists(), "images are removed after the answer"


def test_an_answer_may_contain_the_words_user_and_assistant(build, tmp_path):
    """Fault 18: RadVLM's decoding cuts what stands before such a word."""
    body = ECHO.replace(
        '"text": json.dumps(row)', '"text": "Ask the user, not the assistant: yes."'
    )
    model = build(script(tmp_path, body))
    assert model.generate(batch(model), Generation()) == ["Ask the user, not the assistant: yes."]


def test_a_task_that_a_worker_cannot_do_has_a_reason(build):
    model = build()
    assert model.cannot("region_grounding") == ""
    assert "stub offers report_generation" in model.cannot("conversation")
    with pytest.raises(InputError, match="cannot do the task conversation: stub offers"):
        model.generate(batch(model, "conversation"), Generation())


def test_one_failing_request_names_its_reason_and_the_worker_goes_on(build):
    model = build()
    failing = batch(model, "report_generation", question="<image>Please fail.")
    with pytest.raises(DataError, match="the worker says: ValueError: asked to fail"):
        model.generate(failing, Generation())
    assert model.generate(batch(model, "report_generation"), Generation())
    assert "asked to fail" in (model._log).read_text(), "the traceback is in worker.log"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit('made-up reason')", r"exit code 1; the end of .*worker.log is: made-up reason"),
        (
            "print('loading weights', flush=True); time.sleep(9)",
            "no JSON object: 'loading weights'",
        ),
        ("time.sleep(9)", r"no answer for 0\.5 s"),
        (ECHO.replace('"text": json.dumps(row)', '"boxes": []'), "its text is missing"),
        (ECHO.replace('"text"', '"boxes": [[0, 0, 3, 3]], "text"'), "leaves the image"),
        (ECHO.replace('row["id"]', '"other"'), "no answer with its id"),
    ],
)
def test_workers_that_misbehave_are_described(build, tmp_path, body, message):
    model = build(script(tmp_path, body), timeout=0.5)
    with pytest.raises((InputError, DataError), match=message):
        model.point(batch(model), Generation())


def test_a_worker_with_another_protocol_or_no_program_is_refused(build, tmp_path):
    path = tmp_path / "other.py"
    path.write_text('print(\'{"protocol": 9, "tasks": []}\', flush=True)\n')
    with pytest.raises(InputError, match="does not speak protocol 1"):
        build(path).cannot("conversation")
    model = build(STUB)
    model.config.python = tmp_path / "gone"
    with pytest.raises(InputError, match=r"cannot start the worker .*gone"):
        model.cannot("conversation")
    with pytest.raises(ConfigError, match="name the worker's program"):
        Worker.Config.from_keys()
    with pytest.raises(InputError, match="decodes by its own settings; remove num_beams"):
        build().check_generation(Generation(num_beams=3))


def test_closing_ends_the_program(build, tmp_path):
    model = build(script(tmp_path, ECHO))
    model.generate(batch(model), Generation())
    process = model._process._process
    model.close()
    deadline = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() == 0
