"""`run.profile` says where a step's time went, and changes nothing of the training."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.killing import same, weights
from tests.runners.test_train_loop import runner_of


def shares(folder) -> dict[str, float]:
    text = (folder / "profile.txt").read_text()
    rows = re.findall(r"^(data|forward|backward|end|rest) +[\d.]+ +([\d.]+)%$", text, re.M)
    return {name: float(share) for name, share in rows}


@pytest.mark.slow
@pytest.mark.parametrize("slow", ["data", "forward"])
def test_the_slow_part_is_named(tmp_path, toy, slow, monkeypatch):
    options = ["run.profile=true", "run.eval_every=0", "run.save_every=0", "run.max_steps=7"]
    runner = runner_of(tmp_path, toy, *options)

    def slowly(original):
        def wait(*given, **named):
            time.sleep(0.3)
            return original(*given, **named)

        return wait

    where, name = (runner, "collate") if slow == "data" else (runner.task, "loss")
    monkeypatch.setattr(where, name, slowly(getattr(where, name)))
    runner.train()
    found = shares(runner.run_folder)
    assert sum(found.values()) == pytest.approx(100, abs=0.5)
    assert max(found, key=found.__getitem__) == slow


@pytest.mark.slow
def test_a_profiled_run_is_the_same_run(tmp_path, toy):
    plain = runner_of(tmp_path, toy, name="plain")
    plain.train()
    looked_at = runner_of(tmp_path, toy, "run.profile=true", name="looked_at")
    looked_at.train()
    assert same(weights(plain.run_folder), weights(looked_at.run_folder))
    assert not (plain.run_folder / "profile.txt").exists()
    text = (looked_at.run_folder / "profile.txt").read_text()
    assert text.startswith("4 steps, ")
    # What a linear layer costs is counted.
    assert re.search(r"^aten::(add)?mm .* \d+\.\d\d$", text, re.M)
    events = json.loads((looked_at.run_folder / "trace.json").read_text())["traceEvents"]
    assert sum(e["name"] == "step/backward" and e.get("ph") == "X" for e in events) >= 4
