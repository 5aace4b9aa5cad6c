"""Made-up folders in the exact shape of the collections; no word or number is from a real one."""

from __future__ import annotations

import json
from pathlib import Path

from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.records import ImageRecord
from xraygpt.instructions.tables import Tables

CHEXPERT = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
    "Support Devices"
)
MIMIC_LABELS = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)


def cells(names: str, **values: str) -> str:
    """Return the cells of a row: ``Edema="1.0"``, with _ for spaces."""
    given = {name.replace("_", " "): value for name, value in values.items()}
    assert set(given) <= set(names.split(","))
    return ",".join(given.get(name, "") for name in names.split(","))


def read(collection: Collection) -> tuple[dict[str, ImageRecord], list[tuple]]:
    """Return the records by image, and the remarks as (kind, text, rows, example)."""
    with Tables(":memory:") as tables:
        collection.build(tables)
        records = {record.image.image_id: record for record in collection.records(tables)}
        remarks = [(r.kind, r.text, r.rows, r.example) for r in collection.remarks(tables)]
    return records, remarks


def write_mimic(folder: Path) -> Path:
    """Write MIMIC-CXR-JPG: four studies of three patients; study 13 has no report."""
    folder.mkdir(parents=True)
    rows = [  # image, patient, study, view, split
        ("d1", "10000001", "11", "PA", "train"), ("d2", "10000001", "11", "LL", "train"),
        ("d3", "10000001", "12", "AP", "train"), ("d4", "10000002", "13", "PA", "validate"),
        ("d5", "20000003", "14", "AP", "test"), ("d6", "20000003", "15", "PA", ""),
        ("d7", "20000003", "14", "SWIMMERS", "test"),
    ]  # fmt: skip
    (folder / "mimic-cxr-2.0.0-metadata.csv").write_text(
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns\n"
        + "".join(f"{d},{p},{s},x,{v},2000,1000\n" for d, p, s, v, _ in rows)
    )
    (folder / "mimic-cxr-2.0.0-split.csv").write_text(
        "dicom_id,study_id,subject_id,split\n"
        + "".join(f"{d},{s},{p},{split}\n" for d, p, s, _, split in rows if split)
        + "d8,16,20000004,train\n"
    )
    labels = [
        ("10000001", "11", {"Edema": "1.0"}),
        ("10000001", "12", {"Edema": "-1.0", "Fracture": "0.0"}),
        ("10000002", "13", {"No_Finding": "1.0"}), ("20000003", "14", {"Pneumonia": "1.0"}),
    ]  # fmt: skip
    (folder / "mimic-cxr-2.0.0-chexpert.csv").write_text(
        f"subject_id,study_id,{MIMIC_LABELS}\n"
        + "".join(f"{p},{s},{cells(MIMIC_LABELS, **v)}\n" for p, s, v in labels)
    )
    (folder / "reports.csv").write_text(
        'study,findings,impression,last_paragraph\ns11,"Made-up line one.\nLine two.",Odd.,\n'
        "s12,,Only an impression.,\ns14,,,Only a last paragraph.\n"
    )
    (folder / "genders.json").write_text('{"d1": "F", "d5": "M"}')
    return folder


def write_chexpert(folder: Path) -> Path:
    """Write CheXpert: patient 1 has two studies, the first of which leaves edema empty."""
    folder.mkdir(parents=True)
    head = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{CHEXPERT}\n"
    prefix = "CheXpert-v1.0-small/"

    def row(path: str, sex: str, view: str, **values: str) -> str:
        side = "Frontal" if view else "Lateral"
        return f"{prefix}{path},{sex},50,{side},{view},{cells(CHEXPERT, **values)}\n"

    (folder / "train.csv").write_text(
        head
        + row("train/patient00001/study1/view1_frontal.jpg", "Female", "AP", Fracture="1.0")
        + row(
            "train/patient00001/study2/view1_frontal.jpg",
            "Female",
            "PA",
            Edema="1.0",
            Lung_Opacity="0.0",
        )
        + row(
            "train/patient00001/study2/view2_lateral.jpg",
            "Female",
            "",
            Edema="1.0",
            Lung_Opacity="0.0",
        )
        + row(
            "train/patient00002/study1/view1_frontal.jpg",
            "Male",
            "AP",
            No_Finding="1.0",
            Support_Devices="1.0",
        )
        + row(
            "train/patient00003/study1/view1_frontal.jpg",
            "Male",
            "AP",
            No_Finding="1.0",
            Pneumonia="1.0",
        )
        + row("train/patient00004/study1/view1_frontal.jpg", "Male", "AP", Pneumonia="-1.0")
    )
    (folder / "valid.csv").write_text(
        head + row("valid/patient64541/study1/view1_frontal.jpg", "Male", "AP", Edema="0.0")
    )
    return folder


def write_chexpert_plus(folder: Path) -> Path:
    """Write CheXpert Plus with CheXbert's labels."""
    (folder / "chexbert_labels").mkdir(parents=True)
    (folder / "df_chexpert_plus_240401.csv").write_text(
        "path_to_image,frontal_lateral,ap_pa,deid_patient_id,sex,split,section_findings,"
        "section_impression,section_end_of_impression\n"
        "train/patient00001/study1/view1_frontal.jpg,Frontal,AP,p1,Female,train,"
        '"Made-up ICD line.\nLine two.",Odd IMPRESSION.,\n'
        "train/patient00005/study1/view1_frontal.jpg,Frontal,PA,p5,Male,train,,,\n"
        "valid/patient64541/study1/view1_frontal.jpg,Frontal,AP,p6,Male,valid,,Fine.,\n"
        "train/patient00007/study1/view1_frontal.jpg,Frontal,AP,p7,Male,trein,,Fine.,\n"
    )
    lines = [
        {"path_to_image": "train/patient00001/study1/view1_frontal.jpg", "Edema": 1.0,
         "No Finding": None},
        {"path_to_image": "valid/patient64541/study1/view1_frontal.jpg", "No Finding": 1.0},
    ]  # fmt: skip
    (folder / "chexbert_labels/report_fixed.json").write_text("\n".join(map(json.dumps, lines)))
    return folder


