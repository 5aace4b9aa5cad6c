"""Converts weights from other projects into this project's layout, and the other way round."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from xraygpt.common.checkpoint import (
    file_sha256,
    find_checkpoint,
    is_run_or_checkpoint,
    read_manifest,
    write_manifest,
)
from xraygpt.common.config import load
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.common.publishing import publish_folder
from xraygpt.common.registry import did_you_mean
from xraygpt.common.training_data import read_training_data
from xraygpt.experiment import Training
from xraygpt.jobs.convert_echovlm import convert_checkpoint
from xraygpt.models.base import BaseModel
from xraygpt.models.capabilities import Exports, ExportSettings, describe_model, require
from xraygpt.models.llm import llm_files
from xraygpt.models.qformer_llm.export import save_sharded, write_llm
from xraygpt.models.stock_vlm.llava_import import convert_llava_checkpoint, is_llava_checkpoint
from xraygpt.models.vision import encoders
from xraygpt.models.vision.published import is_eva
from xraygpt.models.weights import lavis
from xraygpt.models.weights.files import is_converted, read_state_dict, weight_files
from xraygpt.models.weights.rules import ConvertedState
from xraygpt.processors.base import BaseProcessor
from xraygpt.runners.state import load_weights
from xraygpt.version import __version__

log = logging.getLogger(__name__)

SHARD = "4GB"
NOTICE = "Research use only. Not a medical device: never for diagnosis or treatment."


# --- into this project's layout -----------------------------------------------------------------


def convert_to_xraygpt(args: argparse.Namespace) -> str:
    """Convert another project's weights to a folder with safetensors files and a manifest.

    Args:
        args: Options of `python -m xraygpt.convert`.

    Returns:
        A message about what was written.

    Raises:
        WeightsError: The weights are damaged, come from no known project, or already have this
            layout.
    """
    path = Path(args.source)
    if args.origin == "echovlm":
        return convert_checkpoint(path, args.out, args.tokenizer)
    if args.origin == "llava" or is_llava_checkpoint(path):
        return convert_llava_checkpoint(
            path,
            args.out,
            vision_tower=args.vision_tower,
            processor=args.processor,
            base=args.base,
        )
    if _is_llm(args.source):
        return _convert_llm(args)
    _require_foreign(path)
    files = weight_files(path)
    state = read_state_dict(path)
    converted, vit_model = _convert_state(state, path, args.vit_model)
    parts = sorted({name.split(".")[0] for name in converted.state})
    language = {n: t for n, t in state.items() if n.startswith("language_model.")}
    if language and not path.is_dir():
        raise WeightsError(
            f"{path} also contains an LLM, whose configuration is in its folder; pass that folder"
        )

    def write(folder: Path) -> None:
        save_sharded(converted.state, folder)
        if language:
            (folder / "llm").mkdir()
            _save_llm(language, path, folder / "llm")
            write_manifest(folder / "llm", converted=sources)

    sources = [{"name": f.name, "size": f.stat().st_size, "sha256": file_sha256(f)} for f in files]
    facts = {
        "converted": sources,
        "parts": parts,
        "vit_model": vit_model,
        "rules": dict(converted.applied),
        "left_out": {why: len(keys) for why, keys in converted.dropped.items()},
        "xraygpt": __version__,
    }
    publish_folder(args.out, write, facts)
    llm_note = f"; its LLM is in {args.out / 'llm'}" if language else ""
    return f"{args.out}: {', '.join(parts)}; {converted}{llm_note}"


def _is_llm(source: str) -> bool:
    """Check whether the weights are only an LLM: a GGUF file or a transformers folder."""
    if source.startswith(llm_files.PACKAGE) or source.endswith(".gguf"):
        return True
    config = _read_config(Path(source))
    is_causal_lm = str(config.get("architectures", "")).find("CausalLM") > 0
    return "text_config" not in config and is_causal_lm


def _require_foreign(path: Path) -> None:
    if "exported" in read_manifest(path):
        raise WeightsError(f"{path} was exported from a run: open it with transformers")
    if is_converted(path):
        raise WeightsError(f"{path} is already converted; use it in place of the original")
    if not path.is_file() and is_run_or_checkpoint(path):
        raise WeightsError(
            f"{path} is already a run of xraygpt; pass --to pth or --to transformers"
        )


def _convert_state(
    state: Mapping[str, Tensor], path: Path, vit_model: str | None
) -> tuple[ConvertedState, str | None]:
    """Return a file's tensors under this project's names, and the name of the encoder in it."""
    names = [name.removeprefix("module.") for name in state]
    is_bare_vit = any(n.startswith("blocks.") for n in names)
    is_eva_vit = any(n.endswith(".attn.q_bias") for n in names)  # EVA has no bias for the keys
    if lavis.is_lavis(state) and (not is_bare_vit or is_eva_vit):
        return _convert_lavis(state, path, vit_model)
    encoder = vit_model or encoders.detect_encoder(names)
    if encoder is None:
        raise WeightsError(
            f"{path}: its tensor names ({', '.join(names[:3])}, …) match no supported project; "
            "name the encoder with --vit-model timm/<name>"
        )
    encoders.build_vision(encoder, None, path)  # raises if the weights do not fit
    converted = encoders.convert_encoder_file(encoder, path)
    converted.state = {f"vision.net.{n}": t for n, t in converted.state.items()}
    return converted, encoder


def _convert_lavis(
    state: Mapping[str, Tensor], path: Path, vit_model: str | None
) -> tuple[ConvertedState, str | None]:
    has_text = any("word_embeddings" in name for name in state)
    converted = lavis.convert_state(state, path, text=has_text)
    has_vision = any(name.startswith("vision.") for name in converted.state)
    if has_vision and vit_model is not None and not is_eva(vit_model):
        raise WeightsError(f"{path} contains an EVA-CLIP-g encoder, not {vit_model}")
    return converted, (vit_model or "eva_clip_g") if has_vision else None


def _convert_llm(args: argparse.Namespace) -> str:
    """Save an LLM as a transformers folder, which loads faster than a GGUF file."""
    llm, tokenizer = llm_files.load_llm(args.source, args.dtype or "float32")

    publish_folder(
        args.out,
        lambda folder: write_llm(llm, tokenizer, folder),
        {"converted": [_llm_source(args.source)]},
    )
    return f"{args.out}: an LLM for model.llama_model"


def _llm_source(source: str) -> dict[str, Any]:
    folder, gguf = llm_files.locate(source)
    files = [folder / gguf] if gguf else weight_files(folder, check=False)
    return {"name": Path(source).name, "sha256": {f.name: file_sha256(f) for f in files}}


def _save_llm(state: Mapping[str, Tensor], source: Path, folder: Path) -> None:
    """Save the LLM in a BLIP-2 folder as a separate folder."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        text: Any = AutoConfig.from_pretrained(source, **llm_files.LOCAL_ONLY).text_config
    except llm_files.LOAD_ERRORS as error:
        raise WeightsError(f"{source} has no usable config.json: {error}") from None
    text.save_pretrained(folder)
    save_sharded({n.removeprefix("language_model."): t for n, t in state.items()}, folder)
    try:
        AutoTokenizer.from_pretrained(source, **llm_files.LOCAL_ONLY).save_pretrained(folder)
    except llm_files.LOAD_ERRORS:
        log.warning(
            "%s has no tokenizer; copy the LLM's tokenizer files to %s/llm", source, folder.parent
        )


