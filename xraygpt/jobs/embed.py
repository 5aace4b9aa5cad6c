"""Encodes the images of a corpus as a few embeddings each, and writes them as a new corpus."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from xraygpt.common import distributed
from xraygpt.common.errors import InputError
from xraygpt.common.publishing import publish_folder
from xraygpt.datasets.base import Record, Split, StudyDataset, reference_text
from xraygpt.datasets.builder import build_corpora
from xraygpt.jobs.probe import encode_images
from xraygpt.media.row_labels import join_row_labels
from xraygpt.models.vision.encoders import build_vision
from xraygpt.processors.image import ImageSpec
from xraygpt.version import __version__

log = logging.getLogger(__name__)

EMBEDDINGS, TABLE, STATISTICS = "embeddings.safetensors", "studies.jsonl", "statistics.safetensors"
SPLITS: tuple[Split, ...] = ("train", "val", "test", "lockbox")
NOTICE = "Research use only, not for diagnosis."
_MIN_STD = 1e-6
_MAX_OTHERS = 5  # a class token and four registers


def embed_corpus(
    experiment: Any,
    vit_model: str,
    out: Path,
    *,
    grid: int = 0,
    statistics: Path | None = None,
    device: str = "auto",
) -> str:
    """Encode all splits of a configuration's first corpus.

    Args:
        experiment: The configuration.
        vit_model: A value for `model.vit_model`, optionally with ``@pixels``.
        out: The folder to create.
        grid: Cells on a side of the grid whose means are added; 0 adds none.
        statistics: File with the mean and the standard deviation to standardize with; None computes
            them over the training split.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        A message about what was written, with the section for a YAML file.

    Raises:
        InputError: There is no training split to compute statistics over, or the statistics belong
            to other embeddings.
    """
    name, _, size = vit_model.partition("@")
    accelerator = distributed.make_accelerator(device, training=False)
    encoder = build_vision(name, int(size) if size else None, None).freeze()
    encoder = encoder.to(accelerator.device)
    spec = ImageSpec(**vars(encoder.input_spec), tokens_per_image=1)
    builder = build_corpora(experiment.datasets, spec)[0]
    views = view_names(grid)
    rows, parts = [], []
    for split in SPLITS:
        data: StudyDataset = builder.build(split, "eval")
        for record, images in encode_images(encoder, name, data, accelerator):
            parts.append(torch.stack([pool(image, grid) for image in images]))  # (I, V, D)
            rows.append(_row(record, split, data, len(images)))
    if not rows:
        raise InputError(f"{builder.config.storage}: there is no readable image in any split")
    in_train = [part for part, row in zip(parts, rows, strict=True) if row["split"] == "train"]
    mean, std = _statistics(in_train, statistics, (len(views), encoder.width))
    start = 0
    for row, part in zip(rows, parts, strict=True):
        count = part.shape[0] * part.shape[1]
        labels = views * part.shape[0]
        row |= {"start": start, "count": count, "view": labels}
        row["images"] = [
            {
                "path": EMBEDDINGS, "kind": "embedding", "frames": [start, start + count, 1],
                "view": join_row_labels(labels, [""] * count),
            }
        ]  # fmt: skip
        start += count
    values = torch.cat([((part - mean) / std).flatten(0, 1) for part in parts])

    def write(folder: Path) -> None:
        save_file({"embeddings": values.half()}, folder / EMBEDDINGS)
        save_file({"mean": mean, "std": std}, folder / STATISTICS)
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        (folder / TABLE).write_text(lines, encoding="utf-8")

    facts = {"encoder": vit_model, "encoder_sha256": encoder.digest(), "xraygpt": __version__}
    publish_folder(out, write, {"embedded": facts})
    return _message(out, rows, views, encoder.width)


def view_names(grid: int) -> list[str]:
    """Return the names of the embeddings of an image: ``mean``, ``max``, ``r0c0`` …."""
    cells = [f"r{row}c{column}" for row in range(grid) for column in range(grid)]
    return ["mean", "max", *cells]


def pool(features: Tensor, grid: int) -> Tensor:
    """Reduce (L, D) features of a square of patches to their (2 + grid², D) means and maximum.

    Raises:
        InputError: The patches are no square, or fewer than the cells of the grid.
    """
    pooled = [features.mean(dim=0, keepdim=True), features.amax(dim=0, keepdim=True)]
    if grid:
        side = math.isqrt(len(features))
        others = len(features) - side * side  # class and register tokens, which come first
        if others > _MAX_OTHERS or side < grid:
            raise InputError(
                f"--grid {grid}: the encoder returns {len(features)} features of an image, which "
                f"cannot be divided into {grid} x {grid} cells"
            )
        square = features[others:].T.reshape(1, -1, side, side)
        pooled.append(F.adaptive_avg_pool2d(square, grid).flatten(2)[0].T)
    return torch.cat(pooled)


def _row(record: Record, split: str, data: StudyDataset, images: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": record.sample_id,
        "study": record.study_id,
        "split": split,
        "report": reference_text(record.get_turns(f"{data.seed}/0/{record.sample_id}")),
        "images_encoded": images,
    }
    kept = ("codes", "source", "licence", "boxes", "labels")
    return row | {name: record.meta[name] for name in kept if record.meta.get(name) is not None}


def _statistics(
    train: list[Tensor], path: Path | None, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the (V, D) means and standard deviations over the training split, or from a file."""
    if path is None:
        if not train:
            raise InputError(
                "there is no training split to standardize the embeddings by: pass --statistics "
                f"{STATISTICS} of the embeddings that the model was trained on"
            )
        values = torch.cat(train)
        return values.mean(dim=0), values.std(dim=0, unbiased=False) + _MIN_STD
    try:
        stored = load_file(path)
        mean, std = stored["mean"], stored["std"]
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(f"--statistics {path} cannot be read: {error}") from None
    if mean.shape != shape:
        raise InputError(
            f"--statistics {path} has {mean.shape[0]} embeddings of width {mean.shape[1]} per "
            f"image, but these are {shape[0]} of width {shape[1]}: use the same encoder and --grid"
        )
    return mean, std


def _message(out: Path, rows: list[dict[str, Any]], views: list[str], width: int) -> str:
    counts = {s: sum(row["split"] == s for row in rows) for s in SPLITS}
    splits = ", ".join(f"{n:,} {s}" for s, n in counts.items() if n)
    listed = f"{views[0]}, {views[1]}" + (f", {views[2]} … {views[-1]}" if views[2:] else "")
    return (
        f"{out}: {splits}; {len(views)} embeddings of width {width} for each image ({listed}). "
        f"{NOTICE}\n\n"
        "model:\n"
        "  arch: prefix_lm\n"
        f"  prefix: {{width: {width}, views: [{', '.join(views)}]}}\n"
        "datasets:\n"
        "  embeddings:\n"
        "    builder: records\n"
        f"    storage: {out}\n"
        "    sections: [report]\n"
    )
