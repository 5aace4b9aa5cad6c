"""Converting weights: the original's `.pth`, transformers' BLIP-2, and this project's folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    LlamaConfig,
)

from tests import processes
from tests.conftest import REPO, toy_yaml, write_toy_corpus
from tests.models.llm.test_hf_folders import blip2  # noqa: F401  (a fixture)
from tests.models.llm.test_hf_folders import our_model as small_eva
from tests.models.vision.test_encoders import medclip_folder, perturbed
from xraygpt.common.config import load
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.convert import main
from xraygpt.datasets.base import MediaRun
from xraygpt.experiment import Training, build_runner
from xraygpt.models.llm.small_llm import SmallLLM, new_llm, new_tokenizer
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.vision.encoders import build_vision
from xraygpt.processors.image import ImageSpec, XrayImage
from xraygpt.prompting.content import Turn
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID, Run
from xraygpt.runners.state import load_weights

MODEL = """
  vit_model: eva_tiny
  image_size: null
  num_query_token: 8
  qformer: {layers: 4, hidden: 64, cross_attention_every: 2, dropout: 0.0}
"""
RUN = """
  task: report_generation
  output_dir: %s
  device: cpu
  max_steps: 2
  save_every: 2
  eval_every: 0
  batch_size_train: 4
"""


def convert(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    main()


def eva_file(path: Path) -> Path:
    """An encoder whose tokens vary about as much as those of a trained one."""
    state = dict(perturbed(build_vision("eva_tiny", None, None).net).state_dict())
    torch.manual_seed(6)
    state["pos_embed"] = torch.randn_like(state["pos_embed"]) * 3
    torch.save(state, path)
    return path


def trained(folder: Path, *options: str) -> Path:
    """A run of two steps on randomly perturbed weights, so that every weight matters."""
    corpus = write_toy_corpus(folder / "corpus", 16)
    path = folder / "run.yaml"
    path.write_text(toy_yaml(corpus, RUN % (folder / "run"), MODEL))
    if not any("vit_model" in option for option in options):
        options = (*options, f"model.vit_ckpt={eva_file(folder / 'eva.pth')}")
    runner = build_runner(load(Training, path, options))
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in runner.model.trainable_parameters():
            parameter[1].add_(torch.randn_like(parameter[1]) * 0.1)
    runner.train()
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("eva"))


def load_run(run: Path, **settings) -> XrayGPT:
    checkpoint = next(run.glob("*/checkpoints/step-2"))
    experiment = load(Training, checkpoint / "config.yaml", ["model.ckpt=null"])
    for name, value in settings.items():
        setattr(experiment.model, name, value)
    model = experiment.model.build(texts=list)
    load_weights(model, checkpoint)
    return model.eval()


def test_export_to_pth_and_back_is_exact(run, tmp_path, monkeypatch):
    convert(monkeypatch, run, tmp_path / "run.pth", "--to", "pth", "--with-vision")
    content = torch.load(tmp_path / "run.pth", weights_only=True)["model"]
    assert "Qformer.bert.encoder.layer.0.crossattention.self.key.weight" in content
    model, loaded = load_run(run), load_run(run)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    loaded.average_tokens.zero_()
    source, fresh = load_weights(loaded, tmp_path / "run.pth")
    assert (source, fresh) == (tmp_path / "run.pth", [])
    expected = {n: t for n, t in model.state_dict().items() if not n.startswith("llm.")}
    assert expected["average_tokens"].any()
    assert all(torch.equal(loaded.state_dict()[n], t) for n, t in expected.items())
    # Converting it to this project's layout gives the same.
    convert(monkeypatch, tmp_path / "run.pth", tmp_path / "converted")
    converted = load_file(tmp_path / "converted" / "model.safetensors")
    assert set(converted) == set(expected)
    assert all(torch.equal(converted[n], t) for n, t in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tied", "spare"),
    [
        pytest.param(True, 0, id="tied, full vocabulary"),
        pytest.param(False, 0, id="untied, full vocabulary"),
        pytest.param(True, 3, id="tied, spare rows"),
        pytest.param(False, 3, id="untied, spare rows"),
    ],
)
def test_plain_transformers_gives_the_same_answers(tmp_path, monkeypatch, tied, spare):
    """Twenty prompts: the same greedy tokens, the same logits to 1e-5."""
    size = SmallLLM(vocab_size=260, hidden=64, layers=2, heads=2, init_std=0.2, embedding_std=0.3)
    tokenizer = new_tokenizer(["The heart is large. No effusion is seen."] * 9, 300)
    llm = new_llm(size, tokenizer, 3)
    if not tied or spare:
        config = LlamaConfig(**llm.config.to_dict() | {
            "tie_word_embeddings": tied, "vocab_size": len(tokenizer) + spare,
        })  # fmt: skip
        torch.manual_seed(7)
        llm = perturbed(type(llm)(config))
        llm.get_input_embeddings().weight.data.normal_(0, 0.3)
        llm.get_input_embeddings().weight.data[len(tokenizer) :] = (
            0  # belongs to no token, is never generated
        )
        llm.lm_head.weight.data[len(tokenizer) :] = 0
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    run = trained(tmp_path, f"model.llama_model={tmp_path / 'llm'}")
    convert(monkeypatch, run, tmp_path / "hf", "--to", "transformers", "--license", "apache-2.0")
    model = load_run(run)
    theirs = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    processor = Blip2Processor.from_pretrained(tmp_path / "hf")
    prompt = json.loads((tmp_path / "hf" / "prompt.json").read_text())
    image_id = prompt["image_token_id"]
    assert theirs.config.image_token_id == image_id
    assert len(theirs.get_input_embeddings().weight) == len(tokenizer) + max(spare, 1)
    answers = set()
    for number in range(20):
        pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(number))
        question = f"Question {number}: is the {'heart large' * (number % 3)}?"
        turns = [Turn(role="user", text=f"<image> {question}")]
        rendered = model.renderer.render(turns, [Run(8)])["input_ids"]
        text = prompt["text"].replace(prompt["question"], question)
        ids = torch.tensor([processor.tokenizer(text, add_special_tokens=False)["input_ids"]])
        own_ids = torch.tensor([rendered])
        assert torch.equal(ids.masked_fill(ids == image_id, IMAGE_TOKEN_ID), own_ids)
        with torch.no_grad():
            embeds = model.embed({
                "input_ids": own_ids, "media_inputs": {"pixel_values": pixels},
                "runs": [MediaRun(0, "image", own_ids[0].tolist().index(IMAGE_TOKEN_ID), 8)],
                "question": [question], "sample_id": ["s"],
            })  # fmt: skip
            logits = model.llm(inputs_embeds=embeds).logits
            their_logits = theirs(pixels, input_ids=ids).logits[..., : logits.shape[-1]]
            tolerance = 1e-5 * max(1, float(logits.abs().max()))
            assert (logits - their_logits).abs().max() <= tolerance
            expected = model.llm.generate(
                inputs_embeds=embeds, attention_mask=torch.ones_like(own_ids), max_new_tokens=12,
                do_sample=False,
            )  # fmt: skip
            generated = theirs.generate(
                pixels, input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12,
                do_sample=False, suppress_tokens=[image_id],
            )  # fmt: skip
        assert torch.equal(generated[:, -expected.shape[1] :], expected)
        answers.add(tuple(expected[0].tolist()))
    assert len(answers) > 10  # the comparison covers different answers


@pytest.mark.slow
def test_the_exported_processor_and_model_card(run, tmp_path, monkeypatch):
    convert(monkeypatch, run, tmp_path / "hf", "--to", "transformers", "--license", "llama2")
    processor = Blip2Processor.from_pretrained(tmp_path / "hf")
    rows, columns = np.mgrid[:70, :90]
    grey = (127 + 60 * np.sin(rows / 7) + 60 * np.cos(columns / 9)).astype(np.uint8)
    image = Image.fromarray(grey).convert("RGB")
    exported = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
    spec = ImageSpec(**vars(load_run(run).vision.input_spec), tokens_per_image=8)
    expected = XrayImage(XrayImage.Config(), image_spec=spec)(grey.astype(np.float32) / 255)
    assert (exported - expected).abs().max() < 1.1 / 255 / 0.26  # rounded to 8 bits
    card = (tmp_path / "hf" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n")
    assert "license: llama2" in card
    assert "Research use only" in card
    assert str(tmp_path) not in card
    for file in (tmp_path / "hf").glob("*.json"):
        assert str(run.parent) not in file.read_text(), file.name
    example = card.split("```python\n")[1].split("```")[0]
    image.save(tmp_path / "hf" / "chest.png")
    result = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path / "hf", capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_lora_is_merged_or_refused(tmp_path, monkeypatch):
    run = trained(tmp_path, "model.lora={r: 4}", "model.freeze_llm=true")
    with pytest.raises(WeightsError, match="--merge-lora"):
        convert(monkeypatch, run, tmp_path / "hf", "--to", "transformers")
    convert(monkeypatch, run, tmp_path / "hf", "--to", "transformers", "--merge-lora")
    convert(monkeypatch, run, tmp_path / "my.pth", "--to", "pth", "--merge-lora")
    model = load_run(run)
    theirs = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    saved_llm = AutoModelForCausalLM.from_pretrained(tmp_path / "my-llm").eval()
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        logits = model.llm(input_ids=ids).logits
        merged = theirs.language_model(input_ids=ids).logits[..., : logits.shape[-1]]
        assert (logits - saved_llm(input_ids=ids).logits).abs().max() < 1e-5
        for module in model.llm.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(False)
        without = model.llm(input_ids=ids).logits
    assert (logits - merged).abs().max() < 1e-5
    assert (logits - without).abs().max() > 1e-3  # the adapters have an effect


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "to", "message"),
    [
        ("model.vit_model=tiny", "transformers", "its encoder is tiny"),
        (
            "model.vit_model=timm/vit_tiny_patch16_224",
            "transformers",
            "is for EVA-CLIP-g, not timm",
        ),
        ("model.qformer.adapter=96", "pth", "an adapter between"),
    ],
)
def test_unsupported_exports_are_refused(tmp_path, monkeypatch, option, to, message):
    extra = ["model.image_size=32"] if "vit_model" in option else []
    run = trained(tmp_path, option, *extra)
    with pytest.raises(WeightsError, match=message):
        convert(monkeypatch, run, tmp_path / "out", "--to", to)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_trained_encoder_is_exported_or_refused(tmp_path, monkeypatch):
    run = trained(tmp_path, "model.freeze_vit=false")
    with pytest.raises(WeightsError, match="--with-vision"):
        convert(monkeypatch, run, tmp_path / "my.pth", "--to", "pth")
    convert(monkeypatch, run, tmp_path / "my.pth", "--to", "pth", "--with-vision")
    model = load_run(run)
    content = torch.load(tmp_path / "my.pth", weights_only=True)["model"]
    assert torch.equal(content["visual_encoder.cls_token"], model.vision.net.cls_token)


@pytest.mark.slow
def test_the_export_uses_the_image_processor_of_the_run(tmp_path, monkeypatch):
    option = "datasets.toy.vis_processor={eval: {name: xray_image, mean: [0.2], std: [0.3]}}"
    run = trained(tmp_path, option)
    convert(monkeypatch, run, tmp_path / "hf", "--to", "transformers")
    processor = Blip2Processor.from_pretrained(tmp_path / "hf").image_processor
    assert processor.image_mean == pytest.approx([0.2] * 3)
    assert processor.image_std == pytest.approx([0.3] * 3)


@pytest.mark.slow
def test_another_vit_is_not_mistaken_for_eva(tmp_path, monkeypatch):
    import timm

    net = perturbed(timm.create_model("vit_tiny_patch16_224"))
    torch.save(net.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match="--vit-model"):
        convert(monkeypatch, tmp_path / "vit.pth", tmp_path / "x")
    name = "timm/vit_tiny_patch16_224"
    convert(monkeypatch, tmp_path / "vit.pth", tmp_path / "ours", "--vit-model", name)
    manifest = json.loads((tmp_path / "ours" / "MANIFEST.json").read_text())
    assert manifest["left_out"] == {"its classifier": 2}
    direct = build_vision(name, None, tmp_path / "vit.pth")
    assert build_vision(name, None, tmp_path / "ours").digest() == direct.digest()
    with pytest.raises(WeightsError, match="already converted"):
        convert(monkeypatch, tmp_path / "ours", tmp_path / "again")


def test_a_blip2_folder_is_converted_with_its_llm(blip2, tmp_path, monkeypatch):  # noqa: F811
    net, folder = blip2
    convert(monkeypatch, folder, tmp_path / "ours")
    manifest = json.loads((tmp_path / "ours" / "MANIFEST.json").read_text())
    assert manifest["parts"] == ["proj", "qformer", "vision"]
    assert manifest["vit_model"] == "eva_clip_g"
    assert sum(manifest["rules"].values()) > 100
    assert len(manifest["converted"]) == len(list(folder.glob("*.safetensors")))
    model, direct = small_eva(XrayGPT), small_eva(XrayGPT)
    load_weights(model, tmp_path / "ours")
    load_weights(direct, folder)
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(model.image_tokens(pixels), direct.image_tokens(pixels))
    state = load_file(tmp_path / "ours" / "llm" / "model.safetensors")
    expected = net.language_model.state_dict()
    assert all(torch.equal(state[n], t) for n, t in expected.items())


@pytest.mark.slow
def test_an_encoder_is_detected_and_converted(tmp_path, monkeypatch):
    import torchvision

    resnet = perturbed(torchvision.models.resnet50())
    resnet.fc = torch.nn.Linear(2048, 512, bias=False)
    folder = medclip_folder(tmp_path / "medclip-resnet", resnet.state_dict())
    convert(monkeypatch, folder, tmp_path / "ours")
    direct = build_vision("medclip_resnet50", None, folder)
    converted = build_vision("medclip_resnet50", None, tmp_path / "ours")
    assert converted.digest() == direct.digest()
    with pytest.raises(WeightsError, match="converted from medclip_resnet50, not from timm"):
        build_vision("timm/resnet50", None, tmp_path / "ours")
    file = tmp_path / "ours" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"SHA-256 is [0-9a-f]{64} instead of the [0-9a-f]{64} in"
    ):
        build_vision("medclip_resnet50", None, tmp_path / "ours")


@pytest.mark.slow
def test_failed_conversions_write_nothing(run, tmp_path, monkeypatch):
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing" / "file").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        convert(monkeypatch, run, tmp_path / "existing", "--to", "transformers")
    with pytest.raises(WeightsError, match="is already a run of xraygpt"):
        convert(monkeypatch, run, tmp_path / "x")
    torch.save({"net.weight": torch.ones(2)}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match="--vit-model"):
        convert(monkeypatch, tmp_path / "odd.pth", tmp_path / "x")
    result = processes.run(
        [sys.executable, "-m", "xraygpt.convert", "absent.pth", str(tmp_path / "x")],
        cwd=REPO, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    assert "absent.pth" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["existing", "odd.pth"]
