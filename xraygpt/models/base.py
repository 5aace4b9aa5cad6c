"""What every model offers: loss at the answers, generation, and what it wants of images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from xraygpt.common.checks import Checks
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
"""Row of a batch and text of a candidate -> what speaks for it beside being like the others."""


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
    seed: int = 0
    """Of sampling. The draws of a sample hang on this and its id, not on the rest of its batch."""

    @property
    def draws(self) -> int:
        """Answers drawn for a prompt."""
        return self.candidates + self.references

    def __post_init__(self) -> None:
        drawn, beams = self.do_sample, self.num_beams > 1
        with Checks(self) as check:
            refuse = check.refuse
            check.at_least(1, "max_new_tokens", "num_beams", "candidates")
            check.at_least(0, "references", "guidance")
            check.above(0, "temperature")
            refuse(not 0 < self.top_p <= 1, "top_p", f"must lie in (0, 1], got {self.top_p}")
            alone = self.references > 0 and self.candidates < 2
            refuse(alone, "references", "come with candidates above 1", "candidates")
            why = "above 1 are drawn: set do_sample: true"
            refuse(self.candidates > 1 and not drawn, "candidates", why, "do_sample")
            why = "goes without beams (num_beams: 1)"
            refuse(self.guidance and beams, "guidance", why, "num_beams")
            refuse(drawn and beams, "num_beams", "above 1 goes without do_sample", "do_sample")
            for name in ("temperature", "top_p"):
                why = "acts on sampling only; set do_sample: true"
                refuse(getattr(self, name) != 1 and not drawn, name, why, "do_sample")


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

    renderer: PromptRenderer = NO_TEXT  # of a model without text
    media_collator: MediaCollator | None = None
    image_spec: ImageSpec
    context_len = 0  # tokens the LLM can hold
    loss_on_all_tokens = False  # whether the loss lies on every text token instead of the answers
    reads_question = False  # whether tokens of an image depend on what is asked about it
    frozen_parts: ClassVar[tuple[str, ...]] = ()
    """Prefixes of state keys of parts that come from elsewhere: where a checkpoint has none of
    them, they are whole without it."""
    unsupported: Mapping[str, str] = {}
    """By capability ("chat", "maps" …, see `capabilities`) why this model lacks it, in words."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.loaded_keys: set[str] = set()  # came from a checkpoint, so they go into the next one

    def forward(self, batch: Batch, return_logits: bool = False) -> Output:
        """Loss of the batch's answers."""
        raise NotImplementedError

    def generate(self, batch: Batch, how: Generation, bonus: Bonus | None = None) -> list[str]:
        """One answer per row of a left-padded batch, without stop strings and special tokens.

        Args:
            batch: Prompts.
            how: Decoding.
            bonus: Of several candidates, what speaks for one beside being like the others.
        """
        raise NotImplementedError

    def positions(self, batch: Batch) -> Tensor | None:
        """(B, T) or (A, B, T) position ids of a batch, for a decoder that does not just count.

        None, the default, counts tokens. With A axes (M-RoPE) a packed row is given one axis more,
        in front, which counts the tokens of each text, as transformers' Qwen-VL takes it.
        """
        return None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    def merge_lora(self) -> None:
        """Make quicker what will only answer and never be trained or saved; by default nothing."""

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that training changes."""
        return [(n, p) for n, p in self.named_parameters() if p.requires_grad]

    def no_weight_decay(self) -> tuple[str, ...]:
        """Ends of the names of matrices that are not decayed, such as learned queries."""
        return ()

    def param_groups(self) -> list[param_groups.ParamGroup]:
        """All of `trainable_parameters`, in groups; by default matrices decay and the rest not.

        A resumed run takes up what the optimizer remembers by the order of groups and weights.
        """
        return param_groups.decay_groups(self.trainable_parameters(), self.no_weight_decay())

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Trained matrices between embeddings and heads, for optimizers that treat them apart."""
        return param_groups.hidden_matrices(self)

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Everything that is not a frozen part from elsewhere."""
        raise NotImplementedError

    def convert_state(
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
        """Write what a checkpoint should hold beside the weights: how prompts are written."""
        if self.renderer is not NO_TEXT:
            write_renderer(folder, self.renderer)

    def facts(self) -> dict[str, str]:
        """What it is made of, for people: ``{"LLM": "vicuna-7b"}``."""
        return {}

    def pack_into(self, state: dict[str, Tensor], folder: Path, out: Path) -> BaseModel.Config:
        """Write the model into one folder to hand on, matrices in half precision.

        Args:
            state: Weights of the checkpoint that is packed.
            folder: Where to write.
            out: What `folder` will be called.

        Returns:
            The configuration that loads the folder.

        Raises:
            WeightsError: A value is too large for half precision.
        """
        save_half(state, folder / WEIGHTS)
        self.save_assets(folder)
        packed: BaseModel.Config = replace(self.config, ckpt=out)
        return packed

    def parts(self) -> dict[str, str]:
        """What identifies the parts that came from elsewhere, such as the LLM's digest."""
        return {}

    def check_assets(self, folder: Path) -> None:
        """Compare what `save_assets` wrote with what this model has; nothing by default.

        Raises:
            WeightsError: The checkpoint's weights would mean something else here.
        """


class TextSettings(Protocol):
    """Settings of how a model's text is written, see `XrayGPT.Config`."""

    prompt_template: str
    prompt_path: Path | None
    end_sym: str | None
    max_txt_len: int | None


def renderer_of(
    config: TextSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    assets: Path | None = None,
    media_marks: Mapping[str, str] | None = None,
) -> PromptRenderer:
    """The renderer that a model's text settings (prompts, template, ending, length) ask for.

    Args:
        config: The settings.
        tokenizer: Of the language model.
        assets: A checkpoint's folder; its prompts are taken where `prompt_path` is gone.
        media_marks: See `PromptRenderer`.

    Raises:
        InputError: The prompts cannot be read, or the template is none.
    """
    path = config.prompt_path
    saved = None if path is None or path.is_file() else saved_prompts(assets)
    if saved is not None:
        log.info("%s is not here: prompts are those of %s", path, assets)
    return PromptRenderer(
        cast(Tokenizer, tokenizer),
        config.prompt_template,
        prompts=load_prompts(path) if saved is None else saved,
        end_sym=config.end_sym,
        max_txt_len=config.max_txt_len,
        media_marks=media_marks,
    )


Texts = Callable[[], Sequence[str]]  # the training split's texts, read only if a model asks
