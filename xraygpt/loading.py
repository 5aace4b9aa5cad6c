"""Models in Python: load one, ask it about images.

    import xraygpt

    model = xraygpt.load_model("eval_configs/xraygpt_mini.yaml")
    print(model.report("chest.png"))
    print(model.ask("chest.png", "Is the heart enlarged?"))

Answers are those of `predict.py` for the same file, question and YAML. Research use only, not for
diagnosis.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from xraygpt.common.checkpoint import find_checkpoint, manifest_of
from xraygpt.common.config import PRESETS, from_tree, load
from xraygpt.common.distributed import to_device
from xraygpt.common.errors import InputError
from xraygpt.common.registry import MODELS, did_you_mean
from xraygpt.conversation import ChatEngine, Conversation
from xraygpt.datasets.base import Sample, read_media
from xraygpt.datasets.collate import Collator
from xraygpt.experiment import Evaluation, build_model, find_device
from xraygpt.media.base import Media, MediaRef, of_tensor
from xraygpt.media.geometry import Geometry
from xraygpt.models.base import BaseModel
from xraygpt.processors.base import BaseProcessor
from xraygpt.prompting.content import IMAGE, Turn
from xraygpt.tasks.base import BaseTask
from xraygpt.tasks.payload import Answer, answers_of

PROJECT = Path(__file__).resolve().parent.parent
PICTURES = (str, PathLike, MediaRef, Media, Image, np.ndarray, Tensor)
Picture = str | PathLike[str] | MediaRef | Media | Image | np.ndarray | Tensor
"""A file, a picture in memory ((H, W) or (H, W, 3); uint8, or float in [0, 1]), or what an image
processor made ((C, H, W))."""


class LoadedModel:
    """A model with its image processor and its way of answering.

    Attributes:
        model: The network.
        task: Decodes answers.
        processor: Makes tensors of pictures.
        device: Where it computes.
    """

    def __init__(
        self, model: BaseModel, task: BaseTask, processor: BaseProcessor, device: torch.device
    ) -> None:
        self.model, self.task, self.processor, self.device = model, task, processor, device
        if not model.training:  # one question for all, as measured
            model.renderer.prompts = model.renderer.prompts[:1]
        self._collate = Collator(model.renderer, model.media_collator, max_len=model.context_len)

    def report(self, images: Picture | Sequence[Picture], question: str = "") -> str:
        """A report on one study.

        Args:
            images: One image, or all images of the study.
            question: Asked for it; empty takes the model's own prompt.

        Raises:
            DataError: An image cannot be read.
        """
        return self.answer(images, question).text

    def ask(self, images: Picture | Sequence[Picture], question: str) -> str:
        """The answer to a question about one study.

        Raises:
            DataError: An image cannot be read.
            InputError: The question is empty.
        """
        if not question.strip():
            raise InputError("the question is empty; report() writes without one")
        return self.answer(images, question).text

    def answer(self, images: Picture | Sequence[Picture], question: str = "") -> Answer:
        """As `ask`, with whatever the task gives beside text: boxes, a mask, numbers."""
        several: list[Picture] = [images] if isinstance(images, PICTURES) else list(images)
        media = [self.read(one) for one in several]
        marks = " ".join([IMAGE] * len(media))
        first = several[0] if several else ""
        sample = Sample(
            # Draws hang on the name; this is the one predict.py gives a file.
            sample_id=Path(first).name if isinstance(first, (str, PathLike)) else "",
            study_id="",
            media=media,
            turns=[Turn(role="user", text=f"{marks} {question}".strip())],
            meta={},
            rng_key="",
        )
        batch = to_device(self._collate.prompts([sample]), self.device)
        (found,) = answers_of(self.task.predict(self.model, batch))
        return found

    def read(self, picture: Picture) -> Media:
        """A picture as the model takes it.

        Raises:
            DataError: The file cannot be read.
            InputError: An array of another shape or kind.
        """
        if isinstance(picture, Media):
            return picture
        if isinstance(picture, Tensor):
            return of_tensor(picture)
        if isinstance(picture, MediaRef):
            return read_media(picture, "", self.processor)
        if isinstance(picture, (str, PathLike)):
            return read_media(MediaRef(Path(picture)), "", self.processor)
        pixels = torch.from_numpy(_pixels(picture)).float()
        size = (int(pixels.shape[0]), int(pixels.shape[1]))
        return self.processor.process(Media(pixels, size=size, geometry=Geometry()))

    def chat(self, system: str = "") -> Conversation:
        """A conversation; turns cost their own tokens alone.

        Args:
            system: Opens it; empty takes the template's own words.

        Raises:
            InputError: The model cannot chat; says why.
        """
        return ChatEngine(self.model).start(system)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own `forward`."""
        return self.model(*args, **kwargs)


