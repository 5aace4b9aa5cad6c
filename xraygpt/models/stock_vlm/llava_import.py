"""Converts checkpoints of the original LLaVA-NeXT code for transformers' LLaVA-OneVision.

LLaVA-NeXT's training code, and its forks such as RadVLM's, write checkpoints that only their own
classes open. The result of `convert_llava_checkpoint` opens with
``LlavaOnevisionForConditionalGeneration.from_pretrained`` and ``AutoProcessor.from_pretrained``.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xraygpt.common.checkpoint import file_sha256
from xraygpt.common.errors import WeightsError
from xraygpt.common.publishing import publish_folder
from xraygpt.models.llm import llm_files
from xraygpt.models.stock_vlm import llava_config, llava_processor, shards
from xraygpt.models.stock_vlm.key_layouts import listing, to_layout
from xraygpt.models.stock_vlm.llava_source import (
    EMBEDDING,
    HEAD,
    TOWER,
    LlavaTensors,
    open_tensors,
    read_json,
)
from xraygpt.models.weights.rules import Rule
from xraygpt.version import __version__

log = logging.getLogger(__name__)

_UNUSED_LAYER = "layers of the vision tower after the one that LLaVA reads"
_TIED = "the head, which equals the embedding"
# From LLaVA-NeXT's names to those in the published LLaVA-OneVision checkpoints of transformers.
_RULES = (
    Rule(r".*\.rotary_emb\.inv_freq", None, "computed from the configuration"),
    Rule(r".*\.position_ids", None, "computed from the configuration"),
    Rule(re.escape(TOWER) + r"head\..*", None, "pooling of the vision tower, which LLaVA skips"),
    Rule(re.escape(TOWER) + r"(.+)", r"vision_tower.vision_model.\1"),
    Rule(r"model\.mm_projector\.0\.(weight|bias)", r"multi_modal_projector.linear_1.\1"),
    Rule(r"model\.mm_projector\.2\.(weight|bias)", r"multi_modal_projector.linear_2.\1"),
    Rule(r"model\.image_newline", "image_newline"),
    Rule(r"model\.((?:embed_tokens|layers|norm)\..+)", r"language_model.model.\1"),
    Rule(r"lm_head\.weight", "language_model.lm_head.weight"),
)


@dataclass(frozen=True)
class _Conversion:
    """A checked conversion: nothing can be missing any more when it is written.

    Attributes:
        tensors: The checkpoint's tensors.
        names: The new name of each tensor that is used.
        left_out: Number of tensors left out, by reason.
        config: Configuration of the new model.
        processor: Its processor.
        rows: Rows of the new embedding.
        message: What the model consists of.
    """

    tensors: LlavaTensors
    names: dict[str, str]
    left_out: Counter[str]
    config: Any
    processor: Any
    rows: int
    message: str


def is_llava_checkpoint(folder: Path) -> bool:
    """Check whether a folder was written by the original LLaVA or LLaVA-NeXT code."""
    try:
        config = read_json(Path(folder) / "config.json")
    except WeightsError:
        return False
    flat = "text_config" not in config and any(key.startswith("mm_") for key in config)
    return str(config.get("model_type", "")).startswith("llava") and flat


def convert_llava_checkpoint(
    source: Path,
    out: Path,
    *,
    vision_tower: Path | None = None,
    processor: Path | None = None,
    base: Path | None = None,
) -> str:
    """Convert a checkpoint of the original LLaVA-NeXT code.

    All tensors and settings are checked first. Weights are then read and written file by file, so
    that the memory needed is that of one file being read and one being written. All get the dtype
    of the embedding. If the embedding has no rows for the tokens ``<image>`` and ``<video>``, it
    grows to a multiple of 64; the new rows, which nothing reads, are the mean of the old ones.
    Names in the new files are those of the published LLaVA-OneVision checkpoints (`key_layouts`).

    Args:
        source: Folder with ``config.json`` and weights (safetensors or ``.bin``, sharded or not),
            or with a LoRA adapter or a projector and ``config.json``.
        out: Folder to create.
        vision_tower: Folder of the vision tower in transformers' format. Needed if `source` does
            not contain the tower, or if its configuration is unknown; weights that `source`
            contains take precedence.
        processor: Folder with the tokenizer, if `source` has none.
        base: The model that a LoRA adapter or a projector belongs to, if `source` does not name
            its folder: another such checkpoint, or the language model.

    Returns:
        A message about what was written.

    Raises:
        InputError: `out` already exists or cannot be written.
        WeightsError: Files are missing or damaged; tensors are unknown, missing or of another
            shape; or settings have no counterpart in transformers.
    """
    plan = _plan(source, vision_tower, processor, base)
    files = sorted({place.file for place in plan.tensors.stored.values()})
    facts = {
        "converted": [
            {"name": f.name, "size": f.stat().st_size, "sha256": file_sha256(f)} for f in files
        ],
        "from": "llava",
        "left_out": dict(plan.left_out),
        "xraygpt": __version__,
    }
    publish_folder(out, lambda folder: _write(plan, source, folder), facts)
    skipped = "".join(f", {count} skipped ({why})" for why, count in plan.left_out.items())
    return f"{out}: {plan.message}; {len(plan.names)} tensors used{skipped}"


def _plan(
    source: Path, vision_tower: Path | None, processor: Path | None, base: Path | None
) -> _Conversion:
    config = read_json(source / "config.json")
    if not is_llava_checkpoint(source):
        raise WeightsError(f"{source} was not written by LLaVA-NeXT: see its config.json")
    llava_config.check_settings(config, source)
    tower_folder = vision_tower or _named_folder(config)
    tensors = open_tensors(source, base, tower_folder)
    tower = llava_config.read_tower(config, tensors, tower_folder)
    side = tower.config["image_size"]
    pinpoints = llava_config.read_pinpoints(config, side, source)
    old_rows = tensors.shape(EMBEDDING)[0]
    folders = [f for f in (processor, source, base) if f is not None]
    tokenizer = llava_processor.load_tokenizer(
        folders, old_rows, llava_config.BACKBONES[config["model_type"]]
    )
    rows = llava_processor.rows_needed(tokenizer, old_rows)
    ratio = llava_config.aspect_ratio(config, pinpoints, side)
    tied = _is_tied(config, tensors)
    model_config = _model_config(
        llava_config.text_config(config, rows, tied), tower, tokenizer,
        image_grid_pinpoints=pinpoints, vision_aspect_ratio=ratio,
        dtype=tensors.stored[EMBEDDING].dtype,
    )  # fmt: skip
    names, left_out = _new_names(tensors, tower.unused_layer, tied, model_config, rows)
    kind, text = tower.config["model_type"].split("_")[0], model_config.text_config
    message = (
        f"LLaVA-OneVision with {text.model_type} ({text.num_hidden_layers} layers, head "
        f"{'tied to' if tied else 'apart from'} the embedding, {rows} rows) and {kind} "
        f"({tower.config['num_hidden_layers']} layers)"
    )
    build = llava_processor.build_processor
    new_processor = build(tokenizer, tower, pinpoints, ratio)
    return _Conversion(tensors, names, left_out, model_config, new_processor, rows, message)


def _named_folder(config: dict[str, Any]) -> Path | None:
    """Return the tower's folder if the checkpoint names one that exists here."""
    name = str(config.get("mm_vision_tower", ""))
    return Path(name) if name and (Path(name) / "config.json").is_file() else None


