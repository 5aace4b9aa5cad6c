"""A corpus of SYNTHETIC embeddings whose reports can only be read from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.models.stock_vlm.toy import runner, write_yaml
from xraygpt.common.config import load
from xraygpt.datasets.base import Batch, Sample
from xraygpt.datasets.collate import Collator
from xraygpt.experiment import Evaluation
from xraygpt.media.base import Media
from xraygpt.models.prefix_lm.model import PrefixLM

__all__ = ["runner", "write_yaml"]

WIDTH = 16
REPORTS = ("The chamber is small.", "The chamber is large.")
SIZE = {"depth": 2, "width": 64, "heads": 2, "vocab_size": 280, "context": 128}


def tiny_model(*, random_outputs: bool = True, **keys: Any) -> PrefixLM:
    """A tiny model; its output layers are random instead of 0, unless told otherwise."""
    prefix = {"width": WIDTH, "views": ["A4C", "PLAX"], "types": ["colour"]}
    tree = {"prefix": prefix, "llm": {"size": SIZE}}
    for key, value in keys.items():
        *parents, last = key.split("__")
        node: dict[str, Any] = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    model: PrefixLM = PrefixLM.Config.from_keys(**tree).build(texts=lambda: list(REPORTS))
    if random_outputs:
        randomize(model)
    return model.eval()


def randomize(model: torch.nn.Module) -> None:
    """Replace weights that are 0 at first, so that every part has an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, weight in model.named_parameters():
            if not weight.any():
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))


def study(number: int, rows: int, order: Sequence[int] | None = None, repeat: int = 1) -> Sample:
    """A study with some embeddings, in some order, whose views follow them."""
    generator = torch.Generator().manual_seed(number)
    views = [("A4C:colour", "PLAX:", "A5C:", "A4C:")[i % 4] for i in range(rows)]
    order = list(range(rows)) if order is None else order
    data = torch.randn(rows, WIDTH, generator=generator)[order]
    media = [Media(data, "embedding", "|".join(views[i] for i in order))] if rows else []
    return Sample(
        sample_id=f"s{number}",
        study_id=f"s{number}",
        media=media,
        turns=[
            {"role": "user", "text": "<image>" if rows else ""},
            {"role": "assistant", "text": " ".join([REPORTS[number % 2]] * repeat)},
        ],
        meta={},
        rng_key=f"0/0/s{number}",
    )


def collate(model: PrefixLM, samples: Sequence[Sample], prompts: bool = False) -> Batch:
    """Collate for training, or prompts for generation."""
    collator = Collator(model.renderer, model.media_collator, max_len=model.context_len)
    return collator.prompts(samples) if prompts else collator(samples)


def write_toy(folder: Path, count: int = 24, *, without: int = 0) -> Path:
    """Write a table and one `.npy` file for each study; the last `without` studies have none."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    direction = rng.normal(size=WIDTH)
    rows = []
    for i in range(count + without):
        large = i % 2
        row: dict[str, Any] = {
            "id": f"s{i}", "study": f"s{i}", "findings": REPORTS[large],
            "split": "val" if i % 4 in (0, 3) and 8 <= i < count else "train",
        }  # fmt: skip
        if i < count:
            views = 1 + i % 3
            values = rng.normal(size=(views, WIDTH)) + (3 if large else -3) * direction
            np.save(folder / f"s{i}.npy", values.astype(np.float32))
            row |= {"image": f"s{i}.npy", "view": "|".join(["A4C:"] * views)}
        rows.append(json.dumps(row))
    (folder / "studies.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def tree(corpus: Path, output: Path, **keys: Any) -> dict[str, Any]:
    """A training configuration; `keys` such as ``run__max_steps`` change it."""
    config: dict[str, Any] = {
        "model": {
            "arch": "prefix_lm", "prefix": {"width": WIDTH, "views": ["A4C"]},
            "llm": {"size": {**SIZE, "dropout": 0.1}},
        },
        "datasets": {
            "toy": {
                "builder": "records", "storage": str(corpus), "target": "report",
                "sections": ["findings"], "only_images": False, "input_check": False,
            }
        },
        "run": {
            "task": "report_generation", "output_dir": str(output), "max_steps": 4,
            "batch_size_train": 4, "init_lr": 0.02, "log_every": 1, "eval_every": 0,
            "save_every": 0, "seed": 0, "optimizer": {"name": "muon", "adjust_lr": "original"},
        },
    }  # fmt: skip
    for key, value in keys.items():
        *parents, last = key.split("__")
        node = config
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return config


def evaluation(path: Path, config: dict[str, Any], ckpt: Path) -> Evaluation:
    """The evaluation of a trained model on val."""
    chosen = {
        **config,
        "model": {**config["model"], "ckpt": str(ckpt)},
        "run": {
            "task": {"name": "report_generation", "generate": {"max_new_tokens": 20}},
            "output_dir": str(path.parent / "evaluation"), "split": "val",
        },
    }  # fmt: skip
    return load(Evaluation, write_yaml(path, chosen))
