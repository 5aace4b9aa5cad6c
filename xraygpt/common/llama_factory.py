"""Translates LLaMA-Factory's YAML files into this project's sections.

`KEYS` lists the keys that have an effect, those without one, and why. docs/llama_factory.md is
checked against it. Keys in neither table are refused with the nearest name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xraygpt.common.llama_factory_keys import unsupported
from xraygpt.common.registry import did_you_mean

Report = Callable[[str, str], None]  # (key, problem)
SECTIONS = ("model", "datasets", "run", "imports")
LABEL = "llama_factory"  # of the corpus under `datasets`

DIRECT = {
    "model_name_or_path": "model.path",
    "adapter_name_or_path": "model.adapter_path",
    "quantization_bit": "model.bits",
    "image_max_pixels": "model.media.image_max_pixels",
    "image_min_pixels": "model.media.image_min_pixels",
    "video_max_pixels": "model.media.video_max_pixels",
    "video_min_pixels": "model.media.video_min_pixels",
    "video_fps": f"datasets.{LABEL}.frames.fps",
    "video_maxlen": f"datasets.{LABEL}.frames.max_frames",
    "cutoff_len": "model.context",
    "lora_rank": "model.adapters.r",
    "lora_alpha": "model.adapters.alpha",
    "lora_dropout": "model.adapters.dropout",
    "use_dora": "model.adapters.dora",
    "freeze_vision_tower": "model.freeze_vision",
    "freeze_multi_modal_projector": "model.freeze_projector",
    "freeze_language_model": "model.freeze_language",
    "dataset_dir": f"datasets.{LABEL}.storage",
    "media_dir": f"datasets.{LABEL}.images",
    "max_samples": f"datasets.{LABEL}.max_records",
    "output_dir": "run.output_dir",
    "logging_steps": "run.log_every",
    "save_total_limit": "run.keep_checkpoints",
    "per_device_train_batch_size": "run.batch_size_train",
    "per_device_eval_batch_size": "run.batch_size_eval",
    "gradient_accumulation_steps": "run.accum_grad_iters",
    "learning_rate": "run.init_lr",
    "weight_decay": "run.weight_decay",
    "adam_beta2": "run.beta2",
    "max_grad_norm": "run.grad_clip",
    "seed": "run.seed",
    "dataloader_num_workers": "run.num_workers",
    "torch_compile": "run.compile",
    "early_stopping_steps": "run.patience",
    "max_new_tokens": "run.task.generate.max_new_tokens",
    "num_beams": "run.task.generate.num_beams",
    "repetition_penalty": "run.task.generate.repetition_penalty",
    "length_penalty": "run.task.generate.length_penalty",
}
"""Keys that are only renamed."""

OLD_NAMES = {
    "image_resolution": "image_max_pixels",
    "video_resolution": "video_max_pixels",
    "evaluation_strategy": "eval_strategy",
}
"""Names that LLaMA-Factory or transformers gave up; CMR-VL's files use the first two."""

