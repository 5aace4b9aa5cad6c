"""A linear head on frozen features: how likely each finding is in an image.

`python -m xraygpt.probe … --save FILE` fits it, `model.finding_head: FILE` takes it, and a plan
(`run.task.plan: {by: head}`) asks it before the LLM writes. What the features say of a finding then
need not pass the few tokens of a Q-Former. A classifier's findings in the question of a report
model are the idea of PromptMRG (Jin et al. 2024, AAAI).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from xraygpt.common.errors import WeightsError
from xraygpt.models.vision.base import VisionEncoder, pooled

_KIND = "xraygpt finding head"


class FindingHead(nn.Module):
    """Logistic regressions on the mean and the greatest of each feature: of findings, and of codes.

    Findings are what is decided; codes are how it is said, with side and place.

    Attributes:
        names: F findings of a vocabulary.
        codes: K codes as people wrote them, ``pulmonary atelectasis/base/left``.
        encoder: Digest of the encoder whose features it reads (`VisionEncoder.digest`).
        weight: (F + K, 2 D) float32.
        bias: (F + K,) float32.
        threshold: (F,) float32, the P from which on a finding counts as there, in [0, 1].
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
    ) -> None:
        super().__init__()
        self.names, self.codes, self.encoder = list(names), list(codes), encoder
        for name, tensor in (("weight", weight), ("bias", bias), ("threshold", threshold)):
            self.register_buffer(name, tensor.float(), persistent=False)

    @torch.no_grad()
    def forward(self, features: Tensor, images: Sequence[int]) -> Tensor:
        """(N, L, D) patch tokens of all images -> (B, F + K) float32 probabilities of each study.

        Args:
            features: Of the studies' images, one study after the other.
            images: B numbers of images; they add up to N, and each is at least 1.
        """
        each = pooled(features.float())
        mean = torch.stack([part.mean(dim=0) for part in each.split(list(images))])
        return (mean @ self.weight.T + self.bias).sigmoid()

    def digest(self) -> str:
        """SHA-256 over names, codes and all numbers."""
        sha = hashlib.sha256(json.dumps([self.names, self.codes, self.encoder]).encode())
        for tensor in (self.weight, self.bias, self.threshold):
            sha.update(tensor.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    def save(self, path: Path) -> None:
        """Write the file, at once or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.part")
        about = {
            "kind": _KIND,
            "findings": json.dumps(self.names),
            "codes": json.dumps(self.codes),
            "encoder": self.encoder,
        }
        tensors = {"weight": self.weight, "bias": self.bias, "threshold": self.threshold}
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, aside, metadata=about)
        aside.replace(path)


def head_of(path: Path | None, encoder: VisionEncoder | None) -> FindingHead | None:
    """The head of a configuration, if it names one.

    Raises:
        WeightsError: As `load_head`; or there is no encoder that it could have been fitted on.
    """
    if path is None:
        return None
    if encoder is None:
        raise WeightsError("model.finding_head reads an encoder's features, not pre-computed ones")
    return load_head(path, encoder.digest())


def load_head(path: Path, encoder: str) -> FindingHead:
    """A head that `FindingHead.save` wrote.

    Args:
        path: The file.
        encoder: Digest of the encoder whose features it is to read.

    Raises:
        WeightsError: Absent, damaged, no such file, or fitted on another encoder's features.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("kind") != _KIND:
                raise ValueError("it is none that `xraygpt.probe --save` wrote")
            names, codes = json.loads(about["findings"]), json.loads(about["codes"])
            tensors = {n: file.get_tensor(n) for n in ("weight", "bias", "threshold")}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(f"model.finding_head: {path} cannot be read: {error}") from None
    if about.get("encoder") != encoder:
        raise WeightsError(
            f"model.finding_head: {path} was fitted on features of another encoder than "
            "model.vit_model names now: run `python -m xraygpt.probe … --save` anew"
        )
    return FindingHead(names, codes, **tensors, encoder=about["encoder"])
