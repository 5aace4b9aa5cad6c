"""Vocabularies, contexts and depths compared on a corpus, for decoders trained from scratch."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.common.logging import progress
from xraygpt.common.numbers import decimal
from xraygpt.datasets.base import reference_text
from xraygpt.experiment import Training, build_runner, split_datasets
from xraygpt.models.llm.token_bytes import count_token_bytes
from xraygpt.models.prefix_lm.model import PrefixLM
from xraygpt.models.prefix_lm.tokenizer import new_report_tokenizer

log = logging.getLogger(__name__)

NOTICE = "Research use only, not for diagnosis."
RESULT, TABLES = "result.json", "sweep"


def run_sweep(args: argparse.Namespace) -> str:
    """Measure the tokenizers, train the decoders, and return the tables as Markdown.

    Args:
        args: Options of `python -m xraygpt.sweep`.

    Raises:
        InputError: The YAML file does not train a decoder from scratch, or a split is empty.
    """
    experiment = load(Training, args.cfg_path, args.options)
    config = experiment.model
    if not isinstance(config, PrefixLM.Config) or config.llm.source is not None:
        raise InputError(
            f"{args.cfg_path}: a sweep needs arch: prefix_lm with a decoder that is trained from "
            "scratch (no llm.source)"
        )
    seed = experiment.run.seed
    train = [text for part in split_datasets(experiment, "train", seed) for text in part.texts()]
    held = [
        reference_text(part.get_turns(i))
        for part in split_datasets(experiment, "val", seed)
        for i in range(len(part))
    ]
    for name, texts in (("train", train), ("val", held)):
        if not any(texts):
            raise InputError(f"{args.cfg_path}: there is no report in {name}")
    args.out.mkdir(parents=True, exist_ok=True)
    sizes = sorted(set(args.vocab_size))
    tokenizers = [
        measure_tokenizer(train, held, size, args.context)
        for size in progress(sizes, "tokenizers", unit="size")
    ]
    pairs = [(size, depth) for depth in sorted(set(args.depth)) for size in sizes]
    trainings = [_train(args, size, depth) for size, depth in progress(pairs, "trainings")]
    result = {"tokenizers": tokenizers, "trainings": trainings, "steps": args.steps}
    (args.out / f"{TABLES}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    text = tables(result, len(train), len(held))
    (args.out / f"{TABLES}.md").write_text(text, encoding="utf-8")
    return text


def measure_tokenizer(
    train: Sequence[str], held: Sequence[str], size: int, contexts: Sequence[int]
) -> dict[str, Any]:
    """Train a tokenizer and measure it on held-out reports.

    Args:
        train: The training texts.
        held: The reports to measure on.
        size: Size of the vocabulary.
        contexts: Lengths of contexts in tokens.

    Returns:
        `vocab_size` (the entries there are), `characters_per_token`, `bytes_per_token`,
        `tokens_per_report` (mean, standard deviation, quantiles) and `too_long`: by context, the
        share of reports with more tokens, of which two are for the beginning and the end.
    """
    tokenizer = new_report_tokenizer(train, size)
    rows = tokenizer(list(held), add_special_tokens=False)["input_ids"]
    counts = np.array([len(row) for row in rows])
    total = max(int(counts.sum()), 1)
    per_token = count_token_bytes(tokenizer)
    assert per_token is not None
    unused = set(range(len(tokenizer))) - {i for row in rows for i in row}
    return {
        "asked": size,
        "vocab_size": len(tokenizer),
        "characters_per_token": sum(map(len, held)) / total,
        "bytes_per_token": sum(int(per_token[row].sum()) for row in rows) / total,
        "unused_on_val": len(unused),
        "tokens_per_report": {
            "mean": float(counts.mean()), "std": float(counts.std()), "min": int(counts.min()),
            "median": float(np.median(counts)), "p95": float(np.quantile(counts, 0.95)),
            "max": int(counts.max()),
        },
        "too_long": {str(n): float((counts + 2 > n).mean()) for n in sorted(set(contexts))},
    }  # fmt: skip


def _train(args: argparse.Namespace, size: int, depth: int) -> dict[str, Any]:
    """Train a decoder, or read the result of an earlier training of the same decoder."""
    folder = args.out / f"vocab-{size}_depth-{depth}"
    options = [
        *args.options,
        f"model.llm.size.vocab_size={size}",
        f"model.llm.size.depth={depth}",
        "model.llm.size.width=null",
        "model.llm.size.heads=null",
        f"run.max_steps={args.steps}",
        "run.max_epoch=null",
        f"run.eval_every={args.steps}",
        f"run.output_dir={folder}",
        "run.resume_ckpt_path=auto",
    ]
    asked = {"options": options[:-2], "cfg": args.cfg_path.read_text(encoding="utf-8")}
    done = _read_result(folder / RESULT, asked)
    if done is not None:
        return done
    runner = build_runner(load(Training, args.cfg_path, options))
    began, step = time.perf_counter(), runner.step
    values = runner.train()
    seconds = (time.perf_counter() - began) / max(runner.step - step, 1)
    result = {
        "vocab_size": size,
        "depth": depth,
        "parameters": sum(p.numel() for p in runner.model.parameters()),
        "bits_per_byte": values.get("val/bits_per_byte"),
        "image_gap": values.get("val/image_gap"),
        "seconds_per_step": seconds,
    }
    text = json.dumps({"asked": asked, "result": result}, indent=1)
    (folder / RESULT).write_text(text, encoding="utf-8")
    return result


def _read_result(path: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Return a stored result; None if there is none, or it was made with other settings."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        result: dict[str, Any] = stored["result"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if stored.get("asked") != asked:
        raise InputError(
            f"{path.parent} was trained with other settings: pass another OUT, or delete it"
        )
    return result


def tables(result: dict[str, Any], train: int, held: int) -> str:
    """Return the result as Markdown; the best of the trainings is named."""
    contexts = list(result["tokenizers"][0]["too_long"])
    head = ["vocabulary", "characters per token", "tokens per report (mean, 95 %, max)"]
    head += [f"longer than {n}" for n in contexts]
    lines = [f"Tokenizers, trained on {train:,} texts, measured on {held:,} reports of val:", ""]
    lines += _table(head, [_tokenizer_row(row) for row in result["tokenizers"]])
    if result["trainings"]:
        lines += ["", f"Decoders after {result['steps']:,} steps, on val:", ""]
        head = ["vocabulary", "depth", "parameters", "bits per byte", "gap", "seconds per step"]
        lines += _table(head, [_training_row(row) for row in result["trainings"]])
        scored = [r for r in result["trainings"] if r["bits_per_byte"] is not None]
        best = min(scored, key=lambda r: float(r["bits_per_byte"]), default=None)
        if best is not None:
            lines += [
                "",
                f"Fewest bits per byte: vocabulary {best['vocab_size']:,}, depth {best['depth']}. "
                "A deeper decoder may only win after more steps. The gap is the loss, in nats per "
                "token, that another study's embeddings add.",
            ]
    return "\n".join([*lines, "", NOTICE, ""])


def _tokenizer_row(row: dict[str, Any]) -> list[str]:
    counts = row["tokens_per_report"]
    return [
        f"{row['vocab_size']:,}",
        f"{row['characters_per_token']:.2f}",
        f"{counts['mean']:.0f}, {counts['p95']:.0f}, {counts['max']:,}",
        *(f"{share:.1%}" for share in row["too_long"].values()),
    ]


def _training_row(row: dict[str, Any]) -> list[str]:
    def number(value: float | None) -> str:
        return "" if value is None else decimal(value, 4)

    return [
        f"{row['vocab_size']:,}",
        str(row["depth"]),
        f"{row['parameters'] / 1e6:.1f} M",
        number(row["bits_per_byte"]),
        number(row["image_gap"]),
        f"{row['seconds_per_step']:.2f}",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