def _is_tied(config: dict[str, Any], tensors: LlavaTensors) -> bool:
    """Decide whether the head is the embedding: by the weights, not only by the configuration.

    Training may part a head from the embedding (with DeepSpeed, or as LoRA's modules_to_save)
    while ``tie_word_embeddings`` stays true.
    """
    if not config.get("tie_word_embeddings", False) or HEAD not in tensors.stored:
        return bool(config.get("tie_word_embeddings", False))
    same = torch.equal(tensors.read(EMBEDDING), tensors.read(HEAD))
    if not same:
        log.warning(
            "%s says that the head is tied to the embedding, but their weights differ; they stay "
            "apart", tensors.folder / "config.json",
        )  # fmt: skip
    return same


def _model_config(
    text: dict[str, Any], tower: llava_config.Tower, tokenizer: Any, **options: Any
) -> Any:
    from transformers import LlavaOnevisionConfig

    image = tokenizer.convert_tokens_to_ids(llava_processor.IMAGE)
    video = tokenizer.convert_tokens_to_ids(llava_processor.VIDEO)
    try:
        return LlavaOnevisionConfig(
            text_config=text,
            vision_config=tower.config,
            image_token_index=image,
            video_token_index=video,
            projector_hidden_act="gelu",
            vision_feature_layer=-1,
            vision_feature_select_strategy="default" if tower.is_clip else "full",
            tie_word_embeddings=text["tie_word_embeddings"],
            architectures=["LlavaOnevisionForConditionalGeneration"],
            **options,
        )
    except llm_files.LOAD_ERRORS as error:
        raise WeightsError(f"config.json does not describe a model: {error}") from None


