"""Shared fixtures: the real corpora, and a toy corpus whose answers depend on the image."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

REPO = Path(__file__).parent.parent


def data_root() -> Path | None:
    configured = os.environ.get("XRAYGPT_DATA")
    path = Path(configured) if configured else REPO.parent / "shared" / "data"
    return path if path.is_dir() else None


@pytest.fixture(scope="session")
def real_data() -> Path:
    root = data_root()
    if root is None:
        pytest.skip("the real corpora are not available (XRAYGPT_DATA)")
    os.environ["XRAYGPT_DATA"] = str(root)
    return root


# The longest slow tests start first, so that both workers finish at about the same time.
LONGEST = (
    "test_page", "test_real_run", "test_killed", "test_box", "test_users", "test_train_loop",
    "test_zero", "test_compiling", "test_quickstart", "test_dry_run", "test_curation_page",
    "test_table", "test_lavis_benchmark", "test_own_data", "test_coco", "test_yes_no",
)  # fmt: skip
# Slow tests that take a minute or more a file; `make test` leaves them to `make test-all`.
LEFT_TO_TEST_ALL = (
    "test_lavis_benchmark", "test_table", "test_full_size", "test_compiling", "test_zero",
    "test_curation_page", "test_users", "test_nnunet", "test_coco",
)  # fmt: skip
ALL_TESTS = "XRAYGPT_ALL_TESTS"  # environment variable


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}

    def rank_of(item: pytest.Item) -> int:
        slow = item.get_closest_marker("slow")
        return ranks.get(item.path.stem, len(ranks)) if slow else -1

    items.sort(key=rank_of)
    if ALL_TESTS not in os.environ:
        left = pytest.mark.skip(reason="takes minutes: make test-all")
        for item in items:
            if item.get_closest_marker("slow") and item.path.stem in LEFT_TO_TEST_ALL:
                item.add_marker(left)


def pytest_collection_finish() -> None:
    """Exclude imported modules, which are never freed, from garbage collection."""
    gc.collect()
    gc.freeze()


def worker_group(test: str) -> str:
    """Group of tests that run in the same worker: a file if its tests share fixtures or caches."""
    name = test.split("::")[0]
    text = (REPO / name).read_text(encoding="utf-8")
    return name if 'scope="module"' in text or "@cache\n" in text else test


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Implement ``--dist loadgroup``; that of xdist finds no groups with this pytest version."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = worker_group
    return scheduler


@pytest.fixture(autouse=True)
def no_plot(request, monkeypatch):
    """Skip the loss plot in fast tests, where it takes as long as the training."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr("xraygpt.runners.logs.plot_losses", lambda rows, path: None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep tests from using the user's feature cache."""
    if "XRAYGPT_TEST_CACHE" not in os.environ:
        monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


ANSWERS = {
    "left": "Left.",
    "right": "On the right.",
    "none": "Clear lungs.",
}


def toy_image(kind: str, seed: int) -> np.ndarray:
    """32×32 noise; a bright square on one side, or none."""
    pixels = np.random.default_rng(seed).integers(0, 60, (32, 32))
    if kind != "none":
        column = 18 if kind == "left" else 4
        pixels[8:22, column : column + 10] = 230
    return pixels.astype(np.uint8)


def write_toy_corpus(folder: Path, count: int = 48, text_only: int = 0) -> Path:
    """Write a corpus in the JSONL layout of `records`; every fourth study is val."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        kind = list(ANSWERS)[i % 3]
        name = f"images/s{i}.png"
        Image.fromarray(toy_image(kind, i)).save(folder / name)
        rows.append(
            {
                "id": f"s{i}",
                "study": f"study{i}",
                "split": "val" if i % 4 == 3 else "train",
                "images": [{"path": name, "view": "frontal"}],
                "turns": [
                    {"role": "user", "text": "What is there?"},
                    {"role": "assistant", "text": ANSWERS[kind]},
                ],
            }
        )
    for i in range(text_only):
        rows.append(
            {
                "id": f"t{i}",
                "study": f"text{i}",
                "split": "train",
                "images": [],
                "turns": [
                    {"role": "user", "text": "Say something."},
                    {"role": "assistant", "text": "Something" + " more" * i + "."},
                ],
            }
        )
    (folder / "corpus.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture(scope="session")
def reading(tmp_path_factory) -> Path:
    """A folder with a toy corpus, `corpus`, and a run trained on it, `out`.

    It is trained once for all test processes, and read-only for tests.
    """
    from filelock import FileLock

    from tests.runners.test_train_loop import runner_of

    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = root / "reading", root / "reading.done"
    with FileLock(root / "reading.lock"):
        if not done.exists():
            corpus = write_toy_corpus(folder / "corpus")
            options = ["run.max_steps=200", "run.save_every=0", "run.eval_every=0"]
            options += ["run.init_lr=2e-3", "run.lr_sched=constant_lr"]
            runner_of(folder, corpus, *options).train()
            done.touch()
    return folder


@pytest.fixture
def toy(tmp_path) -> Path:
    return write_toy_corpus(tmp_path / "corpus")


def toy_yaml(folder: Path, run: str, model: str = "", data: str = "") -> str:
    """A training YAML over a toy corpus with the tiny model."""
    return f"""
model:
  arch: xraygpt
  model_type: tiny
  prompt_template: xraygpt
{model}
datasets:
  toy:
    builder: records
    storage: {folder}
{data}
run:
{run}
"""
