"""Models of nnU-Net v2 (Isensee et al. 2021, Nat Methods).

nnU-Net runs in an environment of its own, because it needs older packages than this project. All
phases of a stack are segmented by one process, which takes several seconds to start.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from xraygpt.common.checkpoint import file_sha256
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError, InputError, WeightsError
from xraygpt.common.logging import progress
from xraygpt.common.project_paths import ProjectPath
from xraygpt.common.registry import registry
from xraygpt.common.requirements import Missing
from xraygpt.segmentation.base import Orientation, Segmentation, Segmenter, Slices
from xraygpt.segmentation.labels import CONVENTIONS, to_structures
from xraygpt.segmentation.network import check_convention
from xraygpt.segmentation.nifti import load_nibabel, read_volume, write_volume
from xraygpt.segmentation.nnunet_model import Model, derive_convention, find_folds, read_model
from xraygpt.segmentation.nnunet_process import HOW_TO_INSTALL, predict

log = logging.getLogger(__name__)

_HOW_TO_TRAIN = "docs/nnunet.md says how to train one"
_ENDINGS = (".nii.gz", ".nii")
_ANY_DISTANCE = 10.0  # mm; the distance between slices has no influence on a 2-D model


@registry.register_segmenter("nnunet")
class NnUNet(Segmenter):
    """A model of nnU-Net v2 for one channel, with 2-D or 3-D convolutions.

    Raises:
        InputError: The interpreter or nibabel is missing.
        WeightsError: The folder is no model, or a model for other images or labels.
    """

    @dataclass(kw_only=True)
    class Config(Segmenter.Config):
        """Which model, and the environment in which it runs."""

        folder: ProjectPath
        """Folder of the trained model, `<dataset>/<trainer>__<plans>__<configuration>`. nnU-Net
        unpickles its checkpoints, so use only models that you trust."""
        python: ProjectPath
        """Python interpreter of the environment with nnU-Net, such as `nnunet_env/bin/python`."""
        folds: tuple[int, ...] | Literal["all"] = ()
        """Folds whose probabilities are averaged, or `all` for a model trained on all cases; by
        default, all folds that were trained."""
        checkpoint: str = "checkpoint_final.pth"
        """Name of the checkpoint in the folder of a fold."""
        convention: str = ""
        """Meaning of the labels, a key of `segmentation.labels.CONVENTIONS`; by default, it follows
        from their names in the model's dataset.json."""
        device: Literal["cpu", "cuda", "mps"] = "cpu"
        mirroring: bool = True
        """Whether results for mirrored images are averaged, as nnU-Net does by default; without,
        it is up to 8 times as fast."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check_convention(check, self.convention, optional=True)
                negative = self.folds != "all" and any(fold < 0 for fold in self.folds)
                check.refuse(negative, "folds", f"must be 0 or more, got {self.folds}")

        def missing(self, where: str) -> list[Missing]:
            """List the interpreter, the folder or a fold's checkpoint if it is not there."""
            found = []
            if not self.python.is_file():
                found.append(
                    Missing(f"{where}.python", f"{self.python} does not exist", HOW_TO_INSTALL)
                )
            if not self.folder.is_dir():
                problem = f"{self.folder} is not a folder"
                return [*found, Missing(f"{where}.folder", problem, _HOW_TO_TRAIN)]
            for file in self.checkpoint_files():
                if not file.is_file():
                    remedy = "train this fold, or choose other run.segmenter.folds or checkpoint"
                    found.append(Missing(f"{where}.checkpoint", f"{file} does not exist", remedy))
            return found

        def fold_names(self) -> tuple[str, ...]:
            """Return the names of the folds to use, ``0`` to ``4`` or ``all``."""
            if self.folds == "all":
                return ("all",)
            trained = self.folds or find_folds(self.folder, self.checkpoint)
            return tuple(map(str, trained)) or ("all",)

        def checkpoint_files(self) -> list[Path]:
            """Return the paths of the checkpoints to use, which may not exist."""
            return [self.folder / f"fold_{f}" / self.checkpoint for f in self.fold_names()]

    orientation: Orientation = "stored"
    needs_whole_stack: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        self.config = config
        if missing := config.missing("segmenter"):
            error = InputError if missing[0].key.endswith("python") else WeightsError
            raise error(f"{missing[0].problem}; {missing[0].remedy}")
        load_nibabel()
        self._model = read_model(config.folder)
        _check_model(config.folder, self._model)
        self.convention = config.convention or _derive(config.folder, self._model)
        names = CONVENTIONS[self.convention]
        highest = max(self._model.labels, default=0)
        if highest >= len(names):
            raise WeightsError(
                f"{config.folder}: the model has labels up to {highest}, but {self.convention} has "
                f"only 0 to {len(names) - 1}"
            )
        self.structures = names[1 : highest + 1] if highest else names[1:]

    def describe(self) -> str:
        """Return the model's name and the beginning of the SHA-256 of each checkpoint."""
        digests = [file_sha256(file)[:8] for file in self.config.checkpoint_files()]
        folder = self.config.folder.resolve()
        return f"{folder.parent.name}/{folder.name} (nnU-Net, SHA-256 {', '.join(digests)})"

    def segment(self, slices: Slices) -> Segmentation:
        """Segment all slices of one phase; see `Segmenter.segment`."""
        return next(self.segment_all([slices]))

    def segment_all(self, phases: Iterable[Slices]) -> Iterator[Segmentation]:
        """Segment phases of one stack with one process.

        The confidence is 1 for slices with a structure and 0 for the others: with probabilities,
        nnU-Net may round labels differently.

        Raises:
            DataError: Images cannot be used, or their spacing is unknown.
            InputError: nnU-Net is not installed, or it failed.
        """
        with tempfile.TemporaryDirectory(prefix="xraygpt-nnunet-") as name:
            folder = Path(name)
            sources, targets = folder / "images", folder / "labels"
            sources.mkdir()
            shapes = [self._write(sources, i, slices) for i, slices in enumerate(phases)]
            if not shapes:
                return iter(())
            log.info("nnU-Net segments %d phases", len(shapes))
            hidden = len(shapes) < 3
            with progress(total=len(shapes), desc="nnU-Net", unit="phase", disable=hidden) as bar:
                arguments = self._arguments(sources, targets)
                predict(self.config.python, self.config.folder, arguments, folder, bar.update)
            return iter([self._read(targets, i, shape) for i, shape in enumerate(shapes)])

    def _arguments(self, sources: Path, targets: Path) -> Sequence[str]:
        config = self.config
        workers = "1" if config.device == "cpu" else "3"
        return [
            "-i", str(sources), "-o", str(targets), "-f", *config.fold_names(),
            "-chk", config.checkpoint, "-device", config.device,
            "-npp", workers, "-nps", workers, "--disable_progress_bar",
            *([] if config.mirroring else ["--disable_tta"]),
        ]  # fmt: skip

    def _write(self, folder: Path, index: int, slices: Slices) -> tuple[int, ...]:
        """Write the images of a phase, and return their shape."""
        distance = slices.distance
        if distance is None and self._model.configuration == "2d":
            distance = _ANY_DISTANCE
        if slices.spacing is None or distance is None:
            raise DataError(
                "nnU-Net needs the pixel spacing and the distance between slices, and the images "
                "do not state them; use another segmenter"
            )
        if not np.isfinite(slices.pixels).all():
            raise DataError("nnU-Net cannot read images with values that are not finite numbers")
        file = folder / f"{_case(index)}_0000{self._model.file_ending}"
        write_volume(file, slices.pixels.astype(np.float32), (distance, *slices.spacing))
        return slices.pixels.shape

    def _read(self, folder: Path, index: int, shape: tuple[int, ...]) -> Segmentation:
        file = folder / f"{_case(index)}{self._model.file_ending}"
        if not file.is_file():
            raise InputError(f"nnU-Net wrote no label map for phase {index + 1}")
        labels = read_volume(file)
        if labels.shape != shape:
            raise InputError(
                f"nnU-Net's label map for phase {index + 1} has the shape {labels.shape}, the "
                f"images {shape}"
            )
        structures = to_structures(labels, self.convention)
        return Segmentation(structures, np.array([float(one.any()) for one in structures]))


