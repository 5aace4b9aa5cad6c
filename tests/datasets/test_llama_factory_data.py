"""LLaMA-Factory's data sets: the semantics of dataset_info.json, and every fault with its place."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from tests.datasets.conversations import (
    SHAREGPT,
    build,
    messages,
    read,
    row,
    texts,
    write_images,
    write_rows,
)
from xraygpt.common.errors import DataError
from xraygpt.datasets.llama_factory import parse_entry


def load(folder, **keys):
    return read("llama_factory", folder, **{"dataset": ["rows"], **keys})


def problem(tmp_path, bad, entry=None):
    """The message for a bad record between two good ones."""
    good = row("Q", "A")
    if entry is not None:
        turns = messages("Q", "A", role="from", content="value")
        good = {"instruction": "Q", "output": "A", "conversations": turns}
    _, problems = load(write_rows(tmp_path, [good, bad, good], entry))
    (message,) = problems
    assert message.startswith("rows.json, record 1: ")
    return message.partition("record 1: ")[2]


# ---- faults of records: file, index, reason ------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("<image>Q", "A"), "1 <image> in the text, but 0 images"),
        (row("<image><image>Q", "A", images=["a.png"]), "2 <image> in the text, but 1 images"),
        (row("Q", "A", images=["a.png"]), "0 <image> in the text, but 1 images"),
        (row("<video>Q", "A"), "1 <video> in the text, but 0 videos"),
        (row("Q", "<image>A", images=["a.png"]), "an answer contains <image> or <video>"),
        (row("<image>Q", "A", images="a.png"), "'images' is the text 'a.png', not a list"),
        (row("<image>Q", "A", images={"a": 1}), "'images' is dict, not a list of files"),
        (row("<video>Q", "A", video=["a.mp4"]), "it has the field 'video', but the media are "
         "expected in 'videos'"),
        (row("<image>Q", "A", image=["a.png"]), "it has the field 'image', but"),
        (row("<image>Q", "A", images=["gone.png"]), "there is no file"),
        (row("<image>Q", "A", images=["empty.png"]), "is empty"),
        (row("<image>Q", "A", images=["."]), "is a folder, not a file"),
        (row("<image>Q", "A", images=["iVBOR" * 200]), "is not the path of a file"),
        (row("<image>Q", "A", images=[None]), "None is not the path of a file"),
        (row("<video>Q", "A", videos=[[]]), "a clip is an empty list of frames"),
        (row("<audio>Q", "A"), "it has audio"),
        (row("Q", "A", audios=["a.wav"]), "it has the field 'audios', which the columns do not"),
        (row("Q"), "1 messages: the last question has no answer"),
        (row("Q", "A", "Q"), "3 messages: the last question has no answer"),
        (row("Q", "A") | {"messages": messages("Q", "A")[::-1]}, "message 0 has the role "
         "'assistant', where 'user' is expected"),
        ({"messages": []}, "'messages' is not a list of messages"),
        ({"conversations": messages("Q", "A")}, "'messages' is not a list of messages"),
        ({"messages": ["Q", "A"]}, "message 0 is str, not an object"),
        ({"messages": messages("Q", "A", role="from", content="value")}, "message 0 has no role "
         "('role')"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "A"}]},
         "message 0 has no text ('content')"),
        (["Q", "A"], "expected an object, got list"),
    ],
)  # fmt: skip
def test_each_fault_names_file_record_and_reason(tmp_path, bad, reason):
    write_images(tmp_path, "a.png")
    (tmp_path / "empty.png").touch()
    assert reason in problem(tmp_path, bad)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"instruction": "", "output": "A"}, "it has no question ('instruction')"),
        ({"instruction": "Q"}, "it has no answer ('output')"),
        ({"instruction": "<image>Q", "output": "A", "images": ["a.png"]},
         "it has the field 'images', which the columns do not list"),
    ],
)  # fmt: skip
def test_faults_of_alpaca_records(tmp_path, bad, reason):
    write_images(tmp_path, "a.png")
    assert reason in problem(tmp_path, bad, {})


@pytest.mark.parametrize("history", ["text", 5, [["only"]], ["text"]])
def test_a_history_that_is_no_list_of_pairs_is_a_fault(tmp_path, history):
    columns = {"prompt": "instruction", "response": "output", "history": "history"}
    bad = {"instruction": "Q", "output": "A", "history": history}
    assert "'history'" in problem(tmp_path, bad, {"columns": columns})


def test_the_place_of_a_message_counts_the_system_message(tmp_path):
    bad = {"conversations": [
        {"from": "system", "value": "S"}, {"from": "human", "value": "Q"},
        {"from": "human", "value": "A"},
    ]}  # fmt: skip
    assert "message 2 has the role 'human'" in problem(tmp_path, bad, {"formatting": "sharegpt"})


def test_a_bad_record_stops_training_unless_it_is_skipped(tmp_path, caplog):
    folder = write_rows(tmp_path, [row("Q", "A"), row("<image>Q", "A")])
    with pytest.raises(DataError, match=r"rows\.json, record 1: 1 <image> in the text"):
        build("llama_factory", folder, dataset=["rows"]).build("train")
    data = build("llama_factory", folder, dataset=["rows"], on_error="skip").build("train")
    assert len(data) == 1 and "1 records skipped, 1 kept" in caplog.text


# ---- what users of LLaMA-Factory complain of -----------------------------------------------------


def test_counts_of_marks_and_media_are_compared_before_training(tmp_path):
    """LLaMA-Factory's issues 5658, 6135, 6839, 7909 and 8734: no message says which record."""
    write_images(tmp_path, "a.png")
    found = problem(tmp_path, row("<image><image>Q", "A", images=["a.png"]))
    assert found == "2 <image> in the text, but 1 images"


