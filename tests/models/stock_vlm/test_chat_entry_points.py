"""Prediction, the endpoint, the demo and `load_model` with stock models, images and clips."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.demo.helpers import SHORT, final_text, upload
from tests.models.stock_vlm.clip_files import frames_of, write_cine, write_video
from tests.models.stock_vlm.stock_batches import image
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.conversation.api import make_app
from xraygpt.conversation.api_schema import ApiLimits
from xraygpt.conversation.api_service import Service
from xraygpt.demo.controller import DemoController
from xraygpt.evaluation.inputs import find_inputs
from xraygpt.evaluation.predictor import SomeFailed
from xraygpt.experiment import Evaluation, build_chat, build_predictor
from xraygpt.loading import load_model
from xraygpt.media.base import MediaRef
from xraygpt.media.clip_policy import ClipPolicy
from xraygpt.media.frame_sampling import FrameSampling

QUESTION = "Is the wall motion coordinated?"
FAMILY = "qwen2_5_vl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two PNGs, an MP4, an AVI and a DICOM cine without a suffix."""
    base = tmp_path_factory.mktemp("studies")
    for i in range(2):
        Image.fromarray(image(i)).save(base / f"still{i}.png")
    write_video(base / "long.mp4", frames_of(0, 12))
    write_video(base / "short.avi", frames_of(1, 4))
    write_cine(base / "cine", frames_of(2, 6))
    (base / "notes.txt").write_text("not an image")
    return base


def evaluation(tmp_path: Path, model: Path, *options: str) -> Evaluation:
    file = tmp_path / "stock.yaml"
    file.write_text(
        f"model: {{arch: stock_vlm, path: {model}, dtype: float32}}\n"
        f"datasets: {{mine: {{builder: records, storage: {tmp_path}, input_check: false}}}}\n"
        "run: {task: {name: vqa, generate: {max_new_tokens: 8}}, "
        f"device: cpu, output_dir: {tmp_path}/e}}\n"
    )
    return load(Evaluation, file, options)


@pytest.fixture(scope="module")
def parts(tiny, tmp_path_factory):
    return build_chat(evaluation(tmp_path_factory.mktemp("chat"), tiny(FAMILY)), "cpu")


# --- which files are clips ------------------------------------------------------------------------


def test_a_folder_of_a_model_that_reads_clips_contains_videos_and_cines(folder):
    clips = ClipPolicy(as_clips=True, sampling=FrameSampling(num_frames=3))
    kinds = {r.sample_id: r.media[0].kind for r in find_inputs(folder, QUESTION, clips)}
    assert kinds == {
        "cine": "clip", "long.mp4": "clip", "short.avi": "clip",
        "still0.png": "image", "still1.png": "image",
    }  # fmt: skip
    assert all(
        r.media[0].sampling == (clips.sampling if kinds[r.sample_id] == "clip" else None)
        for r in find_inputs(folder, QUESTION, clips)
    )
    without = {r.sample_id: r.media[0] for r in find_inputs(folder, QUESTION)}
    assert set(without) == {"cine", "still0.png", "still1.png"}
    assert without["cine"] == MediaRef(folder / "cine")  # its first frame


def test_a_row_may_choose_a_frame_or_its_own_frames(folder):
    rows = [
        {"id": "a", "images": ["still0.png", "cine"], "videos": "long.mp4"},
        {"id": "b", "image": {"path": "cine", "frame": 2}},
        {"id": "c", "video": {"path": "long.mp4", "sampling": {"num_frames": 5}}},
        {"id": "d", "videos": ["short.avi"], "question": "Why?"},
    ]
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = ClipPolicy(as_clips=True, sampling=FrameSampling(num_frames=3))
    found = {r.sample_id: r for r in find_inputs(table, QUESTION, policy)}
    table.unlink()
    three, five = FrameSampling(num_frames=3), FrameSampling(num_frames=5)
    described = {k: [(m.kind, m.index, m.sampling) for m in r.media] for k, r in found.items()}
    assert described == {
        "a": [("image", 0, None), ("clip", None, three), ("clip", None, three)],
        "b": [("image", 2, None)],
        "c": [("clip", None, five)],
        "d": [("clip", None, three)],
    }
    assert found["a"].turns[0]["text"] == f"<image> <image> <image> {QUESTION}"
    assert found["d"].turns[0]["text"] == "<image> Why?"


def test_all_frames_is_no_sampling(folder):
    assert ClipPolicy(True, FrameSampling()).ref(folder / "long.mp4").sampling is None
    assert ClipPolicy(True).ref(folder / "cine", 3) == MediaRef(folder / "cine", index=3)
    assert ClipPolicy(True).ref(folder / "absent.png") == MediaRef(folder / "absent.png")


# --- prediction -----------------------------------------------------------------------------------


