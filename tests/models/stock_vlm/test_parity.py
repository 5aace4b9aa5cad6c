"""Batches, losses and answers of stock models equal those of transformers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.models.stock_vlm.stock_batches import (
    build,
    clip,
    image,
    load_stock,
    our_batch,
    sample,
    samples,
    stock_batch,
)
from xraygpt.models.base import Generation
from xraygpt.models.stock_vlm.collator import unstack

GROUPS = [["one"], ["nine"], ["clip"], ["both"], ["text"], ["one", "nine", "clip", "text"]]
MARKS = ("image", "video")


@pytest.fixture(scope="module")
def both(tiny):
    """A function from a family to the stock network and processor and to our model."""
    cache = {}

    def load(family):
        if family not in cache:
            cache[family] = (*load_stock(tiny(family)), build(tiny(family)).eval())
        return cache[family]

    return load


@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_a_batch_equals_the_stock_processors(both, family, names):
    network, processor, model = both(family)
    chosen = [samples()[name] for name in names]
    stock, ours = stock_batch(processor, chosen), our_batch(model, chosen)
    layouts = unstack(ours["media_inputs"]).layouts if ours["media_inputs"] else []
    ids, mask = model._real_ids(ours, layouts), ours["attention_mask"].bool()
    for row, stock_row in zip(range(len(ids)), stock["input_ids"], strict=True):
        # The template ends with a line feed, which is not part of our rows.
        expected = stock_row[stock["attention_mask"][row].bool()][: int(mask[row].sum())]
        assert ids[row][mask[row]].tolist() == expected.tolist()
    if not layouts:
        return
    _check_pixels(ours, stock)
    if family != "llava_onevision":
        grids = [layout.grid for layout in layouts if layout.kind == "image"]
        assert grids == [tuple(g) for g in stock.get("image_grid_thw", torch.zeros(0, 3)).tolist()]
        grids = [layout.grid for layout in layouts if layout.kind == "clip"]
        assert grids == [tuple(g) for g in stock.get("video_grid_thw", torch.zeros(0, 3)).tolist()]
        seconds = [layout.seconds for layout in layouts if layout.kind == "clip"]
        if "second_per_grid_ts" in stock:
            assert seconds == pytest.approx(torch.as_tensor(stock["second_per_grid_ts"]).tolist())
        _check_positions(network, model, ours, stock)


def _check_pixels(ours, stock):
    kinds = [layout.kind for layout in unstack(ours["media_inputs"]).layouts]
    pixels = unstack(ours["media_inputs"]).pixels
    for kind, name in (("image", "pixel_values"), ("clip", "pixel_values_videos")):
        mine = [p for p, k in zip(pixels, kinds, strict=True) if k == kind]
        if not mine:
            assert name not in stock
            continue
        theirs = stock[name]
        if theirs.dim() == 5:  # tiles, padded to the largest number in the batch
            theirs = torch.cat([t[: len(m)] for t, m in zip(theirs, mine, strict=True)])
        assert torch.equal(torch.cat(mine), theirs)


def _check_positions(network, model, ours, stock):
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    grids = {name: stock[name] for name in names if name in stock}
    expected, _ = network.model.get_rope_index(
        stock["input_ids"],
        stock["mm_token_type_ids"],
        attention_mask=stock["attention_mask"],
        **grids,
    )
    mask = ours["attention_mask"].bool()
    mine = model.positions(ours)
    assert torch.equal(mine[:, mask], expected[:, :, : mask.shape[1]][:, mask])


@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_the_loss_equals_the_stock_forward_packed_or_not(both, family, names):
    network, processor, model = both(family)
    chosen = [samples()[name] for name in names]
    stock, ours = stock_batch(processor, chosen), our_batch(model, chosen)
    labels = torch.full_like(stock["input_ids"], -100)
    labels[:, : ours["labels"].shape[1]] = ours["labels"]
    with torch.no_grad():
        logits = network(**stock).logits
        packed, padded = model(ours), model(ours, return_logits=True)
    loss = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    count = int((labels != -100).sum())
    assert int(packed.num_targets.sum()) == count
    assert float(packed.loss) / count == pytest.approx(float(loss) / count, abs=1e-6)
    assert float(packed.loss) == pytest.approx(float(padded.loss), abs=1e-5)
    mask = ours["attention_mask"].bool()
    assert torch.allclose(padded.logits[mask], logits[:, : mask.shape[1]][mask], atol=1e-5)


@pytest.mark.parametrize("names", [*GROUPS[:4], GROUPS[-1]], ids="+".join)
def test_greedy_answers_equal_those_of_transformers(both, family, names):
    network, processor, model = both(family)
    chosen = [samples()[name] for name in names]
    stock = stock_batch(processor, chosen, prompt=True)
    answers = network.generate(**stock, max_new_tokens=10, do_sample=False)
    expected = processor.batch_decode(
        answers[:, stock["input_ids"].shape[1] :], skip_special_tokens=True
    )
    mine = model.generate(our_batch(model, chosen, prompt=True), Generation(max_new_tokens=10))
    assert mine == [text.strip() for text in expected]


def test_a_row_without_its_token_types_would_have_other_positions(both):
    """Qwen2.5-VL of transformers falls back to one-dimensional positions without saying so."""
    network, processor, model = both("qwen2_5_vl")
    chosen = [samples()["one"]]
    stock = stock_batch(processor, chosen)
    with torch.no_grad():
        right = network(**stock).logits
        types = stock.pop("mm_token_type_ids")
        wrong = network(**stock).logits
    assert types.sum() > 0
    assert not torch.allclose(right, wrong, atol=1e-3)
    with torch.no_grad():
        ours = model(our_batch(model, chosen), return_logits=True).logits
    assert torch.allclose(ours, right[:, : ours.shape[1]], atol=1e-5)


def test_clips_of_different_lengths_make_one_batch(both, family):
    """The processor of LLaVA-OneVision cannot stack them."""
    model = both(family)[2]
    chosen = [sample(f"{n}", "<video>What is there?", "Left.", [clip(n, n)]) for n in (2, 5, 8)]
    with torch.no_grad():
        together = model(our_batch(model, chosen))
        alone = [float(model(our_batch(model, [each])).loss) for each in chosen]
    assert together.row_loss.tolist() == pytest.approx(alone, abs=1e-5)


def test_a_clip_of_one_frame_is_read(both, family):
    model = both(family)[2]
    one = sample("one frame", "<video>What is there?", "Left.", [clip(0, 1)])
    with torch.no_grad():
        assert float(model(our_batch(model, [one])).loss) > 0


def test_images_of_one_sample_are_nested_for_llava(both):
    """A pair of views costs far fewer tokens than two samples with one tiled image each."""
    model = both("llava_onevision")[2]
    pair = sample("pair", "<image><image>Why?", "No.", [image(0, 56, 56), image(1, 56, 56)])
    single = sample("single", "<image>Why?", "No.", [image(0, 56, 56)])
    runs = [run.length for run in our_batch(model, [pair])["runs"]]
    assert runs == [17, 17]  # one tile of 16 tokens and the end of a line
    assert our_batch(model, [single])["runs"][0].length == 16 + 8 * 8 + 8


def test_a_template_that_moves_images_before_clips_is_noticed(both):
    from xraygpt.common.errors import DataError

    model = both("llava_onevision")[2]
    mixed = sample("mixed", "<video><image>Why?", "No.", [clip(0), image(0)])
    with pytest.raises(DataError, match="moves the images of a turn before its clips"):
        our_batch(model, [mixed])


def test_white_space_of_the_conversation_is_kept(both):
    """LLaVA's files write a line feed after the mark; only a space at a mark is dropped."""
    model = both("qwen2_5_vl")[2]
    text = model.renderer.render_text([{"role": "user", "text": "<image>\nWhat is\n\nthere? "}])
    assert "<image><|vision_end|>\nWhat is\n\nthere? <|im_end|>" in text
    text = model.renderer.render_text([{"role": "user", "text": "<image> What?"}])
    assert "<image><|vision_end|>What?" in text


