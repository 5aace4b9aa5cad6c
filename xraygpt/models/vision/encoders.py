"""Builds vision encoders from the names that `model.vit_model` accepts.

`published.py`, `hf.py` and `run_encoder.py` register the package's encoders; modules that a YAML
file imports may register others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from xraygpt.common.checkpoint import is_run_or_checkpoint, read_manifest
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.common.registry import ENCODERS
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.vision.timm_networks import rule_converter
from xraygpt.models.weights.files import weight_source
from xraygpt.models.weights.rules import ConvertedState, Rule

log = logging.getLogger(__name__)


class BaseEncoder:
    """Builds an encoder and converts its weight files.

    Attributes:
        has_weights: Whether the encoder has useful weights without a file.
        takes_file: Whether `model.vit_ckpt` may be a file or folder with its weights.
        key_prefixes: Prefixes of keys that occur only in this encoder's weight file.

    Args:
        name: The value of `model.vit_model`.
        rest: The part of the name that matches the placeholder in an entry like ``timm/<name>``.
    """

    has_weights: ClassVar[bool] = False
    takes_file: ClassVar[bool] = True
    key_prefixes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, rest: str = "") -> None:
        self.name, self.rest = name, rest

    @property
    def weights_of(self) -> tuple[str, ...]:
        """Names of the encoders whose converted weights fit."""
        return (self.name,)

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Build the encoder.

        Args:
            image_size: Size in pixels; None uses the encoder's default.
            weights: A file or folder, or None if `takes_file` is False or `vit_ckpt` is not set.

        Raises:
            InputError: The encoder does not exist or does not support the size.
            WeightsError: The weights are missing or do not fit.
        """
        raise NotImplementedError

    def build_finer(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Build the encoder with the features of its last finer stage; see `build`."""
        from xraygpt.models.vision.finer import with_finer_stage

        return with_finer_stage(self.build(image_size, weights), self.name)

    def convert_file(self, path: Path) -> ConvertedState:
        """Read a weight file under the network's names; by default, names are unchanged.

        Raises:
            WeightsError: The file is missing, damaged or of another kind.
        """
        return rule_converter((Rule(r"(.+)", r"\1"),), self.name)(path)


def find_encoder(vit_model: str) -> BaseEncoder:
    """Look up a registered encoder by name.

    Raises:
        InputError: There is no such encoder.
    """
    if vit_model not in ENCODERS:
        raise InputError(f"model.vit_model: '{vit_model}' is none of {', '.join(ENCODERS)}")
    encoder_class, rest = ENCODERS.match(vit_model)
    encoder: BaseEncoder = encoder_class(vit_model, rest)
    return encoder


def build_vision(vit_model: str, image_size: int | None, weights: Path | None) -> VisionEncoder:
    """Build an encoder by name.

    Args:
        vit_model: One of the names in `registry.list_encoders()`.
        image_size: Size in pixels; None uses the encoder's default.
        weights: A weight file or folder, for encoders that accept one.

    Raises:
        InputError: There is no such encoder, or it accepts no file.
        WeightsError: The weights are missing or do not fit.
    """
    if weights is not None:
        if is_run_or_checkpoint(weights):
            weights = weight_source(weights)
        origin = read_manifest(weights if weights.is_dir() else weights.parent).get("vit_model")
        if origin not in (None, *find_encoder(vit_model).weights_of):
            raise WeightsError(f"{weights} was converted from {origin}, not from {vit_model}")
    encoder = find_encoder(vit_model)
    if weights is not None and not encoder.takes_file:
        raise InputError(f"model.vit_ckpt: {vit_model} has its own weights; remove this key")
    network = encoder.build(image_size, weights)
    log.debug("vision encoder %s: %s", vit_model, network)
    return network


def has_weights(vit_model: str) -> bool:
    """Return whether an encoder has useful weights without `vit_ckpt`."""
    return vit_model in ENCODERS and find_encoder(vit_model).has_weights


def convert_encoder_file(vit_model: str, path: Path) -> ConvertedState:
    """Read an encoder's weight file under the names of its network.

    Raises:
        InputError: There is no such encoder, or it has no weight file.
        WeightsError: The file is missing, damaged or of another kind.
    """
    if vit_model not in ENCODERS or not find_encoder(vit_model).takes_file:
        convertible = ", ".join(name for name in ENCODERS if ENCODERS.get(name).takes_file)
        raise InputError(f"'{vit_model}' has no file to convert; choose one of {convertible}")
    return find_encoder(vit_model).convert_file(path)


def detect_encoder(keys: Iterable[str]) -> str | None:
    """Return the encoder whose weight file has these keys; None if they are ambiguous."""
    keys = list(keys)
    for name in ENCODERS:
        key_prefixes = ENCODERS.get(name).key_prefixes
        if key_prefixes and any(key.startswith(key_prefixes) for key in keys):
            return name
    return None