def test_a_string_for_a_list_of_media_is_named(tmp_path):
    """Issue 5883."""
    write_images(tmp_path, "a.png")
    assert "write ['a.png']" in problem(tmp_path, row("<image>Q", "A", images="a.png"))


def test_a_field_in_the_singular_is_named(tmp_path):
    """Issue 9146."""
    assert "expected in 'videos'" in problem(tmp_path, row("<video>Q", "A", video=["a.mp4"]))


def test_media_are_not_opened_while_records_are_read(tmp_path, monkeypatch):
    """Issues 9531, 10398 and 8807: preprocessing decodes all media, in memory and on disk."""
    (tmp_path / "a.png").write_bytes(b"not decoded")
    folder = write_rows(tmp_path, [row("<image>Q", "A", images=["a.png"])] * 5)
    found, problems = load(folder)
    assert not problems and len(found["train"]) == 5
    assert sorted(p.name for p in folder.iterdir()) == ["a.png", "dataset_info.json", "rows.json"]


def test_the_number_of_frames_can_be_set_instead_of_the_rate(tmp_path):
    """Issues 8083 and 6868."""
    (tmp_path / "a.mp4").write_bytes(b"x")
    folder = write_rows(tmp_path, [row("<video>Q", "A", videos=["a.mp4"])])
    found, _ = load(folder, frames={"num_frames": 16})
    assert found["train"][0].media[0].sampling.num_frames == 16
    found, _ = load(folder, frames={"fps": 4.0, "max_frames": 128})
    assert found["train"][0].media[0].sampling.fps == 4.0


# ---- dataset_info.json ---------------------------------------------------------------------------


