"""CMR-VL's demonstration pictures as data sets in LLaMA-Factory's format.

The questions and answers are ours. CMR-VL publishes the pictures and the movie, but no JSON file.
"""

from __future__ import annotations

import json
from pathlib import Path

QUESTIONS = {
    "effusion": ("Is there any effusion present?", "There is a small pericardial effusion."),
    "lge": ("Where is late enhancement seen?", "In the anteroseptal wall, from base to apex."),
    "t2": ("Is the T2 signal raised?", "Yes, in the anterior wall."),
    "thrombus": ("Is there a left ventricular thrombus?", "A thrombus lies at the apex."),
    "ten": ("Do these ten pictures show enhancement or an effusion?", "Both are shown."),
    "motion": ("Is the wall motion coordinated?", "The apex shows reduced motion."),
}  # fmt: skip


def write_cmr_demo(folder: Path, real_data: Path) -> Path:
    """Write `dataset_info.json`, `cmr_train.json`, `cmr_val.json` and `cmr_test.json`.

    Args:
        folder: The dataset_dir to create; media are linked into it.
        real_data: The folder that contains ``cmr/cmr_vl``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = real_data / "cmr/cmr_vl/Demo_Figures"
    (folder / "Demo_Figures").symlink_to(figures)

    def names(kind: str) -> list[str]:
        found = sorted((figures / kind).glob("*.png"))
        return [f"Demo_Figures/{kind}/{path.name}" for path in found]

    images = {
        "effusion": names("Effusion"), "lge": names("LGE_Signals"), "t2": names("T2_Signals"),
        "thrombus": names("Thrombus"), "ten": [*names("LGE_Signals"), *names("Effusion")[:2]],
    }  # fmt: skip
    rows = [row(kind, images.get(kind, []), kind == "motion") for kind in QUESTIONS]
    columns = {"messages": "messages", "images": "images", "videos": "videos"}
    tags = {
        "role_tag": "role", "content_tag": "content", "user_tag": "user",
        "assistant_tag": "assistant",
    }  # fmt: skip
    info = {}
    for split in ("train", "val", "test"):
        (folder / f"cmr_{split}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        info[f"cmr_{split}_sharegpt"] = {
            "file_name": f"cmr_{split}.json", "formatting": "sharegpt", "columns": columns,
            "tags": tags,
        }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
    return folder


def row(kind: str, images: list[str], has_video: bool) -> dict[str, object]:
    """One record with its media."""
    question, answer = QUESTIONS[kind]
    marks = "<image>" * len(images) + "<video>" * has_video
    return {
        "id": kind,
        "messages": [
            {"role": "user", "content": f"{marks}{question}"},
            {"role": "assistant", "content": answer},
        ],
        "images": images,
        "videos": ["Demo_Figures/Motion/motion.mp4"] if has_video else [],
    }
