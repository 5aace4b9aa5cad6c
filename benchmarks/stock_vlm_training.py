"""Fine-tuning a Qwen2.5-VL: this project against LLaMA-Factory 0.9.5 or TRL 1.16, on one thread.

Both sides run the same YAML file on the same random model and SYNTHETIC pictures, with the vision
tower and the projector frozen, in processes of their own that alternate. The losses must agree.

python benchmarks/stock_vlm_training.py --peer-python PYTHON [--peer trl] [--size small]

PYTHON belongs to an environment with llamafactory==0.9.5 or trl==1.16.0, and the torch of this
project.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).parent.parent
# Text: width, inner width, layers, heads, heads of keys, sections of M-RoPE; vision: width, inner
# width, layers, heads, layers with full attention; side of the pictures in pixels.
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "text": (384, 1152, 5, 6, 2, [8, 12, 12]), "vision": (192, 576, 7, 3, [3, 6]), "px": 224,
    },
    "medium": {
        "text": (640, 1920, 8, 10, 2, [8, 12, 12]), "vision": (384, 1152, 8, 6, [3, 7]), "px": 448,
    },
}  # fmt: skip
SIDES = ("peer", "ours", "peer without recomputation", "ours again")
BATCH = 4
WALLS = ("anterior", "anteroseptal", "inferoseptal", "inferior", "inferolateral", "lateral")


def main() -> None:
    """Run the sides alternately and print ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python")
    parser.add_argument(
        "--peer", choices=("peer", "trl"), default="peer", help="peer: LLaMA-Factory"
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        kind, yaml, out = args.run
        {"peer": run_peer, "trl": run_trl, "ours": run_ours}[kind](yaml, out)
        return
    if args.peer_python is None:
        parser.error("--peer-python is missing")
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Alternate the sides and print a table."""
    samples = BATCH * args.steps // 2
    write_model(folder / "model", args.size)
    write_data(folder / "data", SIZES[args.size]["px"], samples)
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(args.rounds):
        for side in SIDES:
            recompute = side == "peer"
            yaml = write_yaml(folder, args.steps, recompute)
            python = args.peer_python if side.startswith("peer") else sys.executable
            kind = args.peer if side.startswith("peer") else "ours"
            rows[side].append(run_side(python, kind, yaml, folder))
    ours = rows["ours"] + rows["ours again"]
    for side in ("peer", "peer without recomputation"):
        print(f"{args.size}, {side} / ours:")
        report(rows[side], ours, args.steps // 2)


def report(peer: list[dict[str, Any]], ours: list[dict[str, Any]], epoch: int) -> None:
    """Print the ratios of medians, and the largest difference of the losses."""
    first = slice(1, epoch)
    later = slice(epoch, None)

    def median(rows: list[dict[str, Any]], part: slice) -> float:
        return statistics.median(s for row in rows for s in row["step_seconds"][part])

    def middle(rows: list[dict[str, Any]], key: str) -> float:
        return statistics.median(row[key] for row in rows)

    gap = max(abs(a - b) for a, b in zip(peer[0]["losses"], ours[0]["losses"], strict=True))
    print(f"  first epoch   {median(peer, first) / median(ours, first):.2f} times as fast")
    print(f"  cached        {median(peer, later) / median(ours, later):.2f} times as fast")
    begin = middle(ours, "first_step") / middle(peer, "first_step")
    print(f"  first step    after {begin:.2f} of its time")
    print(f"  memory        {middle(ours, 'peak_mib') / middle(peer, 'peak_mib'):.2f} of its peak")
    print(f"  losses        differ by at most {gap:.1e}")


def run_side(python: str, kind: str, yaml: Path, folder: Path) -> dict[str, Any]:
    """Run one side in a process of its own."""
    out, cache = folder / "row.json", folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    env = {
        **os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "XRAYGPT_CACHE": str(cache), "HF_DATASETS_CACHE": str(cache / "datasets"),
    }  # fmt: skip
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [python, str(Path(__file__).resolve()), "--run", kind, str(yaml), str(out)]
    subprocess.run(command, check=True, env=env, cwd=REPO, stdout=sys.stderr)
    row: dict[str, Any] = json.loads(out.read_text())
    return row


# ---- the sides -----------------------------------------------------------------------------------


def run_ours(yaml: str, out: str) -> None:
    """Run `train.py`."""
    sys.path.insert(0, str(REPO))
    from xraygpt.runners.train_loop import Runner

    times: list[float] = []
    losses: list[float] = []
    log_row = Runner.log_row

    def record(self: Runner, step: int, values: dict[str, float]) -> None:
        if "train/loss" in values:
            times.append(time.time())
            losses.append(values["train/loss"])
        log_row(self, step, values)

    Runner.log_row = record  # type: ignore[method-assign]
    sys.argv = ["train.py", "--cfg-path", yaml, "--options", "run.export_model=false"]
    runpy.run_path(str(REPO / "train.py"), run_name="train")["main"]()
    write_row(out, times, losses)


def run_peer(yaml: str, out: str) -> None:
    """Run LLaMA-Factory as `llamafactory-cli train` does on one device."""
    import transformers
    from llamafactory.train.tuner import run_exp
    from omegaconf import OmegaConf

    times: list[float] = []
    losses: list[float] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """Records the end of every step."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """Record the time."""
            times.append(time.time())

        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            """Record the loss."""
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    run_exp(OmegaConf.to_container(OmegaConf.load(yaml)), callbacks=[Clock()])
    write_row(out, times, losses)


def run_trl(yaml: str, out: str) -> None:
    """Run TRL's `SFTTrainer` with the settings of the YAML file."""
    import datasets
    import transformers
    import trl
    from omegaconf import OmegaConf

    times: list[float] = []
    losses: list[float] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """Records the end of every step, and its loss."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """Record the time."""
            times.append(time.time())

        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            """Record the loss."""
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    keys = OmegaConf.load(yaml)
    folder = Path(keys.dataset_dir)
    rows = [
        {"prompt": row["messages"][:1], "completion": row["messages"][1:],
         "images": [str(folder / name) for name in row["images"]]}
        for row in json.loads((folder / "pictures.json").read_text())
    ]  # fmt: skip
    for row in rows:
        row["prompt"] = [
            {**m, "content": m["content"].removeprefix("<image>")} for m in row["prompt"]
        ]
    data = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        keys.model_name_or_path, dtype="float32"
    )
    model.model.visual.requires_grad_(False)
    settings = trl.SFTConfig(
        output_dir=keys.output_dir, per_device_train_batch_size=BATCH, max_steps=keys.max_steps,
        learning_rate=float(keys.learning_rate), lr_scheduler_type="constant", logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, seed=42, bf16=False,
        train_sampling_strategy="sequential", max_length=None, loss_type="nll",
        gradient_checkpointing=not OmegaConf.select(keys, "disable_gradient_checkpointing"),
    )  # fmt: skip
    processor = transformers.AutoProcessor.from_pretrained(keys.model_name_or_path)
    trainer = trl.SFTTrainer(
        model, args=settings, train_dataset=data, processing_class=processor, callbacks=[Clock()]
    )
    trainer.train()
    write_row(out, times, losses)


def write_row(out: str, times: list[float], losses: list[float]) -> None:
    """Write what a side measured; the first step is timed from the start of the process."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    start = time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))
    steps = [0.0, *(b - a for a, b in itertools.pairwise(times))]
    row = {
        "losses": losses,
        "step_seconds": steps,
        "first_step": times[0] - start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    Path(out).write_text(json.dumps(row))


# ---- inputs --------------------------------------------------------------------------------------


def write_yaml(folder: Path, steps: int, recompute: bool) -> Path:
    """Write the YAML file that both sides read."""
    keys = {
        "model_name_or_path": folder / "model", "image_max_pixels": 1000000, "stage": "sft",
        "do_train": "true", "finetuning_type": "full", "freeze_vision_tower": "true",
        "freeze_multi_modal_projector": "true", "dataset": "pictures",
        "dataset_dir": folder / "data", "template": "qwen2_vl", "cutoff_len": 5120,
        "disable_shuffling": "true", "output_dir": folder / "out", "overwrite_output_dir": "true",
        "logging_steps": 1, "save_strategy": "'no'", "report_to": "none", "disable_tqdm": "true",
        "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1,
        "learning_rate": "1.0e-4", "lr_scheduler_type": "constant", "max_steps": steps,
        "use_cpu": "true", "seed": 42,
        "disable_gradient_checkpointing": "false" if recompute else "true",
    }  # fmt: skip
    path = folder / "train.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return path


def write_data(folder: Path, px: int, count: int) -> None:
    """Write SYNTHETIC pictures of a ring, with questions and answers of a realistic length."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:px, 0:px] / px - 0.5
    rows = []
    for i in range(count):
        radius = np.hypot(x - rng.uniform(-0.06, 0.06), y - rng.uniform(-0.06, 0.06))
        values = np.where(radius < 0.22, 170, np.where(radius < 0.3, 60, 90))
        values = np.clip(values + rng.normal(0, 8, values.shape), 0, 255).astype(np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": f"<image>{sentence(rng, 'Is there')}?"},
                    {"role": "assistant", "content": f"{sentence(rng, 'There is')}."},
                ],
                "images": [f"{i}.png"],
            }
        )
    (folder / "pictures.json").write_text(json.dumps(rows))
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
    }
    info = {
        "file_name": "pictures.json", "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"}, "tags": tags,
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps({"pictures": info}))


def sentence(rng: Any, opening: str) -> str:
    """Return a sentence about enhancement in random segments."""
    parts = [
        f"{rng.choice(['basal', 'mid', 'apical'])} {rng.choice(WALLS)}"
        for _ in range(rng.integers(3, 7))
    ]
    return f"{opening} late enhancement in the {', '.join(parts)} segments of the left ventricle"


def write_model(folder: Path, size: str) -> None:
    """Write a random Qwen2.5-VL and its processor, which transformers 5.6 and 5.23 open."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    sys.path.insert(0, str(REPO))
    from tests.models.stock_vlm.tiny_models import QWEN_SPECIALS, QWEN_TEMPLATE

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    import numpy as np

    texts = [sentence(np.random.default_rng(i), "There is") for i in range(400)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1992, show_progress=False, initial_alphabet=alphabet)
    core.train_from_iterator(texts, trainer)
    spec = json.loads(core.to_str())["model"]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=spec["vocab"],
        merges=[tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in spec["merges"]],
        unk_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=QWEN_SPECIALS[1:], model_max_length=8192,
    )  # fmt: skip
    limits = {"shortest_edge": 28 * 28, "longest_edge": 16384 * 28 * 28}
    processor = transformers.Qwen2_5_VLProcessor(
        tokenizer=tokenizer, chat_template=QWEN_TEMPLATE,
        image_processor=transformers.Qwen2VLImageProcessor(size=limits),
        video_processor=transformers.Qwen2VLVideoProcessor(size=limits, cap_pixels_per_frame=False),
    )  # fmt: skip
    width, inner, layers, heads, keys, sections = SIZES[size]["text"]
    v_width, v_inner, depth, v_heads, full = SIZES[size]["vision"]
    ids = tokenizer.convert_tokens_to_ids
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": keys,
            "max_position_embeddings": 8192, "bos_token_id": None,
            "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"),
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": sections
            },
        },
        vision_config={
            "depth": depth, "hidden_size": v_width, "intermediate_size": v_inner,
            "num_heads": v_heads, "out_hidden_size": width, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
            "fullatt_block_indexes": full, "tokens_per_second": 2,
        },
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.Qwen2_5_VLForConditionalGeneration(config).float()
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    count = sum(p.numel() for p in network.parameters())
    print(f"{size}: {count / 1e6:.1f} M parameters, {SIZES[size]['px']} px", file=sys.stderr)


if __name__ == "__main__":
    main()
