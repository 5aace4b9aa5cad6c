"""Evaluation: predictions are streamed to disk first, then scored, always beside the controls.

Conditions: the true image; the image of another study with another answer (mean of several seeds);
a black image; on request, the mirrored one. Beside them the most common training answer, and the
answer of the training image whose frozen features are most like. A model whose true-image column is
no better than these does not read the image, however good its ROUGE.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from xraygpt.common import distributed
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.logging import progress
from xraygpt.common.registry import Plugin
from xraygpt.datasets import controls
from xraygpt.datasets.base import Sample, StudyDataset, reference_of
from xraygpt.datasets.collate import Collator
from xraygpt.evaluation import prediction_file, result_page, scoring
from xraygpt.evaluation.history import History
from xraygpt.evaluation.scoring import BLANK, COMMON, MIRRORED, NEAREST, SHUFFLED, TRUE
from xraygpt.features import cache as feature_cache
from xraygpt.features.cache import FeatureStore
from xraygpt.metrics.statistics import ratio_score
from xraygpt.models.base import BaseModel
from xraygpt.models.capabilities import FrozenFeatures, require, supports
from xraygpt.runners import logs
from xraygpt.tasks.base import BaseTask, Prediction
from xraygpt.tasks.payload import Payload, answers_of, in_words, keep_mask

log = logging.getLogger(__name__)


class Evaluator(Plugin):
    """Measures one model on one split of one corpus."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """The `run` section of an evaluation YAML."""

        task: BaseTask.Config
        """What to ask and how to score it."""
        output_dir: Path = Path("output/evaluate")
        """Results go to a folder in it that is named after model, data and settings, so that the
        same command goes on where it was stopped."""
        split: Literal["train", "val", "test"] = "val"
        """Split to measure on."""
        max_samples: int | None = None
        """Only the first so many samples; None takes all."""
        batch_size_eval: int = 16
        """Rows decoded at once."""
        device: Literal["auto", "cpu", "cuda"] = "auto"
        """`auto`, `cpu` or `cuda`."""
        shuffles: int = 5
        """Seeds of the shuffled-image control."""
        controls: (
            list[Literal["shuffled", "blank", "mirrored", "most_common", "nearest"]] | None
        ) = None
        """Controls to run beside the true image; leaving one out is said in the results. `mirrored`
        exchanges left and right. null runs those that the task runs by default."""
        feature_cache: bool = True
        """Keep the frozen encoder's features on disk."""
        feature_store: FeatureStore = field(default_factory=FeatureStore)
        """How they are kept, as in training: only what was stored alike is found again."""
        seed: int = 0
        """Of draws and shuffles."""
        page_cases: int = 200
        """Cases shown on the result page: a tenth the best, a tenth the worst, the others drawn at
        random; 0 shows the scores alone."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.at_least(1, "max_samples", "batch_size_eval", "shuffles")

    def __init__(
        self,
        config: Config,
        *,
        task: BaseTask,
        model: BaseModel,
        data: StudyDataset,
        train: StudyDataset,
        identity: dict[str, Any],
        resolved: str = "",
        history: History | None = None,
    ) -> None:
        self.config, self.task, self.resolved = config, task, resolved
        self.history = history or History()
        self.accelerator = distributed.make_accelerator(config.device)
        self.model = model.to(self.accelerator.device).eval()
        if self.accelerator.num_processes > 1:
            raise InputError(
                "evaluate.py runs in one process; without torchrun, "
                "several commands share its answers (--shard 1/8 and so on)"
            )
        data.records = data.records[: config.max_samples]
        if not len(data):
            raise InputError(f"no sample in the split '{config.split}' of this corpus")
        self.data, self.train = data, train
        self.controls = self._chosen_controls()
        key = None
        if config.feature_cache and supports(model, FrozenFeatures):
            key = require(model, FrozenFeatures).feature_key()
        if key is not None:
            feature_cache.use_cache(data, model, key, self.accelerator, config.feature_store)
        self._feature_key = key
        if data.on_error == "skip":  # once, for all conditions: pairs must stay pairs
            data.records = [r for i, r in enumerate(data.records) if data[i] is not None]
        self.studies = [r.study_id for r in data.records]
        # One question for every sample: what is compared is the image, not the wording.
        model.renderer.prompts = model.renderer.prompts[:1]
        self.collate = Collator(
            model.renderer, model.media_collator, max_len=model.context_len, extra=task.extra
        )
        self.signature = prediction_file.signature_of(identity)
        self.identity = identity
        self.folder = config.output_dir / f"{config.split}-{self.signature}"
        self._answers: dict[tuple[Any, ...], tuple[str, Payload]] = {}
        self._asked: dict[tuple[Any, ...], str] = {}  # in place of the question, see BaseTask
        self._left_out: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        """Predict, then score; returns what scores.json holds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        conditions = self._conditions()
        losses = {name: self._losses(name, data) for name, data in conditions.items()}
        predictions: dict[str, list[Prediction]] = {}
        if self.task.generates:
            self.task.fit(self._training_answers)
            scoring.write_fitted(self.folder, self.task)
            predictions = {name: self._predict(name, d) for name, d in conditions.items()}
            predictions |= self._from_training(predictions[TRUE])
        scores, left_out = scoring.score_rows(self.task, predictions)
        result = {
            "signature": self.signature,
            "identity": self.identity,
            "versions": logs.versions(),
            "split": self.config.split,
            "n": len(self.data),
            "losses": self._loss_rows(losses),
            "scores": scores,
            "left_out": {**self._left_out, **left_out},
        }
        scoring.write_scores(self.folder, result)
        self._write_page(result, predictions)
        return result

    def answer_share(self, number: int, of: int) -> int:
        """Answer every `of`-th image and question, from the `number`-th on, for a later `run`.

        Args:
            number: In [1, `of`].
            of: Commands that share the answers.

        Returns:
            Answers of this share.

        Raises:
            InputError: The task writes no answers.
        """
        if not self.task.generates:
            raise InputError("this task writes no answers that could be shared out: leave --shard")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.task.fit(self._training_answers)
        conditions = self._conditions()
        first: dict[tuple[Any, ...], tuple[str, int]] = {}  # where each is asked for first
        for name, data in conditions.items():
            for i, record in enumerate(data.records):
                asked = {"turns": data.turns_of(i), "rng_key": data.rng_key_of(record)}
                first.setdefault(self._key(data, i, self._question(asked)), (name, i))
        mine = list(first.values())[number - 1 :: of]
        for name, data in conditions.items():
            places = [i for condition, i in mine if condition == name]
            self._predict(name, data, places, (number, of))
        return len(mine)

    def _training_answers(self) -> list[str]:
        return [reference_of(self.train.turns_of(i)) for i in range(len(self.train))]

    def _write_page(self, result: dict[str, Any], predictions: dict[str, list[Prediction]]) -> None:
        """Everything a reader wants to see in one file."""
        said = predictions.get(TRUE, [])
        by_id = {k: {p.sample_id: p for p in v} for k, v in predictions.items()}
        images = {r.sample_id: r.media for r in self.data.records}
        verdicts = [self.task.compare(one) for one in said]
        places = result_page.picked(
            [len(v.agreed) for v in verdicts],
            [len(v.missed) + len(v.added) for v in verdicts],
            self.config.page_cases,
            self.config.seed,
        )
        cases = []
        for place, why in places.items():
            one = said[place]
            others = {
                name.split("-")[0]: in_words(by_id[name][one.sample_id])
                for name in (f"{SHUFFLED}-0", BLANK, MIRRORED)
                if one.sample_id in by_id.get(name, {})
            }
            cases.append(
                result_page.Case(
                    sample_id=one.sample_id,
                    images=images[one.sample_id],
                    prompt=one.meta.get("asked", one.prompt),
                    **vars(self.task.cell(one)),
                    others=others,
                    source=str(one.meta.get("source", "")),
                    picked=why,
                    **vars(verdicts[place]),
                )
            )
        whole = len(cases) == len(said)
        number = f"all {len(said)}" if whole else f"{len(cases)} of {len(said)}"
        how = "" if whole else ", the best and the worst among them, the others drawn at random"
        result_page.write_page(
            self.folder / "report.html",
            title="xraygpt: evaluation",
            subtitle=f"Split {self.config.split}, {result['n']} samples, run {self.signature}.",
            cases=cases,
            shown=f"{number} cases{how}.",
            scores=result["scores"],
            losses=result["losses"],
            history=self.history,
            facts=logs.facts(self.accelerator.device) | {"seed": self.config.seed},
            configuration=self.resolved,
        )

    def _chosen_controls(self) -> list[str]:
        """Those of the YAML, else the task's.

        Raises:
            InputError: One of them makes no sense for the task.
        """
        chosen = self.config.controls
        if chosen is None:
            return list(self.task.default_controls)
        wrong = [name for name in chosen if name not in self.task.controls]
        if wrong:
            have = ", ".join(self.task.controls)
            raise InputError(
                f"run.controls: {wrong[0]} makes no sense for this task; it has {have}"
            )
        return list(chosen)

    def _conditions(self) -> dict[str, StudyDataset]:
        found = {TRUE: self.data}
        if SHUFFLED in self.controls:
            shuffle = controls.shuffled_whole if self.task.whole_studies else controls.shuffled
            for k in range(self.config.shuffles):
                found[f"{SHUFFLED}-{k}"] = shuffle(self.data, self.config.seed + k)
        if BLANK in self.controls:
            found[BLANK] = controls.blanked(self.data)
        if MIRRORED in self.controls:
            try:
                found[MIRRORED] = self._mirrored()
            except DataError as error:
                self._left_out[f"control {MIRRORED}"] = str(error)
        return found

    def _mirrored(self) -> StudyDataset:
        """The same samples with left and right exchanged; their features are stored as well."""
        data, key = controls.mirrored(self.data), self._feature_key
        if key is not None and isinstance(data.read_media, feature_cache.CachedReader):
            data.read_media = data.read_media.read_media
            how = self.config.feature_store
            feature_cache.use_cache(data, self.model, key, self.accelerator, how)
        return data

    # --- losses --------------------------------------------------------------------------------

    @torch.no_grad()
    def _losses(self, name: str, data: StudyDataset) -> np.ndarray:
        """(n, 3) per sample: loss in nats, target tokens, characters of the reference."""
        rows: list[list[float]] = []
        for samples in progress(list(self._chunks(len(data))), f"loss, {name}", unit="batch"):
            kept = [s for s in (data[i] for i in samples) if s is not None]
            batch = self._on_device(self.collate(kept))
            output = self.task.loss(self.model, batch)
            for i, sample in enumerate(kept):
                chars = len(reference_of(sample["turns"]))
                rows.append([float(output.row_loss[i]), float(output.num_targets[i]), chars])
        return np.array(rows)

    def _loss_rows(self, losses: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        """Loss per character and condition, and the paired differences from the true image."""
        true = losses[TRUE]
        groups = {TRUE: [true]}
        groups[SHUFFLED] = [v for k, v in losses.items() if k.startswith(SHUFFLED)]
        for name in (BLANK, MIRRORED):
            groups[name] = [losses[name]] if name in losses else []
        rows = []
        for name, several in groups.items():
            if not several:
                continue
            mean = np.mean([v[:, 0] for v in several], axis=0)
            rows.append(self._per_character(f"loss_{name}", mean, true[:, 2]))
            if name != TRUE:
                paired = mean - true[:, 0]
                rows.append(self._per_character(f"loss_{name}_minus_true", paired, true[:, 2]))
        return rows

    def _per_character(self, name: str, loss: np.ndarray, chars: np.ndarray) -> dict[str, Any]:
        """Nats per character of the reference, over all samples; the interval resamples studies."""
        counts = np.stack([loss, chars], axis=1)
        score = ratio_score(
            name,
            counts,
            lambda c: float(c[0] / max(c[1], 1)),
            "nats per reference character",
            self.studies,
        )
        return score.as_row()

    # --- predictions ---------------------------------------------------------------------------

    def _predict(
        self,
        name: str,
        data: StudyDataset,
        mine: Sequence[int] | None = None,
        share: tuple[int, int] | None = None,
    ) -> list[Prediction]:
        """All predictions of a condition, streamed to disk; those already there are taken.

        Args:
            name: Of the condition.
            data: Its samples.
            mine: Those to answer; None takes all, and what shares have answered.
            share: Whose file it is; None for that of all.
        """
        path = prediction_file.path_of(self.folder, f"predictions_{name}", share)
        done = prediction_file.stored(path, self.identity)
        if share is None:
            done = prediction_file.of_shares(path) | done
        wanted = range(len(data)) if mine is None else mine
        todo = [i for i in wanted if data.records[i].sample_id not in done]
        for i, record in enumerate(data.records):  # answers drawn before are not drawn anew
            if record.sample_id in done:
                before = done[record.sample_id]
                key = self._key(data, i, before.prompt)
                self._answers.setdefault(key, (before.prediction, before.payload))
                if "asked" in before.meta:
                    self._asked.setdefault(key, before.meta["asked"])
        with path.open("a", encoding="utf-8") as file:
            for indices in progress(
                list(self._chunks(len(todo))), f"answers, {name}", unit="batch"
            ):
                for prediction in self._answer(data, [todo[i] for i in indices]):
                    done[prediction.sample_id] = prediction
                    file.write(json.dumps(prediction.as_row()) + "\n")
                file.flush()
        result = [done[r.sample_id] for r in data.records if r.sample_id in done]
        prediction_file.write(path, self.identity, result)  # in order
        return result

    def _answer(self, data: StudyDataset, indices: Sequence[int]) -> Iterator[Prediction]:
        """Answer what was not asked before: the same image and question have the same answer."""
        samples = [(i, s) for i, s in ((i, data[i]) for i in indices) if s is not None]
        keys = {i: self._key(data, i, self._question(s)) for i, s in samples}
        new: dict[tuple[Any, ...], Sample] = {}
        for i, sample in samples:
            if keys[i] not in self._answers:
                new.setdefault(keys[i], sample)
        if new:
            batch = self._on_device(self.collate.prompts(list(new.values())))
            said = answers_of(self.task.predict(self.model, batch))
            for (key, sample), one in zip(new.items(), said, strict=True):
                kept = keep_mask(one, self.folder, sample["sample_id"], repr(key))
                self._answers[key] = one.text, kept
            self._asked.update(zip(new, self.task.asked, strict=False))
        for i, sample in samples:
            yield Prediction(
                sample_id=sample["sample_id"],
                study_id=sample["study_id"],
                prompt=self._question(sample),
                prediction=self._answers[keys[i]][0],
                payload=self._answers[keys[i]][1],
                folder=self.folder,
                reference=reference_of(sample["turns"]),
                seed=self.config.seed,
                meta={k: v for k, v in sample["meta"].items() if k != "sections"}
                | ({"asked": self._asked[keys[i]]} if keys[i] in self._asked else {}),
            )

    def _key(self, data: StudyDataset, index: int, question: str) -> tuple[Any, ...]:
        images: tuple[Any, ...] = data.records[index].media
        if controls.is_blank(data):
            images = controls.black_key(data, images)
        return (*images, question)

    def _question(self, sample: Any) -> str:
        return "\n".join(t["text"] for t in self.collate.question(sample))

    def _from_training(self, said: Sequence[Prediction]) -> dict[str, list[Prediction]]:
        """Controls whose answers stand in the training split, written beside the others."""
        found: dict[str, list[Prediction]] = {}
        if COMMON in self.controls:
            text = controls.most_common_answer(self.train)
            found[COMMON] = [replace(p, prediction=text, payload={}) for p in said]
        if NEAREST in self.controls:
            try:
                chosen = self._nearest()
                found[NEAREST] = [
                    replace(p, prediction=chosen[p.sample_id], payload={}) for p in said
                ]
            except InputError as error:
                self._left_out[f"control {NEAREST}"] = str(error)
        for name, predictions in found.items():
            prediction_file.write(
                self.folder / f"predictions_{name}.jsonl", self.identity, predictions
            )
        return found

    def _nearest(self) -> dict[str, str]:
        """By sample the answer to the training image with the most similar frozen features.

        Raises:
            InputError: There are no frozen features.
        """
        if self._feature_key is None:
            raise InputError("the encoder is trained, its features are not stored, or it has none")
        if len(self.train):
            key, how = self._feature_key, self.config.feature_store
            feature_cache.use_cache(self.train, self.model, key, self.accelerator, how)
        readers = (self.data.read_media, self.train.read_media)
        if not all(isinstance(r, feature_cache.CachedReader) for r in readers):
            raise InputError("no training split, or images whose features are not stored (clips)")
        chosen = controls.nearest_answers(self.data, self.train)
        if len(chosen) < len(self.data):
            raise InputError(f"{len(self.data) - len(chosen)} samples have no image")
        return chosen

    def _chunks(self, n: int) -> Iterator[range]:
        size = self.config.batch_size_eval
        return (range(i, min(i + size, n)) for i in range(0, n, size))

    def _on_device(self, batch: Any) -> Any:
        return distributed.to_device(batch, self.accelerator.device)
