"""Three families as one file each, outside the package: what the contracts promise them.

A stock vision-language model, a decoder from scratch on embeddings, and a segmenter go through
training, resuming, evaluation with controls, prediction of several media a row, chat and endpoint
(the first two), and the comparison of two systems.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from torch.nn import functional

import xraygpt
from tests.conftest import REPO, toy_image
from tests.killing import same, weights
from tests.plugins.prefix_lm import RowPacker
from tests.plugins.qwen import write_qwen
from xraygpt.common.config import load
from xraygpt.common.errors import DataError, InputError, Stopped, TrainingError
from xraygpt.conversation.api import ApiLimits, Message, Service
from xraygpt.datasets import controls
from xraygpt.datasets.collate import Collator
from xraygpt.datasets.records import FieldMap, RecordsBuilder
from xraygpt.demo.controller import DemoController, Settings
from xraygpt.evaluation.compare import compare
from xraygpt.evaluation.predictor import SomeFailed
from xraygpt.experiment import (
    Evaluation,
    Training,
    build_chat,
    build_evaluator,
    build_predictor,
    build_runner,
)
from xraygpt.jobs.pack import pack
from xraygpt.media.base import MediaRef
from xraygpt.models.base import Generation
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.content import MediaPart, Turn, turn_of
from xraygpt.prompting.renderer import Run
from xraygpt.runners.logs import read_rows

ANSWERS = {"left": "Left.", "right": "On the right."}
QUESTION = "What is there?"


def row(name: str, kind: str, i: int, media: list[Any], marks: str) -> dict[str, Any]:
    return {
        "id": name, "study": name, "split": "val" if i % 4 == 3 else "train", "images": media,
        "turns": [
            {"role": "user", "text": f"{marks} {QUESTION}"},
            {"role": "assistant", "text": ANSWERS[kind]},
        ],
    }  # fmt: skip


def kind_of(i: int) -> str:
    return list(ANSWERS)[i // 4 % 2] if i % 4 == 3 else list(ANSWERS)[i % 2]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Corpora of images, two-image studies and clips; of rows of one file; of images with masks."""
    base = tmp_path_factory.mktemp("plugins")
    (base / "images").mkdir()
    seen, rows, masks = [], [], []
    matrix = np.random.default_rng(0).normal(0, 0.1, (32, 3, 16)).astype(np.float32)
    for i in range(32):
        kind = kind_of(i)
        Image.fromarray(toy_image(kind, i)).save(base / f"images/s{i}.png")
        mask = np.zeros((32, 32), np.uint8)
        mask[8:22, (18 if kind == "left" else 4) :][:, :10] = 1
        Image.fromarray(mask).save(base / f"images/m{i}.png")
        media: list[Any] = [{"path": f"images/s{i}.png"}]
        marks = "<image>"
        if i % 3 == 1:
            media, marks = media * 2, "<image> <image>"
        if i % 3 == 2:
            clip = np.stack([toy_image(kind, 100 * i + f) for f in range(8)]).astype(np.float32)
            np.save(base / f"images/c{i}.npy", clip / 255)
            media = [{"path": f"images/c{i}.npy", "kind": "clip", "frames": [0, 8, 2], "fps": 4}]
            marks = "<video>"
        seen.append(row(f"s{i}", kind, i, media, marks))
        matrix[i, :, 0 if kind == "left" else 1] += 2
        source = {"path": "rows.safetensors", "tensor": "studies", "index": i}
        rows.append(row(f"r{i}", kind, i, [source], "<image>"))
        plain = {"images": [f"images/s{i}.png"], "mask": f"images/m{i}.png"}
        masks.append({k: v for k, v in seen[-1].items() if k != "turns"} | plain)
    save_file({"studies": matrix, "other": matrix[:1]}, base / "rows.safetensors")
    for name, content in (("seen", seen), ("rows", rows), ("masks", masks)):
        (base / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in content))
    write_qwen(base / "qwen")
    return base


