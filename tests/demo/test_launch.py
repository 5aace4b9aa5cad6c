"""The command line: login is required to open the page to others; errors are one sentence."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.demo.trained_model import square
from xraygpt.common.errors import InputError
from xraygpt.demo import launch
from xraygpt.demo.examples import load_examples
from xraygpt.requirements_check import load_analysis

QUICKSTART = str(REPO / "eval_configs" / "xraygpt_mini.yaml")  # its model is in the repository


def start(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", "--cfg-path", QUICKSTART, *options])
    launch.main()


@pytest.mark.parametrize(("options", "message"), [
    (["--host", "0.0.0.0"], "--host 0.0.0.0 opens the page to others; give a file of users"),
    (["--share"], "--share opens the page to others; give a file of users with --auth"),
    (["--device", "tpu"], "--device tpu: must be auto, cpu, cuda or cuda:N"),
    (["--device", "cuda:99"], "cuda:99, but this machine"),
    (["--gpu_id", "0", "--device", "cpu"], "name different devices; pass only one"),
    (["--auth", "/nowhere"], "--auth /nowhere: No such file"),
    (["--options", "model.nonsense=1"], "model.nonsense"),
])  # fmt: skip
def test_invalid_options_are_refused_before_anything_is_loaded(monkeypatch, options, message):
    with pytest.raises(InputError) as caught:
        start(monkeypatch, *options)
    assert message in str(caught.value)


def test_a_port_in_use_is_refused_before_the_model_is_loaded(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port} on 127\.0\.0\.1: .*in use; choose"):
            start(monkeypatch, "--port", str(port))


def test_an_analysis_has_a_page_of_its_own_or_a_tab(monkeypatch, capsys, controller, tmp_path):
    studies = tmp_path / "studies.yaml"
    studies.write_text(
        "run: {analysis: cardiac_mr, segmenter: {name: masks}}\nimports: [xraygpt.cardiac.analysis]"
    )
    path = ["demo.py", "--cfg-path", str(studies)]
    monkeypatch.setattr(sys, "argv", [*path, "--dry-run"])
    launch.main()
    assert capsys.readouterr().out == "studies, ready to serve the page\n"
    monkeypatch.setattr(sys, "argv", [*path, "--low-resource"])
    with pytest.raises(InputError, match="--low-resource does not apply to an analysis"):
        launch.main()
    pytest.importorskip("gradio")
    from xraygpt.demo.page import Page

    desk = launch.build_desk(load_analysis(studies, []), studies, controller.sessions)
    labels = [
        [part.label for part in Page(controller, added).blocks.blocks.values()
         if part.get_block_name() == "tabitem"]
        for added in (None, desk)
    ]  # fmt: skip
    assert labels == [[], ["X-rays", "Studies"]]


@pytest.mark.parametrize(("text", "mode", "message"), [
    ("anna:secret:with colon\n\nben:x\n", 0o600, None),
    ("anna:secret\n", 0o644, "other users can read the file; run chmod 600"),
    ("anna\n", 0o600, "line 1: expected user:password"),
    ("ok:ok\n:secret\n", 0o600, "line 2: expected user:password"),
    ("\n", 0o600, "contains no line of the form user:password"),
])  # fmt: skip
def test_users(tmp_path, text, mode, message):
    file = tmp_path / "users"
    file.write_text(text)
    file.chmod(mode)
    if message is None:
        assert launch.read_users(file) == [("anna", "secret:with colon"), ("ben", "x")]
        return
    with pytest.raises(InputError, match=message):
        launch.read_users(file)


def test_load_examples(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with pytest.raises(InputError, match="no such folder"):
        load_examples(tmp_path / "x")
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(InputError, match="contains no readable PNG, JPEG or DICOM"):
        load_examples(tmp_path)
    square(tmp_path, "left")
    assert load_examples(tmp_path) == [(tmp_path / "left-5.png", "left-5")]
    assert "skipping an example" in caplog.text and os.sep in caplog.text
