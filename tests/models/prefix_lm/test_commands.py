"""Commands around prefix language models: embeddings of images, sweeps, budgets."""

from __future__ import annotations

import argparse
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import REPO
from tests.models.prefix_lm.toy import SIZE, runner, tree, write_toy, write_yaml
from xraygpt.common.config import load
from xraygpt.common.errors import ConfigError, InputError
from xraygpt.experiment import Evaluation, Experiment, Training, build_evaluator, build_runner
from xraygpt.jobs.embed import embed_corpus, pool, view_names
from xraygpt.jobs.sweep import measure_tokenizer, run_sweep
from xraygpt.runners import budget as budgets


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path / "cache"))


def images(folder, count=8):
    """Grey pictures whose brightness is in the report."""
    folder.mkdir()
    rows = []
    for i in range(count):
        values = np.full((64, 64), 20 + 200 * (i % 2), np.uint8)
        values[:32] = 10 * i  # the upper half is darker
        Image.fromarray(values).save(folder / f"{i}.png")
        split = "val" if i > 5 else "train"
        text = "Bright." if i % 2 else "Dark."
        rows.append({
            "id": f"i{i}", "study": f"s{i}", "split": split, "findings": text, "codes": ["x"],
            "image": f"{i}.png",
        })  # fmt: skip
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def corpus_yaml(path, folder):
    config = {
        "model": {"arch": "xraygpt", "model_type": "tiny"},
        "datasets": {
            "x": {
                "builder": "records", "storage": str(folder), "sections": ["findings"],
                "target": "report", "input_check": False,
            }
        },
    }  # fmt: skip
    return write_yaml(path, config)


def test_images_become_embeddings_that_a_run_reads(tmp_path, cache):
    folder = images(tmp_path / "images")
    experiment = load(Experiment, corpus_yaml(tmp_path / "c.yaml", folder))
    text = embed_corpus(experiment, "eva_tiny", tmp_path / "out", grid=2, device="cpu")
    rows = [json.loads(x) for x in (tmp_path / "out/studies.jsonl").read_text().splitlines()]
    values = load_file(tmp_path / "out/embeddings.safetensors")["embeddings"].float()
    assert len(rows) == 8 and len(values) == 8 * 6
    assert rows[3]["view"] == view_names(2) == ["mean", "max", "r0c0", "r0c1", "r1c0", "r1c1"]
    assert (rows[3]["start"], rows[3]["count"], rows[3]["split"]) == (18, 6, "train")
    assert (
        rows[7]["split"] == "val" and rows[7]["report"] == "Bright." and rows[0]["codes"] == ["x"]
    )
    train = values[:36].view(6, 6, -1)  # standardized over the training split only
    assert torch.allclose(train.mean(dim=0), torch.zeros(6, train.shape[-1]), atol=0.01)
    width = values.shape[1]
    assert f"width: {width}" in text and "Research use only" in text
    config = tree(tmp_path / "out", tmp_path / "run")
    config["model"]["prefix"] = {"width": width, "views": view_names(2)}
    config["datasets"]["toy"]["sections"] = ["report"]
    assert np.isfinite(runner(tmp_path / "run.yaml", config).train().get("val/loss", 0.0))
    # New images are standardized like the training images, whatever they are.
    again = embed_corpus(
        experiment, "eva_tiny", tmp_path / "again", grid=2, device="cpu",
        statistics=tmp_path / "out/statistics.safetensors",
    )  # fmt: skip
    assert again.startswith(str(tmp_path / "again"))
    same = load_file(tmp_path / "again/embeddings.safetensors")["embeddings"].float()
    assert torch.equal(same, values)
    with pytest.raises(InputError, match=r"6 embeddings of width .* but these are 2"):
        embed_corpus(
            experiment, "eva_tiny", tmp_path / "other", device="cpu",
            statistics=tmp_path / "out/statistics.safetensors",
        )  # fmt: skip


def test_pooling_keeps_the_place_of_a_cell():
    features = torch.arange(16.0)[:, None]
    pooled = pool(features, 2).squeeze(1).tolist()
    assert pooled == [7.5, 15.0, 2.5, 4.5, 10.5, 12.5]
    with_class = torch.cat([torch.full((1, 1), 99.0), features])
    assert pool(with_class, 2).squeeze(1).tolist()[2:] == pooled[2:]
    with pytest.raises(InputError, match="15 features of an image, which cannot be divided"):
        pool(features[:15], 2)


