"""Credentialed collections, on made-up folders in their exact shape."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.instructions import trees
from tests.instructions.trees import read
from xraygpt.common.errors import DataError
from xraygpt.instructions.collections.chest_imagenome import ChestImaGenome
from xraygpt.instructions.collections.chexpert import CheXpert
from xraygpt.instructions.collections.chexpert_plus import CheXpertPlus
from xraygpt.instructions.collections.labels import with_parents
from xraygpt.instructions.collections.mimic_cxr import MimicCXR
from xraygpt.instructions.collections.ms_cxr import MsCXR
from xraygpt.instructions.collections.padchest_gr import PadChestGR, read_names
from xraygpt.instructions.collections.radvlm_set import RadVLMSet
from xraygpt.instructions.tables import Tables


@pytest.fixture
def mimic(tmp_path) -> Path:
    return trees.write_mimic(tmp_path / "MIMIC-CXR-JPG")


def positive(record) -> set[str]:
    return {name for name, value in record.labels.items() if value == "positive"}


# ---- MIMIC-CXR -----------------------------------------------------------------------------------


def test_mimic_images_have_their_path_split_view_and_size(mimic):
    records, remarks = read(MimicCXR(MimicCXR.Config(root=mimic)))
    assert list(records) == ["d1", "d2", "d3", "d4", "d5", "d7"]
    image = records["d1"].image
    assert image.path == "files/p10/p10000001/s11/d1.jpg"
    assert (image.patient_id, image.study_id, image.split) == ("mimic/10000001", "11", "train")
    assert (image.view, image.sex, image.width, image.height) == ("PA", "F", 1000, 2000)
    assert records["d2"].image.view == "LATERAL" and records["d4"].image.split == "val"
    assert ("lost", "images of the metadata without a split", 1, "d6") in remarks
    assert ("lost", "images of the split that the metadata do not have", 1, "d8") in remarks
    assert records["d7"].image.view == "", "neither frontal nor lateral"
    text = "images whose view is unknown or neither frontal nor lateral"
    assert ("note", text, 1, "d7") in remarks


def test_mimic_reports_are_findings_else_impression_else_the_last_paragraph(mimic):
    records, remarks = read(MimicCXR(MimicCXR.Config(root=mimic)))
    assert records["d1"].report == "Made-up line one.\nLine two."
    assert records["d3"].report == "Only an impression."
    assert records["d5"].report == "Only a last paragraph."
    assert ("missing", "images without a report", 1, "d4") in remarks


def test_an_image_without_a_report_keeps_its_labels(mimic):
    """RadVLM drops it from classification, too (fault 19)."""
    records, _ = read(MimicCXR(MimicCXR.Config(root=mimic)))
    assert records["d4"].report == "" and records["d4"].healthy


def test_labels_belong_to_the_study_and_extend_to_what_includes_them(mimic):
    records, remarks = read(MimicCXR(MimicCXR.Config(root=mimic)))
    assert positive(records["d1"]) == {"Edema", "Lung Opacity"} == positive(records["d2"])
    assert records["d3"].labels == {"Edema": "uncertain", "Fracture": "negative"}
    assert positive(records["d5"]) == {"Pneumonia", "Consolidation", "Lung Opacity"}
    text = "Lung Opacity empty beside a positive finding that it includes"
    assert ("repaired", text, 2, "11") in remarks


def test_mimic_reports_may_be_the_official_files_in_tables_that_are_compressed(mimic):
    import gzip

    (mimic / "reports.csv").unlink()
    for path in mimic.glob("*.csv"):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    folder = mimic / "mimic-cxr-reports/files/p10/p10000001"
    folder.mkdir(parents=True)
    (folder / "s11.txt").write_text(
        "FINAL REPORT\n FINDINGS:\n Made up\n text.\n\n IMPRESSION: Odd.\n"
    )
    records, _ = read(MimicCXR(MimicCXR.Config(root=mimic)))
    assert records["d1"].report == "Made up text." and records["d3"].report == ""


def test_filtered_reports_replace_reports_and_a_study_without_one_has_none(mimic, tmp_path):
    """RadVLM's own filter needed its output before it could start (fault 3)."""
    folder = tmp_path / "filtered"
    folder.mkdir()
    (folder / "11.txt").write_text("None of this is real.\nFiltered.")
    config = MimicCXR.Config(root=mimic, filtered_reports=folder)
    records, _ = read(MimicCXR(config))
    assert records["d1"].report == "None of this is real.\nFiltered.", "'None of' is no refusal"
    assert records["d3"].report == "" and positive(records["d3"]) == set()
    lines = tmp_path / "filtered_reports.jsonl"
    lines.write_text('{"study_id": "12", "text": "Ours."}\n')
    records, _ = read(MimicCXR(MimicCXR.Config(root=mimic, filtered_reports=lines)))
    assert records["d1"].report == "" and records["d3"].report == "Ours."
    (folder / "11.txt").rename(folder / "s11.txt")
    with pytest.raises(DataError, match=r"none of the filtered reports .* '11' .* found 's11'"):
        read(MimicCXR(config))
    (folder / "12.txt").write_text("Another.")
    _, remarks = read(MimicCXR(config))
    assert ("lost", "filtered reports that belong to no image", 1, "s11") in remarks
    with pytest.raises(DataError, match=r"there is no .*gone"):
        MimicCXR(MimicCXR.Config(root=mimic, filtered_reports=tmp_path / "gone"))._stored()


