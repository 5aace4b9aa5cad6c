"""What `model.vit_model` may name: a registry of vision encoders, and how one of them is built.

`published.py`, `hf_vision.py` and `own_encoder.py` register those that come with the package;
others may stand in any module that a YAML imports.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from xraygpt.common.checkpoint import is_run_like, manifest_of
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.common.registry import ENCODERS
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.vision.timm_networks import by_rules
from xraygpt.models.weights.files import weight_source
from xraygpt.models.weights.rules import Account, Rule

log = logging.getLogger(__name__)


class BaseEncoder:
    """How a name becomes an encoder.

    Attributes:
        has_weights: Whether it comes with weights, so that it sees something without a file.
        takes_file: Whether `model.vit_ckpt` may name a file or folder with its weights.
        signs: How names in its weight file begin that no other encoder's file has.

    Args:
        name: As the YAML has it.
        rest: Of a name registered with a placeholder, such as ``timm/<name>``: what stands there.
    """

    has_weights: ClassVar[bool] = False
    takes_file: ClassVar[bool] = True
    signs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, rest: str = "") -> None:
        self.name, self.rest = name, rest

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """The encoder.

        Args:
            image_size: Pixels; None takes the encoder's own.
            weights: A file or folder; None where `takes_file` is False or the YAML names none.

        Raises:
            InputError: There is no such encoder, or it cannot be of that size.
            WeightsError: The weights are absent or do not fit.
        """
        raise NotImplementedError

    def account(self, path: Path) -> Account:
        """What becomes of each key of its file; by default all are taken as they are named.

        Raises:
            WeightsError: The file is absent, damaged or of another kind.
        """
        return by_rules((Rule(r"(.+)", r"\1"),), self.name)(path)


def find(vit_model: str) -> BaseEncoder:
    """The entry of a name.

    Raises:
        InputError: There is none.
    """
    if vit_model not in ENCODERS:
        raise InputError(f"model.vit_model: '{vit_model}' is none of {', '.join(ENCODERS)}")
    entry, rest = ENCODERS.match(vit_model)
    found: BaseEncoder = entry(vit_model, rest)
    return found


def build_vision(vit_model: str, image_size: int | None, weights: Path | None) -> VisionEncoder:
    """The encoder called `vit_model`.

    Args:
        vit_model: A name of `registry.list_encoders()`.
        image_size: Pixels; None takes the encoder's own.
        weights: Its file or folder, for encoders that take one.

    Raises:
        InputError: No such encoder, or it takes no file.
        WeightsError: The weights are absent or do not fit.
    """
    if weights is not None:
        if is_run_like(weights):
            weights = weight_source(weights)
        made = manifest_of(weights if weights.is_dir() else weights.parent).get("vit_model")
        if made not in (None, vit_model):
            raise WeightsError(f"{weights} was converted from {made}, not from {vit_model}")
    entry = find(vit_model)
    if weights is not None and not entry.takes_file:
        raise InputError(f"model.vit_ckpt: {vit_model} brings its weights; leave it out")
    encoder = entry.build(image_size, weights)
    log.info("vision encoder %s: %s", vit_model, encoder)
    return encoder


def has_weights(vit_model: str) -> bool:
    """Whether an encoder comes with its weights, without `vit_ckpt`."""
    return vit_model in ENCODERS and find(vit_model).has_weights


def account_of(vit_model: str, path: Path) -> Account:
    """What becomes of each key of an encoder's file, under the names of its network.

    Raises:
        InputError: No such encoder, or one that has no file.
        WeightsError: The file is absent, damaged or of another kind.
    """
    if vit_model not in ENCODERS or not find(vit_model).takes_file:
        have = ", ".join(name for name in ENCODERS if ENCODERS.get(name).takes_file)
        raise InputError(f"'{vit_model}' has no file to convert; {have} have")
    return find(vit_model).account(path)


def recognised(names: Iterable[str]) -> str | None:
    """The encoder whose file holds tensors of these names; None if they do not say."""
    known = list(names)
    for encoder in ENCODERS:
        signs = ENCODERS.get(encoder).signs
        if signs and any(name.startswith(signs) for name in known):
            return encoder
    return None
