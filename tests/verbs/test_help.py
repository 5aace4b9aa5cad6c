"""Help and argument errors do not import torch, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

# Commands that import only the standard library until their arguments are valid, and the others,
# whose choices come from modules that may use numpy; each with its required arguments.
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
    "xraygpt.convert_echo": ["source", "out"],
    "xraygpt.pack": ["run", "out"],
    "xraygpt.embed": ["--cfg-path", "out"],
    "xraygpt.sweep": ["--cfg-path", "out"],
    "xraygpt.quickstart": [],
    "xraygpt.prepare_instructions": ["--cfg-path", "--out"],
    "xraygpt.download": [],
    "xraygpt.evaluate_all": ["--cfg-path"],
}
SCRIPTS = sorted((REPO / "Data_Creation_Scripts").rglob("*.py"))
NUMERIC = {
    "xraygpt.compare": ["first", "second"],
    "xraygpt.metrics.paired": ["first", "second"],
    "xraygpt.metrics.agreement": ["DATA"],
    "xraygpt.judge": ["KIND", "FOLDER"],
    "xraygpt.synthesize": ["--out"],
    "xraygpt.prepare_nnunet": ["--out"],
    "xraygpt.prepare_ultrasound": ["IN", "OUT"],
    "xraygpt.prepare_images": ["IN", "OUT"],
    "xraygpt.prepare_conversations": ["STEP"],
    "xraygpt.curate": ["CORPUS or STEP"],
    **{str(path.relative_to(REPO)): ["--reports", "--out"] for path in SCRIPTS},
}
TORCH = ["torch", "torchvision", "transformers", "timm", "accelerate"]

# Missing files and invalid values: (command, arguments, error message).
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
    ("demo.py", [*YAML, "--device", "tpu"], "--device tpu: must be auto, cpu, cuda or cuda:N"),
    ("demo.py", [*YAML, "--share"], "--share opens the page to others"),
    ("xraygpt.serve", ["--cfg-path", "gone.yaml"], "cannot read gone.yaml: No such file"),
    ("xraygpt.serve", [*YAML, "--port", "http"], "'http' is not a whole number"),
    ("xraygpt.serve", [*YAML, "--gpu-id", "0", "--device", "cpu"], "name different devices"),
    ("xraygpt.serve", [*YAML, "--host", "0.0.0.0"], "--host 0.0.0.0 accepts connections"),
    ("xraygpt.embed", ["--cfg-path", "gone.yaml", "out"], "cannot read gone.yaml: No such file"),
    ("xraygpt.embed", [*YAML, "docs"], "docs already exists"),
    ("xraygpt.sweep", ["--cfg-path", "gone.yaml", "out"], "cannot read gone.yaml: No such file"),
    ("xraygpt.sweep", [*YAML, "out", "--vocab-size", "200"], "200: must be at least 272"),
    ("xraygpt.sweep", [*YAML, "README.md"], "README.md is a file; pass a folder"),
    ("xraygpt.probe", ["--cfg-path", "gone.yaml"], "cannot read gone.yaml: No such file"),
    ("xraygpt.probe", [*YAML, "--strength", "-1"], "-1: must be above 0 and finite"),
    ("xraygpt.probe", [*YAML, "--strength", "much"], "'much' is not a number"),
    (
        "xraygpt.probe",
        [*YAML, "--vit-model", "a@b"],
        "--vit-model: a@b: @ must be followed by a number",
    ),
    ("xraygpt.probe", [*YAML, "--vit-model", "a", "b", "--save", "x"], "--save stores the head of"),
    ("xraygpt.validate", ["--cfg-path", "gone.yaml"], "cannot read gone.yaml: No such file"),
    ("xraygpt.score", ["gone"], "gone: no such file or folder"),
    ("xraygpt.convert", ["gone.pth", "new"], "no weights at gone.pth"),
    ("xraygpt.convert", ["README.md", "docs"], "docs already exists"),
    ("xraygpt.convert", ["README.md", "new", "--to", "onnx"], "invalid choice: 'onnx'"),
    (
        "xraygpt.convert",
        ["docs", "new", "--from", "llava", "--base", "gone"],
        "gone: no such folder",
    ),
    ("xraygpt.convert", ["docs", "new", "--from", "blip"], "invalid choice: 'blip'"),
    (
        "xraygpt.convert",
        ["docs", "new", "--from", "llava", "--to", "pth"],
        "--from llava has a format of its own",
    ),
    ("xraygpt.convert_echo", ["gone", "new"], "gone: no such file or folder"),
    ("xraygpt.convert_echo", ["docs", "tests"], "tests already exists"),
    ("xraygpt.convert_echo", ["docs", "new", "--phrases", "gone"], "cannot read gone: No such"),
    ("xraygpt.pack", ["gone", "new"], "no usable checkpoint in gone"),
    ("xraygpt.pack", ["docs", "new", "--finding-head", "gone"], "cannot read gone: No such file"),
    ("xraygpt.quickstart", ["giga"], "invalid choice: 'giga'"),
    ("xraygpt.download", ["nobody"], "'nobody' is neither one of"),
    ("xraygpt.compare", ["gone.jsonl", "gone.jsonl"], "gone.jsonl: no such file or folder"),
    ("xraygpt.metrics.paired", ["gone.jsonl", "gone.jsonl"], "gone.jsonl: no such file or folder"),
    ("xraygpt.metrics.agreement", ["gone"], "gone: no such file or folder"),
    ("xraygpt.metrics.agreement", ["docs"], "docs contains no RadPref/preference_data.json"),
    ("xraygpt.judge", ["green", "gone"], "gone: no such file or folder"),
    ("xraygpt.judge", ["taste", "docs"], "invalid choice: 'taste'"),
    ("xraygpt.judge", ["green", "docs"], "a judge is a language model: choose one with --provider"),
    ("xraygpt.evaluate_all", ["--cfg-path", "gone.yaml"], "cannot read gone.yaml: No such file"),
    (
        "xraygpt.evaluate_all",
        ["--cfg-path", "table_configs/phantom.yaml", "--shard", "3/2"],
        "'3/2' is not K/N",
    ),
    ("xraygpt.synthesize", ["--out", "new", "--studies", "0"], "--studies: must be at least 1"),
    ("xraygpt.synthesize", ["--out", "new", "--texts", "openi"], "--texts: openi requires design"),
    ("xraygpt.synthesize", ["--out", "new", "--views", "top"], "invalid choice: 'top'"),
    ("xraygpt.prepare_nnunet", ["--out", "new"], "there is nothing to prepare: give --acdc"),
    ("xraygpt.prepare_nnunet", ["--out", "new", "--acdc", "gone"], "gone: no such file or folder"),
    ("xraygpt.prepare_ultrasound", ["gone", "new"], "gone: no such file or folder"),
    (
        "xraygpt.prepare_ultrasound",
        ["docs", "new", "--mask-text", "some"],
        "invalid choice: 'some'",
    ),
    ("xraygpt.prepare_ultrasound", ["docs", "new", "--text-frames", "0"], "0: must be at least 1"),
    (
        "xraygpt.prepare_conversations",
        ["filter", "--collection", "mimic", "--out", "new"],
        "did you mean 'mimic_cxr'?",
    ),
    ("xraygpt.prepare_images", ["gone", "new"], "gone: no such file or folder"),
    ("xraygpt.prepare_images", ["docs", "docs"], "IN and OUT are the same folder"),
    ("xraygpt.prepare_images", ["docs", "new", "--quality", "101"], "--quality must be at most"),
    (
        "xraygpt.prepare_instructions",
        ["--cfg-path", "gone.yaml", "--out", "new"],
        "cannot read gone.yaml: No such file",
    ),
    (
        "xraygpt.prepare_instructions",
        ["--cfg-path", "instruction_configs/vindr.yaml", "--out", "README.md"],
        "--out README.md is a file",
    ),
    (
        "xraygpt.prepare_instructions",
        ["--cfg-path", "instruction_configs/vindr.yaml", "--out", "new", "--workers", "0"],
        "0: must be at least 1",
    ),
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
for command, arguments in cases:
    sys.argv, output, code = [command, *arguments], io.StringIO(), 0
    logging.getLogger().handlers.clear()  # they write to the output of the previous command
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        try:
            if command.endswith(".py"):
                runpy.run_path(command, run_name="__main__")
            else:
                runpy.run_module(command, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
    loaded = sorted(set(heavy) & set(sys.modules))
    print(json.dumps({"code": code, "output": output.getvalue(), "loaded": loaded}))
    if loaded:
        break  # all following commands would have it
"""


