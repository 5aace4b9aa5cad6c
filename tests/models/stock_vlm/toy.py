"""A corpus in LLaVA's format whose answers can only be read from the pixels, and runs on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from xraygpt.common.config import load
from xraygpt.experiment import Evaluation, Training, build_runner
from xraygpt.runners.train_loop import Runner

ANSWERS = ("The image is dark.", "The image is bright.")


def write_toy(folder: Path, count: int = 16, *, text_only: int = 0, clips: bool = False) -> Path:
    """Write `corpus.json` with images that are dark or bright, and their PNG files.

    Args:
        folder: The folder to create.
        count: Number of records with media; from the eighth on, half are in val.
        text_only: Number of further records without media.
        clips: Whether every second record has a clip of four frames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        bright = i % 2
        files = [f"{i}_{k}.png" for k in range(4 if clips and i % 4 > 1 else 1)]
        for name in files:
            values = rng.integers(0, 60, (56, 56 + 28 * (i % 3))) + 180 * bright
            Image.fromarray(values.astype(np.uint8)).save(folder / name)
        is_clip = len(files) > 1
        media = {"video": [files]} if is_clip else {"image": files[0]}
        question = f"<{'video' if is_clip else 'image'}>\nWhat is there?"
        rows.append(
            _row(
                i,
                question,
                ANSWERS[bright],
                "val" if i % 4 in (0, 3) and i >= 8 else "train",
                **media,
            )
        )
    rows += [_row(count + i, "What is clear?", "Clear lungs.", "train") for i in range(text_only)]
    (folder / "corpus.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def _row(number: int, question: str, answer: str, split: str, **media: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": f"s{number}", "split": split, **media, "conversations": turns}


def tree(model: Path, corpus: Path, output: Path, **keys: Any) -> dict[str, Any]:
    """A training configuration; `keys` such as ``run__max_steps`` change it."""
    config: dict[str, Any] = {
        "model": {"arch": "stock_vlm", "path": str(model)},
        "datasets": {
            "toy": {"builder": "llava", "storage": str(corpus), "annotations": "corpus.json"}
        },
        "run": {
            "task": "free_text", "output_dir": str(output), "max_steps": 4, "batch_size_train": 4,
            "init_lr": 3e-3, "log_every": 1, "eval_every": 0, "save_every": 0, "seed": 0,
        },
    }  # fmt: skip
    for key, value in keys.items():
        *parents, last = key.split("__")
        node = config
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return config


def write_yaml(path: Path, config: dict[str, Any]) -> Path:
    """Write a configuration."""
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def runner(path: Path, config: dict[str, Any]) -> Runner:
    """Build the runner of a configuration, written to `path`."""
    return build_runner(load(Training, write_yaml(path, config)))


def evaluation(path: Path, config: dict[str, Any], ckpt: Path, **run: Any) -> Evaluation:
    """The evaluation of a trained configuration on val."""
    task = {"name": "free_text", "generate": {"max_new_tokens": 12}}
    changed = {
        **config,
        "model": {**config["model"], "ckpt": str(ckpt)},
        "run": {"task": task, "output_dir": str(path.parent / "evaluated"), **run},
    }
    return load(Evaluation, write_yaml(path, changed))
