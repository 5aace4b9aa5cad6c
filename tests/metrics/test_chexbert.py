"""CheXbert: loading, labels and F1, against f1chexbert's network and scikit-learn."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import classification_report, f1_score

from xraygpt.common.errors import InputError, WeightsError
from xraygpt.metrics.chexbert import COMPETITION_FINDINGS, FINDINGS, CheXbert, chexbert_scores
from xraygpt.vocabulary.chest_labeller import CHEXPERT_FINDINGS

WORDS = ["the", "heart", "is", "normal", "no", "small", "left", "right", "effusion", "new", "seen"]
REPORTS = ["", "the heart is normal", "no left\n\n effusion seen", "new device " * 60, "xyz"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def weights(bert: Path) -> dict[str, torch.Tensor]:
    """Weights named as in the published file, with DataParallel's prefix."""
    from transformers import BertModel

    torch.manual_seed(1)
    model = BertModel.from_pretrained(bert)
    state = {f"module.bert.{k}": v for k, v in model.state_dict().items()}
    for i in range(14):
        head = torch.nn.Linear(32, 4 if i < 13 else 2)
        state[f"module.linear_heads.{i}.weight"] = head.weight.detach()
        state[f"module.linear_heads.{i}.bias"] = head.bias.detach()
    return state


@pytest.fixture(scope="module")
def checkpoint(bert, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "chexbert.pth"
    torch.save({"epoch": 3, "model_state_dict": weights(bert)}, path)
    return path


def test_logits_equal_f1chexbert(bert, checkpoint):
    """Bit-identical when written; the tolerance is for other kernels."""
    pytest.importorskip("f1chexbert", reason="pip install --no-deps f1chexbert==0.0.2 appdirs")
    with warnings.catch_warnings():
        from f1chexbert.f1chexbert import bert_labeler, generate_attention_masks
    reference = bert_labeler(pretrain_path=str(bert)).eval()
    reference.load_state_dict({k.removeprefix("module."): v for k, v in weights(bert).items()})
    labeller = CheXbert(checkpoint, bert)
    encoded = labeller._tokenizer(REPORTS, truncation=True, max_length=48, padding=True)
    ids, lengths = torch.tensor(encoded["input_ids"]), [sum(m) for m in encoded["attention_mask"]]
    with torch.no_grad():
        expected = reference(ids, generate_attention_masks(ids, lengths, torch.device("cpu")))
    for logits, other in zip(labeller.logits(REPORTS), expected, strict=True):
        np.testing.assert_allclose(logits, other.numpy(), rtol=0, atol=1e-5)


def test_labels_and_vectors_match_the_logits(bert, checkpoint):
    labeller = CheXbert(checkpoint, bert)
    labels, logits = labeller.label(REPORTS), labeller.logits(REPORTS)
    assert labels.shape == (5, 14) and labels.dtype == np.int64
    assert labels.tolist() == np.stack([head.argmax(1) for head in logits], axis=1).tolist()
    assert len(np.unique(labels, axis=0)) > 2  # the reports get different labels
    vectors = labeller.embed(REPORTS)
    head = weights(bert)["module.linear_heads.4.weight"].numpy()
    bias = weights(bert)["module.linear_heads.4.bias"].numpy()
    np.testing.assert_allclose(vectors @ head.T + bias, logits[4], atol=1e-5)
    assert labeller.label([]).shape == (0, 14) and labeller.embed([]).shape == (0, 32)


def test_white_space_and_batching_do_not_change_vectors(bert, checkpoint):
    labeller = CheXbert(checkpoint, bert)
    a, b = labeller.embed(["no  left \n effusion", *REPORTS])[0], labeller.embed([REPORTS[2][:18]])
    np.testing.assert_allclose(a, b[0], atol=1e-5)


def test_findings_match_the_vocabulary():
    assert set(FINDINGS) == set(CHEXPERT_FINDINGS)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_mismatched_weights_raise(bert, tmp_path, change):
    state = weights(bert)
    if change == "missing":
        del state["module.linear_heads.3.bias"]
    elif change == "unexpected":
        state["module.linear_heads.14.bias"] = torch.zeros(2)
    else:
        state["module.linear_heads.3.bias"] = torch.zeros(2)
    path = tmp_path / "chexbert.pth"
    torch.save({"model_state_dict": state}, path)
    messages = {"missing": "missing", "unexpected": "unexpected", "shape": r"is \(2,\) instead"}
    with pytest.raises(WeightsError, match=f"1 weights do not fit.*{messages[change]}"):
        CheXbert(path, bert)


def test_buffers_of_old_transformers_are_ignored(bert, tmp_path):
    state = weights(bert) | {"module.bert.embeddings.position_ids": torch.arange(48)[None]}
    torch.save({"model_state_dict": state}, tmp_path / "chexbert.pth")
    assert CheXbert(tmp_path / "chexbert.pth", bert).label(["the heart"]).shape == (1, 14)


def test_invalid_checkpoints_raise(bert, tmp_path):
    path = tmp_path / "chexbert.pth"
    with pytest.raises(InputError, match="no such file"):
        CheXbert(path, bert)
    with pytest.raises(InputError, match=r"no config\.json"):
        CheXbert(path, tmp_path)
    path.write_bytes(b"junk")
    with pytest.raises(WeightsError, match="not a tensor-only checkpoint"):
        CheXbert(path, bert)
    torch.save({"model_state_dict": {"a": Path("code would run")}}, path)
    with pytest.raises(WeightsError, match="not a tensor-only checkpoint"):
        CheXbert(path, bert)
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="no model_state_dict"):
        CheXbert(path, bert)


