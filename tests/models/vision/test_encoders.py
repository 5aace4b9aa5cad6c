"""Published encoders: their weight files give the tokens of the original classes."""

from __future__ import annotations

import importlib
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
)

from tests.conftest import REPO, toy_yaml
from xraygpt.common.config import load
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.common.registry import ENCODERS, registry
from xraygpt.experiment import Training
from xraygpt.models.vision.encoders import (
    build_vision,
    convert_encoder_file,
    detect_encoder,
    has_weights,
)
from xraygpt.models.vision.published import EVA, is_eva
from xraygpt.processors.image import ImageSpec, InputSpec, XrayImage

OLD_SWIN = (
    (".attention.q_proj.", ".attention.self.query."),
    (".attention.k_proj.", ".attention.self.key."),
    (".attention.v_proj.", ".attention.self.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".attention.relative_position_bias.", ".attention.self."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """Change every weight and statistic, so that one that is not loaded has an effect."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(
                    torch.rand_like(tensor) * 0.1
                    if "var" in name
                    else torch.randn_like(tensor) * 0.02
                )
    return model.eval()


def medclip_folder(folder: Path, vision: dict[str, torch.Tensor]) -> Path:
    state = {f"vision_model.model.{k}": v for k, v in vision.items()}
    state["vision_model.projection_head.weight"] = torch.randn(512, 768)
    state["text_model.model.embeddings.word_embeddings.weight"] = torch.randn(10, 8)
    state["text_model.projection_head.weight"] = torch.randn(512, 8)
    state["logit_scale"] = torch.tensor(2.6)
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folder


@pytest.fixture(scope="module")
def swin() -> SwinModel:
    config = SwinConfig(
        image_size=224, patch_size=4, embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24]
    )
    return perturbed(SwinModel(config))


@pytest.mark.slow
@pytest.mark.parametrize("old", [True, False], ids=["transformers 4 names", "transformers 5 names"])
def test_medclip_swin_gives_the_tokens_of_swin(tmp_path: Path, swin: SwinModel, old: bool):
    state = dict(swin.state_dict())
    if old:
        for new, name in OLD_SWIN:
            state = {k.replace(new, name): v for k, v in state.items()}
        index = torch.zeros(49, 49, dtype=torch.long)
        state["encoder.layers.0.blocks.0.attention.self.relative_position_index"] = index
    ours = build_vision("medclip_swin", None, medclip_folder(tmp_path / "medclip-vit", state))
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = swin(pixels).last_hidden_state
        assert (ours.encode(pixels) - expected).abs().max() < 1e-5
    assert (ours.num_tokens, ours.width) == (49, 768)


@pytest.mark.slow
def test_medclip_resnet_gives_the_tokens_of_resnet(tmp_path: Path):
    resnet = perturbed(torchvision.models.resnet50())
    resnet.fc = torch.nn.Linear(2048, 512, bias=False)
    ours = build_vision(
        "medclip_resnet50", None, medclip_folder(tmp_path / "r", resnet.state_dict())
    )
    pixels = torch.randn(2, 3, 224, 224)
    stages = torch.nn.Sequential(*list(resnet.children())[:-2])
    with torch.no_grad():
        expected = stages(pixels).flatten(2).transpose(1, 2)
        assert (ours.encode(pixels) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (ours.num_tokens, ours.width) == (49, 2048)


@pytest.mark.slow
def test_medclip_preprocessing(tmp_path: Path):
    """As its feature extractor: grey, padded to a square, bicubic, one mean and deviation."""
    swin = build_vision("medclip_swin", None, None)
    wide = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    grey = Image.fromarray(wide).convert("L")
    square = Image.new("L", (200, 200), 0)
    square.paste(grey, (0, 40))
    sized = np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    expected = (sized / 255 - 0.5862785803043838) / 0.27950088968644304
    spec = ImageSpec(**vars(swin.input_spec), tokens_per_image=1)
    ours = XrayImage(XrayImage.Config(), image_spec=spec)(wide.astype(np.float32) / 255)
    assert ours.shape == (3, 224, 224)
    assert torch.equal(ours[0], ours[2])
    rounding = 1.6 / 255 / 0.2795  # the original has 8 bits
    assert np.abs(ours[0].numpy() - expected).max() < rounding


@pytest.mark.slow
def test_biomedclip_uses_its_image_tower(tmp_path: Path):
    import timm

    tower = perturbed(timm.create_model("vit_base_patch16_224", num_classes=0, global_pool=""))
    state = {f"visual.trunk.{k}": v for k, v in tower.state_dict().items()}
    state["visual.head.proj.weight"] = torch.randn(512, 768)
    state["text.transformer.embeddings.word_embeddings.weight"] = torch.randn(10, 8)
    state["logit_scale"] = torch.tensor(4.4)
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    ours = build_vision("biomedclip", None, tmp_path)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours.encode(pixels), tower(pixels))
    assert (ours.num_tokens, ours.width, ours.has_position) == (197, 768, True)