def write_imagenome(folder: Path) -> Path:
    """Write Chest ImaGenome over the images of `write_mimic`; d3 has no graph, d1 a bad region."""
    graphs = folder / "silver_dataset/scene_graph"
    splits = folder / "silver_dataset/splits"
    graphs.mkdir(parents=True)
    splits.mkdir()
    for name, ids in (("train", ["d1", "d3"]), ("valid", ["d4"]), ("test", ["d5", "d2", "gone"])):
        rows = "".join(f"{i},{d},p,s,PA\n" for i, d in enumerate(ids))
        (splits / f"{name}.csv").write_text(",dicom_id,subject_id,study_id,ViewPosition\n" + rows)

    def region(name: str, *corners: float) -> dict:
        keys = ("original_x1", "original_y1", "original_x2", "original_y2")
        return {"bbox_name": name, "x1": 1, **dict(zip(keys, corners, strict=True))}

    regions = {
        "d1": [region("right lung", 100, 200, 400, 1000), region("spine", 300, 10, 300, 90),
               region("abdomen", 0, 1500, 3000, 1900)],
        "d4": [region("right lung", -100, 0, 500, 1000)],
        "d5": [region("trachea", 450, 0, 550, 400), region("left lung", 500, 200, 1000, 1600)],
        "d2": [region("spine", 400, 0, 500, 2000)],
    }  # fmt: skip
    for image, objects in regions.items():
        content = {"image_id": image, "viewpoint": "PA", "gender": "F", "objects": objects}
        (graphs / f"{image}_SceneGraph.json").write_text(json.dumps(content))
    (graphs / "broken_SceneGraph.json").write_text("{")
    return folder


def write_ms_cxr(folder: Path, *, with_split: bool = False) -> Path:
    """Write MS-CXR over the images of `write_mimic`."""
    folder.mkdir(parents=True)
    rows = [
        ("d1", "Made-up left effusion", 100, 200, 300, 400),
        ("d1", "Made-up left effusion", 600, 200, 100, 400),
        ("d1", "Another phrase", 0, 0, 1000, 2000), ("d4", "Third phrase", 10, 10, 20, 20),
        ("d5", "Leaves the image", 900, 10, 300, 20), ("d5", "Fourth phrase", 500, 1000, 100, 100),
        ("zz", "Unknown image", 10, 10, 20, 20),
    ]  # fmt: skip
    split = ",split" if with_split else ""
    (folder / "MS_CXR_Local_Alignment_v1.0.0.csv").write_text(
        f"category_name,label_text,path,x,y,w,h,image_width,image_height,dicom_id{split}\n"
        + "".join(
            f"C,{phrase},p,{x},{y},{w},{h},1000,2000,{d}{',test' if with_split else ''}\n"
            for d, phrase, x, y, w, h in rows
        )
    )
    return folder


def write_padchest_gr(folder: Path) -> Path:
    """Write PadChest-GR: a second projection, excluded images, one in two splits, odd sentences."""
    (folder / "images_grounding").mkdir(parents=True)
    (folder / "master_table.csv").write_text(
        "StudyID,ImageID,PatientID,split,label,PatientSex_DICOM\n"
        "st1,a.png,pa,train,x,F\nst1,a.png,pa,train,y,F\nst2,b.png,pb,validation,x,M\n"
        "st3,c.png,pc,test,x,\nst4,e.png,pe,train,x,F\nst5,f.png,pf,train,x,F\n"
        "st6,g.png,,train,x,F\nst7,h.png,ph,train,x,F\nst7,h.png,ph,test,y,F\n"
    )
    (folder / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv").write_text(
        ",ImageID,StudyID,PatientID,Projection,Rows_DICOM,Columns_DICOM,Report,Labels\n"
        "0,a.png,st1,pa,PA,2000,1000,texto,\"['nodule', ' nodule', '', 'pleural effusion ']\"\n"
        "1,b.png,st2,pb,AP,2000,1000,texto,\"['normal']\"\n"
        "2,c.png,st3,pc,L,2000,1000,texto,\"['unchanged']\"\n"
        "3,e.png,st4,pe,PA,2000,1000,texto,\"['nodule', ' exclude']\"\n"
        "4,f.png,st5,pf,PA,2000,1000,texto,\"['suboptimal study ']\"\n"
        "5,g.png,st6,,PA,2000,1000,texto,\"['normal']\"\n"
        "6,h.png,st7,ph,PA,2000,1000,texto,\"['normal']\"\n"
    )
    reports = [
        {"ImageID": "a.png", "findings": [
            {"sentence_en": "Made-up nodule.", "sentence_es": "x",
             "boxes": [[0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.6, 0.4]]},
            {"sentence_en": "No effusion.", "boxes": []},
            {"sentence_en": "A bad box.", "boxes": [[0.5, 0.2, 1.6, 0.4]]},
        ]},
        {"ImageID": "b.png", "findings": [{"sentence_en": "Normal.", "boxes": []}]},
        {"ImageID": "g.png", "findings": [
            {"sentence_en": "Made-up shadow.", "boxes": [[0.1, 0.2, 0.3, 0.4]]}]},
    ]  # fmt: skip
    (folder / "grounded_reports_20240819.json").write_text(json.dumps(reports))
    return folder
