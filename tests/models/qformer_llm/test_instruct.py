"""The model whose Q-Former reads the question: each image its own question, batches as singles."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import BertTokenizerFast

from tests.conftest import REPO
from tests.models.qformer_llm.test_model import collator, mixed_samples, picture, sample, tiny
from xraygpt.common.errors import WeightsError
from xraygpt.models.base import Generation
from xraygpt.models.qformer_llm.instruct import InstructXrayGPT


def asking(**settings) -> InstructXrayGPT:
    """Its Q-Former's weights large enough for a question to matter."""
    model = InstructXrayGPT(InstructXrayGPT.Config(**vars(tiny().config) | settings)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.qformer.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


@pytest.mark.slow
def test_a_yaml_may_name_it_without_importing_it():
    code = "from xraygpt.common.registry import MODELS; print(*MODELS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert {"xraygpt_instruct", "instruct_blip"} <= set(done.stdout.split())


def test_mixed_batch_equals_singles():
    model = asking()
    collate = collator(model)
    samples = [s | {"turns": [*s["turns"]]} for s in mixed_samples()]
    for number, one in enumerate(samples):
        one["turns"][0] = {**one["turns"][0]}
        one["turns"][0]["text"] += " really" * number  # questions of all lengths
    batch = model(collate(samples))
    singles = [model(collate([s])) for s in samples]
    torch.testing.assert_close(
        batch.row_loss, torch.cat([s.row_loss for s in singles]), rtol=1e-5, atol=1e-5
    )


def test_the_question_decides_what_is_read_of_the_image():
    model = asking()
    collate = collator(model)
    left, right = (
        collate([sample("s", [picture(1)], "x", question)]) for question in ("Left?", "Right?")
    )
    assert left["question"] == ["Left?"]
    with torch.no_grad():
        tokens = [
            model.image_tokens(**b["media_inputs"], **model.qformer_text(b))
            for b in (left, right, left)
        ]
    assert torch.equal(tokens[0], tokens[2])
    assert (tokens[0] - tokens[1]).abs().max() > 1e-2
    asked = collate.prompts([sample("s", [picture(1)], "x", "Left?")])
    assert asked["question"] == left["question"]
    assert len(model.generate(asked, Generation(max_new_tokens=4))) == 1


def test_a_bert_tokenizer_is_the_qformers_own(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "what", "?", "is"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    model = asking(qformer_tokenizer=tmp_path, max_question_len=5)
    batch = collator(model)([sample("s", [picture(1)], "x", "What is what is what?")])
    assert model.qformer_text(batch)["text_ids"].tolist() == [[2, 6, 8, 6, 3]]
    assert model.qformer.qformer.embeddings.word_embeddings.num_embeddings == 9
    with pytest.raises(WeightsError, match="there is no folder"):
        asking(qformer_tokenizer=tmp_path / "absent")
