"""The interface of all models: loss on answers, generation, image requirements, checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, cast

import torch
from torch import Tensor, nn

from xraygpt.common.checks import Checks
from xraygpt.common.config import from_tree, to_tree
from xraygpt.common.registry import MODELS, Plugin, Registry
from xraygpt.datasets.base import Batch
from xraygpt.datasets.collate import MediaCollator
from xraygpt.models import param_groups
from xraygpt.models.text_assets import saved_prompts, write_renderer
from xraygpt.models.weights.files import WEIGHTS, save_half
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import NO_TEXT, PromptRenderer, load_prompts
from xraygpt.prompting.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Bonus = Callable[[int, str], float]
"""Row of a batch and text of a candidate -> what is added to its similarity to the others."""


@dataclass
class Output:
    """Result of a forward pass. B rows, T tokens, V the vocabulary."""

    loss: Tensor  # () float32, cross-entropy in nats summed over all target tokens
    row_loss: Tensor  # (B,) float32, the same summed per row; carries no gradient
    num_targets: Tensor  # (B,) int64, target tokens per row
    logits: Tensor | None = None  # (B, T, V), only on request


@dataclass(kw_only=True)
class Generation:
    """How answers are decoded; greedy by default."""

    max_new_tokens: int = 120
    """Maximum length of an answer in tokens."""
    num_beams: int = 1
    """Beam search if above 1."""
    length_penalty: float = 1.0
    """Beam search only: values above 0 favour longer answers."""
    do_sample: bool = False
    """Sample tokens instead of choosing the most likely one."""
    temperature: float = 1.0
    """Sampling only: values below 1 sharpen the distribution."""
    top_p: float = 1.0
    """Sampling only: nucleus sampling, in (0, 1]."""
    repetition_penalty: float = 1.0
    """Values above 1 make tokens that are already in the answer less likely."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this many tokens occurs twice in an answer; 0 disables the rule."""
    guidance: float = 0.0
    """Strength of guidance towards tokens that are more likely with this image than with the
    average training image; 0 disables it, 1 to 4 are usual. Doubles the cost. Not with beams."""
    candidates: int = 1
    """Above 1: sample this many answers and return the one most similar to the others. Needs
    do_sample."""
    references: int = 0
    """Additional answers sampled at temperature 1, which represent the model's unsharpened
    distribution. Candidates are then compared with these only, and these are candidates too."""
    seed: int = 0
    """Sampling only. Random numbers depend on the seed and the sample's id, not on its batch."""

    @property
    def answers_per_prompt(self) -> int:
        """Number of candidates and references."""
        return self.candidates + self.references

    def __post_init__(self) -> None:
        sampled, beams = self.do_sample, self.num_beams > 1
        with Checks(self) as check:
            refuse = check.refuse
            check.at_least(1, "max_new_tokens", "num_beams", "candidates")
            check.at_least(0, "references", "guidance")
            check.above(0, "temperature")
            refuse(not 0 < self.top_p <= 1, "top_p", f"must be in (0, 1], got {self.top_p}")
            alone = self.references > 0 and self.candidates < 2
            refuse(alone, "references", "require candidates above 1", "candidates")
            why = "above 1 are sampled: set do_sample: true"
            refuse(self.candidates > 1 and not sampled, "candidates", why, "do_sample")
            why = "cannot be combined with beam search: set num_beams: 1"
            refuse(self.guidance and beams, "guidance", why, "num_beams")
            why = "above 1 cannot be combined with do_sample"
            refuse(sampled and beams, "num_beams", why, "do_sample")
            for name in ("temperature", "top_p"):
                why = "acts on sampling only; set do_sample: true"
                refuse(getattr(self, name) != 1 and not sampled, name, why, "do_sample")


