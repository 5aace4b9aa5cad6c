"""Lists everything that a YAML file needs and this machine lacks, before anything is built.

Importing the models takes seconds, so `load_complete` first reads the YAML file alone
(`quick_check`). After the import, the Configs themselves are asked (`Plugin.Config.missing`), which
also covers plug-ins. Both use `common.requirements`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from xraygpt.common import llama_factory, model_keys
from xraygpt.common import requirements as needs
from xraygpt.common.config_reading import PRESETS, read_yaml
from xraygpt.common.errors import InputError
from xraygpt.common.project_paths import InProject, find_project
from xraygpt.common.requirements import FrozenParts, Missing

if TYPE_CHECKING:
    from xraygpt.experiment import Experiment

log = logging.getLogger(__name__)

Need = Literal["all", "model", "corpus"]
"""What a command needs: everything, only the model, or only the corpus. The rest is not listed for
`model`; for `corpus`, it is listed but does not stop the command."""

# Encoders without weights of their own; a test compares them with the registry.
UNWEIGHTED = (
    "eva_clip_g", "medclip_swin", "medclip_resnet50", "biomedclip", "torchxrayvision", "timm/",
)  # fmt: skip
_PATHS = (
    "ckpt", "vit_ckpt", "q_former_model", "llama_model", "finding_head", "prompt_path", "vit_model",
)  # fmt: skip
_CAPTION_BUILDERS = ("caption_folder", "openi", "mimic", "roco")
_TABLE_BUILDERS = ("records", "planted_lesions")
_ALIGNMENT = ("qformer_alignment", "blip2_qformer")
_TRAINS_ENCODER = ("image_text", "medclip", "language_model")
_ARCHS = ("xraygpt", "mini_gpt4", "xraygpt_instruct", "instruct_blip", *_ALIGNMENT)
# Raised for files that are not valid configurations, including values of the wrong type.
_INVALID = (
    InputError, OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError, AttributeError,
)  # fmt: skip
_GPU_FILES = ("nvidia[0-9]*", "dxg", "kfd")  # in /dev: CUDA, CUDA in WSL, ROCm


def load_complete(
    schema: Literal["Training", "Evaluation"],
    path: Path,
    options: Sequence[str],
    *,
    need: Need = "all",
    device: str = "",
    check: bool = True,
) -> Any:
    """Load a configuration, and check that everything it needs is there.

    Args:
        schema: The kind of configuration.
        path: The YAML file.
        options: Command-line overrides.
        need: What the command needs.
        device: Device from the command line; empty uses `run.device`, if any.
        check: Whether to check; otherwise the configuration is only loaded.

    Returns:
        The checked `Training` or `Evaluation`.

    Raises:
        InputError: Something is missing; the message lists everything, with remedies.
        ConfigError: The configuration has problems.
    """
    if check:
        refuse(path, quick_check(path, options, need, device))
    from xraygpt import experiment as schemas  # imports torch
    from xraygpt.common.config import load

    experiment = load(getattr(schemas, schema), path, options)
    if check:
        refuse(path, missing_parts(experiment, need, device))
    return experiment


def names_analysis(path: Path, options: Sequence[str]) -> bool:
    """Check whether a YAML file analyses studies (`run.analysis`) instead of using a model."""
    try:
        layers = [read_yaml(path, {}, lambda *_: None), OmegaConf.from_dotlist(list(options))]
        return OmegaConf.select(OmegaConf.merge(*layers), "run.analysis") is not None
    except _INVALID:
        return False


def names_prediction(path: Path, options: Sequence[str]) -> bool:
    """Check whether a YAML file is one of LLaMA-Factory that only predicts (`do_predict`)."""
    try:
        file = read_yaml(path, {}, lambda *_: None)
        tree: Any = OmegaConf.merge(file, OmegaConf.from_dotlist(list(options)))
        return llama_factory.is_llama_factory(file) and llama_factory.wants_prediction(tree)
    except _INVALID:
        return False


def load_analysis(path: Path, options: Sequence[str], *, check: bool = True) -> Any:
    """Load a `StudyAnalysis`, and check that everything it needs is there.

    Raises:
        InputError: Something is missing; the message lists everything, with remedies.
        ConfigError: The configuration has problems.
    """
    from xraygpt.common.config import load
    from xraygpt.studies.base import StudyAnalysis

    analysis = load(StudyAnalysis, path, options)
    if check:
        refuse(path, analysis.run.missing("run"))
    return analysis


def refuse(source: Path, missing: Sequence[Missing]) -> None:
    """Raise an error that lists everything in `missing` if the command needs any of it."""
    keys: dict[Missing, list[str]] = {}  # several datasets may read the same folder
    for m in missing:
        keys.setdefault(replace(m, key=""), []).append(m.key)
    found = [replace(m, key=", ".join(names)) for m, names in keys.items()]
    lines = [f"  {'' if m.blocking else '(does not stop this command) '}{m}" for m in found]
    if any(m.blocking for m in missing):
        count = "1 thing is" if len(found) == 1 else f"{len(found)} things are"
        raise InputError("\n".join([f"{count} missing for {source}:", *lines]))


def missing_parts(experiment: Experiment, need: Need = "all", device: str = "") -> list[Missing]:
    """Ask the Configs of an experiment what is missing.

    Args:
        experiment: A training or evaluation configuration.
        need: What the command needs.
        device: Device from the command line; empty uses `run.device`, if any.
    """
    corpora: dict[str, Any] = {} if need == "model" else experiment.datasets
    data = [m for label, c in corpora.items() for m in c.missing(f"datasets.{label}")]
    wanted = device or getattr(experiment.run, "device", "")  # type: ignore[attr-defined]
    return _combine(data, experiment.model.missing("model"), _missing_gpu(wanted, device), need)


def _combine(
    data: list[Missing], model: list[Missing], gpu: list[Missing], need: Need
) -> list[Missing]:
    """Return all that is missing, by key, with the spelling of keys used in the documentation."""
    needed = need != "corpus"
    flat = {f"model.{nested}": f"model.{key}" for key, nested in model_keys.MODEL_KEYS.items()}
    found = list(data)
    for m in model:
        key = flat.get(m.key, m.key)
        found.append(Missing(key, m.problem, m.remedy, m.blocking and needed))
    return list(dict.fromkeys([*found, *(gpu if needed else [])]))


def _missing_gpu(device: str, option: str) -> list[Missing]:
    """Return a `Missing` if a GPU is requested but the system has no device file of a GPU.

    Training falls back to the CPU, so a `run.device` without a GPU is listed, but does not block.
    """
    if not device.startswith("cuda") or any(f for n in _GPU_FILES for f in Path("/dev").glob(n)):
        return []
    key, remedy = ("--device", "pass --device cpu") if option else ("run.device", "set it to auto")
    return [Missing(key, f"{device}, but this machine has no GPU", remedy, bool(option))]


def quick_check(path: Path, options: Sequence[str], need: Need, device: str) -> list[Missing]:
    """Find what is missing from the YAML file alone, without importing the models.

    Returns:
        Everything that `missing_parts` would find; empty if the file is invalid, or has plug-ins
        or other parts that only their Configs know.
    """
    try:
        tree = _read(path, options)
        _resolve_paths(tree, find_project(path))
        return _find(tree, need, device)
    except _INVALID:
        return []  # loading the file explains the problem


def _resolve_paths(tree: dict[str, Any], project: Path) -> None:
    """Resolve the paths of models and corpora as `project_paths.resolve_paths` does in a Config."""
    sections: list[tuple[Any, Sequence[str]]] = [(tree.get("model"), _PATHS)]
    datasets = tree.get("datasets")
    if isinstance(datasets, dict):
        sections += [(corpus, ("storage",)) for corpus in datasets.values()]
    for section, keys in sections:
        for key in keys if isinstance(section, dict) else ():
            if isinstance(section.get(key), str):
                mark = InProject("run/", "+base") if key == "vit_model" else InProject()
                section[key] = mark.resolve(section[key], project)


def _find(tree: Mapping[str, Any], need: Need, device: str) -> list[Missing]:
    """Find what is missing for a configuration; empty if only its Configs know."""
    model, datasets, run = (tree.get(k) or {} for k in ("model", "datasets", "run"))
    is_known = not tree.get("imports") and model.get("arch") in (*_ARCHS, *_TRAINS_ENCODER)
    if not (is_known and all(isinstance(d, dict) for d in datasets.values())):
        return []
    data: list[Missing] = []
    for label, corpus in datasets.items() if need != "model" else ():
        layout = _layout(corpus.get("builder") or label)
        if layout is None:
            return []
        where, files = f"datasets.{label}", ("annotations", "images")
        if layout != _DRAWN:
            storage = corpus.get("storage", ".")
            data += needs.missing_corpus(where, layout, storage, *(corpus.get(f) for f in files))
    wanted = device or str(run.get("device", ""))
    return _combine(data, _missing_in_model(model), _missing_gpu(wanted, device), need)


_DRAWN = needs.CorpusLayout(None, None, "")


def _layout(builder: str) -> needs.CorpusLayout | None:
    """Return the files of a builder's corpus; None if the builder is not one of the package's."""
    if builder in _CAPTION_BUILDERS:
        return needs.CAPTIONS
    if builder in _TABLE_BUILDERS:
        return needs.TABLE
    return _DRAWN if builder == "synthetic_cxr" else None


def _missing_in_model(model: Mapping[str, Any]) -> list[Missing]:
    """List what the `model` section names but does not exist; keys have the flat spelling."""

    def value(key: str, default: Any = None) -> Any:
        found = model_keys.read_key(model, key)
        return default if found is None else found

    ckpt, encoder = value("ckpt"), value("vit_model")
    found = needs.missing_encoder("model.vit_model", encoder) if encoder else []
    for key in ("ckpt", "vit_ckpt", "q_former_model", "finding_head", "qformer_tokenizer"):
        found += needs.missing_path(f"model.{key}", value(key))
    found += needs.missing_llm("model.llama_model", value("llama_model"))
    found += needs.missing_prompts("model.prompt_path", value("prompt_path"), ckpt)
    is_frozen = model["arch"] not in _TRAINS_ENCODER and value("freeze_vit", True)
    if encoder and encoder.startswith(UNWEIGHTED) and is_frozen:
        sources = {"vision.": ("model.vit_ckpt", value("vit_ckpt"))}
        if model["arch"] not in _ALIGNMENT:
            if value("freeze_qformer", False):
                sources["qformer."] = ("model.q_former_model", value("q_former_model"))
            if value("freeze_llm", True):
                sources["llm."] = ("model.llama_model", value("llama_model"))
        found += FrozenParts(encoder, ckpt, sources).missing()
    return found


def _read(path: Path, options: Iterable[str]) -> dict[str, Any]:
    """Read a YAML file with its preset and options as a plain dict.

    Raises:
        InputError: The file cannot be read.
        OmegaConfBaseException: A value cannot be resolved.
    """
    layers = [read_yaml(path, {}, lambda *_: None), OmegaConf.from_dotlist(list(options))]
    merged: Any = OmegaConf.merge(*layers)
    arch = str(OmegaConf.select(merged, "model.arch"))
    folder = PRESETS / "models" / ("xraygpt" if arch == "mini_gpt4" else arch)
    preset = folder / f"{OmegaConf.select(merged, 'model.model_type')}.yaml"
    if preset.is_file():
        layers.insert(0, OmegaConf.load(preset))
    flat: Any = OmegaConf.merge(*(_flatten(layer) for layer in layers))
    tree: Any = OmegaConf.to_container(flat, resolve=True)
    return tree if isinstance(tree, dict) else {}


def _flatten(layer: Any) -> Any:
    """Return a layer whose model section has the flat spelling, so that either overrides."""
    tree: Any = OmegaConf.to_container(layer, resolve=False)
    model: Any = tree.get("model") if isinstance(tree, dict) else None
    for flat, nested in model_keys.MODEL_KEYS.items() if isinstance(model, dict) else ():
        section, _, key = nested.partition(".")
        if isinstance(model.get(section), dict) and key in model[section]:
            model[flat] = model[section].pop(key)
    return OmegaConf.create(tree)
