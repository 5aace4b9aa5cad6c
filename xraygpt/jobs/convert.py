"""Weights of others into our layout, and ours into the layouts of others."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from xraygpt.common.checkpoint import digest, find_checkpoint, is_run_like, manifest_of, seal
from xraygpt.common.config import load
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.common.publishing import publish_folder
from xraygpt.common.registry import did_you_mean
from xraygpt.experiment import Training
from xraygpt.models.base import BaseModel
from xraygpt.models.capabilities import Exports, ExportSettings, named, require
from xraygpt.models.llm import llm_files
from xraygpt.models.qformer_llm.export import save_sharded, write_llm
from xraygpt.models.vision import encoders
from xraygpt.models.vision.published import is_eva
from xraygpt.models.weights import lavis
from xraygpt.models.weights.files import is_converted, read_state_dict, weight_files
from xraygpt.models.weights.rules import Account
from xraygpt.processors.base import BaseProcessor
from xraygpt.runners.state import load_weights
from xraygpt.version import __version__

log = logging.getLogger(__name__)

SHARD = "4GB"
NOTICE = "Research use only. Not a medical device: never for diagnosis or treatment."


# --- into our layout ---------------------------------------------------------------------------


def to_ours(given: argparse.Namespace) -> str:
    """Another project's weights as safetensors and a manifest.

    Raises:
        WeightsError: They are damaged, of no known kind, or ours already.
    """
    source = given.source
    if source.startswith(llm_files.PACKAGE) or source.endswith(".gguf"):
        return _llm_folder(given)
    path = Path(source)
    config = _config_of(path)
    if "text_config" not in config and str(config.get("architectures", "")).find("CausalLM") > 0:
        return _llm_folder(given)
    if "exported" in manifest_of(path):
        raise WeightsError(f"{path} was exported from a run of ours: it opens in transformers")
    if is_converted(path):
        raise WeightsError(f"{path} was converted already: it stands wherever the original may")
    if not path.is_file() and is_run_like(path):
        raise WeightsError(f"{path} is a run of ours already; --to pth or --to transformers?")
    files = weight_files(path)
    state = read_state_dict(path)
    account, vit_model = _account(state, path, given.vit_model)
    parts = sorted({name.split(".")[0] for name in account.state})
    language = {n: t for n, t in state.items() if n.startswith("language_model.")}
    if language and not path.is_dir():
        raise WeightsError(
            f"{path} holds an LLM too, whose configuration lies in its folder: name that"
        )

    def write(folder: Path) -> None:
        save_sharded(account.state, folder)
        if language:
            (folder / "llm").mkdir()
            _save_llm(language, path, folder / "llm")
            seal(folder / "llm", converted=sources)

    sources = [{"name": f.name, "size": f.stat().st_size, "sha256": digest(f)} for f in files]
    facts = {
        "converted": sources,
        "parts": parts,
        "vit_model": vit_model,
        "rules": dict(account.applied),
        "left_out": {why: len(keys) for why, keys in account.dropped.items()},
        "xraygpt": __version__,
    }
    publish_folder(given.out, write, facts)
    more = f"; its LLM is in {given.out / 'llm'}" if language else ""
    return f"{given.out}: {', '.join(parts)}; {account}{more}"


def _account(
    state: Mapping[str, Tensor], path: Path, vit_model: str | None
) -> tuple[Account, str | None]:
    """What becomes of a file's keys, and the encoder it holds."""
    names = [name.removeprefix("module.") for name in state]
    bare = any(n.startswith("blocks.") for n in names)  # a ViT alone; EVA's has no bias for the key
    if lavis.is_lavis(state) and (not bare or any(n.endswith(".attn.q_bias") for n in names)):
        text = any("word_embeddings" in name for name in state)
        account = lavis.convert_state(state, path, text=text)
        holds = any(name.startswith("vision.") for name in account.state)
        if holds and vit_model is not None and not is_eva(vit_model):
            raise WeightsError(f"{path} holds an EVA-CLIP-g, not {vit_model}")
        return account, (vit_model or "eva_clip_g") if holds else None
    kind = vit_model or encoders.recognised(names)
    if kind is None:
        raise WeightsError(
            f"{path}: its names ({', '.join(names[:3])}, …) are of no project known here; "
            "name the encoder with --vit-model timm/<name>"
        )
    encoders.build_vision(kind, None, path)  # refuses what does not fit
    account = encoders.account_of(kind, path)
    account.state = {f"vision.net.{n}": t for n, t in account.state.items()}
    return account, kind


