"""`parts.json`: which encoder, LLM and text settings a checkpoint's weights were trained with."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xraygpt.common.errors import WeightsError
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.vision.run_encoder import RUN_PREFIX

log = logging.getLogger(__name__)

PARTS = "parts.json"


def encoder_digest(name: str, encoder: VisionEncoder | None, *, frozen: bool) -> dict[str, str]:
    """Return the digest of a frozen encoder that was trained in a run; otherwise an empty dict.

    The run may be trained again in the same folder, so its name does not identify the weights.
    """
    if encoder is None or not frozen or not name.startswith(RUN_PREFIX):
        return {}
    return {"vision": encoder.digest()}


def write_parts(folder: Path, parts: Mapping[str, Any]) -> None:
    """Write the file next to a checkpoint's weights."""
    (folder / PARTS).write_text(json.dumps(parts, indent=1), encoding="utf-8")


def read_parts(folder: Path) -> dict[str, Any] | None:
    """Read the file; None if there is none, as with weights from other projects."""
    if not (folder / PARTS).is_file():
        return None
    parts: dict[str, Any] = json.loads((folder / PARTS).read_text(encoding="utf-8"))
    return parts


def check_encoder(folder: Path, digest: Mapping[str, str]) -> None:
    """Refuse weights that were trained on the features of another encoder.

    Args:
        folder: The folder that contains the weights.
        digest: The `encoder_digest` of the model that loads the weights.

    Raises:
        WeightsError: The encoder's run has been trained again since.
    """
    saved = read_parts(folder)
    if not digest or saved is None:
        return
    if saved.get("vision") != digest["vision"]:
        raise WeightsError(
            f"{folder} was trained on the features of another encoder than model.vit_model is now: "
            "retrain this model, or name the encoder's old run or checkpoint"
        )


def check_parts(folder: Path, own: Mapping[str, Any], llm: str | None) -> None:
    """Refuse checkpoints for another LLM or encoder; warn about other text or LoRA settings.

    Args:
        folder: The checkpoint.
        own: What `write_parts` would write for the model that loads it.
        llm: The value of `model.llama_model`, used in the message.

    Raises:
        WeightsError: The checkpoint was trained with another LLM or encoder.
    """
    saved = read_parts(folder)
    if saved is None:
        return
    if saved["llm"] != own["llm"]:
        raise WeightsError(
            f"{folder} was trained with another LLM than model.llama_model ({llm}), so its weights "
            "are useless here. If that LLM was retrained, retrain this model, or set llama_model "
            "to the old run"
        )
    check_encoder(folder, {k: v for k, v in own.items() if k == "vision"})
    changed = [key for key in own if saved.get(key) != own[key]]
    if "vit_model" in changed and "vision" not in changed:
        changed.remove("vit_model")  # the same weights at another path
    if changed:
        log.warning(
            "%s was trained with %s",
            folder,
            ", ".join(f"{k} {saved.get(k)!r} (here {own[k]!r})" for k in changed),
        )
