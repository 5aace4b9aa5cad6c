"""What a checkpoint holds and how it is taken up again, to the bit on CPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from xraygpt.common import checkpoint
from xraygpt.common.distributed import gathered
from xraygpt.common.errors import TrainingError, WeightsError
from xraygpt.common.keyed_random import keyed_int
from xraygpt.models.base import BaseModel
from xraygpt.models.weights.files import WEIGHTS, read_weights
from xraygpt.models.weights.rules import load_exactly

STATE = "state.pt"


def rng_state() -> dict[str, Any]:
    """The state of every global generator here, in types that load without pickle code."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Undo whatever was drawn since `rng_state`."""
    version, inner, gauss = state["python"]
    random.setstate((version, tuple(inner), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def seed_everything(seed: int, rank: int) -> None:
    """Seed the global generators; ranks differ, so that dropout does."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def all_rng_states() -> list[dict[str, Any]]:
    """Every rank's `rng_state`, in order; a collective call."""
    return gathered([rng_state()])


def write_state(
    folder: Path, model: BaseModel, state: dict[str, Any], config: str, versions: str
) -> None:
    """Fill a checkpoint folder."""
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.checkpoint_state().items()
    }
    kept = {t.data_ptr() for t in model.checkpoint_state().values()}
    lost = [
        name
        for name, parameter in model.trainable_parameters()
        if name not in tensors and parameter.data_ptr() not in kept
    ]
    if lost:
        raise TrainingError(
            f"not saved: {lost[0]} is trained, and the model leaves it out of its "
            "checkpoint_state(), so it would be lost"
        )
    broken = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise TrainingError(f"not saved: {broken[0]} holds values that are no numbers")
    save_file(tensors, folder / WEIGHTS)
    torch.save(state, folder / STATE)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    (folder / "versions.json").write_text(versions, encoding="utf-8")
    model.save_assets(folder)


def load_weights(model: BaseModel, path: Path) -> tuple[Path, list[str]]:
    """Start `model` from a run, a checkpoint, or one weight file.

    Returns:
        Where the weights came from, and the keys that begin afresh.

    Raises:
        WeightsError: Nothing usable there, or it was saved from another model.
    """
    source, state = read_weights(path)
    foreign = model.convert_state(state, source)
    if foreign is not None:
        state, required = foreign
    else:
        model.check_assets(source.parent)
        # A part frozen when this was saved is whole in the model already, from elsewhere.
        whole = tuple(p for p in model.frozen_parts if not any(n.startswith(p) for n in state))
        required = {n for n in model.checkpoint_state() if not (state and n.startswith(whole))}
    fresh = load_exactly(
        model,
        state,
        source,
        required=required,
        fresh=model.fresh_keys(),
    )
    model.loaded_keys |= set(state)
    return source, fresh


def resume_from(named: str | None, output_dir: Path) -> Path | None:
    """The checkpoint to go on from; None for a run that begins.

    Args:
        named: `run.resume_ckpt_path`.
        output_dir: Where `auto` looks.

    Raises:
        WeightsError: Nothing usable is where one was named.
    """
    if named is None:
        return None
    if named == "auto":
        known = checkpoint.has_checkpoint(output_dir)
        return checkpoint.find_checkpoint(output_dir) if known else None
    return checkpoint.find_checkpoint(Path(named))


def read_state(folder: Path, global_batch: int, world: int = 1) -> dict[str, Any]:
    """Everything but the weights.

    Args:
        folder: A checkpoint.
        global_batch: Samples of a step, over all processes.
        world: Processes.

    Raises:
        WeightsError: Saved with another one: its steps are not the steps of this run.
    """
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    guess = global_batch // world * len(state["rng"])  # older ones do not say
    before = state.get("global_batch", guess)
    if before != global_batch:
        raise WeightsError(
            f"{folder} has {before} samples in a step (run.batch_size_train times "
            f"run.accum_grad_iters times processes) and this run {global_batch}; make them as many,"
            " or start from it with model.ckpt"
        )
    return state


def restore_rng(states: list[dict[str, Any]], rank: int, seed: int, step: int) -> None:
    """Go on drawing where a process of this rank was; a rank that is new begins afresh."""
    if rank < len(states):
        set_rng_state(states[rank])
    else:
        seed_everything(keyed_int(seed, step, "new rank") % 2**31, rank)
