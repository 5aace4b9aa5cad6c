"""Renames weights by rules and loads them strictly, so that every key is accounted for."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from xraygpt.common.errors import WeightsError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule:
    """A rule for renaming keys that fully match a pattern.

    Attributes:
        pattern: A regular expression.
        to: The new name, a template with the pattern's groups; None drops the key.
        why: The reason for dropping the key.
    """

    pattern: str
    to: str | None
    why: str = ""

    def __str__(self) -> str:
        """Return the rule as written in a manifest."""
        return f"{self.pattern} -> {self.to if self.to is not None else f'left out: {self.why}'}"


@dataclass
class ConvertedState:
    """Result of renaming the keys in a file.

    Attributes:
        state: The tensors under their new names.
        dropped: Maps a reason to the keys dropped for it.
        unknown: Keys that no rule matches.
        applied: Maps a rule as text to the number of keys it matched.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    applied: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Return the numbers of used and dropped keys, with reasons, in one line."""
        parts = [f"{len(self.state)} used"]
        parts += [f"{len(keys)} skipped ({why})" for why, keys in self.dropped.items()]
        return ", ".join(parts)

    def check_and_log(self, source: Path, kind: str) -> None:
        """Write the numbers of keys to the log.

        Raises:
            WeightsError: There are unknown keys.
        """
        if self.unknown:
            some = ", ".join(self.unknown[:5])
            raise WeightsError(
                f"{source}: {len(self.unknown)} keys are unknown in files of {kind}: {some}"
                f"{', …' if len(self.unknown) > 5 else ''}"
            )
        log.debug("%s: %s", source, self)


def apply_rules(rules: Sequence[Rule], state: Mapping[str, Tensor]) -> ConvertedState:
    """Apply the first matching rule to each key, after removing the prefix `module.`."""
    converted = ConvertedState()
    for name, tensor in state.items():
        for rule in rules:
            match = re.fullmatch(rule.pattern, name.removeprefix("module."))
            if match is None:
                continue
            converted.applied[str(rule)] += 1
            if rule.to is None:
                converted.dropped.setdefault(rule.why, []).append(name)
                break
            target = match.expand(rule.to)
            if target in converted.state:
                converted.unknown.append(f"{name} (a second {target})")
            converted.state[target] = tensor
            break
        else:
            converted.unknown.append(name)
    return converted


def load_exactly(
    model: nn.Module,
    state: dict[str, Tensor],
    source: Path,
    *,
    required: set[str],
    fresh: tuple[str, ...] = (),
) -> list[str]:
    """Copy `state` into `model` after checking all keys on both sides.

    Args:
        model: Module with the parameters and buffers named in `state`.
        state: The saved tensors.
        source: The file, named in messages.
        required: Names that `state` must contain, except those that match `fresh`.
        fresh: Parts of names that `state` may lack because they are newly initialised (LoRA).

    Returns:
        The required names that `state` lacks, whose values in the model are kept.

    Raises:
        WeightsError: A key is unknown or missing, or a tensor has another shape.
    """
    current = model.state_dict()
    mismatched = _shape_mismatches(state, current)
    unknown = sorted(set(state) - set(current))
    absent = sorted(required - set(state))
    missing = [name for name in absent if not any(part in name for part in fresh)]
    if mismatched or unknown or missing:
        raise WeightsError(_mismatch_message(source, mismatched, unknown, missing))
    # In a model on the meta device, tensors are assigned, not copied, so the file stays mapped.
    on_meta = any(t.is_meta for t in current.values())
    if on_meta:
        state = {name: t.to(current[name].dtype) for name, t in state.items()}
    model.load_state_dict(state, strict=False, assign=on_meta)
    return absent


def _shape_mismatches(state: Mapping[str, Tensor], current: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name}: {tuple(t.shape)} in the file, {tuple(current[name].shape)} in the model"
        for name, t in state.items()
        if name in current and current[name].shape != t.shape
    ]


def _mismatch_message(
    source: Path, mismatched: list[str], unknown: list[str], missing: list[str]
) -> str:
    lines = mismatched[:5] + [f"unknown {n}" for n in unknown[:5]]
    lines += [f"missing {n}" for n in missing[:5]]
    more = len(mismatched) + len(unknown) + len(missing) - len(lines)
    tail = f"; and {more} more" if more > 0 else ""
    has_lora = any("lora_" in n for n in unknown)
    hint = " It has LoRA weights: set model.lora.r." if has_lora else ""
    return (
        f"{source} was saved from another model: {'; '.join(lines)}{tail}.{hint} "
        "Use the configuration it was trained with (config.yaml in the same folder)"
    )
