"""CheXbert: a BERT labels 14 findings in a report; F1 compares the labels of two reports.

The network is a BERT whose first token's vector feeds 13 heads with four classes and one head, for
"no finding", with two (Smit et al. 2020, "CheXbert: Combining Automatic Labelers and Expert
Annotations for Accurate Radiology Report Labeling Using BERT"). The scores need only arrays of
labels; the weights are needed only for labelling texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from xraygpt.common.errors import InputError, WeightsError
from xraygpt.metrics.statistics import Score, f1_of_sums, macro_ratio, ratio_score

#: The findings in the order of the network's heads.
FINDINGS: tuple[str, ...] = (
    "enlarged_cardiomediastinum",
    "cardiomegaly",
    "lung_opacity",
    "lung_lesion",
    "edema",
    "consolidation",
    "pneumonia",
    "atelectasis",
    "pneumothorax",
    "pleural_effusion",
    "pleural_other",
    "fracture",
    "support_devices",
    "no_finding",
)
#: The five findings that the CheXpert competition ranks by (Irvin et al. 2019).
COMPETITION_FINDINGS: tuple[str, ...] = (
    "cardiomegaly",
    "edema",
    "consolidation",
    "atelectasis",
    "pleural_effusion",
)
BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(4)  # class indices of the heads
Policy = Literal["positive", "negative", "ignore", "class"]

_BATCH = 32
_MAX_TOKENS = 512
# Buffers that old versions of transformers saved with the weights.
_BUFFERS = frozenset({"bert.embeddings.position_ids", "bert.embeddings.token_type_ids"})


class CheXbert:
    """The labeller, with its authors' published weights or other weights of the same layout."""

    def __init__(self, checkpoint: Path, bert: Path, *, device: str = "cpu") -> None:
        """Build the network and load its weights.

        Args:
            checkpoint: ``chexbert.pth``: a dict whose ``model_state_dict`` has keys such as
                ``module.bert.…`` and ``module.linear_heads.0.weight``. Loaded without executing
                any code it may contain.
            bert: Folder with ``config.json`` and the vocabulary of the BERT that the checkpoint was
                trained from (bert-base-uncased for the published file); its weights are not used.
            device: Torch device.

        Raises:
            InputError: If a file or folder does not exist.
            WeightsError: If the checkpoint cannot be read, or its names or shapes do not match this
                BERT with 14 heads.
        """
        import torch
        from transformers import AutoTokenizer, BertConfig, BertModel

        if not (bert / "config.json").is_file():
            raise InputError(f"{bert} has no config.json; use a BERT's folder with its vocabulary")
        config = BertConfig.from_pretrained(bert, local_files_only=True)
        self._tokenizer = AutoTokenizer.from_pretrained(bert, local_files_only=True)
        heads = [torch.nn.Linear(config.hidden_size, 4) for _ in FINDINGS[:-1]]
        heads.append(torch.nn.Linear(config.hidden_size, 2))
        self._network = torch.nn.ModuleDict(
            {"bert": BertModel(config), "linear_heads": torch.nn.ModuleList(heads)}
        )
        _load_state(self._network, _read_state(checkpoint), checkpoint)
        self._device = torch.device(device)
        self._network.to(self._device).eval()
        self._max_tokens = min(_MAX_TOKENS, config.max_position_embeddings)

    def label(self, reports: Sequence[str]) -> np.ndarray:
        """Label n reports.

        Returns:
            Labels (n, 14) int64: `BLANK`, `POSITIVE`, `NEGATIVE` or `UNCERTAIN`, with columns in
            the order of `FINDINGS`; "no finding" is blank or positive.
        """
        labels = np.zeros((len(reports), len(FINDINGS)), dtype=np.int64)
        for rows, vectors in self._vectors(reports):
            logits = [head(vectors) for head in self._heads()]
            labels[rows] = np.stack([row.argmax(1).cpu().numpy() for row in logits], axis=1)
        return labels

    def embed(self, reports: Sequence[str]) -> np.ndarray:
        """Return the vectors of the first tokens of n reports, (n, hidden size) float32."""
        embeddings = np.zeros((len(reports), self._heads()[0].in_features), dtype=np.float32)
        for rows, vectors in self._vectors(reports):
            embeddings[rows] = vectors.cpu().numpy()
        return embeddings

    def logits(self, reports: Sequence[str]) -> list[np.ndarray]:
        """Return each head's logits for n reports, float32: (n, 4), or (n, 2) for the last head."""
        logits = [np.zeros((len(reports), h.out_features), np.float32) for h in self._heads()]
        for rows, vectors in self._vectors(reports):
            for out, head in zip(logits, self._heads(), strict=True):
                out[rows] = head(vectors).cpu().numpy()
        return logits

    def _heads(self) -> list[Any]:
        return list(self._network["linear_heads"].children())

    def _vectors(self, reports: Sequence[str]) -> Iterator[tuple[list[int], Any]]:
        """Yield the indices of b reports of similar length and their vectors (b, hidden size)."""
        import torch

        if not reports:
            return
        plain = [" ".join(r.split()) for r in reports]
        encoded = self._tokenizer(plain, truncation=True, max_length=self._max_tokens)["input_ids"]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                rows = order[start : start + _BATCH]
                longest = max(len(encoded[i]) for i in rows)
                pad = self._tokenizer.pad_token_id
                ids = torch.tensor([encoded[i] + [pad] * (longest - len(encoded[i])) for i in rows])
                lengths = torch.tensor([len(encoded[i]) for i in rows])
                mask = (torch.arange(longest) < lengths[:, None]).long()
                out = self._network["bert"](
                    ids.to(self._device), attention_mask=mask.to(self._device)
                )
                yield rows, out.last_hidden_state[:, 0]