MODELS = {
    "stock_vlm": "{arch: stock_vlm, path: %s/qwen%s}",
    "prefix_lm": "{arch: prefix_lm, llm: {vocab_size: 300, hidden: 64, layers: 2, heads: 2, "
    "init_std: 0.02, embedding_std: 0.02}, prompt_template: xraygpt%.0s%s}",
    "segmenter": "{arch: tiny_segmenter%.0s%s}",
}
CORPORA = {
    "stock_vlm": "annotations: seen.jsonl, vis_processor: {eval: {name: plain_pixels}}",
    "prefix_lm": "annotations: rows.jsonl",
    "segmenter": "annotations: masks.jsonl, target: none, fields: {files: [mask]}",
}
TASKS = {
    "stock_vlm": "{name: vqa, generate: {max_new_tokens: 8}}",
    "prefix_lm": "{name: report_generation, generate: {max_new_tokens: 12}}",
    "segmenter": "segment",
}
STEPS = {"stock_vlm": 6, "prefix_lm": 60, "segmenter": 40}
FAMILIES = list(MODELS)


def text_of(place: Path, family: str, run: str, ckpt: str = "") -> str:
    model = MODELS[family] % (place, f", ckpt: {ckpt}" if ckpt else "")
    return (
        f"imports: [tests.plugins.{family}]\nmodel: {model}\n"
        f"datasets: {{toy: {{builder: records, storage: {place}, {CORPORA[family]}}}}}\n"
        f"run: {{task: {TASKS[family]}, device: cpu, {run}}}\n"
    )


def training(place: Path, family: str, folder: Path, *options: str) -> Training:
    file = folder.with_suffix(".yaml")
    steps = STEPS[family]
    file.write_text(
        text_of(
            place, family,
            f"output_dir: {folder}, max_steps: {steps}, batch_size_train: 4, init_lr: 3.0e-3, "
            f"eval_every: {steps}, save_every: {steps // 2}, log_every: 1",
        )
    )  # fmt: skip
    return load(Training, file, options)


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    """A run of each family, by name."""
    known: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in known:
            folder = tmp_path_factory.mktemp(family) / "run"
            build_runner(training(place, family, folder)).train()
            known[family] = folder
        return known[family]

    return get


def evaluation(place: Path, family: str, folder: Path, ckpt: Path, *options: str) -> Evaluation:
    file = folder.with_suffix(".yaml")
    run = f"output_dir: {folder}, shuffles: 1, batch_size_eval: 4"
    file.write_text(text_of(place, family, run, str(ckpt)))
    return load(Evaluation, file, options)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_and_resumes_to_the_bit(place, trained, tmp_path, family, monkeypatch):
    run = trained(family)
    rows = [r for p in run.glob("*/metrics.jsonl") for r in read_rows(p)]
    losses = [r["train/loss"] for r in rows if "train/loss" in r]
    assert len(losses) == STEPS[family] and np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    half = build_runner(training(place, family, tmp_path / "again"))
    step = half._step

    def asked_to_stop(batches):
        half._signal = signal.SIGTERM if half.step + 1 == STEPS[family] // 2 else None
        return step(batches)

    monkeypatch.setattr(half, "_step", asked_to_stop)
    with pytest.raises(Stopped):
        half.train()
    build_runner(training(place, family, tmp_path / "again", "run.resume_ckpt_path=auto")).train()
    assert same(weights(run), weights(tmp_path / "again"))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_measured_beside_controls_and_compared(place, trained, tmp_path, family):
    experiment = evaluation(place, family, tmp_path / "eval", trained(family))
    first = build_evaluator(experiment)
    result = first.run()
    conditions = {r["condition"] for r in result["scores"]}
    named = {"segmenter": {"true", "shuffled", "blank", "mirrored"}}
    assert conditions == named.get(family, conditions) and {"true", "shuffled"} <= conditions
    by = {(r["name"], r["condition"]): r["value"] for r in result["scores"]}
    if family == "segmenter":
        assert by["dice", "true"] > 0.8 > by["dice", "blank"] + 0.6
        assert by["dice", "shuffled"] < 0.7
        assert by["dice", "mirrored"] > 0.8  # it is brought back to the original
        line = read_rows(first.folder / "predictions_true.jsonl")[1]
        assert line["payload"]["numbers"]["area_px"] > 0
        assert (first.folder / line["payload"]["mask"]).is_file()
    if family == "prefix_lm":
        assert by["ROUGE-L", "true"] > by["ROUGE-L", "shuffled"] + 0.3
    page = (first.folder / "report.html").read_text()
    assert "research use only" in page.lower()
    wanted = {"segmenter": "dice", "stock_vlm": "accuracy", "prefix_lm": "ROUGE-L"}
    assert f'class="metric"><div>{wanted[family]}<br>' in page  # drawn, whoever named it
    rows = compare(first.folder, first.folder, tosses=20)
    assert wanted[family] in {r.name for r in rows} and all(r.value == 0 for r in rows)


