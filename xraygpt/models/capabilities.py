"""Optional features of models, as protocols.

A model has a capability if it implements its methods; `BaseModel.unsupported` may explain why a
capability is missing. Callers use `require(model, Capability)` instead of checking a model's class.
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
    from xraygpt.media.base import MediaRef
    from xraygpt.models.base import BaseModel, Output
    from xraygpt.models.findings import FindingScores
    from xraygpt.processors.base import BaseProcessor


class Chats(Protocol):
    """A model that answers from embeddings, so that a chat can reuse the key-value cache."""

    @property
    def llm(self) -> Any:
        """A transformers causal language model that reads `inputs_embeds`."""

    def media_tokens(self, batch: Batch) -> list[Tensor]:
        """Compute the (L, H) tokens of each medium in a batch, in the order of the token runs."""

    def embed(self, batch: Batch, tokens: Sequence[Tensor] | None = None) -> Tensor:
        """Embed (B, T) ids and media as (B, T, H); `tokens` are computed if not passed."""


class ComputesLoss(Protocol):
    """A model that computes the loss on given answers, for training and likelihoods.

    Every model is assumed to, unless it lists ``loss`` in `BaseModel.unsupported`.
    """

    def forward(self, batch: Batch, return_logits: bool = False) -> Output:
        """Compute the loss on the batch's answers."""


class FrozenFeatures(Protocol):
    """A model with a frozen vision encoder whose output can be cached on disk."""

    def encode_frozen(self, pixel_values: Tensor) -> Tensor:
        """Encode images of shape (N, C, H, W) as features of shape (N, L, D)."""

    def feature_key(self) -> str | None:
        """Return an identifier of the frozen encoder's weights, or None to forbid caching."""


class CachesQueries(Protocol):
    """A model that can cache the output of all frozen parts before the LLM."""

    def start_caching_queries(self) -> str | None:
        """Make `encode_frozen` return, and the model accept, the output of all frozen parts.

        Returns:
            An identifier of these parts' weights, like `feature_key`.
        """


class CachesMedia(Protocol):
    """A model whose frozen parts' output is cached for each medium when it is first used."""

    def media_key(self) -> str | None:
        """Return an identifier of the frozen parts and the processor, or None to forbid caching."""

    def media_context(self, refs: Sequence[MediaRef]) -> str:
        """Return what a medium's features depend on in addition to the medium itself."""

    def cache_media(self, store: Any) -> None:
        """Put the features of media with a name (`media.stored`) into a store, once computed."""


class PredictsFindings(Protocol):
    """A model with a classifier for findings next to its language model."""

    def predictable_findings(self) -> Sequence[str]:
        """Return the names of the findings."""

    def finding_scores(self, batch: Batch) -> FindingScores:
        """Compute the probabilities of the findings for each of the B rows, which need images."""


class HasDecoder(Protocol):
    """A model with transformer layers that can be compiled or sharded over processes."""

    def decoder_layers(self) -> nn.ModuleList:
        """Return the layers of the language model, in order."""


class AttentionMaps(Protocol):
    """A model that can attribute image tokens to regions of the image."""

    def traced_tokens(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Return each medium's (F · Q, H) tokens and their (F, Q, P) attention over P patches."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings for an export.

    Attributes:
        merge_lora: Merge LoRA into the weights.
        with_vision: Include the vision encoder, which is usually a separate file.
        dtype: Name of the torch dtype of the weights; None keeps each tensor's dtype.
        license: License named in the model card.
        processor: The image processor, whose settings are exported.
    """

    merge_lora: bool = False
    with_vision: bool = False
    dtype: str | None = None
    license: str = "other"
    processor: BaseProcessor


class Exports(Protocol):
    """A model that can be exported in the file layouts of other projects."""

    def export_layouts(self) -> Sequence[str]:
        """Return the names of the layouts; ``transformers`` is a folder for transformers."""

    def export(self, layout: str, out: Path, settings: ExportSettings) -> str:
        """Write the model in a layout.

        Args:
            layout: One of `export_layouts`.
            out: The file or folder to create.
            settings: See `ExportSettings`.

        Returns:
            A one-line description of what was written.

        Raises:
            WeightsError: The layout cannot represent a part of the model.
        """


# The key in `BaseModel.unsupported`, and the end of the sentence "this model cannot …".
_DESCRIPTIONS: dict[type, tuple[str, str]] = {
    Chats: ("chat", "chat"),
    ComputesLoss: ("loss", "be trained or compute the loss on given answers"),
    FrozenFeatures: ("features", "store features of a frozen encoder"),
    CachesQueries: ("features", "store features of frozen parts"),
    CachesMedia: ("features", "store features of whole media"),
    PredictsFindings: ("findings", "predict findings"),
    HasDecoder: ("decoder", "have the layers of its language model compiled or sharded"),
    AttentionMaps: ("maps", "show where it looked"),
    Exports: ("export", "be converted into the formats of other projects"),
}
Capability = TypeVar("Capability")


def require(model: BaseModel, capability: type[Capability]) -> Capability:
    """Return `model`, typed as the capability it is required to have.

    Raises:
        InputError: The model lacks the capability; the message states the model's reason or the
            missing methods.
    """
    if supports(model, capability):
        return model  # type: ignore[return-value]
    verb = _DESCRIPTIONS[capability][1]
    reason = missing_reason(model, capability)
    raise InputError(f"{describe_model(model)} cannot {verb} because {reason}")


def supports(model: object, capability: type) -> bool:
    """Return whether a model implements a capability and does not list it as unsupported."""
    # Not isinstance, which does not find submodules of a torch module from Python 3.12 on.
    key, _ = _DESCRIPTIONS[capability]
    has = all(hasattr(model, name) for name in _members(capability))
    return has and key not in getattr(model, "unsupported", {})


def describe_model(model: BaseModel) -> str:
    """Return a model's name for messages: "this model (arch: xraygpt)"."""
    from xraygpt.common.registry import MODELS

    names = [name for name in MODELS if MODELS.get(name) is type(model)]
    return f"this model (arch: {names[0]})" if names else f"this model ({type(model).__name__})"


def _members(capability: type) -> list[str]:
    names = {*vars(capability), *vars(capability).get("__annotations__", {})}
    return sorted(name for name in names if not name.startswith("_"))


def missing_reason(model: BaseModel, capability: type) -> str:
    """Return the model's reason why it lacks a capability, or name the missing methods."""
    key = _DESCRIPTIONS[capability][0]
    if key in model.unsupported:
        return model.unsupported[key]
    missing = [name for name in _members(capability) if not hasattr(model, name)]
    return f"it has no {' and no '.join(missing)} (docs/adding_a_model.md)"
