"""One YAML = one run: what a YAML may hold, and how its parts are put together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from xraygpt.common import checkpoint
from xraygpt.common import config as configuration
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.keyed_random import keyed_random
from xraygpt.conversation import ChatEngine
from xraygpt.datasets import controls
from xraygpt.datasets.base import Split, StudyDataset, read_media
from xraygpt.datasets.builder import BaseBuilder
from xraygpt.datasets.mixture import Mixture
from xraygpt.evaluation.evaluator import Evaluator
from xraygpt.evaluation.history import history_of
from xraygpt.evaluation.predictor import Predictor, find_inputs
from xraygpt.media.base import Media, MediaRef
from xraygpt.models.base import BaseModel, Generation
from xraygpt.models.capabilities import Chats, require
from xraygpt.models.text_assets import assets_of
from xraygpt.models.weights.files import weight_files, weight_source
from xraygpt.processors.image import Fit, ImageSpec
from xraygpt.runners.base import BaseRunner
from xraygpt.runners.state import load_weights, resume_from
from xraygpt.runners.train_loop import Runner
from xraygpt.tasks.plan import Planned, planned_question
from xraygpt.version import __version__

log = logging.getLogger(__name__)

# Stands in for a model's own spec where only texts are wanted.
NO_IMAGES = ImageSpec(image_size=8, mean=(0.5,), std=(0.5,), tokens_per_image=0)


@dataclass(kw_only=True)
class Experiment:
    """The roots every YAML has."""

    model: BaseModel.Config
    """Which model."""
    datasets: dict[str, BaseBuilder.Config]
    """Which corpora, by a label of one's choice."""
    imports: list[str] = field(default_factory=list)
    """Modules with plug-ins of one's own."""


@dataclass(kw_only=True)
class Training(Experiment):
    """A YAML of train_configs."""

    run: BaseRunner.Config
    """How to train."""

    def __post_init__(self) -> None:
        run = self.run
        with Checks(self) as check:
            ends = not isinstance(run, Runner.Config) or run.max_epoch or run.max_steps
            check.refuse(not ends, "run", "set max_epoch or max_steps")


@dataclass(kw_only=True)
class Evaluation(Experiment):
    """A YAML of eval_configs."""

    run: Evaluator.Config
    """What to measure."""


def build_model(experiment: Experiment, seed: int, resumed: Path | None = None) -> BaseModel:
    """The model, with the weights of `model.ckpt` if that is set.

    Args:
        experiment: Says which.
        seed: Of the draws of the training texts, where a tokenizer is learned from them.
        resumed: A checkpoint whose tokenizer and prompts to take before those of `model.ckpt`.
    """
    assets = resumed or assets_of(experiment.model.ckpt)

    def texts() -> list[str]:
        parts = _datasets(experiment, "train", NO_IMAGES, seed)
        return [text for part in parts for text in part.texts()]

    def codes() -> list[list[str]]:
        parts = _datasets(experiment, "train", NO_IMAGES, seed)
        return [list(r.meta.get("codes") or ()) for part in parts for r in part.records]

    with torch.random.fork_rng(devices=[]):  # a model that draws weights without a seed of its own
        torch.manual_seed(seed)
        model: BaseModel = experiment.model.build(texts=texts, codes=codes, assets=assets)
    if experiment.model.ckpt is not None:
        source, fresh = load_weights(model, experiment.model.ckpt)
        log.info("weights from %s%s", source, f"; {len(fresh)} keys begin afresh" if fresh else "")
    return model


def build_runner(experiment: Training) -> Runner:
    """Model, data and task, ready to train."""
    run = experiment.run
    assert isinstance(run, Runner.Config)
    task = run.task.build()
    model = build_model(experiment, run.seed, resume_from(run.resume_ckpt_path, run.output_dir))
    drawn = [(c.weight, c.balance) for c in experiment.datasets.values()]
    splits = {}
    wanted: dict[str, list[Split]] = {"train": list(run.train_splits), "val": ["val"]}
    corpora = [
        c.build(image_spec=model.image_spec, seed=run.seed) for c in experiment.datasets.values()
    ]
    for name, sources in wanted.items():
        parts: list[StudyDataset] = [corpus.build(s) for s in sources for corpus in corpora]
        if not task.uses_images:
            parts = [controls.without_images(p) for p in parts]
        weights, powers = zip(*drawn * len(sources), strict=True)
        splits[name] = Mixture(parts, weights, powers if name == "train" else None)
    if not splits["train"].epoch_size():
        raise InputError(
            f"nothing to train on: no sample in {' + '.join(run.train_splits)} of "
            f"{', '.join(experiment.datasets)}"
        )
    sizes = ", ".join(f"{len(v)} {k}" for k, v in splits.items())
    log.info("samples: %s", sizes)
    resolved = configuration.to_yaml(experiment)
    runner: Runner = run.build(task=task, model=model, splits=splits, resolved=resolved)
    return runner


def build_evaluator(experiment: Evaluation) -> Evaluator:
    """Model, data and task, ready to be measured."""
    run = experiment.run
    if len(experiment.datasets) != 1:
        raise InputError(
            f"evaluation measures one corpus, this YAML names {len(experiment.datasets)}: "
            f"{', '.join(experiment.datasets)}"
        )
    if experiment.model.ckpt is None:
        log.warning("model.ckpt is not set: measuring a model whose Q-Former was never trained")
    model = build_model(experiment, run.seed)
    model.merge_lora()
    builder = next(iter(experiment.datasets.values())).build(
        image_spec=model.image_spec, seed=run.seed
    )
    data, train = builder.build(run.split, "eval"), builder.build("train", "eval")
    identity = {
        **_identity(experiment, model),
        "split": run.split,
        "max_samples": run.max_samples,
        "seed": run.seed,
        "content": data.digest(),
        "prompts": model.renderer.prompts[:1],
    }
    return Evaluator(
        run,
        task=run.task.build(),
        model=model,
        data=data,
        train=train,
        identity=identity,
        resolved=configuration.to_yaml(experiment),
        history=history_of(configuration.to_tree(experiment.model)),
    )