def xrv_module() -> types.ModuleType:
    """torchxrayvision's model module, without the package's other imports."""
    if importlib.util.find_spec("torchxrayvision") is None:
        pytest.skip("torchxrayvision is absent (make install)")
    paths = importlib.util.find_spec("torchxrayvision").submodule_search_locations
    package = types.ModuleType("torchxrayvision")
    package.__path__ = list(paths)
    names = ("torchxrayvision", "torchxrayvision.datasets", "torchxrayvision.utils", "requests")
    before = {n: sys.modules.get(n) for n in names}
    sys.modules["torchxrayvision"] = package
    for name in names[1:]:
        sys.modules.setdefault(name, types.ModuleType(name))
        setattr(package, name.rpartition(".")[2], sys.modules[name])
    package.datasets.default_pathologies = [""] * 18
    try:
        return importlib.import_module("torchxrayvision.models")
    finally:
        sys.modules.pop("torchxrayvision.models", None)
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole module", "whole module, old format", "state dict"])
@pytest.mark.filterwarnings("ignore")
def test_torchxrayvision_gives_the_features_of_its_densenet(tmp_path: Path, kind: str):
    models = xrv_module()
    net = perturbed(models.DenseNet(weights=None, num_classes=18, in_channels=1))
    net.op_threshs = torch.full((18,), 0.5)
    file = tmp_path / "nih-densenet121.pt"
    with pytest.MonkeyPatch.context() as patch:  # pickle looks up classes by module
        patch.setitem(sys.modules, "torchxrayvision", types.ModuleType("torchxrayvision"))
        patch.setitem(sys.modules, "torchxrayvision.models", models)
        content = net.state_dict() if kind == "state dict" else net
        torch.save(content, file, _use_new_zipfile_serialization="old" not in kind)
    ours = build_vision("torchxrayvision", None, file)
    pixels = torch.randn(1, 1, 224, 224) * 500
    with torch.no_grad():
        expected = torch.relu(net.features(pixels)).flatten(2).transpose(1, 2)
        assert (ours.encode(pixels) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (ours.num_tokens, ours.width, ours.input_spec.channels) == (49, 1024, 1)
    assert "torchxrayvision.models" not in sys.modules  # none of its code was run
    spec = ImageSpec(**vars(ours.input_spec), tokens_per_image=1)
    white = XrayImage(XrayImage.Config(), image_spec=spec)(np.ones((40, 60), dtype=np.float32))
    assert white.shape == (1, 224, 224)
    assert white.numpy() == pytest.approx(1024, abs=0.01)


def dinov2_folder(folder: Path) -> Dinov2Model:
    net = perturbed(
        Dinov2Model(
            Dinov2Config(
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=70,
                patch_size=14,
            )
        )
    )
    net.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "do_center_crop": True,
                "crop_size": {"height": 70, "width": 70},
                "size": {"shortest_edge": 70},
                "image_mean": [0.53] * 3,
                "image_std": [0.25] * 3,
                "resample": 3,
                "image_processor_type": "BitImageProcessor",
            }
        )
    )
    return net


@pytest.mark.slow
def test_a_transformers_encoder_reads_its_preprocessor_settings(tmp_path: Path):
    net = dinov2_folder(tmp_path / "rad-dino")
    ours = build_vision(f"hf/{tmp_path / 'rad-dino'}", None, None)
    assert ours.input_spec == InputSpec(
        image_size=70, mean=(0.53,) * 3, std=(0.25,) * 3, fit="crop", interpolation="bicubic"
    )
    assert (ours.num_tokens, ours.width, ours.has_position) == (26, 64, True)
    pixels = torch.randn(1, 3, 70, 70)
    with torch.no_grad():
        assert torch.equal(ours.encode(pixels), net(pixels).last_hidden_state)
    assert build_vision(f"hf/{tmp_path / 'rad-dino'}", 112, None).num_tokens == 65


