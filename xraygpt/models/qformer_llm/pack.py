"""Bundles an `xraygpt` model into one folder, with the parts that were trained in runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from xraygpt.common.checkpoint import find_checkpoint, is_run_or_checkpoint, write_manifest
from xraygpt.models.llm import llm_files
from xraygpt.models.qformer_llm.assets import read_parts, write_parts
from xraygpt.models.qformer_llm.parts import Composition
from xraygpt.models.vision import run_encoder
from xraygpt.models.weights.files import WEIGHTS, read_weights, save_half
from xraygpt.version import __version__

ENCODER, LLM, HEAD = "encoder", "llm", "finding_head.safetensors"


def pack_parts(model: Composition, state: dict[str, Tensor], folder: Path, out: Path) -> Any:
    """Write a checkpoint's weights, and the encoder, LLM and finding head trained in runs.

    Args:
        model: The model, built from the run's configuration.
        state: The checkpoint's weights.
        folder: The folder to write to.
        out: The path that `folder` will be renamed to.

    Returns:
        The configuration with which `out` can be loaded.

    Raises:
        WeightsError: A value is too large for half precision.
    """
    now, later = _pack_encoder(model.config, folder, out)
    now, later = _pack_llm(now, later, folder, out)
    save_half(state, folder / WEIGHTS)
    head = out / HEAD if model.finding_head is not None else None
    later = replace(later, ckpt=out, finding_head=head)
    packed: Any = replace(now, finding_head=None).build(texts=list)
    if model.finding_head is not None and packed.vision is not None:
        model.finding_head.encoder = packed.vision.digest()  # changed by half precision
        model.finding_head.save(folder / HEAD)
    packed.renderer, packed.abilities = model.renderer, model.abilities
    packed.save_assets(folder)
    write_parts(folder, {**(read_parts(folder) or {}), "vit_model": later.vision.encoder})
    return later


def _pack_encoder(config: Any, folder: Path, out: Path) -> tuple[Any, Any]:
    """Write the encoder if it was trained in a run.

    Returns:
        The configuration that loads it from `folder`, and the one that loads it from `out`.
    """
    if not config.vision.encoder.startswith(run_encoder.RUN_PREFIX):
        return config, config
    name = config.vision.encoder.removeprefix(run_encoder.RUN_PREFIX)
    suffix = run_encoder.BASE_SUFFIX if name.endswith(run_encoder.BASE_SUFFIX) else ""
    source = find_checkpoint(Path(name.removesuffix(run_encoder.BASE_SUFFIX)))
    _, state = read_weights(source)
    target = folder / ENCODER
    target.mkdir()
    save_half({n: t for n, t in state.items() if n.startswith("vision.")}, target / WEIGHTS)
    trained = yaml.safe_load((source / "config.yaml").read_text(encoding="utf-8"))["model"]
    settings = {key: trained.get(key) for key in ("arch", "vit_model", "vit_ckpt", "image_size")}
    (target / "config.yaml").write_text(yaml.safe_dump({"model": settings}), encoding="utf-8")
    write_manifest(target, packed=source.name, xraygpt=__version__)

    def at(place: Path) -> Any:
        encoder = f"{run_encoder.RUN_PREFIX}{place}{suffix}"
        return replace(config, vision=replace(config.vision, encoder=encoder))

    return at(target), at(out / ENCODER)


def _pack_llm(now: Any, later: Any, folder: Path, out: Path) -> tuple[Any, Any]:
    """Write the LLM if it was trained in a run; return configurations like `_pack_encoder`."""
    source = now.llm.source
    if source is None or not is_run_or_checkpoint(Path(source)):
        return now, later
    loaded, tokenizer = llm_files.load_llm(source, "float32")
    llm: Any = loaded
    llm.config._name_or_path = ""  # a path on this machine
    llm.half().save_pretrained(folder / LLM)
    tokenizer.save_pretrained(folder / LLM)
    write_manifest(folder / LLM, packed=find_checkpoint(Path(source)).name, xraygpt=__version__)
    return (
        replace(now, llm=replace(now.llm, source=str(folder / LLM))),
        replace(later, llm=replace(later.llm, source=str(out / LLM))),
    )
