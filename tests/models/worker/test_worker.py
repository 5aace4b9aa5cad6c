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
from xraygpt.models.base import Generation, Pointed
from xraygpt.models.worker.model import Worker, read_answer

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
    assert model.unsupported_reason("region_grounding") == ""
    assert "stub offers report_generation" in model.unsupported_reason("conversation")
    with pytest.raises(InputError, match="cannot do the task conversation: stub offers"):
        model.generate(batch(model, "conversation"), Generation())


def test_a_failing_request_is_an_empty_answer_with_its_reason_up_to_a_limit(build, tmp_path):
    model = build(max_errors=2)
    failing = batch(model, "report_generation", question="<image>Please fail.")
    for _ in range(2):
        (pointed,) = model.point(failing, Generation())
        assert pointed.text == "" and pointed.boxes == []
        assert pointed.note == "The worker failed: ValueError: asked to fail."
    assert model.generate(batch(model, "report_generation"), Generation()) != [""]
    with pytest.raises(DataError, match=r"asked to fail; it failed 3 times, and model\.max_errors"):
        model.generate(failing, Generation())
    log = tmp_path / "run/worker.log"
    assert "asked to fail" in log.read_text(), "the traceback is in worker.log"
    assert log.stat().st_mode & 0o077 == 0, "the log may quote texts"


def test_boxes_across_the_border_are_cut_and_those_without_an_area_dropped():
    boxes = [[0.5, 0.5, 1.2, 0.9], [0.3, 0.2, 0.3, 0.4], [0.1, 0.1, 0.2, 0.2]]
    found = read_answer({"text": "a", "boxes": boxes})
    assert found.boxes == [(0.5, 0.5, 1.0, 0.9), (0.1, 0.1, 0.2, 0.2)]
    assert found.note == "2 boxes were cut at the border or dropped."
    assert read_answer({"text": "a", "boxes": []}) == Pointed("a", [], "")


def test_no_answer_is_taken_for_that_to_another_question(build, tmp_path):
    """What remains in the pipe after a failed request belongs to no later one."""
    stray = "row = json.loads(line)\n        if first: print('stray'); first = False\n"
    body = "first = True" + ECHO.replace("row = json.loads(line)\n", stray)
    model = build(script(tmp_path, body))
    with pytest.raises(InputError, match="no JSON object: 'stray'"):
        model.point(batch(model, "region_grounding", 1, 2, 3), Generation())
    model.config.script = script(tmp_path, ECHO)
    (text,) = model.generate(batch(model, question="<image>Is it new?"), Generation())
    assert json.loads(text)["turns"][0]["text"] == "Is it new?"


def test_a_worker_that_was_too_slow_is_started_again(build, tmp_path):
    model = build(script(tmp_path, "time.sleep(9)"), timeout=0.3)
    for _ in range(2):
        with pytest.raises(InputError, match=r"no answer for 0\.3 s"):
            model.point(batch(model), Generation())


def test_bytes_that_are_no_text_are_reported_at_once(build, tmp_path):
    body = "sys.stdout.buffer.write(bytes([255, 254, 10])); sys.stdout.flush(); time.sleep(9)"
    model = build(script(tmp_path, body), timeout=5)
    began = time.monotonic()
    with pytest.raises(InputError, match="no JSON object"):
        model.point(batch(model), Generation())
    assert time.monotonic() - began < 4


def test_programs_that_a_worker_started_end_with_it(build, tmp_path):
    body = (
        "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n{ECHO}"
    )
    model = build(script(tmp_path, body))
    model.generate(batch(model), Generation())
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    model.close()
    deadline = time.monotonic() + 5
    while stat.exists() and stat.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_what_c_libraries_print_does_not_reach_the_answers(build, tmp_path):
    path = tmp_path / "noisy.py"
    path.write_text(
        f"import os, sys\nsys.path.insert(0, {str(REPO / 'workers')!r})\n"
        "from protocol import serve\n"
        "def answer(batch):\n    os.write(1, b'from C\\n')\n    return [{'text': 'fine'}]\n"
        "serve({'model': 'm', 'revision': '1', 'tasks': ['region_grounding']}, answer)\n"
    )
    model = build(path)
    assert model.generate(batch(model), Generation()) == ["fine"]
    assert "from C" in (tmp_path / "run/worker.log").read_text()


def test_a_recipe_loads_its_model_without_writing_to_the_answers(build, tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        f"import argparse, sys\nsys.path.insert(0, {str(REPO / 'workers')!r})\n"
        "from protocol import run\n"
        "class Model:\n    def __init__(self, args):\n        print('loading weights')\n"
        "    def answer(self, request):\n        return {'text': request['phrase']}\n"
        "args = argparse.Namespace(model='m', revision='r')\n"
        "run(Model, args, ['region_grounding'])\n"
    )
    model = build(path)
    assert model.generate(batch(model), Generation()) == ["left lung"]
    assert model.facts() == {"model": "m", "revision": "r"}
    assert "loading weights" in (tmp_path / "run/worker.log").read_text()


def test_answers_of_another_program_are_not_reused(tmp_path):
    path = script(tmp_path, ECHO)
    config = Worker.Config.from_keys(script=str(path), python=sys.executable)
    before = config.identity()
    path.write_text(path.read_text() + "# changed\n")
    assert config.identity() != before
    config.timeout = 3.0
    assert config.identity()["script_sha256"] != before["script_sha256"]
    assert "timeout" not in config.identity()


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
        (ECHO.replace('"text"', '"boxes": [[0, 0, 3]], "text"'), "cannot be used"),
        (ECHO.replace('row["id"]', '"other"'), "the id 'other', which was not asked"),
    ],
)
def test_workers_that_misbehave_are_described(build, tmp_path, body, message):
    model = build(script(tmp_path, body), timeout=0.5, max_errors=0)
    with pytest.raises((InputError, DataError), match=message):
        model.point(batch(model), Generation())


def test_a_worker_with_another_protocol_or_no_program_is_refused(build, tmp_path):
    path = tmp_path / "other.py"
    path.write_text('print(\'{"protocol": 9, "tasks": []}\', flush=True)\n')
    with pytest.raises(InputError, match="does not speak protocol 1"):
        build(path).unsupported_reason("conversation")
    model = build(STUB)
    model.config.python = tmp_path / "gone"
    with pytest.raises(InputError, match=r"cannot start the worker .*gone"):
        model.unsupported_reason("conversation")
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