def test_answers_after_a_long_clip_have_the_positions_of_training(both):
    """transformers 5.23 generates from the clip's last time on, and trains from its first frame."""
    network, _, model = both("qwen2_5_vl")
    chosen = [sample("long", "<video>What is there?", "", [clip(4, 120, 28, 28)])]
    prompt = our_batch(model, chosen, prompt=True)
    text = model.generate(prompt, Generation(max_new_tokens=6))
    chosen[0]["turns"].append({"role": "assistant", "text": text[0]})
    batch = our_batch(model, chosen)
    positions = model.positions(batch)
    width = prompt["input_ids"].shape[1]
    following = positions[:, 0, width]
    assert int(following.max()) == int(model.positions(prompt)[:, 0, -1].max()) + 1
    assert int(following.max()) < int(model.positions(prompt).max())  # the clip reaches further
    ids, grids = stock_inputs(network, chosen[0], model)
    _, delta = network.model.get_rope_index(**ids, **grids)
    assert int(delta) + ids["input_ids"].shape[1] != int(following.max())


def stock_inputs(network, chosen, model):
    """The prompt as transformers' own inputs."""
    prompt = our_batch(model, [{**chosen, "turns": chosen["turns"][:1]}], prompt=True)
    layouts = unstack(prompt["media_inputs"]).layouts
    ids = model._real_ids(prompt, layouts)
    types = (ids == network.config.video_token_id).int() * 2
    grids = {
        "video_grid_thw": torch.tensor([layouts[0].grid]),
        "second_per_grid_ts": torch.tensor([layouts[0].seconds]),
    }
    return {"input_ids": ids, "mm_token_type_ids": types}, grids
