"""A decoder on study embeddings, trained from scratch: this project against echovlm, on a CPU.

Both sides start from the same weights of echovlm's shape (27.2 million, depth 8) and see the same
SYNTHETIC studies, in processes of their own that alternate. echovlm's code comes from a clone
(https://github.com/vukadinovic936/echovlm); its attention mask, which PyTorch refuses on a CPU, is
corrected for it. It computes in float32 on a CPU; this project also in bfloat16 (`run.amp: bf16`).

python benchmarks/study_decoder.py --clone FOLDER train [--steps 12] [--threads 1]
python benchmarks/study_decoder.py --clone FOLDER decode [--studies 512] [--new-tokens 64]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

REPO = Path(__file__).parent.parent
BATCH, LENGTH, WIDTH, VOCABULARY = 4, 256, 512, 2000


def main() -> None:
    """Run the sides alternately and print ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=("train", "decode"))
    add("--clone", type=Path, required=True)
    add("--threads", type=int, default=1)
    add("--rounds", type=int, default=2)
    add("--steps", type=int, default=12)
    add("--studies", type=int, default=512)
    add("--new-tokens", type=int, default=64)
    add("--side", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side, folder = args.side
        _SIDES[args.what, side.split()[0]](args, Path(folder), side)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(args, folder)
        sides = ("echovlm", "ours bf16", "ours float32") if args.what == "train" else _BOTH
        rows: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side in sides:
                rows[side].append(run_side(args, folder, side))
        (report_training if args.what == "train" else report_decoding)(rows)


_BOTH = ("echovlm", "ours")


def run_side(args: argparse.Namespace, folder: Path, side: str) -> dict[str, Any]:
    """Run one side in a process of its own, with an empty cache of compiled code."""
    cache = tempfile.mkdtemp(dir=folder)
    env = {
        **os.environ, "OMP_NUM_THREADS": str(args.threads), "TORCHINDUCTOR_CACHE_DIR": cache,
        "XRAYGPT_CACHE": cache, "PYTHONPATH": str(REPO),
    }  # fmt: skip
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [
        sys.executable, str(Path(__file__).resolve()), args.what,
        "--clone", str(args.clone.resolve()), "--threads", str(args.threads),
        "--steps", str(args.steps), "--studies", str(args.studies),
        "--new-tokens", str(args.new_tokens), "--side", side, str(folder),
    ]  # fmt: skip
    subprocess.run(command, check=True, env=env, cwd=folder, stdout=sys.stderr)
    row: dict[str, Any] = json.loads((folder / "row.json").read_text())
    return row


def write_row(folder: Path, **values: Any) -> None:
    """Write what a side measured, with the peak of its memory."""
    values["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (folder / "row.json").write_text(json.dumps(values))


def report_training(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Print speed after two steps of warm-up, the first step, memory and losses."""

    def seconds(side: str) -> float:
        return statistics.median(s for row in rows[side] for s in row["seconds"][2:])

    def first(side: str) -> float:
        return statistics.median(row["seconds"][0] for row in rows[side])

    peer = rows["echovlm"][0]["losses"]
    for side in list(rows)[1:]:
        memory = [statistics.median(r["peak_mib"] for r in rows[s]) for s in (side, "echovlm")]
        gap = max(abs(a - b) for a, b in zip(rows[side][0]["losses"], peer, strict=True))
        print(f"{side} / echovlm:")
        print(f"  tokens per second  {seconds('echovlm') / seconds(side):.2f} times")
        print(f"  first step         {first('echovlm') / first(side):.1f} times sooner")
        print(f"  memory             {memory[0] / memory[1]:.2f} of its peak")
        print(f"  losses             differ by at most {gap:.1e} in {len(peer)} steps")
    print({side: round(seconds(side), 2) for side in rows}, "seconds per step")
    print({side: round(first(side), 1) for side in rows}, "seconds for the first step")


def report_decoding(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Print the ratio of the times, and whether the tokens are the same."""
    times = {side: statistics.median(row["seconds"] for row in rows[side]) for side in rows}
    ours, peer = rows["ours"][0]["tokens"], rows["echovlm"][0]["tokens"]
    same = sum(a == b for a, b in zip(ours, peer, strict=True))
    print(f"{len(peer)} studies: {times['echovlm'] / times['ours']:.1f} times as fast")
    print(f"same tokens in {same} of {len(peer)}", {k: round(v, 1) for k, v in times.items()})


# ---- inputs --------------------------------------------------------------------------------------


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Write a corpus, and this project's first weights under echovlm's names."""
    import numpy as np
    import torch

    sys.path.insert(0, str(REPO))
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(1500)]
    count = BATCH * args.steps
    rows = []
    for i in range(count):
        text = " ".join(rng.choice(words, 2 * LENGTH))
        rows.append({"study": f"s{i}", "split": "train", "findings": text, "image": f"s{i}.npy"})
        vector = rng.normal(size=WIDTH).astype(np.float32)
        np.save(folder / f"s{i}.npy", vector / np.linalg.norm(vector))
    (folder / "studies.jsonl").write_text("\n".join(map(json.dumps, rows)))
    studies = torch.nn.functional.normalize(torch.randn(args.studies, WIDTH), dim=-1)
    torch.save(studies, folder / "studies.pt")
    model = our_runner(args, folder, amp=False).model
    weights = their_names(model, randomize=args.what == "decode")
    torch.save(weights, folder / "weights.pt")


def our_runner(args: argparse.Namespace, folder: Path, amp: bool) -> Any:
    """Build a run whose steps have 4 rows of 256 target tokens."""
    from xraygpt.common.config import load
    from xraygpt.experiment import Training, build_runner

    tree = {
        "model": {
            "arch": "prefix_lm", "model_type": "echovlm", "text": {"max_txt_len": LENGTH},
        },
        "datasets": {
            "x": {
                "builder": "records", "storage": str(folder), "annotations": "studies.jsonl",
                "sections": ["findings"], "target": "report", "input_check": False,
            }
        },
        "run": {
            "task": "report_generation", "output_dir": str(folder / "out"), "seed": 0,
            "device": "cpu", "amp": "bf16" if amp else False, "max_steps": args.steps,
            "batch_size_train": BATCH, "init_lr": 0.02, "lr_sched": "constant_lr", "beta2": 0.95,
            "weight_decay": 0.0, "shuffle": False, "log_every": 1, "eval_every": 0,
            "save_every": 0,
            "optimizer": {
                "name": "muon", "adjust_lr": "original", "beta1": 0.8, "eps": 1e-10,
                "momentum_start": 0.85, "momentum_warmup": 300, "fused": True,
                "ns_steps": 4, "bound": "gram",
            },
        },
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(json.dumps(tree))
    return build_runner(load(Training, path))


def their_names(model: Any, randomize: bool) -> dict[str, Any]:
    """Return the decoder's weights under echovlm's names, not 0 for comparisons of decoding."""
    import torch

    from xraygpt.models.prefix_lm import echovlm

    ours = {n: p.detach().clone() for n, p in model.named_parameters()}
    if randomize:
        generator = torch.Generator().manual_seed(0)
        for weight in ours.values():
            if not weight.any():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    names = {"transformer.wte.weight", "lm_head.weight"}
    for i in range(len(model.llm.model.layers)):
        names |= {f"transformer.h.{i}.attn.{n}.weight" for n in ("c_q", "c_k", "c_v", "c_proj")}
        names |= {f"transformer.h.{i}.mlp.{n}.weight" for n in ("c_fc", "c_proj")}
    empty = torch.zeros(1)
    return {n: ours[next(iter(echovlm.rename({n: empty}, Path("x"))))] for n in sorted(names)}


# ---- the sides -----------------------------------------------------------------------------------


def train_ours(args: argparse.Namespace, folder: Path, side: str) -> None:
    """Run the project's training loop, and time its steps."""
    from xraygpt.runners.train_loop import Runner

    seconds: list[float] = []
    losses: list[float] = []
    step = Runner._step

    def timed(self: Runner, batches: Any) -> dict[str, float]:
        began = time.perf_counter()
        values = step(self, batches)
        seconds.append(time.perf_counter() - began)
        losses.append(values["train/loss"])
        return values

    Runner._step = timed  # type: ignore[method-assign]
    runner = our_runner(args, folder, amp=side.endswith("bf16"))
    load_ours(runner.model, folder)
    runner.train()
    write_row(folder, seconds=seconds, losses=losses)


def load_ours(model: Any, folder: Path) -> None:
    """Load the common weights."""
    import torch

    from xraygpt.models.prefix_lm import echovlm

    state = echovlm.rename(torch.load(folder / "weights.pt"), folder)
    model.load_state_dict(state, strict=False)


def their_modules(args: argparse.Namespace, folder: Path) -> tuple[Any, Any]:
    """Import echovlm from its clone, with a mask that PyTorch accepts on a CPU."""
    import torch
    from torch.nn import functional as F

    sys.path.insert(0, str(args.clone))
    from echovlm import engine, gpt

    sdpa = F.scaled_dot_product_attention

    def attention(
        q: Any, k: Any, v: Any, mask: Any = None, is_causal: bool = False, **kw: Any
    ) -> Any:
        mask = kw.pop("attn_mask", mask)
        if mask is not None and is_causal:
            causal = torch.ones(q.size(2), k.size(2), dtype=torch.bool).tril()
            return sdpa(q, k, v, attn_mask=mask & causal, **kw)
        return sdpa(q, k, v, attn_mask=mask, is_causal=is_causal, **kw)

    plain = types.SimpleNamespace(**{n: getattr(F, n) for n in dir(F) if not n.startswith("__")})
    plain.scaled_dot_product_attention = attention
    gpt.F = plain
    return gpt, engine


def their_network(gpt: Any, folder: Path, vocabulary: int) -> Any:
    """Build echovlm's model with the common weights."""
    import torch

    weights = torch.load(folder / "weights.pt")
    layers = len({n.split(".")[2] for n in weights if n.startswith("transformer.h.")})
    network = gpt.GPT(
        gpt.GPTConfig(
            sequence_len=1024, vocab_size=vocabulary, n_layer=layers, n_head=4, n_kv_head=4,
            n_embd=WIDTH,
        )
    )  # fmt: skip
    network.load_state_dict(weights)
    return network


def train_theirs(args: argparse.Namespace, folder: Path, side: str) -> None:
    """Run echovlm's training step on the batches of this project's loop."""
    import torch

    batches = our_batches(args, folder)
    gpt, _ = their_modules(args, folder)
    network = their_network(gpt, folder, len(torch.load(folder / "weights.pt")["lm_head.weight"]))
    adamw, muon = network.setup_optimizers()
    seconds, losses = [], []
    for step, (x, y, mask, study) in enumerate(batches):
        began = time.perf_counter()
        seen = torch.ones(len(study), 1, dtype=torch.bool)
        loss = network(x, y, mask, study, seen)
        losses.append(float(loss.detach()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        share = min(step / 300, 1)
        for group in muon.param_groups:
            group["momentum"] = (1 - share) * 0.85 + share * 0.95
        for optimizer in (adamw, muon):
            optimizer.step()
        network.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    write_row(folder, seconds=seconds, losses=losses)


def our_batches(args: argparse.Namespace, folder: Path) -> list[Any]:
    """Return the ids, labels, masks and embeddings of every step as echovlm collates them."""
    import torch

    runner = our_runner(args, folder, amp=False)
    batches, rows = [], []
    stream = runner._batches()
    for _ in range(args.steps):
        batches.append(next(stream))
    stream.close()
    for batch in batches:
        ids = batch["input_ids"][:, 1:]  # without the placeholder of the embedding
        x, y = ids[:, :-1].clone(), batch["labels"][:, 2:].clone()
        study = batch["media_inputs"]["embeddings"][:, None]
        rows.append((x, y, torch.ones_like(x, dtype=torch.bool), study))
    return rows


def decode_ours(args: argparse.Namespace, folder: Path, side: str) -> None:
    """Generate all reports in batches."""
    import torch

    from xraygpt.datasets.collate import Collator
    from xraygpt.media.base import Media
    from xraygpt.models.base import Generation
    from xraygpt.models.llm.decoding import Decoder

    model = our_runner(args, folder, amp=False).model.eval()
    load_ours(model, folder)
    collate = Collator(model.renderer, model.media_collator, max_len=model.context_len)
    decoder = Decoder(model.llm, model.renderer)
    studies = torch.load(folder / "studies.pt")
    samples: list[Any] = [
        {
            "sample_id": str(i), "study_id": str(i), "media": [Media(row[None], "embedding")],
            "turns": [{"role": "user", "text": "<image>"}], "meta": {}, "rng_key": "",
        }
        for i, row in enumerate(studies)
    ]  # fmt: skip
    generation = Generation(max_new_tokens=args.new_tokens)
    tokens = []
    began = time.perf_counter()
    with torch.inference_mode():
        for i in range(0, len(samples), 64):
            batch = collate.prompts(samples[i : i + 64])
            ids = decoder.generate_ids(model.embed(batch), batch["attention_mask"], generation)
            tokens += [[t for t in row if t not in decoder.end_ids] for row in ids]
    write_row(folder, seconds=time.perf_counter() - began, tokens=tokens)


def decode_theirs(args: argparse.Namespace, folder: Path, side: str) -> None:
    """Generate one report after the other, as echovlm's evaluation does."""
    import torch

    special = special_tokens(args, folder)
    gpt, engine = their_modules(args, folder)
    network = their_network(gpt, folder, len(torch.load(folder / "weights.pt")["lm_head.weight"]))
    network.eval()
    tokenizer = types.SimpleNamespace(
        # A chat token would end its reports, too; the template here ends them with <|eos|> only.
        encode_special=lambda name: special[name] if name == "<|eos|>" else -1,
        get_bos_token_id=lambda: special["<|bos|>"],
    )
    generator = engine.Engine(network, tokenizer)
    start = [special["<|bos|>"]]
    tokens = []
    began = time.perf_counter()
    for study in torch.load(folder / "studies.pt"):
        rows, _ = generator.generate_batch(
            start, study_embeddings=study[None], num_samples=1, max_tokens=args.new_tokens,
            temperature=0.0,
        )  # fmt: skip
        tokens.append(rows[0][1:])
    write_row(folder, seconds=time.perf_counter() - began, tokens=tokens)


def special_tokens(args: argparse.Namespace, folder: Path) -> dict[str, int]:
    """Return the ids of the special tokens of the common tokenizer."""
    tokenizer = our_runner(args, folder, amp=False).model.tokenizer
    names = tokenizer.all_special_tokens
    return dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))


_SIDES = {
    ("train", "ours"): train_ours,
    ("train", "echovlm"): train_theirs,
    ("decode", "ours"): decode_ours,
    ("decode", "echovlm"): decode_theirs,
}


if __name__ == "__main__":
    main()