class BaseModel(nn.Module, Plugin):
    """A network that answers about images.

    Attributes:
        renderer: Writes prompts; `NO_TEXT` for a model without text.
        media_collator: Stacks media into batches.
        image_spec: Size and normalisation of images.
        context_len: Maximum number of tokens of a sequence.
        loss_on_all_tokens: Whether the loss covers all text tokens instead of the answers only.
        reads_question: Whether an image's tokens depend on the question.
        frozen_parts: State-key prefixes of parts that are loaded from other files. A checkpoint
            that has no key of a part leaves that part unchanged.
        unsupported: Capability ("chat", "maps" …, see `capabilities`) -> why the model lacks it.
        loaded_keys: State keys that came from a checkpoint and are therefore saved again.
    """

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """Settings of every model."""

        kind: ClassVar[Registry] = MODELS

        model_type: str | None = None
        """Preset of defaults: a file name in `xraygpt/configs/models/<arch>/`."""
        ckpt: Path | None = None
        """Initial weights: a run folder, a checkpoint folder, or `<run folder>/best`."""

        @classmethod
        def from_keys(cls, **keys: Any) -> Self:
            """A checked Config from the keys of a YAML, e.g. ``from_keys(vit_model="tiny")``.

            Raises:
                ConfigError: Lists all unknown keys and bad values.
            """
            config: Self = from_tree(cls, to_tree(keys), "model")
            return config

    renderer: PromptRenderer = NO_TEXT
    media_collator: MediaCollator | None = None
    image_spec: ImageSpec
    context_len = 0
    loss_on_all_tokens = False
    reads_question = False
    frozen_parts: ClassVar[tuple[str, ...]] = ()
    unsupported: Mapping[str, str] = {}

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.loaded_keys: set[str] = set()

    def forward(self, batch: Batch, return_logits: bool = False) -> Output:
        """Compute the loss on the batch's answers."""
        raise NotImplementedError

    def generate(
        self, batch: Batch, generation: Generation, bonus: Bonus | None = None
    ) -> list[str]:
        """Generate one answer per row of a left-padded batch.

        Args:
            batch: Prompts.
            generation: Decoding settings.
            bonus: Added to each candidate's similarity to the others, if there are several.

        Returns:
            Texts without stop strings and special tokens.
        """
        raise NotImplementedError

    def positions(self, batch: Batch) -> Tensor | None:
        """(B, T) or (A, B, T) position ids, for decoders with their own position scheme.

        None, the default, numbers the tokens. With A axes (M-RoPE), packed rows get an additional
        first axis that numbers the tokens of each text, as transformers' Qwen-VL expects.
        """
        return None

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def merge_lora(self) -> None:
        """Merge adapters for faster inference, after which the model is not trained or saved."""

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and values of the parameters that require gradients."""
        return [(n, p) for n, p in self.named_parameters() if p.requires_grad]

    def no_weight_decay(self) -> tuple[str, ...]:
        """Name suffixes of matrices without weight decay, such as learned queries."""
        return ()

    def param_groups(self) -> list[param_groups.ParamGroup]:
        """All of `trainable_parameters` in groups; by default, only matrices decay.

        A resumed run matches optimizer state by the order of groups and weights.
        """
        return param_groups.decay_groups(self.trainable_parameters(), self.no_weight_decay())

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Trained matrices between embeddings and heads, which some optimizers treat separately."""
        return param_groups.hidden_matrices(self)

    def checkpoint_state(self) -> dict[str, Tensor]:
        """The weights a checkpoint must contain: all except frozen parts loaded elsewhere."""
        raise NotImplementedError

    def convert_state(
        self, state: dict[str, Tensor], source: Path
    ) -> tuple[dict[str, Tensor], set[str]] | None:
        """Convert another project's weights to this model's names.

        Args:
            state: Tensors of a file.
            source: The file, for messages.

        Returns:
            Tensors and the names that must be among them; None if no conversion is needed, as is
            the default.
        """
        return None

    def fresh_keys(self) -> tuple[str, ...]:
        """Parts of key names that a checkpoint may lack because they are initialised (LoRA)."""
        return ()

    def save_assets(self, folder: Path) -> None:
        """Write a checkpoint's other files: by default, how prompts are written."""
        if self.renderer is not NO_TEXT:
            write_renderer(folder, self.renderer)

    def facts(self) -> dict[str, str]:
        """Description of the model's parts for reports: ``{"LLM": "vicuna-7b"}``."""
        return {}

    def pack_into(self, state: dict[str, Tensor], folder: Path, out: Path) -> BaseModel.Config:
        """Write the model as a bundle, with matrices in half precision.

        Args:
            state: Weights of the checkpoint.
            folder: Folder to write to.
            out: Final path of `folder`.

        Returns:
            The configuration that loads `out`.

        Raises:
            WeightsError: A value is too large for half precision.
        """
        save_half(state, folder / WEIGHTS)
        self.save_assets(folder)
        packed: BaseModel.Config = replace(self.config, ckpt=out)
        return packed

    def parts(self) -> dict[str, str]:
        """Identifiers of parts loaded from other files, such as the LLM's digest."""
        return {}

    def check_assets(self, folder: Path) -> None:
        """Check that a checkpoint's files match this model; nothing by default.

        Raises:
            WeightsError: The checkpoint was trained with another tokenizer, for example.
        """


class TextSettings(Protocol):
    """Settings of a model's prompts and answers; see `XrayGPT.Config`."""

    prompt_template: str
    prompt_path: Path | None
    end_sym: str | None
    max_txt_len: int | None


def build_renderer(
    config: TextSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    assets: Path | None = None,
    media_marks: Mapping[str, str] | None = None,
) -> PromptRenderer:
    """Build the renderer for a model's text settings.

    Args:
        config: Prompts, template, end of answers, maximum length.
        tokenizer: The language model's tokenizer.
        assets: A checkpoint folder; its prompts are used if `prompt_path` does not exist.
        media_marks: See `PromptRenderer`.

    Raises:
        InputError: The prompts cannot be read, or the template is unknown.
    """
    path = config.prompt_path
    saved = None if path is None or path.is_file() else saved_prompts(assets)
    if saved is not None:
        log.info("%s does not exist: using the prompts saved in %s", path, assets)
    return PromptRenderer(
        cast(Tokenizer, tokenizer),
        config.prompt_template,
        prompts=load_prompts(path) if saved is None else saved,
        end_sym=config.end_sym,
        max_txt_len=config.max_txt_len,
        media_marks=media_marks,
    )


TextSource = Callable[[], Sequence[str]]
"""Reads the training split's texts; called only by models that need them."""
