"""Studies as sets: positions, masks, packing, caches and samples."""

from __future__ import annotations

import pytest
import torch

from tests.models.prefix_lm.toy import SIZE, WIDTH, collate, study, tiny_model
from xraygpt.common.errors import ConfigError, DataError, WeightsError
from xraygpt.media.base import Media
from xraygpt.models.base import Generation
from xraygpt.models.llm.answer_loss import plan_packing
from xraygpt.models.prefix_lm.position_mask import position_mask

ORDERS = [[4, 2, 0, 1, 3], [1, 0, 2, 3, 4], [4, 3, 2, 1, 0]]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@torch.no_grad()
def loss(model, *samples, **kwargs):
    return model(collate(model, samples), **kwargs).row_loss


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_embeddings_changes_nothing(model, order):
    straight, turned = loss(model, study(2, 5)), loss(model, study(2, 5, order))
    assert torch.allclose(straight, turned, atol=1e-6 * float(straight.detach()))
    # The controls: without its views, with other embeddings, as a sequence.
    assert abs(float(straight) - float(loss(model, study(2, 4)))) > 1e-3
    sequence = tiny_model(prefix__positions="sequence")
    turned = loss(sequence, study(2, 5, order))
    assert abs(float(loss(sequence, study(2, 5))) - float(turned)) > 1e-4


def test_views_and_types_belong_to_their_embeddings(model):
    sample, swapped = study(2, 2), study(2, 2)
    swapped["media"][0] = Media(sample["media"][0].data, "embedding", "PLAX:|A4C:colour")
    assert abs(float(loss(model, sample)) - float(loss(model, swapped))) > 1e-4
    unknown = study(2, 1)
    other = study(2, 1)
    unknown["media"][0] = Media(unknown["media"][0].data, "embedding", "SSN:spectral")
    other["media"][0] = Media(other["media"][0].data, "embedding", "")
    assert torch.equal(loss(model, unknown), loss(model, other))


def test_one_medium_or_one_per_embedding_is_the_same(model):
    whole, parts = study(2, 3), study(2, 3)
    labels = whole["media"][0].view.split("|")
    parts["media"] = [
        Media(row[None], "embedding", label)
        for row, label in zip(whole["media"][0].data, labels, strict=True)
    ]
    parts["turns"][0]["text"] = "<image> <image> <image>"
    batch = collate(model, [parts])
    assert batch["input_ids"].shape == collate(model, [whole])["input_ids"].shape
    assert torch.allclose(model(batch).row_loss, loss(model, whole))


def test_packed_and_padded_rows_have_the_losses_of_single_rows(model):
    samples = [study(1, 3), study(4, 1, repeat=4), study(2, 5), study(7, 0), study(3, 2)]
    single = torch.cat([loss(model, s) for s in samples])
    batch = collate(model, samples)
    layout = plan_packing(batch["attention_mask"])
    assert layout.shape[0] < len(samples)  # some share a row
    assert torch.allclose(loss(model, *samples), single, rtol=1e-5)
    assert torch.allclose(loss(model, *samples, return_logits=True), single, rtol=1e-5)


