"""Chat about an X-ray in a browser: python demo.py --cfg-path eval_configs/quickstart.yaml.

With a YAML file that analyses studies, such as eval_configs/cardiac_mr.yaml, the page analyses
uploaded studies; --analysis adds this as a second tab to the page of a chat model.

The page can be opened only from this machine, unless --host is set, which requires --auth. Uploads
are stored in a private folder until their page is closed. No report text is logged. Research use
only, not for diagnosis.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xraygpt.common.errors import InputError

if TYPE_CHECKING:
    from xraygpt.demo.controller import DemoController
    from xraygpt.demo.sessions import Sessions
    from xraygpt.demo.study_desk import StudyDesk
    from xraygpt.experiment import Evaluation
    from xraygpt.studies.base import StudyAnalysis

log = logging.getLogger(__name__)

_MISSING = (
    "gradio is not installed: in the clone, .venv/bin/pip install -c constraints.txt -e '.[demo]'"
)
MAX_QUEUED = 32
"""Maximum number of events in the queue; further events are refused."""
NUM_REFERENCES, REFERENCE_SECONDS = 64, 30
"""Number of images for the average attention map, and time limit for computing the average."""


def main() -> None:
    """Parse the arguments, load the model or the analysis, and serve the page until interrupted."""
    args = _parser().parse_args()
    from xraygpt.common.cli import device_from
    from xraygpt.requirements_check import names_analysis

    device = device_from(args)
    users = _users(args)
    if names_analysis(args.cfg_path, args.options):
        _main_studies(args, users)
        return
    # Importing torch takes seconds, so help, argument errors and missing files come first.
    from xraygpt.common.config import to_yaml
    from xraygpt.requirements_check import load_analysis, load_complete

    options = [*args.options, *(["model.low_resource=true"] if args.low_resource else [])]
    experiment = load_complete(
        "Evaluation",
        args.cfg_path,
        options,
        need="model",
        device=device,
        check=not args.print_config,
    )
    if args.print_config:
        sys.stdout.write(to_yaml(experiment))
        return
    studies = None if args.analysis is None else load_analysis(args.analysis, [])
    from xraygpt.experiment import find_device

    find_device(device)
    _prepare(args)
    controller = build_controller(experiment, device, Path(args.cfg_path).stem, args.examples)
    model = f"{controller.name} on {controller.parts.facts['device']}"
    try:
        desk = None if studies is None else build_desk(studies, args.analysis, controller.sessions)
        if args.dry_run:
            sys.stdout.write(f"{model}, ready to serve the page\n")
            return
        blocks, url = serve(controller, args.host, args.port, users, share=args.share, desk=desk)
        log.info("%s: %s (Ctrl-C to stop)", model, url)
        closing = threading.Event()
        baseline = _start_baseline(controller, experiment, closing)
        try:
            _wait()
        finally:
            closing.set()  # a thread that still computes at exit would crash Python
            blocks.close(verbose=False)
            baseline.join(60)
    finally:
        controller.sessions.close()


def _main_studies(args: argparse.Namespace, users: list[tuple[str, str]] | None) -> None:
    """Serve the page for studies alone."""
    from xraygpt.common.cli import refuse_options
    from xraygpt.common.config import to_yaml
    from xraygpt.requirements_check import load_analysis

    refuse_options(args, "an analysis of studies", "examples", "low_resource", "analysis")
    studies = load_analysis(args.cfg_path, args.options, check=not args.print_config)
    if args.print_config:
        sys.stdout.write(to_yaml(studies))
        return
    _prepare(args)
    from xraygpt.demo.sessions import PageSession, Sessions

    sessions = Sessions(PageSession)
    try:
        desk = build_desk(studies, args.cfg_path, sessions)
        if args.dry_run:
            sys.stdout.write(f"{desk.name}, ready to serve the page\n")
            return
        blocks, url = serve_studies(desk, args.host, args.port, users, share=args.share)
        log.info("%s: %s (Ctrl-C to stop)", desk.name, url)
        try:
            _wait()
        finally:
            blocks.close(verbose=False)
    finally:
        sessions.close()


def _prepare(args: argparse.Namespace) -> None:
    """Check what the page needs before anything slow is built.

    Raises:
        InputError: Gradio is not installed, or the port is in use.
    """
    if args.share:
        log.warning(
            "--share: the page and every uploaded image pass through third-party servers; "
            "do not upload images of patients"
        )
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise InputError(_MISSING) from None
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio requests its own page
    signal.signal(signal.SIGTERM, _raise_interrupt)
    check_port(args.host, args.port)


def _wait() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        log.info("closing and deleting the images of open pages")


def _parser() -> argparse.ArgumentParser:
    from xraygpt.common.cli import (
        add_device,
        at_least,
        config_parser,
        existing_path,
        readable_file,
    )

    parser = config_parser(__doc__)
    add = parser.add_argument
    add_device(parser)
    add("--low-resource", action="store_true", help="load the LLM's weights in 8 bits")
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; addresses other than the default, 127.0.0.1, require --auth",
    )
    add(
        "--port",
        type=at_least(1),
        default=None,
        help="port to listen on; by default the first free port from 7860",
    )
    add("--examples", type=existing_path, default=None, help="folder with example images")
    add(
        "--analysis",
        type=readable_file,
        default=None,
        metavar="YAML",
        help="YAML file of an analysis of studies, for a second tab on the page of a chat model",
    )
    add("--auth", type=Path, default=None, help="file with one line user:password per user")
    add(
        "--share",
        action="store_true",
        help="create a public link through third-party servers; never use it for patients' data",
    )
    return parser


def _users(args: argparse.Namespace) -> list[tuple[str, str]] | None:
    """Return users and passwords, or None if no login is required.

    Raises:
        InputError: The page would be open to others without a login, or the file is invalid.
    """
    from xraygpt.common.addresses import is_loopback_host

    users = read_users(args.auth) if args.auth else None
    open_to_others = args.share or not is_loopback_host(args.host)
    if open_to_others and not users and not args.print_config:
        option = "--share" if args.share else f"--host {args.host}"
        raise InputError(f"{option} opens the page to others; give a file of users with --auth")
    return users


def _raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def check_port(host: str, port: int | None) -> None:
    """Check that a port is free, before the model is loaded.

    Raises:
        InputError: The port is in use.
    """
    if port is None:
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"--port {port} on {host}: {error.strerror}; choose another port"
            ) from None


def build_controller(
    experiment: Evaluation, device: str, name: str, examples: Path | None
) -> DemoController:
    """Build the controller from a configuration and the examples.

    Args:
        experiment: Evaluation configuration that describes the model.
        device: Device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        name: Model name, for display.
        examples: Folder with example images; None offers films, or phantoms if the model was
            trained on phantoms.

    Raises:
        InputError: The model cannot be built, or the folder has no images.
    """
    from xraygpt.common.config import to_tree
    from xraygpt.demo.controller import DemoController
    from xraygpt.demo.examples import draw_examples, film_examples, load_examples
    from xraygpt.evaluation.history import load_history
    from xraygpt.experiment import build_chat

    own_examples = None if examples is None else load_examples(examples)
    parts = build_chat(experiment, device)
    synthetic = load_history(to_tree(experiment.model)).trained_on_synthetic_only
    controller = DemoController(parts, name, synthetic)
    try:
        if own_examples is None and parts.clips.as_clips:
            own_examples = []  # it may read anything, and not chest X-rays in particular
        elif own_examples is None and not synthetic:
            own_examples = film_examples() or None
        if own_examples is None:
            own_examples = draw_examples(controller.sessions.root / "examples")
        controller.images.examples = own_examples
    except BaseException:
        controller.sessions.close()
        raise
    return controller


def build_desk(studies: StudyAnalysis, path: Path, sessions: Sessions[Any]) -> StudyDesk:
    """Build the analysis of studies.

    Args:
        studies: Its configuration.
        path: The YAML file, whose name is displayed.
        sessions: Sessions of all open pages.
    """
    from xraygpt.demo.study_desk import StudyDesk

    return StudyDesk(studies.run.build(), Path(path).stem, sessions)


def serve(
    controller: DemoController,
    host: str,
    port: int | None,
    users: list[tuple[str, str]] | None,
    *,
    share: bool = False,
    desk: StudyDesk | None = None,
) -> tuple[Any, str]:
    """Start serving the page of a chat model in the background.

    Args:
        controller: The model and its sessions.
        host: Address to listen on.
        port: Port to listen on; None uses the first free port from 7860.
        users: Users and passwords; None disables the login.
        share: Whether to create a public link.
        desk: An analysis for a second tab; None shows no tabs.

    Returns:
        The running Gradio blocks, to be closed with `close`, and the page's URL.

    Raises:
        InputError: The page cannot be opened, for example because the port is in use.
    """

    def build() -> Any:
        from xraygpt.demo.page import Page

        return Page(controller, desk).blocks

    from xraygpt.demo.display import LIMITS

    limit = max(LIMITS.max_file_bytes, 0 if desk is None else desk.limits.max_upload)
    address = _Address(host, port, users, share)
    return _serve(build, controller.sessions.uploads, limit, address)


def serve_studies(
    desk: StudyDesk,
    host: str,
    port: int | None,
    users: list[tuple[str, str]] | None,
    *,
    share: bool = False,
) -> tuple[Any, str]:
    """Start serving a page for studies alone in the background; see `serve`."""

    def build() -> Any:
        from xraygpt.demo.study_page import StudyPage

        return StudyPage(desk).blocks

    address = _Address(host, port, users, share)
    return _serve(build, desk.sessions.uploads, desk.limits.max_upload, address)


class _Address(NamedTuple):
    host: str
    port: int | None
    users: list[tuple[str, str]] | None
    share: bool


def _serve(
    build: Callable[[], Any], uploads: Path, max_upload: int, address: _Address
) -> tuple[Any, str]:
    """Build a page whose uploads go to a folder, and serve it."""
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    from xraygpt.demo.layout import asset

    blocks = build()
    blocks.queue(max_size=MAX_QUEUED, default_concurrency_limit=8, api_open=False)
    system = ["system-ui", "sans-serif"]
    try:
        _, local, public = blocks.launch(
            server_name=address.host,
            server_port=address.port,
            share=address.share,
            auth=address.users,
            max_file_size=max_upload,
            theme=gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"]),
            css=asset("demo.css") + asset("cine_player.css"),
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
        raise InputError(f"the page cannot be opened: {error}; choose another --port") from None
    return blocks, public or local


def read_users(file: Path) -> list[tuple[str, str]]:
    """Read a file with one line user:password per user.

    Raises:
        InputError: The file cannot be read, is readable by others or has an invalid line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        open_to_others = file.stat().st_mode & 0o077
    except OSError as error:
        raise InputError(f"--auth {file}: {error.strerror}") from None
    if open_to_others:
        raise InputError(f"--auth {file}: other users can read the file; run chmod 600 {file}")
    users = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        user, colon, password = line.partition(":")
        if not (user and colon and password):
            raise InputError(f"--auth {file}, line {number}: expected user:password")
        users.append((user, password))
    if not users:
        raise InputError(f"--auth {file} contains no line of the form user:password")
    return users


def _start_baseline(
    controller: DemoController, experiment: Evaluation, closing: threading.Event
) -> threading.Thread:
    """Compute the average attention map of reference images in the background."""
    from xraygpt.experiment import reference_images
    from xraygpt.media.base import Media
    from xraygpt.models.capabilities import AttentionMaps, supports

    def images_in_time() -> Iterator[Media]:
        spec = controller.parts.engine.model.image_spec
        end = time.monotonic() + REFERENCE_SECONDS
        for image in reference_images(experiment, spec, NUM_REFERENCES):
            if closing.is_set() or time.monotonic() > end:
                break
            yield image

    def compute() -> None:
        if not supports(controller.parts.engine.model, AttentionMaps):
            return
        # Only the average is computed from the corpus; the address stays the last line.
        logging.getLogger("xraygpt.datasets").setLevel(logging.ERROR)
        try:
            count = controller.attention.set_baseline(images_in_time())
            used = controller.attention.num_references
            log.debug("attention maps: %d reference images, %d used", count, used)
        except Exception as error:  # the page works without the average
            log.warning(
                "attention maps: cannot compute the average to subtract (%s)", type(error).__name__
            )

    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    return thread
