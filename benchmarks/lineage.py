"""Samples a second in training against a checkout of the original XrayGPT, run as it stands.

    python benchmarks/lineage.py --checkout ~/XrayGPT --python ~/envs/xraygpt/bin/python

The original wants an environment of its own and its weights where its YAML says. Both models are
loaded in a process each, and take the same images (random) and the reports of IU X-ray's train
split (XRAYGPT_DATA) in turn; ours once from pixels and once from stored features, as from the
second epoch on. On a GPU theirs computes in float16, as it is written, ours in bfloat16. Losses
show whether both learn the same; each draws its own prompt. `--cfg-path` is our YAML of the same
model, `--their-cfg` theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from xraygpt.common.cli import run_main
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.datasets.base import Batch, Sample
from xraygpt.datasets.collate import Collator
from xraygpt.datasets.tables import read_table
from xraygpt.experiment import Training, build_model
from xraygpt.media.base import media_from_tensor
from xraygpt.prompting.renderer import IMAGE, Turn

ROOT = Path(__file__).resolve().parents[1]
NAME = "train_configs/xraygpt_openi_finetune.yaml"
# Theirs: told the number of a batch, it takes a step and says how long that was.
THEIRS = """
import argparse, json, sys, time
sys.path.insert(0, sys.argv[1])
import torch, xraygpt
if not str(xraygpt.__file__).startswith(sys.argv[1]):
    sys.exit(f"the package found is {xraygpt.__file__}, not the checkout's")
from xraygpt.common.config import Config
from xraygpt.common.registry import registry
from xraygpt.models import *
job = json.load(open(sys.argv[3]))
config = Config(argparse.Namespace(cfg_path=sys.argv[2], options=None)).model_cfg
model = registry.get_model_class(config.arch).from_config(config).to(job["device"]).train()
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=0.0)
images = torch.load(job["images"]).to(job["device"])
print("READY", flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    loss = model({"image": images, "caption": job["texts"][int(line)]})["loss"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    value = float(loss.detach())
    print("STEP", json.dumps([time.perf_counter() - began, value]), flush=True)
"""


class Ours:
    """Our model of the same YAML, and its steps."""

    def __init__(
        self, config: Path, options: list[str], texts: list[list[str]], device: str
    ) -> None:
        self.model: Any = build_model(load(Training, config, options), 0).to(device).train()
        size = self.model.image_spec.image_size
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(len(texts[0]), 3, size, size, generator=generator)
        collate = Collator(
            self.model.renderer, self.model.media_collator, max_len=self.model.context_len
        )
        self.batches = [self._on(device, collate(self._samples(row))) for row in texts]
        pixels = self.batches[0]["media_inputs"]["pixel_values"]
        self.model.start_caching_queries()
        self.stored = {"features": self.model.encode_frozen(pixels)}
        trained = [p for _, p in self.model.trainable_parameters()]
        self.optimizer, self.device = torch.optim.AdamW(trained, lr=0.0), device

    def _samples(self, texts: list[str]) -> list[Sample]:
        return [
            Sample(
                sample_id=str(i),
                study_id=str(i),
                media=[media_from_tensor(image)],
                turns=[Turn(role="user", text=IMAGE), Turn(role="assistant", text=text)],
                meta={},
                rng_key=str(i),
            )
            for i, (image, text) in enumerate(zip(self.images, texts, strict=True))
        ]

    def _on(self, device: str, batch: Any) -> Batch:
        moved: Any = {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
        moved["media_inputs"] = {k: v.to(device) for k, v in batch["media_inputs"].items()}
        return moved

    def step(self, number: int, stored: bool) -> tuple[float, float]:
        """Seconds of forward, backward and update; the loss."""
        began = time.perf_counter()
        batch = self.batches[number]
        if stored:
            batch = {**batch, "media_inputs": self.stored}
        half = "cuda" in self.device
        with torch.autocast("cuda" if half else "cpu", torch.bfloat16, enabled=half):
            output = self.model(batch)
        loss = output.loss / output.num_targets.sum()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        return time.perf_counter() - began, value


class Theirs:
    """The original in a process of its own."""

    def __init__(self, given: argparse.Namespace, job: Path) -> None:
        command = [given.python, "-c", THEIRS, str(given.checkout), str(given.their_cfg), str(job)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=given.checkout,
            env=environment,
        )
        self._answer("READY")

    def _answer(self, mark: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # it prints other things as well
            if line.startswith(mark):
                return line.removeprefix(mark)
            print(line, end="", file=sys.stderr)
        raise InputError("the original ended too soon; what it says stands above")

    def step(self, number: int) -> tuple[float, float]:
        """Seconds of a step; the loss."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        seconds, loss = json.loads(self._answer("STEP"))
        return seconds, loss

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def reports(batch: int, batches: int) -> list[list[str]]:
    """Findings of IU X-ray's train split."""
    folder = Path(os.environ.get("XRAYGPT_DATA", "data")) / "iu_xray"
    rows = (row for _, row in read_table(folder / "reports.jsonl"))
    texts = [r["findings"] for r in rows if r.get("split") == "train" and r.get("findings")]
    return [texts[i * batch : (i + 1) * batch] for i in range(batches)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, required=True, help="folder of the original")
    parser.add_argument("--python", default=sys.executable, help="of its environment")
    parser.add_argument("--cfg-path", type=Path, default=ROOT / NAME)
    parser.add_argument("--their-cfg", type=Path, help="default: the same name in the checkout")
    parser.add_argument("--options", nargs="*", default=[], help="over our YAML")
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("output/benchmark"))
    given = parser.parse_args()
    given.checkout = given.checkout.expanduser().resolve()
    given.their_cfg = (given.their_cfg or given.checkout / NAME).expanduser().resolve()
    if not (given.checkout / "xraygpt").is_dir():
        raise InputError(f"--checkout {given.checkout}: no folder xraygpt in it")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    texts = reports(given.batch, given.batches)
    ours = Ours(given.cfg_path, given.options, texts, device)
    given.work.mkdir(parents=True, exist_ok=True)
    torch.save(ours.images, given.work / "images.pt")
    images = str((given.work / "images.pt").resolve())
    job = given.work / "job.json"
    job.write_text(json.dumps({"device": device, "images": images, "texts": texts}))
    theirs = Theirs(given, job.resolve())
    taken: dict[str, list[float]] = {"theirs": [], "epoch one": [], "later epochs": []}
    losses: dict[str, list[float]] = {name: [] for name in taken}
    for round_ in range(given.rounds + 1):  # the first warms up
        for number in range(given.batches):
            each = theirs.step(number), ours.step(number, False), ours.step(number, True)
            if round_:
                for name, (seconds, loss) in zip(taken, each, strict=True):
                    taken[name].append(seconds)
                    losses[name].append(loss)
    theirs.close()
    print("mean loss: " + ", ".join(f"{k} {statistics.mean(v):.4f}" for k, v in losses.items()))
    print(f"the original: {given.batch / statistics.median(taken['theirs']):.2f} samples a second")
    for name in ("epoch one", "later epochs"):
        times = [a / b for a, b in zip(taken["theirs"], taken[name], strict=True)]
        low, _, high = statistics.quantiles(times, n=4)
        print(f"{name}: {statistics.median(times):.2f} times as fast ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    sys.exit(run_main(main))
