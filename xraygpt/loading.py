"""The Python interface: load a model and ask it about images.

    import xraygpt

    model = xraygpt.load_model("eval_configs/xraygpt_mini.yaml")
    print(model.report("chest.png"))
    print(model.ask("chest.png", "Is the heart enlarged?"))

The answers equal those of `predict.py` for the same file, question and YAML file. Research use
only, not for diagnosis.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from xraygpt.answering import Answerer
from xraygpt.answering.answerer import make_sample
from xraygpt.common.checkpoint import find_checkpoint, read_manifest
from xraygpt.common.config import from_tree, load
from xraygpt.common.config_reading import PRESETS
from xraygpt.common.errors import InputError
from xraygpt.common.model_keys import with_replaced
from xraygpt.common.project_paths import find_project, resolve_paths
from xraygpt.common.registry import MODELS, did_you_mean
from xraygpt.conversation import ChatEngine, Conversation
from xraygpt.datasets.base import read_media
from xraygpt.datasets.builder import build_corpora
from xraygpt.datasets.input_check import InputCheck, study_warnings
from xraygpt.experiment import Evaluation, build_model, clip_policy, find_device
from xraygpt.media.base import Media, MediaRef, media_from_tensor
from xraygpt.media.clip_policy import ClipPolicy
from xraygpt.media.content import digest_values
from xraygpt.media.geometry import Geometry
from xraygpt.models.base import BaseModel
from xraygpt.processors.base import BaseProcessor
from xraygpt.tasks.base import BaseTask
from xraygpt.tasks.payload import Answer

log = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parent.parent
PICTURES = (str, PathLike, MediaRef, Media, Image, np.ndarray, Tensor)
Picture = str | PathLike[str] | MediaRef | Media | Image | np.ndarray | Tensor
"""A file, pixels (shape (H, W) or (H, W, 3); uint8, or float in [0, 1]), or the output of an image
processor (shape (C, H, W))."""


class LoadedModel:
    """A model with its image processor and task.

    Attributes:
        model: The network.
        task: The task that generates answers.
        processor: The image processor, which turns pictures into tensors.
        device: The device of the model.
        answerer: Decides how questions are answered.
        check: The check of images before the model reads them; None checks nothing.
        clips: How files with several frames are read.
    """

    def __init__(
        self,
        model: BaseModel,
        task: BaseTask,
        processor: BaseProcessor,
        device: torch.device,
        check: InputCheck | None = None,
        clips: ClipPolicy | None = None,
    ) -> None:
        self.check, self.clips = check, clips or ClipPolicy()
        self.model, self.task, self.processor, self.device = model, task, processor, device
        if not model.training:  # always use the same prompt, as in evaluation
            model.renderer.prompts = model.renderer.prompts[:1]
        self.answerer = Answerer(model, task)

    def report(self, images: Picture | Sequence[Picture], question: str = "") -> str:
        """Generate a report on one study.

        Args:
            images: One image, or all images of the study.
            question: Text that asks for the report; empty uses the model's first prompt.

        Raises:
            DataError: An image cannot be read.
        """
        return self.answer(images, question).text

    def ask(self, images: Picture | Sequence[Picture], question: str) -> str:
        """Answer a question about one study.

        Args:
            images: One image, or all images of the study.
            question: The question.

        Raises:
            DataError: An image cannot be read.
            InputError: The question is empty.
        """
        if not question.strip():
            raise InputError("the question is empty; ask one, or call report(), which needs none")
        return self.answer(images, question).text

    def answer(self, images: Picture | Sequence[Picture], question: str = "") -> Answer:
        """Answer like `ask`, but return the full answer with its findings, boxes, masks or numbers.

        Images that do not look like what the model reads are logged, and `Answer.warnings` lists
        the reasons.

        Args:
            images: One image, or all images of the study.
            question: The question; empty uses the model's first prompt.
        """
        pictures: list[Picture] = [images] if isinstance(images, PICTURES) else list(images)
        media = [self.read(picture) for picture in pictures]
        answer = self.answerer.answer([make_sample(media, question)])[0]
        warnings = study_warnings([m.warnings for m in media])
        first = pictures[0] if pictures else ""
        name = Path(first).name if isinstance(first, (str, PathLike)) else "the image"
        for warning in warnings:
            log.warning("%s: %s", name, warning)
        return replace(answer, warnings=tuple(warnings))

    def read(self, picture: Picture) -> Media:
        """Process a picture for the model.

        Args:
            picture: A file, pixels, or a tensor that has already been processed.

        Raises:
            DataError: The file cannot be read.
            InputError: An array has the wrong shape or type.
        """
        if isinstance(picture, Media):
            return picture
        if isinstance(picture, Tensor):
            return media_from_tensor(picture)
        if isinstance(picture, MediaRef):
            return read_media(picture, "", self.processor, self.check)
        if isinstance(picture, (str, PathLike)):
            return read_media(self.clips.ref(Path(picture)), "", self.processor, self.check)
        pixels = torch.from_numpy(_pixels(picture)).float()
        size = (int(pixels.shape[0]), int(pixels.shape[1]))
        content = digest_values(pixels)
        media = Media(pixels, size=size, geometry=Geometry(), content=content)
        warnings = () if self.check is None else self.check(media)
        return replace(self.processor.process(media), warnings=warnings)

    def chat(self, system: str = "") -> Conversation:
        """Start a conversation, in which each turn processes only its new tokens.

        Args:
            system: System message; empty uses the template's message.

        Raises:
            InputError: The model cannot chat; the message says why.
        """
        return ChatEngine(self.model, self.answerer).start(system)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network's `forward`."""
        return self.model(*args, **kwargs)


