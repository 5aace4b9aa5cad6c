"""Evaluation, which streams predictions to disk, then scores them together with the controls."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xraygpt.common import distributed
from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError
from xraygpt.common.registry import Plugin
from xraygpt.datasets.base import Split, StudyDataset, reference_text
from xraygpt.datasets.collate import Collator
from xraygpt.datasets.input_check import InputCheck
from xraygpt.datasets.leakage import Leakage
from xraygpt.evaluation import lockbox, prediction_file, scoring
from xraygpt.evaluation.condition_predictor import ConditionPredictor
from xraygpt.evaluation.conditions import (
    OWN_HISTORY,
    TRUE,
    CacheFeatures,
    answers_from_training,
    build_conditions,
    select_controls,
)
from xraygpt.evaluation.evaluation_page import write_evaluation_page
from xraygpt.evaluation.history import History
from xraygpt.evaluation.input_report import check_images, refuse_warned, summary
from xraygpt.evaluation.losses import loss_rows, sample_losses
from xraygpt.evaluation.verdict import judge
from xraygpt.features import cache as feature_cache
from xraygpt.features.cache import FeatureStore
from xraygpt.models.base import BaseModel
from xraygpt.models.capabilities import (
    ComputesLoss,
    FrozenFeatures,
    missing_reason,
    require,
    supports,
)
from xraygpt.runners import logs
from xraygpt.tasks.base import BaseTask, Prediction

log = logging.getLogger(__name__)

Control = Literal[
    "own_history", "shuffled", "blank", "mirrored", "no_image", "most_common", "nearest",
    "mean_box",
]  # fmt: skip


class Evaluator(Plugin):
    """Evaluates one model on one split of one corpus."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """The `run` section of an evaluation configuration."""

        task: BaseTask.Config
        """What to ask the model and how to score its answers."""
        output_dir: Path = Path("output/evaluate")
        """Parent of the result folder. That folder is named after the model, data and settings, so
        that repeating an interrupted command continues it."""
        split: Split = "val"
        """Split to evaluate: train, val, test or lockbox. The lockbox is for one measurement of a
        finished model; each opening is counted."""
        max_samples: int | None = None
        """Maximum number of samples, taken from the start of the split; None means all."""
        batch_size_eval: int = 16
        """Number of rows decoded at once."""
        device: Literal["auto", "cpu", "cuda"] = "auto"
        """Device: `auto`, `cpu` or `cuda`."""
        shuffles: int = 5
        """Number of seeds of the shuffled-image control."""
        controls: list[Control] | None = None
        """Controls to run in addition to the true images. null runs the task's default controls."""
        feature_cache: bool = True
        """Whether to cache the frozen encoder's features on disk."""
        feature_store: FeatureStore = field(default_factory=FeatureStore)
        """Settings of the feature cache; use the same as in training to reuse its features."""
        seed: int = 0
        """Seed of sampling and shuffling."""
        page_cases: int = 200
        """Number of cases on the result page: a tenth from the best, a tenth from the worst and
        the others at random. 0 shows only the scores."""

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
        input_check: InputCheck | None = None,
        strict: bool = False,
        leakage: Leakage | None = None,
    ) -> None:
        self.config, self.task, self.resolved = config, task, resolved
        self.leakage = leakage
        self.input_check, self.strict = input_check, strict
        self.history = history or History()
        model.check_generation(task.config.generate)
        if not task.generates:
            require(model, ComputesLoss)
        self.accelerator = distributed.make_accelerator(config.device)
        self.model = model.to(self.accelerator.device).eval()
        if self.accelerator.num_processes > 1:
            raise InputError(
                "evaluate.py runs in one process; instead of torchrun, start several commands "
                "with --shard 1/8 and so on"
            )
        data.records = data.records[: config.max_samples]
        if not len(data):
            raise InputError(f"the split '{config.split}' of this corpus has no samples")
        self.data, self.train = data, train
        self.controls = select_controls(config.controls, task)
        self._feature_key = self._find_feature_key()
        if self._feature_key is not None:
            self._cache_features(data)
        if data.on_error == "skip":  # check once, so that all conditions have the same samples
            data.records = [r for i, r in enumerate(data.records) if data[i] is not None]
        # Use the same question for every sample: images are compared, not wordings.
        model.renderer.prompts = model.renderer.prompts[:1]
        self.collate = Collator(
            model.renderer, model.media_collator, max_len=model.context_len, extra=task.extra
        )
        self.signature = prediction_file.compute_signature(identity)
        self.identity = identity
        self.folder = config.output_dir / f"{config.split}-{self.signature}"
        self.predictor = ConditionPredictor(
            task,
            self.model,
            self.collate,
            device=self.accelerator.device,
            folder=self.folder,
            batch_size=config.batch_size_eval,
            seed=config.seed,
        )
        self._left_out: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        """Predict and score, and return the content of scores.json.

        Raises:
            InputError: An image has a warning, and warnings are refused (`--strict`).
        """
        input_summary = self._open_folder()
        opening = self._open_lockbox()
        conditions = self._build_conditions()
        losses = self._losses(conditions)
        predictions: dict[str, list[Prediction]] = {}
        if self.task.generates:
            self.task.fit(self._training_answers)
            scoring.write_fitted_state(self.folder, self.task)
            predictions = {
                name: self.predictor.predict(name, data) for name, data in conditions.items()
            }
            predictions |= self._predictions_from_training(predictions[TRUE])
        scores, left_out = scoring.score_rows(self.task, predictions) if predictions else ([], {})
        result = {
            "signature": self.signature,
            "identity": self.identity,
            "versions": logs.versions(),
            "split": self.config.split,
            **opening,
            "n": len(self.data),
            "input_check": input_summary,
            **({"leakage": asdict(self.leakage)} if self.leakage else {}),
            "losses": loss_rows(losses, [r.study_id for r in self.data.records]),
            "scores": scores,
            "answers_changed": scoring.answers_changed(predictions) if predictions else {},
            "left_out": {**self._left_out, **left_out},
            "studies": len({record.study_id for record in self.data.records}),
        }
        result["verdict"] = judge(self.task, result).as_row()
        scoring.write_scores(self.folder, result)
        write_evaluation_page(
            self.folder / "report.html",
            task=self.task,
            data=self.data,
            predictions=predictions,
            result=result,
            max_cases=self.config.page_cases,
            seed=self.config.seed,
            history=self.history,
            facts=logs.facts(self.accelerator.device) | {"seed": self.config.seed},
            configuration=self.resolved,
        )
        return result

    def answer_shard(self, number: int, count: int) -> int:
        """Answer every `count`-th distinct image and question, for a later `run`.

        Args:
            number: Number of this shard, in [1, `count`].
            count: Number of shards.

        Returns:
            Number of answers in this shard.

        Raises:
            InputError: The task generates no answers, or an image is refused (`--strict`).
        """
        if not self.task.generates:
            raise InputError("this task generates no answers to distribute; omit --shard")
        self._open_folder()
        self._open_lockbox()
        self.task.fit(self._training_answers)
        conditions = self._build_conditions()
        conditions.pop(OWN_HISTORY, None)  # answers depend on each other; `run` makes them
        shard = self.predictor.unique_samples(conditions)[number - 1 :: count]
        for name, data in conditions.items():
            indices = [i for condition, i in shard if condition == name]
            self.predictor.predict(name, data, indices, (number, count))
        return len(shard)

    def _open_folder(self) -> str:
        """Create the result folder, check all images, and return a summary of the warnings."""
        prediction_file.open_folder(self.folder, self.identity)
        self.model.keep_answers(self.folder)
        if self.input_check is None:
            return ""
        warnings = check_images(self.data.media_refs(), self.input_check, self.folder)
        self.predictor.image_warnings = warnings
        by_name = {ref.name: w for ref, w in warnings.items()}
        if self.strict:
            refuse_warned(by_name, len(warnings))
        return summary(by_name, len(warnings))

    def _open_lockbox(self) -> dict[str, Any]:
        """Return what scores.json says about opening the lockbox; empty for other splits."""
        if self.config.split != lockbox.SPLIT:
            return {}
        opening = lockbox.open_lockbox(self.identity.get("weights"), self.signature, self.folder)
        log.warning("%s", opening)
        return {"lockbox": asdict(opening)}

    def _find_feature_key(self) -> str | None:
        """Return the cache key of the frozen features, or None if they are not cached."""
        if self.config.feature_cache and supports(self.model, FrozenFeatures):
            return require(self.model, FrozenFeatures).feature_key()
        return None

    def _cache_features(self, data: StudyDataset) -> None:
        assert self._feature_key is not None
        feature_cache.use_cache(
            data, self.model, self._feature_key, self.accelerator, self.config.feature_store
        )

    @property
    def _feature_caching(self) -> CacheFeatures | None:
        return None if self._feature_key is None else self._cache_features

    def _build_conditions(self) -> dict[str, StudyDataset]:
        conditions, left_out = build_conditions(
            self.data,
            self.controls,
            self.task,
            shuffles=self.config.shuffles,
            seed=self.config.seed,
            cache_features=self._feature_caching,
        )
        self._left_out |= left_out
        return conditions

    def _losses(self, conditions: Mapping[str, StudyDataset]) -> dict[str, np.ndarray]:
        """Compute the losses of all conditions; none if the model computes no losses."""
        if not supports(self.model, ComputesLoss):
            self._left_out["loss"] = missing_reason(self.model, ComputesLoss)
            return {}
        return {
            name: self._sample_losses(name, data)
            for name, data in conditions.items()
            if name != OWN_HISTORY
        }

    def _sample_losses(self, condition: str, data: StudyDataset) -> np.ndarray:
        return sample_losses(
            self.task,
            self.model,
            self.collate,
            data,
            device=self.accelerator.device,
            batch_size=self.config.batch_size_eval,
            label=condition,
        )

    def _training_answers(self) -> list[str]:
        return [reference_text(self.train.get_turns(i)) for i in range(len(self.train))]

    def _predictions_from_training(
        self, predictions: list[Prediction]
    ) -> dict[str, list[Prediction]]:
        """Write and return predictions for the controls that answer from the training split."""
        controls, left_out = answers_from_training(
            self.data, self.train, self.controls, self._feature_caching
        )
        self._left_out |= left_out
        result = {
            name: [
                replace(p, prediction=answer.text, payload=answer.payload)
                for p in predictions
                for answer in (answers[p.sample_id],)
            ]
            for name, answers in controls.items()
        }
        for name, replaced in result.items():
            prediction_file.write(self.folder / f"predictions_{name}.jsonl", replaced)
        return result
