"""LLaVA's format: fields, patterns of files, and the YAML list with sampling strategies."""

from __future__ import annotations

import json

import pytest

from tests.datasets.conversations import build, messages, read, texts, write_images
from xraygpt.common.errors import DataError


def row(*turns, **fields):
    return {"conversations": messages(*turns, role="from", content="value"), **fields}


def write(folder, name, rows):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(rows))


def load(folder, annotations="rows.json", **keys):
    found, problems = read("llava", folder, annotations=annotations, **keys)
    return [record for records in found.values() for record in records], problems


def numbered(folder, name, count):
    write(folder, name, [row("Q", "A", id=f"{name[:-5]}{i}") for i in range(count)])


def ids(records):
    return [record.sample_id for record in records]


def test_one_image_several_images_and_a_video(tmp_path):
    write_images(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "images/c.mp4").write_bytes(b"x")
    rows = [
        row("<image>\nQ", "A", id="one", image="a.png"),
        row("<image><image>Q", "A", id="two", image=["a.png", "b.png"]),
        row("<video>\nQ", "A", "Q2", "A2", id="film", video="c.mp4"),
        row("Q", "A", id="text"),
        row("<image>Q", "A", image="a.png"),
    ]
    write(tmp_path, "rows.json", rows)
    records, problems = load(tmp_path, images="images")
    assert not problems
    by_id = {r.sample_id: r for r in records}
    assert {n: [m.name for m in r.media] for n, r in by_id.items()} == {
        "one": ["a.png"], "two": ["a.png", "b.png"], "film": ["c.mp4"], "text": [],
        "rows/4": ["a.png"],
    }  # fmt: skip
    assert by_id["film"].media[0].kind == "clip"
    assert texts(by_id["film"])[2:] == [("user", "Q2"), ("assistant", "A2")]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("<image>Q", "A"), "1 <image> in the text, but 0 images"),
        (row("Q", "A", image="a.png"), "0 <image> in the text, but 1 images"),
        (row("<image>Q", "A", images=["a.png"]), "it has the field 'images', but the media are "
         "expected in 'image'"),
        (row("<video>Q", "A", videos=["a.mp4"]), "expected in 'video'"),
        (row("<image>Q", "A", image="gone.png"), "there is no file"),
        (row("<image>Q", "A", image=7), "7 is not the path of a file"),
        (row("Q"), "1 messages: the last question has no answer"),
        ({"conversations": [{"from": "gpt", "value": "A"}]}, "message 0 has the role 'gpt', where "
         "'human' or 'observation' is expected"),
        ({"messages": []}, "'conversations' is not a list of messages"),
    ],
)  # fmt: skip
def test_each_fault_names_file_record_and_reason(tmp_path, bad, reason):
    write_images(tmp_path, "a.png")
    write(tmp_path, "rows.json", [row("Q", "A"), bad])
    records, (problem,) = load(tmp_path)
    assert len(records) == 1
    assert problem.startswith("rows.json, record 1: ") and reason in problem


def test_braces_name_several_files(tmp_path):
    for name in ("a", "b", "c"):
        numbered(tmp_path, f"parts/{name}.json", 2)
    records, _ = load(tmp_path, "parts/{a, c}.json")
    assert ids(records) == ["parts/a0", "parts/a1", "parts/c0", "parts/c1"]
    with pytest.raises(DataError, match=r"there is no file .*parts/x\.json"):
        load(tmp_path, "parts/{a,x}.json")


def test_without_annotations_the_key_is_named(tmp_path):
    with pytest.raises(DataError, match="annotations: set it to the file of conversations"):
        build("llava", tmp_path).records_by_split()


@pytest.mark.parametrize(
    ("strategy", "chosen"),
    [
        ("all", range(10)), ("first:3", range(3)), ("first:25%", range(3)), ("end:2", (8, 9)),
        ("end:15%", (8, 9)), ("first:99", range(10)),
    ],
)  # fmt: skip
def test_sampling_strategies(tmp_path, strategy, chosen):
    """Percentages are rounded up, as in LLaVA-NeXT."""
    numbered(tmp_path, "a.json", 10)
    entry = f"datasets:\n- json_path: a.json\n  sampling_strategy: '{strategy}'\n"
    (tmp_path / "list.yaml").write_text(entry)
    assert ids(load(tmp_path, "list.yaml")[0]) == [f"a{i}" for i in chosen]


@pytest.mark.parametrize(("strategy", "count"), [("random:4", 4), ("random:35%", 4)])
def test_random_records_depend_on_the_seed_alone(tmp_path, strategy, count):
    numbered(tmp_path, "a.json", 10)
    entry = f"datasets:\n- json_path: a.json\n  sampling_strategy: '{strategy}'\n"
    (tmp_path / "list.yaml").write_text(entry)
    chosen = [ids(load(tmp_path, "list.yaml", seed=seed)[0]) for seed in range(5)]
    assert all(len(set(names)) == count for names in chosen)
    assert len({tuple(names) for names in chosen}) > 1
    assert chosen[0] == ids(load(tmp_path, "list.yaml", seed=0)[0])


def test_a_list_may_have_braces_and_no_strategy(tmp_path):
    numbered(tmp_path, "a.json", 2)
    numbered(tmp_path, "b.json", 2)
    (tmp_path / "list.yaml").write_text("datasets:\n- json_path: '{b,a}.json'\n")
    assert ids(load(tmp_path, "list.yaml")[0]) == ["b0", "b1", "a0", "a1"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("datasets:\n- json_path: a.json\n  sampling_strategy: some\n", "entry 0: "
         "sampling_strategy 'some' is not all, first:N, end:N or random:N"),
        ("datasets:\n- json_path: a.json\n  sampling: all\n", "entry 0: unknown key 'sampling'; "
         "did you mean 'sampling_strategy'?"),
        ("datasets:\n- path: a.json\n", "entry 0: expected json_path"),
        ("files: []\n", "expected the list 'datasets'"),
        ("datasets: [\n", "is not YAML"),
    ],
)  # fmt: skip
def test_each_fault_of_a_list_is_named(tmp_path, text, reason):
    numbered(tmp_path, "a.json", 2)
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(DataError) as caught:
        load(tmp_path, "list.yaml")
    assert "list.yaml" in str(caught.value) and reason in str(caught.value)


def test_studies_with_the_same_image_are_in_the_same_split(tmp_path):
    write_images(tmp_path, *(f"{i}.png" for i in range(40)))
    rows = [row("<image>Q", "A", image=f"{i % 40}.png", id=f"r{i}") for i in range(80)]
    write(tmp_path, "rows.json", rows)
    found, _ = read("llava", tmp_path, annotations="rows.json")
    studies = [{r.study_id for r in records} for records in found.values()]
    assert sum(len(s) for s in studies) == 40 == len(set.union(*studies))
