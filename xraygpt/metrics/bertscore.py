"""BERTScore: similarity of the words of two texts by their contextual vectors.

Every token of one text is matched with the most similar token of the other by the cosine of their
hidden states; the mean over the prediction's tokens is the precision, and the mean over the
reference's tokens is the recall (Zhang et al. 2020, "BERTScore: Evaluating Text Generation with
BERT"). The encoder is loaded from a local folder; nothing is downloaded.

Shapes: b is the number of pairs in a batch, p and r are the numbers of tokens in predictions and
references, and d is the hidden size.
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
    """BERTScore of n pairs, each value (n,) float64; in [-1, 1] unless rescaled."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


class BertScorer:
    """Compares texts with a local encoder."""

    def __init__(
        self, folder: Path, layer: int, *, device: str = "cpu", batch_size: int = 32
    ) -> None:
        """Load the encoder.

        Args:
            folder: A transformers folder: config, weights, tokenizer.
            layer: Layer whose hidden states are compared; 0 is the embeddings, 1 the first block.
                The layer is part of the metric: scores from different layers are not comparable.
            device: Torch device.
            batch_size: Pairs per forward pass.

        Raises:
            InputError: If the folder does not exist or has no such layer.
            WeightsError: If the folder contains no encoder that transformers can load.
        """
        import torch

        self._model, self._tokenizer = _load(folder)
        depth = self._model.config.num_hidden_layers
        if not 0 <= layer <= depth:
            raise InputError(f"{folder} has no layer {layer}; choose one of 0 to {depth}")
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

        Texts longer than the encoder's maximum are truncated. A pair with an empty side scores 0,
        rescaled or not (the bert-score package rescales that 0 to a large negative number). If idf
        gives every token of a text the weight 0, as with a single reference, all its tokens are
        weighted equally.

        Args:
            predictions: The n predicted texts.
            references: The n reference texts.
            idf: Weight tokens by how few references contain them, log((n + 1) / (df + 1)).
            baseline: Precision, recall and F1 of unrelated texts, each below 1; scores become
                (score - b) / (1 - b).

        Raises:
            InputError: If the counts differ or a baseline is 1 or more.
        """
        _check_inputs(predictions, references, baseline)
        predicted, expected = self._encode(predictions), self._encode(references)
        special = self._tokenizer.num_special_tokens_to_add()
        weights = self._token_weights(expected if idf else None)
        lengths = [(len(p), len(r)) for p, r in zip(predicted, expected, strict=True)]
        nonempty = [i for i, pair in enumerate(lengths) if min(pair) > special]
        nonempty.sort(key=lambda i: max(lengths[i]))
        values = np.zeros((len(predicted), 3))
        for start in range(0, len(nonempty), self._batch):
            rows = nonempty[start : start + self._batch]
            precision, recall = self._match(
                [predicted[i] for i in rows], [expected[i] for i in rows], weights
            )
            values[rows] = np.stack([precision, recall, _f1(precision, recall)], axis=1)
        if baseline is not None:
            floor = np.asarray(baseline)
            values[nonempty] = (values[nonempty] - floor) / (1 - floor)
        return Overlap(*values.T)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, including special tokens."""
        from transformers import GPT2Tokenizer, RobertaTokenizer

        # Byte-level vocabularies distinguish a word after a space from one at the very start.
        prefix = " " if isinstance(self._tokenizer, GPT2Tokenizer | RobertaTokenizer) else ""
        if not texts:
            return []
        stripped = [t.strip() for t in texts]
        encoded = self._tokenizer(
            [prefix + t if t else "" for t in stripped],
            truncation=True,
            max_length=_max_tokens(self._model.config, self._tokenizer),
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _token_weights(self, references: list[list[int]] | None) -> _TokenWeights:
        """Return idf weights from the references, or weight 1 if there are none."""
        special = frozenset({self._tokenizer.cls_token_id, self._tokenizer.sep_token_id})
        if references is None:
            return _TokenWeights(special, {}, 1.0)
        n = len(references)
        frequency = Counter(token for ids in references for token in set(ids))
        table = {token: log((n + 1) / (count + 1)) for token, count in frequency.items()}
        return _TokenWeights(special, table, log(n + 1))

    def _match(
        self, predictions: list[list[int]], references: list[list[int]], weights: _TokenWeights
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute the precision and recall of b pairs, each (b,) float64."""
        import torch

        with torch.no_grad():
            p, p_mask = self._embed(predictions)
            r, r_mask = self._embed(references)
            similarity = p @ r.transpose(1, 2)  # (b, p, r)
            best_p = similarity.masked_fill(~r_mask[:, None, :], -torch.inf).amax(2)  # (b, p)
            best_r = similarity.masked_fill(~p_mask[:, :, None], -torch.inf).amax(1)  # (b, r)
        precision = [_mean(row, ids, weights) for row, ids in zip(best_p, predictions, strict=True)]
        recall = [_mean(row, ids, weights) for row, ids in zip(best_r, references, strict=True)]
        return np.array(precision), np.array(recall)

    def _embed(self, batch: list[list[int]]) -> tuple[Any, Any]:
        """Return the layer's unit vectors (b, t, d) and the mask (b, t) of non-padding tokens."""
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
class _TokenWeights:
    special: frozenset[int]  # ids with weight 0
    table: Mapping[int, float]
    default: float  # weight of tokens that are not in the table

    def normalized(self, ids: list[int]) -> np.ndarray:
        """Return weights (t,) float64 with sum 1; all equal if the table contains only zeros."""
        plain = np.array([i not in self.special for i in ids], dtype=float)
        weights = plain * np.array([self.table.get(i, self.default) for i in ids])
        weights = weights if weights.sum() > 0 else plain
        return weights / weights.sum()


def _check_inputs(
    predictions: Sequence[str], references: Sequence[str], baseline: Baseline | None
) -> None:
    if len(predictions) != len(references):
        raise InputError(
            f"{len(predictions)} predictions for {len(references)} references; expected one each"
        )
    if baseline is not None and not all(b < 1 for b in baseline):
        raise InputError(f"BERTScore baseline {baseline} contains a number that is not below 1")


def _load(folder: Path) -> tuple[Any, Any]:
    """Load the model and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} has no config.json; use a folder with an encoder saved by transformers"
        )
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"{folder} cannot be loaded as an encoder: {error}") from error
    if getattr(model.config, "is_encoder_decoder", False):
        raise WeightsError(f"{folder} also contains a decoder; BERTScore needs only an encoder")
    return model, tokenizer


def _max_tokens(config: Any, tokenizer: Any) -> int:
    """Return the maximum input length; RoBERTa's positions start after the padding id."""
    limit = int(getattr(config, "max_position_embeddings", 0) or 512)
    if "roberta" in config.model_type:
        limit -= int(config.pad_token_id) + 1
    return min(limit, int(tokenizer.model_max_length))


def _mean(best: Any, ids: list[int], weights: _TokenWeights) -> float:
    """Compute the weighted mean of one text's best cosines, (t,) with padding at the end."""
    return float(best[: len(ids)].double().cpu().numpy() @ weights.normalized(ids))


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Compute the harmonic mean, which is 0 unless the sum of the two is positive."""
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
    """Compute mean precision, recall and F1 over samples; see `BertScorer.score` for the arguments.

    ``groups`` contains the study of each sample; intervals resample whole studies.
    """
    overlap = scorer.score(predictions, references, idf=idf, baseline=baseline)
    signature = f"{scorer.signature}, {'idf of the references' if idf else 'no idf'}, "
    signature += f"rescaled by {baseline}" if baseline else "not rescaled"
    parts = {"precision": overlap.precision, "recall": overlap.recall, "F1": overlap.f1}
    return [mean_score(f"BERTScore_{k}", v.tolist(), signature, groups) for k, v in parts.items()]
