"""The imported checkpoint computes what echovlm computes: logits, bits per byte, greedy reports.

Set XRAYGPT_ECHOVLM to a clone of github.com/vukadinovic936/echovlm (MIT) to run its code, too; the
numbers in echovlm.json came from commit 71bb371. Its attention mask cannot be used on a CPU, where
PyTorch refuses a mask together with `is_causal`; the two are combined into one mask for it here.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.conftest import REPO
from xraygpt.common.errors import WeightsError
from xraygpt.models.llm.answer_loss import answer_loss
from xraygpt.models.prefix_lm import echovlm
from xraygpt.models.prefix_lm.model import PrefixLM

FILE = REPO / "tests/parity/echovlm.json"
SHAPE = {
    "sequence_len": 64, "vocab_size": 300, "n_layer": 2, "n_head": 2, "n_kv_head": 2, "n_embd": 64,
}  # fmt: skip
# Rows of token ids of different lengths, and studies with one to three embeddings.
IDS = [
    [289 if k == 0 else (7 * k + 3 * row) % 280 for k in range(12 + 9 * row)] for row in range(3)
]
BYTES = [1 if i < 256 else (i % 5) + 2 if i < 289 else 0 for i in range(300)]


def waves(shape: tuple[int, ...], phase: float, size: float) -> torch.Tensor:
    """Weights that are the same with every version of PyTorch."""
    count = math.prod(shape)
    return (
        (size * torch.sin(0.7 * torch.arange(count, dtype=torch.float64) ** 1.3 + phase))
        .view(shape)
        .float()
    )


def theirs() -> dict[str, torch.Tensor]:
    """A checkpoint under echovlm's names."""
    width = SHAPE["n_embd"]
    shapes = {"transformer.wte.weight": (300, width), "lm_head.weight": (300, width)}
    for i in range(SHAPE["n_layer"]):
        shapes |= {
            f"transformer.h.{i}.attn.{n}.weight": (width, width)
            for n in ("c_q", "c_k", "c_v", "c_proj")
        }
        shapes[f"transformer.h.{i}.mlp.c_fc.weight"] = (4 * width, width)
        shapes[f"transformer.h.{i}.mlp.c_proj.weight"] = (width, 4 * width)
    return {
        name: waves(shape, k, 1.0 if "wte" in name else 0.2)
        for k, (name, shape) in enumerate(shapes.items())
    }


def embeddings(rows: int) -> torch.Tensor:
    return F.normalize(waves((rows, SHAPE["n_embd"]), 0.5, 1.0), dim=-1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("echovlm") / "checkpoint000250.pt"
    torch.save({"model": theirs(), "model_config": SHAPE, "step": 250, "optimizers": []}, path)
    state, settings = echovlm.read_checkpoint(path)
    settings.pop("arch")
    settings["llm"]["size"]["vocab_size"] = 300
    ours = PrefixLM.Config.from_keys(**settings).build(texts=list)
    ours.llm.resize_token_embeddings(300, mean_resizing=False)
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("average_") for name in missing)
    return ours.eval()


@torch.no_grad()
def our_logits(model: PrefixLM, ids: list[int], study: torch.Tensor) -> torch.Tensor:
    text = model.llm.get_input_embeddings()(torch.tensor([ids]))
    tokens = model.projector(study, *(torch.zeros(len(study), dtype=torch.long),) * 2)
    embeds = torch.cat([tokens[None], text], dim=1)
    return model.llm(inputs_embeds=embeds, use_cache=False).logits[0, len(study) :]


@torch.no_grad()
def our_bits_per_byte(model: PrefixLM) -> float:
    nats = total = 0.0
    for row, ids in enumerate(IDS):
        study = embeddings(row + 1)
        text = model.llm.get_input_embeddings()(torch.tensor([ids]))
        embeds = torch.cat(
            [model.projector(study, *(torch.zeros(row + 1, dtype=torch.long),) * 2)[None], text],
            dim=1,
        )
        labels = torch.tensor([[-100] * (len(study) + 1) + ids[1:]])
        output = answer_loss(
            model.llm, embeds, torch.ones_like(labels), labels, token_bytes=torch.tensor(BYTES)
        )
        nats, total = nats + float(output.byte_loss), total + int(output.num_bytes)
    return nats / (math.log(2) * total)


def numbers(logits: list[torch.Tensor], bits: float) -> dict[str, object]:
    """What is stored: some logits at each position, and the bits per byte."""
    return {
        "logits": [[[round(float(v), 6) for v in row[::37]] for row in rows] for rows in logits],
        "bits_per_byte": round(bits, 6),
    }


