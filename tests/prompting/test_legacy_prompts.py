"""`legacy_train` and `legacy_chat` produce the same LLaMA ids as XrayGPT and MiniGPT-4."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from xraygpt.prompting.content import Turn
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID, PromptRenderer, Run

BOS = 1
IMAGE = [IMAGE_TOKEN_ID] * 4
PATIENT = [835, 11457, 993, 29901, 529, 25518, 29958]  # ▁### Pat ient : ▁< Img >
SYSTEM = [
    887, 526, 385, 18860, 15460, 29892, 2367, 278, 1494, 16083, 12812, 29901, 529, 25518, 29958,
    2940, 3916, 829, 25518, 15513, 887, 674, 367, 2221, 304, 1074, 278, 16083, 12812, 2748, 306,
    3867, 372, 304, 366, 29889, 3529, 1234, 590, 5155, 29889,
]  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> PreTrainedTokenizerFast:
    """The part of LLaMA's tokenizer that these prompts use."""
    pieces = json.loads((Path(__file__).parent / "llama_pieces.json").read_text(encoding="utf-8"))
    vocab = pieces["vocab"] | {"<unk>": 0, "<s>": 1, "</s>": 2}
    merges = [tuple(m.split(" ")) for m in pieces["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Replace("▁", " ")
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<s>", "</s>")])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def user(text: str) -> Turn:
    return Turn(role="user", text=text)


def assistant(text: str) -> Turn:
    return Turn(role="assistant", text=text)


def test_second_training_stage(llama):
    renderer = PromptRenderer(llama, "legacy_train")
    turns = [user("<image> Describe this image in detail."), assistant("Heart size is normal.")]
    rendered = renderer.render(turns, [Run(4)])
    question = [1533, 25518, 29958, 20355, 915, 445, 1967, 297, 9493, 29889]
    roles = [835, 6132, 2801, 29901, 29871]  # ▁### Do ctor : ▁
    answer = [17778, 2159, 338, 4226, 29889, 2277, 29937]  # … . ## #
    assert rendered["input_ids"] == [BOS, *PATIENT, *IMAGE, *question, *roles, *answer]
    assert rendered["labels"][-7:] == answer
    assert set(rendered["labels"][:-7]) == {-100}
    assert renderer.stop_strings == ["###"]


def test_first_training_stage(llama):
    """No prompt, only the image, the caption and a line feed."""
    renderer = PromptRenderer(llama, "none", end_sym="\n")
    rendered = renderer.render([user("<image>"), assistant("Heart size is normal.")], [Run(4)])
    assert rendered["input_ids"] == [BOS, *IMAGE, 17778, 2159, 338, 4226, 29889, 13]


def test_chat(llama):
    """The demo tokenises all text between two images as one string, so ### becomes ## #."""
    renderer = PromptRenderer(llama, "legacy_chat")
    opening = [BOS, *SYSTEM, 2277, 29937, 11457, 993, 29901, 529, 25518, 29958, *IMAGE]
    first = [1533, 25518, 29958, 1724, 338, 372, 29973, 2277, 29937, 6132, 2801, 29901]
    assert renderer.render([user("<image> What is it?")], [Run(4)])["input_ids"] == opening + first
    later = [17732, 301, 3085, 29889, 2277, 29937, 11457, 993, 29901, 1126, 278, 5192, 29973]
    turns = [user("<image> What is it?"), assistant("Clear lungs."), user("And the heart?")]
    rendered = renderer.render(turns, [Run(4)])
    assert rendered["input_ids"] == opening + first + later + [2277, 29937, 6132, 2801, 29901]
    assert set(rendered["labels"]) == {-100}
