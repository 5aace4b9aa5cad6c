"""The `run` section of a training YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from xraygpt.common.checks import Checks
from xraygpt.common.config import Choice
from xraygpt.common.registry import LR_SCHEDULERS
from xraygpt.features.cache import FeatureStore
from xraygpt.runners.base import BaseRunner
from xraygpt.runners.budget import Budget
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
    """Settings for the training loop."""

    output_dir: Path = Path("output")
    """Parent folder for run folders."""
    seed: int = 42
    """Seed for the sample order, random choices and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; `cuda` falls back to the CPU with a warning."""
    amp: bool | Literal["bf16"] = True
    """Mixed precision: `true` enables bfloat16 autocast on CUDA but not on a CPU; `bf16` enables it
    on both, which is faster if the CPU has bfloat16 instructions (AMX) and slower otherwise."""
    max_epoch: int | None = None
    """Length of the run in epochs; set either this or `max_steps`."""
    max_steps: int | None = None
    """Length of the run in optimizer steps."""
    iters_per_epoch: int | None = None
    """Optimizer steps per epoch; null sets one pass over the data."""
    batch_size_train: int = 16
    """Rows per micro-batch and process."""
    batch_size_eval: int = 32
    """Rows per validation batch and process."""
    accum_grad_iters: int = 1
    """Micro-batches per optimizer step."""
    shuffle: bool = True
    """Whether the samples of an epoch are shuffled; false keeps the order of the corpus."""
    num_workers: int = 0
    """Number of processes that read images; 0 reads them in the training process."""
    init_lr: float = 1e-4
    """Highest learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the run."""
    warmup_lr: float = 0.0
    """Learning rate in the first step."""
    warmup_steps: int = 0
    """Steps of linear warm-up from `warmup_lr` to `init_lr`, once per run. If they are more than a
    fifth of the run, they are shortened to a tenth of it."""
    warmup_ratio: float | None = None
    """The same as a share of the run, instead of `warmup_steps`."""
    lr_sched: Annotated[str, Choice(LR_SCHEDULERS)] = "linear_warmup_cosine_lr"
    lr_decay_rate: float = 0.9
    """Factor per epoch in `linear_warmup_step_lr` and per plateau in `reduce_on_plateau_lr`."""
    lr_plateau_patience: int = 3
    """Validations in a row without a new best before `reduce_on_plateau_lr` acts."""
    optimizer: BaseOptimizer.Config = field(default_factory=AdamW.Config)
    """The optimizer: a name, or `{name: …}` with the optimizer's settings."""
    weight_decay: float = 0.05
    """Weight decay for matrices; biases and norms decay only if the model's groups say so."""
    beta2: float = 0.999
    """Decay rate of AdamW's mean squared gradient per step, in [0, 1)."""
    ema_decay: float = 0.0
    """Validate and save an exponential moving average of the weights with this decay per step, for
    example 0.99; 0 disables it."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 disables clipping."""
    log_every: int = 10
    """Steps between log rows."""
    eval_every: int | None = None
    """Steps between validations; null validates once an epoch, 0 never."""
    eval_samples: int | None = None
    """Validate only on the first `eval_samples` samples in val; null uses all."""
    save_every: int | None = None
    """Steps between checkpoints; null saves once an epoch, 0 only the last step, which is always
    saved."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep, in addition to the best."""
    best_metric: Literal["val/loss", "val/bits_per_byte"] = "val/loss"
    """What decides which checkpoint is the best, when `patience` is used up, and when
    `reduce_on_plateau_lr` acts. Bits per byte can be compared between tokenizers."""
    patience: int | None = None
    """Stop after this many validations in a row without a lower `best_metric`; null never stops
    early."""
    resume_ckpt_path: str | None = None
    """Run to resume: a run folder, a folder of runs (the newest is resumed), or `auto`, which
    resumes the newest run under `output_dir` or starts a new run if there is none."""
    train_splits: list[Literal["train", "val"]] = field(default_factory=lambda: ["train"])
    feature_cache: bool = True
    """Cache a frozen encoder's features on disk; has no effect if the encoder is trained."""
    feature_store: FeatureStore = field(default_factory=FeatureStore)
    """Precision and size of the feature cache."""
    shard_llm: bool = False
    """Shard the frozen LLM's layers over several processes (FSDP2), which needs less memory but
    causes more traffic."""
    compile: bool = False
    """Compile the LLM's layers with torch.compile, which takes a minute at the start and makes
    steps faster."""
    budget: Budget | None = None
    """The accelerator that `--dry-run` counts memory, time and price for, from a few rows on this
    machine; null measures a step on this machine instead."""
    profile: bool = False
    """Profile steps 2 to 5 and write `trace.json` (for chrome://tracing) and `profile.txt`."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            both = self.max_epoch is not None and self.max_steps is not None
            check.refuse(
                both, "max_epoch", "max_steps is also set; set only one of them", "max_steps"
            )
            check.at_least(1, *_AT_LEAST_ONE)
            check.at_least(0, "min_lr", "warmup_lr", "weight_decay", "grad_clip")
            check.at_least(0, "num_workers", "warmup_steps")
            check.fraction("warmup_ratio")
            twice = self.warmup_ratio is not None and self.warmup_steps
            why = "cannot be combined with warmup_steps"
            check.refuse(twice, "warmup_ratio", why, "warmup_steps")
            check.above(0, "init_lr")
            check.fraction_below_one("ema_decay")
            high = f"must not be above init_lr ({self.init_lr}), got {self.min_lr}"
            check.refuse(self.min_lr > self.init_lr > 0, "min_lr", high, "init_lr")
