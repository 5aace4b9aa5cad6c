"""Collects all trained parts of a run in one folder, with matrices in half precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from xraygpt.common.checkpoint import find_checkpoint
from xraygpt.common.config import load, to_tree
from xraygpt.common.errors import InputError
from xraygpt.common.publishing import publish_folder, require_new_folder
from xraygpt.common.training_data import (
    manifest_entry,
    merge,
    read_training_data,
    training_data_of_parts,
)
from xraygpt.experiment import Evaluation, Training
from xraygpt.models.abilities import Abilities
from xraygpt.models.base import BaseModel
from xraygpt.models.weights.files import read_weights
from xraygpt.version import __version__


def pack(run: Path, out: Path, head: Path | None = None, evaluation: Path | None = None) -> None:
    """Create a bundle.

    Args:
        run: A run, ``<run>/best`` or a checkpoint.
        out: The folder to create, as a path relative to where its YAML file will be used.
        head: Finding head fitted on the run's encoder; None uses that in the run's YAML file,
            if any.
        evaluation: Evaluation YAML file whose task, with its plan and decoding, becomes the
            bundle's default; None uses the task's default decoding.

    Raises:
        InputError: `out` already exists, or the model does not support a finding head.
        WeightsError: There is no run at `run`, or a part it depends on is missing or was retrained.
    """
    require_new_folder(out)
    checkpoint = find_checkpoint(run)
    experiment = load(Training, checkpoint / "config.yaml", ["model.ckpt=null"])
    config: Any = experiment.model
    if head is not None:
        if not hasattr(config, "finding_head"):
            raise InputError("--finding-head: this model does not support a finding head")
        config = replace(config, finding_head=head)
    model: BaseModel = config.build(texts=list, assets=checkpoint)
    model.abilities = Abilities.load(checkpoint)
    model.check_assets(checkpoint)  # the parts it was trained with must be unchanged
    _, state = read_weights(checkpoint)

    def write(folder: Path) -> None:
        corpus = next(iter(experiment.datasets.values()))
        bundle: dict[str, Any] = {
            "imports": list(experiment.imports),
            "model": to_tree(model.pack_into(state, folder, out)),
            # Only the image processor; the location of the data depends on the user.
            "datasets": {"any": {"builder": "records", "vis_processor": _processors(corpus)}},
        }
        if evaluation is not None:
            bundle["run"] = {"task": to_tree(load(Evaluation, evaluation).run.task)}
        (folder / "config.yaml").write_text(yaml.safe_dump(bundle), encoding="utf-8")

    facts = {"packed": checkpoint.name, "xraygpt": __version__}
    # Runs of earlier versions recorded nothing, but their parts may have.
    trained_on = merge([*read_training_data(checkpoint), *training_data_of_parts(config)])
    publish_folder(out, write, facts | manifest_entry(trained_on))


def _processors(corpus: Any) -> dict[str, Any]:
    """Return the settings of the image processor for evaluation; empty for the default."""
    processors = corpus.vis_processor
    if "eval" in processors:
        return {"eval": to_tree(processors["eval"])}
    return {"eval": to_tree(processors["train"].for_eval())} if "train" in processors else {}
