"""A linear classifier for findings, based on frozen features.

`python -m xraygpt.probe … --save FILE` fits it, `model.finding_head: FILE` loads it, and a plan
(`run.task.plan: {by: head}`) passes its findings to the LLM in the prompt, as in PromptMRG (Jin et
al. 2024, AAAI). This bypasses the few image tokens of a Q-Former.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from xraygpt.common.errors import WeightsError
from xraygpt.models.findings import FindingScores, HeldOutCounts
from xraygpt.models.vision.base import VisionEncoder, pooled

_KIND = "xraygpt finding head"


class FindingHead(nn.Module):
    """Logistic regressions for findings and codes on the mean and maximum of each feature.

    The findings determine what the plan contains; the codes determine its wording, with side and
    location.

    Attributes:
        names: F findings from a vocabulary.
        codes: K codes as in the corpus, such as ``pulmonary atelectasis/base/left``.
        encoder: Digest of the encoder whose features the head was fitted on
            (`VisionEncoder.digest`).
        weight: (F + K, 2 D) float32.
        bias: (F + K,) float32.
        threshold: (F,) float32, the probabilities from which findings count as present, in [0, 1].
        counts: How often the head was right on held-out images, for the findings measured.
    """

    weight: Tensor
    bias: Tensor
    threshold: Tensor

    def __init__(
        self,
        names: Sequence[str],
        codes: Sequence[str],
        *,
        weight: Tensor,
        bias: Tensor,
        threshold: Tensor,
        encoder: str,
        counts: Mapping[str, HeldOutCounts] | None = None,
    ) -> None:
        super().__init__()
        self.counts = dict(counts or {})
        self.names, self.codes, self.encoder = list(names), list(codes), encoder
        for name, tensor in (("weight", weight), ("bias", bias), ("threshold", threshold)):
            self.register_buffer(name, tensor.float(), persistent=False)

    @torch.no_grad()
    def forward(self, features: Tensor, images: Sequence[int]) -> Tensor:
        """Compute (B, F + K) float32 probabilities per study from (N, L, D) patch tokens.

        Args:
            features: Patch tokens of all images, ordered by study.
            images: Number of images of each of the B studies, at least 1.
        """
        image_features = pooled(features.float())
        mean = torch.stack([part.mean(dim=0) for part in image_features.split(list(images))])
        return (mean @ self.weight.T + self.bias).sigmoid()

    def score(self, features: Tensor, images: Sequence[int]) -> FindingScores:
        """Compute the probabilities of findings and codes; arguments as in `forward`."""
        probabilities = self(features, images)
        count = len(self.names)
        return FindingScores(
            names=tuple(self.names),
            thresholds=tuple(self.threshold.tolist()),
            probabilities=probabilities[:, :count],
            codes=tuple(self.codes),
            code_probabilities=probabilities[:, count:],
            counts=tuple(self.counts.get(name) for name in self.names),
        )

    def digest(self) -> str:
        """Compute the SHA-256 of the names, the codes and all numbers."""
        sha = hashlib.sha256(json.dumps([self.names, self.codes, self.encoder]).encode())
        for tensor in (self.weight, self.bias, self.threshold):
            sha.update(tensor.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    def save(self, path: Path) -> None:
        """Write the head to a file atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.part")
        about = {
            "kind": _KIND,
            "findings": json.dumps(self.names),
            "codes": json.dumps(self.codes),
            "encoder": self.encoder,
            "held_out": json.dumps(self.counts),
        }
        tensors = {"weight": self.weight, "bias": self.bias, "threshold": self.threshold}
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, temporary, metadata=about)
        temporary.replace(path)


def load_configured_head(path: Path | None, encoder: VisionEncoder | None) -> FindingHead | None:
    """Load the head named in a configuration; None if `path` is None.

    Raises:
        WeightsError: The head cannot be loaded (see `load_head`), or the model has no encoder.
    """
    if path is None:
        return None
    if encoder is None:
        raise WeightsError("model.finding_head needs an encoder, but features are precomputed")
    return load_head(path, encoder.digest())


def load_head(path: Path, encoder: str) -> FindingHead:
    """Load a head written by `FindingHead.save`.

    Args:
        path: The file.
        encoder: Digest of the encoder that computes the head's input.

    Raises:
        WeightsError: The file is missing, damaged, of another kind, or fitted on features of
            another encoder.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("kind") != _KIND:
                raise ValueError("it was not written by `xraygpt.probe --save`")
            names, codes = json.loads(about["findings"]), json.loads(about["codes"])
            tensors = {n: file.get_tensor(n) for n in ("weight", "bias", "threshold")}
            held_out = json.loads(about.get("held_out", "{}"))
            counts = {name: HeldOutCounts(*numbers) for name, numbers in held_out.items()}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"model.finding_head: {path} cannot be read: {error}") from None
    if about.get("encoder") != encoder:
        raise WeightsError(
            f"model.finding_head: {path} was fitted on features of another encoder than "
            "model.vit_model: run `python -m xraygpt.probe … --save` again"
        )
    return FindingHead(names, codes, **tensors, encoder=about["encoder"], counts=counts)
