"""Talk about an X-ray in a browser: python demo.py --cfg-path eval_configs/quickstart.yaml.

Serves this machine alone unless --host says otherwise, and then wants --auth. Uploads lie in a
private folder until their page is closed. No report text is logged. Research use only, not for
diagnosis.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from xraygpt.common.errors import InputError

if TYPE_CHECKING:
    from xraygpt.demo.controller import DemoController
    from xraygpt.experiment import Evaluation

log = logging.getLogger(__name__)

_MISSING = "gradio is absent: in the clone, .venv/bin/pip install -c constraints.txt -e '.[demo]'"
MOST_EXAMPLES = 24
REFERENCES, REFERENCE_SECONDS = 64, 30
"""Images that the average map is taken of, and how long that may take."""


def main() -> None:
    """Parse, load, serve until stopped."""
    args = _parser().parse_args()
    from xraygpt.common.cli import device_of

    device = device_of(args)
    users = _users(args)
    # Torch takes seconds: help and typing errors do not wait for it.
    from xraygpt.common.config import load, to_yaml
    from xraygpt.experiment import Evaluation, find_device

    options = [*args.options, *(["model.low_resource=true"] if args.low_resource else [])]
    experiment = load(Evaluation, args.cfg_path, options)
    if args.print_config:
        sys.stdout.write(to_yaml(experiment))
        return
    if args.share:
        log.warning(
            "--share: the page, and every image put into it, goes through servers of others; "
            "no image of a patient may"
        )
    find_device(device)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise InputError(_MISSING) from None
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks itself whether it is there
    signal.signal(signal.SIGTERM, _interrupt)
    check_port(args.host, args.port)
    desk = make_desk(experiment, device, Path(args.cfg_path).stem, args.examples)
    try:
        if args.dry_run:
            sys.stdout.write(f"{desk.name} on {desk.parts.facts['device']}, would serve a page\n")
            return
        blocks, url = serve(desk, args.host, args.port, users, share=args.share)
        log.info("%s on %s: %s (Ctrl-C ends it)", desk.name, desk.parts.facts["device"], url)
        closing = threading.Event()
        comparing = _compare(desk, experiment, closing)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            log.info("closing; the images of open pages are deleted")
        finally:
            closing.set()  # a thread that computes while Python ends aborts it
            blocks.close(verbose=False)
            comparing.join(60)
    finally:
        desk.sessions.close()


def _parser() -> argparse.ArgumentParser:
    from xraygpt.common.cli import add_device, at_least, command_line, existing

    parser = command_line(__doc__)
    add = parser.add_argument
    add_device(parser)
    add("--low-resource", action="store_true", help="pack the LLM's weights in 8 bits")
    add("--host", default="127.0.0.1")
    add("--port", type=at_least(0), default=None, help="default: the first free one from 7860 on")
    add("--examples", type=existing, default=None, help="folder of images to pick from")
    add("--auth", type=Path, default=None, help="file of lines user:password")
    add("--share", action="store_true", help="through servers of others: never for patients' data")
    return parser


def _users(args: argparse.Namespace) -> list[tuple[str, str]] | None:
    """Who may open the page; None lets everybody who reaches it.

    Raises:
        InputError: It would be open to others, or their file cannot be used.
    """
    from xraygpt.common.addresses import is_loopback_host

    users = read_users(args.auth) if args.auth else None
    open_to_others = args.share or not is_loopback_host(args.host)
    if open_to_others and not users and not args.print_config:
        what = "--share" if args.share else f"--host {args.host}"
        raise InputError(f"{what} opens the page to others: name a file of users with --auth")
    return users


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def check_port(host: str, port: int | None) -> None:
    """Before the model is loaded.

    Raises:
        InputError: Somebody else listens there.
    """
    if port is None:
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"--port {port} on {host}: {error.strerror}; name another") from None


def make_desk(
    experiment: Evaluation, device: str, name: str, examples: Path | None
) -> DemoController:
    """The model of a YAML and the examples, ready for a page.

    Raises:
        InputError: The model cannot be built, or there are no examples in that folder.
    """
    from xraygpt.demo.controller import DemoController
    from xraygpt.experiment import build_chat

    own = None if examples is None else own_examples(examples)
    parts = build_chat(experiment, device)
    synthetic = all(
        type(corpus).__qualname__.startswith("SyntheticCxr")
        for corpus in experiment.datasets.values()
    )
    desk = DemoController(parts, name, synthetic and experiment.model.ckpt is not None)
    try:
        folder = desk.sessions.root / "examples"
        desk.examples = phantoms(folder) if own is None else own
    except BaseException:
        desk.sessions.close()
        raise
    return desk


def serve(
    desk: DemoController,
    host: str,
    port: int | None,
    users: list[tuple[str, str]] | None,
    *,
    share: bool = False,
) -> tuple[Any, str]:
    """Open the page; returns at once.

    Returns:
        The running Gradio blocks, whose `close` ends it, and where the page is.

    Raises:
        InputError: The port is taken.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(desk.sessions.uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    from xraygpt.demo.display import LIMITS
    from xraygpt.demo.layout import asset
    from xraygpt.demo.page import WAITING, Page

    blocks = Page(desk).blocks
    blocks.queue(max_size=WAITING, default_concurrency_limit=8, api_open=False)
    system = ["system-ui", "sans-serif"]
    try:
        _, local, public = blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=users,
            max_file_size=LIMITS.max_file_bytes,
            theme=gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"]),
            css=asset("demo.css"),
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            allowed_paths=[],
            inbrowser=False,
        )
    except OSError as error:
        raise InputError(f"the page cannot be opened: {error}; name another --port") from None
    return blocks, public or local


