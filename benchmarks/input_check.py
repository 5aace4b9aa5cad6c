"""Count the input check's false alarms and misses: python benchmarks/input_check.py DATA OUT.

DATA is a folder with the public collections that docs/demo.md names. The script makes 50 pictures:
20 chest radiographs, 10 lateral views and 20 other pictures. It sends them through `predict.py`'s
predictor, through the API, through the demo's reader and through `xraygpt.load_model`, and counts
the pictures with a warning. It also checks all frontal radiographs of two collections. Thresholds
were chosen on other images.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import xraygpt
from xraygpt.common.config import load
from xraygpt.conversation.api import make_app
from xraygpt.conversation.api_schema import ApiLimits
from xraygpt.conversation.api_service import Service
from xraygpt.datasets.input_check import InputCheck
from xraygpt.demo.display import open_image
from xraygpt.evaluation import prediction_file
from xraygpt.evaluation.input_report import check_images
from xraygpt.experiment import Evaluation, build_chat, build_predictor
from xraygpt.media.base import MediaRef
from xraygpt.phantom.render import Study, render

CONFIG = "eval_configs/xraygpt_mini.yaml"
FAST = (
    "run.task.generate.candidates=1",
    "run.task.generate.references=0",
    "run.task.generate.recombine=false",
)
VIEWS = ("frontal",)


def chests(data: Path) -> Iterator[Path]:
    """Yield 20 real frontal radiographs: 8 IU X-ray, 5 NIH, 5 covid-chestxray and 2 CR files."""
    rows = [json.loads(line) for line in (data / "iu_xray/reports.jsonl").open()]
    yield from [_iu(data, r) for r in rows if r["split"] == "val"][::38][:8]
    yield from sorted((data / "nih_cxr14").rglob("*.png"))[::8][:5]
    yield from sorted((data / "cohen_covid/images").iterdir())[::9][:5]
    yield from sorted((data / "dicom").glob("*.dcm"))


def _iu(data: Path, row: dict[str, Any]) -> Path:
    path = data / "iu_xray" / row["image"]
    return path if path.exists() else data / "iu_xray/images" / row["image"]


def laterals(folder: Path) -> Iterator[Path]:
    """Draw 10 SYNTHETIC lateral views, since no real one is at hand."""
    for i in range(10):
        path = folder / f"lateral-{i}.png"
        Image.fromarray(render(Study(f"bench-{i}", [], seed=7), "lateral", 320).pixels).save(path)
        yield path


def others(data: Path, folder: Path) -> Iterator[Path]:
    """Yield 20 pictures that are no frontal chest radiographs."""
    rows = json.loads((data / "vqa_rad/trainset.json").read_text())
    organ = {r["image_name"]: r["image_organ"] for r in rows if not _is_tuning(r["image_name"])}
    for name in ("HEAD", "ABD"):
        files = sorted(n for n, o in organ.items() if o == name)
        yield from [data / "vqa_rad/images" / n for n in files[::12][:4]]
    yield from sorted((data / "cmr/sunnybrook/Images").rglob("*.png"))[5::150][:3]
    yield data / "cmr/dicom/emri_small.dcm"
    yield from sorted((data / "echo/dicom").glob("*.dcm"))[:2]
    yield from _drawn(next(chests(data)), folder)


def _is_tuning(name: str) -> bool:
    """Return whether an image was used to choose thresholds: every second one by its name."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2 == 0


def _drawn(film: Path, folder: Path) -> Iterator[Path]:
    from matplotlib.cbook import get_sample_data

    with get_sample_data("grace_hopper.jpg") as file, Image.open(file) as photograph:
        colour = photograph.convert("RGB").resize((400, 468))
    with Image.open(film) as image:
        grey = image.convert("L")
    noise = np.random.default_rng(3).integers(0, 256, (320, 320))
    pictures = {
        "photograph-colour": colour, "photograph-grey": colour.convert("L"),
        "white": Image.new("L", (320, 320), 255), "noise": Image.fromarray(noise.astype(np.uint8)),
        "negative": Image.fromarray(255 - np.asarray(grey)), "turned": grey.rotate(90),
    }  # fmt: skip
    for name, picture in pictures.items():
        path = folder / f"{name}.png"
        picture.save(path)
        yield path


