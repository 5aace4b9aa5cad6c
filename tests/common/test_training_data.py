"""The licences of a model's training data, from its corpora to the manifests of later models."""

import json
import logging

import pytest

from tests.conftest import REPO
from tests.runners.test_train_loop import runner_of
from xraygpt.common.checkpoint import read_manifest, verify_manifest
from xraygpt.common.training_data import (
    TrainingData,
    corpus_name,
    log_training_data,
    manifest_entry,
    merge,
    read_training_data,
)

FILMS = TrainingData("IU X-ray", "CC BY-NC-ND 4.0", 2882, synthetic=False)
PHANTOMS = TrainingData("SYNTHETIC phantoms", "Apache-2.0", 2000, synthetic=True)


def test_one_line_names_all_corpora(caplog):
    with caplog.at_level(logging.INFO):
        log_training_data((FILMS, PHANTOMS))
        log_training_data(())
    assert caplog.messages == [
        "trained on: IU X-ray (CC BY-NC-ND 4.0, 2,882 images), SYNTHETIC phantoms (2,000)"
    ]
    texts = TrainingData("own", "", 0, synthetic=False)
    assert str(texts) == "own (texts only)"


def test_corpora_are_merged_by_name():
    texts_only = TrainingData("IU X-ray", "", 0, synthetic=False)
    assert merge([texts_only, PHANTOMS, FILMS]) == (FILMS, PHANTOMS)
    assert merge([]) == ()


def test_rows_survive_a_manifest_and_bad_rows_are_skipped(tmp_path, caplog):
    (tmp_path / "llm").mkdir()
    entry = manifest_entry((FILMS, PHANTOMS))
    manifest = tmp_path / "MANIFEST.json"
    manifest.write_text(json.dumps(entry))
    assert read_training_data(tmp_path) == (FILMS, PHANTOMS)
    assert read_training_data(tmp_path / "llm") == (FILMS, PHANTOMS)  # a part of the model
    entry["trained_on"][0].pop("licence")
    manifest.write_text(json.dumps(entry))
    assert read_training_data(tmp_path) == (PHANTOMS,)
    assert "invalid row" in caplog.text
    assert read_training_data(tmp_path / "none") == read_training_data(None) == ()


@pytest.mark.parametrize("name", ["xraygpt_mini", "xraygpt_mini_smollm2"])
def test_the_models_in_the_repository_name_their_data(name):
    folder = REPO / "weights" / name
    verify_manifest(folder)
    assert read_training_data(folder) == (FILMS, PHANTOMS)
    assert read_training_data(folder / "encoder") == (FILMS, PHANTOMS)


def test_names_of_corpora(tmp_path):
    assert corpus_name(tmp_path / "iu_xray", "codes") == "IU X-ray"
    assert corpus_name(tmp_path / "ward", "codes") == "ward"


@pytest.mark.slow
def test_a_run_records_its_data_and_that_of_the_model_it_starts_from(toy, tmp_path):
    once = ["run.max_steps=1", "run.eval_every=0"]
    first = runner_of(tmp_path, toy, *once, "datasets.toy.licence=CC0 1.0", name="first")
    first.train()
    rows = read_training_data(first.run_folder)
    assert [(r.name, r.licence, r.synthetic) for r in rows] == [("corpus", "CC0 1.0", False)]
    paths = {ref.path for r in first.splits["train"].parts[0].records for ref in r.media}
    assert rows[0].images == len(paths) > 0
    start = f"model.ckpt={first.run_folder}"
    other = toy.rename(tmp_path / "other")
    second = runner_of(tmp_path, other, *once, start, name="second")
    second.train()
    names = [row.name for row in read_training_data(second.run_folder)]
    assert names == ["other", "corpus"]
    step = second.run_folder / "checkpoints" / "step-1"
    assert read_manifest(step)["trained_on"][1]["licence"] == "CC0 1.0"