def test_a_mask_of_a_larger_picture_comes_back_to_it(place, trained, tmp_path):
    """160 × 96 px, padded to a square and made small for the network."""
    picture, mask = np.zeros((160, 96), np.uint8), np.zeros((160, 96), np.uint8)
    picture[40:110, 54:90] = 230
    mask[40:110, 54:90] = 1
    Image.fromarray(picture).save(place / "images/large.png")
    Image.fromarray(mask).save(place / "images/large_mask.png")
    row = {"id": "l", "study": "l", "split": "val", "images": ["images/large.png"]}
    (place / "large.jsonl").write_text(json.dumps({**row, "mask": "images/large_mask.png"}))
    experiment = evaluation(
        place, "segmenter", tmp_path / "e", trained("segmenter"), "run.controls=[blank]",
        "datasets.toy.annotations=large.jsonl",
        "datasets.toy.vis_processor={eval: {name: xray_image, fit: pad}}",
    )  # fmt: skip
    evaluator = build_evaluator(experiment)
    scores = {(r["name"], r["condition"]): r["value"] for r in evaluator.run()["scores"]}
    assert scores["dice", "true"] > 0.8 and scores["dice", "blank"] < 0.2
    (line,) = read_rows(evaluator.folder / "predictions_true.jsonl")[1:]
    assert np.asarray(Image.open(evaluator.folder / line["payload"]["mask"])).shape == (160, 96)
    assert "l-" in line["payload"]["mask"] and str(place) not in line["payload"]["mask"]


def test_a_changed_row_or_mask_is_another_corpus(place):
    """Answers and references of the file as it was are not taken for those of the new one."""
    spec = ImageSpec(image_size=32, mean=(0.5,), std=(0.5,), tokens_per_image=1)

    def digest(text: str) -> str:
        (place / "changing.jsonl").write_text(text)
        config = RecordsBuilder.Config(
            storage=place, annotations=Path("changing.jsonl"), target="none",
            fields=FieldMap(files=["mask"]),
        )  # fmt: skip
        return config.build(image_spec=spec).build("train").digest()

    source = {"path": "rows.safetensors", "tensor": "studies", "index": 1}
    row = {"id": "a", "study": "a", "split": "train", "images": [source]}
    row["mask"] = "images/m0.png"
    before = digest(json.dumps(row))
    assert digest(json.dumps(row)) == before
    assert digest(json.dumps({**row, "mask": "images/m1.png"})) != before
    assert digest(json.dumps({**row, "images": [{**source, "index": 2}]})) != before


def test_one_row_that_cannot_be_asked_stops_no_other(place, trained, tmp_path):
    source = {"path": "rows.safetensors", "tensor": "studies", "index": 0}
    rows = [{"id": "good", "images": [source]}, {"id": "long", "images": [source] * 200}]
    rows.append({"id": "second", "images": [{**source, "index": 1}]})
    table = place / "ask_some.jsonl"
    table.write_text("".join(json.dumps(r) + "\n" for r in rows))
    experiment = evaluation(place, "prefix_lm", tmp_path / "e", trained("prefix_lm"))

    def predicted():
        return build_predictor(
            experiment, table, output_dir=tmp_path / "out", question=QUESTION, device="cpu",
            workers=0,
        )  # fmt: skip

    first = predicted()
    with pytest.raises(SomeFailed, match=r"1 of 3 could not be read.*\n  long: \d+ tokens"):
        first.run()
    said = read_rows(first.folder / "predictions.jsonl")[1:]
    assert [r["sample_id"] for r in said] == ["good", "second"]
    assert said[0]["prediction"] != said[1]["prediction"]
    rows[0]["images"] = [{**source, "index": 1}]  # another row of the same file
    table.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(SomeFailed):
        predicted().run()
    again = read_rows(first.folder / "predictions.jsonl")[1:]
    assert again[0]["prediction"] == again[1]["prediction"] == said[1]["prediction"]


def test_others_images_are_of_the_same_kind(place, trained, tmp_path):
    """A `<video>` is given no still picture in its place."""
    evaluator = build_evaluator(
        evaluation(place, "stock_vlm", tmp_path / "e", trained("stock_vlm"))
    )
    for seed in range(6):
        other = controls.shuffled(evaluator.data, seed)
        for mine, theirs in zip(evaluator.data.records, other.records, strict=True):
            assert [r.kind for r in mine.media] == [r.kind for r in theirs.media]
    black = controls.blanked(evaluator.data)
    sizes = [m.data.shape for i in range(len(black)) for m in black[i]["media"]]
    assert sizes == [
        m.data.shape for i in range(len(black)) for m in evaluator.data[i]["media"]
    ] and not any(m.data.any() for i in range(len(black)) for m in black[i]["media"])


