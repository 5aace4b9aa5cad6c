"""DICOM Segmentation objects: written, read, and read from other programs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, generate_uid

from tests.cardiac.conftest import STUDY, write_frame
from xraygpt.cardiac import dicom_source
from xraygpt.cardiac.dicom_intake import read_dicom_study
from xraygpt.cardiac.dicom_segmentation import write_segmentation
from xraygpt.cardiac.dicom_segmentation_reader import read_segmentation
from xraygpt.cardiac.dicom_source import Algorithm
from xraygpt.cardiac.dicom_structures import find_structures
from xraygpt.cardiac.stack import Stack
from xraygpt.common.errors import DataError, InputError
from xraygpt.segmentation.labels import INFARCT, LV, MYOCARDIUM, NO_REFLOW, RV

pytest.importorskip("highdicom", reason="pip install -c constraints.txt -e '.[cmr]'")
ALGORITHM = Algorithm("acdc", "0.1.6")


def labels_of(stack: Stack) -> np.ndarray:
    """(T, S, H, W) maps that differ in every image; the last slice is empty."""
    labels = np.zeros(stack.shape, dtype=np.uint8)
    for phase in range(stack.phases):
        for slice_ in range(max(stack.slices - 1, 1)):
            image = labels[phase, slice_]
            image[2:12, 3:9] = MYOCARDIUM
            image[4 : 6 + phase, 4 : 6 + slice_] = LV
            image[2:3, 3 : 4 + phase % 4] = INFARCT
            image[3 : 4 + slice_, 0:2] = RV
    labels[:, 0, 2, 3] = NO_REFLOW
    return labels


def one_stack(folder: Path) -> Stack:
    (stack,) = read_dicom_study(folder).stacks
    return stack


@pytest.fixture
def written(cine, tmp_path_factory) -> tuple[Stack, np.ndarray, list[Path]]:
    stack = one_stack(cine())
    labels = labels_of(stack)
    folder = tmp_path_factory.mktemp("segmentation")
    return stack, labels, write_segmentation(folder, stack, labels, ALGORITHM)


@pytest.fixture
def first(cine, tmp_path_factory) -> tuple[Stack, np.ndarray, Path]:
    """A stack with 5 phases, the label maps of its first phase, and their file."""
    stack = one_stack(cine())
    labels = labels_of(stack)[0]
    folder = tmp_path_factory.mktemp("segmentation")
    (file,) = write_segmentation(folder, stack, labels[None], ALGORITHM, [0])
    return stack, labels, file


def assert_equal(read: dict[int, np.ndarray], labels: np.ndarray) -> None:
    assert sorted(read) == list(range(len(labels)))
    for phase, maps in read.items():
        assert maps.dtype == np.uint8
        np.testing.assert_array_equal(maps, labels[phase])


# ---- round trip ----------------------------------------------------------------------------------


def test_label_maps_return_unchanged(written):
    stack, labels, files = written
    assert_equal(read_segmentation(files[0].parent, stack), labels)
    for phase, file in enumerate(files):
        (read,) = read_segmentation(file, stack).items()
        assert read[0] == phase
        np.testing.assert_array_equal(read[1], labels[phase])


def test_each_frame_refers_to_its_image(written):
    stack, _, files = written
    document = dcmread(files[2])
    assert len(document.PerFrameFunctionalGroupsSequence) == 5 * stack.slices
    for group in document.PerFrameFunctionalGroupsSequence:
        (item,) = group.DerivationImageSequence[0].SourceImageSequence
        z = float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        source = dcmread(stack.source(2, round(z / 10))[0])
        assert item.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert source.pixel_array[0, 0] == 100 * round(z / 10) + 3
    series = {s.SeriesInstanceUID for s in document.ReferencedSeriesSequence}
    assert series == {dcmread(stack.source(2, s)[0]).SeriesInstanceUID for s in range(4)}


def test_segments_have_standard_codes_and_the_algorithm(first):
    document = dcmread(first[2])
    codes = {
        segment.SegmentLabel: (types.CodingSchemeDesignator, types.CodeValue)
        for segment in document.SegmentSequence
        for types in segment.SegmentedPropertyTypeCodeSequence
    }
    assert codes == {
        "Right ventricular cavity": ("SCT", "53085002"),
        "Left ventricular myocardium": ("SCT", "49848007"),
        "Left ventricular cavity": ("SCT", "87878005"),
        "Infarct": ("SCT", "55641003"),
        "Microvascular obstruction": ("99XRAYGPT", "NO_REFLOW"),
    }
    for segment in document.SegmentSequence:
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ALGORITHM


def test_the_object_belongs_to_the_study_and_says_what_it_is_for(cine, tmp_path_factory):
    stack = one_stack(cine())
    folder = tmp_path_factory.mktemp("out")
    labels = labels_of(stack)[[1]]
    (file,) = write_segmentation(folder, stack, labels, ALGORITHM, [1], synthetic=True)
    document = dcmread(file)
    assert (document.StudyInstanceUID, document.PatientID) == (STUDY, "P1")
    assert document.SegmentationType == "BINARY"
    assert document.ContentDescription == (
        "SYNTHETIC. Research use only, not for diagnosis. Phase 2 of 5"
    )
    assert "SYNTHETIC" in document.SeriesDescription
    assert "Research use only" in document.SeriesDescription


def test_a_frame_whose_size_is_not_a_multiple_of_eight_pixels(cine, tmp_path_factory):
    size = {"Rows": 13, "Columns": 11, "PixelData": bytes(13 * 11 * 2)}
    stack = one_stack(cine(change=lambda slice_, phase: size))
    labels = labels_of(stack)
    folder = tmp_path_factory.mktemp("out")
    write_segmentation(folder, stack, labels, ALGORITHM)
    assert_equal(read_segmentation(folder, stack), labels)


def test_a_slice_with_fewer_phases(cine, tmp_path_factory):
    """One image then stands for two phases, whose masks may differ."""
    stack = one_stack(cine(skip=lambda slice_, phase: slice_ == 1 and phase == 2))
    labels = labels_of(stack)
    folder = tmp_path_factory.mktemp("out")
    files = write_segmentation(folder, stack, labels, ALGORITHM)
    assert_equal(read_segmentation(folder, stack), labels)
    assert [sorted(read_segmentation(file, stack)) for file in files] == [[p] for p in range(5)]


def test_images_in_one_file_are_referred_to_by_frame(tmp_path, tmp_path_factory):
    pixels = np.arange(5, dtype=np.uint16).repeat(16 * 12).tobytes()
    settings = {"NumberOfFrames": 5, "FrameTime": 160, "TriggerTime": None, "PixelData": pixels}
    write_frame(tmp_path, SOPClassUID=EnhancedMRImageStorage, **settings)
    stack = one_stack(tmp_path)
    assert stack.shape == (5, 1, 16, 12)
    labels = labels_of(stack)
    folder = tmp_path_factory.mktemp("out")
    files = write_segmentation(folder, stack, labels, ALGORITHM)
    (group, *_) = dcmread(files[3]).PerFrameFunctionalGroupsSequence
    assert group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber == 4
    assert_equal(read_segmentation(folder, stack), labels)


def test_names_in_other_alphabets_survive(cine, tmp_path_factory):
    names = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"}
    stack = one_stack(cine(change=lambda slice_, phase: names))
    folder = tmp_path_factory.mktemp("out")
    (file,) = write_segmentation(folder, stack, labels_of(stack)[:1], ALGORITHM, [0])
    assert str(dcmread(file).PatientName) == "Müller^Jörg"


# ---- other writers -------------------------------------------------------------------------------


def written_by_others(stack: Stack, phase: int, labels: np.ndarray, kind: str) -> Dataset:
    """One phase written directly with highdicom: slices reversed, empty frames omitted."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    sources = []
    for slice_ in reversed(range(stack.slices)):
        source = dcmread(stack.source(phase, slice_)[0])
        for keyword in dicom_source._REQUIRED:
            setattr(source, keyword, source.get(keyword, ""))
        sources.append(source)
    descriptions = [
        hd.seg.SegmentDescription(
            number, label, codes.SCT.Tissue, codes.SCT.Tissue, algorithm_type="MANUAL"
        )
        for number, label in ((1, "RV blood pool"), (2, "LV_myocardium"), (3, "LV endocardium"))
    ]
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=np.where(labels[::-1] > LV, MYOCARDIUM, labels[::-1]),
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="other",
        manufacturer_model_name="other",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=True,
    )


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("references", [True, False])
def test_other_writers_sort_and_omit_frames(cine, tmp_path_factory, kind, references):
    series = {"SeriesInstanceUID": generate_uid()}
    stack = one_stack(cine(change=lambda slice_, phase: series))
    labels = labels_of(stack)
    labels[:, 0] = 0  # so that slices are missing at both ends
    document = written_by_others(stack, 3, labels[3], kind)
    if not references:
        for group in document.PerFrameFunctionalGroupsSequence:
            del group.DerivationImageSequence
    positions = [
        g.PlanePositionSequence[0].ImagePositionPatient[2]
        for g in document.PerFrameFunctionalGroupsSequence
    ]
    assert set(positions) == {10, 20}
    file = tmp_path_factory.mktemp("out") / "other.dcm"
    document.save_as(file)
    expected = np.where(labels[3] > LV, MYOCARDIUM, labels[3])
    (read,) = read_segmentation(file, stack).items()
    assert read[0] == 3
    np.testing.assert_array_equal(read[1], expected)


