"""Folders of LLMs: whole ones load to the bit, others are refused before they are half loaded."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from xraygpt.common.errors import WeightsError
from xraygpt.models.language import SmallLLM, new_llm, new_tokenizer
from xraygpt.models.llm_files import load_llm


@pytest.fixture
def llm():
    size = SmallLLM(vocab_size=260, hidden=32, layers=2, heads=2)
    return new_llm(size, new_tokenizer([], 260), seed=1)


@pytest.fixture
def folder(llm, tmp_path):
    """A folder in several shards, as large models come."""
    path = tmp_path / "vicuna-7b"
    llm.save_pretrained(path, max_shard_size="40KB")
    new_tokenizer([], 260).save_pretrained(path)
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


def test_a_sharded_folder_loads_to_the_bit(llm, folder):
    loaded, _ = load_llm(str(folder), "float32")
    theirs, ours = llm.state_dict(), loaded.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[k], ours[k]) for k in ours)


def edit(folder, change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def lose_a_weight(folder) -> None:
    path = sorted(folder.glob("*.safetensors"))[-1]
    state = load_file(path)
    del state[sorted(state)[0]]
    save_file(state, path, {"format": "pt"})


HARM = {
    "a shard is gone": (
        lambda f: sorted(f.glob("*.safetensors"))[0].unlink(),
        r"lacks 1 of \d+ files that model.safetensors.index.json names: model-00001",
    ),
    "a shard is cut off": (
        lambda f: sorted(f.glob("*.safetensors"))[0].write_bytes(b"1234567890"),
        "does not load",
    ),
    "a weight is gone": (lose_a_weight, "missing model"),
    "the configuration is of a wider model": (
        lambda f: edit(f, lambda c: c.update(hidden_size=64)),
        r"32.* in the file, .*64.* by config.json",
    ),
    "the configuration is of a deeper model": (
        lambda f: edit(f, lambda c: c.update(num_hidden_layers=3)),
        r"missing model.layers.2",
    ),
    "a delta by its configuration": (
        lambda f: edit(f, lambda c: c.update(_name_or_path="lmsys/vicuna-7b-delta-v1.1")),
        "difference to LLaMA",
    ),
    "the configuration is cut off": (
        lambda f: (f / "config.json").write_text('{"architectures": ['),
        "config.json cannot be read",
    ),
    "no tokenizer": (
        lambda f: [p.unlink() for p in f.glob("tokenizer*")],
        "does not load",
    ),
}


@pytest.mark.parametrize("name", HARM)
def test_what_is_not_whole_is_refused(folder, name):
    harm, message = HARM[name]
    harm(folder)
    with pytest.raises(WeightsError, match=message):
        load_llm(str(folder), "float32")


def test_what_the_llm_has_no_place_for_is_named(folder, caplog):
    path = sorted(folder.glob("*.safetensors"))[-1]
    save_file({**load_file(path), "value_head.weight": torch.ones(1)}, path, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["value_head.weight"] = path.name
    index.write_text(json.dumps(content))
    load_llm(str(folder), "float32")
    assert "no place for are left out: value_head.weight" in caplog.text