def _read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the weights by name, without the prefix that multi-GPU training adds."""
    import torch

    if not checkpoint.is_file():
        raise InputError(
            f"{checkpoint}: no such file; chexbert.pth is published by the authors of CheXbert "
            "(github.com/stanfordmlgroup/CheXbert)"
        )
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises many kinds of exceptions
        raise WeightsError(
            f"{checkpoint} is not a tensor-only checkpoint ({error}); download chexbert.pth again"
        ) from error
    state = content.get("model_state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(torch.is_tensor(v) for v in state.values()):
        raise WeightsError(f"{checkpoint} has no model_state_dict; use chexbert.pth itself")
    named = {str(k).removeprefix("module."): v for k, v in state.items()}
    return {k: v for k, v in named.items() if k not in _BUFFERS}


def _load_state(network: Any, state: Mapping[str, Any], checkpoint: Path) -> None:
    """Copy the weights after comparing all names and shapes."""
    expected = network.state_dict()
    problems = [f"missing {k}" for k in expected if k not in state]
    problems += [f"unexpected {k}" for k in state if k not in expected]
    problems += [
        f"{k} is {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in expected
        if k in state and state[k].shape != expected[k].shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (" …" if len(problems) > 5 else "")
        raise WeightsError(
            f"{checkpoint}: {len(problems)} weights do not fit this BERT with 14 heads: {shown}. "
            "Use the folder of the BERT that the checkpoint was trained from"
        )
    network.load_state_dict(dict(state))


def chexbert_scores(
    predictions: np.ndarray,
    references: np.ndarray,
    *,
    uncertain: Policy = "positive",
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Compute F1 of the predictions' labels against the references' labels.

    Only affirmed findings count; a class that is positive on neither side scores F1 0 in a macro
    mean, as in scikit-learn.

    Args:
        predictions: (n, 14) labels, see `CheXbert.label`.
        references: (n, 14) labels.
        uncertain: How uncertain labels count: ``positive``, ``negative``, ``ignore`` (cells that
            are uncertain on either side are excluded) or ``class`` (each finding is scored twice,
            as affirmed and as uncertain; both enter the means; "no finding" cannot be uncertain).
        groups: The study of each sample; intervals resample whole studies. None treats samples as
            independent.

    Returns:
        ``chexbert_14_micro_F1``, ``chexbert_14_macro_F1``, ``chexbert_5_micro_F1`` and
        ``chexbert_5_macro_F1``, in [0, 1].

    Raises:
        InputError: If the arrays are not labels of the same n reports, or the policy is unknown.
    """
    if uncertain not in get_args(Policy):
        raise InputError(f"uncertain={uncertain!r}: choose one of {', '.join(get_args(Policy))}")
    predictions = _checked(predictions, "prediction")
    references = _checked(references, "reference")
    if len(predictions) != len(references):
        raise InputError(
            f"got labels of {len(predictions)} predictions for {len(references)} references"
        )
    scores = []
    for size, names in (("14", FINDINGS), ("5", COMPETITION_FINDINGS)):
        columns = [FINDINGS.index(n) for n in names]
        counts = _counts(predictions[:, columns], references[:, columns], names, uncertain)
        micro, macro = counts.sum(axis=1), counts.reshape(len(counts), 3 * counts.shape[1])
        name, signature = f"chexbert_{size}", f"CheXbert, {size} findings, uncertain: {uncertain}"
        scores += [
            ratio_score(f"{name}_micro_F1", micro, f1_of_sums, signature, groups),
            ratio_score(
                f"{name}_macro_F1", macro, macro_ratio(macro.sum(axis=0)), signature, groups
            ),
        ]
    return scores


def _checked(labels: np.ndarray, side: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != len(FINDINGS):
        raise InputError(f"{side} labels have shape {labels.shape}; expected (n, {len(FINDINGS)})")
    if not np.isin(labels, range(4)).all():
        values = ", ".join(map(str, np.unique(labels)))
        raise InputError(
            f"{side} labels contain {values}; valid labels are 0 (blank), 1 (positive), "
            "2 (negative) and 3 (uncertain)"
        )
    return labels


def _counts(
    predictions: np.ndarray, references: np.ndarray, names: Sequence[str], uncertain: Policy
) -> np.ndarray:
    """Count each class's true, predicted and reference positives, (n, classes, 3) float64."""
    valid = np.ones(predictions.shape, dtype=bool)
    if uncertain == "ignore":
        valid = (predictions != UNCERTAIN) & (references != UNCERTAIN)
    positive = [POSITIVE, UNCERTAIN] if uncertain == "positive" else [POSITIVE]
    predicted = np.isin(predictions, positive) & valid
    expected = np.isin(references, positive) & valid
    if uncertain == "class":
        columns = [i for i, n in enumerate(names) if n != "no_finding"]
        predicted = np.hstack([predicted, predictions[:, columns] == UNCERTAIN])
        expected = np.hstack([expected, references[:, columns] == UNCERTAIN])
    return np.stack([predicted & expected, predicted, expected], axis=2).astype(float)
