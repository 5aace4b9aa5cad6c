"""Help and argument errors come without torch, which takes seconds to load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

# Verbs that load nothing but the standard library until their arguments are right, and the others,
# whose choices come from modules that may use numpy.
LIGHT = {
    "train.py": ["--cfg-path"],
    "evaluate.py": ["--cfg-path"],
    "predict.py": ["--cfg-path"],
    "demo.py": ["--cfg-path"],
    "xraygpt.serve": ["--cfg-path"],
    "xraygpt.probe": ["--cfg-path"],
    "xraygpt.validate": ["--cfg-path"],
    "xraygpt.score": ["folder"],
    "xraygpt.convert": ["source", "out"],
    "xraygpt.pack": ["run", "out"],
    "xraygpt.quickstart": [],
    "xraygpt.download": [],
}
SCRIPTS = sorted((REPO / "Data_Creation_Scripts").rglob("*.py"))
NUMERIC = {
    "xraygpt.compare": ["first", "second"],
    "xraygpt.metrics.paired": ["first", "second"],
    "xraygpt.synthesize": ["--out"],
    "xraygpt.curate": ["CORPUS or STEP"],
    **{str(path.relative_to(REPO)): ["--reports", "--out"] for path in SCRIPTS},
}
TORCH = ["torch", "torchvision", "transformers", "timm", "accelerate"]

# Files that are not there and values that are wrong: (verb, arguments, what is said of them).
YAML = ["--cfg-path", "eval_configs/quickstart.yaml"]
FILTER = ["filter", "openi", "--out", "new.jsonl", "--reports"]
MISTAKES = [
    ("train.py", ["--cfg-path", "gone.yaml"], "cannot read gone.yaml: No such file"),
    ("train.py", ["--cfg-path", "docs"], "cannot read docs: Is a directory"),
    ("train.py", [*YAML, "--options", "seed"], "'seed': expected key.path=value"),
    ("evaluate.py", ["--cfg-path", "gone.yaml"], "cannot read gone.yaml: No such file"),
    ("evaluate.py", [*YAML, "--shard", "3/2"], "'3/2' is not K/N"),
    ("predict.py", ["--cfg-path", "gone.yaml"], "cannot read gone.yaml: No such file"),
    ("predict.py", [*YAML], "--input is missing"),
    ("predict.py", [*YAML, "--input", "gone.png"], "gone.png: no such file or folder"),
    ("predict.py", [*YAML, "--batch-size", "0"], "0: must be at least 1"),
    ("predict.py", [*YAML, "--device", "tpu"], "invalid choice: 'tpu'"),
    ("demo.py", ["--cfg-path", "gone.yaml"], "cannot read gone.yaml: No such file"),
    ("demo.py", [*YAML, "--examples", "gone"], "gone: no such file or folder"),
    ("demo.py", [*YAML, "--auth", "gone"], "--auth gone: No such file"),
    ("demo.py", [*YAML, "--device", "tpu"], "--device tpu: one of auto, cpu, cuda, cuda:N"),
    ("demo.py", [*YAML, "--share"], "--share opens the page to others"),
    ("xraygpt.serve", ["--cfg-path", "gone.yaml"], "cannot read gone.yaml: No such file"),
    ("xraygpt.serve", [*YAML, "--port", "http"], "'http' is not a whole number"),
    ("xraygpt.serve", [*YAML, "--gpu-id", "0", "--device", "cpu"], "name two devices"),
    ("xraygpt.serve", [*YAML, "--host", "0.0.0.0"], "--host 0.0.0.0 is open to others"),
    ("xraygpt.probe", ["--cfg-path", "gone.yaml"], "cannot read gone.yaml: No such file"),
    ("xraygpt.probe", [*YAML, "--over", "-1"], "-1: must be above 0 and finite"),
    ("xraygpt.probe", [*YAML, "--strength", "much"], "'much' is not a number"),
    ("xraygpt.probe", [*YAML, "--vit-model", "a@b"], "--vit-model: a@b: after @ stands a number"),
    ("xraygpt.probe", [*YAML, "--vit-model", "a", "b", "--save", "x"], "--save keeps the head of"),
    ("xraygpt.validate", ["--cfg-path", "gone.yaml"], "cannot read gone.yaml: No such file"),
    ("xraygpt.score", ["gone"], "gone: no such file or folder"),
    ("xraygpt.convert", ["gone.pth", "new"], "no weights at gone.pth"),
    ("xraygpt.convert", ["README.md", "docs"], "docs is there already"),
    ("xraygpt.convert", ["README.md", "new", "--to", "onnx"], "invalid choice: 'onnx'"),
    ("xraygpt.pack", ["gone", "new"], "no usable checkpoint in gone"),
    ("xraygpt.pack", ["docs", "new", "--finding-head", "gone"], "cannot read gone: No such file"),
    ("xraygpt.quickstart", ["giga"], "invalid choice: 'giga'"),
    ("xraygpt.download", ["nobody"], "'nobody' is none of"),
    ("xraygpt.compare", ["gone.jsonl", "gone.jsonl"], "gone.jsonl: no such file or folder"),
    ("xraygpt.metrics.paired", ["gone.jsonl", "gone.jsonl"], "gone.jsonl: no such file or folder"),
    ("xraygpt.synthesize", ["--out", "new", "--studies", "0"], "--studies: must be at least 1"),
    ("xraygpt.synthesize", ["--out", "new", "--texts", "openi"], "--texts: openi needs design"),
    ("xraygpt.synthesize", ["--out", "new", "--views", "top"], "invalid choice: 'top'"),
    ("xraygpt.curate", ["padchest"], "invalid choice: 'padchest'"),
    ("xraygpt.curate", [*FILTER, "gone"], "gone"),
    (
        "xraygpt.curate",
        [*FILTER, "docs", "--min-findings-words", "-1"],
        "--min-findings-words: must",
    ),
]

RUN = """
import contextlib, io, json, logging, runpy, sys
heavy, cases = json.load(sys.stdin)
import xraygpt
for verb, arguments in cases:
    sys.argv, said, code = [verb, *arguments], io.StringIO(), 0
    logging.getLogger().handlers.clear()  # it holds the output of the verb before
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            if verb.endswith(".py"):
                runpy.run_path(verb, run_name="__main__")
            else:
                runpy.run_module(verb, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
    loaded = sorted(set(heavy) & set(sys.modules))
    print(json.dumps({"code": code, "said": said.getvalue(), "loaded": loaded}))
    if loaded:
        break  # it would be there for all verbs that follow
"""


def ask(cases: list[tuple[str, list[str]]], heavy: list[str]) -> list[dict]:
    """What verbs say, one after another in one process, as far as they load nothing heavy."""
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps([heavy, cases]), cwd=REPO,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("verbs", "heavy"),
    [(LIGHT, [*TORCH, "numpy", "gradio"]), (NUMERIC, TORCH)],
    ids=["light", "numeric"],
)
def test_help_and_argument_errors_load_nothing_heavy(verbs: dict, heavy: list[str]) -> None:
    cases = [(verb, ["--help"], 0, "usage:") for verb in verbs]
    cases += [(verb, ["--no-such-option"], 2, "usage:") for verb in verbs]
    cases += [(verb, [], 2, name) for verb, required in verbs.items() for name in required]
    cases += [(verb, given, 2, says) for verb, given, says in MISTAKES if verb in verbs]
    found = ask([(verb, given) for verb, given, *_ in cases], heavy)
    for (verb, given, code, says), answer in zip(cases, found, strict=False):
        assert not answer["loaded"], (verb, given, answer)
        assert answer["code"] == code, (verb, given, answer)
        assert says in answer["said"], (verb, given, answer)
        assert "Traceback" not in answer["said"], (verb, given, answer)
    assert len(found) == len(cases)


def test_every_verb_is_asked() -> None:
    """A file that can be run stands in one of the lists above."""
    named = {*LIGHT, *NUMERIC}
    files = [*REPO.glob("*.py"), *SCRIPTS, *(REPO / "xraygpt").rglob("*.py")]
    for path in files:
        if 'if __name__ == "__main__":' in path.read_text():
            place = path.relative_to(REPO)
            inside = place.parts[0] == "xraygpt"
            assert (".".join(place.with_suffix("").parts) if inside else str(place)) in named
    assert {verb for verb, *_ in MISTAKES} >= named - {str(p.relative_to(REPO)) for p in SCRIPTS}


def test_the_check_sees_what_is_loaded(tmp_path: Path) -> None:
    script = tmp_path / "verb.py"
    script.write_text("import colorsys\n")
    assert ask([(str(script), [])], ["colorsys"])[0]["loaded"] == ["colorsys"]
