"""YAML keys of the XrayGPT lineage that no longer mean anything, or have moved: one table.

Their files load unchanged. A key listed here is named once in a warning; anything else is strict.
"""

from __future__ import annotations

import fnmatch
from typing import Any

IGNORED = {
    "run.dist_url": "read from torchrun",
    "run.world_size": "read from torchrun",
    "run.distributed": "read from torchrun",
    "run.dist_backend": "chosen by the device",
    "run.evaluate": "evaluate.py is its own command",
    "run.test_splits": "evaluate.py takes run.eval_split",
    "run.use_dist_eval_sampler": "evaluation never drops or repeats a study",
    "model.drop_path_rate": "the vision encoder is frozen",
    "model.prompt": "see model.prompt_path",
    "model.img_size": "see model.image_size",
    "model.preprocess": "processors stand under datasets.<label>",
    "datasets.*.data_type": "the builder knows",
}


def modernise(tree: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """`tree` without ignored keys and with moved ones in place; `notes` names them once."""
    dropped: list[str] = []

    def walk(node: Any, where: str) -> Any:
        if not isinstance(node, dict):
            return node
        result = {}
        for key, value in node.items():
            here = f"{where}.{key}" if where else str(key)
            if any(fnmatch.fnmatchcase(here, pattern) for pattern in IGNORED):
                dropped.append(here)
            elif fnmatch.fnmatchcase(here, "datasets.*.build_info") and isinstance(value, dict):
                result.update(value)
            else:
                result[key] = walk(value, here)
        return result

    modern: dict[str, Any] = walk(tree, "")
    _move_agreement(modern, notes)
    if dropped:
        notes.append(f"keys that no longer mean anything are ignored: {', '.join(dropped)}")
    return modern


def _move_agreement(tree: dict[str, Any], notes: list[str]) -> None:
    """`run.task.generate.agreement` of earlier versions is the plan's own setting now."""
    run = tree.get("run")
    task = run.get("task") if isinstance(run, dict) else None
    generate = task.get("generate") if isinstance(task, dict) else None
    if not isinstance(task, dict) or not isinstance(generate, dict):
        return
    if "agreement" not in generate:
        return
    weight = generate.pop("agreement")
    plan = task.get("plan")
    if isinstance(plan, dict):
        plan.setdefault("agreement", weight)
    notes.append("run.task.generate.agreement is run.task.plan.agreement now")