TRANSLATED = {
    "stage": "only sft; other stages are refused by name",
    "do_train": "train.py trains",
    "do_predict": "train.py predicts `eval_dataset`, with controls",
    "do_eval": "validation follows eval_strategy",
    "predict_with_generate": "prediction always generates",
    "finetuning_type": "full, lora or freeze",
    "lora_target": "names, or all: every linear layer of the language model",
    "freeze_trainable_layers": "model.trained_layers, with finetuning_type: freeze",
    "train_mm_proj_only": "trains the projector alone",
    "dataset": "names in dataset_info.json",
    "eval_dataset": "names in dataset_info.json",
    "val_size": "share of the training records for validation, chosen by a hash",
    "num_train_epochs": "run.max_epoch, or run.max_steps if positive",
    "max_steps": "run.max_steps",
    "lr_scheduler_type": "cosine, linear, constant, constant_with_warmup",
    "warmup_ratio": "share of the run; shortened to a tenth above a fifth",
    "warmup_steps": "steps, or a share below 1",
    "bf16": "run.amp: bf16",
    "pure_bf16": "model.dtype: bfloat16",
    "eval_strategy": "no, steps or epoch",
    "eval_steps": "run.eval_every",
    "save_strategy": "no, steps or epoch",
    "save_steps": "run.save_every",
    "resume_from_checkpoint": "true resumes the newest run in output_dir; or a run folder",
    "flash_attn": "fa2 where the package flash-attn and a GPU are there, else PyTorch's kernel",
    "disable_gradient_checkpointing": "model.grad_checkpoint",
    "gradient_checkpointing": "model.grad_checkpoint",
    "use_unsloth_gc": "as gradient_checkpointing: true",
    "disable_shuffling": "run.shuffle",
    "use_cpu": "run.device: cpu",
    "train_on_prompt": "refused if true: the loss is on answers",
    "mask_history": "only the last answer of a conversation is trained",
    "do_sample": "run.task.generate.do_sample; unset: greedy, so that results repeat",
    "temperature": "with do_sample: true",
    "top_p": "with do_sample: true",
}
"""Keys with rules of their own, and what they do."""

IGNORED = {
    "trust_remote_code": "code from model folders is never run",
    "use_fast_tokenizer": "the fast tokenizer is always used",
    "template": "the model's own chat template is used",
    "overwrite_cache": "nothing is tokenized in advance",
    "preprocessing_num_workers": "nothing is tokenized in advance",
    "preprocessing_batch_size": "nothing is tokenized in advance",
    "streaming": "records and media are always read when they are needed",
    "buffer_size": "records and media are always read when they are needed",
    "packing": "rows are always packed, without attention between them",
    "neat_packing": "rows are always packed, without attention between them",
    "mix_strategy": "data sets are concatenated",
    "overwrite_output_dir": "every run has a folder of its own",
    "plot_loss": "the loss is always plotted",
    "ddp_timeout": "processes wait for each other without a limit of their own",
    "deepspeed": "`accelerate launch --use_deepspeed` chooses ZeRO, docs/scaling.md",
    "fsdp": "run.shard_llm, docs/scaling.md",
    "fsdp_config": "run.shard_llm, docs/scaling.md",
    "report_to": "metrics.jsonl and TensorBoard are always written",
    "run_name": "runs are named by date",
    "logging_dir": "logs are in the run folder",
    "logging_first_step": "see logging_steps",
    "include_num_input_tokens_seen": "metrics.jsonl has the number of trained tokens",
    "optim": "AdamW; run.optimizer chooses another",
    "ddp_find_unused_parameters": "every parameter gets a gradient in every step",
    "remove_unused_columns": "there are no columns",
    "bf16_full_eval": "validation has the precision of training",
    "fp16": "bfloat16 has the same speed and does not overflow: set bf16",
    "tf32": "PyTorch's default",
    "dataloader_pin_memory": "on with a GPU",
    "hub_token": "nothing is downloaded",
    "hf_hub_token": "nothing is downloaded",
    "print_param_status": "trained parameters are in the log",
    "save_only_model": "checkpoints always resume",
    "load_best_model_at_end": "the best checkpoint is kept under best",
    "disable_tqdm": "the progress bar is hidden in a pipe",
    "enable_thinking": "the model's own chat template decides",
    "quantization_method": "bitsandbytes",
    "tokenized_path": "nothing is tokenized in advance",
    "data_seed": "seed covers the order of the data",
    "dataloader_persistent_workers": "workers live as long as the run",
    "dataloader_prefetch_factor": "two batches for each worker",
    "use_reentrant_gc": "recomputation is never reentrant",
    "compute_accuracy": "prediction computes it",
}
"""Keys without an effect, and why."""

