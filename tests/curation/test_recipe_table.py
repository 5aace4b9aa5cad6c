"""The table of the IU X-ray recipes, from the XML reports and from Kaggle's tables."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.curation.test_sources import XML
from xraygpt import curate
from xraygpt.common.errors import DataError, InputError
from xraygpt.curation.recipe_table import read_r2gen_splits, write_recipe_table
from xraygpt.curation.select import Filters, read_corpus
from xraygpt.datasets.records import RecordsBuilder
from xraygpt.datasets.splits import SplitRule
from xraygpt.datasets.table_fields import FieldMap
from xraygpt.experiment import NO_IMAGES
from xraygpt.vocabulary.openi import (
    lockbox_studies,
    published_split,
    published_test_studies,
    published_train_studies,
    published_val_studies,
)

STUDIES = {
    "train": min(published_train_studies()), "val": min(published_val_studies()),
    "test": min(published_test_studies()), "lockbox": min(lockbox_studies()),
    "extra": "CXR90001",
}  # fmt: skip
MESH = "<MeSH><major>Cardiomegaly/mild</major><major>Opacity/lung </major><automatic>x</automatic>"
VIEWS = {"3001": "Lateral", "4001": "Frontal"}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """One study of each split, as XML and as Kaggle's tables, with a frontal and a lateral."""
    for name in ("xml", "png", "kaggle", "kaggle_png"):
        (tmp_path / name).mkdir()
    reports, views = ["uid,MeSH,findings,impression,indication"], ["uid,filename,projection"]
    for study in STUDIES.values():
        number = study[3:]
        xml = XML.format(number).replace("</eCitation>", f"{MESH}</MeSH></eCitation>")
        (tmp_path / "xml" / f"{number}.xml").write_text(xml)
        text = '"The heart is large.","Large heart.",'
        reports.append(f'{number},"Cardiomegaly/mild;Opacity/lung ",{text}')
        for part, view in VIEWS.items():
            name = f"{number}_IM-0001-{part}.dcm.png"
            views.append(f"{number},{name},{view}")
            grey = Image.new("L", (8, 8), int(number) % 200)
            grey.save(tmp_path / "kaggle_png" / name)
            grey.save(tmp_path / "png" / f"CXR{number}_1_IM-0001-{part}.png")
    (tmp_path / "kaggle" / "indiana_reports.csv").write_text("\n".join(reports) + "\n")
    (tmp_path / "kaggle" / "indiana_projections.csv").write_text("\n".join(views) + "\n")
    return tmp_path


def write(raw: Path, corpus: str, **options: Path) -> tuple[dict, list[dict]]:
    folders = ("xml", "png") if corpus == "openi" else ("kaggle", "kaggle_png")
    out = raw / f"out_{corpus}"
    manifest = write_recipe_table(
        corpus, raw / folders[0], raw / folders[1], out, Filters(), **options
    )
    lines = (out / "reports.jsonl").read_text().splitlines()
    return manifest, [json.loads(line) for line in lines]


def test_both_sources_give_the_same_rows(raw):
    manifest, kaggle = write(raw, "openi_kaggle")
    _, xml = write(raw, "openi", projections=raw / "kaggle")
    kept = ("study", "view", "findings", "impression", "mesh_major", "split")
    by_study = [{r["study"]: {k: r[k] for k in kept} for r in rows} for rows in (kaggle, xml)]
    assert by_study[0] == by_study[1]
    assert {r["study"]: r["split"] for r in kaggle} == {s: k for k, s in STUDIES.items()}
    assert len(kaggle) == 5 and {r["view"] for r in kaggle} == {"frontal"}
    assert all(r["mesh_major"] == ["Cardiomegaly/mild", "Opacity/lung"] for r in kaggle)
    assert xml[0]["mesh_automatic"] == ["x"] and xml[0]["comparison"] == "None."
    assert manifest["licence"] == "CC BY-NC-ND 4.0"
    assert manifest["terms"] == "https://creativecommons.org/licenses/by-nc-nd/4.0/"
    assert manifest["pictures_by_split"] == dict.fromkeys(manifest["pictures_by_split"], 1)


