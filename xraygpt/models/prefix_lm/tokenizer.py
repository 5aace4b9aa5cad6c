"""Byte-level BPE tokenizers for reports, trained on the training split.

The pre-tokenisation is nanochat's: words with the space before them, digits in groups of at most
two. Any text can be encoded.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# The order of the first three and of the chat tokens is that of nanochat and echovlm.
SPECIAL_TOKENS = (
    "<|bos|>", "<|eos|>", "<|pad|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>",
    "<|assistant_end|>",
)  # fmt: skip
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)"  # contractions
    r"|[^\r\n\p{L}\p{N}]?+\p{L}+"  # a word with the character before it
    r"|\p{N}{1,2}"  # digits
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*"  # punctuation
    r"|\s*[\r\n]|\s+(?!\S)|\s+"  # white space
)


def new_report_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer.

    Args:
        texts: The training texts; they may be generated one by one.
        vocab_size: Maximum number of entries, including bytes and special tokens.
    """
    core = Tokenizer(models.BPE(byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return wrap_tokenizer(core, SPECIAL_TOKENS)


def wrap_tokenizer(core: Tokenizer, specials: Iterable[str]) -> PreTrainedTokenizerFast:
    """Add special tokens, of which the first three begin, end and pad a report."""
    names = list(specials)
    core.add_special_tokens(names)
    bos, eos, pad, *others = names
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=others,
        clean_up_tokenization_spaces=False,
    )