def entry_fault(tmp_path, entry, name="rows"):
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(DataError) as caught:
        parse_entry({"rows": entry}, name, tmp_path / "dataset_info.json")
    assert "dataset_info.json" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"file_nam": "x"}, "unknown key 'file_nam'; did you mean 'file_name'?"),
        ({"formatting": "sharegtp"}, "did you mean 'sharegpt'?"),
        ({"ranking": True}, "pairs of answers (ranking) are for stages other than sft"),
        ({"columns": {"image": "x"}}, "unknown column 'image'; did you mean 'images'?"),
        ({"tags": {"role": "x"}}, "unknown tag 'role'; did you mean 'role_tag'?"),
        ({"columns": ["messages"]}, "columns must be an object"),
        ({"tags": "role"}, "tags must be an object"),
        ({"columns": {"images": "images"}}, "columns must list messages, too"),
        ({"tags": {"role_tag": "role"}}, "tags must list content_tag, user_tag, assistant_tag"),
        ({"num_samples": 0}, "num_samples must be a positive whole number, got 0"),
        ({"num_samples": "all"}, "num_samples must be a positive whole number, got 'all'"),
        ({"file_name": "gone.json"}, "there is no file"),
        ({"file_name": "dataset_info.txt"}, "there is no file"),
        ({"file_name": None}, "set file_name to a file in"),
    ],
)
def test_each_fault_of_an_entry_is_named(tmp_path, change, reason):
    assert reason in entry_fault(tmp_path, {"file_name": "rows.json", **SHAREGPT, **change})


@pytest.mark.parametrize(
    "key", ["hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"]
)
def test_remote_sources_are_refused_by_name(tmp_path, key):
    assert f"{key} is not downloaded" in entry_fault(tmp_path, {key: "someone/data"})


def test_a_missing_data_set_is_named_with_the_nearest(tmp_path):
    folder = write_rows(tmp_path, [])
    with pytest.raises(DataError, match=r"no data set 'rowz'; did you mean 'rows'\?"):
        load(folder, dataset=["rowz"])
    assert "expected an object, got list" in entry_fault(tmp_path, [])


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.arrow").touch()
    assert "x.arrow is none of .json" in entry_fault(tmp_path, {"file_name": "x.arrow"})
    (tmp_path / "folder").mkdir()
    assert "contains no .json" in entry_fault(tmp_path, {"file_name": "folder"})


def test_a_folder_of_files_is_one_data_set(tmp_path):
    folder = write_rows(tmp_path, [], {**SHAREGPT, "file_name": "parts"})
    (folder / "parts").mkdir()
    for i in range(3):
        (folder / "parts" / f"p{i}.json").write_text(json.dumps([row(f"Q{i}", "A")]))
    found, _ = load(folder)
    assert [texts(r)[0][1] for r in found["train"]] == ["Q0", "Q1", "Q2"]


def test_defaults_of_each_format(tmp_path):
    alpaca = {"instruction": "Do", "input": "this", "output": "Done"}
    found, _ = load(write_rows(tmp_path / "a", [alpaca], {}))
    assert texts(found["train"][0]) == [("user", "Do\nthis"), ("assistant", "Done")]
    sharegpt = {"conversations": messages("Q", "A", role="from", content="value")}
    found, _ = load(write_rows(tmp_path / "s", [sharegpt], {"formatting": "sharegpt"}))
    assert texts(found["train"][0]) == [("user", "Q"), ("assistant", "A")]


def test_columns_that_are_given_replace_all_defaults(tmp_path):
    columns = {"prompt": "instruction", "response": "output"}  # no query: `input` is not read
    alpaca = {"instruction": "Do", "input": "this", "output": "Done"}
    found, _ = load(write_rows(tmp_path, [alpaca], {"columns": columns}))
    assert texts(found["train"][0])[0] == ("user", "Do")


def test_tags_that_are_given_replace_all_defaults(tmp_path):
    """CMR-VL's tags have no system_tag, so that a system message is invalid."""
    turns = [{"role": "system", "content": "S"}, *messages("Q", "A")]
    reason = "message 0 has the role 'system', where 'user' is expected"
    assert reason in problem(tmp_path, {"messages": turns})
    tags = {**SHAREGPT["tags"], "system_tag": "system"}
    found, problems = load(write_rows(tmp_path, [{"messages": turns}], {**SHAREGPT, "tags": tags}))
    assert not problems
    assert texts(found["train"][0]) == [("system", "S"), ("user", "Q"), ("assistant", "A")]


