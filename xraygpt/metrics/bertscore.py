"""BERTScore: how well the words of two texts match by their contextual vectors.

Every token of one text is matched with the most alike token of the other by the cosine of their
hidden states; the mean over the prediction's tokens is the precision, over the reference's tokens
the recall (Zhang et al. 2020, "BERTScore: Evaluating Text Generation with BERT"). The encoder is a
folder on disk; nothing is fetched.

Shapes: b pairs of a batch, p and r tokens of predictions and references, d hidden size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.common.errors import InputError, WeightsError
from xraygpt.metrics.statistics import Score, mean_score

Baseline = tuple[float, float, float]


@dataclass(frozen=True)
class Overlap:
    """BERTScore of n pairs, each (n,) float64; cosines in [-1, 1], rescaled ones may leave it."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


class BertScorer:
    """A local encoder that compares texts."""

    def __init__(
        self, folder: Path, layer: int, *, device: str = "cpu", batch_size: int = 32
    ) -> None:
        """Load the encoder.

        Args:
            folder: A transformers folder: config, weights, tokenizer.
            layer: Whose hidden states are compared; 0 is the embeddings, 1 the first block. Part
                of the metric: scores of different layers do not compare.
            device: Torch device.
            batch_size: Pairs in one pass.

        Raises:
            InputError: If the folder does not exist or has no such layer.
            WeightsError: If it holds no encoder that transformers can load.
        """
        import torch

        self._model, self._tokenizer = _load(folder)
        depth = self._model.config.num_hidden_layers
        if not 0 <= layer <= depth:
            raise InputError(f"{folder}: layer {layer} asked for; choose one of 0 to {depth}")
        self._model.to(torch.device(device)).eval()
        self._layer, self._device, self._batch = layer, torch.device(device), batch_size
        self.signature = f"BERTScore, {folder.name} layer {layer}"

    def score(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        *,
        idf: bool = False,
        baseline: Baseline | None = None,
    ) -> Overlap:
        """Compare n pairs of texts.

        Texts longer than the encoder reads are cut. A pair with an empty side scores 0, rescaled
        or not (the bert-score package rescales that 0 to a large negative number). Where idf gives
        every token of a text the weight 0, as with a single reference, its tokens weigh alike.

        Args:
            predictions: n texts.
            references: n texts.
            idf: Weigh tokens by how few references hold them, log((n + 1) / (df + 1)).
            baseline: Precision, recall and F1 of unrelated texts, each below 1; scores become
                (score - b) / (1 - b).

        Raises:
            InputError: If the counts differ or a baseline is 1 or more.
        """
        if len(predictions) != len(references):
            raise InputError(
                f"{len(predictions)} predictions for {len(references)} references; give one each"
            )
        if baseline is not None and not all(b < 1 for b in baseline):
            raise InputError(f"BERTScore baseline {baseline}: each number must be below 1")
        said, true = self._encode(predictions), self._encode(references)
        special = self._tokenizer.num_special_tokens_to_add()
        weights = self._weights(true if idf else None)
        full = [i for i in range(len(said)) if min(len(said[i]), len(true[i])) > special]
        full.sort(key=lambda i: max(len(said[i]), len(true[i])))
        values = np.zeros((len(said), 3))
        for start in range(0, len(full), self._batch):
            rows = full[start : start + self._batch]
            precision, recall = self._match(
                [said[i] for i in rows], [true[i] for i in rows], weights
            )
            values[rows] = np.stack([precision, recall, _f1(precision, recall)], axis=1)
        if baseline is not None:
            floor = np.asarray(baseline)
            values[full] = (values[full] - floor) / (1 - floor)
        return Overlap(*values.T)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special ones included."""
        from transformers import GPT2Tokenizer, RobertaTokenizer

        # Byte-level vocabularies tell a word after a space from one at the very start.
        gap = " " if isinstance(self._tokenizer, GPT2Tokenizer | RobertaTokenizer) else ""
        if not texts:
            return []
        stripped = [t.strip() for t in texts]
        found = self._tokenizer(
            [gap + t if t else "" for t in stripped],
            truncation=True,
            max_length=_longest(self._model.config, self._tokenizer),
        )
        ids: list[list[int]] = found["input_ids"]
        return ids

    def _weights(self, references: list[list[int]] | None) -> _Weights:
        """Weight of a token id: by idf, or 1 where there are no references."""
        special = frozenset({self._tokenizer.cls_token_id, self._tokenizer.sep_token_id})
        if references is None:
            return _Weights(special, {}, 1.0)
        n = len(references)
        seen = Counter(token for ids in references for token in set(ids))
        table = {token: log((n + 1) / (count + 1)) for token, count in seen.items()}
        return _Weights(special, table, log(n + 1))

    def _match(
        self, said: list[list[int]], true: list[list[int]], weights: _Weights
    ) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall of b pairs, each (b,) float64."""
        import torch

        with torch.no_grad():
            p, p_mask = self._embed(said)
            r, r_mask = self._embed(true)
            alike = p @ r.transpose(1, 2)  # (b, p, r)
            best_p = alike.masked_fill(~r_mask[:, None, :], -torch.inf).amax(2)  # (b, p)
            best_r = alike.masked_fill(~p_mask[:, :, None], -torch.inf).amax(1)  # (b, r)
        precision = [_mean(row, ids, weights) for row, ids in zip(best_p, said, strict=True)]
        recall = [_mean(row, ids, weights) for row, ids in zip(best_r, true, strict=True)]
        return np.array(precision), np.array(recall)

    def _embed(self, batch: list[list[int]]) -> tuple[Any, Any]:
        """Unit vectors (b, t, d) of the chosen layer and the mask (b, t) of real tokens."""
        import torch

        longest = max(len(ids) for ids in batch)
        pad = self._tokenizer.pad_token_id or 0
        tokens = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in batch])
        lengths = torch.tensor([len(ids) for ids in batch])
        mask = (torch.arange(longest) < lengths[:, None]).to(self._device)
        out = self._model(
            tokens.to(self._device), attention_mask=mask.long(), output_hidden_states=True
        )
        hidden = out.hidden_states[self._layer].float()
        return torch.nn.functional.normalize(hidden, dim=-1), mask


