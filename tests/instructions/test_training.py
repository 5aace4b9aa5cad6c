"""The files are what this project's own builders read, and a model learns from them."""

from __future__ import annotations

import pytest

from tests.conftest import REPO
from tests.datasets.conversations import read
from tests.instructions.toy import toy_writer
from tests.models.stock_vlm.conftest import tiny  # noqa: F401
from tests.models.stock_vlm.test_training import losses
from tests.models.stock_vlm.toy import runner, tree
from xraygpt.common.config import load
from xraygpt.instructions.settings import InstructionSet


@pytest.mark.parametrize("name", ["llava", "llama_factory"])
def test_the_builders_read_every_item_with_its_image(tmp_path, name):
    writer = toy_writer(tmp_path, output="formats: [llava, sharegpt]")
    result = writer.write()
    folder = writer.out / {"llava": "llava", "llama_factory": "sharegpt"}[name]
    keys = {"annotations": "train.json"} if name == "llava" else {"dataset": ["train"]}
    found, problems = read(name, folder, images="/", **keys)
    records = [record for records in found.values() for record in records]
    assert not problems and len(records) == result.items.total()
    assert {len(record.media) for record in records} == {1}
    assert all(str(record.media[0].path).startswith(str(tmp_path / "TOY")) for record in records)


@pytest.mark.slow
def test_a_model_is_trained_on_an_instruction_set(tmp_path, tiny):  # noqa: F811
    mixture = "\n  - {collection: toy, task: region_grounding}\n"
    writer = toy_writer(tmp_path, mixture, "formats: [llava]")
    writer.write()
    config = tree(tiny("qwen2_vl"), writer.out / "llava", tmp_path / "run", run__max_steps=6)
    config["datasets"]["toy"] |= {"annotations": "train.json", "images": "/"}
    run = runner(tmp_path / "train.yaml", config)
    run.train()
    found = losses(tmp_path / "run")
    assert len(found) == 6 and found[-1] < found[0]


@pytest.mark.parametrize(
    "path", sorted((REPO / "instruction_configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_instruction_set_of_the_project_loads(path, monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    settings = load(InstructionSet, path)
    assert settings.mixture and settings.build()
