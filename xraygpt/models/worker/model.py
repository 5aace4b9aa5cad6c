"""A model in an environment of its own, which answers through lines of JSON."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from xraygpt.boxes.units import check_box
from xraygpt.common.checkpoint import file_sha256
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.project_paths import ProjectPath
from xraygpt.common.registry import registry
from xraygpt.common.requirements import Missing
from xraygpt.datasets.base import Batch
from xraygpt.models.base import BaseModel, Bonus, Generation, Pointed
from xraygpt.models.endpoint.messages import MessageRenderer, read_messages
from xraygpt.models.endpoint.pictures import PictureCollator, read_pictures
from xraygpt.models.remote import RemoteModel
from xraygpt.models.worker.process import WorkerProcess
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import load_prompts

log = logging.getLogger(__name__)

_DOCS = "docs/radvlm_evaluation.md describes workers"
_IGNORED = ("max_new_tokens", "seed")


@registry.register_model("worker")
class Worker(RemoteModel):
    """Asks a program that loads the model with its own packages (``workers/``).

    The worker gets the task, the images, the dialogue and what the question is about; how the model
    is asked is its own matter. It sees the images that evaluation shows, so that controls hold.
    """

    @dataclass(kw_only=True)
    class Config(BaseModel.Config):
        """The program and the limits of its answers."""

        script: ProjectPath | None = None
        """The worker's program, such as `workers/maira2/worker.py`."""
        python: ProjectPath | None = None
        """Python of the worker's environment; null uses `.venv/bin/python` beside the program, or
        else this environment's."""
        options: list[str] = field(default_factory=list)
        """Options of the program, such as `[--trust-remote-code]` or `[--model, FOLDER]`."""
        environment: dict[str, str] = field(default_factory=dict)
        """Environment variables of the program, such as `{CUDA_VISIBLE_DEVICES: "1"}`."""
        prompt_path: ProjectPath | None = None
        """File of questions, one per line, for samples without one; evaluation uses the first."""
        max_side: int = 2048
        """Longest side of the images in pixels; larger images are reduced to it."""
        startup_timeout: float = 3600.0
        """Seconds until the program must have loaded its model."""
        timeout: float = 900.0
        """Seconds until the next answer must have arrived."""
        max_errors: int = 10
        """Questions that the program may fail to answer before the evaluation stops. Each counts as
        an empty answer, with the error on the result page."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.refuse(self.script is None, "script", "name the worker's program")
                no_weights = "the worker loads its weights; remove it"
                check.refuse(self.ckpt is not None, "ckpt", no_weights)
                check.at_least(8, "max_side")
                check.above(0, "startup_timeout", "timeout")
                check.at_least(0, "max_errors")

        def missing(self, where: str) -> list[Missing]:
            """List the program and its Python if they do not exist."""
            found = super().missing(where)
            if self.python is not None and shutil.which(self.python) is None:
                problem = f"{self.python} is no program"
                remedy = "make the worker's environment (workers/README.md)"
                found.append(Missing(f"{where}.python", problem, remedy))
            return found

        def identity(self) -> dict[str, Any]:
            """Return the settings that affect answers, and the hash of the program's code."""
            operational = ("python", "environment", "startup_timeout", "timeout", "max_errors")
            known = {k: v for k, v in super().identity().items() if k not in operational}
            if self.script is not None and self.script.is_file():
                known["script_sha256"] = file_sha256(self.script)
            return known

    config: Config
    context_len = 2**31  # characters; only the worker knows its limit in tokens
    unsupported: Mapping[str, str] = {
        "chat": "it is a program that answers one question after the other",
        "loss": "a worker returns texts and boxes, but no likelihoods of given answers",
    }

    def __init__(self, config: Config, **_: Any) -> None:
        super().__init__(config)
        self.renderer = MessageRenderer(load_prompts(config.prompt_path))
        self.media_collator = PictureCollator(max_frames=1, refuse_burned_in=False)
        self.image_spec = ImageSpec(
            image_size=config.max_side,
            mean=(0.0,),
            std=(1.0,),
            tokens_per_image=1,
            processor="display_image",
        )
        self._log: Path | None = None
        self._process: WorkerProcess | None = None
        self._errors = 0

    def check_generation(self, generation: Generation) -> None:
        """Refuse decoding settings that the worker decides itself.

        Raises:
            InputError: The message names the settings.
        """
        default = Generation()
        changed = [
            name
            for name in vars(default)
            if name not in _IGNORED and getattr(generation, name) != getattr(default, name)
        ]
        if changed:
            raise InputError(
                f"run.task.generate: a worker decodes by its own settings; remove "
                f"{', '.join(changed)}, or use the program's options (model.options)"
            )

    def keep_answers(self, folder: Path) -> None:
        """Write what the worker prints into a result folder."""
        self._log = folder / "worker.log"

    def unsupported_reason(self, task: str) -> str:
        """Return why the worker cannot do a task; it is started to find out."""
        described = self._worker().description
        if task in described.tasks:
            return ""
        return f"{described.model} offers {', '.join(described.tasks)}"

    def generate(
        self, batch: Batch, generation: Generation, bonus: Bonus | None = None
    ) -> list[str]:
        """Answer each row; see `point`."""
        return [pointed.text for pointed in self.point(batch, generation)]

    def point(self, batch: Batch, generation: Generation) -> list[Pointed]:
        """Answer each row, with boxes if the worker returns them.

        Raises:
            InputError: The worker cannot do the task, or stopped.
            DataError: The worker failed to answer more than `max_errors` rows.
        """
        task = batch.get("task", "")
        reason = self.unsupported_reason(task)
        if reason:
            raise InputError(f"the worker cannot do the task {task or '(none)'}: {reason}")
        with tempfile.TemporaryDirectory(prefix="xraygpt-worker-") as folder:
            requests = self._requests(batch, generation, task, Path(folder))
            rows = self._worker().ask(requests)
        return [self._pointed(n, row) for n, row in zip(batch["sample_id"], rows, strict=True)]

    def _pointed(self, name: str, row: Mapping[str, Any]) -> Pointed:
        """Read an answer; an error counts as an empty answer.

        Raises:
            DataError: There were too many errors.
        """
        problem = row.get("error")
        try:
            if problem is None:
                return read_answer(row)
        except (TypeError, ValueError) as error:
            problem = f"its answer cannot be used: {error}"
        self._errors += 1
        message = f"sample {name}: the worker failed: {problem}"
        if self._errors > self.config.max_errors:
            raise DataError(
                f"{message}; it failed {self._errors} times, and model.max_errors allows "
                f"{self.config.max_errors}"
            )
        log.warning("%s", message)
        return Pointed("", [], f"The worker failed: {problem}.")

    def _worker(self) -> WorkerProcess:
        if self._process is not None and not self._process.is_running:
            self.close()
        if self._process is None:
            assert self.config.script is not None
            python = self.config.python or _python_beside(self.config.script)
            if self._log is None:  # a folder that only this user can read
                self._log = Path(tempfile.mkdtemp(prefix="xraygpt-worker-")) / "worker.log"
            command = [str(python), str(self.config.script), *self.config.options]
            self._process = WorkerProcess(
                command, self.config.environment, self._log,
                self.config.startup_timeout, self.config.timeout,
            )  # fmt: skip
        return self._process

    def _requests(
        self, batch: Batch, generation: Generation, task: str, folder: Path
    ) -> list[dict[str, Any]]:
        """Write the images and return the requests."""
        files: list[list[str]] = [[] for _ in batch["sample_id"]]
        for i, (run, pictures) in enumerate(zip(batch["runs"], read_pictures(batch), strict=True)):
            path = folder / f"{i}.png"
            Image.fromarray(pictures[0].pixels).save(path)
            files[run.row].append(str(path))
        metas = batch.get("meta") or [{} for _ in files]
        requests = []
        for number, messages in enumerate(read_messages(batch)):
            turns = [
                {"role": m.role, "text": " ".join(p for p in m.parts if isinstance(p, str))}
                for m in messages
            ]
            requests.append(
                {
                    "task": task, "images": files[number], "turns": turns,
                    "max_new_tokens": generation.max_new_tokens,
                }
            )  # fmt: skip
            if "phrase" in metas[number]:
                requests[-1]["phrase"] = metas[number]["phrase"]
        return requests

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def facts(self) -> dict[str, str]:
        """Return the model's name and revision, once the worker runs."""
        if self._process is None:
            return {"worker": str(self.config.script)}
        described = self._process.description
        return {"model": described.model, "revision": described.revision}


def _python_beside(script: Path) -> str:
    import sys

    own = script.parent / ".venv" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def read_answer(row: Mapping[str, Any]) -> Pointed:
    """Read an answer; boxes are cut at the border of the image, and dropped without an area.

    Raises:
        TypeError: Its text or boxes have another form.
        ValueError: A number is missing or not finite.
    """
    text, boxes = row.get("text"), row.get("boxes")
    if not isinstance(text, str):
        raise TypeError("its text is missing")
    if boxes is None:
        return Pointed(text)
    found, changed = [], 0
    for box in boxes:
        x0, y0, x1, y1 = (min(max(float(value), 0.0), 1.0) for value in box)
        if x0 < x1 and y0 < y1:
            found.append(check_box((x0, y0, x1, y1)))
        changed += [x0, y0, x1, y1] != [float(value) for value in box] or not (x0 < x1 and y0 < y1)
    note = f"{changed} boxes were cut at the border or dropped." if changed else ""
    return Pointed(text, found, note)
