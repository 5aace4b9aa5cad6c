"""Defines the sections of a YAML file, and builds the model, data and task from them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from xraygpt.answering import Answerer
from xraygpt.common import checkpoint
from xraygpt.common import config as configuration
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.keyed_random import keyed_random
from xraygpt.common.paths import cache_root
from xraygpt.common.training_data import (
    PHANTOMS,
    TrainingData,
    corpus_name,
    log_training_data,
    merge,
    training_data_of_parts,
)
from xraygpt.conversation import ChatEngine
from xraygpt.datasets import controls
from xraygpt.datasets.base import Split, StudyDataset, read_media
from xraygpt.datasets.builder import BaseBuilder, build_corpora
from xraygpt.datasets.input_check import InputCheck
from xraygpt.datasets.leakage import Leakage, exact_leakage, stored
from xraygpt.datasets.mixture import Mixture
from xraygpt.datasets.seen_names import SeenNames
from xraygpt.evaluation.evaluator import Evaluator
from xraygpt.evaluation.history import load_history
from xraygpt.evaluation.inputs import find_inputs, folder_name
from xraygpt.evaluation.predictor import Predictor
from xraygpt.media.base import Media
from xraygpt.media.clip_policy import ClipPolicy
from xraygpt.models.abilities import abilities_of
from xraygpt.models.base import BaseModel, Generation
from xraygpt.models.capabilities import Chats, ComputesLoss, require
from xraygpt.models.text_assets import checkpoint_assets
from xraygpt.models.weights.files import weight_files, weight_source
from xraygpt.processors.image import Fit, ImageSpec
from xraygpt.runners.base import BaseRunner
from xraygpt.runners.settings import RunSettings
from xraygpt.runners.state import load_weights, resume_from
from xraygpt.runners.train_loop import Runner
from xraygpt.version import __version__

log = logging.getLogger(__name__)

# Replaces a model's image spec when only texts are needed.
NO_IMAGES = ImageSpec(image_size=8, mean=(0.5,), std=(0.5,), tokens_per_image=0)


@dataclass(kw_only=True)
class Experiment:
    """The sections that every YAML file has."""

    model: BaseModel.Config
    datasets: dict[str, BaseBuilder.Config]
    """The corpora, by labels that the user chooses."""
    imports: list[str] = field(default_factory=list)
    """Modules with further plug-ins, which are imported first."""


@dataclass(kw_only=True)
class Training(Experiment):
    """A training configuration, such as those in train_configs."""

    run: BaseRunner.Config

    def __post_init__(self) -> None:
        run = self.run
        with Checks(self) as check:
            has_end = not isinstance(run, Runner.Config) or run.max_epoch or run.max_steps
            check.refuse(not has_end, "run", "set max_epoch or max_steps")


@dataclass(kw_only=True)
class Evaluation(Experiment):
    """An evaluation configuration, such as those in eval_configs."""

    run: Evaluator.Config


def build_model(experiment: Experiment, seed: int, resumed: Path | None = None) -> BaseModel:
    """Build the model, with the weights from `model.ckpt` if that is set.

    Args:
        experiment: A training or evaluation configuration.
        seed: Seed of new weights and of the training texts from which a tokenizer is learned.
        resumed: A checkpoint whose tokenizer and prompts replace those of `model.ckpt`.
    """
    assets = resumed or checkpoint_assets(experiment.model.ckpt)

    def texts() -> Iterator[str]:
        parts = split_datasets(experiment, "train", seed)
        return (text for part in parts for text in part.texts())

    def codes() -> list[list[str]]:
        parts = split_datasets(experiment, "train", seed)
        return [list(r.meta.get("codes") or ()) for part in parts for r in part.records]

    with torch.random.fork_rng(devices=[]):  # for models that initialise weights without a seed
        torch.manual_seed(seed)
        model: BaseModel = experiment.model.build(texts=texts, codes=codes, assets=assets)
    model.trained_on = training_data_of_parts(experiment.model)
    if experiment.model.ckpt is not None:
        source, fresh = load_weights(model, experiment.model.ckpt)
        log.info(
            "weights from %s%s",
            source,
            f"; {len(fresh)} keys keep their initial values" if fresh else "",
        )
    return model


def build_runner(experiment: Training) -> Runner:
    """Build the model, data and task, and combine them into a runner that is ready to train."""
    run = experiment.run
    assert isinstance(run, Runner.Config)
    task = run.task.build()
    model = build_model(experiment, run.seed, resume_from(run.resume_ckpt_path, run.output_dir))
    require(model, ComputesLoss)
    splits = _build_mixtures(experiment, model, run, task.uses_images)
    if not splits["train"].epoch_size():
        raise InputError(
            f"there is nothing to train on: no sample in {' + '.join(run.train_splits)} of "
            f"{', '.join(experiment.datasets)}"
        )
    model.abilities = abilities_of(splits["train"].parts, model.renderer.prompts)
    own = _training_data(experiment, splits["train"].parts)
    model.trained_on = merge([*own, *model.trained_on])
    log_training_data(model.trained_on)
    sizes = ", ".join(f"{len(v)} {k}" for k, v in splits.items())
    log.info("samples: %s", sizes)
    resolved = configuration.to_yaml(experiment)
    runner: Runner = run.build(task=task, model=model, splits=splits, resolved=resolved)
    return runner


def _training_data(experiment: Training, parts: Sequence[StudyDataset]) -> Iterator[TrainingData]:
    """Yield the corpora that a run trains on; `parts` repeats all corpora for each split."""
    seen: dict[str, SeenNames] = {}
    images = Counter[str]()
    configs = list(experiment.datasets.items())
    for i, part in enumerate(parts):
        label, config = configs[i % len(configs)]
        name = PHANTOMS if config.synthetic else corpus_name(config.storage, label)
        names, drawn = seen.setdefault(name, SeenNames()), f"{cache_root()}{os.sep}"
        refs = (ref for record in part.records for ref in record.media)
        # Copies drawn into real images (`planted_lesions`) are no further images.
        own = (r for r in refs if config.synthetic or not r.file.startswith(drawn))
        keys = (ref if ref.kind == "embedding" else ref.file for ref in own)
        images[name] += sum(names.add(key) == 1 for key in keys)
        if len(part) and config.weight:
            yield TrainingData(name, config.licence, images[name], config.synthetic)


def _build_mixtures(
    experiment: Training, model: BaseModel, run: RunSettings, uses_images: bool
) -> dict[str, Mixture]:
    """Build the training and validation data of all corpora, under "train" and "val"."""
    sampling = [(c.weight, c.balance) for c in experiment.datasets.values()]
    corpora = build_corpora(experiment.datasets, model.image_spec, run.seed)
    splits_of: dict[str, list[Split]] = {"train": list(run.train_splits), "val": ["val"]}
    for leakage in exact_leakage([c.report_digests() for c in corpora], run.train_splits):
        log.info("%s", leakage)
    mixtures = {}
    for name, splits in splits_of.items():
        parts: list[StudyDataset] = [corpus.build(s) for s in splits for corpus in corpora]
        if not uses_images:
            parts = [controls.without_images(p) for p in parts]
        weights, powers = zip(*sampling * len(splits), strict=True)
        balance = powers if name == "train" else None
        mixtures[name] = Mixture(parts, weights, balance, run.shuffle)
    return mixtures


def build_evaluator(
    experiment: Evaluation, *, strict: bool = False, model: BaseModel | None = None
) -> Evaluator:
    """Build the model, data and task, and combine them into an evaluator.

    Args:
        experiment: An evaluation configuration.
        strict: Whether to refuse images with a warning.
        model: The model, if it is built already, with merged adapters.
    """
    run = experiment.run
    if len(experiment.datasets) != 1:
        raise InputError(
            f"evaluation uses one corpus, but this YAML file has {len(experiment.datasets)}: "
            f"{', '.join(experiment.datasets)}"
        )
    untrained = experiment.model.untrained_part
    if experiment.model.ckpt is None and untrained:
        log.warning("model.ckpt is not set: evaluating a model with an untrained %s", untrained)
    _warn_of_vocabularies(experiment)
    if model is None:
        model = build_model(experiment, run.seed)
        model.merge_lora()
    builder = build_corpora(experiment.datasets, model.image_spec, run.seed)[0]
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
        history=load_history(configuration.to_tree(experiment.model)),
        input_check=builder.input_check(model.abilities.views),
        strict=strict,
        leakage=_leakage(builder, run.split),
    )


def _warn_of_vocabularies(experiment: Evaluation) -> None:
    """Warn if the reports are scored with another vocabulary than that of their corpus."""
    scored = getattr(experiment.run.task, "vocabulary", None)
    for label, corpus in experiment.datasets.items():
        own = getattr(corpus, "vocabulary", None)
        if scored and own and own != scored:
            log.warning(
                "datasets.%s.vocabulary is %s, but reports are scored with %s; set "
                "run.task.vocabulary: %s", label, own, scored, own,
            )  # fmt: skip


def _leakage(builder: BaseBuilder, split: Split) -> Leakage | None:
    """Return how many reports of a split are also in train; with near copies if they are known."""
    corpora = [builder.report_digests("eval")]
    exact = next((found for found in exact_leakage(corpora) if found.split == split), None)
    return None if exact is None else stored(exact, corpora)


def build_predictor(
    experiment: Evaluation,
    source: Path,
    *,
    output_dir: Path,
    question: str = "",
    **settings: Any,
) -> Predictor:
    """Build a predictor with the image processor and decoding settings of an evaluation.

    Args:
        experiment: An evaluation configuration.
        source: An image, a folder or a table.
        output_dir: Folder for the results.
        question: Question to ask about every image; empty uses the model's first prompt.
        settings: Further arguments of `Predictor`, such as device, batch_size and workers.
    """
    records = find_inputs(source, question, clip_policy(experiment))
    model = build_model(experiment, experiment.run.seed)
    log_training_data(model.trained_on)
    model.merge_lora()
    builder = build_corpora(experiment.datasets, model.image_spec)[0]
    vis = builder.processor("vis", "eval")
    read = partial(read_media, processor=vis, check=builder.input_check(model.abilities.views))
    data = StudyDataset(records, read, signature=vis.signature())
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
        name=folder_name(source),
        resolved=configuration.to_yaml(experiment),
        history=load_history(configuration.to_tree(experiment.model)),
        **settings,
    )


def clip_policy(experiment: Evaluation) -> ClipPolicy:
    """Return how files with several frames are read in prediction and chat.

    Args:
        experiment: The configuration, whose first corpus says which frames are read.
    """
    as_clips = getattr(experiment.model.owner, "reads_clips", False)
    return ClipPolicy(as_clips, next(iter(experiment.datasets.values())).frames)


@dataclass(frozen=True)
class ChatParts:
    """Everything that a chat uses from an evaluation configuration.

    Attributes:
        engine: Generates the answers.
        read_media: Reads a file, or one of its frames, with the image processor for evaluation.
            Whether a file with several frames is a clip is decided by `clips`.
        fit: How the image processor makes an image square.
        generation: Decoding settings from the configuration.
        facts: Facts about the model and its weights, for the page and for exports.
        input_check: Check of the images, whose warnings `read_media` returns; None if it is
            switched off.
        clips: How files with several frames are read.
    """

    engine: ChatEngine
    read_media: Callable[..., Media]
    fit: Fit
    generation: Generation
    facts: dict[str, Any]
    input_check: InputCheck | None = field(default_factory=InputCheck)
    clips: ClipPolicy = field(default_factory=ClipPolicy)


def build_chat(experiment: Evaluation, device: str = "auto") -> ChatParts:
    """Build the model of an evaluation configuration and everything else that a chat needs.

    Args:
        experiment: The configuration. Its corpus determines the image processor but is not read.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InputError: The model cannot chat, or the device does not exist.
    """
    target_device = find_device(device)
    model = build_model(experiment, experiment.run.seed)
    log_training_data(model.trained_on)
    model.merge_lora()
    require(model, Chats)
    builder = build_corpora(experiment.datasets, model.image_spec)[0]
    vis, check = builder.processor("vis", "eval"), builder.input_check(model.abilities.views)
    model = model.to(target_device).eval()
    model.renderer.prompts = model.renderer.prompts[:1]  # the prompt used in evaluation
    facts = {
        "arch": type(model).__name__,
        **model.facts(),
        "corpus": ", ".join(experiment.datasets),
        "weights": _weights_digest(experiment.model.ckpt),
        "device": str(target_device),
        "xraygpt": __version__,
    }
    clips = clip_policy(experiment)
    return ChatParts(
        ChatEngine(model, Answerer(model, experiment.run.task.build())),
        lambda path, frame=None: read_media(clips.ref(path, frame), "", vis, check),
        getattr(vis, "fit", "squash"),
        experiment.run.task.generate,
        facts,
        check,
        clips,
    )


def reference_images(experiment: Evaluation, spec: ImageSpec, max_images: int) -> Iterator[Media]:
    """Yield images from the training split of the first corpus, if the corpus is available.

    Args:
        experiment: An evaluation configuration.
        spec: Image spec of the model.
        max_images: Maximum number of studies, which are sampled with the seed of the run.

    Yields:
        The first image of each sampled study.
    """
    try:
        corpus = _datasets(experiment, "train", spec, experiment.run.seed)[0]
    except (InputError, OSError) as error:
        log.debug("no reference images: %s", str(error).splitlines()[0])
        return
    rng = keyed_random("reference", experiment.run.seed)
    for i in rng.sample(range(len(corpus)), len(corpus))[:max_images]:
        try:
            sample = corpus[i]
        except DataError:
            continue
        yield from (sample["media"][:1] if sample else [])


def find_device(name: str) -> torch.device:
    """Return the device with this name; ``auto`` is a GPU if there is one.

    Raises:
        InputError: The name is invalid, or this machine does not have the device.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: must be auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"--device {name}: this machine has {count} GPUs")
    return device


def _identity(experiment: Evaluation, model: BaseModel) -> dict[str, Any]:
    """Return everything that determines the answers of a model."""
    return {
        "model": experiment.model.identity(),
        "weights": _weights_digest(experiment.model.ckpt),
        "datasets": {
            label: {key: value for key, value in corpus.items() if key != "licence"}
            for label, corpus in configuration.to_tree(experiment.datasets).items()
        },
        "task": configuration.to_tree(experiment.run.task),
        "parts": model.parts(),
        "version": __version__,
    }


def _weights_digest(ckpt: Path | None) -> str | None:
    """Return the SHA-256 of each weight file, or None if there is no checkpoint."""
    if ckpt is None:
        return None
    files = weight_files(weight_source(ckpt))
    return " ".join(checkpoint.file_sha256(file) for file in files)


def split_datasets(experiment: Experiment, split: Split, seed: int) -> list[StudyDataset]:
    """Build one split of every corpus, for its texts: images are not prepared for a model."""
    return _datasets(experiment, split, NO_IMAGES, seed)


def _datasets(
    experiment: Experiment, split: Split, spec: ImageSpec, seed: int
) -> list[StudyDataset]:
    return [builder.build(split) for builder in build_corpora(experiment.datasets, spec, seed)]