def test_all_phases_in_one_file(written):
    """Their frames have the same positions, and are told apart by their references."""
    stack, labels, files = written
    documents = [dcmread(file) for file in files]
    first = documents[0]
    first.PixelData = b"".join(d.PixelData for d in documents)
    first.NumberOfFrames = sum(int(d.NumberOfFrames) for d in documents)
    first.PerFrameFunctionalGroupsSequence = Sequence(
        group for d in documents for group in d.PerFrameFunctionalGroupsSequence
    )
    first.save_as(files[0])
    assert_equal(read_segmentation(files[0], stack), labels)


def test_a_single_image_needs_no_reference(tmp_path, tmp_path_factory):
    for slice_ in range(3):
        write_frame(tmp_path, slice_=slice_, name="PSIR_late_Gad", TriggerTime=None)
    stack = one_stack(tmp_path)
    labels = labels_of(stack)
    (file,) = write_segmentation(tmp_path_factory.mktemp("out"), stack, labels, ALGORITHM)
    document = dcmread(file)
    del document.ReferencedSeriesSequence
    for group in document.PerFrameFunctionalGroupsSequence:
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
        group.PlanePositionSequence[0].ImagePositionPatient[2] += 0.3
    document.save_as(file)
    assert_equal(read_segmentation(file, stack), labels)


