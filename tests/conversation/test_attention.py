"""Where a model looked: the numbers are those of one whole pass, and land on the right pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conversation.test_chat import SHORT
from tests.models.qformer_llm.test_model import picture, tiny
from xraygpt.common.errors import InputError
from xraygpt.conversation import ChatEngine
from xraygpt.conversation.attention import Attention, on_image
from xraygpt.conversation.engine import Shown
from xraygpt.models.llm.small_llm import SmallLLM
from xraygpt.models.qformer_llm.instruct import InstructXrayGPT
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID

LLM = SmallLLM(vocab_size=260, hidden=32, layers=2, heads=2, init_std=0.4)


def speaking(model: XrayGPT) -> ChatEngine:
    """Made to speak letters."""
    letters = {model.tokenizer(c)["input_ids"][-1] for c in "abcdefghijklmnopqrstuvwxyz "}
    others = sorted(set(range(len(model.tokenizer))) - letters)
    model.llm.generation_config.suppress_tokens = others
    return ChatEngine(model)


@pytest.fixture(scope="module")
def engine() -> ChatEngine:
    return speaking(tiny(llm=LLM))


def by_hand(engine: ChatEngine, conversation, start: int, end: int):
    """The same maps from one pass over everything, attention written out."""
    replay = conversation.replay()
    model = engine.model
    crosses, tokens = [], []

    def write_out(module, _, kwargs, __):
        hidden, patches = kwargs["hidden_states"], kwargs["encoder_hidden_states"]
        d = module.attention_head_size
        q, k = (
            layer(x).view(len(x), x.shape[1], -1, d).transpose(1, 2)
            for layer, x in ((module.query, hidden), (module.key, patches))
        )
        crosses[-1].append((q @ k.mT / d**0.5).softmax(-1).mean(1)[0])

    for image in replay.images:
        crosses.append([])
        hooks = [
            m.register_forward_hook(write_out, with_kwargs=True)
            for n, m in model.qformer.named_modules()
            if n.endswith("crossattention.attention")
        ]
        tokens += engine.read([Shown(image.media)], replay.asked)
        for hook in hooks:
            hook.remove()
    model.llm.set_attn_implementation("eager")
    with torch.no_grad():
        batch = engine.batch(replay.rendered, [i.media for i in replay.images], replay.asked)
        embeds = model.embed(batch, tokens)
        attentions = model.llm(inputs_embeds=embeds, output_attentions=True).attentions
    model.llm.set_attn_implementation("sdpa")
    # A letter is a token here.
    rows = range(replay.start - 1, replay.start - 1 + len(replay.answer))
    at = [i for i, token in enumerate(replay.ids) if token == IMAGE_TOKEN_ID]
    attended = torch.stack([a[0].mean(0) for a in attentions]).mean(0)[rows][:, at]
    own, mean = attended[start:end].mean(0), attended.mean(0)
    more = (own / own.sum() - mean / mean.sum()).clamp(min=0)
    maps = []
    for cross, found in zip(crosses, tokens, strict=True):
        weights, more = more[: len(found)], more[len(found) :]
        maps.append(weights @ torch.stack(cross).mean(0))
    return maps, float(own.sum())


@pytest.mark.parametrize("turn", [1, 2])
def test_equal_to_one_pass_written_out(engine, turn):
    conversation = engine.start()
    conversation.add_image(picture(1))
    conversation.add_image(picture(2))
    for question in ("What?", "And then?")[:turn]:
        answer = conversation.ask(question, SHORT).text()
    assert len(answer) == SHORT.max_new_tokens
    wanted, total = by_hand(engine, conversation, 3, 7)
    looks = Attention(engine).look(conversation, 3, 7)
    for look, map_ in zip(looks, wanted, strict=True):
        torch.testing.assert_close(look.heat.flatten(), map_, rtol=1e-4, atol=1e-6)
    assert sum(look.share for look in looks) == pytest.approx(1)
    assert looks[0].to_images == pytest.approx(total, rel=1e-4)
    assert engine.model.llm.config._attn_implementation == "sdpa"


def test_it_changes_no_later_answer(engine):
    def talk(look: bool) -> list[str]:
        conversation = engine.start()
        conversation.add_image(picture(1))
        said = []
        for question in ("What?", "Where?", "Why?"):
            said.append(conversation.ask(question, SHORT).text())
            if look:
                Attention(engine).look(conversation, 0, 4, turn=0)
        return said

    assert talk(True) == talk(False)


def test_an_older_answer_is_seen_as_it_was_given(engine):
    conversation = engine.start()
    conversation.add_image(picture(1))
    conversation.ask("What?", SHORT).text()
    before = Attention(engine).look(conversation, 2, 6)
    conversation.add_image(picture(2))
    conversation.ask("Now?", SHORT).text()
    after = Attention(engine).look(conversation, 2, 6, turn=0)
    assert len(before) == len(after) == 1
    torch.testing.assert_close(before[0].heat, after[0].heat)


def test_what_is_always_looked_at_is_taken_off(engine):
    attention = Attention(engine)
    conversation = engine.start()
    conversation.add_image(picture(1))
    conversation.ask("What?", SHORT).text()
    assert attention.look(conversation, 0, 5)[0].heat.min() > 0
    whole = attention.look(conversation, 0, SHORT.max_new_tokens)[0].heat
    assert whole.sum() == pytest.approx(
        1, abs=0.01
    )  # the mean of an answer is not taken off itself
    assert attention.compare_with([picture(1)] * 7) == 7 and attention.references == 0
    assert attention.compare_with([picture(1)] * 8) == 8 and attention.references == 8
    own = attention.look(conversation, 0, 5)[0].heat
    assert own.max() < 1e-6  # all of it is the average
    attention.compare_with(picture(i) for i in range(10, 20))
    other = attention.look(conversation, 0, 5)[0].heat
    assert other.max() > 1e-6 and (other == 0).any()


def test_a_clip_and_a_qformer_that_reads_the_question():
    base = tiny(llm=LLM).config
    engine = speaking(InstructXrayGPT(InstructXrayGPT.Config(**vars(base))))
    conversation = engine.start()
    conversation.add_image(picture(3, 2, 3, 32, 32))
    conversation.ask("What?", SHORT).text()
    [look] = Attention(engine).look(conversation, 0, 3)
    assert look.heat.dim() == 3 and len(look.heat) == 2
    first = look.heat
    conversation.ask("Another question altogether?", SHORT).text()
    [again] = Attention(engine).look(conversation, 0, 3, turn=0)
    torch.testing.assert_close(first, again.heat)


def test_mistakes_are_told(engine):
    conversation = engine.start()
    with pytest.raises(InputError, match="nothing was asked"):
        Attention(engine).look(conversation, 0, 1)
    conversation.ask("What?", SHORT).text()
    with pytest.raises(InputError, match="no image"):
        Attention(engine).look(conversation, 0, 1)
    conversation.add_image(picture(1))
    conversation.ask("And now?", SHORT).text()
    with pytest.raises(InputError, match=r"characters, not 0\.\.999"):
        Attention(engine).look(conversation, 0, 999)


def test_features_without_a_grid_name_no_place():
    model = tiny(
        llm=LLM, vit_model="precomputed", vit_width=8, qformer=QFormerConfig(layers=1, hidden=64)
    )
    conversation = speaking(model).start()
    conversation.add_image(torch.randn(3, 8))
    conversation.ask("What?", SHORT).text()
    with pytest.raises(InputError, match="no grid"):
        Attention(conversation.engine).look(conversation, 0, 2)


@pytest.mark.parametrize(("fit", "height", "width"), [
    ("squash", 60, 90), ("pad", 60, 90), ("pad", 90, 60), ("crop", 60, 90), ("crop", 90, 60),
])  # fmt: skip
def test_maps_lie_where_the_processor_took_the_pixels_from(fit, height, width):
    """Put one bright block into a picture, process it, and bring its grid back."""
    from xraygpt.processors.image import XrayImage

    model = tiny(llm=LLM)
    vis = XrayImage(XrayImage.Config(fit=fit), image_spec=model.image_spec)
    pixels = np.zeros((height, width), np.float32)
    pixels[30:40, 40:50] = 1
    heat = torch.nn.functional.avg_pool2d(vis(pixels).mean(0)[None] - vis(0 * pixels).min(), 4)[0]
    back = on_image(heat, fit, height, width)
    assert back.shape == (height, width)
    rows, columns = np.indices(back.shape)
    centre = [(back * i).sum() / back.sum() for i in (rows, columns)]
    assert centre == pytest.approx([34.5, 44.5], abs=1.5)
