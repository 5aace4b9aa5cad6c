"""`train.py --dry-run` foretells what a run will hold, and changes nothing."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from tests import processes
from tests.conftest import REPO, toy_yaml, write_toy_corpus
from tests.runners.test_train_loop import RUN, environment, runner_of
from xraygpt.datasets.mixture import longest_rows
from xraygpt.runners.logs import read_rows

WIDE = """
  freeze_llm: false
  lora: null
  llm: {hidden: 1024, layers: 6, heads: 8, vocab_size: 300, context: 256}
"""


def trained(tmp_path, *options):
    corpus = write_toy_corpus(tmp_path / "corpus")
    config = tmp_path / "run.yaml"
    config.write_text(toy_yaml(corpus, RUN % (tmp_path / "out"), WIDE))
    done = processes.run(
        [sys.executable, "train.py", "--cfg-path", str(config), *options],
        cwd=REPO,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_memory_is_foretold(tmp_path):
    """75 M parameters trained: weights, gradients and AdamW's means are 1.2 GB together."""
    told = json.loads(trained(tmp_path, "--dry-run").splitlines()[-1])
    assert told["trained_parameters"] > 70e6 and told["steps"] == 6
    trained(tmp_path, "--options", "run.max_steps=2", "run.save_every=0", "run.eval_every=0")
    (log,) = (tmp_path / "out").glob("*/metrics.jsonl")
    taken = max(row["train/peak_gib"] for row in read_rows(log) if "train/peak_gib" in row)
    assert taken > 1.2
    assert told["peak_gib"] == pytest.approx(taken, rel=0.1)


def test_nothing_is_changed(tmp_path, toy):
    runner = runner_of(tmp_path, toy)
    before = {n: p.clone() for n, p in runner.model.named_parameters()}
    told = runner.dry_run()
    assert told["rows"] == 8 and told["targets"] > 8
    assert all(torch.equal(p, before[n]) for n, p in runner.model.named_parameters())
    assert not (tmp_path / "out").exists()


def test_it_takes_the_longest_rows(tmp_path, toy):
    data = runner_of(tmp_path, toy).splits["train"]

    def length(i):
        part, inner = data.locate(i)
        return sum(len(t["text"]) for t in part.get_turns(inner))

    lengths = sorted((length(i) for i in range(len(data))), reverse=True)
    assert [length(i) for i in longest_rows(data, 8)] == lengths[:8]
    assert lengths[7] > lengths[-1]
    assert len(longest_rows(data, 3, max_scanned=5)) == 3
