"""The configuration of prefix language models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from xraygpt.common.checks import Checks
from xraygpt.common.project_paths import ProjectPath
from xraygpt.models.llm.config import LLMConfig
from xraygpt.models.prefix_lm.decoder import DecoderSize
from xraygpt.models.text_config import TextConfig


@dataclass(kw_only=True)
class DecoderConfig(LLMConfig):
    """The language model: a new decoder of some `size`, or a pretrained one from `source`."""

    size: DecoderSize = field(default_factory=DecoderSize)  # type: ignore[assignment]
    """Size of the new decoder; has no effect if `source` is set."""
    freeze: bool = False
    """Train none of the LLM's weights except LoRA's; for a pretrained LLM."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.include(super().__post_init__)
            new = self.source is None
            why = "a new decoder has to be trained; set source to start from a pretrained LLM"
            check.refuse(new and self.freeze, "freeze", why, "source")


@dataclass(kw_only=True)
class PrefixConfig:
    """How the embeddings of a study become tokens."""

    width: int = 512
    """Number of values in an embedding."""
    views: list[str] = field(default_factory=list)
    """Names of views, such as `A4C`, that get a learned vector of their own; all other views share
    one."""
    types: list[str] = field(default_factory=list)
    """The same for types of recordings, such as `colour`."""
    normalize: bool = True
    """Scale embeddings to length 1, for encoders compared by cosine similarity."""
    mean: ProjectPath | None = None
    """A `.npy` file with the mean of the embeddings, (width,), which is subtracted before they are
    scaled to length 1 again. In CLIP-like spaces, text and images lie around different means (Liang
    et al. 2022, arXiv:2203.02053): to train on one kind and predict from the other, give each its
    own mean."""
    noise: float = 0.0
    """Length of the random vector added to an embedding of length 1 in training. It makes a model
    that is trained on one kind of embedding less sensitive to the difference from another (CapDec,
    Nukrai et al. 2022, arXiv:2211.00575)."""
    projection: Literal["linear", "none"] = "linear"
    """`none` passes embeddings to the decoder as they are, so that their width must be its own, as
    in echovlm."""
    positions: Literal["set", "sequence"] = "set"
    """`set`: the order of a study's embeddings does not matter. `sequence`: they are numbered like
    tokens, as in echovlm."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(1, "width")
            check.at_least(0, "noise")
            for name in ("views", "types"):
                values = getattr(self, name)
                doubled = sorted({v for v in values if values.count(v) > 1})
                check.refuse(doubled, name, f"contain {', '.join(doubled)} more than once")


@dataclass(kw_only=True)
class PrefixText(TextConfig):
    """How conversations are written as text."""

    prompt_template: str = "study_report"
    """`study_report`: the embeddings, then the report. `study_chat`: questions and answers between
    their own tokens. For a pretrained LLM, `study_text` or any other template that writes something
    between a study and its report."""
    max_txt_len: int | None = None
