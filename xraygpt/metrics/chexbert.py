"""CheXbert: 14 findings of a report read by a BERT, and F1 between the labels of two reports.

The network is a BERT whose vector of the first token feeds 13 heads of four classes and one, for
"no finding", of two (Smit et al. 2020, "CheXbert: Combining Automatic Labelers and Expert
Annotations for Accurate Radiology Report Labeling Using BERT"). The scores need label arrays
alone; weights only where a text is to be labelled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from xraygpt.common.errors import InputError, WeightsError
from xraygpt.metrics.statistics import Score, ratio_score

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
#: The five that the CheXpert competition ranks by (Irvin et al. 2019).
FIVE: tuple[str, ...] = (
    "cardiomegaly",
    "edema",
    "consolidation",
    "atelectasis",
    "pleural_effusion",
)
BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(4)  # as the heads number their classes
Policy = Literal["positive", "negative", "ignore", "class"]

_BATCH = 32
_LONGEST = 512  # tokens
# A buffer that old versions of transformers saved with the weights.
_BUFFERS = frozenset({"bert.embeddings.position_ids", "bert.embeddings.token_type_ids"})


class CheXbert:
    """The labeller, on the weights its authors published or on others of that layout."""

    def __init__(self, checkpoint: Path, bert: Path, *, device: str = "cpu") -> None:
        """Build the network and fill it.

        Args:
            checkpoint: ``chexbert.pth``: a dict whose ``model_state_dict`` has keys such as
                ``module.bert.…`` and ``module.linear_heads.0.weight``. Read without running any
                code it may hold.
            bert: Folder with ``config.json`` and the vocabulary of the BERT it was trained from
                (for the published file bert-base-uncased); its weights are not used.
            device: Torch device.

        Raises:
            InputError: If a file or folder does not exist.
            WeightsError: If the checkpoint cannot be read, or its names or shapes are not those of
                this BERT with 14 heads.
        """
        import torch
        from transformers import AutoTokenizer, BertConfig, BertModel

        if not (bert / "config.json").is_file():
            raise InputError(f"{bert}: no config.json; give a folder of a BERT with its vocabulary")
        config = BertConfig.from_pretrained(bert, local_files_only=True)
        self._tokenizer = AutoTokenizer.from_pretrained(bert, local_files_only=True)
        heads = [torch.nn.Linear(config.hidden_size, 4) for _ in FINDINGS[:-1]]
        heads.append(torch.nn.Linear(config.hidden_size, 2))
        self._network = torch.nn.ModuleDict(
            {"bert": BertModel(config), "linear_heads": torch.nn.ModuleList(heads)}
        )
        _fill(self._network, _state(checkpoint), checkpoint)
        self._device = torch.device(device)
        self._network.to(self._device).eval()
        self._longest = min(_LONGEST, config.max_position_embeddings)

    def label(self, reports: Sequence[str]) -> np.ndarray:
        """Label n reports.

        Returns:
            (n, 14) int64 of `BLANK`, `POSITIVE`, `NEGATIVE` and `UNCERTAIN`, columns as
            `FINDINGS`; "no finding" is blank or positive.
        """
        labels = np.zeros((len(reports), len(FINDINGS)), dtype=np.int64)
        for rows, vectors in self._passes(reports):
            logits = [head(vectors) for head in self._heads()]
            labels[rows] = np.stack([one.argmax(1).cpu().numpy() for one in logits], axis=1)
        return labels

    def embed(self, reports: Sequence[str]) -> np.ndarray:
        """(n, hidden size) float32 vectors of n reports, that of the first token."""
        found = np.zeros((len(reports), self._heads()[0].in_features), dtype=np.float32)
        for rows, vectors in self._passes(reports):
            found[rows] = vectors.cpu().numpy()
        return found

    def logits(self, reports: Sequence[str]) -> list[np.ndarray]:
        """Of each head (n, 4), of the last (n, 2), float32."""
        found = [np.zeros((len(reports), h.out_features), np.float32) for h in self._heads()]
        for rows, vectors in self._passes(reports):
            for out, head in zip(found, self._heads(), strict=True):
                out[rows] = head(vectors).cpu().numpy()
        return found

    def _heads(self) -> list[Any]:
        return list(self._network["linear_heads"].children())

    def _passes(self, reports: Sequence[str]) -> Any:
        """Yield the places of some reports of like length and their vectors (b, hidden size)."""
        import torch

        if not reports:
            return
        plain = [" ".join(r.split()) for r in reports]
        encoded = self._tokenizer(plain, truncation=True, max_length=self._longest)["input_ids"]
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


def _state(checkpoint: Path) -> dict[str, Any]:
    """Weights by name, without the prefix that training on several GPUs leaves."""
    import torch

    if not checkpoint.is_file():
        raise InputError(
            f"{checkpoint}: no such file; chexbert.pth is published by the authors of CheXbert "
            "(github.com/stanfordmlgroup/CheXbert)"
        )
    try:
        read = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in a dozen ways
        raise WeightsError(
            f"{checkpoint}: not a checkpoint of tensors alone ({error}); fetch chexbert.pth again"
        ) from error
    state = read.get("model_state_dict", read) if isinstance(read, Mapping) else None
    if not isinstance(state, Mapping) or not all(torch.is_tensor(v) for v in state.values()):
        raise WeightsError(f"{checkpoint}: no model_state_dict in it; give chexbert.pth itself")
    named = {str(k).removeprefix("module."): v for k, v in state.items()}
    return {k: v for k, v in named.items() if k not in _BUFFERS}


def _fill(network: Any, state: Mapping[str, Any], checkpoint: Path) -> None:
    """Copy the weights after all names and shapes were compared."""
    own = network.state_dict()
    problems = [f"missing {k}" for k in own if k not in state]
    problems += [f"unexpected {k}" for k in state if k not in own]
    problems += [
        f"{k} is {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (" …" if len(problems) > 5 else "")
        raise WeightsError(
            f"{checkpoint}: {len(problems)} weights do not fit this BERT with 14 heads: {shown}. "
            "Give the BERT folder it was trained from"
        )
    network.load_state_dict(dict(state))


def chexbert_scores(
    predicted: np.ndarray,
    true: np.ndarray,
    *,
    uncertain: Policy = "positive",
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """F1 of the labels of predictions against those of references.

    Only affirmed findings count; a class that neither side holds has F1 0 in a macro mean, as
    scikit-learn has it.

    Args:
        predicted: (n, 14) labels, see `CheXbert.label`.
        true: (n, 14) labels.
        uncertain: What a doubted finding counts as: ``positive``, ``negative``, ``ignore`` (a cell
            that either side doubts is left out) or ``class`` (each finding is scored twice, as
            affirmed and as doubted; both enter the means; "no finding" cannot be doubted).
        groups: Per sample its study, which intervals resample; None takes samples as independent.

    Returns:
        ``chexbert_14_micro_F1``, ``chexbert_14_macro_F1``, ``chexbert_5_micro_F1`` and
        ``chexbert_5_macro_F1``, in [0, 1].

    Raises:
        InputError: If the arrays are not labels of the same n reports, or the policy is unknown.
    """
    if uncertain not in get_args(Policy):
        raise InputError(f"uncertain={uncertain!r}: choose one of {', '.join(get_args(Policy))}")
    predicted, true = _checked(predicted, "predicted"), _checked(true, "true")
    if len(predicted) != len(true):
        raise InputError(f"{len(predicted)} predicted rows for {len(true)} true ones")
    scores = []
    for size, names in (("14", FINDINGS), ("5", FIVE)):
        columns = [FINDINGS.index(n) for n in names]
        counts = _counts(predicted[:, columns], true[:, columns], names, uncertain)
        signature = f"CheXbert, {size} findings, uncertain: {uncertain}"
        scores += [
            ratio_score(f"chexbert_{size}_micro_F1", counts.sum(axis=1), _f1, signature, groups),
            ratio_score(
                f"chexbert_{size}_macro_F1",
                counts.reshape(len(counts), 3 * counts.shape[1]),
                _macro,
                signature,
                groups,
            ),
        ]
    return scores


def _checked(labels: np.ndarray, which: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != len(FINDINGS):
        raise InputError(f"{which} labels have shape {labels.shape}; (n, {len(FINDINGS)}) is meant")
    if not np.isin(labels, range(4)).all():
        held = ", ".join(map(str, np.unique(labels)))
        raise InputError(
            f"{which} labels hold {held}; meant are 0 blank, 1 positive, 2 negative, 3 uncertain"
        )
    return labels


def _counts(
    predicted: np.ndarray, true: np.ndarray, names: Sequence[str], uncertain: Policy
) -> np.ndarray:
    """(n, classes, 3) float64: hit, said and true of each class."""
    kept = np.ones(predicted.shape, dtype=bool)
    if uncertain == "ignore":
        kept = (predicted != UNCERTAIN) & (true != UNCERTAIN)
    held = [POSITIVE, UNCERTAIN] if uncertain == "positive" else [POSITIVE]
    said, meant = np.isin(predicted, held) & kept, np.isin(true, held) & kept
    if uncertain == "class":
        doubtable = [i for i, n in enumerate(names) if n != "no_finding"]
        said = np.hstack([said, predicted[:, doubtable] == UNCERTAIN])
        meant = np.hstack([meant, true[:, doubtable] == UNCERTAIN])
    return np.stack([said & meant, said, meant], axis=2).astype(float)


def _f1(counts: np.ndarray) -> float:
    return float(2 * counts[0] / max(counts[1] + counts[2], 1))


def _macro(counts: np.ndarray) -> float:
    return float(np.mean([_f1(one) for one in counts.reshape(-1, 3)]))
