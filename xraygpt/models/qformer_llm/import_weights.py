"""Parts of other runs and of other projects put into an `xraygpt` model."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Protocol

from torch import Tensor

from xraygpt.common.errors import WeightsError
from xraygpt.models.llm.small_llm import check_tokenizer
from xraygpt.models.qformer_llm.parts import Composition
from xraygpt.models.vision import encoders, run_encoder
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.weights import lavis
from xraygpt.models.weights.files import read_weights
from xraygpt.models.weights.rules import load_exactly

log = logging.getLogger(__name__)

# What BLIP-2 has not: its encoder has its Q-Former's width, and its tokens know their places.
ADDED = ("qformer.adapter.", "qformer.patch_position")
_WORDS = re.compile(r"(?:word|position)_embeddings\.|\.(?:intermediate|output)\.")
_QUERIES = re.compile(r"attention\.output\.")  # of words and queries alike
PARTS = "parts.json"  # what a checkpoint's weights belong to


class SeesImages(Protocol):
    """Configurations that name a vision encoder."""

    vit_model: str
    vit_ckpt: Path | None
    image_size: int | None


def vision_of(config: SeesImages) -> VisionEncoder:
    """The encoder of a configuration; what is wrong with its file names the key.

    Raises:
        WeightsError: The file is absent or does not fit.
    """
    try:
        return encoders.build_vision(config.vit_model, config.image_size, config.vit_ckpt)
    except WeightsError as error:
        text = str(error)
        raise WeightsError(
            text if text.startswith("model.") else f"model.vit_ckpt: {text}"
        ) from None


def run_digest(config: SeesImages, encoder: VisionEncoder | None) -> dict[str, str]:
    """What tells the frozen encoder of a run from that of a later one in the same folder."""
    if encoder is None or not getattr(config, "freeze_vit", True):
        return {}
    trained_here = config.vit_model.startswith(run_encoder.RUN_PREFIX)
    return {"vision": encoder.digest()} if trained_here else {}


def check_encoder(folder: Path, own: dict[str, str]) -> None:
    """Refuse weights trained on features of a run's encoder that was trained anew since.

    Args:
        folder: Of the weights.
        own: `run_digest` of the model that is to take them.

    Raises:
        WeightsError: It is another encoder.
    """
    described = folder / PARTS
    if not own or not described.is_file():
        return
    if json.loads(described.read_text(encoding="utf-8")).get("vision") != own["vision"]:
        raise WeightsError(
            f"{folder} was trained on features of another encoder than model.vit_model names now: "
            "train this model anew, or name the encoder's old run or checkpoint"
        )


def take_qformer(model: Composition, path: Path) -> None:
    """Begin with the Q-Former of another model's run, or of a file of BLIP-2.

    Raises:
        WeightsError: It is of another shape, or read another encoder's features.
    """
    source, state = read_weights(path)
    added: tuple[str, ...] = ()
    if lavis.is_foreign(state, source):
        state = lavis.convert_state(state, source, text=_reads_text(model)).state
        added = tuple(name.removeprefix("qformer.") for name in ADDED)
    described, encoder = source.parent / PARTS, model.config.vit_model
    if described.is_file():
        encoder = json.loads(described.read_text(encoding="utf-8"))["vit_model"]
    if encoder != model.config.vit_model:
        raise WeightsError(
            f"model.q_former_model: the Q-Former of {source} reads features of {encoder}, "
            f"not of model.vit_model ({model.config.vit_model})"
        )
    if model.vision is not None:
        check_encoder(source.parent, run_digest(model.config, model.vision))
    prefix = "qformer."
    found = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    if not found:
        raise WeightsError(f"model.q_former_model: {source} holds no Q-Former")
    own = model.qformer.state_dict()
    if not _reads_text(model):
        found = queries_alone(found)
    elif described.is_file():  # a warm-up's words are those of its own tokenizer
        check_tokenizer(source.parent, getattr(model, "reader", model.tokenizer))
    fresh = _unread(model, found, source)
    kept = {n: t for n, t in found.items() if n not in fresh}
    absent = load_exactly(model.qformer, kept, source, required=set(own) - fresh, fresh=added)
    _warn_fresh({*fresh, *absent}, source)


def queries_alone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a Q-Former that reads texts too, as one that reads images alone names them."""
    if not any("word_embeddings" in name for name in state):
        return state
    kept = {n: t for n, t in state.items() if _QUERIES.search(n) or not _WORDS.search(n)}
    return {n.replace(".embeddings.layernorm.", ".layernorm."): t for n, t in kept.items()}


