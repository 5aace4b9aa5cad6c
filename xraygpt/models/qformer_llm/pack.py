"""An `xraygpt` model in one folder: what was trained here goes in, what is others' stays out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from xraygpt.common.checkpoint import find_checkpoint, is_run_or_checkpoint, write_manifest
from xraygpt.models.llm import llm_files
from xraygpt.models.qformer_llm import import_weights
from xraygpt.models.qformer_llm.parts import Composition
from xraygpt.models.vision import run_encoder
from xraygpt.models.weights.files import WEIGHTS, read_weights, save_half
from xraygpt.version import __version__

ENCODER, LLM, HEAD = "encoder", "llm", "finding_head.safetensors"


def pack_parts(model: Composition, state: dict[str, Tensor], folder: Path, out: Path) -> Any:
    """Write the weights of a checkpoint, and the encoder, LLM and head that were trained here.

    Args:
        model: Built from the run's configuration.
        state: Of its checkpoint.
        folder: Where to write.
        out: What `folder` will be called.

    Returns:
        The configuration that loads the folder.

    Raises:
        WeightsError: A value is too large for half precision.
    """
    inside, outside = _pack_encoder(model.config, folder, out)
    inside, outside = _pack_llm(inside, outside, folder, out)
    save_half(state, folder / WEIGHTS)
    head = out / HEAD if model.finding_head is not None else None
    outside = replace(outside, ckpt=out, finding_head=head)
    packed: Any = replace(inside, finding_head=None).build(texts=list)
    if model.finding_head is not None and packed.vision is not None:
        model.finding_head.encoder = packed.vision.digest()  # in half precision now
        model.finding_head.save(folder / HEAD)
    packed.renderer = model.renderer
    packed.save_assets(folder)
    parts = json.loads((folder / import_weights.PARTS).read_text(encoding="utf-8"))
    parts["vit_model"] = outside.vit_model
    (folder / import_weights.PARTS).write_text(json.dumps(parts, indent=1), encoding="utf-8")
    return outside


def _pack_encoder(config: Any, folder: Path, out: Path) -> tuple[Any, Any]:
    """Write the encoder of a run.

    Returns:
        The configuration as it is while `folder` is filled, and as it is when `out` is there.
    """
    if not config.vit_model.startswith(run_encoder.RUN_PREFIX):
        return config, config
    name = config.vit_model.removeprefix(run_encoder.RUN_PREFIX)
    beside = run_encoder.BASE_SUFFIX if name.endswith(run_encoder.BASE_SUFFIX) else ""
    source = find_checkpoint(Path(name.removesuffix(run_encoder.BASE_SUFFIX)))
    _, state = read_weights(source)
    target = folder / ENCODER
    target.mkdir()
    save_half({n: t for n, t in state.items() if n.startswith("vision.")}, target / WEIGHTS)
    trained = yaml.safe_load((source / "config.yaml").read_text(encoding="utf-8"))["model"]
    kept = {key: trained.get(key) for key in ("arch", "vit_model", "vit_ckpt", "image_size")}
    (target / "config.yaml").write_text(yaml.safe_dump({"model": kept}), encoding="utf-8")
    write_manifest(target, packed=source.name, xraygpt=__version__)
    return (
        replace(config, vit_model=f"{run_encoder.RUN_PREFIX}{target}{beside}"),
        replace(config, vit_model=f"{run_encoder.RUN_PREFIX}{out / ENCODER}{beside}"),
    )


def _pack_llm(inside: Any, outside: Any, folder: Path, out: Path) -> tuple[Any, Any]:
    """Write the LLM of a run; configurations as `_pack_encoder` gives them."""
    source = inside.llama_model
    if source is None or not is_run_or_checkpoint(Path(source)):
        return inside, outside
    loaded, tokenizer = llm_files.load_llm(source, "float32")
    llm: Any = loaded
    llm.config._name_or_path = ""  # a path of this machine
    llm.half().save_pretrained(folder / LLM)
    tokenizer.save_pretrained(folder / LLM)
    write_manifest(folder / LLM, packed=find_checkpoint(Path(source)).name, xraygpt=__version__)
    return (
        replace(inside, llama_model=str(folder / LLM)),
        replace(outside, llama_model=str(out / LLM)),
    )
