"""YAML keys from XrayGPT and earlier versions that were moved or no longer have an effect.

XrayGPT's own YAML files load unchanged. Warnings list the keys in these tables that a YAML file
uses; any other unknown key is an error.
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
    "model.preprocess": "processors are set in the section of each corpus under datasets",
    "datasets.*.data_type": "the builder knows",
}
RENAMED = {
    "datasets.*.tell_findings": "findings_in_prompt",
    "datasets.*.tell_where": "locations_in_prompt",
    "datasets.*.tell_images": "codes_as_image",
}


def modernise(tree: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return `tree` without ignored keys and with renamed or moved keys in their new places.

    Args:
        tree: A whole configuration.
        notes: List to which warnings for the user are appended.
    """
    ignored: list[str] = []
    renamed: list[str] = []

    def entry(key: Any, value: Any, path: str, result: dict[Any, Any]) -> None:
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in IGNORED):
            ignored.append(path)
        elif fnmatch.fnmatchcase(path, "datasets.*.build_info") and isinstance(value, dict):
            result.update(value)
        else:
            new = next((n for old, n in RENAMED.items() if fnmatch.fnmatchcase(path, old)), None)
            if new is not None:
                renamed.append(f"{path} is now {new}")
            result[key if new is None else new] = walk(value, path)

    def walk(node: Any, where: str) -> Any:
        if not isinstance(node, dict):
            return node
        result: dict[Any, Any] = {}
        for key, value in node.items():
            entry(key, value, f"{where}.{key}" if where else str(key), result)
        return result

    modern: dict[str, Any] = walk(tree, "")
    _move_agreement(modern, notes)
    if renamed:
        notes.append(f"these keys have new names; the old ones still work: {', '.join(renamed)}")
    if ignored:
        notes.append(f"these keys no longer have an effect and are ignored: {', '.join(ignored)}")
    return modern


def _move_agreement(tree: dict[str, Any], notes: list[str]) -> None:
    """Move `run.task.generate.agreement` from earlier versions to `run.task.plan.agreement`."""
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
    notes.append("run.task.generate.agreement is now run.task.plan.agreement")
