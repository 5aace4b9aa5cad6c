"""What users of other tools complain of; the numbers are those of the issues named."""

from __future__ import annotations

import re

import pytest
import torch

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
from tests.models.stock_vlm.toy import runner, tree, write_toy
from xraygpt.boxes.parsing import parse_boxes
from xraygpt.boxes.spelling import qwen_resize, write_box
from xraygpt.common.errors import DataError
from xraygpt.media.base import Media
from xraygpt.media.frame_sampling import FrameSampling
from xraygpt.models.stock_vlm.collator import unstack

BOX = (0.25, 0.1, 0.5, 0.4)


# ---- Grounding: "do I convert the box, before or after the resize?" ------------------------------


def layout_of(model, pixels):
    (medium,) = sample("x", "<image>", "", [pixels])["media"]
    return model.family.layouts([medium])[0]


def test_qwen2_5_boxes_are_pixels_of_the_resized_image(tiny):
    model = build(tiny("qwen2_5_vl"))
    layout = layout_of(model, image(0, 200, 300))
    size = model.family.read_size(layout)
    assert model.family.boxes == "pixels" and size == (196, 308) == qwen_resize(200, 300)
    assert write_box(BOX, "pixels", size) == "[77, 20, 154, 78]"


def test_qwen2_and_qwen3_boxes_are_thousandths_whatever_the_size(tiny):
    for name in ("qwen2_vl", "qwen3_vl"):
        model = build(tiny(name))
        sizes = [model.family.read_size(layout_of(model, image(0, h, 300))) for h in (200, 90)]
        assert sizes[0] != sizes[1]
        assert {write_box(BOX, model.family.boxes, size) for size in sizes} == {
            "[250, 100, 500, 400]"
        }


def test_llava_boxes_are_fractions_with_two_decimals(tiny):
    assert write_box(BOX, build(tiny("llava_onevision")).family.boxes, (1, 1)) == (
        "[0.25, 0.10, 0.50, 0.40]"
    )


@pytest.mark.parametrize("convention", ["unit", "thousand", "pixels"])
def test_a_box_comes_back_to_the_same_place_after_any_resizing(convention):
    for size in ((196, 308), (28, 56), (1008, 980)):
        text = f"The nodule is at {write_box(BOX, convention, size)}."
        (found,) = parse_boxes(text, convention, size).boxes
        assert found == pytest.approx(BOX, abs=0.5 / min(size) if convention == "pixels" else 0.005)


def test_boxes_of_several_images_refer_to_their_own_image(tiny):
    """ms-swift #6407: the format and the place were wrong with several images."""
    model = build(tiny("qwen2_5_vl"))
    chosen = sample("two", "<image><image>", "", [image(0, 56, 112), image(1, 112, 56)])
    sizes = [model.family.read_size(each) for each in model.family.layouts(chosen["media"])]
    assert sizes == [(56, 112), (112, 56)]
    assert [write_box(BOX, "pixels", s) for s in sizes] == ["[28, 6, 56, 22]", "[14, 11, 28, 45]"]


def test_a_box_in_the_text_that_leaves_the_image_is_cut_and_an_empty_one_dropped():
    assert parse_boxes("[-20, 10, 56, 400] and [30, 30, 30, 40]", "pixels", (112, 112)).boxes == [
        (0.0, 10 / 112, 0.5, 1.0)
    ]
    with pytest.raises(DataError, match="is empty or has its corners swapped"):
        write_box((0.5, 0.1, 0.25, 0.4), "unit", (1, 1))


# ---- Media and tokens ----------------------------------------------------------------------------


def test_image_features_and_image_tokens_always_match(tiny, family):
    """LlamaFactory #5964, #6559, #7160, #9166, #10241: cut prompts, or frames counted wrongly."""
    model = build(tiny(family)).eval()
    for height, width, frames in ((70, 100, 1), (29, 57, 3), (200, 31, 7)):
        chosen = [
            sample("i", "<image>Why?", "No.", [image(0, height, width)]),
            sample("c", "<video>Why?", "No.", [clip(0, frames, height, width)]),
        ]
        batch = our_batch(model, chosen)
        stacked = unstack(batch["media_inputs"])
        tokens = model._all_tokens(stacked)
        assert [len(t) for t in tokens] == [run.length for run in batch["runs"]]
        with torch.no_grad():
            assert torch.isfinite(model(batch).loss)


