"""Serve a model as an OpenAI-compatible endpoint: python -m xraygpt.serve --cfg-path my.yaml.

Offers /v1/chat/completions (with images and clips as data URIs, and streaming), /v1/models and
/health. Listens only on this machine unless --host is given, which requires a key in
XRAYGPT_SERVE_KEY. No report text is logged.
Research use only, not for diagnosis.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from xraygpt.common.errors import InputError

log = logging.getLogger(__name__)
_MISSING = (
    "fastapi and uvicorn are not installed; in the clone, run "
    ".venv/bin/pip install -c constraints.txt -e '.[serve]'"
)


def main() -> None:
    """Parse the command line, load the model and serve it."""
    from xraygpt.common.addresses import is_loopback_host
    from xraygpt.common.cli import device_from

    args = _parser().parse_args()
    device = device_from(args)
    key = os.environ.get("XRAYGPT_SERVE_KEY", "")
    if not (is_loopback_host(args.host) or key or args.print_config):
        raise InputError(
            f"--host {args.host} accepts connections from other machines; set "
            "XRAYGPT_SERVE_KEY and put a TLS proxy in front of the server"
        )
    # Torch takes seconds to import; help, argument errors and missing files do not wait for it.
    from xraygpt.common.config import to_yaml
    from xraygpt.requirements_check import load_complete

    experiment = load_complete(
        "Evaluation",
        args.cfg_path,
        args.options,
        need="model",
        device=device,
        check=not args.print_config,
    )
    if args.print_config:
        sys.stdout.write(to_yaml(experiment))
        return
    from xraygpt.experiment import build_chat, find_device

    try:
        import uvicorn

        from xraygpt.conversation.api import NOTICE, make_app
        from xraygpt.conversation.api_schema import ApiLimits
        from xraygpt.conversation.api_service import Service
    except ImportError:
        raise InputError(_MISSING) from None
    find_device(device)
    parts = build_chat(experiment, device)
    name = args.name or Path(args.cfg_path).stem
    service = Service(
        parts.engine,
        parts.read_media,
        name,
        parts.generation,
        ApiLimits(),
        key,
        parts.facts,
        args.strict,
    )
    app = make_app(service)
    if args.dry_run:
        address = f"{args.host}:{args.port}"
        sys.stdout.write(
            f"{name} is loaded on {parts.facts['device']} and would be served on {address}\n"
        )
        return
    log.info("%s", NOTICE)
    log.info("%s on %s: http://%s:%d/v1", name, parts.facts["device"], args.host, args.port)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", access_log=False)


def _parser() -> argparse.ArgumentParser:
    from xraygpt.common.cli import add_device, add_strict, at_least, config_parser

    parser = config_parser(__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=at_least(0), default=8001)
    parser.add_argument(
        "--name", default="", help="model name for clients; default: the name of the YAML file"
    )
    add_device(parser)
    add_strict(parser)
    return parser


if __name__ == "__main__":
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
