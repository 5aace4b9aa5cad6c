"""Writes and reads the contents of a checkpoint; resuming on a CPU is bit-exact."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from xraygpt.common import checkpoint
from xraygpt.common.distributed import gather_lists
from xraygpt.common.errors import TrainingError, WeightsError
from xraygpt.common.keyed_random import keyed_int
from xraygpt.models.abilities import Abilities
from xraygpt.models.base import BaseModel
from xraygpt.models.weights.files import WEIGHTS, read_weights
from xraygpt.models.weights.rules import load_exactly

STATE = "state.pt"


def rng_state() -> dict[str, Any]:
    """Return the state of all global generators in this process, in types `weights_only` loads."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore a state that `rng_state` returned."""
    version, inner, gauss = state["python"]
    random.setstate((version, tuple(inner), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def seed_everything(seed: int, rank: int) -> None:
    """Seed the global generators differently on each rank, so that dropout differs too."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def all_rng_states() -> list[dict[str, Any]]:
    """Gather every rank's `rng_state`, in order; all ranks must call this."""
    return gather_lists([rng_state()])


def write_state(
    folder: Path, model: BaseModel, state: dict[str, Any], config: str, versions: str
) -> None:
    """Write a checkpoint's files.

    Args:
        folder: An empty folder.
        model: The model, whose `checkpoint_state` and assets are saved.
        state: Everything else needed to resume.
        config: The run's configuration, as YAML.
        versions: Package versions, as JSON.

    Raises:
        TrainingError: A trained weight is missing from the state, or a value is not finite.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.checkpoint_state().items()
    }
    saved = {t.data_ptr() for t in model.checkpoint_state().values()}
    missing = [
        name
        for name, parameter in model.trainable_parameters()
        if name not in tensors and parameter.data_ptr() not in saved
    ]
    if missing:
        raise TrainingError(
            f"not saved: {missing[0]} is trained, but the model's checkpoint_state() omits it, "
            "so it would be lost"
        )
    broken = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise TrainingError(f"not saved: {broken[0]} contains values that are not finite")
    save_file(tensors, folder / WEIGHTS)
    torch.save(state, folder / STATE)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    (folder / "versions.json").write_text(versions, encoding="utf-8")
    model.save_assets(folder)


def load_weights(model: BaseModel, path: Path) -> tuple[Path, list[str]]:
    """Initialize `model` from a run, a checkpoint or a weight file.

    Returns:
        The file that contains the weights, and the keys it lacks, which keep their initial values.

    Raises:
        WeightsError: There are no usable weights, or they belong to another model.
    """
    source, state = read_weights(path)
    foreign = model.convert_state(state, source)
    if foreign is not None:
        state, required = foreign
    else:
        model.check_assets(source.parent)
        model.abilities = Abilities.load(source.parent)
        # A part that was frozen when this was saved has already been loaded from its own source.
        complete = tuple(p for p in model.frozen_parts if not any(n.startswith(p) for n in state))
        required = {n for n in model.checkpoint_state() if not (state and n.startswith(complete))}
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
    """Find the checkpoint to resume from; None for a new run.

    Args:
        named: The value of `run.resume_ckpt_path`.
        output_dir: The folder to search if `named` is `auto`.

    Raises:
        WeightsError: There is no usable checkpoint at the named path.
    """
    if named is None:
        return None
    if named == "auto":
        known = checkpoint.has_checkpoint(output_dir)
        return checkpoint.find_checkpoint(output_dir) if known else None
    return checkpoint.find_checkpoint(Path(named))


def read_state(folder: Path, global_batch: int, world: int = 1) -> dict[str, Any]:
    """Read everything in a checkpoint except the weights.

    Args:
        folder: The checkpoint.
        global_batch: Number of samples per step over all processes.
        world: Number of processes.

    Raises:
        WeightsError: The checkpoint was saved with another global batch, so steps would differ.
    """
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    guess = global_batch // world * len(state["rng"])  # early versions did not store it
    before = state.get("global_batch", guess)
    if before != global_batch:
        raise WeightsError(
            f"{folder} was saved with {before} samples per step (run.batch_size_train times "
            f"run.accum_grad_iters times processes), but this run has {global_batch}; make them "
            "equal, or start a new run from its weights with model.ckpt"
        )
    return state


def restore_rng(states: list[dict[str, Any]], rank: int, seed: int, step: int) -> None:
    """Restore this rank's random state; seed a rank that did not exist before."""
    if rank < len(states):
        set_rng_state(states[rank])
    else:
        seed_everything(keyed_int(seed, step, "new rank") % 2**31, rank)