def test_infarcts_may_lie_in_the_myocardium(first):
    """Segments may overlap where one structure is a part of the other."""
    stack, labels, file = first
    document = dcmread(file)
    pixels = document.pixel_array.reshape(5, 4, 16, 12)  # segments in the order of their values
    pixels[1] |= pixels[3] | pixels[4]
    document.PixelData = np.packbits(pixels, bitorder="little").tobytes()
    document.save_as(file)
    np.testing.assert_array_equal(read_segmentation(file, stack)[0], labels)


def segment(label: str, code: tuple[str, str] = ("SCT", "85756007"), meaning: str = "") -> Dataset:
    types = Dataset()
    types.CodingSchemeDesignator, types.CodeValue = code
    types.CodeMeaning = meaning or "Tissue"
    result = Dataset()
    result.SegmentNumber, result.SegmentLabel = 1, label
    result.SegmentedPropertyTypeCodeSequence = Sequence([types])
    return result


@pytest.mark.parametrize(
    ("described", "structure"),
    [
        (segment("left ventricle"), LV),
        (segment("LV blood pool"), LV),
        (segment("LV_endo"), LV),
        (segment("Right Ventricle"), RV),
        (segment("RV"), RV),
        (segment("myocardium"), MYOCARDIUM),
        (segment("left ventricle myocardium"), MYOCARDIUM),
        (segment("LV wall"), MYOCARDIUM),
        (segment("LVM"), MYOCARDIUM),
        (segment("myocardial infarction"), INFARCT),
        (segment("Scar"), INFARCT),
        (segment("no-reflow"), NO_REFLOW),
        (segment("MVO"), NO_REFLOW),
        (segment("Segment_1", ("SCT", "87878005")), LV),
        (segment("Segment_1", ("SRT", "T-32600")), LV),
        (segment("Segment_1", ("99SDM", "T-32500")), RV),
        (segment("Segment_1", ("SCT", "74281007"), "Myocardium"), MYOCARDIUM),
        (segment("Background", ("DCM", "125040")), 0),
    ],
    ids=lambda value: str(getattr(value, "SegmentLabel", value)),
)
def test_structures_are_found_by_code_or_label(described, structure):
    assert find_structures([described]) == {1: structure}


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([segment("Left atrium")], 'segment 1 "Left atrium": remove these segments'),
        ([segment("RV myocardium")], "no structure is known for segment 1"),
        ([segment("LV epicardium", ("SCT", "87878005"))], "no structure is known for segment 1"),
        ([segment("LV myo", ("SCT", "87878005"))], "has the code of lv .* reads as myocardium"),
        ([segment("LV"), segment("left ventricle")], "are both lv"),
    ],
)
def test_doubtful_segments_are_named(segments, message):
    for number, item in enumerate(segments):
        item.SegmentNumber = number + 1
    with pytest.raises(DataError, match=message):
        find_structures(segments)


