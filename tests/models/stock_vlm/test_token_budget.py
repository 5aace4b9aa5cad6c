"""Token budgets of stock models equal the batches of training, also where media are reduced."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import REPO
from tests.models.stock_vlm.cmr_demo import write_cmr_demo
from xraygpt import validate as validate_command
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.experiment import Training, build_runner
from xraygpt.jobs import validate
from xraygpt.jobs.token_budget import of_runner
from xraygpt.media.video import encode_mp4


def write_corpus(folder):
    """Samples with one image, nine images, a clip, frames as a clip, both, and text only."""
    folder.mkdir()
    rng = np.random.default_rng(0)

    def pixels(*shape):
        return rng.integers(0, 255, shape, dtype=np.uint8)

    images = [f"i{i}.png" for i in range(9)]
    for i, name in enumerate(images):
        array = pixels(60 + 7 * i, 90) if i % 2 else pixels(60 + 7 * i, 90, 3)
        Image.fromarray(array).save(folder / name)
    frames = [f"f{i}.png" for i in range(5)]
    for name in frames:
        Image.fromarray(pixels(70, 50)).save(folder / name)
    (folder / "clip.mp4").write_bytes(encode_mp4(pixels(25, 64, 96, 3), Fraction(10)))
    media = [
        (images[:1], []), (images, []), ([], ["clip.mp4"]), ([], [frames]),
        (images[:2], ["clip.mp4"]), ([], []),
    ]  # fmt: skip
    rows = [
        {
            "id": f"s{i}",
            "messages": [
                {"role": "user", "content": "<image>" * len(a) + "<video>" * len(b) + "What?"},
                {"role": "assistant", "content": "Left. " * (i + 1)},
            ],
            "images": a,
            "videos": b,
        }
        for i, (a, b) in enumerate(media)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    entry = {
        "file_name": "rows.json", "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images", "videos": "videos"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                 "assistant_tag": "assistant"},
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps({"rows": entry}))
    return folder


def write_yaml(path, model, data, **keys):
    tree = {
        "model_name_or_path": str(model), "stage": "sft", "do_train": True,
        "finetuning_type": "full", "template": "qwen2_vl", "video_fps": 4.0, "max_steps": 1,
        "dataset": "rows", "dataset_dir": str(data), "output_dir": str(path.parent / "out"),
        "flash_attn": "sdpa", "learning_rate": 1e-5, "per_device_train_batch_size": 1, **keys,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(tree))
    return path


def assert_equals_batches(budget, runner):
    """Compare with what the collator makes of the real media."""
    (part,) = runner.splits["train"].parts
    limit = runner.collate.max_len
    runner.collate.max_len = 10**9
    batches = [runner.collate([part[i]]) for i in range(len(part))]
    assert budget.totals == [batch["input_ids"].shape[1] for batch in batches]
    for kind in ("image", "clip"):
        lengths = [sum(r.length for r in batch["runs"] if r.kind == kind) for batch in batches]
        assert [tokens[kind] for tokens in budget.tokens] == lengths
    runner.collate.max_len = limit


@pytest.mark.slow
def test_budgets_equal_batches(tiny, family, tmp_path):
    path = write_yaml(tmp_path / "x.yaml", tiny(family), write_corpus(tmp_path / "data"))
    experiment = load(Training, path)
    runner = build_runner(experiment)
    (budget,) = of_runner(experiment, runner)
    assert_equals_batches(budget, runner)
    assert not budget.shrunk and not budget.too_long and not budget.failed


@pytest.mark.slow
def test_reduced_samples_are_those_that_training_reduces(tiny, tmp_path):
    data = write_corpus(tmp_path / "data")
    path = write_yaml(tmp_path / "x.yaml", tiny("qwen2_5_vl"), data, cutoff_len=140)
    experiment = load(Training, path)
    runner = build_runner(experiment)
    (budget,) = of_runner(experiment, runner)
    assert_equals_batches(budget, runner)
    (part,) = runner.splits["train"].parts
    fits, reduced = [], []
    for i in range(len(part)):
        sample = part[i]
        long = budget.totals[i] > 140
        try:
            batch = runner.collate([sample])
        except ValueError:
            continue
        fits.append(sample["sample_id"])
        assert batch["input_ids"].shape[1] <= 140
        reduced += [sample["sample_id"]] if long else []
    assert reduced and budget.shrunk == reduced
    assert [name for name, _ in budget.too_long] == [
        f"s{i}" for i in range(6) if f"s{i}" not in fits
    ]
    assert "reduced to fit into the context: " in str(budget)


@pytest.mark.slow
def test_media_that_may_not_be_reduced_are_named(tiny, tmp_path):
    data = write_corpus(tmp_path / "data")
    path = write_yaml(tmp_path / "x.yaml", tiny("qwen2_5_vl"), data)
    experiment = load(Training, path, ["cutoff_len=140", "model.media.shrink=false"])
    (budget,) = of_runner(experiment, build_runner(experiment))
    assert not budget.shrunk and budget.too_long
    assert all(count > 140 for _, count in budget.too_long)


@pytest.mark.slow
def test_validation_needs_no_weights_and_counts_the_same(tiny, family, tmp_path, capsys):
    data, model = write_corpus(tmp_path / "data"), tmp_path / "model"
    model.mkdir()
    for file in tiny(family).iterdir():
        if file.suffix != ".safetensors":
            (model / file.name).symlink_to(file)
    path = write_yaml(tmp_path / "x.yaml", model, data)
    assert validate.check(load(Training, path), None) == []
    counted = capsys.readouterr().out
    path = write_yaml(tmp_path / "y.yaml", tiny(family), data)
    experiment = load(Training, path)
    (budget,) = of_runner(experiment, build_runner(experiment))
    assert str(budget) in counted


@pytest.mark.slow
def test_samples_that_do_not_fit_are_problems(tiny, tmp_path):
    data = write_corpus(tmp_path / "data")
    path = write_yaml(tmp_path / "x.yaml", tiny("llava_onevision"), data, cutoff_len=70)
    problems = validate.check(load(Training, path), None)
    assert problems and all("but the context is 70 tokens long" in p for p in problems)
    assert any(p.startswith("llama_factory: record s1: ") for p in problems)


def test_a_missing_model_does_not_stop_the_check_of_the_data(tmp_path, capsys):
    path = write_yaml(tmp_path / "x.yaml", tmp_path / "gone", write_corpus(tmp_path / "data"))
    assert validate.check(load(Training, path), None) == []
    assert "token budget: not computed, since model.path: " in capsys.readouterr().out


def cmr_yaml(folder, name, model, data, **changes):
    """CMR-VL's own file, with our model and folders."""
    tree = yaml.safe_load((data / "cmr/cmr_vl" / name).read_text())
    tree |= {
        "model_name_or_path": str(model), "output_dir": str(folder / "out"),
        "dataset_dir": str(write_cmr_demo(folder / "data", data)), **changes,
    }  # fmt: skip
    path = folder / name
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.slow
@pytest.mark.data
def test_cmr_vl_has_144_tokens_of_images_and_688_of_the_movie(
    tiny, tmp_path, real_data, monkeypatch, capsys
):
    """Its settings: at most 147,456 pixels per image, 65,536 per frame, 4 frames per second."""
    path = cmr_yaml(tmp_path, "qwen2_5vl_sft_train.yaml", tiny("qwen2_5_vl"), real_data)
    command = ["v", "--cfg-path", str(path), "--sheet", str(tmp_path / "s.png")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(InputError, match="is in two splits"):  # the demo repeats its pictures
        validate_command.main()
    printed = capsys.readouterr().out
    assert "images of 124 x 118, read at 112 x 112: 16 tokens each" in printed
    assert "1 clip of 86 frames of 112 x 98, read at 112 x 112: 688 tokens" in printed
    experiment = load(Training, path)
    train, val = of_runner(experiment, build_runner(experiment))
    counts = dict(zip(ids(tmp_path), train.tokens, strict=True))
    assert counts["effusion"]["image"] == 144 and counts["motion"]["clip"] == 688
    assert train.tokens == val.tokens and str(train) in printed and str(val) in printed
    assert train.context == 4096  # the tiny model's own, below cutoff_len 5120


def ids(folder):
    return [row["id"] for row in json.loads((folder / "data/cmr_train.json").read_text())]


@pytest.mark.slow
@pytest.mark.data
def test_a_file_for_prediction_is_validated_too(tiny, tmp_path, real_data, monkeypatch, capsys):
    path = cmr_yaml(tmp_path, "qwen2_5vl_sft_val.yaml", tiny("qwen2_5_vl"), real_data)
    command = ["v", "--cfg-path", str(path), "--sheet", str(tmp_path / "s.png")]
    monkeypatch.setattr("sys.argv", command)
    validate_command.main()
    assert "llama_factory test: tokens per sample; 6 samples" in capsys.readouterr().out


@pytest.mark.slow
def test_a_dry_run_prints_the_table_before_its_step(tiny, tmp_path, monkeypatch, capsys):
    import train

    path = write_yaml(tmp_path / "x.yaml", tiny("qwen2_vl"), write_corpus(tmp_path / "data"))
    monkeypatch.setattr("sys.argv", ["train.py", "--cfg-path", str(path), "--dry-run"])
    monkeypatch.chdir(REPO)
    train.main()
    *table, last = capsys.readouterr().out.strip().splitlines()
    assert table[0].startswith("llama_factory train: tokens per sample; 6 samples; context 4,096")
    assert json.loads(last)["rows"] == 1