def load_model(
    source: str | PathLike[str], options: Sequence[str] = (), device: str = "auto"
) -> LoadedModel:
    """A model, ready to answer.

    Args:
        source: An evaluation YAML; the name of one in `eval_configs/`, such as "xraygpt_mini"; or
            the folder of a packed model, of a run or of a checkpoint, with default decoding.
        options: ``key=value`` over the YAML.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InputError: There is no such model, device or setting.
    """
    place = find_device(device)
    path, root = _find(Path(source))
    with contextlib.chdir(root):  # a named YAML's paths are the project's
        experiment = _of_folder(path) if path.is_dir() else load(Evaluation, path, options)
        model = build_model(experiment, experiment.run.seed)
        model.merge_lora()
        builder = next(iter(experiment.datasets.values())).build(image_spec=model.image_spec)
        processor = builder.processor("vis", "eval")
        task = experiment.run.task.build()
    return LoadedModel(model.to(place).eval(), task, processor, place)


def load_model_and_preprocess(
    name: str, model_type: str | None = None, is_eval: bool = False, device: str = "cpu"
) -> tuple[LoadedModel, dict[str, BaseProcessor], dict[str, Any]]:
    """A model by its registered name and preset, and its processors, as LAVIS has it.

    Args:
        name: As `model.arch`.
        model_type: One of its presets; None takes the defaults of its settings.
        is_eval: Put it into evaluation mode.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        The model; by "train" and "eval" its image processors; likewise its text processors.

    Raises:
        InputError: There is no such model, preset or device.
    """
    place = find_device(device)
    try:
        MODELS.get(name)
    except KeyError as error:
        raise InputError(error.args[0]) from None
    section: dict[str, Any] = {"arch": name}
    if model_type is not None:
        section |= _preset(name, model_type)
    experiment = _experiment(section, name)
    model = build_model(experiment, experiment.run.seed)
    builder = next(iter(experiment.datasets.values())).build(image_spec=model.image_spec)
    vis = {phase: builder.processor("vis", phase) for phase in ("train", "eval")}
    text = {phase: builder.processor("text", phase) for phase in ("train", "eval")}
    task = experiment.run.task.build()
    loaded = LoadedModel(model.to(place).train(not is_eval), task, vis["eval"], place)
    return loaded, vis, text


def _find(source: Path) -> tuple[Path, Path]:
    """A YAML or folder, and the folder its paths are relative to.

    Raises:
        InputError: There is none.
    """
    if source.exists():
        return source.resolve(), Path.cwd()
    for root in (Path.cwd(), PROJECT):
        for path in (root / "eval_configs" / f"{source.name}.yaml", root / source):
            if path.exists():
                return path.resolve(), root
    roots = (Path.cwd(), PROJECT)
    names = sorted({p.stem for root in roots for p in (root / "eval_configs").glob("*.yaml")})
    raise InputError(f"no model {source}{did_you_mean(source.name, names)}")


def _of_folder(folder: Path) -> Evaluation:
    """A folder that `xraygpt.pack` made, a run or a checkpoint, with default decoding.

    Raises:
        InputError: It is none of them.
    """
    from omegaconf import OmegaConf

    packed = "packed" in manifest_of(folder)
    source = folder if packed else find_checkpoint(folder)
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(source / "config.yaml"), resolve=True)
    except OSError as error:
        raise InputError(f"{folder} holds no config.yaml: {error.strerror}") from None
    model = {**tree["model"], "ckpt": str(source)}
    if packed:  # its parts lie in it, wherever it was moved
        made = str(tree["model"]["ckpt"])
        for key in ("vit_model", "llama_model", "finding_head"):
            if isinstance(model.get(key), str):
                model[key] = model[key].replace(made, str(source), 1)
    for module in tree.get("imports") or []:
        importlib.import_module(module)
    datasets = dict(list((tree.get("datasets") or {}).items())[:1])
    return _experiment(model, str(folder), datasets)


def _experiment(
    model: dict[str, Any], where: str, datasets: dict[str, Any] | None = None
) -> Evaluation:
    tree = {
        "model": model,
        "datasets": datasets or {"none": {"builder": "records"}},
        "run": {"task": {"name": "report_generation"}},
    }
    made: Evaluation = from_tree(Evaluation, tree, where)
    return made


def _preset(name: str, model_type: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    folder = PRESETS / "models" / MODELS.name_of(MODELS.get(name))
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if model_type not in known:
        hint = did_you_mean(model_type, known)
        raise InputError(f"model_type: unknown preset '{model_type}'{hint}")
    tree: Any = OmegaConf.to_container(OmegaConf.load(folder / f"{model_type}.yaml"))
    return dict(tree.get("model", tree))


def _pixels(picture: Image | np.ndarray) -> np.ndarray:
    """Display values, (H, W) or (H, W, 3) in [0, 1].

    Raises:
        InputError: An array of another shape or kind.
    """
    if isinstance(picture, Image):
        mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
        if picture.mode.startswith(("I", "F")):
            raise InputError(
                f"a picture of mode {picture.mode} does not say what is white: pass its file, or "
                "an array in [0, 1]"
            )
        picture = np.asarray(picture.convert(mode))
    whole = np.issubdtype(picture.dtype, np.uint8)
    values = picture.astype(np.float32) / (255 if whole else 1)
    colour = values.ndim == 3 and values.shape[-1] == 3
    if not (values.ndim == 2 or colour) or not (values.min() >= 0 and values.max() <= 1):
        raise InputError(
            f"a picture is (H, W) or (H, W, 3), uint8 or float in [0, 1]; this is {picture.dtype} "
            f"{picture.shape}"
        )
    return values
