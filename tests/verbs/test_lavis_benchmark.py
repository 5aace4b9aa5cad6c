"""The benchmark against XrayGPT's original, with a stub instead of a checkout."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests import processes
from tests.conftest import REPO

STUB = {
    "__init__": "",
    "common/__init__": "",
    "common/config": (
        "from types import SimpleNamespace\n"
        "class Config:\n"
        "    def __init__(self, args):\n"
        "        print('unrelated output', args.cfg_path)\n"
        "        self.model_cfg = SimpleNamespace(arch='mini_gpt4')\n"
    ),
    "common/registry": (
        "class registry:\n"
        "    models = {}\n"
        "    @classmethod\n"
        "    def get_model_class(cls, name): return cls.models[name]\n"
    ),
    "models/__init__": (
        "import torch\n"
        "from xraygpt.common.registry import registry\n"
        "class Stub(torch.nn.Linear):\n"
        "    @classmethod\n"
        "    def from_config(cls, cfg): return cls(1, 1)\n"
        "    def forward(self, samples):\n"
        "        with open('seen', 'a') as file:\n"
        "            print(len(samples['image']), *samples['caption'], sep='|', file=file)\n"
        "        return {'loss': self.weight.sum()}\n"
        "registry.models['mini_gpt4'] = Stub\n"
    ),
}
YAML = """
model: {arch: xraygpt, model_type: tiny, prompt_template: xraygpt}
datasets: {none: {builder: records, storage: none}}
run: {task: report_generation, output_dir: none, max_steps: 1}
"""


def run(tmp_path, *arguments):
    (tmp_path / "ours.yaml").write_text(YAML)
    data = tmp_path / "data" / "iu_xray"
    data.mkdir(parents=True, exist_ok=True)
    rows = [{"split": "train", "findings": f"Report {i}."} for i in range(6)]
    rows.insert(2, {"split": "test", "findings": "Never used."})
    (data / "reports.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    command = [sys.executable, str(REPO / "benchmarks" / "lavis_weights.py")]
    command += ["--checkout", str(tmp_path / "original"), "--their-cfg", "theirs.yaml"]
    command += ["--cfg-path", str(tmp_path / "ours.yaml"), "--batch", "2", "--batches", "2"]
    command += ["--work", str(tmp_path / "work"), *arguments]
    environment = {**os.environ, "XRAYGPT_DATA": str(tmp_path / "data")}
    return processes.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)


@pytest.mark.slow
def test_both_sides_use_the_same_reports_in_the_same_order(tmp_path):
    checkout = tmp_path / "original"
    for name, text in STUB.items():
        path = checkout / "xraygpt" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    result = run(tmp_path, "--rounds", "2")
    assert result.returncode == 0, result.stderr
    for line in ("mean loss: theirs", "the original:", "epoch one:", "later epochs:"):
        assert line in result.stdout
    rows = ["2|Report 0.|Report 1.", "2|Report 2.|Report 3."] * 3  # a warm-up and two rounds
    assert (checkout / "seen").read_text().splitlines() == rows


@pytest.mark.slow
def test_an_invalid_checkout_is_reported(tmp_path):
    result = run(tmp_path)
    assert result.returncode and "no folder xraygpt in it" in result.stderr
    (tmp_path / "original" / "xraygpt").mkdir(parents=True)
    result = run(tmp_path)
    assert (
        result.returncode and "not the checkout's" in result.stderr
    )  # this project is installed here
    assert result.stderr.rstrip().endswith("its output is above")
