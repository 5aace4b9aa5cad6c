"""An OpenAI-compatible endpoint on a model of yours: python -m xraygpt.serve --cfg-path my.yaml.

/v1/chat/completions (images as data URIs, streaming), /v1/models, /health. Binds this machine alone
unless --host says otherwise, and then wants a key in XRAYGPT_SERVE_KEY. No report text is logged.
Research use only, not for diagnosis.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from xraygpt.common.errors import InputError

log = logging.getLogger(__name__)
_MISSING = (
    "fastapi and uvicorn are absent: in the clone, "
    ".venv/bin/pip install -c constraints.txt -e '.[serve]'"
)


def main() -> None:
    """Parse, load, serve."""
    from xraygpt.common.addresses import is_loopback_host
    from xraygpt.common.cli import add_device, at_least, command_line, device_of

    parser = command_line(__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=at_least(0), default=8001)
    parser.add_argument("--name", default="", help="of the model, for clients; default: the YAML's")
    add_device(parser)
    args = parser.parse_args()
    device = device_of(args)
    key = os.environ.get("XRAYGPT_SERVE_KEY", "")
    if not (is_loopback_host(args.host) or key or args.print_config):
        raise InputError(
            f"--host {args.host} is open to others: set a key in XRAYGPT_SERVE_KEY, and put TLS in "
            "front of it"
        )
    # Torch takes seconds: help and typing errors do not wait for it.
    from xraygpt.common.config import load, to_yaml
    from xraygpt.experiment import Evaluation, build_chat, find_device

    experiment = load(Evaluation, args.cfg_path, args.options)
    if args.print_config:
        sys.stdout.write(to_yaml(experiment))
        return
    try:
        import uvicorn

        from xraygpt.conversation.api import NOTICE, ApiLimits, Service, make_app
    except ImportError:
        raise InputError(_MISSING) from None
    find_device(device)
    parts = build_chat(experiment, device)
    name = args.name or Path(args.cfg_path).stem
    service = Service(
        parts.engine, parts.read_media, name, parts.how, ApiLimits(), key, parts.facts, parts.plan
    )
    app = make_app(service)
    if args.dry_run:
        place = f"{args.host}:{args.port}"
        sys.stdout.write(f"{name} on {parts.facts['device']}, would serve {place}\n")
        return
    log.info("%s on %s: http://%s:%d/v1", name, parts.facts["device"], args.host, args.port)
    log.info("%s", NOTICE)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    from xraygpt.common.cli import guarded

    sys.exit(guarded(main))
