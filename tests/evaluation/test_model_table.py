"""Models × tasks in one table: every kind of model through one YAML file."""

from __future__ import annotations

import json
import sys

import pytest

from tests.conftest import REPO
from tests.models.endpoint.fake import images, serving
from tests.models.stock_vlm.conftest import tiny  # noqa: F401
from xraygpt import evaluate_all as command
from xraygpt.common.config import load
from xraygpt.common.errors import ConfigError, InputError
from xraygpt.instructions.settings import InstructionSet
from xraygpt.jobs.instructions import Writer
from xraygpt.jobs.model_table import (
    Cell,
    ModelTable,
    as_markdown,
    evaluate_all,
    read_cell,
    write_table,
)
from xraygpt.phantom.corpus import write_corpus
from xraygpt.phantom.grounded import GroundedRecipe

TASKS = """
  classification:
    task: {name: abnormality_classification, generate: {max_new_tokens: 4}}
    dataset: {tasks: [classification]}
    controls: [shuffled, most_common]
  regions:
    task: {name: region_grounding, generate: {max_new_tokens: 4}}
    dataset: {tasks: [region_grounding]}
    scores: [mean_IoU, radvlm_mAP_50]
"""


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_corpus(folder / "phantoms", GroundedRecipe(studies=24, seed=5, size=48), workers=1)
    text = (REPO / "instruction_configs/phantom.yaml").read_text()
    (folder / "set.yaml").write_text(text.replace("root: phantoms", f"root: {folder}/phantoms"))
    writer = Writer(load(InstructionSet, folder / "set.yaml"), folder / "set", workers=1)
    writer.write()
    return writer.out


def settings(folder, instructions, models: str, tasks: str = TASKS) -> ModelTable:
    path = folder / "table.yaml"
    path.write_text(
        f"models:{models}\n"
        f"datasets:\n  phantoms: {{builder: instructions, storage: {instructions}}}\n"
        f"tasks:{tasks}\nrun: {{output_dir: {folder}/out, max_samples: 6}}\n"
    )
    return load(ModelTable, path)


def middle(body) -> str:
    """Points at a place that depends on the image."""
    grey = int(images(body)[0].mean()) if images(body) else 0
    return f"Cardiomegaly at [{grey}, 200, {grey + 400}, 700]."


@pytest.mark.slow
def test_four_kinds_of_models_share_one_table(tmp_path, instructions, tiny):  # noqa: F811
    with serving(answer=middle) as server:
        models = f"""
  stock: {{arch: stock_vlm, path: {tiny("qwen2_vl")}}}
  server: {{arch: openai_endpoint, base_url: {server.url}, model: m}}
  qformer: {{arch: xraygpt, model_type: tiny, prompt_template: xraygpt, image_size: 32}}
  worker:
    arch: worker
    script: {REPO}/workers/stub/worker.py
    options: [--tasks, region_grounding]
"""
        table = settings(tmp_path, instructions, models)
        cells = evaluate_all(table)
        asked = len(server.bodies)
        assert evaluate_all(table, ["server"])["server"].keys() == {"classification", "regions"}
        assert len(server.bodies) == asked, "answers are not asked for twice"
    assert list(cells) == ["stock", "server", "qformer", "worker"]
    assert not [c.reason for row in cells.values() for c in row.values() if c.failed]
    regions = {name: row["regions"].scores for name, row in cells.items()}
    assert all(set(scores) == {"mean_IoU", "radvlm_mAP_50"} for scores in regions.values())
    assert regions["server"]["mean_IoU"]["value"] > 0 < regions["worker"]["mean_IoU"]["value"]
    text = as_markdown(table, cells)
    assert (
        text.count("| –") == 1 and "- worker, classification: stub offers region_grounding" in text
    )
    assert "Research use only" in text and text.count("<br>") >= 7
    rows = json.loads((next((tmp_path / "out/server/regions").glob("*/scores.json"))).read_text())
    conditions = {row["condition"] for row in rows["scores"]}
    assert conditions >= {"true", "shuffled", "blank", "mirrored", "no_image", "mean_box"}
    assert 0 <= rows["answers_changed"]["shuffled"] <= 1
    page = next((tmp_path / "out/server/regions").glob("*/report.html")).read_text()
    assert "SYNTHETIC" in page and "Mean overlap with the true boxes" in page


@pytest.mark.slow
def test_two_shards_answer_each_question_once(tmp_path, instructions):
    """Fault 14: RadVLM's sampler answers and scores some questions twice."""
    with serving(answer=middle) as server:
        models = f"\n  server: {{arch: openai_endpoint, base_url: {server.url}, model: m}}"
        table = settings(tmp_path, instructions, models)
        table.run.max_samples = 3  # not divisible by two
        shards = [evaluate_all(table, tasks=["regions"], shard=(k, 2)) for k in (1, 2)]
        answers = [shard["server"]["regions"].n for shard in shards]
        asked = len(server.bodies)
        assert sum(answers) == asked and abs(answers[0] - answers[1]) <= 1
        cell = evaluate_all(table, tasks=["regions"])["server"]["regions"]
        assert len(server.bodies) == asked and cell.n == 3
    (path,) = (tmp_path / "out/server/regions").glob("*/predictions_true.jsonl")
    names = [json.loads(line)["sample_id"] for line in path.read_text().splitlines()]
    assert len(names) == len(set(names)) == 3