def through_predict(files: list[Path], out: Path) -> list[list[str]]:
    """Return the warnings in predictions.jsonl."""
    table = out / "pictures.jsonl"
    rows = [{"id": str(i), "image": str(file)} for i, file in enumerate(files)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    experiment = load(Evaluation, CONFIG, FAST)
    predictor = build_predictor(experiment, table, output_dir=out, device="cpu", workers=0)
    start = time.perf_counter()
    predictor.run()
    seconds = (time.perf_counter() - start) / len(files)
    print(f"predict: {seconds:.2f} s per picture with a single greedy draw")
    stored = prediction_file.read(predictor.folder / "predictions.jsonl")
    return [stored[str(i)].warnings for i in range(len(files))]


def through_api(files: list[Path]) -> list[list[str]]:
    """Return the field `warnings` of the responses."""
    from fastapi.testclient import TestClient

    parts = build_chat(load(Evaluation, CONFIG, FAST), "cpu")
    service = Service(
        parts.engine, parts.read_media, "mini", parts.generation, ApiLimits(), "", parts.facts
    )
    found = []
    with TestClient(make_app(service)) as client:
        for file in files:
            url = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
            image = {"type": "image_url", "image_url": {"url": url}}
            body = {"messages": [{"role": "user", "content": [image]}], "max_tokens": 2}
            found.append(client.post("/v1/chat/completions", json=body).json()["warnings"])
    return found


def through_python(files: list[Path]) -> list[list[str]]:
    """Return the warnings that `LoadedModel.read` attaches."""
    model = xraygpt.load_model(CONFIG, FAST, device="cpu")
    return [list(model.read(file).warnings) for file in files]


def whole_collections(data: Path) -> None:
    """Print the false alarms of all frontal radiographs of two collections."""
    rows = [json.loads(line) for line in (data / "iu_xray/reports.jsonl").open()]
    sets = {
        "IU X-ray, validation": [_iu(data, r) for r in rows if r["split"] == "val"],
        "NIH ChestX-ray14": sorted((data / "nih_cxr14").rglob("*.png")),
        "covid-chestxray": sorted((data / "cohen_covid/images").iterdir()),
    }
    for name, files in sets.items():
        start = time.perf_counter()
        checked = check_images([MediaRef(f) for f in files], InputCheck(VIEWS))
        seconds = time.perf_counter() - start
        alarms = Counter(w for warnings in checked.values() for w in warnings)
        count = sum(map(bool, checked.values()))
        print(f"{name}: {count} of {len(checked)}, {seconds / len(checked) * 1e3:.1f} ms each")
        print(f"  {dict(alarms)}")


def main() -> None:
    """Run the measurement and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    groups = {
        "chests": list(chests(args.data)),
        "laterals": list(laterals(args.out)),
        "others": list(others(args.data, args.out)),
    }
    files = [file for group in groups.values() for file in group]
    entries: dict[str, Callable[[], list[list[str]]]] = {
        "demo": lambda: [open_image(f, InputCheck(VIEWS)).warnings for f in files],
        "python": lambda: through_python(files),
        "predict": lambda: through_predict(files, args.out),
        "api": lambda: through_api(files),
    }
    whole_collections(args.data)
    for name, run in entries.items():
        warnings, start = run(), 0
        for group, members in groups.items():
            part = warnings[start : start + len(members)]
            start += len(members)
            missed = [f.name for f, w in zip(members, part, strict=True) if not w]
            print(f"{name}: {group}: {sum(map(bool, part))} of {len(members)} with a warning")
            print(f"  without: {missed if group != 'chests' else len(missed)}")
            kinds = Counter(w for warnings_of in part for w in warnings_of)
            print(f"  {dict(kinds)}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