def test_system_and_history_come_first(tmp_path):
    names = ("system", "history")
    columns = {"prompt": "instruction", "response": "output", **{n: n for n in names}}
    alpaca = {
        "instruction": "Q2", "output": "A2", "system": "S", "history": [["Q0", "A0"], ["Q1", "A1"]],
    }  # fmt: skip
    found, _ = load(write_rows(tmp_path, [alpaca], {"columns": columns}))
    assert " ".join(text for _, text in texts(found["train"][0])) == "S Q0 A0 Q1 A1 Q2 A2"
    entry = {**SHAREGPT, "columns": {"messages": "messages", "system": "rules"}}
    found, _ = load(write_rows(tmp_path, [row("Q", "A", rules="S")], entry))
    assert texts(found["train"][0])[0] == ("system", "S")


def test_observations_and_function_calls_are_turns(tmp_path):
    turns = [("human", "Q"), ("function_call", "f()"), ("observation", "1"), ("gpt", "A")]
    bad_or_good = {"conversations": [{"from": r, "value": t} for r, t in turns]}
    found, problems = load(write_rows(tmp_path, [bad_or_good], {"formatting": "sharegpt"}))
    assert not problems
    assert [role for role, _ in texts(found["train"][0])] == ["user", "assistant"] * 2


def test_openai_content_parts(tmp_path):
    write_images(tmp_path, "a.png")
    parts = [{"type": "image"}, {"type": "text", "text": "Q"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A"}]
    entry = {"formatting": "openai", "columns": {"messages": "messages", "images": "images"}}
    rows = [{"messages": turns, "images": ["a.png"]}]
    found, problems = load(write_rows(tmp_path, rows, entry))
    assert not problems and texts(found["train"][0])[0] == ("user", "<image>Q")
    turns[0]["content"] = [{"type": "sound"}]
    _, problems = load(write_rows(tmp_path, rows, entry))
    assert "a content part of type 'sound'" in problems[0]


# ---- numbers of samples --------------------------------------------------------------------------


def names(folder, **keys):
    found, problems = load(folder, **keys)
    assert not problems
    return [r.sample_id.partition("#")[0] for r in found["train"]]


def numbered(folder, count=20, **entry):
    rows = [row("Q", "A", id=f"r{i}") for i in range(count)]
    return write_rows(folder, rows, {**SHAREGPT, **entry})


def test_num_samples_chooses_at_random_without_repeats(tmp_path):
    chosen = names(numbered(tmp_path, num_samples=8))
    assert len(set(chosen)) == 8 and set(chosen) < {f"r{i}" for i in range(20)}
    assert chosen != [f"r{i}" for i in range(8)]
    assert chosen == names(tmp_path) and chosen != names(tmp_path, seed=1)


def test_more_num_samples_than_records_repeat_some(tmp_path):
    counts = Counter(names(numbered(tmp_path, num_samples=50)))
    assert counts.total() == 50 and len(counts) == 20 and max(counts.values()) > 2
    found, _ = load(tmp_path)
    assert len({r.sample_id for r in found["train"]}) == 50  # ids stay unique


def test_max_samples_keeps_the_first(tmp_path):
    assert names(numbered(tmp_path), max_records=3) == ["r0", "r1", "r2"]


def test_max_samples_counts_what_num_samples_chose(tmp_path):
    every = names(numbered(tmp_path, num_samples=50))
    assert names(tmp_path, max_records=30) == every[:30]


def test_max_samples_applies_to_each_data_set(tmp_path):
    folder = numbered(tmp_path)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "more": info["rows"]}))
    found, _ = load(folder, dataset=["rows", "more"], eval_dataset=["rows"], max_records=4)
    assert {split: len(records) for split, records in found.items()} == {"train": 8, "val": 4}