def _new_names(
    tensors: LlavaTensors, unused_layer: int, tied: bool, config: Any, rows: int
) -> tuple[dict[str, str], Counter[str]]:
    """Name all tensors, and compare names and shapes with the model's.

    Raises:
        WeightsError: Lists tensors that are unknown, missing or of another shape.
    """
    from transformers import LlavaOnevisionForConditionalGeneration

    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(config)
    expected = {n: tuple(t.shape) for n, t in to_layout(model.state_dict(), "hub", model).items()}
    names: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    if tied:
        expected.pop("language_model.lm_head.weight")
    if tensors.ignored:
        left_out["parts of the vision tower's folder without an image encoder"] = tensors.ignored
    problems = []
    for name, place in tensors.stored.items():
        new, why = _new_name(name, unused_layer, tied)
        if why:
            left_out[why] += 1
            continue
        if new not in expected:
            problems.append(f"unknown {name}")
            continue
        names[name] = new
        grows = name in (EMBEDDING, HEAD) and place.shape[:1] == tensors.shape(EMBEDDING)[:1]
        shape = (rows, *place.shape[1:]) if grows else place.shape
        if shape != expected[new]:
            problems.append(f"{name}: {place.shape} instead of {expected[new]}")
    problems += [f"missing {_old_name(n)}" for n in sorted(expected.keys() - names.values())]
    if problems:
        raise WeightsError(
            f"{tensors.folder} does not have the tensors that its config.json describes: "
            f"{listing(problems)}"
        )
    return names, left_out


def _new_name(name: str, unused_layer: int, tied: bool) -> tuple[str, str]:
    """Return a tensor's new name, or the reason for leaving it out; both are empty if unknown."""
    layer = re.match(re.escape(TOWER) + r"encoder\.layers\.(\d+)\.", name)
    if layer and int(layer[1]) >= unused_layer:
        return "", _UNUSED_LAYER
    if tied and name == HEAD:
        return "", _TIED
    for rule in _RULES:
        match = re.fullmatch(rule.pattern, name)
        if match is not None:
            return (match.expand(rule.to), "") if rule.to is not None else ("", rule.why)
    return "", ""


def _old_name(new: str) -> str:
    """Return LLaVA-NeXT's name of a tensor, for messages."""
    for part, old in (
        ("language_model.model.", "model."),
        ("language_model.", ""),
        ("vision_tower.vision_model.", TOWER),
        ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ):
        if new.startswith(part):
            return old + new.removeprefix(part)
    return f"model.{new}"


# --- writing ----------------------------------------------------------------------------------


def _write(plan: _Conversion, source: Path, folder: Path) -> None:
    writer = shards.ShardWriter(folder, shards.SHARD_BYTES)
    for name, tensor in plan.tensors.stream():
        if name in plan.names:
            value = tensor.to(plan.config.dtype)
            value = _grow(value, plan.rows) if name in (EMBEDDING, HEAD) else value
            writer.add(plan.names[name], value)
    writer.close()
    plan.config.save_pretrained(folder)
    plan.processor.save_pretrained(folder)
    _write_generation_config(plan, source, folder)


def _grow(weight: Tensor, rows: int) -> Tensor:
    """Append rows, each the mean of the existing ones."""
    new = rows - len(weight)
    if new <= 0:
        return weight
    mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(new, -1)])


def _write_generation_config(plan: _Conversion, source: Path, folder: Path) -> None:
    """Copy the source's generation settings, or name the tokens that end an answer."""
    from transformers import GenerationConfig

    settings = read_json(source / "generation_config.json")
    if not settings.get("do_sample"):  # transformers refuses to save these without sampling
        settings = {k: v for k, v in settings.items() if k not in ("temperature", "top_p", "top_k")}
    if "eos_token_id" not in settings:
        text, vocabulary = plan.config.text_config, plan.processor.tokenizer.get_vocab()
        given = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
        ends = {*given, vocabulary.get("<|im_end|>")} - {None}
        settings |= {"eos_token_id": sorted(ends), "pad_token_id": text.pad_token_id}
    settings.pop("transformers_version", None)
    try:
        GenerationConfig(**settings).save_pretrained(folder)
    except llm_files.LOAD_ERRORS as error:
        raise WeightsError(
            f"{source / 'generation_config.json'} is not valid; correct or delete it: {error}"
        ) from None
