"""SYNTHETIC short-axis hearts as NIfTI files in the folders of ACDC or M&Ms.

The cavity of the left ventricle is a disc in a ring of myocardium, with the right ventricle as a
crescent beside it. Size, position, rotation and contrast differ between patients. At end systole,
the cavities are smaller and the myocardium is thicker.

    python -m tests.segmentation.synthetic_hearts FOLDER --patients 12
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (8, 64, 72)  # slices, rows, columns
SPACING = (10.0, 1.5, 1.4)  # mm between slices, rows, columns
FRAMES = {"ED": 1, "ES": 9}  # as in ACDC, the first frame has the number 1


def draw_heart(
    rng: np.random.Generator, scales: tuple[float, float], shape: tuple[int, int, int] = SHAPE
) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, H, W) float32 values and uint8 labels in ACDC's convention.

    Args:
        rng: Source of the noise and of the contrast.
        scales: Radius of the cavity and thickness of the myocardium, relative to end diastole.
        shape: N, H and W.
    """
    slices, rows, columns = np.mgrid[tuple(slice(0, n) for n in shape)].astype(np.float32)
    patient = np.random.default_rng(int(rng.integers(2**32)))
    taper = 1 - 0.5 * (slices / max(shape[0] - 1, 1)) ** 2
    radius = 13 * scales[0] * taper
    wall = 5 * scales[1] * taper
    centre = np.array(shape[1:]) / 2 + patient.uniform(-5, 5, 2)
    y, x = rows - centre[0], columns - centre[1]
    angle = patient.uniform(-0.5, 0.5)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = np.hypot(along, across)
    right = np.hypot((along + 17) * 1.3, across * 0.9) < radius * 1.15
    labels = np.zeros(shape, np.uint8)
    labels[right] = 1
    labels[distance < radius + wall] = 2
    labels[distance < radius] = 3
    tissue = np.array([60, 190, 90, 210]) * patient.uniform(0.8, 1.2)
    image = tissue[labels] + patient.normal(0, 12, shape)
    return np.clip(image, 0, None).astype(np.float32), labels


def draw_patient(
    seed: int, shape: tuple[int, int, int] = SHAPE
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return image and labels of a SYNTHETIC patient at ``ED`` and ``ES``."""
    size = np.random.default_rng(seed).uniform(0.8, 1.15)
    scales = {"ED": (size, 1.0), "ES": (size * 0.65, 1.35)}
    return {p: draw_heart(np.random.default_rng(seed), s, shape) for p, s in scales.items()}


def save(file: Path, volume: np.ndarray, spacing: tuple[float, ...] = SPACING) -> Path:
    """Save a (N, H, W) or (T, N, H, W) array as NIfTI, whose first axis runs along the columns."""
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    file.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(volume.transpose(), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, file)
    return file


def write_acdc_patient(
    folder: Path, number: int, shape: tuple[int, int, int] = SHAPE, seed: int | None = None
) -> Path:
    """Write one SYNTHETIC patient in ACDC's layout, and return its folder."""
    name = f"patient{number:03d}"
    patient = folder / name
    for phase, (image, labels) in draw_patient(number if seed is None else seed, shape).items():
        stem = f"{name}_frame{FRAMES[phase]:02d}"
        save(patient / f"{stem}.nii.gz", image)
        save(patient / f"{stem}_gt.nii.gz", labels)
    lines = [f"{phase}: {frame}" for phase, frame in FRAMES.items()]
    text = "\n".join([*lines, "Group: SYNTHETIC", "Height: 170.0", "NbFrame: 12", "Weight: 70.0"])
    (patient / "Info.cfg").write_text(text + "\n")
    return patient


def write_mnms(folder: Path, numbers: list[int], shape: tuple[int, int, int] = SHAPE) -> Path:
    """Write SYNTHETIC patients in the layout of M&Ms with a table, and return the table."""
    rows = ["External code,VendorName,ED,ES"]
    swap = np.array([0, 3, 2, 1], np.uint8)
    for number in numbers:
        name = f"S{number:05d}"
        images, masks = np.zeros((2, 5, *shape), np.float32)
        for frame, (image, labels) in zip(
            (3, 1), draw_patient(number, shape).values(), strict=True
        ):
            images[frame], masks[frame] = image, swap[labels]
        save(folder / "Labeled" / name / f"{name}_sa.nii.gz", images)
        save(folder / "Labeled" / name / f"{name}_sa_gt.nii.gz", masks.astype(np.uint8))
        rows.append(f"{name},SYNTHETIC,3,1")
    table = folder / "table.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patients", type=int, default=12)
    parser.add_argument("--first", type=int, default=1)
    args = parser.parse_args()
    for number in range(args.first, args.first + args.patients):
        write_acdc_patient(args.folder, number)


if __name__ == "__main__":
    main()