def test_a_row_sees_its_embeddings_and_the_text_before_it():
    positions = torch.tensor([[0, 0, 1, 2, 0, 1, 2]])
    numbers = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    seen = position_mask(positions, None, numbers)[0, 0].int().tolist()
    assert seen == [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_cached_decoding_equals_the_full_forward_pass(model, rows):
    """Greedy answers, alone and in a left-padded batch, against one forward pass per token."""
    samples = [study(2, rows), study(5, 2), study(6, 3, repeat=3)]
    generation = Generation(max_new_tokens=12)
    together = model.generate(collate(model, samples, prompts=True), generation)
    for sample, text in zip(samples, together, strict=True):
        batch = collate(model, [sample], prompts=True)
        assert model.generate(batch, generation) == [text]
        assert greedy_by_full_passes(model, sample, 12) == text


@torch.no_grad()
def greedy_by_full_passes(model, sample, count):
    batch = collate(model, [sample], prompts=True)
    embeds, positions = model.embed(batch), model.positions(batch)
    if positions is None:
        positions = torch.arange(embeds.shape[1])[None, None]
    ids = []
    for _ in range(count):
        logits = model.llm(inputs_embeds=embeds, position_ids=positions, use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token == model.tokenizer.eos_token_id:
            break
        ids.append(token)
        new = model.llm.get_input_embeddings()(torch.tensor([[token]]))
        embeds = torch.cat([embeds, new], dim=1)
        positions = torch.cat([positions, positions[..., -1:] + 1], dim=-1)
    return model.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_samples_differ_from_the_first_token_on(model):
    """echovlm draws the first token once for all samples."""
    batch = collate(model, [study(2, 3)], prompts=True)
    decoder_input = model.embed(batch), batch["attention_mask"]
    model.generate(batch, Generation(max_new_tokens=1))
    generation = Generation(max_new_tokens=4, do_sample=True, candidates=16)
    ids = model._decoder.generate_ids(
        *decoder_input, generation, names=["s"], positions=model.positions(batch)
    )
    assert len({row[0] for row in ids}) > 4


def test_sampled_reports_do_not_depend_on_the_order(model):
    generation = Generation(max_new_tokens=8, do_sample=True, candidates=3)
    texts = [
        model.generate(collate(model, [study(2, 5, order)], prompts=True), generation)
        for order in (None, *ORDERS)
    ]
    assert len({text for (text,) in texts}) == 1
    (other,) = model.generate(collate(model, [study(4, 5)], prompts=True), generation)
    assert other != texts[0][0]


def test_guidance_compares_with_the_average_of_each_view(model):
    trained = tiny_model().train()
    batch = collate(trained, [study(1, 3), study(2, 2)])
    trained(batch)
    prompts = collate(trained, [study(2, 2)], prompts=True)
    average = trained.eval().embed_average(prompts)
    views = batch["media_inputs"]["views"]
    tokens = trained.projector(**batch["media_inputs"])
    for i, view in enumerate(prompts["media_inputs"]["views"]):
        assert torch.allclose(average[0, i], tokens[views == view].mean(dim=0), atol=1e-5)
    assert model.embed_average(prompts) is None  # it was never trained


def test_unusable_media_are_named(model):
    image = study(1, 1)
    image["media"] = [Media(torch.zeros(3, 8, 8))]
    with pytest.raises(DataError, match="sample s1: this model reads embeddings, not pixels"):
        collate(model, [image])
    wide = study(1, 1)
    wide["media"] = [Media(torch.zeros(1, WIDTH + 1), "embedding")]
    with pytest.raises(DataError, match=r"has 17 values, but model.prefix.width is 16"):
        collate(model, [wide])


def test_settings_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"freeze: a new decoder has to be trained"):
        tiny_model(llm__freeze=True)
    with pytest.raises(ConfigError, match=r"FlashAttention takes no mask"):
        tiny_model(llm__attention="flash_attention_2")
    with pytest.raises(WeightsError, match=r"width 16 can only be passed on .* this one has 64"):
        tiny_model(prefix__projection="none")
    with pytest.raises(ConfigError, match=r"views: contain A4C more than once"):
        tiny_model(prefix__views=["A4C", "A4C"])
    with pytest.raises(ConfigError, match="width: must be a multiple of twice the heads"):
        tiny_model(llm__size={**SIZE, "width": 66, "heads": 4})


def test_the_mean_and_noise_bridge_two_kinds_of_embeddings(tmp_path):
    import numpy as np

    shift = np.full(WIDTH, 2.0, np.float32)
    np.save(tmp_path / "mean.npy", shift / WIDTH**0.5 / 2)
    plain, shifted = tiny_model(), tiny_model(prefix__mean=str(tmp_path / "mean.npy"))
    batch = collate(plain, [study(1, 3)])["media_inputs"]
    assert not torch.allclose(plain.projector(**batch), shifted.projector(**batch))
    noisy = tiny_model(prefix__noise=0.5)
    assert torch.equal(noisy.projector(**batch), plain.projector(**batch))  # not when it answers
    noisy.train()
    moved = (noisy.projector(**batch) - plain.projector(**batch)).norm(dim=-1)
    assert (moved > 0.1).all()
    np.save(tmp_path / "wrong.npy", shift[:3])
    with pytest.raises(WeightsError, match=r"wrong.npy has shape \(3,\)"):
        tiny_model(prefix__mean=str(tmp_path / "wrong.npy"))
