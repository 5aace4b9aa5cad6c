"""Weights under other names: rules, what became of each key, and loading that leaves none out."""

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
    """What becomes of keys that a pattern matches as a whole.

    Attributes:
        pattern: Regular expression over the key.
        to: Its name here, with the pattern's groups; None leaves it out.
        why: Said of keys that are left out.
    """

    pattern: str
    to: str | None
    why: str = ""

    def __str__(self) -> str:
        """As it stands in a manifest."""
        return f"{self.pattern} -> {self.to if self.to is not None else f'left out: {self.why}'}"


@dataclass
class Account:
    """What became of each key of a file.

    Attributes:
        state: Tensors under our names.
        dropped: Reason -> keys left out for it.
        unknown: Keys that no rule matches.
        applied: Rule, written out -> keys it matched.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    applied: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """One line: how many were taken, dropped and why."""
        parts = [f"{len(self.state)} taken"]
        parts += [f"{len(keys)} left out ({why})" for why, keys in self.dropped.items()]
        return ", ".join(parts)

    def close(self, source: Path, kind: str) -> None:
        """Write the account into the log.

        Raises:
            WeightsError: It holds unknown keys.
        """
        if self.unknown:
            some = ", ".join(self.unknown[:5])
            raise WeightsError(
                f"{source}: {len(self.unknown)} keys are none of {kind}'s: {some}"
                f"{', …' if len(self.unknown) > 5 else ''}"
            )
        log.info("%s: %s", source, self)


def apply_rules(rules: Sequence[Rule], state: Mapping[str, Tensor]) -> Account:
    """What the first rule that matches makes of each key; the prefix `module.` is taken off."""
    account = Account()
    for name, tensor in state.items():
        for rule in rules:
            match = re.fullmatch(rule.pattern, name.removeprefix("module."))
            if match is None:
                continue
            account.applied[str(rule)] += 1
            if rule.to is None:
                account.dropped.setdefault(rule.why, []).append(name)
                break
            target = match.expand(rule.to)
            if target in account.state:
                account.unknown.append(f"{name} (a second {target})")
            account.state[target] = tensor
            break
        else:
            account.unknown.append(name)
    return account


def load_exactly(
    model: nn.Module,
    state: dict[str, Tensor],
    source: Path,
    *,
    required: set[str],
    fresh: tuple[str, ...] = (),
) -> list[str]:
    """Copy `state` into `model`; every key on both sides is accounted for.

    Args:
        model: Parameters and buffers with the names of `state`.
        state: What was saved.
        source: Named in messages.
        required: Names that `state` must hold, but for the fresh ones.
        fresh: Parts of names that `state` may lack because they begin anew, such as LoRA.

    Returns:
        Names that were left as they are because they are fresh.

    Raises:
        WeightsError: A key is unknown, missing, or of another shape.
    """
    own = model.state_dict()
    wrong = [
        f"{name}: {tuple(t.shape)} in the file, {tuple(own[name].shape)} in the model"
        for name, t in state.items()
        if name in own and own[name].shape != t.shape
    ]
    unknown = sorted(set(state) - set(own))
    absent = sorted(required - set(state))
    missing = [name for name in absent if not any(part in name for part in fresh)]
    if wrong or unknown or missing:
        lines = wrong[:5] + [f"unknown {n}" for n in unknown[:5]]
        lines += [f"missing {n}" for n in missing[:5]]
        more = len(wrong) + len(unknown) + len(missing) - len(lines)
        tail = f"; and {more} more" if more > 0 else ""
        lora = (
            " It holds LoRA weights: set model.lora.r."
            if any("lora_" in n for n in unknown)
            else ""
        )
        raise WeightsError(
            f"{source} was saved from another model: {'; '.join(lines)}{tail}.{lora} "
            "Use the configuration it was trained with (config.yaml beside it)"
        )
    # Weights of a model without memory (meta) are put in place, not copied: the file stays mapped.
    empty = any(t.is_meta for t in own.values())
    if empty:
        state = {name: t.to(own[name].dtype) for name, t in state.items()}
    model.load_state_dict(state, strict=False, assign=empty)
    return absent
