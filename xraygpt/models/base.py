"""What every model offers: loss at the answers, generation, and what it wants of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xraygpt.common.registry import MODELS, Plugin, Registry
from xraygpt.datasets.base import Batch
from xraygpt.datasets.collate import ImagePacker
from xraygpt.models import grouping
from xraygpt.processors.image import ImageSpec
from xraygpt.processors.prompts import PromptRenderer, load_prompts


@dataclass
class Output:
    """Result of a forward pass. B rows, T tokens, V the vocabulary."""

    loss: Tensor  # () float32, cross-entropy in nats summed over all target tokens
    row_loss: Tensor  # (B,) float32, the same summed per row; carries no gradient
    num_targets: Tensor  # (B,) int64, target tokens per row
    logits: Tensor | None = None  # (B, T, V), only on request


@dataclass(kw_only=True)
class Generation:
    """How answers are decoded. Greedy unless a field says otherwise."""

    max_new_tokens: int = 120
    """Most tokens of one answer."""
    num_beams: int = 1
    """More than 1 is beam search."""
    length_penalty: float = 1.0
    """Of beam search: above 0 favours longer answers. No effect without beams."""
    do_sample: bool = False
    """Draw tokens instead of taking the likeliest."""
    temperature: float = 1.0
    """Of sampling: below 1 sharpens. No effect without do_sample."""
    top_p: float = 1.0
    """Of sampling: the nucleus, in (0, 1]. No effect without do_sample."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens already said less likely."""
    no_repeat_ngram_size: int = 0
    """No run of this many tokens is said twice; 0 is off."""
    guidance: float = 0.0
    """How much more the answer follows what sets this image apart from the average training image;
    0 is off, 1 to 4 are usual. Twice the work. No beams."""
    candidates: int = 1
    """Above 1: draw so many answers and give the one most like the others. Needs do_sample."""
    references: int = 0
    """Beside the candidates draw so many at temperature 1 and compare every candidate with these
    instead: they are what the model holds possible, unsharpened. They are candidates, too."""
    agreement: float = 0.0
    """Of candidates: how much naming the findings that were told, and no others, counts beside
    being like the others; both are an F1. No effect on one, nor without `run.task.plan`."""
    seed: int = 0
    """Of sampling. The draws of a sample hang on this and its id, not on the rest of its batch."""

    @property
    def draws(self) -> int:
        """Answers drawn for a prompt."""
        return self.candidates + self.references

    def __post_init__(self) -> None:
        if self.references < 0 or (self.references and self.candidates < 2):
            raise ValueError("references must be at least 0, and come with candidates above 1")
        if self.candidates > 1 and not self.do_sample:
            raise ValueError("candidates above 1 are drawn: set do_sample: true")
        if self.agreement < 0:
            raise ValueError("agreement must be at least 0")
        if self.guidance < 0 or (self.guidance and self.num_beams > 1):
            raise ValueError("guidance must be at least 0, and goes without beams (num_beams: 1)")
        if self.do_sample and self.num_beams > 1:
            raise ValueError("do_sample and num_beams > 1 contradict each other; choose one")
        if not self.do_sample and (self.temperature != 1.0 or self.top_p != 1.0):
            raise ValueError("temperature and top_p act on sampling only; set do_sample: true")
        if not 0 < self.top_p <= 1 or self.temperature <= 0:
            raise ValueError("top_p must lie in (0, 1] and temperature above 0")
        if min(self.max_new_tokens, self.num_beams, self.candidates) < 1:
            raise ValueError("max_new_tokens, num_beams and candidates must be at least 1")


class BaseModel(nn.Module, Plugin):
    """A network that answers about images. It chooses no prompts, reads no files in `forward`."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """What every model's section may hold."""

        kind: ClassVar[Registry] = MODELS

        model_type: str | None = None
        """Preset laid under the user's keys: a file of `xraygpt/configs/models/<arch>/`."""
        ckpt: Path | None = None
        """Weights to start from: a run folder, a checkpoint folder, or `<run folder>/best`."""

    renderer: PromptRenderer
    packer: ImagePacker | None
    image_spec: ImageSpec
    context_len: int  # tokens the LLM can hold
    all_tokens = False  # whether the loss lies on every text token instead of the answers

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.loaded_keys: set[str] = set()  # came from a checkpoint, so they go into the next one

    def forward(self, batch: Batch, return_logits: bool = False) -> Output:
        """Loss of the batch's answers."""
        raise NotImplementedError

    def generate(self, batch: Batch, how: Generation) -> list[str]:
        """One answer per row of a left-padded batch, without stop strings and special tokens."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    def fold(self) -> None:
        """Make quicker what will only answer and never be trained or saved; by default nothing."""

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that training changes."""
        return [(n, p) for n, p in self.named_parameters() if p.requires_grad]

    def no_weight_decay(self) -> tuple[str, ...]:
        """Ends of the names of matrices that are not decayed, such as learned queries."""
        return ()

    def param_groups(self) -> list[grouping.ParamGroup]:
        """All of `trainable_parameters`, in groups; by default matrices decay and the rest not.

        A resumed run takes up what the optimizer remembers by the order of groups and weights.
        """
        return grouping.decay_groups(self.trainable_parameters(), self.no_weight_decay())

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Trained matrices between embeddings and heads, for optimizers that treat them apart."""
        return grouping.hidden_matrices(self)

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Everything that is not a frozen part from elsewhere."""
        raise NotImplementedError

    def translate(
        self, state: dict[str, Tensor], source: Path
    ) -> tuple[dict[str, Tensor], set[str]] | None:
        """Another project's weights under our names, and the names they must hold.

        Args:
            state: Tensors of a file.
            source: Named in messages.

        Returns:
            None if the names are ours already; by default they are.
        """
        return None

    def fresh_keys(self) -> tuple[str, ...]:
        """Prefixes of keys that a checkpoint may lack because they start fresh (LoRA)."""
        return ()

    def save_assets(self, folder: Path) -> None:
        """Write what a checkpoint should hold beside the weights; nothing by default."""

    def parts(self) -> dict[str, Any]:
        """What identifies the parts that came from elsewhere, such as the LLM's digest."""
        return {}

    def check_assets(self, folder: Path) -> None:
        """Compare what `save_assets` wrote with what this model has; nothing by default.

        Raises:
            WeightsError: The checkpoint's weights would mean something else here.
        """

    def encode_frozen(self, pixel_values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, L, D) by the frozen vision encoder, for the feature cache."""
        raise NotImplementedError

    def feature_key(self) -> str | None:
        """Identifies the frozen encoder's weights; None if features must not be cached."""
        return None

    def begin_storing(self) -> str | None:
        """For training: as `feature_key`, of all that is frozen between an image and the LLM.

        From this call on `encode_frozen` gives that, and stored features are taken for it.
        """
        return self.feature_key()


def renderer_of(config: Any, tokenizer: Any) -> PromptRenderer:
    """The renderer that a model's text settings (prompts, template, ending, length) ask for."""
    return PromptRenderer(
        tokenizer,
        config.prompt_template,
        prompts=load_prompts(config.prompt_path),
        end_sym=config.end_sym,
        max_txt_len=config.max_txt_len,
    )


Texts = Callable[[], Sequence[str]]  # the training split's texts, read only if a model asks