@dataclass(frozen=True)
class _Weights:
    """Weights of tokens; special ones have none."""

    special: frozenset[int]
    table: Mapping[int, float]
    other: float  # of tokens that are not in the table

    def of(self, ids: list[int]) -> np.ndarray:
        """(t,) float64, adding up to 1; alike where the table gives every token 0."""
        plain = np.array([i not in self.special for i in ids], dtype=float)
        each = plain * np.array([self.table.get(i, self.other) for i in ids])
        each = each if each.sum() > 0 else plain
        return each / each.sum()


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: no config.json; give a folder with an encoder saved by transformers"
        )
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"{folder}: cannot be loaded as an encoder: {error}") from error
    if getattr(model.config, "is_encoder_decoder", False):
        raise WeightsError(f"{folder}: holds a decoder as well; BERTScore takes an encoder alone")
    return model, tokenizer


def _longest(config: Any, tokenizer: Any) -> int:
    """Tokens the encoder can read; RoBERTa counts positions from behind the padding id."""
    limit = int(getattr(config, "max_position_embeddings", 0) or 512)
    if "roberta" in config.model_type:
        limit -= int(config.pad_token_id) + 1
    return min(limit, int(tokenizer.model_max_length))


def _mean(best: Any, ids: list[int], weights: _Weights) -> float:
    """Weighted mean of the best cosines of one text, (t,) with padding behind."""
    return float(best[: len(ids)].double().cpu().numpy() @ weights.of(ids))


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Harmonic mean, 0 where the two do not add up to something positive."""
    total = precision + recall
    out = np.zeros_like(total)
    return np.divide(2 * precision * recall, total, out=out, where=total > 0)


def bert_scores(
    scorer: BertScorer,
    predictions: Sequence[str],
    references: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    idf: bool = False,
    baseline: Baseline | None = None,
) -> list[Score]:
    """Mean precision, recall and F1 over samples; arguments as of `BertScorer.score`.

    ``groups`` names the study of each sample, which intervals resample.
    """
    found = scorer.score(predictions, references, idf=idf, baseline=baseline)
    signature = f"{scorer.signature}, {'idf of the references' if idf else 'no idf'}, "
    signature += f"rescaled by {baseline}" if baseline else "not rescaled"
    parts = {"precision": found.precision, "recall": found.recall, "F1": found.f1}
    return [mean_score(f"BERTScore_{k}", v.tolist(), signature, groups) for k, v in parts.items()]
