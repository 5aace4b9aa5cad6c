"""Scores of reports that want weights of others: from local paths, or left out with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError, XrayGPTError
from xraygpt.metrics import bertscore, chexbert, green, radcliq, radgraph
from xraygpt.metrics.statistics import Score

JUDGE_KEY = "XRAYGPT_JUDGE_KEY"  # environment variable with the key of the judge's endpoint


@dataclass(kw_only=True)
class ClinicalMetrics:
    """Where the weights lie; what is not named is left out, and the results say so."""

    bertscore: Path | None = None
    """Folder of a transformers encoder; distilroberta-base is what RadCliQ was fitted with."""
    bertscore_layer: int = radcliq.BERTSCORE_LAYER
    """Whose hidden states BERTScore compares."""
    chexbert: Path | None = None
    """`chexbert.pth` as its authors publish it."""
    chexbert_bert: Path | None = None
    """Folder of bert-base-uncased: its `config.json` and vocabulary."""
    radgraph: Path | None = None
    """Folder that holds the unpacked model `radgraph-xl`."""
    judge_url: str | None = None
    """Base address of an OpenAI-compatible endpoint whose model judges for GREEN. Reports are sent
    there: for credentialed data it must be a machine of yours."""
    judge_model: str | None = None
    """Its model. The key, if it wants one, is read from the variable XRAYGPT_JUDGE_KEY."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            for pair in (("judge_url", "judge_model"), ("chexbert", "chexbert_bert")):
                for one, other in (pair, pair[::-1]):
                    alone = getattr(self, one) is not None and getattr(self, other) is None
                    check.refuse(alone, one, f"needs {other}, too", other)


class Clinical:
    """Takes the scores that `settings` gives weights for; each model is loaded once."""

    def __init__(self, settings: ClinicalMetrics) -> None:
        self.settings = settings
        self._annotations: dict[str, Any] = {}

    def score(
        self, said: Sequence[str], true: Sequence[str], groups: Sequence[str]
    ) -> tuple[list[Score], dict[str, str]]:
        """Scores of pairs, and by name why one was left out."""
        scores: list[Score] = []
        left_out: dict[str, str] = {}
        takes: dict[str, Callable[..., list[Score]]] = {
            "BERTScore": self._bertscore,
            "CheXbert F1": self._chexbert,
            "RadGraph F1": self._radgraph,
            "RadCliQ-v1": self._radcliq,
            "GREEN": self._green,
        }
        for name, take in takes.items():
            try:
                scores += take(said, true, groups)
            except XrayGPTError as error:
                left_out[name] = str(error)
        return scores, left_out

    def _need(self, *keys: str, get: str) -> None:
        for key in keys:
            if getattr(self.settings, key) is None:
                raise InputError(f"run.task.clinical.{key} is not set ({get})")

    @cached_property
    def _bert(self) -> bertscore.BertScorer:
        assert self.settings.bertscore is not None
        return bertscore.BertScorer(self.settings.bertscore, self.settings.bertscore_layer)

    @cached_property
    def _labeller(self) -> chexbert.CheXbert:
        assert self.settings.chexbert is not None and self.settings.chexbert_bert is not None
        return chexbert.CheXbert(self.settings.chexbert, self.settings.chexbert_bert)

    def _bertscore(self, said: Any, true: Any, groups: Any) -> list[Score]:
        self._need("bertscore", get="a folder with a transformers encoder, e.g. distilroberta-base")
        return bertscore.bert_scores(self._bert, said, true, groups)

    def _chexbert(self, said: Any, true: Any, groups: Any) -> list[Score]:
        self._need("chexbert", get="chexbert.pth, from github.com/stanfordmlgroup/CheXbert")
        labels = (self._labeller.label(list(texts)) for texts in (said, true))
        return chexbert.chexbert_scores(*labels, groups=groups)

    def _annotated(self, texts: Sequence[str]) -> list[Any]:
        self._need("radgraph", get="the unpacked archive of radgraph-xl")
        new = [t for t in dict.fromkeys(texts) if t not in self._annotations]
        if new:
            assert self.settings.radgraph is not None
            found = radgraph.annotate(new, self.settings.radgraph)
            self._annotations.update(zip(new, found, strict=True))
        return [self._annotations[t] for t in texts]

    def _radgraph(self, said: Any, true: Any, groups: Any) -> list[Score]:
        return radgraph.radgraph_scores(self._annotated(said), self._annotated(true), groups)

    def _radcliq(self, said: Any, true: Any, groups: Any) -> list[Score]:
        parts = "it is made of BERTScore, CheXbert and RadGraph"
        self._need("bertscore", "chexbert", "radgraph", get=parts)
        overlap = self._bert.score(said, true, idf=True, baseline=radcliq.BERTSCORE_BASELINE)
        pairs = zip(self._annotated(said), self._annotated(true), strict=True)
        graph = np.array([radgraph.entity_relation_f1(p, r) for p, r in pairs])
        vectors = (self._labeller.embed(list(texts)) for texts in (said, true))
        bleu = np.array([radcliq.bleu_2(p, r) for p, r in zip(said, true, strict=True)])
        return radcliq.radcliq_scores(graph, overlap.f1, radcliq.cosines(*vectors), bleu, groups)

    def _green(self, said: Any, true: Any, groups: Any) -> list[Score]:
        self._need("judge_url", get="an OpenAI-compatible endpoint; xraygpt.score never asks one")
        name = str(self.settings.judge_model)
        return green.green_scores(said, true, self._ask, groups, judge_name=name)

    @cached_property
    def _client(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError:
            raise InputError("GREEN's judge wants openai: pip install -e '.[curate]'") from None
        key = os.environ.get(JUDGE_KEY, "none")
        return OpenAI(base_url=self.settings.judge_url, api_key=key, max_retries=5)

    def _ask(self, prompt: str) -> str:
        from openai import OpenAIError

        try:
            answer = self._client.chat.completions.create(
                model=self.settings.judge_model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
            )
        except OpenAIError as error:
            raise InputError(
                f"{self.settings.judge_url}: {type(error).__name__}: {error}"
            ) from None
        said = answer.choices[0].message.content if answer.choices else None
        return said or ""