def labels(seed: int, n: int = 60) -> np.ndarray:
    values = np.random.default_rng(seed).choice(4, (n, 14), p=[0.5, 0.25, 0.15, 0.1])
    values[:, 13] %= 2
    values[:, 11] = 0  # no fracture
    return values


def by_name(*args, **kwargs) -> dict[str, float]:
    return {s.name: s.value for s in chexbert_scores(*args, **kwargs)}


COLUMNS = {"14": list(range(14)), "5": [FINDINGS.index(n) for n in COMPETITION_FINDINGS]}


@pytest.mark.parametrize("policy", ["positive", "negative", "class"])
@pytest.mark.parametrize("size", ["14", "5"])
@pytest.mark.parametrize("mean", ["micro", "macro"])
def test_f1_equals_scikit_learn(policy, size, mean):
    predictions, references = labels(1)[:, COLUMNS[size]], labels(2)[:, COLUMNS[size]]

    def binary(values: np.ndarray) -> np.ndarray:
        if policy == "positive":
            return np.isin(values, [1, 3])
        if policy == "negative":
            return values == 1
        return np.hstack([values == 1, values[:, : 13 if size == "14" else 5] == 3])

    expected = f1_score(binary(references), binary(predictions), average=mean, zero_division=0)
    score = by_name(labels(1), labels(2), uncertain=policy)[f"chexbert_{size}_{mean}_F1"]
    assert score == pytest.approx(expected, abs=1e-12)


def test_f1_equals_the_classification_report_of_f1chexbert():
    predictions, references = (np.isin(labels(k), [1, 3]).astype(int) for k in (1, 2))
    scores = by_name(labels(1), labels(2))
    for size, columns in COLUMNS.items():
        report = classification_report(
            references[:, columns], predictions[:, columns], output_dict=True, zero_division=0
        )
        for mean in ("micro", "macro"):
            expected = report[f"{mean} avg"]["f1-score"]
            assert scores[f"chexbert_{size}_{mean}_F1"] == pytest.approx(expected, abs=1e-12)


def test_ignored_cells_are_excluded_from_both_means():
    predictions, references = labels(1), labels(2)
    valid = (predictions != 3) & (references != 3)
    scores = by_name(predictions, references, uncertain="ignore")
    for size, columns in COLUMNS.items():
        cells = [
            (references[valid[:, c], c] == 1, predictions[valid[:, c], c] == 1) for c in columns
        ]
        values = [f1_score(t, s, zero_division=0) for t, s in cells]
        pooled = f1_score(*(np.concatenate(side) for side in zip(*cells, strict=True)))
        assert scores[f"chexbert_{size}_macro_F1"] == pytest.approx(np.mean(values), abs=1e-12)
        assert scores[f"chexbert_{size}_micro_F1"] == pytest.approx(pooled, abs=1e-12)


def test_policies_by_hand():
    """One finding, predictions: positive, uncertain, positive; references: positive, positive,
    uncertain."""
    predictions, references = np.zeros((3, 14), int), np.zeros((3, 14), int)
    predictions[:, 1], references[:, 1] = [1, 3, 1], [1, 1, 3]
    f1 = {
        p: by_name(predictions, references, uncertain=p)["chexbert_5_micro_F1"]
        for p in ("positive", "negative", "ignore", "class")
    }
    assert f1 == {"positive": 1, "negative": 0.5, "ignore": 1, "class": pytest.approx(2 / 6)}


def test_intervals_and_invalid_inputs():
    score = chexbert_scores(labels(1), labels(2), groups=[f"s{i // 2}" for i in range(60)])[0]
    assert score.n == 60 and score.low < score.value < score.high
    with pytest.raises(InputError, match=r"shape \(3, 5\)"):
        chexbert_scores(np.zeros((3, 5)), np.zeros((3, 14)))
    with pytest.raises(InputError, match=r"contain 0\.0, 7\.0; valid"):
        chexbert_scores(np.zeros((3, 14)), np.full((3, 14), 7) * np.eye(3, 14))
    with pytest.raises(InputError, match="labels of 3 predictions for 2"):
        chexbert_scores(np.zeros((3, 14)), np.zeros((2, 14)))
    with pytest.raises(InputError, match="choose one of positive, negative, ignore, class"):
        chexbert_scores(np.zeros((3, 14)), np.zeros((3, 14)), uncertain="maybe")
    assert len(chexbert_scores(np.zeros((0, 14)), np.zeros((0, 14)))) == 4
