"""What a model may offer beside loss and answers, and what asks for it.

Whoever needs one of these asks with `require(model, Capability)`; nobody asks for a class. A model
offers a capability by having its methods; `BaseModel.unsupported` may say in words why it does not.
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
    """Answers from embeddings, so that a conversation keeps what it has computed."""

    @property
    def llm(self) -> Any:
        """A transformers causal language model that reads `inputs_embeds`."""

    def media_tokens(self, batch: Batch) -> list[Tensor]:
        """(L, H) of each medium of a batch, in the order of its runs."""

    def embed(self, batch: Batch, tokens: Sequence[Tensor] | None = None) -> Tensor:
        """(B, T) ids -> (B, T, H), media in place; `tokens` of them where they are known."""


class FrozenFeatures(Protocol):
    """Has a frozen encoder, whose output can be stored on disk."""

    def encode_frozen(self, pixel_values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, L, D) by the frozen vision encoder."""

    def feature_key(self) -> str | None:
        """Identifies the frozen encoder's weights; None if features must not be stored."""


class CachesQueries(Protocol):
    """Can store more than the encoder's output for a training: all that is frozen behind it."""

    def start_caching_queries(self) -> str | None:
        """As `feature_key`, of all that is frozen between an image and the LLM.

        From this call on `encode_frozen` gives that, and stored features are taken for it.
        """


class HasDecoder(Protocol):
    """Has transformer layers that can be compiled, or laid out over processes."""

    def decoder_layers(self) -> nn.ModuleList:
        """The layers of the language model, in order."""


class AttentionMaps(Protocol):
    """Can say from which places of a picture each of its tokens was made."""

    def traced_tokens(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Of each medium its (F · Q, H) tokens, and (F, Q, P) shares of P patches in them."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """How a model is to be written for others.

    Attributes:
        merge_lora: Add adapters to the weights they adapt.
        with_vision: Write a vision encoder that is usually a file of its own.
        dtype: Of the weights, a name of torch's; None leaves them.
        license: Of the model, for its card.
        processor: Makes its pictures.
    """

    merge_lora: bool = False
    with_vision: bool = False
    dtype: str | None = None
    license: str = "other"
    processor: BaseProcessor


class Exports(Protocol):
    """Can be written in the layouts of other projects."""

    def export_layouts(self) -> Sequence[str]:
        """Names of the layouts: ``transformers`` is a folder that transformers opens."""

    def export(self, layout: str, out: Path, how: ExportSettings) -> str:
        """Write the model.

        Args:
            layout: One of `export_layouts`.
            out: File or folder to make.
            how: Settings.

        Returns:
            A line that says what was written.

        Raises:
            WeightsError: The layout has no place for a part of it; says which.
        """


_VERBS: dict[type, tuple[str, str]] = {
    Chats: ("chat", "chat"),
    FrozenFeatures: ("features", "store features of a frozen encoder"),
    CachesQueries: ("features", "store features of frozen parts"),
    HasDecoder: ("decoder", "have the layers of its language model compiled or sharded"),
    AttentionMaps: ("maps", "show where it looked"),
    Exports: ("export", "be converted into the formats of other projects"),
}
Capability = TypeVar("Capability")


def require(model: BaseModel, capability: type[Capability]) -> Capability:
    """`model`, if it has the methods of a capability.

    Raises:
        InputError: It lacks some; says which, or the model's own reason.
    """
    if supports(model, capability):
        return model  # type: ignore[return-value]
    key, verb = _VERBS[capability]
    raise InputError(f"{named(model)} cannot {verb} because {_why(model, capability, key)}")


def supports(model: object, capability: type) -> bool:
    """Whether a model has the methods of a capability, and does not say that it cannot."""
    # Not isinstance: from Python 3.12 on that does not see modules of a torch model.
    key, _ = _VERBS[capability]
    has = all(hasattr(model, name) for name in _members(capability))
    return has and key not in getattr(model, "unsupported", {})


def named(model: BaseModel) -> str:
    """A model in a message: "this model (arch: xraygpt)"."""
    from xraygpt.common.registry import MODELS

    names = [name for name in MODELS if MODELS.get(name) is type(model)]
    return f"this model (arch: {names[0]})" if names else f"this model ({type(model).__name__})"


def _members(capability: type) -> list[str]:
    """Methods and attributes of a capability."""
    names = {*vars(capability), *vars(capability).get("__annotations__", {})}
    return sorted(name for name in names if not name.startswith("_"))


def _why(model: BaseModel, capability: type, key: str) -> str:
    if key in model.unsupported:
        return model.unsupported[key]
    lacking = [name for name in _members(capability) if not hasattr(model, name)]
    return f"it has no {' and no '.join(lacking)} (docs/adding_a_model.md)"