def _llm_folder(given: argparse.Namespace) -> str:
    """An LLM as a transformers folder: plain weights, read faster than a GGUF."""
    llm, tokenizer = llm_files.load_llm(given.source, given.dtype or "float32")

    publish_folder(
        given.out,
        lambda folder: write_llm(llm, tokenizer, folder),
        {"converted": [_llm_source(given.source)]},
    )
    return f"{given.out}: an LLM for model.llama_model"


def _llm_source(source: str) -> dict[str, Any]:
    folder, gguf = llm_files.locate(source)
    files = [folder / gguf] if gguf else weight_files(folder, check=False)
    return {"name": Path(source).name, "sha256": {f.name: digest(f) for f in files}}


def _save_llm(state: Mapping[str, Tensor], source: Path, folder: Path) -> None:
    """The LLM inside a BLIP-2 folder as a folder of its own."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        text: Any = AutoConfig.from_pretrained(source, **llm_files.LOCAL).text_config
    except llm_files.BROKEN as error:
        raise WeightsError(f"{source}: no usable config.json: {error}") from None
    text.save_pretrained(folder)
    save_sharded({n.removeprefix("language_model."): t for n, t in state.items()}, folder)
    try:
        AutoTokenizer.from_pretrained(source, **llm_files.LOCAL).save_pretrained(folder)
    except llm_files.BROKEN:
        log.warning("%s holds no tokenizer; put the LLM's into %s/llm", source, folder.parent)


# --- ours into others' ----------------------------------------------------------------------------


def to_pth(given: argparse.Namespace) -> str:
    """A run's weights as the lineage keeps them: one pickle, ``{"model": {...}}``."""
    return _exported("pth", given)


def to_transformers(given: argparse.Namespace) -> str:
    """A run as a folder that transformers opens."""
    return _exported("transformers", given)


def _exported(layout: str, given: argparse.Namespace) -> str:
    """A run in another layout; its model knows how.

    Raises:
        InputError: The model cannot be converted at all, or not into this layout.
    """
    checkpoint = find_checkpoint(Path(given.source))
    experiment = load(Training, checkpoint / "config.yaml", [*given.options, "model.ckpt=null"])
    model = experiment.model.build(texts=list, assets=checkpoint)
    exports = require(model, Exports)
    layouts = exports.export_layouts()
    if layout not in layouts:
        raise InputError(f"{named(model)} has no layout {layout}{did_you_mean(layout, layouts)}")
    load_weights(model, checkpoint)
    model.eval()
    how = ExportSettings(
        merge_lora=given.merge_lora,
        with_vision=given.with_vision,
        dtype=given.dtype,
        license=given.license,
        processor=_image_processor(experiment, model),
    )
    return exports.export(layout, given.out, how)


def _image_processor(experiment: Training, model: BaseModel) -> BaseProcessor:
    """How the run's pictures are made outside training; the first corpus' if they differ."""
    made = [
        c.build(image_spec=model.image_spec).processor("vis", "eval")
        for c in experiment.datasets.values()
    ]
    if len({json.dumps(p.signature(), sort_keys=True, default=str) for p in made}) > 1:
        log.warning("the run's corpora have different vis_processors; the first is exported")
    first: BaseProcessor = made[0]
    return first


def _config_of(path: Path) -> dict[str, Any]:
    try:
        content = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