# ---- faults --------------------------------------------------------------------------------------


def shared(document: Dataset) -> Dataset:
    return document.SharedFunctionalGroupsSequence[0]


def groups(document: Dataset) -> list[Dataset]:
    return list(document.PerFrameFunctionalGroupsSequence)


def make_fractional(document: Dataset) -> None:
    document.SegmentationType = "FRACTIONAL"


def make_small(document: Dataset) -> None:
    document.Rows = 8


def change_frame_of_reference(document: Dataset) -> None:
    document.FrameOfReferenceUID = "1.2.3"


def turn(document: Dataset) -> None:
    shared(document).PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]


def scale(document: Dataset) -> None:
    shared(document).PixelMeasuresSequence[0].PixelSpacing = [1, 1]


def move(document: Dataset) -> None:
    groups(document)[1].PlanePositionSequence[0].ImagePositionPatient[0] += 3


def rename(document: Dataset) -> None:
    types = document.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    types.CodeValue, types.CodeMeaning = "80891009", "Heart"
    document.SegmentSequence[0].SegmentLabel = "Aorta"


def overlap(document: Dataset) -> None:
    document.PixelData = np.full(len(document.PixelData), 255, np.uint8).tobytes()


def refer_elsewhere(document: Dataset) -> None:
    del document.ReferencedSeriesSequence
    for group in groups(document):
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def refer_to_nothing(document: Dataset) -> None:
    del document.ReferencedSeriesSequence
    for group in groups(document):
        del group.DerivationImageSequence


def move_between_slices(document: Dataset) -> None:
    for group in groups(document):
        del group.DerivationImageSequence
        group.PlanePositionSequence[0].ImagePositionPatient[2] += 5


def undescribe(document: Dataset) -> None:
    del document.SegmentSequence[0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (make_fractional, "is of type FRACTIONAL, which has no definite borders; export it as"),
        (make_small, "the masks have 8 × 12 pixels, the images 16 × 12"),
        (change_frame_of_reference, r"another FrameOfReferenceUID \(1.2.3\)"),
        (turn, "frame 1 has another direction of rows and columns"),
        (scale, "frame 1 has pixels of 1 × 1 mm, the images 1.5 × 1.5 mm"),
        (move, r"frame 2 lies 3.0 mm from the image it belongs to \(slice 3\)"),
        (rename, 'no structure is known for segment 1 "Aorta"'),
        (overlap, "phase 0: rv and myocardium overlap in 768 pixels"),
        (refer_elsewhere, "frame 1 refers to images that are not in the stack, so its phase is"),
        (refer_to_nothing, "frame 1 refers to no image, so its phase is unknown"),
        (move_between_slices, "frame 1 lies 5.0 mm from the nearest slice"),
        (undescribe, "frame 1 has segment 1, which the file does not describe"),
    ],
)
def test_masks_that_do_not_fit_are_refused(first, spoil, message):
    stack, _, file = first
    document = dcmread(file)
    spoil(document)
    document.save_as(file)
    with pytest.raises(DataError, match=message) as caught:
        read_segmentation(file, stack)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize(("axis", "what"), [("phase", "5 phases"), ("slice", "4 slices")])
