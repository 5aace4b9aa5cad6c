"""Loads weights from other runs and other projects into a Q-Former model."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from xraygpt.common.errors import WeightsError
from xraygpt.models.llm.small_llm import check_tokenizer
from xraygpt.models.qformer_llm.assets import check_encoder, encoder_digest, read_parts
from xraygpt.models.qformer_llm.parts import Composition
from xraygpt.models.vision import encoders
from xraygpt.models.weights import lavis
from xraygpt.models.weights.files import read_weights
from xraygpt.models.weights.rules import load_exactly

log = logging.getLogger(__name__)

# Missing in BLIP-2, whose Q-Former matches the encoder's width and whose tokens have positions.
ADDED = ("qformer.adapter.", "qformer.patch_position")
_TEXT = re.compile(r"(?:word|position)_embeddings\.|\.(?:intermediate|output)\.")
_SHARED = re.compile(r"attention\.output\.")  # matches _TEXT, but queries use it too


def load_qformer(model: Composition, path: Path) -> None:
    """Initialize the Q-Former from another model's run, or from a BLIP-2 file.

    Raises:
        WeightsError: The Q-Former has another shape or was trained on another encoder's features.
    """
    source, state = read_weights(path)
    may_lack: tuple[str, ...] = ()
    if lavis.is_foreign(state, source):
        state = lavis.convert_state(state, source, text=_reads_text(model)).state
        may_lack = tuple(name.removeprefix("qformer.") for name in ADDED)
    parts = read_parts(source.parent)
    _check_source_encoder(model, source, parts)
    prefix = "qformer."
    weights = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    if not weights:
        raise WeightsError(f"model.q_former_model: {source} contains no Q-Former")
    if not _reads_text(model):
        weights = remove_text_weights(weights)
    elif parts is not None:  # its word embeddings belong to its tokenizer
        check_tokenizer(source.parent, getattr(model, "question_tokenizer", model.tokenizer))
    reset = _resized_keys(model, weights, source)
    kept = {n: t for n, t in weights.items() if n not in reset}
    required = set(model.qformer.state_dict()) - reset
    absent = load_exactly(model.qformer, kept, source, required=required, fresh=may_lack)
    _warn_random({*reset, *absent}, source)


def _check_source_encoder(model: Composition, source: Path, parts: dict[str, str] | None) -> None:
    """Check that a Q-Former was trained on the features of this model's encoder.

    Raises:
        WeightsError: The Q-Former was trained on the features of another encoder.
    """
    vision = model.config.vision
    encoder = vision.encoder if parts is None else parts["vit_model"]
    if encoder != vision.encoder:
        raise WeightsError(
            f"model.q_former_model: the Q-Former in {source} reads features of {encoder}, not of "
            f"model.vit_model ({vision.encoder})"
        )
    digest = encoder_digest(vision.encoder, model.vision, frozen=vision.freeze)
    check_encoder(source.parent, digest)


def remove_text_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reduce a Q-Former that also reads text to one that reads images only."""
    if not any("word_embeddings" in name for name in state):
        return state
    kept = {n: t for n, t in state.items() if _SHARED.search(n) or not _TEXT.search(n)}
    return {n.replace(".embeddings.layernorm.", ".layernorm."): t for n, t in kept.items()}


def _warn_random(names: set[str], source: Path) -> None:
    if names:
        some = ", ".join(sorted(names)[:3])
        log.warning(
            "%s lacks %d weights or has them in another width; they start random and need "
            "training: %s%s", source, len(names), some, ", …" if len(names) > 3 else "",
        )  # fmt: skip


def _reads_text(model: Composition) -> bool:
    return bool(getattr(model.qformer, "reads_text", False))


def _resized_keys(model: Composition, weights: dict[str, Tensor], source: Path) -> set[str]:
    """Return the keys whose shape differs with the encoder's width, if that is allowed.

    Raises:
        WeightsError: The widths differ and `qformer.new_cross_attention` is not set.
    """
    own = model.qformer.state_dict()
    theirs, ours = weights.get("ln_vision.weight"), own.get("ln_vision.weight")
    if theirs is None or ours is None or theirs.shape == ours.shape:
        return set()
    if not model.config.qformer.new_cross_attention:
        raise WeightsError(
            f"{source}: its Q-Former reads features of width {len(theirs)}, but "
            f"{model.config.vision.encoder} outputs {len(ours)}. There are two solutions, both of "
            f"which need training: model.qformer.adapter: {len(theirs)} puts a linear layer "
            "between them; model.qformer.new_cross_attention: true reinitializes the layers that "
            "read the image"
        )
    return {n for n, t in own.items() if n in weights and weights[n].shape != t.shape}


def convert_foreign_state(
    model: Composition, state: dict[str, Tensor], source: Path
) -> tuple[dict[str, Tensor], set[str]] | None:
    """Convert weights from XrayGPT, MiniGPT-4 or LAVIS to the names used in `model`.

    Returns:
        The tensors of every complete part and the keys these parts require, or None if the
            file already uses our names.

    Raises:
        WeightsError: A part is missing and no other file provides it, or a part does not fit.
    """
    if not lavis.is_foreign(state, source):
        return None
    converted = lavis.convert_state(state, source, text=_reads_text(model)).state
    if model.vision is None:  # pre-computed features need no encoder
        converted = _without(converted, lambda name: name.startswith("vision."))
    parts = {name.split(".")[0] for name in converted}
    _provide_missing_parts(model, parts, source)
    weights = {n.removeprefix("qformer."): t for n, t in converted.items()}
    reset = {f"qformer.{n}" for n in _resized_keys(model, weights, source)}
    converted = _without(converted, reset.__contains__)
    _check_projection(model, converted, source)
    required = {n for n in model.state_dict() if n.split(".")[0] in parts}
    absent = {n for n in required - set(converted) if n.startswith(ADDED)}
    _warn_random(reset | absent, source)
    return converted, required - reset - absent


def _without(state: dict[str, Tensor], drop: Callable[[str], bool]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not drop(name)}


def _provide_missing_parts(model: Composition, parts: set[str], source: Path) -> None:
    """Load the Q-Former from its own file if `source` lacks it; check the encoder's file.

    Raises:
        WeightsError: Neither `source` nor the configuration provides the Q-Former or the encoder.
    """
    config = model.config
    if "qformer" not in parts:
        if config.qformer.init_from is None:
            raise WeightsError(
                f"{source} contains no Q-Former, as is usual for XrayGPT and MiniGPT-4; set "
                "model.q_former_model to the BLIP-2 file it was trained with"
            )
        load_qformer(model, config.qformer.init_from)
    has_encoder = config.vision.ckpt or encoders.has_weights(config.vision.encoder)
    if "vision" not in parts and model.vision is not None and not has_encoder:
        raise WeightsError(
            f"{source} has no vision encoder, so {config.vision.encoder} would stay random; set "
            "model.vit_ckpt to its file (eva_vit_g.pth)"
        )


def _check_projection(model: Composition, state: dict[str, Tensor], source: Path) -> None:
    """Check the projection's width; warn if there is none.

    Raises:
        WeightsError: The projection belongs to an LLM of another width.
    """
    projection = state.get("proj.weight")
    if projection is None:
        log.warning("%s has no projection to the LLM; it starts with random weights", source)
    elif len(projection) != model.proj.out_features:
        raise WeightsError(
            f"{source}: its projection is for an LLM of width {len(projection)}, but "
            f"model.llama_model has {model.proj.out_features} (Vicuna 7B: 4096, 13B: 5120)"
        )