def test_stored_conversations_are_joined_by_image_and_damaged_ones_are_named(mimic, tmp_path):
    """With RadVLM, a conversation gets the labels of another image (fault 7)."""
    folder = tmp_path / "standard"
    folder.mkdir()
    turns = [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "A."}]
    (folder / "d3.json").write_text(json.dumps(turns))
    (folder / "d1.json").write_text(json.dumps(turns[::-1]))
    (folder / "d5.json").write_text("{")
    ours = tmp_path / "conversations.jsonl"
    ours.write_text(json.dumps({"image_id": "d4", "kind": "grounding", "turns": turns}) + "\n")
    config = MimicCXR.Config(root=mimic, conversations={"standard": folder, "grounding": ours})
    records, remarks = read(MimicCXR(config))
    found = {k: r.conversations for k, r in records.items() if r.conversations}
    assert found == {
        "d3": {"standard": (("Q?", "A."),)}, "d4": {"grounding": (("Q?", "A."),)}
    }  # fmt: skip
    assert records["d3"].labels["Edema"] == "uncertain", "its own labels"
    text = "conversations that do not alternate between human and gpt"
    assert ("lost", text, 2, str(folder / "d1.json")) in remarks


def test_missing_tables_and_columns_are_named(mimic):
    (mimic / "mimic-cxr-2.0.0-split.csv").write_text("dicom_id,study_id\n")
    with pytest.raises(DataError, match="there is no column 'split'"):
        read(MimicCXR(MimicCXR.Config(root=mimic)))
    (mimic / "mimic-cxr-2.0.0-split.csv").unlink()
    with pytest.raises(DataError, match=r"there is no mimic-cxr-2.0.0-split.csv or mimic-cxr-2"):
        read(MimicCXR(MimicCXR.Config(root=mimic)))


def test_damaged_values_are_named_without_a_traceback(mimic, tmp_path):
    path = mimic / "mimic-cxr-2.0.0-chexpert.csv"
    path.write_text(path.read_text().replace("1.0", "yes", 1))
    with pytest.raises(
        DataError, match=r"image d1 has an unexpected value \(.*the label Edema is 'yes', not 1"
    ):
        read(MimicCXR(MimicCXR.Config(root=mimic)))
    (mimic / "genders.json").write_text('["F"]')
    with pytest.raises(DataError, match="mimic_cxr: a file has an unexpected value"):
        MimicCXR(MimicCXR.Config(root=mimic)).database(tmp_path / "work")
    assert not list((tmp_path / "work").iterdir()), "nothing half-built is left"


# ---- CheXpert ------------------------------------------------------------------------------------


def test_an_empty_label_stays_empty_when_another_study_of_the_patient_is_positive(tmp_path):
    """A widely used loader fills it: 38 % of its rows carry a label of another study."""
    root = trees.write_chexpert(tmp_path / "CheXpert")
    records, remarks = read(CheXpert(CheXpert.Config(root=root)))
    first = records["train/patient00001/study1/view1_frontal.jpg"]
    second = records["train/patient00001/study2/view1_frontal.jpg"]
    assert first.labels == {"Fracture": "positive"}
    assert positive(second) == {"Edema", "Lung Opacity"}
    text = "Lung Opacity negative beside a positive finding that it includes (train)"
    assert [r[2] for r in remarks if r[1] == text] == [2]