def test_a_frame_of_several_images_is_refused(first, axis, what):
    stack, _, file = first
    document = dcmread(file)
    items = groups(document)[0].DerivationImageSequence[0].SourceImageSequence
    template = items[0]
    places = [(p, 0) for p in range(5)] if axis == "phase" else [(0, s) for s in range(4)]
    items.clear()
    for place in places:
        item = Dataset()
        item.update(template)
        item.ReferencedSOPInstanceUID = dcmread(stack.source(*place)[0]).SOPInstanceUID
        items.append(item)
    document.save_as(file)
    with pytest.raises(DataError, match=f"frame 1 refers to images of {what}"):
        read_segmentation(file, stack)


def test_files_that_are_no_segmentation(first, tmp_path_factory):
    stack, _, file = first
    folder = tmp_path_factory.mktemp("other")
    (folder / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="there is no DICOM segmentation"):
        read_segmentation(folder, stack)
    with pytest.raises(DataError, match="there is no DICOM segmentation"):
        read_segmentation(stack.source(0, 0)[0], stack)
    with pytest.raises(DataError, match="no such file"):
        read_segmentation(folder / "missing", stack)
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(DataError, match=re.escape(str(file))):
        read_segmentation(file.parent, stack)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"FrameOfReferenceUID": None}, "no FrameOfReferenceUID"),
        ({"StudyInstanceUID": None}, "no StudyInstanceUID"),
        ({"ImagePositionPatient": None}, "no position in the patient"),
        ({"SOPInstanceUID": None}, "the header has no SOPInstanceUID"),
    ],
)
def test_images_without_what_a_segmentation_needs(tmp_path, tmp_path_factory, change, message):
    for phase in range(3):
        write_frame(tmp_path, phase=phase, **change)
    stack = one_stack(tmp_path)
    with pytest.raises(DataError, match=message):
        write_segmentation(tmp_path_factory.mktemp("out"), stack, labels_of(stack), ALGORITHM)


def test_label_maps_that_do_not_fit(cine, tmp_path):
    stack = one_stack(cine())
    labels = labels_of(stack)
    for maps, phases, message in (
        (np.zeros_like(labels), None, "the label maps are empty"),
        (labels[:2], None, r"the label maps are \(2, 4, 16, 12\), the images \(5, 4, 16, 12\)"),
        (labels[:1], [7], "only phases 0 to 4"),
        (labels[:2], [1, 1], "a phase is given twice"),
        (labels + 3, None, "the value 8, but structures have 0 to 5"),
    ):
        with pytest.raises(DataError, match=message):
            write_segmentation(tmp_path / "out", stack, maps, ALGORITHM, phases)
    other = Stack("nifti", "SAX", stack.shape, stack.read)
    with pytest.raises(DataError, match="not in DICOM files"):
        write_segmentation(tmp_path / "out", other, labels, ALGORITHM)


def test_invalid_elements_are_left_empty(cine, tmp_path_factory):
    stack = one_stack(cine(change=lambda slice_, phase: {"PatientSex": "W"}))
    (file,) = write_segmentation(
        tmp_path_factory.mktemp("out"), stack, labels_of(stack)[:1], ALGORITHM, [0]
    )
    assert dcmread(file).PatientSex == ""


def test_without_highdicom_the_command_is_named(cine, tmp_path, monkeypatch):
    stack = one_stack(cine())
    monkeypatch.setattr(dicom_source, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="type make install-cmr"):
        write_segmentation(tmp_path / "out", stack, labels_of(stack), ALGORITHM)


@pytest.mark.slow
@pytest.mark.data
def test_a_real_study(real_data, tmp_path):
    """Its slices are series of their own, and lie obliquely."""
    study = read_dicom_study(real_data / "cmr" / "biv_me" / "dicoms")
    stack = study.with_role("SAX")[0]
    labels = np.zeros(stack.shape, dtype=np.uint8)
    random = np.random.default_rng(0)
    labels[:, 1:5, 60:130, 70:150] = random.integers(0, 4, (25, 4, 70, 80))
    chosen = [0, 9, 24]
    write_segmentation(tmp_path, stack, labels[chosen], ALGORITHM, chosen)
    read = read_segmentation(tmp_path, stack)
    assert sorted(read) == chosen
    for phase, maps in read.items():
        np.testing.assert_array_equal(maps, labels[phase])