def test_a_model_in_the_hubs_cache_needs_a_revision(tmp_path: Path, monkeypatch):
    import huggingface_hub

    revision = "0123456789abcdef" * 2 + "01234567"
    folder = tmp_path / "models--lab--dino" / "snapshots" / revision
    net = dinov2_folder(folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    ours = build_vision(f"hf/lab/dino@{revision}", None, None)
    assert torch.equal(ours.net.embeddings.cls_token, net.embeddings.cls_token)


def test_a_siglip_vision_model_interpolates_its_positions(tmp_path: Path):
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=8, vision_use_head=False,
    )  # fmt: skip
    net = perturbed(SiglipVisionModel(config))
    net.save_pretrained(tmp_path)
    settings = {
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "resample": 2}))
    assert build_vision(f"hf/{tmp_path}", None, None).input_spec.interpolation == "bilinear"
    ours = build_vision(f"hf/{tmp_path}", 64, None)
    assert ours.num_tokens == 64
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = net(pixels, interpolate_pos_encoding=True).last_hidden_state
        assert torch.equal(ours.encode(pixels), expected)


def test_a_timm_encoder_drops_its_classifier_and_uses_published_settings(tmp_path: Path):
    import timm

    net = perturbed(timm.create_model("resnet18"))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    ours = build_vision("timm/resnet18.tv_in1k", None, tmp_path)
    assert ours.input_spec.interpolation == "bilinear"  # from its published settings
    with torch.no_grad():
        pixels = torch.randn(1, 3, 224, 224)
        expected = net.forward_features(pixels).flatten(2).transpose(1, 2)
        # Our tensors are channels last, which changes the order of sums.
        torch.testing.assert_close(ours.encode(pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("medclip_swin", {"visual.trunk.norm.weight": torch.ones(768)}, "no weights of MedCLIP"),
        (
            "biomedclip",
            {"visual.trunk.norm.weight": torch.ones(8)},
            r"\(8,\) in the file, \(768,\)",
        ),
        ("timm/resnet18", {"conv1.weight": torch.ones(64, 3, 7, 7)}, "missing bn1.bias"),
        ("torchxrayvision", {"model.conv1.weight": torch.ones(1)}, "no weights of torchxray"),
        ("eva_clip_g", {"query_tokens": torch.ones(1, 32, 768)}, "no vision encoder"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_file_of_another_encoder_is_rejected(tmp_path: Path, name: str, content, message: str):
    file = tmp_path / "weights.safetensors"
    save_file(content, file)
    with pytest.raises(WeightsError, match=message):
        build_vision(name, None, file)


def test_missing_encoders_are_reported(tmp_path: Path):
    with pytest.raises(InputError, match="none of biomedclip, efficientnet_lite0, "):
        build_vision("resnet50", None, None)
    with pytest.raises(WeightsError, match="named with its revision"):
        build_vision("hf/microsoft/rad-dino", None, None)
    with pytest.raises(WeightsError, match=r"xraygpt\.download microsoft/rad-dino"):
        build_vision(f"hf/microsoft/rad-dino@{'a' * 40}", None, None)
    with pytest.raises(InputError, match="has its own weights"):
        build_vision("efficientnet_lite0", None, tmp_path)
    assert has_weights("hf/x")
    assert not has_weights("eva_clip_g")


def test_the_registry_agrees_with_building_and_converting(tmp_path: Path):
    names = registry.list_encoders()
    assert {n for n in names if has_weights(n)} == {
        *("efficientnet_lite0", "efficientnet_lite0+mid", "tiny", "eva_tiny", "hf/<folder>"),
        *("hf/<owner>/<name>@<revision>", "run/<folder>", "run/<folder>+base"),
    }
    for name in names:
        if not registry.get_encoder_class(name).takes_file:
            with pytest.raises(InputError, match="has its own weights; remove this key"):
                build_vision(name, None, tmp_path)
            with pytest.raises(InputError, match="to convert; choose one of biomedclip, eva_clip_"):
                convert_encoder_file(name, tmp_path)
        assert registry.get_encoder_class(name).__doc__
    with pytest.raises(InputError) as error:
        build_vision("nonsense", None, None)
    assert all(name in str(error.value) for name in names)


def test_encoders_are_detected_by_their_keys():
    examples = {
        "medclip_swin": "vision_model.model.encoder.layers.0.x",
        "medclip_resnet50": "vision_model.model.layer1.0.conv1.weight",
        "biomedclip": "visual.trunk.norm.weight",
        "torchxrayvision": "features.denseblock1.denselayer1.norm1.weight",
        None: "blocks.0.attn.q_bias",
    }
    for encoder, name in examples.items():
        assert detect_encoder(["logit_scale", name]) == encoder
    assert is_eva("eva_tiny") and is_eva("eva_clip_g")
    assert not is_eva("biomedclip") and not is_eva("nonsense")


def test_the_documented_table_of_encoders_is_complete():
    """docs/weights.md: all encoders except those for tests, and whether they have weights."""
    page = (REPO / "docs" / "weights.md").read_text()
    section = page.split("## Image input of the encoders")[1].split("## ")[0]
    rows = re.findall(r"^\| `(.+?)` \|.*\| (its own|`vit_ckpt`) \|$", section, re.M)
    documented = {name: weights == "its own" for name, weights in rows}
    omitted = {
        "tiny",
        "eva_tiny",
        "precomputed",
        "hf/<owner>/<name>@<revision>",
        "run/<folder>+base",
        "finer/<encoder>",  # has the weights of the other encoder
    }
    assert documented == {n: has_weights(n) for n in registry.list_encoders() if n not in omitted}


PLUGIN = """
import torch
from torch import nn

from xraygpt.common.registry import registry
from xraygpt.models.vision.encoders import BaseEncoder
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.weights.files import read_state_dict
from xraygpt.models.weights.rules import load_exactly
from xraygpt.processors.image import InputSpec


@registry.register_encoder("lab/<width>")
class Lab(BaseEncoder):
    'Patches of 8 x 8.'

    key_prefixes = ("lab_stem.",)

    def build(self, image_size, weights):
        torch.manual_seed(0)
        net = nn.Conv2d(3, int(self.rest), kernel_size=8, stride=8)
        if weights is not None:
            state = self.convert_file(weights).state
            load_exactly(net, state, weights, required=set(net.state_dict()))
        input_spec = InputSpec(image_size=image_size or 32, mean=(0.5,), std=(0.5,))
        return VisionEncoder(net, input_spec, has_position=False)
"""


def test_a_plugin_registers_an_encoder_with_a_file(tmp_path: Path, monkeypatch):
    (tmp_path / "lab_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(ENCODERS, "_entries", dict(ENCODERS._entries))  # restored after the test
    monkeypatch.delitem(sys.modules, "lab_plugin", raising=False)
    (tmp_path / "corpus").mkdir()
    yaml = toy_yaml(
        tmp_path / "corpus", "  {task: report_generation, max_steps: 1}\n", "  vit_model: lab/12"
    )
    config = tmp_path / "run.yaml"
    config.write_text(yaml)
    with pytest.raises(InputError, match=r"'lab/12' is none of "):
        load(Training, config).model.build(texts=list)
    config.write_text(f"imports: [lab_plugin]\n{yaml}")
    model = load(Training, config).model.build(texts=list)
    assert model.vision.width == 12 and model.vision.num_tokens == 16
    assert (
        "lab/<width>" in registry.list_encoders()
        and detect_encoder(["lab_stem.weight"]) == "lab/<width>"
    )
    state = {n: t + 1 for n, t in model.vision.net.state_dict().items()}
    save_file(state, tmp_path / "lab.safetensors")
    loaded = build_vision("lab/12", None, tmp_path / "lab.safetensors")
    assert all(torch.equal(t, state[n]) for n, t in loaded.net.state_dict().items())
    with pytest.raises(WeightsError, match=r"\(12, 3, 8, 8\) in the file, \(16, 3, 8, 8\)"):
        build_vision("lab/16", None, tmp_path / "lab.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 96}, r"\(1, 1, 96\) in the file, \(1, 1, 88\) in the model"),
        ({"patch_size": 28}, r"patch_embed.proj.weight: \(88, 3, 28, 28\) in the file"),
        ({"depth": 4}, "unknown blocks.3"),
        ({"depth": 2}, "missing blocks.2"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, dict) else "",
)
def test_an_eva_of_another_shape_is_rejected_with_both_shapes(tmp_path: Path, change, message: str):
    from timm.models.eva import Eva

    settings = {"depth": 3, "embed_dim": 88, "num_heads": 4, "patch_size": 14, "img_size": 56}
    net = Eva(**{**EVA, **settings, "mlp_ratio": 4.3637, **change})
    torch.save(net.state_dict(), tmp_path / "eva_vit_g.pth")
    with pytest.raises(WeightsError, match=message):
        build_vision("eva_tiny", None, tmp_path / "eva_vit_g.pth")


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


@pytest.mark.filterwarnings("ignore")
def test_code_in_a_module_of_an_old_file_is_refused(tmp_path: Path):
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    net.malicious = Malicious()
    torch.save(net, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match="would run code, which is refused"):
        build_vision("torchxrayvision", None, tmp_path / "old.pt")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm/resnet18.nope", None),
        ("timm/deit_tiny_distilled_patch16_224", None),
    ],
)
def test_an_unsuitable_timm_network_is_an_input_error(name: str, size: int | None):
    with pytest.raises(InputError, match=r"model\.vit_model"):
        build_vision(name, size, None)


def test_a_fixed_size_network_is_built_for_another_size():
    assert build_vision("timm/vit_tiny_patch16_384", 224, None).num_tokens == 197