def predict(tmp_path: Path, model: Path, source: Path, *options: str) -> dict[str, str]:
    predictor = build_predictor(
        evaluation(tmp_path, model, *options), source, output_dir=tmp_path / "out",
        question=QUESTION, device="cpu", workers=0, batch_size=4,
    )  # fmt: skip
    return {p.sample_id: p.prediction for p in predictor.run()}


@pytest.mark.slow
def test_a_folder_is_predicted_as_it_is_chatted_about(tiny, folder, parts, tmp_path):
    answers = predict(tmp_path, tiny(FAMILY), folder)
    assert len(answers) == 5 and len(set(answers.values())) > 1
    loaded = load_model(tmp_path / "stock.yaml", device="cpu")
    for name, answer in answers.items():
        file = folder / name
        chatted = parts.engine.start()
        chatted.add_image(parts.read_media(file))
        assert chatted.ask(QUESTION, parts.generation).text() == answer
        assert loaded.ask(file, QUESTION) == answer
    assert "clip" in {parts.read_media(folder / name).kind for name in answers}
    assert (next((tmp_path / "out").glob("*")) / "report.html").stat().st_size > 1000


@pytest.mark.slow
def test_a_row_of_images_and_a_clip_is_predicted(tiny, folder, tmp_path, family):
    media = ["still0.png", "still1.png", {"path": "long.mp4", "sampling": {"num_frames": 4}}]
    table = folder / f"{family}.jsonl"
    rows = [{"id": "all", "images": media}, {"id": "clip", "images": media[2:]}]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = predict(tmp_path, tiny(family), table)
    table.unlink()
    assert set(answers) == {"all", "clip"}


@pytest.mark.slow
def test_a_clip_that_is_too_long_is_named_and_the_others_are_answered(tiny, folder, tmp_path):
    """12 frames do not fit into the context, 2 do."""
    small = ("model.context=64",)
    with pytest.raises(SomeFailed) as caught:
        predict(tmp_path, tiny(FAMILY), folder, *small)
    [line] = [x for x in str(caught.value).splitlines() if x.strip().startswith("long.mp4")]
    assert "the clip long.mp4 has 12 frames and takes" in line
    assert "`frames` of the corpus, such as {num_frames: 16}" in line
    answers = predict(
        tmp_path, tiny(FAMILY), folder / "long.mp4", *small, "datasets.mine.frames.num_frames=2"
    )
    assert list(answers) == ["long.mp4"]


def test_a_clip_that_is_too_long_is_named_in_chat(parts, folder, monkeypatch):
    monkeypatch.setattr(parts.engine.model, "context_len", 80)
    conversation = parts.engine.start()
    conversation.add_image(parts.read_media(folder / "still0.png"))
    conversation.add_image(parts.read_media(folder / "long.mp4"), "Image 2")
    with pytest.raises(InputError, match=r"the clip Image 2 has 12 frames and takes \d+ t"):
        conversation.ask(QUESTION, parts.generation)


@pytest.mark.data
@pytest.mark.slow
def test_a_real_clip_of_540_frames_needs_fewer_frames(tiny, parts, real_data, tmp_path):
    file = real_data / "cmr" / "cmr_vl" / "Demo_Figures" / "Motion" / "motion.mp4"
    if not file.is_file():
        pytest.skip(f"no {file.name}")
    conversation = parts.engine.start()
    conversation.add_image(parts.read_media(file), file.name)
    with pytest.raises(InputError, match=r"the clip motion.mp4 has 540 frames and takes 4320 tok"):
        conversation.ask(QUESTION, parts.generation)
    few = build_chat(
        evaluation(tmp_path, tiny(FAMILY), "datasets.mine.frames.max_frames=16"), "cpu"
    )
    medium = few.read_media(file)
    assert medium.data.shape == (16, 3, 98, 112)
    conversation = few.engine.start()
    conversation.add_image(medium)
    first = conversation.ask(QUESTION, few.generation)
    first.text()
    second = conversation.ask("Sure?", few.generation)
    second.text()
    assert second.cached_tokens >= first.prompt_tokens


# --- endpoint -------------------------------------------------------------------------------------


def uri(file: Path, kind: str = "application/octet-stream") -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def part(kind: str, url: str) -> dict[str, Any]:
    return {"type": kind, kind: {"url": url}}


@pytest.fixture
def client(parts):
    def open_client(**limits: Any) -> TestClient:
        service = Service(
            parts.engine, parts.read_media, "tiny", parts.generation, ApiLimits(**limits), "", {}
        )
        return TestClient(make_app(service))

    return open_client