def test_the_prompt_of_a_prediction_is_never_truncated(tiny):
    """LlamaFactory #6094."""
    model = build(tiny("qwen2_5_vl"))
    (row,) = our_batch(model, [samples()["nine"]], prompt=True)["input_ids"].tolist()
    (whole,) = our_batch(model, [samples()["nine"]])["input_ids"].tolist()
    assert whole[: len(row)] == row
    assert row.count(-200) == sum(
        run.length for run in our_batch(model, [samples()["nine"]])["runs"]
    )


def test_the_answer_of_a_video_question_equals_the_official_processors(tiny):
    """LlamaFactory #5540: results on video differ from the official code."""
    folder = tiny("qwen2_5_vl")
    (network, processor), model = load_stock(folder), build(folder).eval()
    chosen = [samples()["clip"]]
    with torch.no_grad():
        stock = network(**stock_batch(processor, chosen)).logits
        ours = model(our_batch(model, chosen), return_logits=True).logits
    assert torch.allclose(ours, stock[:, : ours.shape[1]], atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_the_rate_of_a_clip_has_an_effect(tiny, name):
    """LlamaFactory #9620: video_fps had none for Qwen3-VL, whose processor samples by itself."""
    model = build(tiny(name))
    lengths = []
    for fps in (1.0, 4.0):
        times = [i / 8 for i in range(32)]
        kept = FrameSampling(fps=fps).indices(times, 32, 4.0)
        frames = torch.zeros(len(kept), 3, 64, 64)
        medium = Media(frames, "clip", frame_times=tuple(times[i] for i in kept))
        lengths.append(model.media_collator.token_runs([medium])[0].length)
    assert len(set(lengths)) == 2 and lengths[1] > 3 * lengths[0]


def test_frames_and_rate_may_be_limited_together():
    """QwenLM/Qwen3-VL #1795; LlamaFactory #9408: only the first 64 s of a video entered."""
    kept = FrameSampling(fps=2.0, max_frames=16).indices([i / 10 for i in range(3000)], 3000, 300.0)
    assert len(kept) == 16
    assert kept[0] == 0 and kept[-1] == 2999


def test_an_exact_number_of_frames_may_be_asked_for():
    """LlamaFactory #8083."""
    assert FrameSampling(num_frames=5).indices(None, 100, None) == [0, 24, 49, 74, 99]


def test_qwen3_writes_the_true_times_of_the_frames(tiny):
    model = build(tiny("qwen3_vl"))
    medium = Media(torch.zeros(4, 3, 64, 64), "clip", frame_times=(0.0, 0.1, 1.5, 1.7))
    (layout,) = model.family.layouts([medium])
    text = model.tokenizer.decode([i for i in layout.ids if i != model.family.video_id])
    assert re.findall(r"<([\d.]+) seconds>", text) == ["0.1", "1.6"]


# ---- Checkpoints ---------------------------------------------------------------------------------


def test_a_converted_llava_checkpoint_is_fine_tuned_without_editing_it(tmp_path, monkeypatch):
    """LLaVA-NeXT #130: a released checkpoint could not be fine-tuned without another model_type."""
    from tests.models.stock_vlm import llava_writer as writer
    from xraygpt.models.stock_vlm.llava_import import convert_llava_checkpoint

    model = writer.reference()
    tower = writer.write_tower(tmp_path / "siglip", model)
    state, config = writer.original_state(model), writer.original_config(model)
    source = writer.write_checkpoint(tmp_path / "llava", state, config)
    convert_llava_checkpoint(source, tmp_path / "model", vision_tower=tower)
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path / "cache"))
    corpus = write_toy(tmp_path / "corpus", 8)
    config = tree(tmp_path / "model", corpus, tmp_path / "run", run__max_steps=2)
    done = runner(tmp_path / "run.yaml", config)
    done.train()
    assert done.mean_loss > 0


def test_a_mark_in_an_answer_is_text_and_not_a_file(tiny):
    """VLMEvalKit #1294: <image> in a text was read as a file."""
    model = build(tiny("qwen2_5_vl"))
    odd = sample("odd", "What is written?", "It says <image> and <|image_pad|>.", [])
    batch = our_batch(model, [odd])
    assert not batch["runs"] and model.family.image_id not in batch["input_ids"]
