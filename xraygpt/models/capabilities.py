"""Optional features of models, as protocols.

A model has a capability if it has its methods; `BaseModel.unsupported` may explain why one is
missing. Callers use `require(model, Capability)` and do not check for a model's class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor, nn

from xraygpt.common.errors import InputError

if TYPE_CHECKING:
    from xraygpt.datasets.base import Batch
    from xraygpt.models.base import BaseModel
    from xraygpt.processors.base import BaseProcessor


class Chats(Protocol):
    """Can answer from embeddings, so that a conversation can reuse its key-value cache."""

    @property
    def llm(self) -> Any:
        """A transformers causal language model that reads `inputs_embeds`."""

    def media_tokens(self, batch: Batch) -> list[Tensor]:
        """(L, H) tokens of each medium of a batch, in the order of its token runs."""

    def embed(self, batch: Batch, tokens: Sequence[Tensor] | None = None) -> Tensor:
        """(B, T) ids -> (B, T, H) embeddings with media; `tokens` are computed if not passed."""


class FrozenFeatures(Protocol):
    """Has a frozen vision encoder whose output can be stored on disk."""

    def encode_frozen(self, pixel_values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, L, D) by the frozen vision encoder."""

    def feature_key(self) -> str | None:
        """Identifier of the frozen encoder's weights; None if features must not be stored."""


class CachesQueries(Protocol):
    """Can store the output of all frozen parts between image and LLM, not only the encoder's."""

    def start_caching_queries(self) -> str | None:
        """Make `encode_frozen` return, and the model accept, the output of all frozen parts.

        Returns:
            Identifier of the weights of these parts, as `feature_key`.
        """


class HasDecoder(Protocol):
    """Has transformer layers that can be compiled or sharded over processes."""

    def decoder_layers(self) -> nn.ModuleList:
        """The layers of the language model, in order."""


class AttentionMaps(Protocol):
    """Can attribute image tokens to regions of the image."""

    def traced_tokens(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """For each medium, its (F · Q, H) tokens and their (F, Q, P) attention over P patches."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of an export.

    Attributes:
        merge_lora: Merge LoRA into the weights.
        with_vision: Include the vision encoder, which is usually a separate file.
        dtype: Name of the weights' torch dtype; None keeps each tensor's.
        license: License named in the model card.
        processor: Preprocesses images; its settings are exported.
    """

    merge_lora: bool = False
    with_vision: bool = False
    dtype: str | None = None
    license: str = "other"
    processor: BaseProcessor


class Exports(Protocol):
    """Can be exported in the file layouts of other projects."""

    def export_layouts(self) -> Sequence[str]:
        """Names of the layouts; ``transformers`` is a folder that transformers can load."""

    def export(self, layout: str, out: Path, settings: ExportSettings) -> str:
        """Write the model.

        Args:
            layout: One of `export_layouts`.
            out: File or folder to create.
            settings: See `ExportSettings`.

        Returns:
            A line that says what was written.

        Raises:
            WeightsError: The layout cannot represent a part of the model.
        """


# Key in `BaseModel.unsupported`, and the end of the sentence "this model cannot …".
_DESCRIPTIONS: dict[type, tuple[str, str]] = {
    Chats: ("chat", "chat"),
    FrozenFeatures: ("features", "store features of a frozen encoder"),
    CachesQueries: ("features", "store features of frozen parts"),
    HasDecoder: ("decoder", "have the layers of its language model compiled or sharded"),
    AttentionMaps: ("maps", "show where it looked"),
    Exports: ("export", "be converted into the formats of other projects"),
}
Capability = TypeVar("Capability")


def require(model: BaseModel, capability: type[Capability]) -> Capability:
    """Return `model`, typed as a capability that it has.

    Raises:
        InputError: It lacks the capability; the message has the model's reason or the missing
            methods.
    """
    if supports(model, capability):
        return model  # type: ignore[return-value]
    key, verb = _DESCRIPTIONS[capability]
    reason = _missing_reason(model, capability, key)
    raise InputError(f"{describe_model(model)} cannot {verb} because {reason}")


def supports(model: object, capability: type) -> bool:
    """Whether a model has a capability's methods and does not list it in `unsupported`."""
    # Not isinstance: from Python 3.12 on it does not find submodules of a torch module.
    key, _ = _DESCRIPTIONS[capability]
    has = all(hasattr(model, name) for name in _members(capability))
    return has and key not in getattr(model, "unsupported", {})


def describe_model(model: BaseModel) -> str:
    """Name of a model for messages: "this model (arch: xraygpt)"."""
    from xraygpt.common.registry import MODELS

    names = [name for name in MODELS if MODELS.get(name) is type(model)]
    return f"this model (arch: {names[0]})" if names else f"this model ({type(model).__name__})"


def _members(capability: type) -> list[str]:
    names = {*vars(capability), *vars(capability).get("__annotations__", {})}
    return sorted(name for name in names if not name.startswith("_"))


def _missing_reason(model: BaseModel, capability: type, key: str) -> str:
    if key in model.unsupported:
        return model.unsupported[key]
    missing = [name for name in _members(capability) if not hasattr(model, name)]
    return f"it has no {' and no '.join(missing)} (docs/adding_a_model.md)"
