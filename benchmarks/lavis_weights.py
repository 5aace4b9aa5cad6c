"""Samples per second in training against a checkout of the original XrayGPT, run unchanged.

    python benchmarks/lavis_weights.py --checkout ~/XrayGPT --python ~/envs/xraygpt/bin/python

The original needs its own environment, and its weights at the paths in its YAML. The two models run
in separate processes and process the same random images with reports of IU X-ray's train split
(XRAYGPT_DATA) in turn; ours from pixels, and from stored features as in later epochs. On a GPU the
original computes in float16, as written by its authors, and ours in bfloat16. The mean losses show
whether both compute the same; each samples its own prompts. `--cfg-path` is our YAML of the same
model, `--their-cfg` that of the original.
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

from xraygpt.common.annotation_files import read_table
from xraygpt.common.cli import run_main
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.datasets.base import Batch, Sample
from xraygpt.datasets.collate import Collator
from xraygpt.experiment import Training, build_model
from xraygpt.media.base import media_from_tensor
from xraygpt.prompting.renderer import IMAGE, Turn

ROOT = Path(__file__).resolve().parents[1]
YAML = "train_configs/xraygpt_openi_finetune.yaml"
# Runs in the original's environment: reads batch numbers, takes a step for each, and prints its
# seconds and loss.
ORIGINAL_SCRIPT = """
import argparse, json, sys, time
sys.path.insert(0, sys.argv[1])
import torch, xraygpt
if not str(xraygpt.__file__).startswith(sys.argv[1]):
    sys.exit(f"xraygpt is imported from {xraygpt.__file__}, not the checkout's")
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
    start = time.perf_counter()
    loss = model({"image": images, "caption": job["texts"][int(line)]})["loss"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    value = float(loss.detach())
    print("STEP", json.dumps([time.perf_counter() - start, value]), flush=True)
"""


class OurModel:
    """Our model, its batches and its training step."""

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
        self.batches = [self._to(device, collate(self._samples(row))) for row in texts]
        pixels = self.batches[0]["media_inputs"]["pixel_values"]
        self.model.start_caching_queries()
        self.features = {"features": self.model.encode_frozen(pixels)}
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

    def _to(self, device: str, batch: Any) -> Batch:
        moved: Any = {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
        moved["media_inputs"] = {k: v.to(device) for k, v in batch["media_inputs"].items()}
        return moved

    def step(self, number: int, from_features: bool) -> tuple[float, float]:
        """Seconds of a forward pass, backward pass and update, and the loss."""
        start = time.perf_counter()
        batch = self.batches[number]
        if from_features:
            batch = {**batch, "media_inputs": self.features}
        on_gpu = "cuda" in self.device
        with torch.autocast("cuda" if on_gpu else "cpu", torch.bfloat16, enabled=on_gpu):
            output = self.model(batch)
        loss = output.loss / output.num_targets.sum()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        return time.perf_counter() - start, value


class OriginalModel:
    """The original model in a separate process."""

    def __init__(self, args: argparse.Namespace, job: Path) -> None:
        command = [
            args.python,
            "-c",
            ORIGINAL_SCRIPT,
            str(args.checkout),
            str(args.their_cfg),
            str(job),
        ]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=args.checkout,
            env=environment,
        )
        self._read("READY")

    def _read(self, prefix: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # it also prints other output
            if line.startswith(prefix):
                return line.removeprefix(prefix)
            print(line, end="", file=sys.stderr)
        raise InputError("the original ended before it finished; its output is above")

    def step(self, number: int) -> tuple[float, float]:
        """Seconds of a training step, and the loss."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        seconds, loss = json.loads(self._read("STEP"))
        return seconds, loss

    def close(self) -> None:
        """Stop the process and wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def read_reports(batch: int, batches: int) -> list[list[str]]:
    """Findings sections of IU X-ray's train split, in batches."""
    folder = Path(os.environ.get("XRAYGPT_DATA", "data")) / "iu_xray"
    rows = (row for _, row in read_table(folder / "reports.jsonl"))
    texts = [r["findings"] for r in rows if r.get("split") == "train" and r.get("findings")]
    return [texts[i * batch : (i + 1) * batch] for i in range(batches)]


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, required=True, help="folder of the original")
    parser.add_argument("--python", default=sys.executable, help="interpreter of its environment")
    parser.add_argument("--cfg-path", type=Path, default=ROOT / YAML)
    parser.add_argument("--their-cfg", type=Path, help="default: the same name in the checkout")
    parser.add_argument("--options", nargs="*", default=[], help="key=value overrides of our YAML")
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("output/benchmark"))
    args = parser.parse_args()
    args.checkout = args.checkout.expanduser().resolve()
    args.their_cfg = (args.their_cfg or args.checkout / YAML).expanduser().resolve()
    if not (args.checkout / "xraygpt").is_dir():
        raise InputError(f"--checkout {args.checkout}: no folder xraygpt in it")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    texts = read_reports(args.batch, args.batches)
    ours = OurModel(args.cfg_path, args.options, texts, device)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.save(ours.images, args.work / "images.pt")
    images = str((args.work / "images.pt").resolve())
    job = args.work / "job.json"
    job.write_text(json.dumps({"device": device, "images": images, "texts": texts}))
    theirs = OriginalModel(args, job.resolve())
    times: dict[str, list[float]] = {"theirs": [], "epoch one": [], "later epochs": []}
    losses: dict[str, list[float]] = {name: [] for name in times}
    for round_ in range(args.rounds + 1):  # the first round warms up
        for number in range(args.batches):
            results = theirs.step(number), ours.step(number, False), ours.step(number, True)
            if round_:
                for name, (seconds, loss) in zip(times, results, strict=True):
                    times[name].append(seconds)
                    losses[name].append(loss)
    theirs.close()
    print("mean loss: " + ", ".join(f"{k} {statistics.mean(v):.4f}" for k, v in losses.items()))
    print(f"the original: {args.batch / statistics.median(times['theirs']):.2f} samples per second")
    for name in ("epoch one", "later epochs"):
        ratios = [a / b for a, b in zip(times["theirs"], times[name], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        print(f"{name}: {statistics.median(ratios):.2f} times as fast ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    sys.exit(run_main(main))