def read_users(file: Path) -> list[tuple[str, str]]:
    """Users and passwords of a file with a line user:password each.

    Raises:
        InputError: It cannot be read, others may read it, or a line is not of that form.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        open_to_others = file.stat().st_mode & 0o077
    except OSError as error:
        raise InputError(f"--auth {file}: {error.strerror}") from None
    if open_to_others:
        raise InputError(f"--auth {file}: others can read it; chmod 600 {file}")
    users = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        user, colon, password = line.partition(":")
        if not (user and colon and password):
            raise InputError(f"--auth {file}, line {number}: not of the form user:password")
        users.append((user, password))
    if not users:
        raise InputError(f"--auth {file}: holds no line user:password")
    return users


def phantoms(folder: Path) -> list[tuple[Path, str]]:
    """Draw SYNTHETIC examples into a folder."""
    from xraygpt.phantom.corpus import save_picture
    from xraygpt.phantom.design import draw
    from xraygpt.phantom.render import Study, render

    folder.mkdir()
    rng = Random("examples")
    wanted: list[tuple[str, dict[str, Any]]] = [
        ("", {}),
        ("pleural_effusion", {"side": "left", "degree": "moderate"}),
        ("pneumothorax", {"side": "right", "degree": "severe"}),
        ("cardiomegaly", {"degree": "severe"}),
        ("consolidation", {"side": "right", "zone": "lower", "degree": "severe"}),
        ("catheter", {"side": "right"}),
    ]
    found = []
    for i, (name, given) in enumerate(wanted):
        findings = (draw(name, rng, **given),) if name else ()
        path = folder / f"phantom-{i}.png"
        save_picture(render(Study(f"example-{i}", findings, 77), size=512).pixels, path)
        said = " ".join([given.get("side", ""), name.replace("_", " ")]).strip() or "normal"
        found.append((path, f"SYNTHETIC: {said}"))
    return found


def own_examples(folder: Path) -> list[tuple[Path, str]]:
    """Images of a folder, at most `MOST_EXAMPLES`, by name.

    Raises:
        InputError: There is no such folder, or no readable image in it.
    """
    from xraygpt.demo.display import open_film

    if not folder.is_dir():
        raise InputError(f"--examples {folder}: there is no such folder")
    found: list[tuple[Path, str]] = []
    for path in sorted(folder.iterdir()):
        if len(found) == MOST_EXAMPLES:
            log.warning("--examples: the first %d images are offered", MOST_EXAMPLES)
            break
        if not path.is_file() or path.name.startswith("."):
            continue
        try:
            open_film(path)
            found.append((path, path.stem))
        except InputError as error:
            log.warning("left out: %s", error)
    if not found:
        raise InputError(f"--examples {folder}: holds no PNG, JPEG or DICOM that can be read")
    return found


def _compare(
    desk: DemoController, experiment: Evaluation, closing: threading.Event
) -> threading.Thread:
    """Learn, beside the page, what the model looks at in any image."""
    from xraygpt.experiment import reference_images
    from xraygpt.media.base import Media
    from xraygpt.models.capabilities import AttentionMaps, supports

    def timely() -> Iterator[Media]:
        spec = desk.parts.engine.model.image_spec
        end = time.monotonic() + REFERENCE_SECONDS
        for image in reference_images(experiment, spec, REFERENCES):
            if closing.is_set() or time.monotonic() > end:
                break
            yield image

    def work() -> None:
        if not supports(desk.parts.engine.model, AttentionMaps):
            return
        try:
            count = desk.attention.compare_with(timely())
            log.info("maps: %d reference images, %d used", count, desk.attention.references)
        except Exception as error:  # the page lives without
            log.warning("maps: no average to compare with (%s)", type(error).__name__)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