def test_the_recipes_read_the_table_and_no_reserved_study(raw):
    write(raw, "openi_kaggle")
    config = RecordsBuilder.Config(
        storage=raw / "out_openi_kaggle", annotations=Path("reports.jsonl"),
        fields=FieldMap(id="image_id", codes="mesh_major"),
        split=SplitRule(train=["train", "extra"]), target="codes",
    )  # fmt: skip
    builder = config.build(image_spec=NO_IMAGES)
    studies = {s: {r.study_id for r in builder.build(s, "eval").records}
               for s in ("train", "val", "test", "lockbox")}  # fmt: skip
    assert studies["train"] == {STUDIES["train"], STUDIES["extra"]}
    assert [studies[s] for s in ("val", "test", "lockbox")] == [
        {STUDIES[s]} for s in ("val", "test", "lockbox")
    ]


def test_without_a_table_of_views_laterals_are_kept_and_counted(raw, capsys, monkeypatch):
    out = raw / "cli"
    arguments = ["--reports", raw / "xml", "--images", raw / "png", "--out", out]
    monkeypatch.setattr("sys.argv", ["curate", "openi", "--codes", *map(str, arguments)])
    curate.main()
    printed = capsys.readouterr().out
    assert "10 pictures (" in printed and "licence: CC BY-NC-ND 4.0" in printed
    assert "the view of 10 pictures is unknown, so laterals are among them" in printed
    with pytest.raises(InputError, match=re.escape("already contains reports.jsonl")):
        curate.main()


def test_r2gens_file_decides_the_split_except_of_reserved_studies(raw):
    listed = {"train": ["extra", "lockbox"], "val": ["train"], "test": ["val"]}
    rows = {
        split: [{"id": f"{STUDIES[s]}_IM-0001", "split": split} for s in names]
        for split, names in listed.items()
    }
    path = raw / "annotation.json"
    path.write_text(json.dumps(rows))
    manifest, table = write(raw, "openi_kaggle", splits=path)
    splits = {r["study"]: r["split"] for r in table}
    expected = {"extra": "train", "lockbox": "lockbox", "train": "val", "val": "test"}
    assert splits == {STUDIES[k]: v for k, v in (expected | {"test": "test"}).items()}
    assert manifest["splits_from"] == "annotation.json"
    for content in ('{"train": []}', "[]", "no JSON"):
        path.write_text(content)
        with pytest.raises(DataError, match=r"is not R2Gen's annotation\.json"):
            read_r2gen_splits(path)
    path.write_text('{"train": [{"id": "p10/s5"}], "val": [], "test": []}')
    with pytest.raises(DataError, match="ids that are not OpenI's"):
        read_r2gen_splits(path)


def test_options_of_codes_need_it(raw, monkeypatch):
    arguments = ["--reports", raw / "xml", "--images", raw / "png", "--out", raw / "x"]
    command = ["curate", "openi", *map(str, arguments), "--splits", str(raw / "a.json")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(InputError, match="--splits needs --codes"):
        curate.main()


def test_the_published_lists_do_not_overlap():
    sizes = (len(published_train_studies()), len(published_val_studies()))
    assert sizes == (2065, 294)
    reserved = published_test_studies() | lockbox_studies() | published_val_studies()
    assert not published_train_studies() & reserved
    assert published_split("CXR90001") is None


@pytest.mark.slow
@pytest.mark.data
def test_rows_from_kaggle_equal_ours(real_data, tmp_path):
    """Our table calls three pictures frontal that Kaggle's calls lateral."""
    ours = [json.loads(x) for x in (real_data / "iu_xray" / "reports.jsonl").open()]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for row in ours[:300]:
        name = re.sub(r"^CXR(\d+)_(?:\d+_)?(IM-[\d-]+)$", r"\1_\2.dcm.png", row["image_id"])
        shutil.copy(real_data / "iu_xray" / row["image"], folder / name)
    raw = real_data / "openi_kaggle"
    write_recipe_table("openi_kaggle", raw, folder, tmp_path / "out", Filters())
    lines = (tmp_path / "out" / "reports.jsonl").read_text().splitlines()
    rows = {r["study"]: r for r in map(json.loads, lines)}
    assert len(lines) >= 297
    for row in ours[:300]:
        new = rows.get(row["study"])
        if new is None:
            continue
        for section in ("findings", "impression"):
            assert new[section] == " ".join(row[section].split())
        assert new["mesh_major"] == [code.strip() for code in row["mesh_major"]]
        reserved = row["study"] in lockbox_studies()
        assert new["split"] == ("lockbox" if reserved else row["split"])


def test_the_selected_reports_keep_their_codes(raw):
    assert read_corpus("openi_kaggle", raw / "kaggle").reports[0].codes == (
        "Cardiomegaly/mild", "Opacity/lung",
    )  # fmt: skip
