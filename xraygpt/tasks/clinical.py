"""Report scores that need third-party weights; those without weights are skipped with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError, XrayGPTError
from xraygpt.common.project_paths import ProjectPath
from xraygpt.metrics import bertscore, chexbert, green, radcliq, radgraph
from xraygpt.metrics.statistics import Score

JUDGE_KEY = "XRAYGPT_JUDGE_KEY"  # environment variable with the API key of the judge


@dataclass(kw_only=True)
class ClinicalMetrics:
    """Paths of the weights; the results give the reason for each score skipped without a path."""

    bertscore: ProjectPath | None = None
    """Folder of a transformers encoder; RadCliQ was fitted with distilroberta-base."""
    bertscore_layer: int = radcliq.BERTSCORE_LAYER
    """Layer whose hidden states BERTScore compares."""
    chexbert: ProjectPath | None = None
    """The file `chexbert.pth` as published by its authors."""
    chexbert_bert: ProjectPath | None = None
    """Folder with the `config.json` and vocabulary of bert-base-uncased."""
    radgraph: ProjectPath | None = None
    """Folder of the unpacked model `radgraph-xl`."""
    judge_url: str | None = None
    """Base URL of an OpenAI-compatible endpoint that judges reports for GREEN. Reports are sent
    there: for credentialed data it must be your own machine."""
    judge_model: str | None = None
    """Name of the model at that endpoint. An API key is read from the environment variable
    XRAYGPT_JUDGE_KEY."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            for pair in (("judge_url", "judge_model"), ("chexbert", "chexbert_bert")):
                for name, other in (pair, pair[::-1]):
                    alone = getattr(self, name) is not None and getattr(self, other) is None
                    check.refuse(alone, name, f"also needs {other}", other)


class ClinicalScorer:
    """Computes the scores whose weights `settings` names; each model is loaded once."""

    def __init__(self, settings: ClinicalMetrics) -> None:
        self.settings = settings
        self._annotations: dict[str, Any] = {}

    def score(
        self, predictions: Sequence[str], references: Sequence[str], groups: Sequence[str]
    ) -> tuple[list[Score], dict[str, str]]:
        """Score pairs of texts; returns the scores and, by name, the reasons for skipped scores."""
        scores: list[Score] = []
        left_out: dict[str, str] = {}
        metrics: dict[str, Callable[..., list[Score]]] = {
            "BERTScore": self._bertscore,
            "CheXbert F1": self._chexbert,
            "RadGraph F1": self._radgraph,
            "RadCliQ-v1": self._radcliq,
            "GREEN": self._green,
        }
        for name, compute in metrics.items():
            try:
                scores += compute(predictions, references, groups)
            except XrayGPTError as error:
                left_out[name] = str(error)
        return scores, left_out

    def _require(self, *keys: str, source: str) -> None:
        for key in keys:
            if getattr(self.settings, key) is None:
                raise InputError(f"run.task.clinical.{key} is not set ({source})")

    @cached_property
    def _bert_scorer(self) -> bertscore.BertScorer:
        assert self.settings.bertscore is not None
        return bertscore.BertScorer(self.settings.bertscore, self.settings.bertscore_layer)

    @cached_property
    def _labeller(self) -> chexbert.CheXbert:
        assert self.settings.chexbert is not None and self.settings.chexbert_bert is not None
        return chexbert.CheXbert(self.settings.chexbert, self.settings.chexbert_bert)

    def _bertscore(self, predictions: Any, references: Any, groups: Any) -> list[Score]:
        source = "a folder with a transformers encoder, e.g. distilroberta-base"
        self._require("bertscore", source=source)
        return bertscore.bert_scores(self._bert_scorer, predictions, references, groups)

    def _chexbert(self, predictions: Any, references: Any, groups: Any) -> list[Score]:
        source = "chexbert.pth, from github.com/stanfordmlgroup/CheXbert"
        self._require("chexbert", source=source)
        labels = (self._labeller.label(list(texts)) for texts in (predictions, references))
        return chexbert.chexbert_scores(*labels, groups=groups)

    def _annotate(self, texts: Sequence[str]) -> list[Any]:
        """Return RadGraph annotations; each distinct text is annotated once."""
        self._require("radgraph", source="the unpacked archive of radgraph-xl")
        new = [t for t in dict.fromkeys(texts) if t not in self._annotations]
        if new:
            assert self.settings.radgraph is not None
            annotations = radgraph.annotate(new, self.settings.radgraph)
            self._annotations.update(zip(new, annotations, strict=True))
        return [self._annotations[t] for t in texts]

    def _radgraph(self, predictions: Any, references: Any, groups: Any) -> list[Score]:
        annotations = self._annotate(predictions), self._annotate(references)
        return radgraph.radgraph_scores(*annotations, groups)

    def _radcliq(self, predictions: Any, references: Any, groups: Any) -> list[Score]:
        source = "it combines BERTScore, CheXbert and RadGraph"
        self._require("bertscore", "chexbert", "radgraph", source=source)
        overlap = self._bert_scorer.score(
            predictions, references, idf=True, baseline=radcliq.BERTSCORE_BASELINE
        )
        annotations = self._annotate(predictions), self._annotate(references)
        graph = np.array(
            [radgraph.entity_relation_f1(p, r) for p, r in zip(*annotations, strict=True)]
        )
        vectors = (self._labeller.embed(list(texts)) for texts in (predictions, references))
        bleu = np.array(
            [radcliq.bleu_2(p, r) for p, r in zip(predictions, references, strict=True)]
        )
        return radcliq.radcliq_scores(graph, overlap.f1, radcliq.cosines(*vectors), bleu, groups)

    def _green(self, predictions: Any, references: Any, groups: Any) -> list[Score]:
        source = "an OpenAI-compatible endpoint; xraygpt.score never contacts one"
        self._require("judge_url", source=source)
        name = str(self.settings.judge_model)
        return green.green_scores(predictions, references, self._ask_judge, groups, judge_name=name)

    @cached_property
    def _client(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError:
            raise InputError("GREEN's judge needs openai: pip install -e '.[curate]'") from None
        key = os.environ.get(JUDGE_KEY, "none")
        return OpenAI(base_url=self.settings.judge_url, api_key=key, max_retries=5)

    def _ask_judge(self, prompt: str) -> str:
        from openai import OpenAIError

        try:
            response = self._client.chat.completions.create(
                model=self.settings.judge_model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
            )
        except OpenAIError as error:
            raise InputError(
                f"{self.settings.judge_url}: {type(error).__name__}: {error}"
            ) from None
        text = response.choices[0].message.content if response.choices else None
        return text or ""