def run_cases(cases: list[tuple[str, list[str]]], heavy: list[str]) -> list[dict]:
    """Run commands in one process, until one imports a module of `heavy`."""
    result = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps([heavy, cases]), cwd=REPO,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def cases_of(commands: dict[str, list[str]]) -> list[tuple[str, list[str], int, str]]:
    """Command, arguments, expected exit code and part of the expected output."""
    cases = [(command, ["--help"], 0, "usage:") for command in commands]
    cases += [(command, ["--no-such-option"], 2, "usage:") for command in commands]
    cases += [(command, [], 2, name) for command, names in commands.items() for name in names]
    cases += [(name, arguments, 2, text) for name, arguments, text in MISTAKES if name in commands]
    return cases


@pytest.mark.parametrize(
    ("commands", "heavy"),
    [(LIGHT, [*TORCH, "numpy", "gradio"]), (NUMERIC, TORCH)],
    ids=["light", "numeric"],
)
def test_help_and_argument_errors_import_nothing_heavy(commands: dict, heavy: list[str]) -> None:
    cases = cases_of(commands)
    results = run_cases([(command, arguments) for command, arguments, *_ in cases], heavy)
    for (command, arguments, code, message), result in zip(cases, results, strict=False):
        assert not result["loaded"], (command, arguments, result)
        assert result["code"] == code, (command, arguments, result)
        assert message in result["output"], (command, arguments, result)
        assert "Traceback" not in result["output"], (command, arguments, result)
    assert len(results) == len(cases)


def test_every_command_is_tested() -> None:
    """Each file that can be run is in one of the lists above."""
    listed = {*LIGHT, *NUMERIC}
    files = [*REPO.glob("*.py"), *SCRIPTS, *(REPO / "xraygpt").rglob("*.py")]
    for path in files:
        if 'if __name__ == "__main__":' in path.read_text():
            relative = path.relative_to(REPO)
            is_module = relative.parts[0] == "xraygpt"
            name = ".".join(relative.with_suffix("").parts) if is_module else str(relative)
            assert name in listed
    assert {command for command, *_ in MISTAKES} >= listed - {
        str(p.relative_to(REPO)) for p in SCRIPTS
    }


def test_heavy_imports_are_detected(tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text("import colorsys\n")
    assert run_cases([(str(script), [])], ["colorsys"])[0]["loaded"] == ["colorsys"]
