"""Attention maps: equal to those of one full forward pass, and on the right pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conversation.test_chat import SHORT
from tests.models.qformer_llm.test_model import picture, tiny
from xraygpt.common.errors import InputError
from xraygpt.conversation import ChatEngine
from xraygpt.conversation.attention import AttentionMapper, heat_to_image
from xraygpt.conversation.engine import EncodedMedium
from xraygpt.models.llm.small_llm import SmallLLM
from xraygpt.models.qformer_llm.instruct import InstructXrayGPT
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID

LLM = SmallLLM(vocab_size=260, hidden=32, layers=2, heads=2, init_std=0.4)


def letters_only(model: XrayGPT) -> ChatEngine:
    """A chat engine that generates only letters."""
    letters = {model.tokenizer(c)["input_ids"][-1] for c in "abcdefghijklmnopqrstuvwxyz "}
    others = sorted(set(range(len(model.tokenizer))) - letters)
    model.llm.generation_config.suppress_tokens = others
    return ChatEngine(model)


@pytest.fixture(scope="module")
def engine() -> ChatEngine:
    return letters_only(tiny(llm=LLM))


def by_hand(engine: ChatEngine, conversation, start: int, end: int):
    """The same maps from one forward pass, with the attention computed explicitly."""
    context = conversation.answer_context()
    model = engine.model
    cross_attentions, tokens = [], []

    def record(module, _, kwargs, __):
        hidden, patches = kwargs["hidden_states"], kwargs["encoder_hidden_states"]
        d = module.attention_head_size
        q, k = (
            layer(x).view(len(x), x.shape[1], -1, d).transpose(1, 2)
            for layer, x in ((module.query, hidden), (module.key, patches))
        )
        cross_attentions[-1].append((q @ k.mT / d**0.5).softmax(-1).mean(1)[0])

    for image in context.media:
        cross_attentions.append([])
        hooks = [
            m.register_forward_hook(record, with_kwargs=True)
            for n, m in model.qformer.named_modules()
            if n.endswith("crossattention.attention")
        ]
        tokens += engine.encode([EncodedMedium(image.media)], context.question)
        for hook in hooks:
            hook.remove()
    model.llm.set_attn_implementation("eager")
    with torch.no_grad():
        batch = engine.batch(context.rendered, [i.media for i in context.media], context.question)
        embeds = model.embed(batch, tokens)
        attentions = model.llm(inputs_embeds=embeds, output_attentions=True).attentions
    model.llm.set_attn_implementation("sdpa")
    # Each letter is one token.
    rows = range(context.start - 1, context.start - 1 + len(context.answer))
    places = [i for i, token in enumerate(context.ids) if token == IMAGE_TOKEN_ID]
    attended = torch.stack([a[0].mean(0) for a in attentions]).mean(0)[rows][:, places]
    selected, mean = attended[start:end].mean(0), attended.mean(0)
    excess = (selected / selected.sum() - mean / mean.sum()).clamp(min=0)
    maps = []
    for cross, image_tokens in zip(cross_attentions, tokens, strict=True):
        weights, excess = excess[: len(image_tokens)], excess[len(image_tokens) :]
        maps.append(weights @ torch.stack(cross).mean(0))
    return maps, float(selected.sum())


@pytest.mark.parametrize("turn", [1, 2])
def test_equal_to_one_explicit_forward_pass(engine, turn):
    conversation = engine.start()
    conversation.add_image(picture(1))
    conversation.add_image(picture(2))
    for question in ("What?", "And then?")[:turn]:
        answer = conversation.ask(question, SHORT).text()
    assert len(answer) == SHORT.max_new_tokens
    expected, total = by_hand(engine, conversation, 3, 7)
    maps = AttentionMapper(engine).maps(conversation, 3, 7)
    for result, map_ in zip(maps, expected, strict=True):
        torch.testing.assert_close(result.heat.flatten(), map_, rtol=1e-4, atol=1e-6)
    assert sum(result.image_share for result in maps) == pytest.approx(1)
    assert maps[0].images_share == pytest.approx(total, rel=1e-4)
    assert engine.model.llm.config._attn_implementation == "sdpa"


def test_maps_do_not_change_later_answers(engine):
    def talk(with_maps: bool) -> list[str]:
        conversation = engine.start()
        conversation.add_image(picture(1))
        answers = []
        for question in ("What?", "Where?", "Why?"):
            answers.append(conversation.ask(question, SHORT).text())
            if with_maps:
                AttentionMapper(engine).maps(conversation, 0, 4, index=0)
        return answers

    assert talk(True) == talk(False)


def test_an_older_answer_has_the_same_map_later(engine):
    conversation = engine.start()
    conversation.add_image(picture(1))
    conversation.ask("What?", SHORT).text()
    before = AttentionMapper(engine).maps(conversation, 2, 6)
    conversation.add_image(picture(2))
    conversation.ask("Now?", SHORT).text()
    after = AttentionMapper(engine).maps(conversation, 2, 6, index=0)
    assert len(before) == len(after) == 1
    torch.testing.assert_close(before[0].heat, after[0].heat)


def test_the_average_over_reference_images_is_subtracted(engine):
    attention = AttentionMapper(engine)
    conversation = engine.start()
    conversation.add_image(picture(1))
    conversation.ask("What?", SHORT).text()
    assert attention.maps(conversation, 0, 5)[0].heat.min() > 0
    full = attention.maps(conversation, 0, SHORT.max_new_tokens)[0].heat
    assert full.sum() == pytest.approx(
        1, abs=0.01
    )  # the mean of the full answer is not subtracted from itself
    assert attention.set_baseline([picture(1)] * 7) == 7 and attention.num_references == 0
    assert attention.set_baseline([picture(1)] * 8) == 8 and attention.num_references == 8
    same = attention.maps(conversation, 0, 5)[0].heat
    assert same.max() < 1e-6  # equal to the average
    attention.set_baseline(picture(i) for i in range(10, 20))
    other = attention.maps(conversation, 0, 5)[0].heat
    assert other.max() > 1e-6 and (other == 0).any()


def test_a_clip_and_a_qformer_that_reads_the_question():
    base = tiny(llm=LLM).config
    engine = letters_only(InstructXrayGPT(InstructXrayGPT.Config(**vars(base))))
    conversation = engine.start()
    conversation.add_image(picture(3, 2, 3, 32, 32))
    conversation.ask("What?", SHORT).text()
    [result] = AttentionMapper(engine).maps(conversation, 0, 3)
    assert result.heat.dim() == 3 and len(result.heat) == 2
    first = result.heat
    conversation.ask("Another question altogether?", SHORT).text()
    [again] = AttentionMapper(engine).maps(conversation, 0, 3, index=0)
    torch.testing.assert_close(first, again.heat)


def test_invalid_ranges_raise(engine):
    conversation = engine.start()
    with pytest.raises(InputError, match="no question has been asked"):
        AttentionMapper(engine).maps(conversation, 0, 1)
    conversation.ask("What?", SHORT).text()
    with pytest.raises(InputError, match="no image"):
        AttentionMapper(engine).maps(conversation, 0, 1)
    conversation.add_image(picture(1))
    conversation.ask("And now?", SHORT).text()
    with pytest.raises(InputError, match=r"characters, not 0\.\.999"):
        AttentionMapper(engine).maps(conversation, 0, 999)


def test_features_without_a_grid_have_no_map():
    model = tiny(
        llm=LLM, vit_model="precomputed", vit_width=8, qformer=QFormerConfig(layers=1, hidden=64)
    )
    conversation = letters_only(model).start()
    conversation.add_image(torch.randn(3, 8))
    conversation.ask("What?", SHORT).text()
    with pytest.raises(InputError, match="do not form a grid"):
        AttentionMapper(conversation.engine).maps(conversation, 0, 2)


@pytest.mark.parametrize(("fit", "height", "width"), [
    ("squash", 60, 90), ("pad", 60, 90), ("pad", 90, 60), ("crop", 60, 90), ("crop", 90, 60),
])  # fmt: skip
def test_maps_are_aligned_with_the_original_pixels(fit, height, width):
    """Process an image with one bright block and map its patches back to the image."""
    from xraygpt.processors.image import XrayImage

    model = tiny(llm=LLM)
    vis = XrayImage(XrayImage.Config(fit=fit), image_spec=model.image_spec)
    pixels = np.zeros((height, width), np.float32)
    pixels[30:40, 40:50] = 1
    heat = torch.nn.functional.avg_pool2d(vis(pixels).mean(0)[None] - vis(0 * pixels).min(), 4)[0]
    back = heat_to_image(heat, fit, height, width)
    assert back.shape == (height, width)
    rows, columns = np.indices(back.shape)
    centre = [(back * i).sum() / back.sum() for i in (rows, columns)]
    assert centre == pytest.approx([34.5, 44.5], abs=1.5)
