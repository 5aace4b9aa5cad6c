"""The `run` section of a training YAML: every setting of the loop, with its default and unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from xraygpt.common.checks import Checks
from xraygpt.common.config import Choice
from xraygpt.common.registry import LR_SCHEDULERS
from xraygpt.features.cache import FeatureStore
from xraygpt.runners.base import BaseRunner
from xraygpt.runners.optimizers import AdamW, BaseOptimizer

_AT_LEAST_ONE = (
    "max_epoch",
    "max_steps",
    "iters_per_epoch",
    "batch_size_train",
    "batch_size_eval",
    "accum_grad_iters",
    "log_every",
    "eval_samples",
    "keep_checkpoints",
    "patience",
    "lr_plateau_patience",
)


@dataclass(kw_only=True)
class RunSettings(BaseRunner.Config):
    """The `run` section of a YAML."""

    output_dir: Path = Path("output")
    """Run folders are made in it."""
    seed: int = 42
    """Of order, draws and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`, `cpu` or `cuda`; `cuda` falls back to CPU with a warning."""
    amp: bool | Literal["bf16"] = True
    """bfloat16 autocast on CUDA, none on a CPU; `bf16` is on a CPU too, which is faster where the
    CPU has bfloat16 instructions (AMX) and slower where it has none."""
    max_epoch: int | None = None
    """Length of the run in epochs; set this or `max_steps`."""
    max_steps: int | None = None
    """Length of the run in optimizer steps."""
    iters_per_epoch: int | None = None
    """Optimizer steps that count as an epoch; None is one pass over the data."""
    batch_size_train: int = 16
    """Rows of a micro-batch on one process."""
    batch_size_eval: int = 32
    """Rows of an evaluation batch."""
    accum_grad_iters: int = 1
    """Micro-batches of one step."""
    num_workers: int = 0
    """Processes that read images; 0 reads in this one."""
    init_lr: float = 1e-4
    """Highest learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end."""
    warmup_lr: float = 0.0
    """Learning rate of the first step."""
    warmup_steps: int = 0
    """Steps from `warmup_lr` to `init_lr`, counted over the run."""
    lr_sched: Annotated[str, Choice(LR_SCHEDULERS)] = "linear_warmup_cosine_lr"
    """Name of the schedule."""
    lr_decay_rate: float = 0.9
    """Factor of `linear_warmup_step_lr` per epoch and of `reduce_on_plateau_lr` per plateau; no
    effect on the others."""
    lr_plateau_patience: int = 3
    """Evaluations on val in a row without a new best, after which `reduce_on_plateau_lr` lowers the
    learning rate; no effect on the others."""
    optimizer: BaseOptimizer.Config = field(default_factory=AdamW.Config)
    """What changes the weights: a name, or `{name: …}` with the optimizer's settings."""
    weight_decay: float = 0.05
    """On matrices; vectors (biases, norms) are not decayed, unless the model's groups say so."""
    beta2: float = 0.999
    """Share that AdamW's mean squared gradient keeps of itself each step, in [0, 1)."""
    ema_decay: float = 0.0
    """Measure and save a moving average of the weights that keeps this share of itself each step,
    e.g. 0.99; 0 takes the weights as they are."""
    grad_clip: float = 1.0
    """Largest norm of a step's gradient; 0 does not clip."""
    log_every: int = 10
    """Steps between rows of metrics.jsonl."""
    eval_every: int | None = None
    """Steps between evaluations on val; None is once an epoch; 0 is never."""
    eval_samples: int | None = None
    """Use only the first so many samples of val while training; None takes all."""
    save_every: int | None = None
    """Steps between checkpoints; None is once an epoch. The last step is always saved."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept, beside the best."""
    patience: int | None = None
    """Stop after so many evaluations without a better val loss; None never does."""
    resume_ckpt_path: str | None = None
    """Go on with this run: a run folder, a folder of runs (the newest), or `auto`: the newest
    under `output_dir` if there is one."""
    train_splits: list[Literal["train", "val"]] = field(default_factory=lambda: ["train"])
    """Splits to train on."""
    feature_cache: bool = True
    """Keep the frozen encoder's features on disk; no effect on a trained one."""
    feature_store: FeatureStore = field(default_factory=FeatureStore)
    """How they are kept."""
    shard_llm: bool = False
    """With several processes: each keeps its share of the frozen LLM's layers (FSDP2) instead of
    all of them. Less memory, more traffic."""
    compile: bool = False
    """Compile the LLM's layers (torch.compile): a minute or so at the start, then quicker steps."""
    profile: bool = False
    """Write `trace.json`, for chrome://tracing, and `profile.txt`, a table of where the time of
    steps 2 to 5 went, to the run folder."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            both = self.max_epoch is not None and self.max_steps is not None
            check.refuse(both, "max_epoch", "max_steps is set, too; keep one", "max_steps")
            check.at_least(1, *_AT_LEAST_ONE)
            check.at_least(0, "min_lr", "warmup_lr", "weight_decay", "grad_clip")
            check.at_least(0, "num_workers", "warmup_steps")
            check.above(0, "init_lr")
            check.share_below_one("ema_decay")
            high = f"must not be above init_lr ({self.init_lr}), got {self.min_lr}"
            check.refuse(self.min_lr > self.init_lr > 0, "min_lr", high, "init_lr")