def test_chexpert_images_patients_views_and_healthy_studies(tmp_path):
    root = trees.write_chexpert(tmp_path / "CheXpert")
    records, _ = read(CheXpert(CheXpert.Config(root=root)))
    images = [record.image for record in records.values()]
    assert [i.view for i in images] == ["AP", "PA", "LATERAL", "AP", "AP", "AP", "AP"]
    assert [i.patient_id for i in images][:4] == [f"chexpert/patient0000{n}" for n in (1, 1, 1, 2)]
    assert images[1].study_id == images[2].study_id == "train/patient00001/study2"
    assert images[-1].split == "val" and images[0].sex == "F"
    healthy = {k.split("/")[1] for k, r in records.items() if r.healthy}
    assert healthy == {"patient00002"}, "devices are no finding; pneumonia contradicts No Finding"


def test_the_hierarchy_reaches_over_two_steps():
    assert with_parents({"Pneumonia": "positive", "Lung Opacity": "negative"}) == {
        "Pneumonia": "positive", "Consolidation": "positive", "Lung Opacity": "positive"
    }  # fmt: skip
    assert with_parents({"Pneumonia": "uncertain"}) == {"Pneumonia": "uncertain"}


def test_the_true_table_of_chexpert_at_full_size():
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None:
        pytest.skip("torchxrayvision is not installed")
    table = Path(spec.origin).parent / "data" / "chexpert_train.csv.gz"
    collection = CheXpert(CheXpert.Config(table=table))
    counts: Counter[str] = Counter()
    with Tables(":memory:") as tables:
        collection.build(tables)
        counts["images"] = collection.count(tables)
        counts["patients"] = tables.value("SELECT count(DISTINCT patient_id) FROM images")
        remarks = {r.text: r.rows for r in collection.remarks(tables)}
        for record in collection.records(tables, 1, 5001):
            counts["edema"] += record.labels.get("Edema") == "positive"
    assert counts["images"] == 223_414 and counts["patients"] == 64_540
    assert 0 < counts["edema"] < 5000
    assert (
        remarks["Lung Opacity negative beside a positive finding that it includes (train)"] == 1040
    )


# ---- CheXpert Plus -------------------------------------------------------------------------------


def test_sections_are_joined_by_a_space_and_keep_their_capitals(tmp_path):
    """RadVLM glues them and lower-cases the text (fault 12)."""
    root = trees.write_chexpert_plus(tmp_path / "CheXpert-Plus")
    records, remarks = read(CheXpertPlus(CheXpertPlus.Config(root=root)))
    first = records["train/patient00001/study1/view1_frontal.jpg"]
    assert first.report == "Made-up ICD line.\nLine two. Odd IMPRESSION."
    assert positive(first) == {"Edema", "Lung Opacity"}
    assert first.image.patient_id == "chexpert/patient00001", "shared with CheXpert"
    valid = records["valid/patient64541/study1/view1_frontal.jpg"]
    assert valid.image.split == "val" and valid.healthy
    assert (
        "lost",
        "rows with an unknown split",
        1,
        "train/patient00007/study1/view1_frontal.jpg",
    ) in remarks
    assert ("missing", "images without findings and impression", 1,
            "train/patient00005/study1/view1_frontal.jpg") in remarks  # fmt: skip


def test_filtered_reports_of_chexpert_plus_have_radvlms_names(tmp_path):
    root = trees.write_chexpert_plus(tmp_path / "CheXpert-Plus")
    folder = root / "filtered_reports"
    folder.mkdir()
    (folder / "train_patient00001_study1.txt").write_text("Filtered.")
    records, _ = read(CheXpertPlus(CheXpertPlus.Config(root=root, filtered_reports=folder)))
    assert [r.report for r in records.values()] == ["Filtered.", "", ""]


# ---- Chest ImaGenome -----------------------------------------------------------------------------


def test_the_test_split_is_imagenomes_own_and_differences_are_noted(mimic, tmp_path):
    """RadVLM tests on images of MIMIC's train split, which its other tasks train on (fault 8)."""
    root = trees.write_imagenome(tmp_path / "CHEST_IMA")
    config = ChestImaGenome.Config(root=root, mimic=mimic)
    records, remarks = read(ChestImaGenome(config))
    assert {k: r.image.split for k, r in records.items()} == {
        "d1": "train", "d3": "train", "d4": "val", "d5": "test", "d2": "test"
    }  # fmt: skip
    assert ("note", "images whose split in MIMIC-CXR is another one", 1, "d2") in remarks
    lost = "images of test.csv that MIMIC-CXR's metadata do not have"
    assert ("lost", lost, 1, "gone") in remarks
    assert records["d2"].image.patient_id == records["d1"].image.patient_id == "mimic/10000001"