def test_a_request_has_images_and_clips_and_a_follow_up(client, parts, folder):
    content = [
        part("image_url", uri(folder / "still0.png")),
        part("image_url", uri(folder / "still1.png")),
        part("video_url", uri(folder / "long.mp4", "video/mp4")),
        part("video_url", uri(folder / "cine")),
        {"type": "text", "text": QUESTION},
    ]
    messages: list[Any] = [{"role": "user", "content": content}]
    http = client()
    first = http.post("/v1/chat/completions", json={"messages": messages}).json()
    text = first["choices"][0]["message"]["content"]
    files = ("still0.png", "still1.png", "long.mp4", "cine")
    conversation = parts.engine.start()
    for name in files:
        conversation.add_image(parts.read_media(folder / name))
    assert conversation.ask(QUESTION, parts.generation).text() == text
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Sure?"}]
    second = http.post("/v1/chat/completions", json={"messages": messages}).json()
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"] - 2
    follow_up = conversation.ask("Sure?", parts.generation).text()
    assert second["choices"][0]["message"]["content"] == follow_up


@pytest.mark.parametrize(
    ("kind", "file", "limits", "code", "message"),
    [
        ("video_url", "still0.png", {}, "invalid_video", "the video is an image: use image_url"),
        ("image_url", "cine", {}, "invalid_image", "the image is a clip: send it as video_url"),
        ("video_url", "long.mp4", {"max_video_bytes": 99}, "video_too_large", "larger than 0 MiB"),
        ("video_url", "notes.txt", {}, "invalid_video", "the video"),
        ("video_url", "long.mp4", {"max_images": 0}, "too_many_images", "0 images and clips"),
    ],
)
def test_bad_media_get_a_message(client, folder, kind, file, limits, code, message):
    content = [part(kind, uri(folder / file)), {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": content}]}
    reply = client(**limits).post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == code
    assert message in reply.json()["error"]["message"]
    assert "/tmp" not in reply.text


@pytest.mark.parametrize("url", ["https://example.org/a.mp4", "file:///etc/passwd", "/etc/passwd"])
def test_videos_are_not_fetched(client, url):
    body = {"messages": [{"role": "user", "content": [part("video_url", url)]}]}
    reply = client().post("/v1/chat/completions", json=body)
    assert reply.json()["error"]["code"] == "invalid_video_url"
    assert "URLs are not fetched" in reply.json()["error"]["message"]


def test_a_cut_video_is_refused_without_its_path(client, folder, tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes((folder / "long.mp4").read_bytes()[:2000])
    body = {"messages": [{"role": "user", "content": [part("video_url", uri(cut))]}]}
    reply = client().post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith("the video")
    assert "/tmp" not in reply.text


def test_a_model_without_clips_refuses_them(client, parts, folder, monkeypatch):
    monkeypatch.setattr(type(parts.engine.model), "reads_clips", False)
    body = {"messages": [{"role": "user", "content": [part("video_url", uri(folder / "cine"))]}]}
    reply = client().post("/v1/chat/completions", json=body)
    assert "this model reads no clips" in reply.json()["error"]["message"]


# --- demo -----------------------------------------------------------------------------------------


@pytest.fixture
def controller(parts):
    controller = DemoController(parts, "tiny", synthetic=False)
    yield controller
    controller.sessions.close()


def test_the_demo_shows_and_reads_images_and_clips(controller, parts, folder):
    session = controller.sessions.get("one")
    files = [folder / name for name in ("still0.png", "long.mp4", "cine")]
    assert upload(controller, session, *files) == []
    still, video, cine = session.images
    assert (still.player, still.model_frame) == ("", 0)
    assert video.description() == "clip, 80 × 64 pixels, 12 frames"
    assert 'class="xg-cine"' in video.player and "Image 2" in video.player
    assert cine.model_frame is None and cine.pixels().shape == (64, 80)
    assert "Image read by the model" in controller.images.prefill(session)
    generation = parts.generation
    answer = final_text(controller.responder.ask(session, QUESTION, SHORT))
    assert session.model_images == [(0, 0), (1, None), (2, None)]
    expected = parts.engine.start()
    for file in files:
        expected.add_image(parts.read_media(file))
    settings = SHORT.to_generation(generation)
    assert expected.ask(QUESTION, settings).text() == answer
    session.selected = 1
    follow_up = final_text(controller.responder.ask(session, "Sure?", SHORT))
    assert expected.ask("Sure?", settings).text() == follow_up
    pdf = base64.b64decode(controller.export(session, "Moves.", "", "pdf")["content"])
    assert pdf.startswith(b"%PDF")


def test_the_demo_shows_only_the_frames_that_the_model_reads(parts, folder):
    few = replace(parts, clips=ClipPolicy(True, FrameSampling(num_frames=3)))
    controller = DemoController(few, "tiny", synthetic=False)
    try:
        session = controller.sessions.get("one")
        assert upload(controller, session, folder / "long.mp4") == []
        assert session.images[0].description() == "clip, 80 × 64 pixels, 3 of 12 frames"
        assert upload(controller, session, folder / "notes.txt") != []
    finally:
        controller.sessions.close()


def test_texts_are_not_about_x_rays(controller):
    assert controller.images.hint == "Upload images or clips."
    assert "X-ray" not in controller.responder.report_prompt
