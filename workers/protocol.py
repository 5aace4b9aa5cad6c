"""The protocol of baseline workers: one JSON object per line in, one per line out.

A worker is a program in its own environment, so that the pinned packages of one model do not have
to fit those of another. This file needs only Python 3.10 and its standard library; workers copy
nothing of xraygpt.

The first line that a worker writes describes it::

    {"protocol": 1, "model": "org/name", "revision": "…", "tasks": ["report_generation", …]}

Each request has an id, the task, the absolute paths of its 8-bit PNG images, the dialogue so far
with the question last, and what the question is about::

    {"id": "17", "task": "phrase_grounding", "images": ["/path/to/0.png"],
     "turns": [{"role": "user", "text": "…"}], "phrase": "left basilar opacity",
     "max_new_tokens": 256}

Each answer has the same id, and either a text or an error. Boxes are optional: x_min, y_min, x_max,
y_max as fractions of the image that was sent. With them, the text is not searched for boxes::

    {"id": "17", "text": "…", "boxes": [[0.1, 0.2, 0.4, 0.5]]}
    {"id": "18", "error": "the image is too small"}

Answers may come in any order. Everything else a worker or its libraries print goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

VERSION = 1
Request = dict[str, Any]
Answer = dict[str, Any]


def serve(
    describe: dict[str, Any],
    answer: Callable[[list[Request]], Sequence[Answer]],
    batch_size: int = 1,
) -> None:
    """Answer the requests on stdin until it ends.

    Args:
        describe: ``model``, ``revision`` and ``tasks``; see above.
        answer: Returns one answer, without its id, for each of up to `batch_size` requests. If it
            raises, each request of the batch is tried alone, and the error becomes its answer.
        batch_size: Largest number of requests answered at once.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # also what libraries in C print
    with contextlib.redirect_stdout(sys.stderr):
        _write(out, {"protocol": VERSION, **describe})
        for batch in _batches(batch_size):
            for request, found in zip(batch, _answer(batch, answer), strict=True):
                _write(out, {"id": request.get("id"), **found})


def run(
    build: Callable[[argparse.Namespace], Any], args: argparse.Namespace, tasks: Sequence[str]
) -> None:
    """Load a model and answer requests with it, one at a time.

    Args:
        build: Returns the model, whose ``answer(request)`` returns an answer.
        args: Settings with ``model`` and ``revision``.
        tasks: Tasks that the model can do.
    """
    with contextlib.redirect_stdout(sys.stderr):
        model = build(args)
    describe = {"model": args.model, "revision": args.revision, "tasks": list(tasks)}
    serve(describe, lambda batch: [model.answer(request) for request in batch])


def last_question(request: Request) -> str:
    """Return the text of the last user turn."""
    return str(request["turns"][-1]["text"])


def _batches(size: int) -> Iterator[list[Request]]:
    """Yield requests in batches; an empty line ends a batch early."""
    batch: list[Request] = []
    for line in sys.stdin:
        if line.strip():
            batch.append(json.loads(line))
        if batch and (len(batch) == size or not line.strip()):
            yield batch
            batch = []
    if batch:
        yield batch


def _answer(
    batch: list[Request], answer: Callable[[list[Request]], Sequence[Answer]]
) -> Sequence[Answer]:
    try:
        return answer(batch)
    except Exception as error:  # the worker goes on with the next request
        if len(batch) > 1:
            return [_answer([request], answer)[0] for request in batch]
        traceback.print_exc(file=sys.stderr)
        return [{"error": f"{type(error).__name__}: {error}"}]


def _write(out: Any, row: dict[str, Any]) -> None:
    out.write(json.dumps(row) + "\n")
    out.flush()
