"""NIfTI, HDF5 and PNG studies and masks with something wrong; see `broken_hearts.Broken`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.cardiac.broken_hearts import (
    GREY,
    MATRIX,
    NO_ML,
    NO_RATE,
    Broken,
    check,
    label_maps,
    write_ends,
    write_nifti,
)
from tests.cardiac.volumes import PIXDIM, patch, write_hdf5
from xraygpt.segmentation.labels import LV, MYOCARDIUM, RV
from xraygpt.segmentation.masks import GivenMasks

MASKS = {"segmenter": GivenMasks.Config(), "convention": "acdc"}
NO_RV = {"rv_edv": None, "rv_esv": None, "rv_ef": None}


def changed(change, **kwargs):
    """Return a function that writes NIfTI files with changed label maps."""

    def write(folder):
        labels = label_maps()
        change(labels)
        return write_nifti(folder, labels, **kwargs)

    return write


def at_end_systole(value, other):
    """Return a function that gives pixels of phase 3 another value."""

    def change(labels):
        labels[2][labels[2] == value] = other

    return change


def empty(phases, slices=slice(None)):
    def change(labels):
        labels[phases, slices] = 0

    return change


def one_voxel(labels):
    labels[2][labels[2] == LV] = MYOCARDIUM
    labels[2, 2, 16, 16] = LV


def exchange(labels):
    values = labels.copy()
    labels[values == LV], labels[values == RV] = RV, LV


def moved_to_edge(labels):
    labels[:] = np.roll(labels, 9, axis=-1)


def with_nan(folder):
    images = GREY[label_maps()].astype(np.float32)
    images[3, 2, 5, 5] = np.nan
    return write_nifti(folder, images=images)


def shifted(millimetres):
    affine = MATRIX.copy()
    affine[0, 3] += millimetres
    return affine


def cut_nifti(folder):
    file = write_nifti(folder) / "cine_sax.nii"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return folder


def without_distance(folder):
    for file in write_nifti(folder, code=0).iterdir():
        patch(file, PIXDIM + 12, "<f", 0.0)
    return folder


def still(folder):
    return write_nifti(folder, label_maps()[0], GREY[label_maps()[0]])


def scattered_phases(folder):
    for phase, number in ((0, 1), (1, 4), (2, 9)):
        name = f"sax_frame{number:02d}"
        write_nifti(folder, label_maps()[phase], GREY[label_maps()[phase]], name)
    return folder


def left_handed(folder):
    """Slices stored from the base to the apex, as the affine says."""
    affine = MATRIX.copy()
    affine[:, 2] = -MATRIX[:, 2]
    affine[:, 3] += 3 * MATRIX[:, 2]
    maps = label_maps()[:, ::-1]
    return write_nifti(folder, maps, GREY[maps], affine=affine)


def pngs_without_one(folder):
    for phase, s in np.ndindex(5, 4):
        if (phase, s) != (0, 1):
            image = Image.fromarray(GREY[label_maps()[phase, s]].astype(np.uint8))
            image.save(folder / f"sax_slice{s + 1:02d}_frame{phase + 1:02d}.png")
    return folder


def hdf5(folder):
    maps = label_maps()
    write_hdf5(folder / "sax.h5", image=GREY[maps].astype(np.float32), label=maps)
    return folder


def both(ed, es):
    """Label maps of end diastole and end systole, each changed by a function."""
    return ed(label_maps()[0]), es(label_maps()[2])


def same(labels):
    return labels


STUDIES = {
    "no cavity at end diastole": Broken(
        lambda f: write_ends(f, ("ED", "ES"), *both(lambda m: m * 0, same)),
        "only phase 2 has a left ventricular cavity, but end diastole and end systole are needed",
        None,
        MASKS,
    ),
    "an empty phase": Broken(
        changed(at_end_systole(LV, MYOCARDIUM)),
        "phase 3 is left out: there is no left ventricular cavity",
        # Then the smallest is phase 4: (9 + 25 + 49 + 49) pixels; RV 4 · 22
        {
            "lv_esv": 21.12,
            "lv_ef": 56.0,
            "rv_esv": 14.08,
            "rv_ef": 35.294,
            "cardiac_output": 26.88 * 0.075,
        },
        MASKS,
    ),
    "an empty mask at end diastole among others": Broken(
        changed(empty(0)),
        "phase 1 is not measured: the mask is empty",
        {
            "lv_edv": 37.76,
            "lv_ef": 61.017,
            "lv_mass": 51.072,
            "rv_edv": 19.2,
            "rv_ef": 40,
            "cardiac_output": 23.04 * 0.075,
        },
        MASKS,
    ),
    "one voxel at end systole": Broken(
        changed(one_voxel),
        "a left ventricular ejection fraction of 100 % is implausible: check the contours",
        {"lv_esv": 0.16, "lv_ef": 99.667, "cardiac_output": 47.84 * 0.075},
        MASKS,
    ),
    "the right ventricle alone": Broken(
        changed(lambda m: m.__setitem__(m != RV, 0)),
        "no phase has a left ventricular cavity",
        None,
        MASKS,
    ),
    "no myocardium at end systole": Broken(
        changed(at_end_systole(MYOCARDIUM, 0)),
        "no wall thickness: the masks lack myocardium at end diastole or end systole",
        {},
        MASKS,
    ),
    "no myocardium": Broken(
        changed(lambda m: m.__setitem__(m == MYOCARDIUM, 0)),
        "there is no mass: the mask has no myocardium at end diastole",
        {"lv_mass": None},
        MASKS,
    ),
    "no right ventricle at end systole": Broken(
        changed(at_end_systole(RV, 0)),
        "no values of the right ventricle: the masks do not have it at end systole",
        NO_RV,
        MASKS,
    ),
    "left and right exchanged": Broken(
        changed(exchange),
        "the myocardium surrounds the right ventricle, not the left: is the convention acdc right",
        {
            "lv_edv": 21.76,
            "lv_esv": 11.52,
            "lv_ef": 47.059,
            "rv_edv": 48.0,
            "rv_esv": 14.72,
            "rv_ef": 69.333,
            "cardiac_output": 10.24 * 0.075,
        },
        {**MASKS, "basal_ring": 0.0},
    ),
    "end diastole and end systole exchanged": Broken(
        lambda f: write_ends(f, ("ES", "ED"), *both(same, same)),
        "the left ventricle is smaller in the phase that the files call ED",
        NO_RATE,
        MASKS,
    ),
    "phases that do not follow each other": Broken(
        scattered_phases, "there are only the phases 1, 4, 9, so there is no curve", NO_RATE, MASKS
    ),
    "slices in the reverse order at end systole": Broken(
        lambda f: write_ends(f, ("ED", "ES"), *both(same, lambda m: m[::-1])),
        "the slices seem to be in the reverse order at end systole",
        NO_RATE,
        MASKS,
    ),
    "a slice without contours": Broken(
        changed(empty(0, 2)),
        "slice 3 has no left ventricular cavity and no myocardium in phase 1, although the slices",
        # Now phase 5 is the largest: sides of 5, 7, 9 and 9 pixels, RV 4 · 30 pixels
        {
            "lv_edv": 37.76,
            "lv_ef": 61.017,
            "lv_mass": 51.072,
            "rv_edv": 19.2,
            "rv_ef": 40,
            "cardiac_output": 23.04 * 0.075,
        },
        MASKS,
    ),
    "a heart at the edge of the image": Broken(
        changed(moved_to_edge),
        "the left ventricle reaches the edge of the image at end diastole",
        {},
        MASKS,
    ),
    "interpolated labels": Broken(
        lambda f: write_nifti(f, label_maps() * np.float32(0.5)),
        "cine_sax_gt.nii: the label map has values that are not whole.*nearest-neighbour",
        None,
        MASKS,
    ),
    "masks in another space": Broken(
        lambda f: write_nifti(f, mask_affine=shifted(30)),
        "the mask lies up to 30.0 mm away from the images of sax; resample it",
        None,
        MASKS,
    ),
    "inverted contrast": Broken(
        lambda f: write_nifti(f, images=255 - GREY[label_maps()]),
        "the left ventricular cavity is not brighter than the myocardium at end diastole",
        {},
        MASKS,
    ),
    "pixels that are not numbers": Broken(
        with_nan, "cine_sax.nii: slice 3 of phase 4 has pixels that are not numbers", None, MASKS
    ),
    "a left-handed affine": Broken(left_handed, "", {}, MASKS),
    "a missing PNG file": Broken(
        pngs_without_one,
        "an image is missing .first: phase 1 of slice 2. and replaced by black.*",
        # 36 + 100 + 100 pixels remain of phase 1, RV 4 · 26
        {**NO_ML, **NO_RATE, "lv_ef": 61.017, "rv_ef": 30.769},
    ),
    "a unit of microns": Broken(
        lambda f: write_nifti(f, units=("micron", "sec")),
        "is the header's unit of length right",
        NO_ML,
        MASKS,
    ),
    "a NIfTI file cut short": Broken(cut_nifti, "cine_sax.nii: it is cut short: .* copy", None),
    "a NIfTI file without phases": Broken(
        still, "sax: it has one phase; give the cine", None, MASKS
    ),
    "a slice distance of 0": Broken(
        without_distance,
        r"distance between slices is unknown .pixdim is 0., so there are no volumes in mL",
        NO_ML,
        MASKS,
    ),
    "HDF5 without a header": Broken(
        hdf5, "no volumes in mL: the pixel spacing is unknown", {**NO_ML, **NO_RATE}, MASKS
    ),
}


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_a_broken_study(study, tmp_path, monkeypatch):
    check(study, tmp_path, monkeypatch)
