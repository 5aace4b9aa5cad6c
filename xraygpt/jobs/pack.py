"""Everything a run trained, in one folder, matrices in half precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from xraygpt.common.checkpoint import find_checkpoint
from xraygpt.common.config import load, to_tree
from xraygpt.common.errors import InputError
from xraygpt.common.publishing import publish_folder, refuse_taken
from xraygpt.experiment import Training
from xraygpt.models.base import BaseModel
from xraygpt.models.weights.files import read_weights
from xraygpt.version import __version__


def pack(run: Path, out: Path, head: Path | None = None) -> None:
    """Make the folder.

    Args:
        run: A run, ``<run>/best`` or a checkpoint.
        out: The folder to make; a path relative to where its YAML will be used.
        head: Fitted on features of the run's encoder; None takes that of its YAML, if it has one.

    Raises:
        InputError: Something is there already, or the model has no finding head.
        WeightsError: It is no run, or a part it rests on is gone or was trained anew.
    """
    refuse_taken(out)
    checkpoint = find_checkpoint(run)
    experiment = load(Training, checkpoint / "config.yaml", ["model.ckpt=null"])
    config: Any = experiment.model
    if head is not None:
        if not hasattr(config, "finding_head"):
            raise InputError("--finding-head: this model has no place for one")
        config = replace(config, finding_head=head)
    model: BaseModel = config.build(texts=list, assets=checkpoint)
    model.check_assets(checkpoint)  # the parts it rests on are those it was trained with
    _, state = read_weights(checkpoint)

    def write(folder: Path) -> None:
        corpus = next(iter(experiment.datasets.values()))
        described = {
            "imports": list(experiment.imports),
            "model": to_tree(model.pack_into(state, folder, out)),
            # How pictures are made; where data lie is one's own.
            "datasets": {"any": {"builder": "records", "vis_processor": _processors(corpus)}},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")

    publish_folder(out, write, {"packed": checkpoint.name, "xraygpt": __version__})


def _processors(corpus: Any) -> dict[str, Any]:
    """The image processor outside training; empty for the default."""
    given = corpus.vis_processor
    if "eval" in given:
        return {"eval": to_tree(given["eval"])}
    return {"eval": to_tree(given["train"].for_eval())} if "train" in given else {}
