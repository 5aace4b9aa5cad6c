"""Everything a run trained, in one folder, matrices in half precision."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from xraygpt import __version__
from xraygpt.common.checkpoint import find_checkpoint, is_run_like, seal
from xraygpt.common.config import load, to_tree
from xraygpt.common.errors import WeightsError
from xraygpt.common.publishing import publish_folder, refuse_taken
from xraygpt.experiment import Training
from xraygpt.models import adopt, llm_files, own_encoder
from xraygpt.models.weight_files import WEIGHTS, read_weights
from xraygpt.models.xraygpt import XrayGPT

ENCODER, LLM, HEAD = "encoder", "llm", "finding_head.safetensors"


def pack(run: Path, out: Path, head: Path | None = None) -> None:
    """Make the folder.

    Args:
        run: A run, ``<run>/best`` or a checkpoint of `arch: xraygpt`.
        out: The folder to make; a path relative to where its YAML will be used.
        head: Fitted on features of the run's encoder; None takes that of its YAML, if it has one.

    Raises:
        InputError: Something is there already.
        WeightsError: It is no such run, or a part it rests on is gone or was trained anew.
    """
    refuse_taken(out)
    checkpoint = find_checkpoint(run)
    experiment = load(Training, checkpoint / "config.yaml", ["model.ckpt=null"])
    config: Any = experiment.model
    if not isinstance(config, XrayGPT.Config):
        raise WeightsError(f"{run} is a run of another arch; only `arch: xraygpt` can be packed")
    head = head or config.finding_head
    config = replace(config, finding_head=head)
    model: XrayGPT = config.build(texts=list)
    model.check_assets(checkpoint)  # the parts it rests on are those it was trained with
    _, state = read_weights(checkpoint)

    def write(folder: Path) -> None:
        inside, outside = _pack_encoder(config, folder, out)
        inside, outside = _pack_llm(model, inside, outside, folder, out)
        _save(state, folder / WEIGHTS)
        outside = replace(outside, ckpt=out, finding_head=out / HEAD if head else None)
        described = {"model": to_tree(outside)}  # data's paths are one's own
        (folder / "config.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
        packed: XrayGPT = replace(inside, finding_head=None).build(texts=list)
        if model.finding_head is not None and packed.vision is not None:
            model.finding_head.encoder = packed.vision.digest()  # in half precision now
            model.finding_head.save(folder / HEAD)
        packed.save_assets(folder)
        parts = json.loads((folder / adopt.PARTS).read_text(encoding="utf-8"))
        parts["vit_model"] = outside.vit_model
        (folder / adopt.PARTS).write_text(json.dumps(parts, indent=1), encoding="utf-8")

    publish_folder(out, write, {"packed": checkpoint.name, "xraygpt": __version__})


def _pack_encoder(config: Any, folder: Path, out: Path) -> tuple[Any, Any]:
    """Write the encoder of a run.

    Returns:
        The configuration as it is while `folder` is filled, and as it is when `out` is there.
    """
    if not config.vit_model.startswith(own_encoder.PREFIX):
        return config, config
    name = config.vit_model.removeprefix(own_encoder.PREFIX)
    beside = own_encoder.BESIDE if name.endswith(own_encoder.BESIDE) else ""
    source = find_checkpoint(Path(name.removesuffix(own_encoder.BESIDE)))
    _, state = read_weights(source)
    target = folder / ENCODER
    target.mkdir()
    _save({n: t for n, t in state.items() if n.startswith("vision.")}, target / WEIGHTS)
    trained = yaml.safe_load((source / "config.yaml").read_text(encoding="utf-8"))["model"]
    kept = {key: trained.get(key) for key in ("arch", "vit_model", "vit_ckpt", "image_size")}
    (target / "config.yaml").write_text(yaml.safe_dump({"model": kept}), encoding="utf-8")
    seal(target, packed=source.name, xraygpt=__version__)
    return (
        replace(config, vit_model=f"{own_encoder.PREFIX}{target}{beside}"),
        replace(config, vit_model=f"{own_encoder.PREFIX}{out / ENCODER}{beside}"),
    )


def _pack_llm(
    model: XrayGPT, inside: Any, outside: Any, folder: Path, out: Path
) -> tuple[Any, Any]:
    """Write the LLM of a run; configurations as `_pack_encoder` gives them."""
    source = inside.llama_model
    if source is None or not is_run_like(Path(source)):
        return inside, outside
    loaded, tokenizer = llm_files.load_llm(source, "float32")
    llm: Any = loaded
    llm.config._name_or_path = ""  # a path of this machine
    llm.half().save_pretrained(folder / LLM)
    tokenizer.save_pretrained(folder / LLM)
    seal(folder / LLM, packed=find_checkpoint(Path(source)).name, xraygpt=__version__)
    return (
        replace(inside, llama_model=str(folder / LLM)),
        replace(outside, llama_model=str(out / LLM)),
    )


def _save(state: dict[str, Tensor], path: Path) -> None:
    """Matrices in half precision; vectors, among them running variances, as they are.

    Raises:
        WeightsError: A value is too large for it.
    """
    packed = {n: t.half() if t.is_floating_point() and t.dim() > 1 else t for n, t in state.items()}
    large = [n for n, t in packed.items() if t.is_floating_point() and not t.isfinite().all()]
    if large:
        raise WeightsError(f"{large[0]} holds values beyond half precision (65504)")
    save_file({n: t.contiguous() for n, t in packed.items()}, path)