def test_a_share_of_the_training_data_is_validated(tmp_path):
    found, _ = load(numbered(tmp_path, 400), val_fraction=0.25)
    assert len(found["train"]) + len(found["val"]) == 400
    assert 75 < len(found["val"]) < 125
    again, _ = load(tmp_path, val_fraction=0.25)
    assert [r.sample_id for r in found["val"]] == [r.sample_id for r in again["val"]]


# ---- media ---------------------------------------------------------------------------------------


def test_media_are_in_media_dir_or_else_where_the_path_says(tmp_path):
    write_images(tmp_path / "media", "a.png")
    write_images(tmp_path / "other", "b.png")
    images = ["a.png", str(tmp_path / "other/b.png")]
    folder = write_rows(tmp_path / "data", [row("<image><image>Q", "A", images=images)])
    found, problems = load(folder, images=str(tmp_path / "media"))
    assert not problems
    paths = [ref.path for ref in found["train"][0].media]
    assert paths == [tmp_path / "media/a.png", tmp_path / "other/b.png"]


def test_a_video_may_be_a_list_of_images(tmp_path):
    frames = [f"f{i}.png" for i in range(4)]
    write_images(tmp_path, *frames)
    folder = write_rows(tmp_path, [row("<video>Q", "A", videos=[frames])])
    found, _ = load(folder, frames={"fps": 2.0})
    (ref,) = found["train"][0].media
    assert ref.kind == "clip" and [f[-6:] for f in ref.frame_files] == frames
    data = build("llama_factory", folder, dataset=["rows"], frames={"fps": 2.0}).build("train")
    (medium,) = data[0]["media"]
    assert medium.frame_times == (0.0, 0.5, 1.0, 1.5) and len(medium.data) == 4


def test_media_follow_the_marks_in_the_text(tmp_path):
    write_images(tmp_path, "a.png", "b.png", "f.png")
    text = "<image>one <video>two <image>three"
    rows = [row(text, "A", images=["a.png", "b.png"], videos=[["f.png"]])]
    found, _ = load(write_rows(tmp_path, rows))
    assert [ref.name for ref in found["train"][0].media] == ["a.png", "f.png", "b.png"]


def test_parquet_rows_are_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    write_images(tmp_path, "a.png")
    rows = [row("<image>Q", "A", images=["a.png"]), row("Q", "A", images=[])]
    folder = write_rows(tmp_path, [], {**SHAREGPT, "file_name": "rows.parquet"})
    parquet.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    found, problems = load(folder)
    assert not problems and [len(r.media) for r in found["train"]] == [1, 0]


def test_csv_rows_are_read(tmp_path):
    folder = write_rows(tmp_path, [], {"file_name": "rows.csv"})
    (folder / "rows.csv").write_text("instruction,input,output\nQ,more,A\n")
    found, _ = load(folder)
    assert texts(found["train"][0]) == [("user", "Q\nmore"), ("assistant", "A")]


def test_a_comma_after_the_last_entry_of_dataset_info_is_named(tmp_path):
    folder = write_rows(tmp_path, [])
    (folder / "dataset_info.json").write_text('{\n"rows": {"file_name": "rows.json",\n}}')
    with pytest.raises(DataError, match=r"dataset_info\.json, line 2 .*a comma follows the last"):
        load(folder)


@pytest.mark.slow
def test_records_do_not_stay_in_memory(tmp_path):
    """Twenty times as many records take far less than twenty times the memory."""
    import tracemalloc

    peaks = []
    for count in (1000, 20_000):
        folder = write_rows(
            tmp_path / str(count), [row("Q " * 100, "A", id=f"r{i}") for i in range(count)]
        )
        builder = build("llama_factory", folder, dataset=["rows"])
        tracemalloc.start()
        assert sum(1 for _ in builder.records(str)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 8 * peaks[0]


def test_a_missing_folder_or_index_is_named(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        load(tmp_path / "gone")
    with pytest.raises(DataError, match=re.escape("dataset_info.json")):
        load(tmp_path)