def test_a_model_that_cannot_be_built_is_a_reason_and_not_the_end(
    tmp_path, instructions, monkeypatch, capsys
):
    models = f"""
  broken: {{arch: stock_vlm, path: {tmp_path}/gone}}
  worker: {{arch: worker, script: {REPO}/workers/stub/worker.py}}
"""
    settings(tmp_path, instructions, models)
    arguments = ["--cfg-path", str(tmp_path / "table.yaml"), "--tasks", "regions"]
    monkeypatch.setattr(sys, "argv", ["evaluate_all", *arguments])
    with pytest.raises(command.SomeFailed, match="1 evaluations failed: broken, regions"):
        command.main()
    out = capsys.readouterr().out
    assert "| broken | failed |" in out and "| worker | 0." in out
    rows = json.loads((tmp_path / "out/table.json").read_text())
    assert [row["failed"] for row in rows] == [True, False] and "gone" in rows[0]["reason"]
    assert (tmp_path / "out/table.md").read_text() in out


def test_mistakes_in_the_file_are_named(tmp_path, instructions):
    worker = f"\n  w: {{arch: worker, script: {REPO}/workers/stub/worker.py}}"
    table = settings(tmp_path, instructions, worker)
    with pytest.raises(InputError, match=r"--models v: there is no such name \(available: w\)"):
        evaluate_all(table, ["v"])
    with pytest.raises(ConfigError, match=r"models\.w\.arch.*did you mean 'worker'"):
        settings(tmp_path, instructions, "\n  w: {arch: wrker}")
    with pytest.raises(ConfigError, match=r"tasks: name at least one"):
        settings(tmp_path, instructions, worker, " {}")
    bad = settings(tmp_path, instructions, worker, TASKS.replace("[region_grounding]}", "[x]}"))
    with pytest.raises(ConfigError, match=r"tasks\.regions\.dataset"):
        evaluate_all(bad)


def test_models_keep_their_order_and_presets_apply_to_each(tmp_path, instructions):
    table = settings(
        tmp_path,
        instructions,
        f"\n  b: {{arch: worker, script: {REPO}/workers/stub/worker.py}}"
        "\n  a: {arch: xraygpt, model_type: nano, vision: {image_size: 64}}",
    )
    assert list(table.models) == ["b", "a"]
    assert table.models["a"].vision.image_size == 64
    assert table.models["a"].vision.encoder == "efficientnet_lite0"


def test_a_cell_shows_the_strongest_control_by_its_first_score():
    def row(name, condition, value):
        return {"name": name, "condition": condition, "value": value, "low": 0, "high": 1}

    result = {
        "n": 4,
        "scores": [
            row("a", "true", 0.5), row("a", "blank", 0.2), row("a", "mean_box", 0.6),
            row("a", "own_history", 0.9), row("b", "blank", 1.0), row("b", "true", 0.1),
        ],
    }  # fmt: skip
    cell = read_cell(result, ["a", "b"])
    assert cell.control == ("mean_box", 0.6) and list(cell.scores) == ["a", "b"]
    assert "there is no score bb" in read_cell(result, ["a", "bb"]).reason
    gone = read_cell(result, ["c"])
    assert "there is no score c" in gone.reason and gone.n == 4
    assert Cell().scores == {}
    result["scores"] += [
        row("wrong_side", "true", 0.1), row("wrong_side", "shuffled", 0.5),
        row("wrong_side", "no_image", float("nan")), row("wrong_side", "mean_box", 0.02),
    ]  # fmt: skip
    assert read_cell(result, ["wrong_side"]).control == ("mean_box", 0.02), "lower is better"


def test_a_part_of_the_table_does_not_remove_the_rest(tmp_path, instructions):
    stub = f"{{arch: worker, script: {REPO}/workers/stub/worker.py}}"
    table = settings(tmp_path, instructions, f"\n  a: {stub}\n  b: {stub}")
    first = write_table(table, {"a": {"regions": Cell(reason="made up", failed=True)}})
    second = write_table(table, {"b": {"regions": Cell(reason="other")}})
    assert "| a | failed |" in first and "| a | failed |" in second and "| b | – |" in second
    third = write_table(table, {"a": {"regions": Cell(reason="not offered")}})
    assert "| a | – |" in third and "| b | – |" in third


@pytest.mark.parametrize("name", ["qwen2.5", "1"])
def test_names_that_would_lose_their_preset_are_refused(tmp_path, instructions, name):
    with pytest.raises(ConfigError, match=f"'{name}' cannot be the name of a model"):
        settings(tmp_path, instructions, f"\n  {name}: {{arch: xraygpt, model_type: nano}}")


@pytest.mark.parametrize(
    "path", sorted((REPO / "table_configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_table_of_the_project_loads(path):
    table = load(ModelTable, path)
    for model in table.models:
        for task in table.tasks:
            assert table.evaluation(model, task).run.split == "test"
