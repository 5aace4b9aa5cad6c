"""The interface of all models: loss on answers, generation, image requirements, checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor, nn

from xraygpt.boxes.spelling import SpellingName
from xraygpt.common.checks import Checks
from xraygpt.common.config import from_tree, to_tree
from xraygpt.common.model_keys import config_value
from xraygpt.common.project_paths import ProjectPath
from xraygpt.common.registry import MODELS, Plugin, Registry
from xraygpt.common.requirements import FrozenParts, Missing, missing_prompts
from xraygpt.common.training_data import TrainingData
from xraygpt.datasets.base import Batch
from xraygpt.datasets.collate import MediaCollator
from xraygpt.media.geometry import Box
from xraygpt.models import param_groups
from xraygpt.models.abilities import Abilities
from xraygpt.models.text_assets import saved_prompts, write_renderer
from xraygpt.models.weights.files import WEIGHTS, save_half
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import NO_TEXT, PromptRenderer, load_prompts
from xraygpt.prompting.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collation:
    """How a model makes batches of samples: all that is needed to count their tokens.

    Attributes:
        renderer: Converts conversations to token ids.
        media_collator: Counts the tokens of media.
        context_len: Maximum length of a row in tokens.
        image_spec: Input of the vision encoder.
    """

    renderer: PromptRenderer
    media_collator: MediaCollator | None
    context_len: int
    image_spec: ImageSpec


class Pointed(NamedTuple):
    """An answer that may point at places.

    Attributes:
        text: The answer.
        boxes: (x_min, y_min, x_max, y_max) in [0, 1] of the original image; None if they are to be
            read from the text.
        note: A sentence to show beside the answer.
    """

    text: str
    boxes: list[Box] | None = None
    note: str = ""


Bonus = Callable[[int, str], float]
"""Maps a row of the batch and a candidate's text to a bonus on the candidate's similarity score."""


@dataclass
class Output:
    """Result of a forward pass over B rows of T tokens, with a vocabulary of V tokens."""

    loss: Tensor  # () float32, the cross-entropy in nats summed over all target tokens
    row_loss: Tensor  # (B,) float32, the same loss summed per row, without gradient
    num_targets: Tensor  # (B,) int64, the number of target tokens in each row
    logits: Tensor | None = None  # (B, T, V), computed only on request
    # For tokens that stand for bytes of text, not in training: (B,) float32 loss in nats and (B,)
    # int64 bytes. None if the tokenizer is not byte-level.
    byte_loss: Tensor | None = None
    num_bytes: Tensor | None = None


@dataclass(kw_only=True)
class Generation:
    """Decoding settings; decoding is greedy by default."""

    max_new_tokens: int = 120
    """Maximum length of an answer in tokens."""
    num_beams: int = 1
    """Number of beams; values above 1 enable beam search."""
    length_penalty: float = 1.0
    """Length penalty for beam search; values above 0 favour longer answers."""
    do_sample: bool = False
    """Sample tokens instead of choosing the most likely one."""
    temperature: float = 1.0
    """Temperature for sampling; values below 1 sharpen the distribution."""
    top_p: float = 1.0
    """Probability mass for nucleus sampling, in (0, 1]; applies to sampling only."""
    repetition_penalty: float = 1.0
    """Values above 1 make tokens that are already in the answer less likely."""
    no_repeat_ngram_size: int = 0
    """Length of n-grams, in tokens, that may not occur twice in an answer; 0 disables the rule."""
    guidance: float = 0.0
    """Strength of guidance towards tokens that are more likely with this image than with the
    average training image; 0 disables it, and 1 to 4 are usual values. Guidance doubles the cost
    and cannot be combined with beam search."""
    candidates: int = 1
    """Number of answers to sample; if above 1, the one most similar to the others is returned.
    Requires do_sample."""
    references: int = 0
    """Additional answers sampled at temperature 1, which represent the model's unsharpened
    distribution. Candidates are then compared only with these answers, which are candidates too."""
    recombine: bool = False
    """Exchange, add and remove sentences of the returned candidate as long as this makes it more
    similar to the others. Requires candidates above 1."""
    seed: int = 0
    """Seed for sampling. Random numbers depend on it and on the content of the sample's images, not
    on their names or on the batch."""

    @property
    def answers_per_prompt(self) -> int:
        """Total number of candidates and references for each prompt."""
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
            alone = self.recombine and self.candidates < 2
            refuse(alone, "recombine", "requires candidates above 1", "candidates")
            why = "above 1 are sampled: set do_sample: true"
            refuse(self.candidates > 1 and not sampled, "candidates", why, "do_sample")
            why = "cannot be combined with beam search: set num_beams: 1"
            refuse(self.guidance and beams, "guidance", why, "num_beams")
            why = "above 1 cannot be combined with do_sample"
            refuse(sampled and beams, "num_beams", why, "do_sample")
            for name in ("temperature", "top_p"):
                why = "only affects sampling; set do_sample: true"
                refuse(getattr(self, name) != 1 and not sampled, name, why, "do_sample")


class BaseModel(nn.Module, Plugin):
    """A network that answers questions about images.

    Attributes:
        renderer: Writes prompts; `NO_TEXT` if the model reads no text.
        media_collator: Stacks media into batches.
        image_spec: Size and normalisation of images.
        context_len: Maximum number of tokens of a sequence.
        loss_on_all_tokens: Whether the loss covers all text tokens instead of the answers only.
        reads_question: Whether an image's tokens depend on the question.
        reads_clips: Whether a DICOM file with several frames is a clip for the model, unless a
            table says otherwise. If not, it reads one frame of it.
        frozen_parts: State-key prefixes of parts that are loaded from other files. If a checkpoint
            contains no key of a part, that part stays unchanged.
        unsupported: Maps a capability ("chat", "maps" …, see `capabilities`) to the reason why the
            model lacks it.
        abilities: What the model was trained to do, saved with its weights.
        trained_on: Corpora that the model and its parts were trained on, as far as it is known;
            saved in the manifest.
        loaded_keys: State keys that came from a checkpoint and are therefore saved again.
    """

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """Settings that every model has."""

        kind: ClassVar[Registry] = MODELS
        is_pretrained: ClassVar[bool] = False  # whether the model is trained before any `ckpt`
        untrained_part: ClassVar[str] = ""  # without `ckpt`, for a warning

        model_type: str | None = None
        """Preset of defaults: a file name in `xraygpt/configs/models/<arch>/`."""
        ckpt: ProjectPath | None = None
        """Initial weights: a run folder, a checkpoint folder, or `<run folder>/best`."""
        boxes: SpellingName | None = None
        """How the model writes boxes in its answers (docs/instructions.md); null as the corpus of
        the run does. A published model that was not fine-tuned on the corpus has its own way."""

        @classmethod
        def from_keys(cls, **keys: Any) -> Self:
            """Build a checked Config from YAML keys, e.g. ``from_keys(vit_model="tiny")``.

            Raises:
                ConfigError: Keys are unknown or values are invalid; the message lists them all.
            """
            config: Self = from_tree(cls, to_tree(keys), "model")
            return config

        def identity(self) -> dict[str, Any]:
            """Return the settings that affect answers; by default, all of them."""
            tree: dict[str, Any] = to_tree(self)
            return tree

        def required_weights(self) -> FrozenParts | None:
            """Return the parts that stay at their initial weights; None if all are trained."""
            return None

        def missing(self, where: str) -> list[Missing]:
            """List missing files, and frozen parts that would keep random weights."""
            found = super().missing(where)
            prompts = next((m.key for m in found if m.key.endswith(".prompt_path")), None)
            if prompts is not None:  # a checkpoint has its own copy
                path = config_value(self, "prompt_path")
                found = [m for m in found if m.key != prompts]
                found += missing_prompts(prompts, path, self.ckpt)
            frozen = self.required_weights()
            return found + (frozen.missing() if frozen is not None else [])

        def collation(self) -> Collation | None:
            """Return how batches are made, without loading weights; None if it depends on them.

            Raises:
                InputError: A file is missing or damaged.
            """
            return None

    renderer: PromptRenderer = NO_TEXT
    media_collator: MediaCollator | None = None
    image_spec: ImageSpec
    context_len = 0
    loss_on_all_tokens = False
    reads_question = False
    reads_clips: ClassVar[bool] = False
    frozen_parts: ClassVar[tuple[str, ...]] = ()
    unsupported: Mapping[str, str] = {}
    abilities: Abilities = Abilities()
    trained_on: tuple[TrainingData, ...] = ()

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
            The answers without stop strings and special tokens.
        """
        raise NotImplementedError

    def point(self, batch: Batch, generation: Generation) -> list[Pointed]:
        """Answer questions about places; by default, boxes are read from the generated texts."""
        return [Pointed(text) for text in self.generate(batch, generation)]

    def box_spelling(self, corpus: SpellingName) -> SpellingName:
        """Return how the model writes boxes: as its configuration says, or else as the corpus.

        Args:
            corpus: The spelling of the corpus (`boxes.spelling`).
        """
        return self.config.boxes or corpus

    def unsupported_reason(self, task: str) -> str:
        """Return why the model cannot do a task, by its registered name; "" if it can."""
        return ""

    def close(self) -> None:
        """Release what the model holds besides memory, such as a program; nothing by default."""

    def check_generation(self, generation: Generation) -> None:
        """Check decoding settings before anything is read; by default, all are accepted.

        Raises:
            InputError: The model cannot honour a setting.
        """

    def keep_answers(self, folder: Path) -> None:
        """Prepare to answer for a result folder; by default, nothing is done.

        Evaluation and prediction store answers after each batch. A model whose answers are paid for
        can store each one in the folder as soon as it has it.
        """

    def positions(self, batch: Batch) -> Tensor | None:
        """Return (B, T) or (A, B, T) position ids, for decoders with their own position scheme.

        The default, None, numbers the tokens. With A axes (M-RoPE), packed rows get an additional
        first axis that numbers the tokens of each text, as transformers' Qwen-VL expects.
        """
        return None

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return next(self.parameters()).device

    def merge_lora(self) -> None:
        """Merge adapters for faster inference; the model must not be trained or saved after it."""

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the names and values of the parameters that require gradients."""
        return [(n, p) for n, p in self.named_parameters() if p.requires_grad]

    def no_weight_decay(self) -> tuple[str, ...]:
        """Return the name suffixes of matrices without weight decay, such as learned queries."""
        return ()

    def param_groups(self) -> list[param_groups.ParamGroup]:
        """Return all `trainable_parameters` in groups; by default, only matrices decay.

        A resumed run assigns the optimizer state by the order of groups and weights.
        """
        return param_groups.decay_groups(self.trainable_parameters(), self.no_weight_decay())

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the trained matrices other than embeddings and heads, for optimizers like Muon."""
        return param_groups.hidden_matrices(self)

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Return the weights a checkpoint must contain: all but frozen parts from other files."""
        raise NotImplementedError

    def convert_state(
        self, state: dict[str, Tensor], source: Path
    ) -> tuple[dict[str, Tensor], set[str]] | None:
        """Convert another project's weights to this model's names.

        Args:
            state: Tensors from the file.
            source: The file, named in messages.

        Returns:
            The tensors and the names that must be among them, or None (the default) if no
            conversion is needed.
        """
        return None

    def fresh_keys(self) -> tuple[str, ...]:
        """Return parts of the names of keys that a checkpoint may lack, such as LoRA's."""
        return ()

    def save_assets(self, folder: Path) -> None:
        """Write a checkpoint's other files: by default, the prompt settings and the abilities."""
        self.abilities.save(folder)
        if self.renderer is not NO_TEXT:
            write_renderer(folder, self.renderer)

    def facts(self) -> dict[str, str]:
        """Return a description of the model's parts for reports: ``{"LLM": "vicuna-7b"}``."""
        return {}

    def pack_into(self, state: dict[str, Tensor], folder: Path, out: Path) -> BaseModel.Config:
        """Write the model as a bundle, with matrices in half precision.

        Args:
            state: Weights from the checkpoint.
            folder: Folder to write to.
            out: Final path of `folder`.

        Returns:
            The configuration with which `out` can be loaded.

        Raises:
            WeightsError: A value is too large for half precision.
        """
        save_half(state, folder / WEIGHTS)
        self.save_assets(folder)
        packed: BaseModel.Config = replace(self.config, ckpt=out)
        return packed

    def parts(self) -> dict[str, str]:
        """Return identifiers of parts loaded from other files, such as the LLM's digest."""
        return {}

    def check_assets(self, folder: Path) -> None:
        """Check that a checkpoint's files match this model; by default, nothing is checked.

        Raises:
            WeightsError: The checkpoint was trained with another tokenizer, for example.
        """


class TextSettings(Protocol):
    """Settings for a model's prompts and answers; see `XrayGPT.Config`."""

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
        config: The prompts, the template, the end of answers and the maximum length.
        tokenizer: The language model's tokenizer.
        assets: A checkpoint folder, whose prompts are used if `prompt_path` does not exist.
        media_marks: See `PromptRenderer`.

    Raises:
        InputError: The prompts cannot be read, or the template is unknown.
    """
    path = config.prompt_path
    saved = None if path is None or path.is_file() else saved_prompts(assets)
    if saved is not None:
        log.debug("%s does not exist: using the prompts saved in %s", path, assets)
    return PromptRenderer(
        cast(Tokenizer, tokenizer),
        config.prompt_template,
        prompts=load_prompts(path) if saved is None else saved,
        end_sym=config.end_sym,
        max_txt_len=config.max_txt_len,
        media_marks=media_marks,
        last_answer_only=getattr(config, "last_answer_only", False),
    )


TextSource = Callable[[], Iterable[str]]
"""Returns the texts in the training split; called only by models that need them."""