def test_logits_and_bits_per_byte_are_those_of_echovlm(model):
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    for row, ids in enumerate(IDS):
        logits = our_logits(model, ids, embeddings(row + 1))[:, ::37]
        assert torch.allclose(logits, torch.tensor(stored["logits"][row]), atol=1e-5)
    assert our_bits_per_byte(model) == pytest.approx(stored["bits_per_byte"], abs=5e-5)


def test_positions_in_full_precision_would_differ(model):
    """The control: echovlm rounds cosines and sines to bfloat16."""
    exact = PrefixLM.Config.from_keys(
        prefix={"width": 64, "projection": "none", "positions": "sequence"},
        llm={"size": {"depth": 2, "width": 64, "heads": 2, "vocab_size": 300, "context": 192}},
    ).build(texts=list)
    exact.llm.resize_token_embeddings(300, mean_resizing=False)
    exact.load_state_dict(model.state_dict())
    ids, study = IDS[2], embeddings(3)
    gap = (our_logits(exact.eval(), ids, study) - our_logits(model, ids, study)).abs().max()
    assert float(gap) > 1e-4


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"weights": {}}, path)
    with pytest.raises(WeightsError, match="not a checkpoint of echovlm: it has no model"):
        echovlm.read_checkpoint(path)
    torch.save({"model": {"fc.weight": torch.zeros(1)}, "model_config": SHAPE}, path)
    with pytest.raises(WeightsError, match=r"fc.weight is not a weight of echovlm"):
        echovlm.read_checkpoint(path)
    torch.save({"model": theirs(), "model_config": {**SHAPE, "n_kv_head": 1}}, path)
    with pytest.raises(WeightsError, match="1 key heads for 2 query heads are not supported"):
        echovlm.read_checkpoint(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot be read"):
        echovlm.read_checkpoint(path)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The modules of a clone, which read `assets/` in the working folder when imported."""
    folder = os.environ.get("XRAYGPT_ECHOVLM")
    if not folder:
        pytest.skip("XRAYGPT_ECHOVLM is not set (a clone of github.com/vukadinovic936/echovlm)")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/per_section.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(folder)))
    gpt = importlib.import_module("echovlm.gpt")
    sdpa = F.scaled_dot_product_attention

    def attention(q, k, v, attn_mask=None, is_causal=False, **kwargs):
        if attn_mask is not None and is_causal:
            causal = torch.ones(q.size(2), k.size(2), dtype=torch.bool).tril()
            return sdpa(q, k, v, attn_mask=attn_mask & causal, **kwargs)
        return sdpa(q, k, v, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    plain = types.SimpleNamespace(**{n: getattr(F, n) for n in dir(F) if not n.startswith("__")})
    plain.scaled_dot_product_attention = attention
    monkeypatch.setattr(gpt, "F", plain)
    yield gpt
    for name in [n for n in sys.modules if n.split(".")[0] == "echovlm"]:
        del sys.modules[name]


def test_the_stored_numbers_are_those_of_a_clone(clone, model):
    network = clone.GPT(clone.GPTConfig(**SHAPE))
    network.load_state_dict(theirs())
    network.eval()
    logits = []
    with torch.no_grad():
        for row, ids in enumerate(IDS):
            study = embeddings(row + 1)
            logits.append(network(torch.tensor([ids]), study_embeddings=study[None])[0])
            assert torch.allclose(our_logits(model, ids, study), logits[-1], atol=1e-5)
    try:
        loss_eval = importlib.import_module("echovlm.loss_eval")
    except ImportError as error:
        pytest.skip(f"echovlm's evaluation needs {error.name}")
    batches = []
    for row, ids in enumerate(IDS):  # as its collate function pads them
        x, y = torch.full((2, 40), 2), torch.full((2, 40), -100)
        x[0, : len(ids) - 1], y[0, : len(ids) - 1] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
        mask = torch.zeros(2, 40, dtype=torch.bool)
        mask[0, : len(ids) - 1] = True
        mask[1, 0] = True
        study = torch.zeros(2, row + 1, SHAPE["n_embd"])
        study[0] = study[1] = embeddings(row + 1)
        batches.append({
            "input_ids": x, "labels": y, "attention_mask": mask, "study_embeddings": study,
            "study_mask": torch.ones(2, row + 1, dtype=torch.bool),
        })  # fmt: skip
    bits = loss_eval.evaluate_bpb(network, batches, torch.tensor(BYTES, dtype=torch.int32))
    found = numbers(logits, bits)
    if os.environ.get("XRAYGPT_WRITE_REFERENCE"):
        FILE.write_text(json.dumps(found), encoding="utf-8")
    assert json.loads(FILE.read_text(encoding="utf-8")) == found
