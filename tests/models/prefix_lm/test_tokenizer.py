"""Tokenizers for reports, beside those of rustbpe, which echovlm uses."""

from __future__ import annotations

import json

import pytest
from transformers import PreTrainedTokenizerFast

from xraygpt.models.llm.token_bytes import count_token_bytes
from xraygpt.models.prefix_lm.tokenizer import PATTERN, SPECIAL_TOKENS, new_report_tokenizer

TEXTS = ["The ejection fraction is 55-60 %.", "Größe 4 µm, it's mild\n\nNo effusion."]


@pytest.fixture(scope="module")
def tokenizer():
    return new_report_tokenizer(iter(TEXTS * 3), 300)


@pytest.mark.parametrize("text", [*TEXTS, "心臓 12345 \r\n\t x", ""])
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    counts = count_token_bytes(tokenizer)
    assert int(counts[ids].sum()) == len(text.encode())


def test_numbers_are_split_into_pairs_of_digits_at_most(tokenizer):
    tokens = tokenizer.tokenize("12345")
    assert "".join(tokens) == "12345"
    assert all(len(token) <= 2 for token in tokens)


def test_special_tokens_stand_for_no_text(tokenizer):
    counts = count_token_bytes(tokenizer)
    assert len(counts) == len(tokenizer)
    for token in SPECIAL_TOKENS:
        index = tokenizer.convert_tokens_to_ids(token)
        assert index >= 256 and counts[index] == 0
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == SPECIAL_TOKENS[:3]


def test_a_tokenizer_without_bytes_has_no_count():
    from tokenizers import Tokenizer, models

    core = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    words = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<unk>")
    assert count_token_bytes(words) is None


# Tokens of all 3,182 reports with rustbpe 0.1.0 and tiktoken 0.14.0, trained on the train split.
RUSTBPE = {1000: 189_775, 2000: 158_213}


@pytest.mark.slow
@pytest.mark.parametrize("size", RUSTBPE)
def test_reports_have_as_many_tokens_as_with_rustbpe(real_data, size):
    """Of 4,000 entries, two reports differ by one token: both sides break ties in another order."""
    folder = real_data / "iu_xray"
    lines = (folder / "reports.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    held = (folder / "lockbox_studies.txt").read_text().split()
    held += (folder / "test_split_studies.txt").read_text().split()
    texts = [f"{row['findings'] or ''} {row['impression'] or ''}" for row in rows]
    train = [
        text
        for text, row in zip(texts, rows, strict=True)
        if row["split"] == "train" and row["study"] not in held
    ]
    ours = new_report_tokenizer(train, size + len(SPECIAL_TOKENS))
    lengths = [len(x) for x in ours(texts, add_special_tokens=False)["input_ids"]]
    assert sum(lengths) == RUSTBPE[size]
    try:
        import rustbpe
        import tiktoken
    except ImportError:
        return
    theirs = rustbpe.Tokenizer()
    theirs.train_from_iterator(iter(train), size, pattern=PATTERN)
    encoding = tiktoken.Encoding(
        name="reports", pat_str=theirs.get_pattern(), special_tokens={},
        mergeable_ranks={bytes(k): v for k, v in theirs.get_mergeable_ranks()},
    )  # fmt: skip
    assert [len(encoding.encode_ordinary(text)) for text in texts] == lengths
