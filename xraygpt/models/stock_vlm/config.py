"""The configuration of stock models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from xraygpt.common.checks import Checks
from xraygpt.common.project_paths import ProjectPath
from xraygpt.models.llm.llm_files import Attention, Bits, Dtype
from xraygpt.models.stock_vlm.family import PARTS, Part
from xraygpt.models.text_config import TextConfig

ALL_LINEAR = "all"


@dataclass(kw_only=True)
class MediaLimits:
    """Limits on the size of images and clips; null uses those of the model's processor."""

    image_min_pixels: int | None = None
    """Smaller images are enlarged to this number of pixels."""
    image_max_pixels: int | None = None
    """Larger images are reduced to this number of pixels."""
    video_min_pixels: int | None = None
    """The same for each frame of a clip; for Qwen3-VL, for all its frames together."""
    video_max_pixels: int | None = None
    """The same for each frame of a clip; for Qwen3-VL, for all its frames together."""
    shrink: bool = True
    """Reduce the media of a sample that is too long for the context until it fits; false makes such
    a sample an error. Media tokens are never cut."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(
                1, "image_min_pixels", "image_max_pixels", "video_min_pixels", "video_max_pixels"
            )


@dataclass(kw_only=True)
class Adapters:
    """Low-rank adapters (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024), implemented by peft."""

    r: int = 8
    """Rank of the weight update."""
    alpha: int | None = None
    """The update is scaled by alpha / r; null means 2 · r."""
    dropout: float = 0.0
    """Dropout rate before the adapter, in [0, 1)."""
    dora: bool = False
    """Adapt the direction of a weight apart from its length."""
    target: list[str] | str = ALL_LINEAR
    """Names of the adapted linear layers, such as `q_proj`; `all` adapts every linear layer of
    `parts` except the output layer."""
    parts: list[Part] = field(default_factory=lambda: ["language"])
    """Parts of the model with adapters: `language`, `vision`, `projector`."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(1, "r")
            check.refuse(not 0 <= self.dropout < 1, "dropout", "must be in [0, 1)")
            check.refuse(not self.parts, "parts", f"must name some of {', '.join(PARTS)}")
            text = isinstance(self.target, str) and self.target != ALL_LINEAR
            check.refuse(text, "target", f"must be a list of names, or {ALL_LINEAR}")


@dataclass(kw_only=True)
class LearningRates:
    """Factors on the run's learning rate for each part of the model."""

    vision: float = 1.0
    projector: float = 1.0
    language: float = 1.0

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.above(0, *PARTS)


@dataclass(kw_only=True)
class StockText(TextConfig):
    """How conversations are written as text: by the model's own chat template, by default."""

    prompt_template: Literal["chat_template"] | str = "chat_template"
    max_txt_len: int | None = None


@dataclass(kw_only=True)
class StockSettings:
    """Settings of a stock model, apart from those that every model has."""

    path: ProjectPath
    """Folder of a transformers model and its processor. `python -m xraygpt.download` downloads the
    usual ones."""
    dtype: Dtype = "auto"
    """Dtype of frozen weights and of the computation; trained weights are float32."""
    bits: Bits | None = None
    """Quantize the language model while loading: 8 (LLM.int8()) or 4 (NF4); requires `adapters`
    for training."""
    device_map: str | None = None
    """`auto` distributes the model over GPUs and memory, for inference."""
    attention: Attention | None = None
    """Attention kernel; null uses PyTorch's fused one."""
    freeze_vision: bool = True
    freeze_projector: bool = True
    freeze_language: bool = False
    """Whether each part keeps its weights. With `adapters`, the language model's own weights are
    frozen in any case."""
    trained_layers: int | None = None
    """Train only this many layers of the language model: the last ones, or if negative, the
    first."""
    adapters: Adapters | None = None
    adapter_path: ProjectPath | None = None
    """Folder of an adapter trained elsewhere (peft), merged into the weights while loading."""
    lr_scale: LearningRates = field(default_factory=LearningRates)
    media: MediaLimits = field(default_factory=MediaLimits)
    text: StockText = field(default_factory=StockText)
    context: int | None = None
    """Maximum length of a sample in tokens; null uses the model's own."""
    grad_checkpoint: bool | None = None
    """Recompute activations in the backward pass, which saves memory and costs a third of the
    speed. null does so on a GPU for models with more than a billion weights."""
