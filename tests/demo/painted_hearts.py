"""A fast analysis of a tiny DICOM cine, with a segmenter that paints a heart of known size."""

from __future__ import annotations

import shutil
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.cardiac.conftest import write_frame
from xraygpt.cardiac.analysis import CardiacMR
from xraygpt.common.errors import DataError
from xraygpt.common.registry import registry
from xraygpt.demo.sessions import PageSession, Sessions
from xraygpt.demo.study_desk import StudyDesk
from xraygpt.segmentation.base import Segmentation, Segmenter
from xraygpt.segmentation.labels import LV, MYOCARDIUM, RV


@registry.register_segmenter("painted")
class Painted(Segmenter):
    """Paints a cavity of 16 pixels, or of 4 in phases 2 and 3; pixel values tell the phase."""

    @dataclass(kw_only=True)
    class Config(Segmenter.Config):
        seconds: float = 0.0

    orientation = "stored"
    notice = "Painted for tests only."

    def __init__(self, config: Config) -> None:
        self.config = config

    def segment(self, slices):
        time.sleep(self.config.seconds)
        labels = np.zeros(slices.pixels.shape, np.uint8)
        labels[:, 4:12, 3:10] = MYOCARDIUM
        labels[:, 4:12, 10:12] = RV
        for image, one in zip(slices.pixels, labels, strict=True):
            phase = int(image[0, 0]) % 100 - 1
            size = 2 if phase in (2, 3) else 4
            one[6 : 6 + size, 5 : 5 + size] = LV
        return Segmentation(labels, np.full(len(labels), 0.9))


class Unreadable(Painted):
    """Refuses every image."""

    def segment(self, slices):
        raise DataError("images of 16 × 12 pixels are too small; use larger ones")


def build_desk(**segmenter: object) -> StudyDesk:
    """A desk with its own sessions, to be closed with `desk.sessions.close()`."""
    config = Painted.Config(**segmenter)
    analysis = CardiacMR.Config(
        segmenter=config, export=["nifti", "dicom_sr"], formats=["html", "md", "json"]
    ).build()
    return StudyDesk(analysis, "painted", Sessions(PageSession))


def zipped_cine(folder: Path, slices: int = 3, **elements: object) -> Path:
    """A zip file with a DICOM cine in a subfolder."""
    frames = folder / "frames"
    shutil.rmtree(frames, ignore_errors=True)
    frames.mkdir()
    for phase in range(5):
        for slice_ in range(slices):
            write_frame(frames, slice_=slice_, phase=phase, **elements)  # type: ignore[arg-type]
    return zip_of(folder / "Doe_Jane.zip", {f"Doe/{p.name}": p for p in sorted(frames.iterdir())})


def zip_of(path: Path, content: dict[str, Path | bytes]) -> Path:
    """A zip file with these names and contents."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, source in content.items():
            data = source if isinstance(source, bytes) else source.read_bytes()
            archive.writestr(name, data)
    return path


def upload_study(desk: StudyDesk, session: PageSession, *files: Path) -> list[str]:
    """Copy files into subfolders of the upload folder, as Gradio does, and add them."""
    paths = []
    for i, file in enumerate(files):
        folder = desk.sessions.uploads / f"{time.monotonic_ns()}-{i}"
        folder.mkdir()
        paths.append(shutil.copy(file, folder))
    return desk.add_uploads(session, paths)
