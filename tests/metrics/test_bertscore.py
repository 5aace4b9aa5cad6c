"""BERTScore on tiny random encoders: computed by hand, edge cases, against bert-score."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from xraygpt.common.errors import InputError, WeightsError
from xraygpt.metrics.bertscore import BertScorer, bert_scores

WORDS = ["the", "heart", "is", "normal", "no", "small", "left", "right", "effusion", "new", "seen"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = [*SPECIAL, *WORDS, "##s", ".", "pneumo", "##thorax"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 40}')
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.5,  # larger than usual, so that cosines differ
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> Path:
    from transformers import RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("roberta")
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyz.Ġ"]
    merges = ["t h", "th e", "Ġ the", "Ġ n", "n o"]
    pieces += ["th", "the", "Ġthe", "Ġn", "no"]
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    # bert-score requests a leading space in a way that transformers 5 ignores; this adds it.
    settings = {"model_max_length": 200, "add_prefix_space": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=202,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        initializer_range=0.5,
    )
    RobertaModel(config).save_pretrained(folder)
    return folder


def texts(seed: int, n: int, longest: int = 30) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) + "." for _ in range(n)]


@pytest.mark.slow
@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.parametrize("encoder", ["bert", "roberta"])
def test_scores_equal_the_bert_score_package(encoder, idf, request):
    """Largest difference of 2,400 pairs 4e-7: the package sums in float32, ours in float64."""
    pytest.importorskip("bert_score", reason="pip install --no-deps bert-score==0.3.13")
    from bert_score.utils import bert_cos_score_idf, get_idf_dict, get_model, get_tokenizer

    folder = request.getfixturevalue(encoder)
    predictions, references = texts(1, 60), texts(2, 60)
    tokenizer = get_tokenizer(str(folder))
    table: dict = defaultdict(lambda: 1.0)
    table |= {tokenizer.sep_token_id: 0, tokenizer.cls_token_id: 0}
    if idf:
        table = get_idf_dict(references, tokenizer, nthreads=0)
    model = get_model(str(folder), 2)
    # One pair at a time: in a batch, the package matches padding with cosine 0, above negatives.
    expected = bert_cos_score_idf(
        model, references, predictions, tokenizer, table, device="cpu", batch_size=1
    ).numpy()
    overlap = BertScorer(folder, 2, batch_size=7).score(predictions, references, idf=idf)
    assert np.ptp(expected[:, 2]) > 0.05  # the pairs do differ
    for column, values in enumerate((overlap.precision, overlap.recall, overlap.f1)):
        np.testing.assert_allclose(values, expected[:, column], rtol=0, atol=1e-5)


def test_byte_level_tokenizers_encode_the_first_word_like_any_other(roberta, tmp_path):
    shutil.copytree(roberta, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 200}')
    predictions, references = texts(1, 5), texts(2, 5)
    plain, spaced = BertScorer(tmp_path, 2), BertScorer(roberta, 2)
    scores = [scorer.score(predictions, references).f1.tolist() for scorer in (plain, spaced)]
    assert scores[0] == scores[1]


def test_baseline_rescales_scores(bert):
    scorer = BertScorer(bert, 1)
    raw, floor = scorer.score(["the heart"], ["no effusion"]), (0.2, 0.3, 0.4)
    scaled = scorer.score(["the heart"], ["no effusion"], baseline=floor)
    assert scaled.precision[0] == pytest.approx((raw.precision[0] - 0.2) / 0.8)
    assert scaled.f1[0] == pytest.approx((raw.f1[0] - 0.4) / 0.6)


def test_equal_texts_score_1_and_swapping_sides_swaps_precision_and_recall(bert):
    scorer = BertScorer(bert, 3)
    same = scorer.score(["the heart is normal."], ["the heart is normal."])
    assert same.f1[0] == pytest.approx(1, abs=1e-6)
    forward = scorer.score(["the heart"], ["no small effusion"])
    backward = scorer.score(["no small effusion"], ["the heart"])
    assert forward.precision[0] == pytest.approx(backward.recall[0])
    assert forward.precision[0] != pytest.approx(forward.recall[0])


@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.parametrize("baseline", [None, (0.8, 0.8, 0.8)])
def test_empty_texts_score_zero(bert, idf, baseline):
    predictions = ["", "the heart", "  \n ", "", "the heart"]
    references = ["the heart", "", "the heart", "", "the heart"]
    overlap = BertScorer(bert, 2).score(predictions, references, idf=idf, baseline=baseline)
    for values in (overlap.precision, overlap.recall, overlap.f1):
        assert values[:4].tolist() == [0, 0, 0, 0]
        assert values[4] == pytest.approx(1, abs=1e-5)
    assert len(BertScorer(bert, 2).score([], []).f1) == 0


def test_idf_of_a_single_reference_gives_no_nan(bert):
    overlap = BertScorer(bert, 2).score(["no left effusion"], ["the heart is normal"], idf=True)
    plain = BertScorer(bert, 2).score(["no left effusion"], ["the heart is normal"])
    assert np.isfinite([overlap.precision[0], overlap.recall[0], overlap.f1[0]]).all()
    assert overlap.precision[0] == pytest.approx(plain.precision[0])  # unseen tokens: equal weights
    assert overlap.recall[0] == pytest.approx(plain.recall[0])  # all tokens seen: weight 0


def test_idf_weights_rare_words_more(bert):
    references = ["the heart", "the heart", "the effusion"]
    scorer = BertScorer(bert, 2)
    plain = scorer.score(["the"] * 3, references)
    weighted = scorer.score(["the"] * 3, references, idf=True)
    assert weighted.recall[0] != pytest.approx(plain.recall[0], abs=1e-3)  # "the" has weight 0
    assert weighted.precision[0] == pytest.approx(plain.precision[0], abs=1e-5)


def test_batch_size_does_not_change_scores(bert):
    predictions, references = texts(3, 20), texts(4, 20)
    single, batched = BertScorer(bert, 2, batch_size=1), BertScorer(bert, 2, batch_size=20)
    scores = [scorer.score(predictions, references).f1 for scorer in (single, batched)]
    np.testing.assert_allclose(*scores, atol=1e-6)


def test_long_texts_are_truncated(bert):
    long = " ".join(["heart"] * 500)
    assert 0 < BertScorer(bert, 2).score([long], ["the heart"]).f1[0] <= 1


def test_scores_have_n_and_an_interval(bert):
    scores = bert_scores(BertScorer(bert, 2), texts(5, 12), texts(6, 12), idf=True)
    assert [s.name for s in scores] == [f"BERTScore_{p}" for p in ("precision", "recall", "F1")]
    assert all(s.n == 12 and s.low < s.value < s.high for s in scores)
    assert "layer 2, idf" in scores[0].signature


def test_invalid_inputs_raise(bert, tmp_path):
    with pytest.raises(InputError, match="no layer 9; choose one of 0 to 3"):
        BertScorer(bert, 9)
    with pytest.raises(InputError, match=r"no config\.json"):
        BertScorer(tmp_path, 1)
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    with pytest.raises(WeightsError, match="cannot be loaded"):
        BertScorer(tmp_path, 1)
    with pytest.raises(InputError, match="1 predictions for 2"):
        BertScorer(bert, 1).score(["a"], ["a", "b"])
    with pytest.raises(InputError, match="below 1"):
        BertScorer(bert, 1).score(["a"], ["a"], baseline=(1.0, 0.5, 0.5))