def load_model(
    source: str | PathLike[str], options: Sequence[str] = (), device: str = "auto"
) -> LoadedModel:
    """Load a model in evaluation mode.

    Args:
        source: An evaluation YAML file; the name of one in `eval_configs/`, such as "xraygpt_mini";
            or the folder of a bundle, which uses its own decoding, or of a run or a checkpoint,
            which uses default decoding.
        options: ``key=value`` overrides for the YAML file.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InputError: The model, device or a setting does not exist.
    """
    target_device = find_device(device)
    path = _find_source(Path(source))
    experiment = _load_folder(path) if path.is_dir() else load(Evaluation, path, options)
    model = build_model(experiment, experiment.run.seed)
    model.merge_lora()
    builder = build_corpora(experiment.datasets, model.image_spec)[0]
    processor = builder.processor("vis", "eval")
    task = experiment.run.task.build()
    network = model.to(target_device).eval()
    check = builder.input_check(model.abilities.views)
    return LoadedModel(network, task, processor, target_device, check, clip_policy(experiment))


def load_model_and_preprocess(
    name: str, model_type: str | None = None, is_eval: bool = False, device: str = "cpu"
) -> tuple[LoadedModel, dict[str, BaseProcessor], dict[str, Any]]:
    """Build a model by its registered name and preset, with the signature used by LAVIS.

    Args:
        name: A value for `model.arch`.
        model_type: One of the model's presets; None uses the default settings.
        is_eval: Whether to set evaluation mode.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        The model, its image processors and its text processors; both are dicts with the keys
        "train" and "eval".

    Raises:
        InputError: The model, preset or device does not exist.
    """
    target_device = find_device(device)
    try:
        MODELS.get(name)
    except KeyError as error:
        raise InputError(error.args[0]) from None
    section: dict[str, Any] = {"arch": name}
    if model_type is not None:
        section |= _preset(name, model_type)
    experiment = _experiment(section, name)
    model = build_model(experiment, experiment.run.seed)
    builder = build_corpora(experiment.datasets, model.image_spec)[0]
    vis = {phase: builder.processor("vis", phase) for phase in ("train", "eval")}
    text = {phase: builder.processor("text", phase) for phase in ("train", "eval")}
    task = experiment.run.task.build()
    network = model.to(target_device).train(not is_eval)
    check, clips = builder.input_check(model.abilities.views), clip_policy(experiment)
    loaded = LoadedModel(network, task, vis["eval"], target_device, check, clips)
    return loaded, vis, text