STAGES = ("pt", "rm", "ppo", "dpo", "kto")
_TRAINING_ONLY = (
    "max_epoch", "max_steps", "batch_size_train", "accum_grad_iters", "init_lr", "warmup_steps",
    "weight_decay", "beta2", "grad_clip", "lr_sched", "amp", "eval_every", "save_every",
    "keep_checkpoints", "resume_ckpt_path", "num_workers", "shuffle", "log_every", "runner",
)  # fmt: skip


def is_llama_factory(tree: Any) -> bool:
    """Return whether a mapping is a YAML file of LLaMA-Factory."""
    keys = set(tree) if isinstance(tree, Mapping) else set()
    return "model_name_or_path" in keys and not keys & {"model", "datasets", "run"}


def known_keys() -> list[str]:
    """Return all keys that are understood."""
    return [*DIRECT, *OLD_NAMES, *TRANSLATED, *IGNORED]


def wants_prediction(tree: Mapping[str, Any]) -> bool:
    """Return whether a YAML file of LLaMA-Factory asks for predictions instead of training."""
    return bool(tree.get("do_predict")) and not tree.get("do_train")


@dataclass
class _Translation:
    keys: dict[str, Any]
    report: Report
    predict: bool
    tree: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def get(self, key: str, default: Any = None) -> Any:
        value = self.keys.get(key)
        return default if value is None else value

    def put(self, path: str, value: Any) -> None:
        node = self.tree
        *parents, last = path.split(".")
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value


def translate(
    tree: Mapping[str, Any], report: Report, *, predict: bool
) -> tuple[dict[str, Any], list[str]]:
    """Translate a YAML file of LLaMA-Factory.

    Args:
        tree: The keys and values.
        report: Called for each problem.
        predict: Whether to return an evaluation configuration instead of a training one.

    Returns:
        The sections of the configuration, and notes for the user.
    """
    own = {key: value for key, value in tree.items() if key in SECTIONS}
    keys: dict[str, Any] = {}
    for key, value in tree.items():
        if key in SECTIONS:
            continue
        if key not in known_keys():
            _refuse(key, value, report)
            continue
        name = OLD_NAMES.get(key, key)
        if name in keys:
            report(key, f"{name} is given too, by its present or old name; remove one")
        keys[name] = value
    job = _Translation(keys, report, predict)
    _check_stage(job)
    job.put("model.arch", "stock_vlm")
    if job.get("use_cpu"):
        job.put("run.device", "cpu")
    for key, path in DIRECT.items():
        if job.get(key) is not None:
            job.put(path, job.get(key))
    _translate_model(job)
    _translate_data(job)
    if predict:
        _translate_prediction(job)
    else:
        _translate_run(job)
    ignored = [key for key in keys if key in IGNORED]
    if ignored:
        job.notes.append(
            f"keys without an effect (docs/llama_factory.md says why): {', '.join(ignored)}"
        )
    return {**job.tree, **_merged(job.tree, own)}, job.notes


def _refuse(key: str, value: Any, report: Report) -> None:
    """Report a key that has no counterpart, unless its value changes nothing."""
    reason = unsupported(key, value)
    if reason is None:
        report(key, f"unknown key{did_you_mean(key, known_keys())}")
    elif reason:
        report(key, reason)


