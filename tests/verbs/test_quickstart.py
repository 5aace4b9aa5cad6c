"""The quickstart repeats failed steps only, and its commands work on phantoms."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests import processes
from tests.conftest import REPO
from tests.killing import finish
from xraygpt import quickstart
from xraygpt.common.errors import TrainingError

VERDICT = "The model reads the image: " + "its macro F1 is higher. " * 20
"""Longer than a file name may be."""


@pytest.fixture
def fake_commands(tmp_path, monkeypatch):
    """Replaces commands by a record of their YAML; the second one fails while `broken` is set."""
    state = SimpleNamespace(ran=[], broken=True)
    page = tmp_path / "report.html"
    page.write_text("")
    (tmp_path / "prompts").symlink_to(REPO / "prompts")
    row = {"name": "drawn_macro_F1", "condition": "true", "value": 0.6}
    verdict = {"sentences": [VERDICT]}
    (tmp_path / "scores.json").write_text(json.dumps({"scores": [row], "verdict": verdict}))

    def call(command):
        state.ran.append(command[3].rsplit("/", 1)[-1].removeprefix("quickstart_"))
        failed = state.broken and len(state.ran) == 2
        return int(failed), f"table\n{page}\n{VERDICT}\n"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "_call", call)
    return state


@pytest.mark.slow
def test_it_continues_with_the_step_that_failed(fake_commands, capsys):
    with pytest.raises(TrainingError, match=r"step 2 \(train.py .*stage1.yaml\) ended with exit"):
        quickstart.run("nano")
    fake_commands.broken = False
    quickstart.run("nano")
    assert fake_commands.ran == [
        "lm.yaml",
        "stage1.yaml",
        "stage1.yaml",
        "stage2.yaml",
        "quickstart.yaml",
    ]
    output = capsys.readouterr().out
    assert "SYNTHETIC" in output and "Research use only" in output and "0.600" in output
    quickstart.run("nano")
    assert len(fake_commands.ran) == 5  # nothing is left to do


@pytest.mark.slow
def test_a_changed_setting_repeats_its_step_and_the_following_ones(
    fake_commands, tmp_path, monkeypatch
):
    fake_commands.broken = False
    quickstart.run("nano")
    old = tmp_path / "output" / "quickstart" / "stage1"
    old.mkdir()
    (old / "file").touch()
    fake_commands.ran.clear()
    steps = quickstart.steps("nano")
    changed = (REPO / steps[1].config).read_text().replace("seed: 42", "seed: 43")
    (tmp_path / "quickstart_stage1.yaml").write_text(changed)
    steps[1] = replace(steps[1], config=str(tmp_path / "quickstart_stage1.yaml"))
    monkeypatch.setattr(quickstart, "steps", lambda _: steps)
    quickstart.run("nano")
    assert fake_commands.ran == ["stage1.yaml", "stage2.yaml", "quickstart.yaml"]
    assert not old.exists() and list(old.parent.glob("stage1-*/file"))


def test_foreign_output_is_moved_aside(fake_commands, tmp_path):
    fake_commands.broken = False
    old = tmp_path / "output" / "quickstart" / "lm"
    old.mkdir(parents=True)
    (old / "file").touch()
    quickstart.run("nano")
    assert not old.exists() and list(old.parent.glob("lm-*/file"))


def test_it_ends_with_the_verdict_and_also_shows_scores_without_one(
    fake_commands, tmp_path, capsys
):
    fake_commands.broken = False
    assert quickstart.run("nano") == tmp_path / "report.html"
    assert capsys.readouterr().out.rstrip("\n").endswith(VERDICT)
    scores = json.loads((tmp_path / "scores.json").read_text())
    (tmp_path / "scores.json").write_text(json.dumps({"scores": scores["scores"]}))
    quickstart.run("nano")
    output = capsys.readouterr().out
    assert "0.600" in output and VERDICT not in output


@pytest.mark.slow
def test_a_different_result_of_a_step_repeats_the_following_ones(fake_commands, tmp_path):
    fake_commands.broken = False
    quickstart.run("nano")
    marker = tmp_path / "output" / "quickstart" / "stage1.step.json"
    state = json.loads(marker.read_text())
    marker.write_text(json.dumps(state | {"result": str(tmp_path / "gone")}))
    (tmp_path / "elsewhere").touch()
    fake_commands.ran.clear()
    quickstart.run("nano")
    assert fake_commands.ran == ["stage1.yaml"]  # its result did not change
    marker.write_text(json.dumps(state | {"result": str(tmp_path / "elsewhere")}))
    fake_commands.ran.clear()
    quickstart.run("nano")
    assert fake_commands.ran == ["stage2.yaml", "quickstart.yaml"]


@pytest.mark.parametrize("preset", ["nano", "mini"])
def test_its_yaml_files_are_valid(preset, monkeypatch):
    monkeypatch.chdir(REPO)
    for step in quickstart.steps(preset):
        assert step.load().run.output_dir


CHILD = """
import signal, sys, time
def save(number, _):
    time.sleep(0.5)
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
print("up", file=sys.stderr, flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_stopped_quickstart_waits_until_its_training_has_saved(number, tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    code = "import sys; from xraygpt.quickstart import _call as call\n"
    code += "print(call([sys.executable, 'child.py']))"
    process = processes.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=processes.PIPE,
        stderr=processes.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert process.stderr.readline() == "up\n"
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # like a terminal
    else:
        process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert output.strip() == "(143, 'saved\\n')"


@pytest.mark.slow
def test_mini_continues_with_the_q_former_of_nano(fake_commands, capsys):
    fake_commands.broken = False
    quickstart.run("nano")
    assert "eval_configs/quickstart.yaml --input" in capsys.readouterr().out
    fake_commands.ran.clear()
    quickstart.run("mini")
    mini = ["mini_lm.yaml", "mini_stage1.yaml", "mini_stage2.yaml"]
    assert fake_commands.ran == [*mini, "mini.yaml"]
    assert "eval_configs/quickstart_mini.yaml --input" in capsys.readouterr().out
    model = quickstart.steps("mini")[3].load().model
    assert model.qformer.init_from == quickstart.steps("nano")[1].load().run.output_dir


@pytest.mark.slow
def test_its_commands_run_on_a_few_phantoms(tmp_path):
    env = {**os.environ, "XRAYGPT_CACHE": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    lm, one, two = (str(tmp_path / name) for name in ("lm", "stage1", "stage2"))
    few = ["run.max_steps=3", "run.batch_size_train=4", "run.eval_samples=4", "run.eval_every=3"]
    parts = {
        "lm": ["reports", "codes", "questions"],
        "stage1": ["codes", "questions"],
        "stage2": ["phantoms"],
    }
    links = {
        "lm": ["model.llm.layers=1"],
        "stage1": [f"model.llama_model={lm}"],
        "stage2": [f"model.llama_model={lm}", f"model.ckpt={one}"],
    }
    for name, labels in parts.items():
        command = [
            sys.executable,
            "train.py",
            "--cfg-path",
            f"train_configs/quickstart_{name}.yaml",
        ]
        studies = [f"datasets.{label}.studies=60" for label in labels]
        command += ["--options", *few, *studies, *links[name], f"run.output_dir={tmp_path / name}"]
        finish(command, env)
    command = [
        sys.executable,
        "train.py",
        "--cfg-path",
        "train_configs/quickstart_mini_stage1.yaml",
    ]
    command += ["--options", *few, *(f"datasets.{d}.studies=60" for d in parts["stage1"])]
    command += [f"model.llama_model={lm}", "model.prompt_template=xraygpt", "model.end_sym=</s>"]
    command += [f"model.q_former_model={one}", f"run.output_dir={tmp_path / 'mini'}"]
    finish(command, env)
    command = [sys.executable, "evaluate.py", "--cfg-path", "eval_configs/quickstart.yaml"]
    command += ["--options", f"model.llama_model={lm}", f"model.ckpt={two}", "run.shuffles=1"]
    command += ["datasets.phantoms.studies=60", f"run.output_dir={tmp_path / 'evaluate'}"]
    result = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    (page,) = tmp_path.glob("evaluate/*/report.html")
    text = page.read_text(encoding="utf-8")
    assert "The images are SYNTHETIC" in text and "drawn macro F1" in text
    assert text.count("<polyline") >= 6  # losses of the three runs