def test_regions_are_normalised_by_the_size_in_mimics_metadata(mimic, tmp_path):
    root = trees.write_imagenome(tmp_path / "CHEST_IMA")
    records, remarks = read(ChestImaGenome(ChestImaGenome.Config(root=root, mimic=mimic)))
    (region,) = records["d1"].regions
    assert (region.text, region.boxes) == ("right lung", (pytest.approx((0.1, 0.1, 0.4, 0.5)),))
    assert [r.text for r in records["d5"].regions] == ["trachea", "left lung"]
    assert {r[1]: r[2] for r in remarks if r[0] != "note"}.items() >= {
        "empty regions": 1, "regions of which less than half is in their image": 1,
        "regions that were cut at the border of their image": 1,
        "images without a scene graph": 1, "damaged scene graphs": 1,
    }.items()  # fmt: skip
    assert records["d4"].regions[0].boxes == ((0, 0, 0.5, 0.5),)
    assert records["d3"].regions == ()
    assert records["d1"].image.sex == "F" and "Edema" in records["d1"].labels
    assert records["d1"].report.startswith("Made-up line one.")
    assert not list(root.rglob("missing_ids.json")), "nothing is written into the collection"


def test_a_split_of_imagenome_may_be_missing(mimic, tmp_path):
    root = trees.write_imagenome(tmp_path / "CHEST_IMA")
    splits = root / "silver_dataset/splits"
    (splits / "train.csv").unlink()
    records, remarks = read(ChestImaGenome(ChestImaGenome.Config(root=root, mimic=mimic)))
    assert {r.image.split for r in records.values()} == {"val", "test"}
    assert ("missing", "files of splits that do not exist", 1, "train.csv") in remarks
    for path in splits.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"there is no train.csv, valid.csv or test.csv in"):
        read(ChestImaGenome(ChestImaGenome.Config(root=root, mimic=mimic)))


# ---- MS-CXR --------------------------------------------------------------------------------------


def test_a_phrase_has_all_its_boxes(mimic, tmp_path):
    root = trees.write_ms_cxr(tmp_path / "MS-CXR")
    records, remarks = read(MsCXR(MsCXR.Config(root=root, mimic=mimic)))
    first, second = records["d1"].phrases
    assert first.text == "Made-up left effusion" and first.boxes == (
        pytest.approx((0.1, 0.1, 0.4, 0.3)), pytest.approx((0.6, 0.1, 0.7, 0.3))
    )  # fmt: skip
    assert second.boxes == ((0, 0, 1, 1),)
    assert {k: r.image.split for k, r in records.items()} == {
        "d1": "train",
        "d4": "val",
        "d5": "test",
    }
    assert [p.text for p in records["d5"].phrases] == ["Fourth phrase"]
    assert records["d1"].report.startswith("Made-up line one."), "MIMIC-CXR's, for conversations"
    assert positive(records["d1"]) == {"Edema", "Lung Opacity"}
    assert not records["d4"].healthy, "labelled as without finding, but a phrase has a box"
    assert ("lost", "images with phrases that MIMIC-CXR's metadata do not have", 1, "zz") in remarks
    assert [r[2] for r in remarks if r[1] == "boxes that are empty or leave their image"] == [1]


def test_a_newer_release_has_its_own_split_and_radvlms_files_are_read(mimic, tmp_path):
    root = trees.write_ms_cxr(tmp_path / "new", with_split=True)
    records, _ = read(MsCXR(MsCXR.Config(root=root, mimic=mimic)))
    assert {r.image.split for r in records.values()} == {"test"}
    for name in ("sentences_BBox_mscxr", "sentences_and_BBox_mscxr"):
        folder = tmp_path / f"by-product {name}" / name
        folder.mkdir(parents=True)
        rows = [
            {"observation": "P", "box": [0.1, 0.1, 0.4, 0.3]},
            {"observation": "P", "box": [0.6, 0.1, 0.7, 0.3]},
        ]
        (folder / "d1.json").write_text(json.dumps(rows))
        (folder / "d4.json").write_text('[{"observation": "P"}]')
        records, remarks = read(MsCXR(MsCXR.Config(root=folder.parent, mimic=mimic)))
        assert list(records) == ["d1"] and len(records["d1"].phrases[0].boxes) == 2
        assert [(r[1], r[2]) for r in remarks if r[0] == "lost"][1:] == [
            ("damaged files or boxes", 1)
        ]