def build_predictor(
    experiment: Evaluation,
    source: Path,
    *,
    output_dir: Path,
    question: str = "",
    **settings: Any,
) -> Predictor:
    """Model and images, ready to answer; image processor and decoding are those of evaluation.

    Args:
        experiment: An evaluation YAML.
        source: Image, folder or table.
        output_dir: Where results go.
        question: Asked of every image; empty takes the model's first prompt.
        settings: See `Predictor`: device, batch_size, workers.
    """
    records = find_inputs(source, question)
    model = build_model(experiment, experiment.run.seed)
    model.merge_lora()
    builder = next(iter(experiment.datasets.values())).build(image_spec=model.image_spec)
    vis = builder.processor("vis", "eval")
    data = StudyDataset(records, partial(read_media, processor=vis), signature=vis.signature())
    identity = {
        **_identity(experiment, model),
        "input": str(source.resolve()),
        "question": question or model.renderer.prompts[:1],
    }
    return Predictor(
        model,
        experiment.run.task.build(),
        data,
        output_dir=output_dir,
        identity=identity,
        resolved=configuration.to_yaml(experiment),
        history=history_of(configuration.to_tree(experiment.model)),
        **settings,
    )


@dataclass(frozen=True)
class ChatParts:
    """What a chat needs of a YAML.

    Attributes:
        engine: The model, ready to talk.
        read_media: File and frame -> image, by the image processor of evaluation.
        fit: How that makes an oblong picture square.
        how: Decoding as the YAML has it.
        facts: Which model and weights; for people and exports.
        plan: Images of a study and the question for its report -> that question, with what the
            model found, to be told beside them; None where the YAML has no `run.task.plan`.
    """

    engine: ChatEngine
    read_media: Callable[..., Media]
    fit: Fit
    how: Generation
    facts: dict[str, Any]
    plan: Callable[[Sequence[Media], str], Planned] | None = None


def build_chat(experiment: Evaluation, device: str = "auto") -> ChatParts:
    """The model of an evaluation YAML, ready to talk.

    Args:
        experiment: Its corpus decides the image processor and is not read.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InputError: The model cannot chat, or there is no such device.
    """
    place = find_device(device)
    model = build_model(experiment, experiment.run.seed)
    model.merge_lora()
    require(model, Chats)
    builder = next(iter(experiment.datasets.values())).build(image_spec=model.image_spec)
    vis = builder.processor("vis", "eval")
    plan: Any = getattr(experiment.run.task, "plan", None)
    facts = {
        "arch": type(model).__name__,
        **model.facts(),
        "corpus": ", ".join(experiment.datasets),
        "weights": _digest_of(experiment.model.ckpt),
        "device": str(place),
        "xraygpt": __version__,
    }
    engine = ChatEngine(model.to(place))

    def ask(images: Sequence[Media], question: str) -> Planned:
        with engine.lane:  # nobody's answer or map is computed meanwhile
            return planned_question(model, plan, images, question)

    return ChatParts(
        engine,
        lambda path, frame=None: read_media(MediaRef(path, index=frame), "", vis),
        getattr(vis, "fit", "squash"),
        experiment.run.task.generate,
        facts,
        None if plan is None else ask,
    )


def reference_images(experiment: Evaluation, spec: ImageSpec, most: int) -> Iterator[Media]:
    """Images of the YAML's corpus that the model may have learned from; none where it is not here.

    Args:
        experiment: Names the corpus.
        spec: Of the model.
        most: How many at most; drawn by the seed of the run.
    """
    try:
        corpus = _datasets(experiment, "train", spec, experiment.run.seed)[0]
    except (InputError, OSError) as error:
        log.info("no reference images: %s", str(error).splitlines()[0])
        return
    places = keyed_random("reference", experiment.run.seed).sample(range(len(corpus)), len(corpus))
    for i in places[:most]:
        try:
            sample = corpus[i]
        except DataError:
            continue
        yield from (sample["media"][:1] if sample else [])


def find_device(name: str) -> torch.device:
    """A device by its name; ``auto`` takes a GPU where there is one.

    Raises:
        InputError: There is no such device.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: one of auto, cpu, cuda, cuda:N") from None
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: one of auto, cpu, cuda, cuda:N")
    if found.type == "cuda" and (found.index or 0) >= count:
        raise InputError(f"--device {name}: this machine has {count} GPUs")
    return found


def _identity(experiment: Evaluation, model: BaseModel) -> dict[str, Any]:
    """What decides the answers of a model."""
    return {
        "model": configuration.to_tree(experiment.model),
        "weights": _digest_of(experiment.model.ckpt),
        "datasets": configuration.to_tree(experiment.datasets),
        "task": configuration.to_tree(experiment.run.task),
        "parts": model.parts(),
        "version": __version__,
    }


def _digest_of(ckpt: Path | None) -> str | None:
    """SHA-256 of the weights, as the checkpoint's manifest says."""
    if ckpt is None:
        return None
    files = weight_files(weight_source(ckpt))
    return " ".join(checkpoint.digest(file) for file in files)


def _datasets(
    experiment: Experiment, split: Split, spec: ImageSpec, seed: int
) -> list[StudyDataset]:
    return [c.build(image_spec=spec, seed=seed).build(split) for c in experiment.datasets.values()]
