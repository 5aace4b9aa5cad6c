"""Three model families, each in one file outside the package, in all parts of the framework.

A stock vision-language model, a decoder trained from scratch on embeddings, and a segmenter are
trained, resumed, evaluated with controls, used for prediction and compared; the first two also
chat.
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
from tests.plugins.prefix_plugin import RowCollator
from tests.plugins.qwen import write_qwen
from xraygpt.common.config import load
from xraygpt.common.errors import DataError, InputError, Stopped, TrainingError
from xraygpt.conversation.api_schema import ApiLimits, Message
from xraygpt.conversation.api_service import Service
from xraygpt.datasets import controls
from xraygpt.datasets.collate import Collator
from xraygpt.datasets.records import RecordsBuilder
from xraygpt.datasets.table_fields import FieldMap
from xraygpt.demo.controller import DemoController
from xraygpt.demo.decoding import DecodingSettings
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
from xraygpt.prompting.content import MediaPart, Turn, build_turn
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
def base(tmp_path_factory) -> Path:
    """Corpora of images, image pairs and clips; of stored embeddings; of images with masks."""
    base = tmp_path_factory.mktemp("plugins")
    (base / "images").mkdir()
    images, rows, masks = [], [], []
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
        images.append(row(f"s{i}", kind, i, media, marks))
        matrix[i, :, 0 if kind == "left" else 1] += 2
        source = {"path": "rows.safetensors", "tensor": "studies", "index": i}
        rows.append(row(f"r{i}", kind, i, [source], "<image>"))
        plain = {"images": [f"images/s{i}.png"], "mask": f"images/m{i}.png"}
        masks.append({k: v for k, v in images[-1].items() if k != "turns"} | plain)
    save_file({"studies": matrix, "other": matrix[:1]}, base / "rows.safetensors")
    for name, content in (("images", images), ("rows", rows), ("masks", masks)):
        (base / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in content))
    write_qwen(base / "qwen")
    return base


MODELS = {
    "qwen_plugin": "{arch: qwen_plugin, path: %s/qwen%s}",
    "prefix_plugin": "{arch: prefix_plugin, llm: {vocab_size: 300, hidden: 64, layers: 2, "
    "heads: 2, init_std: 0.02, embedding_std: 0.02}, prompt_template: xraygpt%.0s%s}",
    "segmenter": "{arch: tiny_segmenter%.0s%s}",
}
CORPORA = {
    "qwen_plugin": "annotations: images.jsonl, vis_processor: {eval: {name: plain_pixels}}",
    "prefix_plugin": "annotations: rows.jsonl",
    "segmenter": "annotations: masks.jsonl, target: none, fields: {files: [mask]}",
}
TASKS = {
    "qwen_plugin": "{name: vqa, generate: {max_new_tokens: 8}}",
    "prefix_plugin": "{name: report_generation, generate: {max_new_tokens: 12}}",
    "segmenter": "segment",
}
STEPS = {"qwen_plugin": 6, "prefix_plugin": 60, "segmenter": 40}
FAMILIES = list(MODELS)


def text_of(base: Path, family: str, run: str, ckpt: str = "") -> str:
    model = MODELS[family] % (base, f", ckpt: {ckpt}" if ckpt else "")
    return (
        f"imports: [tests.plugins.{family}]\nmodel: {model}\n"
        f"datasets: {{toy: {{builder: records, storage: {base}, {CORPORA[family]}}}}}\n"
        f"run: {{task: {TASKS[family]}, device: cpu, {run}}}\n"
    )


def training(base: Path, family: str, folder: Path, *options: str) -> Training:
    file = folder.with_suffix(".yaml")
    steps = STEPS[family]
    file.write_text(
        text_of(
            base, family,
            f"output_dir: {folder}, max_steps: {steps}, batch_size_train: 4, init_lr: 3.0e-3, "
            f"eval_every: {steps}, save_every: {steps // 2}, log_every: 1",
        )
    )  # fmt: skip
    return load(Training, file, options)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """Function that returns the run folder of a family."""
    runs: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in runs:
            folder = tmp_path_factory.mktemp(family) / "run"
            build_runner(training(base, family, folder)).train()
            runs[family] = folder
        return runs[family]

    return get


def evaluation(base: Path, family: str, folder: Path, ckpt: Path, *options: str) -> Evaluation:
    file = folder.with_suffix(".yaml")
    run = f"output_dir: {folder}, shuffles: 1, batch_size_eval: 4"
    file.write_text(text_of(base, family, run, str(ckpt)))
    return load(Evaluation, file, options)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_and_resumes_bit_exactly(base, trained, tmp_path, family, monkeypatch):
    run = trained(family)
    rows = [r for p in run.glob("*/metrics.jsonl") for r in read_rows(p)]
    losses = [r["train/loss"] for r in rows if "train/loss" in r]
    assert len(losses) == STEPS[family] and np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    half = build_runner(training(base, family, tmp_path / "again"))
    step = half._step

    def step_with_signal(batches):
        stops = half.step + 1 == STEPS[family] // 2
        half.signals.received = signal.SIGTERM if stops else None
        return step(batches)

    monkeypatch.setattr(half, "_step", step_with_signal)
    with pytest.raises(Stopped):
        half.train()
    build_runner(training(base, family, tmp_path / "again", "run.resume_ckpt_path=auto")).train()
    assert same(weights(run), weights(tmp_path / "again"))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_evaluated_with_controls_and_compared(base, trained, tmp_path, family):
    experiment = evaluation(base, family, tmp_path / "eval", trained(family))
    first = build_evaluator(experiment)
    result = first.run()
    conditions = {r["condition"] for r in result["scores"]}
    expected = {"segmenter": {"true", "shuffled", "blank", "mirrored"}}
    assert conditions == expected.get(family, conditions) and {"true", "shuffled"} <= conditions
    by = {(r["name"], r["condition"]): r["value"] for r in result["scores"]}
    if family == "segmenter":
        assert by["dice", "true"] > 0.8 > by["dice", "blank"] + 0.6
        assert by["dice", "shuffled"] < 0.7
        assert by["dice", "mirrored"] > 0.8  # the mask is mirrored back
        line = read_rows(first.folder / "predictions_true.jsonl")[0]
        assert line["payload"]["numbers"]["area_px"] > 0
        assert (first.folder / line["payload"]["mask"]).is_file()
    if family == "prefix_plugin":
        assert by["ROUGE-L", "true"] > by["ROUGE-L", "shuffled"] + 0.3
    page = (first.folder / "report.html").read_text()
    assert "research use only" in page.lower()
    metrics = {"segmenter": "dice", "qwen_plugin": "accuracy", "prefix_plugin": "ROUGE-L"}
    assert f'class="metric"><div>{metrics[family]}<br>' in page
    rows = compare(first.folder, first.folder, permutations=20)
    assert metrics[family] in {r.name for r in rows} and all(r.value == 0 for r in rows)


def test_masks_are_resized_to_the_original_image(base, trained, tmp_path):
    """160 × 96 px, padded to a square and resized for the network."""
    picture, mask = np.zeros((160, 96), np.uint8), np.zeros((160, 96), np.uint8)
    picture[40:110, 54:90] = 230
    mask[40:110, 54:90] = 1
    Image.fromarray(picture).save(base / "images/large.png")
    Image.fromarray(mask).save(base / "images/large_mask.png")
    row = {"id": "l", "study": "l", "split": "val", "images": ["images/large.png"]}
    (base / "large.jsonl").write_text(json.dumps({**row, "mask": "images/large_mask.png"}))
    experiment = evaluation(
        base, "segmenter", tmp_path / "e", trained("segmenter"), "run.controls=[blank]",
        "datasets.toy.annotations=large.jsonl",
        "datasets.toy.vis_processor={eval: {name: xray_image, fit: pad}}",
    )  # fmt: skip
    evaluator = build_evaluator(experiment)
    scores = {(r["name"], r["condition"]): r["value"] for r in evaluator.run()["scores"]}
    assert scores["dice", "true"] > 0.8 and scores["dice", "blank"] < 0.2
    (line,) = read_rows(evaluator.folder / "predictions_true.jsonl")
    assert np.asarray(Image.open(evaluator.folder / line["payload"]["mask"])).shape == (160, 96)
    assert "l-" in line["payload"]["mask"] and str(base) not in line["payload"]["mask"]


def test_a_changed_row_or_mask_changes_the_corpus_digest(base):
    """So that stored answers and references of the old file are not used for the new one."""
    spec = ImageSpec(image_size=32, mean=(0.5,), std=(0.5,), tokens_per_image=1)

    def digest(text: str) -> str:
        (base / "changing.jsonl").write_text(text)
        config = RecordsBuilder.Config(
            storage=base, annotations=Path("changing.jsonl"), target="none",
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


def test_an_unusable_row_does_not_stop_the_others(base, trained, tmp_path):
    source = {"path": "rows.safetensors", "tensor": "studies", "index": 0}
    rows = [{"id": "good", "images": [source]}, {"id": "long", "images": [source] * 200}]
    rows.append({"id": "second", "images": [{**source, "index": 1}]})
    table = base / "ask_some.jsonl"
    table.write_text("".join(json.dumps(r) + "\n" for r in rows))
    experiment = evaluation(base, "prefix_plugin", tmp_path / "e", trained("prefix_plugin"))

    def predicted():
        return build_predictor(
            experiment, table, output_dir=tmp_path / "out", question=QUESTION, device="cpu",
            workers=0,
        )  # fmt: skip

    first = predicted()
    with pytest.raises(
        SomeFailed, match=r"1 of 3 inputs could not be read.*\n  long: .*has \d+ tokens"
    ):
        first.run()
    predictions = read_rows(first.folder / "predictions.jsonl")
    assert [r["sample_id"] for r in predictions] == ["good", "second"]
    assert predictions[0]["prediction"] != predictions[1]["prediction"]
    rows[0]["images"] = [{**source, "index": 1}]  # another row of the same file
    table.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(SomeFailed):
        predicted().run()
    again = read_rows(first.folder / "predictions.jsonl")
    assert again[0]["prediction"] == again[1]["prediction"] == predictions[1]["prediction"]


def test_controls_keep_the_kind_of_media(base, trained, tmp_path):
    """A `<video>` is never replaced by an image."""
    evaluator = build_evaluator(
        evaluation(base, "qwen_plugin", tmp_path / "e", trained("qwen_plugin"))
    )
    for seed in range(6):
        other = controls.shuffled(evaluator.data, seed)
        for original, changed in zip(evaluator.data.records, other.records, strict=True):
            assert [r.kind for r in original.media] == [r.kind for r in changed.media]
    black = controls.blanked(evaluator.data)
    sizes = [m.data.shape for i in range(len(black)) for m in black[i]["media"]]
    assert sizes == [
        m.data.shape for i in range(len(black)) for m in evaluator.data[i]["media"]
    ] and not any(m.data.any() for i in range(len(black)) for m in black[i]["media"])


def test_a_plugin_is_packed_moved_and_loaded(base, trained, tmp_path, monkeypatch):
    pack(trained("prefix_plugin"), tmp_path / "packed")
    shutil.move(tmp_path / "packed", tmp_path / "elsewhere")
    model = xraygpt.load_model(tmp_path / "elsewhere", device="cpu")
    run = xraygpt.load_model(trained("prefix_plugin"), device="cpu")
    for i in (0, 1):
        ref = MediaRef(base / "rows.safetensors", tensor="studies", index=i)
        assert model.ask(ref, QUESTION) == run.ask(ref, QUESTION) == ANSWERS[kind_of(i)]
    with pytest.raises(InputError, match="no usable checkpoint"):
        xraygpt.load_model(base, device="cpu")


def test_a_plan_works_with_any_model(base, trained, tmp_path):
    """A stock model is asked for each finding before it writes the report."""
    plan = "{name: report_generation, plan: {findings: [edema, scar], threshold: 0.0}}"
    experiment = evaluation(
        base, "qwen_plugin", tmp_path / "e", trained("qwen_plugin"), f"run.task={plan}"
    )
    evaluator = build_evaluator(experiment)
    samples = [evaluator.data[i] for i in range(2)]
    for sample in samples:
        marks = sample["turns"][0]["text"].split(" W")[0]
        sample["turns"] = [Turn(role="user", text=marks)]
    task, prompts = evaluator.task, evaluator.collate.prompts(samples)
    answers = task.predict(evaluator.model, prompts)
    assert [answer.prompt for answer in answers] == ["(found: edema; scar)"] * 2


def test_an_unsuitable_control_is_rejected(base, trained, tmp_path):
    experiment = evaluation(
        base, "segmenter", tmp_path / "e", trained("segmenter"), "run.controls=[nearest]"
    )
    with pytest.raises(
        InputError, match="nearest is not available for this task; choose from shuffled"
    ):
        build_evaluator(experiment)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_predicts_studies_of_several_media(base, trained, tmp_path, family):
    """Also without the training corpus, as the checkpoint has the tokenizer."""
    table = {"qwen_plugin": "images", "prefix_plugin": "rows", "segmenter": "masks"}[family]
    lines = (base / f"{table}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    requests = [{"id": r["id"], "images": r["images"]} for r in rows[:6]]
    if family == "prefix_plugin":
        requests = [{**r, "images": r["images"] * 2} for r in requests]
    table = base / f"ask_{family}.jsonl"
    table.write_text("".join(json.dumps(r) + "\n" for r in requests))
    experiment = evaluation(
        base, family, tmp_path / "e", trained(family), f"datasets.toy.storage={tmp_path}/gone"
    )
    predictor = build_predictor(
        experiment, table, output_dir=tmp_path / "out", question=QUESTION, device="cpu", workers=0
    )
    predictions = predictor.run()
    assert [p.sample_id for p in predictions] == [r["id"] for r in requests]
    if family == "segmenter":
        assert all(p.mask().shape == (32, 32) for p in predictions)
    if family == "prefix_plugin":
        correct = [p.prediction == ANSWERS[kind_of(i)] for i, p in enumerate(predictions)]
        assert sum(correct) >= 5


def test_the_stock_model_equals_transformers(base, trained, tmp_path):
    """Loss and greedy answers for a batch of images, pairs and a clip."""
    parts = build_chat(
        evaluation(base, "qwen_plugin", tmp_path / "e", trained("qwen_plugin")), "cpu"
    )
    model: Any = parts.engine.model
    runner = build_runner(training(base, "qwen_plugin", tmp_path / "r"))
    samples = [runner.splits["train"][i] for i in range(6)]
    assert {len(s["media"]) for s in samples} == {1, 2}
    assert "clip" in {m.kind for s in samples for m in s["media"]}
    collate = Collator(model.renderer, model.media_collator, max_len=model.context_len)
    batch = collate(samples)
    output = model(batch)
    llm, config = model.llm, model.llm.config

    def transformers_inputs(batch: Any) -> dict[str, Any]:
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
        logits = llm(**transformers_inputs(batch)).logits
    shifted = functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    expected = functional.cross_entropy(logits.transpose(1, 2), shifted, reduction="sum")
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-4)
    prompts = collate.prompts(samples)
    answers = model.generate(prompts, Generation(max_new_tokens=6))
    for i, sample in enumerate(samples):
        prompt = collate.prompts([sample])
        with torch.no_grad():
            ids = llm.generate(**transformers_inputs(prompt), max_new_tokens=6, do_sample=False)
        new_ids = ids[0, prompt["input_ids"].shape[1] :]
        assert answers[i] == model.tokenizer.decode(new_ids, skip_special_tokens=True).strip(), i
    assert len(set(answers)) > 1  # answers depend on the image
    text = model.tokenizer.decode([i for i in batch["input_ids"][1].tolist() if i >= 0])
    assert text.count("<|vision_start|><|vision_end|>") == 2  # as in the base model's training
    sampling = Generation(max_new_tokens=4, do_sample=True, candidates=3, seed=3)
    single = [model.generate(collate.prompts([s]), sampling)[0] for s in samples]
    assert model.generate(prompts, sampling) == single


@pytest.mark.parametrize("family", ["qwen_plugin", "prefix_plugin"])
def test_it_chats_and_a_turn_computes_only_new_tokens(base, trained, tmp_path, family):
    parts = build_chat(evaluation(base, family, tmp_path / "e", trained(family)), "cpu")
    sample = build_runner(training(base, family, tmp_path / "r")).splits["train"][1]
    generation = Generation(max_new_tokens=8)
    conversation = parts.engine.start()
    for media in sample["media"]:
        conversation.add_image(media)
    assert conversation.prefill() > 0
    first = conversation.ask(QUESTION, generation)
    collate = Collator(parts.engine.renderer, parts.engine.model.media_collator, max_len=512)
    assert first.text() == parts.engine.model.generate(collate.prompts([sample]), generation)[0]
    assert first.cached_tokens > 0
    second = conversation.ask("Sure?", generation)
    answer = second.text()
    assert second.cached_tokens >= first.prompt_tokens - 2
    restored = parts.engine.start()
    for media in sample["media"]:
        restored.add_image(media)
    restored.restore(QUESTION, conversation.history[0].answer)
    restored.history[0].answer_ids = conversation.history[0].answer_ids
    assert restored.ask("Sure?", generation).text() == answer


def test_the_endpoint_serves_a_stock_model(base, trained, tmp_path):
    parts = build_chat(
        evaluation(base, "qwen_plugin", tmp_path / "e", trained("qwen_plugin")), "cpu"
    )
    service = Service(parts.engine, parts.read_media, "qwen", parts.generation, ApiLimits(), "", {})
    answers = []
    for i in (0, 5):
        data = base64.b64encode((base / f"images/s{i}.png").read_bytes()).decode()
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        message = Message(role="user", content=[{"type": "text", "text": QUESTION}, image])
        conversation, question = service.conversation([message])
        answers.append(conversation.ask(question, Generation(max_new_tokens=8)).text())
    assert answers[0] != answers[1]


def test_tiling_may_depend_on_the_number_of_images(base, trained, tmp_path):
    """As in LLaVA-OneVision: three tokens for a single image, one for each of several."""

    class Pooled(RowCollator):
        def token_runs(self, media):
            return [Run(len(m.data) if len(media) == 1 else 1, m.kind) for m in media]

        def stack(self, samples):
            rows = [m.data if len(s) == 1 else m.data.mean(0)[None] for s in samples for m in s]
            return {"rows": torch.cat(rows)}

    parts = build_chat(
        evaluation(base, "prefix_plugin", tmp_path / "e", trained("prefix_plugin")), "cpu"
    )
    model = parts.engine.model
    model.media_collator = Pooled()
    data = build_runner(training(base, "prefix_plugin", tmp_path / "r")).splits["train"]
    first, second = data[0]["media"][0], data[1]["media"][0]
    generation = Generation(max_new_tokens=6)
    collate = Collator(model.renderer, model.media_collator, max_len=512)
    pair = {**data[0], "media": [first, second]}
    pair["turns"] = [Turn(role="user", text=f"<image> <image> {QUESTION}")]
    batch = collate.prompts([pair, data[0]])
    assert [run.length for run in batch["runs"]] == [1, 1, 3]
    both = parts.engine.start()
    both.add_image(first)
    both.add_image(second)
    turn = build_turn("user", [MediaPart(), MediaPart(), f" {QUESTION}"])
    expected = model.generate(collate.prompts([{**pair, "turns": [turn]}]), generation)
    assert both.ask(QUESTION, generation).text() == expected[0]
    later = parts.engine.start()
    later.add_image(first)
    first_answer = later.ask(QUESTION, generation).text()
    later.add_image(second)  # the first image is processed again, as one of two
    second_answer = later.ask("And this?", generation)
    text = second_answer.text()
    runs = later.answer_context().rendered["runs"]
    assert [run.length for run in runs] == [1, 1]
    assert second_answer.cached_tokens <= runs[0].start
    restored = parts.engine.start()
    restored.add_image(first)
    restored.restore(QUESTION, first_answer)
    restored.history[0].answer_ids = later.history[0].answer_ids
    restored.add_image(second)
    assert restored.ask("And this?", generation).text() == text


def test_the_demo_drafts_with_a_model_without_maps(base, trained, tmp_path):
    parts = build_chat(
        evaluation(base, "qwen_plugin", tmp_path / "e", trained("qwen_plugin")), "cpu"
    )
    examples = [(base / "images/s0.png", "one"), (base / "images/s1.png", "another")]
    demo, drafts = DemoController(parts, "qwen", synthetic=False, examples=examples), []
    for i in (0, 1):
        session = demo.sessions.get(f"page{i}")
        assert demo.images.add_example(session, i) == []
        *_, last = demo.responder.draft(session, DecodingSettings(max_new_tokens=8))
        drafts.append(last.text)
        with pytest.raises(InputError, match="cannot show where it looked because its tokens are"):
            demo.attention.maps(session.conversation, 0, 1)
    assert drafts[0] != drafts[1]


def test_missing_capabilities_are_reported(base, trained, tmp_path):
    segment = evaluation(base, "segmenter", tmp_path / "s", trained("segmenter"))
    with pytest.raises(InputError, match=r"\(arch: tiny_segmenter\) cannot chat because it pre"):
        build_chat(segment, "cpu")
    with pytest.raises(InputError, match=r"cannot have the layers .* no decoder_layers"):
        build_runner(training(base, "segmenter", tmp_path / "c", "run.compile=true"))


def test_inconsistent_numbers_of_tokens_are_an_error(base, trained, tmp_path, monkeypatch):
    runner = build_runner(training(base, "prefix_plugin", tmp_path / "r"))
    own = type(runner.model).media_tokens
    monkeypatch.setattr(
        type(runner.model), "media_tokens", lambda self, b: [t[:-1] for t in own(self, b)]
    )
    with pytest.raises(DataError, match=r"sample r\d+: the model makes 2 tokens .* 3 placeholders"):
        runner.model(runner.collate([runner.splits["train"][0]]))
    broken = {**runner.splits["train"][0]}
    broken["turns"] = [{"role": "user", "text": "<video> ?"}, {"role": "assistant", "text": "!"}]
    with pytest.raises(DataError, match="sample r0: <video> in its text marks an embedding"):
        runner.collate([broken])


def test_an_unsaved_trained_weight_stops_the_run(base, tmp_path, monkeypatch):
    runner = build_runner(training(base, "prefix_plugin", tmp_path / "r", "run.max_steps=2"))
    own = type(runner.model).checkpoint_state
    incomplete = lambda self: {n: t for n, t in own(self).items() if n != "proj.bias"}  # noqa: E731
    monkeypatch.setattr(type(runner.model), "checkpoint_state", incomplete)
    with pytest.raises(TrainingError, match=r"proj.bias is trained, .* checkpoint_state"):
        runner.train()


def test_the_package_does_not_mention_the_plugins():
    names = ("qwen_plugin", "prefix_plugin", "tiny_segmenter", "QwenPlugin", "PrefixPlugin")
    for path in (REPO / "xraygpt").rglob("*.py"):
        assert not [n for n in names if n in path.read_text()], path
    for family in FAMILIES:
        lines = (REPO / "tests" / "plugins" / f"{family}.py").read_text().splitlines()
        assert len(lines) <= 100, family