def _merged(tree: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return sections of this project, given beside LLaMA-Factory's keys, over the translation."""
    merged: dict[str, Any] = {}
    for key, value in own.items():
        base: Any = tree.get(key)
        both = isinstance(base, dict) and isinstance(value, Mapping)
        merged[key] = {**base, **_merged(base, value)} if both else value
    return merged


def _check_stage(job: _Translation) -> None:
    stage = job.get("stage", "sft")
    if stage in STAGES:
        job.report("stage", f"'{stage}' is not supported; only supervised fine-tuning (sft) is")
    elif stage != "sft":
        job.report("stage", f"unknown stage '{stage}'{did_you_mean(str(stage), ('sft', *STAGES))}")
    if job.get("train_on_prompt"):
        job.report("train_on_prompt", "is not supported: the loss is on answers")


def _translate_model(job: _Translation) -> None:
    kind = job.get("finetuning_type", "lora")
    if kind not in ("full", "lora", "freeze"):
        job.report("finetuning_type", f"'{kind}' is not supported; use full, lora or freeze")
    _translate_adapters(job, kind)
    if kind == "freeze":
        job.put("model.trained_layers", job.get("freeze_trainable_layers", 2))
    if job.get("train_mm_proj_only"):
        job.put("model.freeze_projector", False)
        job.put("model.freeze_language", True)
    if job.get("pure_bf16"):
        job.put("model.dtype", "bfloat16")
    if job.get("use_unsloth_gc") or job.get("gradient_checkpointing"):
        job.put("model.grad_checkpoint", True)
    if job.get("disable_gradient_checkpointing"):
        job.put("model.grad_checkpoint", False)
    _translate_attention(job)
    job.put(
        "model.text.end_sym", "<|im_end|>\n" if "qwen" in str(job.get("template", "")) else None
    )


def _translate_adapters(job: _Translation, kind: str) -> None:
    if kind == "lora" and not job.predict:
        targets = job.get("lora_target", "all")
        names = (
            targets if isinstance(targets, list) else [t.strip() for t in str(targets).split(",")]
        )
        job.put("model.adapters.target", "all" if names == ["all"] else names)
    elif "adapters" in job.tree["model"]:
        unused = [
            key
            for key in ("lora_rank", "lora_alpha", "lora_dropout", "use_dora")
            if key in job.keys
        ]
        del job.tree["model"]["adapters"]
        job.notes.append(f"{', '.join(unused)} only apply to training with finetuning_type: lora")


def _translate_attention(job: _Translation) -> None:
    attention = str(job.get("flash_attn", "auto"))
    kernels = {"fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager"}
    if attention in kernels and (attention != "fa2" or _has_flash_attention()):
        job.put("model.attention", kernels[attention])
    elif attention == "fa2":
        job.notes.append("flash_attn: fa2 is not available here; PyTorch's kernel is used")


def _has_flash_attention() -> bool:
    import importlib.util

    return importlib.util.find_spec("flash_attn") is not None and Path("/dev/nvidia0").exists()


def _translate_data(job: _Translation) -> None:
    where = f"datasets.{LABEL}"
    job.put(f"{where}.builder", "llama_factory")
    storage = job.get("dataset_dir", "data")
    if not isinstance(storage, str) or storage == "ONLINE" or storage.startswith("REMOTE:"):
        job.report("dataset_dir", "must be a folder; nothing is downloaded")
        storage = "."
    job.put(f"{where}.storage", storage)
    if job.get("media_dir"):
        job.put(f"{where}.images", _below(str(job.get("media_dir")), storage))
    for key in ("dataset", "eval_dataset"):
        names = job.get(key, [])
        names = names if isinstance(names, list) else [n.strip() for n in str(names).split(",")]
        job.put(f"{where}.{key}", [name for name in names if name])
    if job.predict:
        job.put(f"{where}.eval_split", "test")
        if not job.get("eval_dataset"):
            job.report("eval_dataset", "missing: it names what to predict")
    elif not job.get("dataset"):
        job.report("dataset", "missing: it names what to train on")
    val_size = job.get("val_size")
    if val_size:
        if not isinstance(val_size, float) or not 0 < val_size < 1:
            job.report("val_size", f"must be a share in (0, 1), got {val_size}")
        job.put(f"{where}.val_fraction", val_size)
    job.put(f"{where}.frames.fps", job.get("video_fps", 2.0))
    job.put(f"{where}.frames.max_frames", job.get("video_maxlen", 128))
    if job.get("mask_history"):
        job.put("model.text.last_answer_only", True)


def _below(media_dir: str, dataset_dir: str) -> str:
    """Return `media_dir` relative to `dataset_dir`, where this project's `images` start."""
    if Path(media_dir).is_absolute():
        return media_dir
    if Path(dataset_dir).is_absolute():
        return str(Path(media_dir).resolve())
    return os.path.relpath(media_dir, dataset_dir)


def _translate_run(job: _Translation) -> None:
    run: dict[str, Any] = job.tree.setdefault("run", {})
    defaults = {
        "runner": LABEL, "output_dir": "saves", "init_lr": 5e-5,
        "batch_size_train": 8, "batch_size_eval": 8, "weight_decay": 0.0, "log_every": 500,
    }  # fmt: skip
    job.tree["run"] = run = {**defaults, **run}
    if job.get("do_predict"):
        job.notes.append("do_predict: after training, predict with a file without do_train")
    run["task"] = {"name": "free_text", **_generation(job)}
    steps, epochs = job.get("max_steps", -1), float(job.get("num_train_epochs", 3.0))
    if steps > 0:
        run["max_steps"] = steps
    else:
        run["max_epoch"] = max(1, round(epochs))
        if epochs != round(epochs):
            job.notes.append(f"num_train_epochs: {epochs} is rounded to {run['max_epoch']}")
    schedules = {
        "cosine": "linear_warmup_cosine_lr", "linear": "linear_warmup_linear_lr",
        "constant": "constant_lr", "constant_with_warmup": "constant_lr",
    }  # fmt: skip
    schedule = job.get("lr_scheduler_type", "linear")
    if schedule not in schedules:
        job.report("lr_scheduler_type", f"'{schedule}' is none of {', '.join(schedules)}")
    run["lr_sched"] = schedules.get(schedule, "constant_lr")
    warmup = job.get("warmup_steps", 0) or job.get("warmup_ratio", 0)
    run["warmup_ratio" if 0 < warmup < 1 else "warmup_steps"] = warmup
    run.setdefault("optimizer", {"name": "adamw", "fused": True})
    run["amp"] = "bf16" if job.get("bf16") else False
    run["eval_every"] = _every(job, "eval_strategy", "eval_steps", job.get("logging_steps", 500))
    run["save_every"] = _every(job, "save_strategy", "save_steps", 500, default="steps")
    resume = job.get("resume_from_checkpoint")
    if resume:
        run["resume_ckpt_path"] = "auto" if resume is True else str(resume)
    if job.get("disable_shuffling"):
        run["shuffle"] = False


def _every(job: _Translation, strategy: str, steps: str, unset: int, default: str = "no") -> Any:
    chosen = job.get(strategy, default)
    chosen = "no" if chosen is False else str(chosen)  # YAML reads no as false
    if chosen == "steps":
        return job.get(steps, unset)
    if chosen not in ("no", "epoch"):
        job.report(strategy, f"must be no, steps or epoch, got {chosen}")
    return 0 if chosen == "no" else None


def _generation(job: _Translation) -> dict[str, Any]:
    generate = job.tree.get("run", {}).get("task", {}).get("generate", {})
    generate = {"max_new_tokens": 1024, **generate}
    if job.get("do_sample"):
        generate["do_sample"] = True
        generate |= {key: job.get(key) for key in ("temperature", "top_p") if key in job.keys}
    return {"generate": generate}


def _translate_prediction(job: _Translation) -> None:
    run = job.tree.get("run", {})
    task = {"name": "free_text", **_generation(job)}
    kept = {key: value for key, value in run.items() if key not in _TRAINING_ONLY}
    job.tree["run"] = {
        "output_dir": "saves", "batch_size_eval": 8, **kept, "task": task, "split": "test",
        "shuffles": 1,
    }  # fmt: skip
    trained = ("freeze_vision", "freeze_projector", "freeze_language", "trained_layers")
    for name in (*trained, "grad_checkpoint"):
        job.tree["model"].pop(name, None)
