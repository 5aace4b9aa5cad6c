"""The token budget of a corpus equals what its collator makes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.conftest import toy_yaml
from xraygpt.common.config import load
from xraygpt.datasets import token_budget
from xraygpt.datasets.token_budget import MediumSize, count_tokens, describe_size
from xraygpt.experiment import Training, build_runner
from xraygpt.jobs.token_budget import of_runner

RUN = "  task: report_generation\n  max_steps: 1\n  device: cpu\n  output_dir: {}"


@pytest.fixture
def runner(tmp_path, toy):
    path = tmp_path / "run.yaml"
    path.write_text(toy_yaml(toy, RUN.format(tmp_path / "out")))
    experiment = load(Training, path)
    return experiment, build_runner(experiment)


def test_a_query_transformer_has_the_tokens_of_its_batches(runner):
    experiment, built = runner
    train, val = of_runner(experiment, built)
    assert (train.name, val.name, train.samples, val.samples) == ("toy train", "toy val", 36, 12)
    for budget, mixture in ((train, built.splits["train"]), (val, built.splits["val"])):
        (part,) = mixture.parts
        batches = [built.collate([part[i]]) for i in range(len(part))]
        assert budget.totals == [batch["input_ids"].shape[1] for batch in batches]
        images = [sum(run.length for run in batch["runs"]) for batch in batches]
        assert [tokens["image"] for tokens in budget.tokens] == images
    (size,) = train.sizes
    assert size.kind == "image" and size.size == (32, 32) and train.sizes[size] == 36


def test_many_samples_are_sampled_evenly_and_the_table_says_so(runner):
    _, built = runner
    (part,) = built.splits["train"].parts
    few = count_tokens("toy train", part, built.collate, max_samples=9)
    every = count_tokens("toy train", part, built.collate)
    assert few.totals == every.totals[::4]
    assert "36 samples, of which 9 evenly spread ones" in str(few)
    assert "36 samples; context" in str(every)


def test_samples_that_cannot_be_used_are_named(runner, toy):
    _, built = runner
    (part,) = built.splits["train"].parts
    (toy / "images" / "s4.png").unlink()
    budget = count_tokens("toy train", part, built.collate)
    assert [name for name, _ in budget.failed] == ["s4"] and len(budget.tokens) == 35
    assert "cannot be used: 1 sample: s4 (" in str(budget)
    assert any("record s4: " in problem for problem in budget.problems())


def test_a_sample_that_is_too_long_is_named(runner):
    _, built = runner
    (part,) = built.splits["train"].parts
    longest = count_tokens("toy train", part, built.collate)
    limit = max(longest.totals) - 1
    built.collate.max_len = limit
    budget = count_tokens("toy train", part, built.collate)
    count = longest.totals.count(limit + 1)
    assert len(budget.too_long) == count and not budget.shrunk
    assert f"do not fit into the context: {count:,} sample" in str(budget)


def test_a_corpus_without_samples_or_text_has_no_table(runner):
    _, built = runner
    (part,) = built.splits["train"].parts
    part.records = part.records[:0]
    assert count_tokens("toy train", part, built.collate) is None


def test_lines_about_media():
    image = MediumSize("image", 1, (118, 124), (112, 112), 16)
    assert describe_size(image, 9) == "9 images of 124 x 118, read at 112 x 112: 16 tokens each"
    clip = MediumSize("clip", 86, (98, 112), (112, 112), 688)
    assert describe_size(clip, 1) == (
        "1 clip of 86 frames of 112 x 98, read at 112 x 112: 688 tokens"
    )
    same = image._replace(resized=(118, 124))
    assert describe_size(same, 1) == "1 image of 124 x 118: 16 tokens"


def test_few_sizes_are_listed(runner, monkeypatch):
    _, built = runner
    (part,) = built.splits["train"].parts
    budget = count_tokens("toy train", part, built.collate)
    (size,) = budget.sizes
    monkeypatch.setattr(token_budget, "MAX_SIZES", 1)
    budget = replace(budget, sizes=budget.sizes + type(budget.sizes)({size._replace(tokens=9): 3}))
    assert "3 media of 1 other sizes" in str(budget)