def test_a_plugin_is_packed_moved_and_loaded(place, trained, tmp_path, monkeypatch):
    pack(trained("prefix_lm"), tmp_path / "packed")
    shutil.move(tmp_path / "packed", tmp_path / "elsewhere")
    model = xraygpt.load_model(tmp_path / "elsewhere", device="cpu")
    run = xraygpt.load_model(trained("prefix_lm"), device="cpu")
    for i in (0, 1):
        ref = MediaRef(place / "rows.safetensors", tensor="studies", index=i)
        assert model.ask(ref, QUESTION) == run.ask(ref, QUESTION) == ANSWERS[kind_of(i)]
    with pytest.raises(InputError, match="no usable checkpoint"):
        xraygpt.load_model(place, device="cpu")


def test_a_plan_goes_with_any_model(place, trained, tmp_path):
    """Findings asked of a stock model, one by one, before the report."""
    plan = "{name: report_generation, plan: {findings: [edema, scar], threshold: 0.0}}"
    experiment = evaluation(
        place, "stock_vlm", tmp_path / "e", trained("stock_vlm"), f"run.task={plan}"
    )
    evaluator = build_evaluator(experiment)
    samples = [evaluator.data[i] for i in range(2)]
    for sample in samples:
        marks = sample["turns"][0]["text"].split(" W")[0]
        sample["turns"] = [Turn(role="user", text=marks)]
    task, prompts = evaluator.task, evaluator.collate.prompts(samples)
    assert len(list(task.predict(evaluator.model, prompts))) == 2
    assert task.asked == ["(found: edema; scar)"] * 2