# ---- PadChest-GR ---------------------------------------------------------------------------------


def test_padchest_sentences_keep_zero_to_many_boxes(tmp_path):
    root = trees.write_padchest_gr(tmp_path / "PadChest-GR")
    collection = PadChestGR(PadChestGR.Config(root=root))
    records, remarks = read(collection)
    assert list(records) == ["a.png", "b.png", "g.png"]
    phrases = records["a.png"].phrases
    assert [(p.text, len(p.boxes)) for p in phrases] == [
        ("Made-up nodule.", 2),
        ("No effusion.", 0),
    ]
    assert records["a.png"].report == "Made-up nodule. No effusion."
    assert positive(records["a.png"]) == {"nodule", "pleural effusion"}
    assert records["b.png"].healthy and records["b.png"].image.split == "val"
    assert (
        records["a.png"].image.width == 1000 and records["a.png"].image.patient_id == "padchest/pa"
    )
    found = {text: rows for _, text, rows, _ in remarks}
    assert found == {
        "boxes that are empty or leave their image": 1, "images of another projection": 1,
        "images that PadChest excludes": 2, "images that the table puts into two splits": 1,
        "images without a report": 4,
        "images without a patient, so that overlaps cannot be seen": 1,
    }  # fmt: skip
    assert not records["g.png"].healthy, "labelled normal, but a sentence has a box"
    assert collection.image_folder() == root / "images_grounding"


def test_padchest_labels_are_stripped_and_unknown_is_not_healthy():
    assert read_names("['nodule', ' nodule', '', 'pleural effusion ']") == [
        "nodule",
        "pleural effusion",
    ]
    assert read_names("['a (b, c)', ' exclude']") == ["a (b, c)", "exclude"]
    assert read_names("nan") == [] and read_names("nodule, 'mass ") == ["nodule", "mass"]
    assert read_names("") == [] and read_names("['normal']") == ["normal"]


# ---- A finished set ------------------------------------------------------------------------------


def test_a_finished_set_of_radvlm_is_read(tmp_path):
    turns = [
        {"from": "human", "value": "<image>\nWhere?"},
        {"from": "gpt", "value": "[0.1, 0.2, 0.3, 0.4]"},
    ]
    rows = [
        {"image": "/x/a.jpg", "conversations": turns, "id": "r_0", "labels": ["Edema"],
         "pathologies": ["Edema", "Fracture"]},
        {"image": "/x/a.jpg", "conversations": turns * 2, "id": "r_1"},
        {"image": "/x/b.jpg", "conversations": turns[:1], "id": "r_2"},
    ]  # fmt: skip
    (tmp_path / "all_train.json").write_text(json.dumps(rows))
    records, remarks = read(RadVLMSet(RadVLMSet.Config(root=tmp_path)))
    assert list(records) == ["r_0", "r_1"]
    assert records["r_0"].labels == {"Edema": "positive", "Fracture": "negative"}
    assert records["r_0"].conversations == {"stored": (("Where?", "[0.1, 0.2, 0.3, 0.4]"),)}
    assert len(records["r_1"].conversations["stored"]) == 2
    assert remarks[0][2:] == (1, "item 2")


def test_patients_and_repeated_ids_of_a_finished_set(tmp_path):
    turns = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
    images = (
        "MIMIC-CXR-JPG/files/p10/p10000001/s50000001/x.jpg",
        "/data/CheXpert/train/patient00007/study1/view1_frontal.jpg",
        "VinDr-CXR/train_jpg/0123456789abcdef0123456789abcdef.jpg",
        "PadChest/1_2.png",
    )
    rows = [{"image": image, "conversations": turns, "id": "same"} for image in images]
    (tmp_path / "all_train.json").write_text(json.dumps(rows))
    records, remarks = read(RadVLMSet(RadVLMSet.Config(root=tmp_path)))
    assert {name: r.image.patient_id for name, r in records.items()} == {
        "same": "mimic/10000001", "same#2": "chexpert/patient00007",
        "same#3": "vindr/0123456789abcdef0123456789abcdef", "same#4": f"radvlm_set/{images[3]}",
    }  # fmt: skip
    assert (
        "repaired",
        "items whose id another item has, which were numbered",
        3,
        "same",
    ) in remarks
    text = "images whose path does not name a patient, so that overlaps cannot be seen"
    assert ("missing", text, 1, images[3]) in remarks