def test_tokenizers_are_measured_on_held_out_reports():
    train = ["The ventricle is normal in size and function."] * 20
    row = measure_tokenizer(train, ["The ventricle is normal.", "Größe: 4"], 300, [8, 64])
    assert row["vocab_size"] <= 300 and row["characters_per_token"] > 1
    assert row["bytes_per_token"] > row["characters_per_token"]  # ö and ß have two bytes
    assert row["too_long"]["64"] == 0 and row["tokens_per_report"]["max"] >= 8
    small = measure_tokenizer(train, train[:1], 272, [64])
    assert (
        small["characters_per_token"]
        < measure_tokenizer(train, train[:1], 300, [64])["characters_per_token"]
    )


def test_a_sweep_continues_where_it_stopped(tmp_path):
    corpus = write_toy(tmp_path / "corpus", 24)
    config = tree(corpus, tmp_path / "run", model__llm__size={"depth": 1, "context": 64})
    args = argparse.Namespace(
        cfg_path=write_yaml(tmp_path / "c.yaml", config), out=tmp_path / "sweep", options=[],
        vocab_size=[272, 290], context=[64, 16], depth=[1], steps=3,
    )  # fmt: skip
    text = run_sweep(args)
    assert "Fewest bits per byte: vocabulary" in text and "Research use only" in text
    stored = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert [t["vocab_size"] for t in stored["trainings"]] == [272, 290]
    assert all(0 < t["bits_per_byte"] < 8 for t in stored["trainings"])
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep").glob("*/result.json")}
    assert run_sweep(args) == text  # nothing is trained again
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    args.steps = 4
    with pytest.raises(InputError, match="was trained with other settings"):
        run_sweep(args)
    args.cfg_path = write_yaml(
        tmp_path / "d.yaml", {**config, "model": {"arch": "xraygpt", "model_type": "tiny"}}
    )
    with pytest.raises(InputError, match="a sweep needs arch: prefix_lm"):
        run_sweep(args)


def test_a_budget_is_counted_for_a_machine_that_is_not_here(tmp_path):
    corpus = write_toy(tmp_path / "corpus", 24)
    config = tree(
        corpus, tmp_path / "run", run__max_steps=100,
        run__budget={"tflops": 1, "utilization": 0.5, "price_per_hour": 3},
    )  # fmt: skip
    done = runner(tmp_path / "run.yaml", config)
    found = done.dry_run()
    tokens = budgets.mean_tokens(done)
    layers = 12 * SIZE["depth"] * SIZE["width"] ** 2
    trained = layers + len(done.model.tokenizer) * SIZE["width"] + 16 * SIZE["width"]
    per_token = 6 * trained + 12 * SIZE["depth"] * SIZE["width"] * tokens
    assert budgets.flops_per_token(done.model, tokens) == pytest.approx(per_token)
    seconds = per_token * tokens * 4 * 100 / 0.5e12
    assert found["hours"] == pytest.approx(seconds / 3600, abs=1e-3)
    assert found["price"] == pytest.approx(3 * seconds / 3600, abs=0.01)
    assert found["steps"] == 100 and found["fits"]
    more = tree(corpus, tmp_path / "run", run__budget={}, run__batch_size_train=64)
    assert runner(tmp_path / "m.yaml", more).dry_run()["memory_gib"] >= found["memory_gib"]
    wrong = tree(corpus, tmp_path / "run", run__budget={"tflops": 0, "utilization": 2})
    with pytest.raises(ConfigError, match=r"tflops[\s\S]*utilization"):
        build_runner(load(Training, write_yaml(tmp_path / "w.yaml", wrong)))


@pytest.mark.slow
def test_the_first_run_of_the_docs(tmp_path, monkeypatch):
    """The page's Python and YAML blocks as they are, with a few steps."""
    page = (REPO / "docs/echo.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.S)
    train, evaluate = re.findall(r"```yaml\n# toy_echo[^\n]*\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(code[0], "echo.md", "exec"), {})
    exec(compile(code[1], "echo.md", "exec"), {})
    assert np.load("data/toy_echo_mean.npy").shape == (64,)
    (tmp_path / "toy_echo.yaml").write_text(train, encoding="utf-8")
    (tmp_path / "evaluation.yaml").write_text(evaluate, encoding="utf-8")
    few = ["run.max_epoch=null", "run.max_steps=3"]
    done = build_runner(load(Training, tmp_path / "toy_echo.yaml", few))
    assert "val/bits_per_byte" in done.train()
    small = ["datasets.echo.max_samples=6", "run.task.traits.samples=2"]
    small += ["run.task.generate.max_new_tokens=8"]
    result = build_evaluator(load(Evaluation, tmp_path / "evaluation.yaml", small)).run()
    assert {"traits_AUROC", "traits_balanced_accuracy"} <= {s["name"] for s in result["scores"]}