def _case(index: int) -> str:
    return f"phase_{index:04d}"


def _check_model(folder: Path, model: Model) -> None:
    """Require a model for single NIfTI images.

    Raises:
        WeightsError: It is another one.
    """
    if model.channels != 1:
        raise WeightsError(
            f"{folder}: the model needs {model.channels} channels, but cardiac MR images have one"
        )
    if model.file_ending not in _ENDINGS:
        raise WeightsError(
            f"{folder}: the model was trained on {model.file_ending} files; only models trained on "
            f"{' or '.join(_ENDINGS)} files can be used"
        )
    if model.needs_earlier_stage:
        raise WeightsError(
            f"{folder}: {model.configuration} refines the result of another model; use "
            "3d_fullres, 3d_lowres or 2d"
        )
    if model.turns_images:
        log.warning(
            "%s: the model was trained on images that were turned into standard orientation, but "
            "it will see them as stored; check its label maps", folder,
        )  # fmt: skip


def _derive(folder: Path, model: Model) -> str:
    """Return the convention that agrees with the names of the labels.

    Raises:
        WeightsError: There is none.
    """
    convention = derive_convention(model.labels)
    if convention is None:
        named = ", ".join(f"{value} {name}" for value, name in sorted(model.labels.items()))
        raise WeightsError(
            f"{folder}: the names of the labels ({named or 'regions'}) agree with no convention; "
            f"set convention to one of {', '.join(CONVENTIONS)}"
        )
    return convention