def _find_source(source: Path) -> Path:
    """Return the path of a YAML file or folder, which may be in this project.

    Raises:
        InputError: There is no such YAML file or folder.
    """
    if source.exists():
        return source.resolve()
    for root in (Path.cwd(), PROJECT):
        for path in (root / "eval_configs" / f"{source.name}.yaml", root / source):
            if path.exists():
                return path.resolve()
    roots = (Path.cwd(), PROJECT)
    names = sorted({p.stem for root in roots for p in (root / "eval_configs").glob("*.yaml")})
    raise InputError(f"there is no model {source}{did_you_mean(source.name, names)}")


def _load_folder(folder: Path) -> Evaluation:
    """Load the experiment of a bundle, a run or a checkpoint, with default decoding.

    Raises:
        InputError: The folder is neither a bundle nor a run nor a checkpoint.
    """
    from omegaconf import OmegaConf

    is_bundle = "packed" in read_manifest(folder)
    source = folder if is_bundle else find_checkpoint(folder)
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(source / "config.yaml"), resolve=True)
    except OSError as error:
        raise InputError(f"{folder} has no config.yaml: {error.strerror}") from None
    model = {**tree["model"], "ckpt": str(source)}
    if is_bundle:  # the bundle contains its parts, even if it was moved
        original = str(tree["model"]["ckpt"])
        for key in ("vit_model", "llama_model", "finding_head"):
            model = with_replaced(model, key, original, str(source))
    for module in tree.get("imports") or []:
        importlib.import_module(module)
    datasets = dict(list((tree.get("datasets") or {}).items())[:1])
    task = (tree.get("run") or {}).get("task") if is_bundle else None
    experiment = _experiment(model, str(folder), datasets, task)
    resolve_paths(experiment, find_project(source / "config.yaml"))
    return experiment


def _experiment(
    model: dict[str, Any],
    where: str,
    datasets: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
) -> Evaluation:
    tree = {
        "model": model,
        "datasets": datasets or {"none": {"builder": "records"}},
        "run": {"task": task or {"name": "report_generation"}},
    }
    experiment: Evaluation = from_tree(Evaluation, tree, where)
    return experiment


def _preset(name: str, model_type: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    folder = PRESETS / "models" / MODELS.name_of(MODELS.get(name))
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    if model_type not in names:
        hint = did_you_mean(model_type, names)
        raise InputError(f"model_type: unknown preset '{model_type}'{hint}")
    tree: Any = OmegaConf.to_container(OmegaConf.load(folder / f"{model_type}.yaml"))
    return dict(tree.get("model", tree))


def _pixels(picture: Image | np.ndarray) -> np.ndarray:
    """Return pixel values in [0, 1] of shape (H, W) or (H, W, 3).

    Raises:
        InputError: An array has the wrong shape or type.
    """
    if isinstance(picture, Image):
        mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
        if picture.mode.startswith(("I", "F")):
            raise InputError(
                f"the white level of an image with mode {picture.mode} is unknown: pass its file, "
                "or an array in [0, 1]"
            )
        picture = np.asarray(picture.convert(mode))
    is_uint8 = np.issubdtype(picture.dtype, np.uint8)
    values = picture.astype(np.float32) / (255 if is_uint8 else 1)
    is_colour = values.ndim == 3 and values.shape[-1] == 3
    if not (values.ndim == 2 or is_colour) or not (values.min() >= 0 and values.max() <= 1):
        raise InputError(
            "an image must have shape (H, W) or (H, W, 3) and be uint8 or float in [0, 1]; got "
            f"{picture.dtype} {picture.shape}"
        )
    return values