# --- into other layouts -----------------------------------------------------------------------


def export_pth(args: argparse.Namespace) -> str:
    """Export a run in the original XrayGPT's format: one pickle with ``{"model": {...}}``.

    Args:
        args: Options of `python -m xraygpt.convert`.

    Returns:
        A message about what was written.
    """
    return _export("pth", args)


def export_transformers(args: argparse.Namespace) -> str:
    """Export a run as a folder that transformers can load.

    Args:
        args: Options of `python -m xraygpt.convert`.

    Returns:
        A message about what was written.
    """
    return _export(args.to, args)


def _export(layout: str, args: argparse.Namespace) -> str:
    """Export a run in a layout that its model supports.

    Raises:
        InputError: The model does not support exporting, or not in this layout.
    """
    checkpoint = find_checkpoint(Path(args.source))
    experiment = load(Training, checkpoint / "config.yaml", [*args.options, "model.ckpt=null"])
    model = experiment.model.build(texts=list, assets=checkpoint)
    exports = require(model, Exports)
    layouts = exports.export_layouts()
    if layout not in layouts:
        raise InputError(
            f"{describe_model(model)} cannot be exported as {layout}{did_you_mean(layout, layouts)}"
        )
    load_weights(model, checkpoint)
    model.trained_on = read_training_data(checkpoint)
    model.eval()
    settings = ExportSettings(
        merge_lora=args.merge_lora,
        with_vision=args.with_vision,
        dtype=args.dtype,
        license=args.license,
        processor=_image_processor(experiment, model),
    )
    return exports.export(layout, args.out, settings)


def _image_processor(experiment: Training, model: BaseModel) -> BaseProcessor:
    """Return the image processor for evaluation; that of the first corpus if they differ."""
    processors = [
        c.build(image_spec=model.image_spec).processor("vis", "eval")
        for c in experiment.datasets.values()
    ]
    if len({json.dumps(p.signature(), sort_keys=True, default=str) for p in processors}) > 1:
        log.warning("the run's corpora have different vis_processors; exporting the first one")
    first: BaseProcessor = processors[0]
    return first


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