def test_a_control_that_makes_no_sense_is_refused(place, trained, tmp_path):
    experiment = evaluation(
        place, "segmenter", tmp_path / "e", trained("segmenter"), "run.controls=[nearest]"
    )
    with pytest.raises(InputError, match="nearest makes no sense for this task; it has shuffled"):
        build_evaluator(experiment)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_predicts_studies_of_several_media(place, trained, tmp_path, family):
    """Where the training corpus is gone: the tokenizer comes with the checkpoint."""
    table = {"stock_vlm": "seen", "prefix_lm": "rows", "segmenter": "masks"}[family]
    lines = (place / f"{table}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    asked = [{"id": r["id"], "images": r["images"]} for r in rows[:6]]
    if family == "prefix_lm":
        asked = [{**r, "images": r["images"] * 2} for r in asked]
    table = place / f"ask_{family}.jsonl"
    table.write_text("".join(json.dumps(r) + "\n" for r in asked))
    experiment = evaluation(
        place, family, tmp_path / "e", trained(family), f"datasets.toy.storage={tmp_path}/gone"
    )
    predictor = build_predictor(
        experiment, table, output_dir=tmp_path / "out", question=QUESTION, device="cpu", workers=0
    )
    found = predictor.run()
    assert [p.sample_id for p in found] == [r["id"] for r in asked]
    if family == "segmenter":
        assert all(p.mask().shape == (32, 32) for p in found)
    if family == "prefix_lm":
        right = [p.prediction == ANSWERS[kind_of(i)] for i, p in enumerate(found)]
        assert sum(right) >= 5


def test_the_stock_model_computes_what_transformers_does(place, trained, tmp_path):
    """Mixed batch of images, pairs and a clip: loss and greedy answers of transformers alone."""
    parts = build_chat(evaluation(place, "stock_vlm", tmp_path / "e", trained("stock_vlm")), "cpu")
    model: Any = parts.engine.model
    runner = build_runner(training(place, "stock_vlm", tmp_path / "r"))
    samples = [runner.splits["train"][i] for i in range(6)]
    assert {len(s["media"]) for s in samples} == {1, 2}
    assert "clip" in {m.kind for s in samples for m in s["media"]}
    collate = Collator(model.renderer, model.media_collator, max_len=model.context_len)
    batch = collate(samples)
    found = model(batch)
    llm, config = model.llm, model.llm.config

    def theirs(batch: Any) -> dict[str, Any]:
        ids, kinds = batch["input_ids"].clone(), torch.zeros_like(batch["input_ids"])
        for run in batch["runs"]:
            at = (run.row, slice(run.start, run.start + run.length))
            clip = run.kind == "clip"
            ids[at], kinds[at] = config.video_token_id if clip else config.image_token_id, 1 + clip
        mask = batch["attention_mask"]
        return {
            "input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds,
            **batch["media_inputs"],
        }  # fmt: skip

    with torch.no_grad():
        logits = llm(**theirs(batch)).logits
    shifted = functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    expected = functional.cross_entropy(logits.transpose(1, 2), shifted, reduction="sum")
    torch.testing.assert_close(found.loss, expected, rtol=1e-4, atol=1e-4)
    prompts = collate.prompts(samples)
    said = model.generate(prompts, Generation(max_new_tokens=6))
    for i, sample in enumerate(samples):
        one = collate.prompts([sample])
        with torch.no_grad():
            ids = llm.generate(**theirs(one), max_new_tokens=6, do_sample=False)
        text = model.tokenizer.decode(ids[0, one["input_ids"].shape[1] :], skip_special_tokens=True)
        assert said[i] == text.strip(), i
    assert len(set(said)) > 1  # another image, another answer
    text = model.tokenizer.decode([i for i in batch["input_ids"][1].tolist() if i >= 0])
    assert text.count("<|vision_start|><|vision_end|>") == 2  # what the base model was trained on
    drawn = Generation(max_new_tokens=4, do_sample=True, candidates=3, seed=3)
    alone = [model.generate(collate.prompts([s]), drawn)[0] for s in samples]
    assert model.generate(prompts, drawn) == alone


@pytest.mark.parametrize("family", ["stock_vlm", "prefix_lm"])
def test_it_chats_and_a_turn_costs_its_own_tokens(place, trained, tmp_path, family):
    parts = build_chat(evaluation(place, family, tmp_path / "e", trained(family)), "cpu")
    name = "seen" if family == "stock_vlm" else "rows"
    sample = build_runner(training(place, family, tmp_path / "r")).splits["train"][1]
    how = Generation(max_new_tokens=8)
    conversation = parts.engine.start()
    for media in sample["media"]:
        conversation.add_image(media)
    assert conversation.prefill() > 0, name
    first = conversation.ask(QUESTION, how)
    collate = Collator(parts.engine.renderer, parts.engine.model.media_collator, max_len=512)
    assert first.text() == parts.engine.model.generate(collate.prompts([sample]), how)[0]
    assert first.cached_tokens > 0
    second = conversation.ask("Sure?", how)
    told = second.text()
    assert second.cached_tokens >= first.prompt_tokens - 2
    anew = parts.engine.start()
    for media in sample["media"]:
        anew.add_image(media)
    anew.recall(QUESTION, conversation.exchanges[0].answer)
    anew.exchanges[0].ids = conversation.exchanges[0].ids
    assert anew.ask("Sure?", how).text() == told


def test_the_endpoint_serves_a_stock_model(place, trained, tmp_path):
    parts = build_chat(evaluation(place, "stock_vlm", tmp_path / "e", trained("stock_vlm")), "cpu")
    service = Service(parts.engine, parts.read_media, "qwen", parts.how, ApiLimits(), "", {}, None)
    said = []
    for i in (0, 5):
        data = base64.b64encode((place / f"images/s{i}.png").read_bytes()).decode()
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        message = Message(role="user", content=[{"type": "text", "text": QUESTION}, image])
        conversation, planned = service.conversation([message])
        said.append(conversation.ask(planned.question, Generation(max_new_tokens=8)).text())
    assert said[0] != said[1]


def test_a_tiling_may_hang_on_all_images_of_a_study(place, trained, tmp_path, monkeypatch):
    """As LLaVA-OneVision tiles: three tokens of an image alone, one of each among several."""

    class Pooled(RowPacker):
        def token_runs(self, media):
            return [Run(len(m.data) if len(media) == 1 else 1, m.kind) for m in media]

        def stack(self, samples):
            made = [m.data if len(s) == 1 else m.data.mean(0)[None] for s in samples for m in s]
            return {"rows": torch.cat(made)}

    parts = build_chat(evaluation(place, "prefix_lm", tmp_path / "e", trained("prefix_lm")), "cpu")
    model = parts.engine.model
    model.media_collator = Pooled()
    data = build_runner(training(place, "prefix_lm", tmp_path / "r")).splits["train"]
    one, two, how = data[0]["media"][0], data[1]["media"][0], Generation(max_new_tokens=6)
    collate = Collator(model.renderer, model.media_collator, max_len=512)
    pair = {**data[0], "media": [one, two]}
    pair["turns"] = [Turn(role="user", text=f"<image> <image> {QUESTION}")]
    batch = collate.prompts([pair, data[0]])
    assert [run.length for run in batch["runs"]] == [1, 1, 3]
    both = parts.engine.start()
    both.add_image(one)
    both.add_image(two)
    turn = turn_of("user", [MediaPart(), MediaPart(), f" {QUESTION}"])
    wanted = model.generate(collate.prompts([{**pair, "turns": [turn]}]), how)
    assert both.ask(QUESTION, how).text() == wanted[0]
    later = parts.engine.start()
    later.add_image(one)
    first = later.ask(QUESTION, how).text()
    later.add_image(two)  # the first image is read anew, as one of two
    told = later.ask("And this?", how)
    answer = told.text()
    runs = later.replay().rendered["runs"]
    assert [run.length for run in runs] == [1, 1] and told.cached_tokens <= runs[0].start
    anew = parts.engine.start()
    anew.add_image(one)
    anew.recall(QUESTION, first)
    anew.exchanges[0].ids = later.exchanges[0].ids
    anew.add_image(two)
    assert anew.ask("And this?", how).text() == answer


def test_the_page_drafts_with_a_model_that_draws_no_maps(place, trained, tmp_path):
    parts = build_chat(evaluation(place, "stock_vlm", tmp_path / "e", trained("stock_vlm")), "cpu")
    examples = [(place / "images/s0.png", "one"), (place / "images/s1.png", "another")]
    desk, said = DemoController(parts, "qwen", synthetic=False, examples=examples), []
    for i in (0, 1):
        session = desk.sessions.of(f"page{i}")
        assert desk.take_example(session, i) == []
        *_, last = desk.draft(session, Settings(max_new_tokens=8))
        said.append(last.text)
        with pytest.raises(InputError, match="cannot show where it looked because its tokens are"):
            desk.attention.look(session.conversation, 0, 1)
    assert said[0] != said[1]


def test_what_a_family_lacks_is_said_truly(place, trained, tmp_path):
    segment = evaluation(place, "segmenter", tmp_path / "s", trained("segmenter"))
    with pytest.raises(InputError, match=r"\(arch: tiny_segmenter\) cannot chat because it writes"):
        build_chat(segment, "cpu")
    with pytest.raises(InputError, match=r"cannot have the layers .* no decoder_layers"):
        build_runner(training(place, "segmenter", tmp_path / "c", "run.compile=true"))


def test_tokens_and_placeholders_that_disagree_are_refused(place, trained, tmp_path, monkeypatch):
    runner = build_runner(training(place, "prefix_lm", tmp_path / "r"))
    own = type(runner.model).media_tokens
    monkeypatch.setattr(
        type(runner.model), "media_tokens", lambda self, b: [t[:-1] for t in own(self, b)]
    )
    with pytest.raises(DataError, match=r"sample r\d+: the model makes 2 tokens .* 3 placeholders"):
        runner.model(runner.collate([runner.splits["train"][0]]))
    broken = {**runner.splits["train"][0]}
    broken["turns"] = [{"role": "user", "text": "<video> ?"}, {"role": "assistant", "text": "!"}]
    with pytest.raises(DataError, match="sample r0: <video> in its text stands for an embedding"):
        runner.collate([broken])


def test_a_trained_weight_that_would_not_be_saved_stops_the_run(place, tmp_path, monkeypatch):
    runner = build_runner(training(place, "prefix_lm", tmp_path / "r", "run.max_steps=2"))
    own = type(runner.model).checkpoint_state
    kept = lambda self: {n: t for n, t in own(self).items() if n != "proj.bias"}  # noqa: E731
    monkeypatch.setattr(type(runner.model), "checkpoint_state", kept)
    with pytest.raises(TrainingError, match=r"proj.bias is trained, .* checkpoint_state"):
        runner.train()


def test_the_package_knows_none_of_them():
    names = ("stock_vlm", "prefix_lm", "tiny_segmenter", "StockVlm", "PrefixLM")
    for path in (REPO / "xraygpt").rglob("*.py"):
        assert not [n for n in names if n in path.read_text()], path
    for family in FAMILIES:
        lines = (REPO / "tests" / "plugins" / f"{family}.py").read_text().splitlines()
        assert len(lines) <= 100, family