def _warn_fresh(names: set[str], source: Path) -> None:
    if names:
        some = ", ".join(sorted(names)[:3])
        log.warning(
            "%s: %d weights that it has not, or of another width, begin at random and need "
            "training: %s%s", source, len(names), some, ", …" if len(names) > 3 else "",
        )  # fmt: skip


def _reads_text(model: Composition) -> bool:
    return bool(getattr(model.qformer, "reads_text", False))


def _unread(model: Composition, found: dict[str, Tensor], source: Path) -> set[str]:
    """Weights that read an encoder of another width, if the configuration lets them begin anew.

    Raises:
        WeightsError: It does not.
    """
    own = model.qformer.state_dict()
    theirs, width = found.get("ln_vision.weight"), own.get("ln_vision.weight")
    if theirs is None or width is None or theirs.shape == width.shape:
        return set()
    if not model.config.qformer.new_cross_attention:
        raise WeightsError(
            f"{source}: its Q-Former reads features of width {len(theirs)}, and "
            f"{model.config.vit_model} gives {len(width)}. Two ways out, both of which need "
            f"training: model.qformer.adapter: {len(theirs)} puts a linear layer between them; "
            "model.qformer.new_cross_attention: true begins the layers that read the image anew"
        )
    return {n for n, t in own.items() if n in found and found[n].shape != t.shape}


def foreign_state(
    model: Composition, state: dict[str, Tensor], source: Path
) -> tuple[dict[str, Tensor], set[str]] | None:
    """Weights of Composition, MiniGPT-4 or LAVIS under the names of `model`.

    Returns:
        Tensors of whole parts, and the names they must hold; None if the file is ours.

    Raises:
        WeightsError: A part that nothing else brings is absent, or does not fit.
    """
    if not lavis.is_foreign(state, source):
        return None
    account = lavis.convert_state(state, source, text=_reads_text(model))
    if model.vision is None:  # pre-computed features: the encoder ran elsewhere
        account.state = {n: t for n, t in account.state.items() if not n.startswith("vision.")}
    parts = {name.split(".")[0] for name in account.state}
    if "qformer" not in parts:
        if model.config.q_former_model is None:
            raise WeightsError(
                f"{source} holds no Q-Former, as is usual in its lineage; set "
                "model.q_former_model to the BLIP-2 file it was trained with"
            )
        take_qformer(model, model.config.q_former_model)
    given = model.config.vit_ckpt or encoders.has_weights(model.config.vit_model)
    if "vision" not in parts and model.vision is not None and not given:
        raise WeightsError(
            f"{source} holds no vision encoder, so {model.config.vit_model} would stay random; "
            "set model.vit_ckpt to its file (eva_vit_g.pth)"
        )
    found = {n.removeprefix("qformer."): t for n, t in account.state.items()}
    fresh = {f"qformer.{n}" for n in _unread(model, found, source)}
    for name in fresh:
        del account.state[name]
    if "proj" not in parts:
        log.warning("%s holds no projection to the LLM: it begins at random", source)
    projection = account.state.get("proj.weight")
    width = model.proj.out_features
    if projection is not None and len(projection) != width:
        raise WeightsError(
            f"{source}: its projection is for an LLM of width {len(projection)}, but "
            f"model.llama_model has {width} (Vicuna 7B: 4096, 13B: 5120)"
        )
    required = {n for n in model.state_dict() if n.split(".")[0] in parts}
    absent = {n for n in required - set(account.state) if n.startswith(ADDED)}
    _warn_fresh(fresh | absent, source)
    return account.state, required - fresh - absent
