"""All invalid fields are reported, each by its name; from YAML also with its line."""

from __future__ import annotations

import ast
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.common.test_config import GOOD, problems
from tests.common.test_style import FILES
from xraygpt.cardiac.analysis import CardiacMR
from xraygpt.common.checks import Checks, Problem, SettingsError
from xraygpt.common.config import from_tree
from xraygpt.common.errors import ConfigError
from xraygpt.curation.select import Filters
from xraygpt.datasets.echo_phrases import Slots
from xraygpt.datasets.llama_factory import LlamaFactory
from xraygpt.datasets.planted import PlantedLesions
from xraygpt.datasets.records import RecordsBuilder
from xraygpt.datasets.splits import SplitRule
from xraygpt.datasets.studies import StudiesBuilder
from xraygpt.datasets.study_splits import StudySplitRule
from xraygpt.datasets.synthetic_cxr import SyntheticCxr
from xraygpt.evaluation.evaluator import Evaluator
from xraygpt.features.cache import FeatureStore
from xraygpt.instructions.collections.radvlm_set import RadVLMSet
from xraygpt.instructions.collections.siim import Siim
from xraygpt.instructions.collections.vindr_cxr import VindrCXR
from xraygpt.instructions.settings import Entry, InstructionSet, Output
from xraygpt.jobs.model_table import ModelTable, TableRun
from xraygpt.media.frame_sampling import FrameSampling
from xraygpt.metrics.grounding import Boxes
from xraygpt.models.base import Generation
from xraygpt.models.endpoint.pictures import PictureFormat
from xraygpt.models.llm.config import LLMConfig
from xraygpt.models.llm.language_model import LanguageModel
from xraygpt.models.llm.small_llm import LoraSettings, SmallLLM
from xraygpt.models.prefix_lm.config import DecoderConfig, PrefixConfig
from xraygpt.models.prefix_lm.decoder import DecoderSize
from xraygpt.models.qformer_llm.alignment import QFormerAlignment
from xraygpt.models.qformer_llm.config import BridgeConfig
from xraygpt.models.qformer_llm.instruct import InstructXrayGPT
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.models.text_config import TextConfig
from xraygpt.models.vision.config import VisionConfig
from xraygpt.models.vision.image_text import ImageText, TextTower
from xraygpt.models.worker.model import Worker
from xraygpt.phantom.corpus import Recipe
from xraygpt.phantom.findings import Finding
from xraygpt.phantom.grounded import GroundedRecipe
from xraygpt.processors.image import XrayImage, XrayImageTrain
from xraygpt.processors.plain import DisplayImage
from xraygpt.runners.budget import Budget
from xraygpt.runners.optimizers import AdamW, Muon
from xraygpt.runners.settings import RunSettings
from xraygpt.segmentation.nnunet import NnUNet
from xraygpt.segmentation.onnx_network import OnnxNetwork
from xraygpt.segmentation.torch_network import TorchNetwork
from xraygpt.studies.report import Clip
from xraygpt.tasks.alignment import QFormerAlignmentTask
from xraygpt.tasks.clinical import ClinicalMetrics
from xraygpt.tasks.contrastive import ImageTextContrastive
from xraygpt.tasks.plan import Plan
from xraygpt.tasks.report_generation import ReportGeneration
from xraygpt.tasks.trait_scoring import TraitSettings
from xraygpt.tasks.yes_no import YesNo
from xraygpt.ultrasound.intake import Settings

MANY = """
model:
  arch: xraygpt
  model_type: tiny
  num_query_token: 0
  max_txt_len: 1
  freeze_llm: false
  lora: {r: 4}
  qformer:
    hidden: 100
    dropout: 1.5
datasets:
  toy:
    builder: records
    storage: somewhere
    weight: -1
    findings_in_prompt: 2
    vis_processor:
      train:
        name: xray_image_train
        image_size: 4
        min_scale: 0
        degrees: 200
    split:
      folds: 1
      fold: -1
run:
  task:
    name: report_generation
    generate:
      guidance: -1
      top_p: 2
    plan:
      findings:
        - edema
        - heart
      thresholds:
        edema: 1.5
        lungs: 0.5
  max_steps: 0
  init_lr: -1
  num_workers: -2
  feature_store: {views: -1}
"""


def test_every_invalid_field_is_reported_with_its_line(tmp_path):
    messages = [p.split(" is not one of")[0] for p in problems(tmp_path, MANY)]
    train = "datasets.toy.vis_processor.train"
    assert messages == [
        "line 5: model.num_query_token: must be at least 1, got 0",
        "line 6: model.max_txt_len: must be at least 2, got 1",
        "line 8: model.lora: needs freeze_llm: true; an LLM is trained either with LoRA or in full",
        "line 10: model.qformer.hidden: must be a multiple of 64, the width of a head, got 100",
        "line 11: model.qformer.dropout: must be in [0, 1), got 1.5",
        "line 16: datasets.toy.weight: must be at least 0, got -1.0",
        "line 17: datasets.toy.findings_in_prompt: must be in [0, 1], got 2.0",
        f"line 21: {train}.image_size: must be in 8..4096 pixels, got 4",
        f"line 22: {train}.min_scale: must be in (0, 1], got 0.0",
        f"line 23: {train}.degrees: must be in [0, 180], got 200.0",
        "line 25: datasets.toy.split.folds: must be at least 2, got 1",
        "line 26: datasets.toy.split.fold: must be at least 0 and below folds (1), got -1",
        "line 31: run.task.generate.guidance: must be at least 0, got -1.0",
        "line 32: run.task.generate.top_p: must be in (0, 1], got 2.0",
        "line 32: run.task.generate.top_p: only affects sampling; set do_sample: true",
        "line 36: run.task.plan.findings.1: heart",
        "line 38: run.task.plan.thresholds.edema: must be in [0, 1], got 1.5",
        "line 39: run.task.plan.thresholds.lungs: lungs",
        "line 40: run.max_steps: must be at least 1, got 0",
        "line 41: run.init_lr: must be above 0, got -1.0",
        "line 42: run.num_workers: must be at least 0, got -2",
        "line 43: run.feature_store.views: must be at least 0, got -1",
    ]


# Settings, and exactly the fields that must be reported for them.
CASES: list[tuple[type, dict[str, Any], set[str]]] = [
    (XrayImage.Config, {"image_size": 4, "std": [0.5, 0.0]}, {"image_size", "std"}),
    (XrayImage.Config, {"std": []}, {"std"}),
    (
        XrayImageTrain.Config,
        {"image_size": 5000, "min_scale": 0, "degrees": -1, "grey_change": 1},
        {"image_size", "min_scale", "degrees", "grey_change"},
    ),
    (RecordsBuilder.Config, {"weight": -1, "balance": 2}, {"weight", "balance"}),
    (
        RecordsBuilder.Config,
        {"balance": -1, "findings_in_prompt": 2, "question_sides": True, "ask": "findings"},
        {"balance", "findings_in_prompt", "question_sides"},
    ),
    (
        PlantedLesions.Config,
        {"weight": -1, "copies": 0, "kinds": []},
        {"weight", "copies", "kinds"},
    ),
    (
        SyntheticCxr.Config,
        {
            "weight": -1,
            "texts": "openi",
            "picture_views": ["lateral"],
            "picture_size": 8,
            "studies": 0,
        },
        {"weight", "texts", "picture_views", "picture_size", "studies"},
    ),
    (SplitRule, {"folds": 1, "fold": -1}, {"folds", "fold"}),
    (SplitRule, {"folds": 5, "fold": 5, "val_fraction": 0.1}, {"folds", "fold"}),
    (SplitRule, {"val_fraction": -0.1, "test_fraction": -1}, {"val_fraction", "test_fraction"}),
    (SplitRule, {"val_fraction": 0.5, "test_fraction": 0.5}, {"val_fraction"}),
    (
        StudySplitRule,
        {"near_duplicates": 0, "val_fraction": -1},
        {"near_duplicates", "val_fraction"},
    ),
    (
        StudiesBuilder.Config,
        {"embeddings": "{id}.npy", "headings": True, "weight": -1},
        {"embeddings", "headings", "weight"},
    ),
    (Slots, {"number_slot": "#", "text_slots": ("<a>", "<a>")}, {"number_slot", "text_slots"}),
    (
        VisionConfig,
        {"width": 8, "on_cpu": True, "freeze": False},
        {"width", "on_cpu"},
    ),
    (VisionConfig, {"encoder": "precomputed"}, {"encoder"}),
    (
        LLMConfig,
        {"freeze": False, "bits": 8, "low_resource": True, "lora": LoraSettings()},
        {"bits", "low_resource", "lora"},
    ),
    (TextConfig, {"max_txt_len": 1}, {"max_txt_len"}),
    (
        BridgeConfig,
        {"freeze": True, "new_cross_attention": True, "hidden": 1},
        {"freeze", "hidden"},
    ),
    (
        XrayGPT.Config,
        {"vision": VisionConfig(freeze=False), "finding_head": Path("x")},
        {"finding_head"},
    ),
    (
        InstructXrayGPT.Config,
        {
            "max_question_len": 0,
            "vision": VisionConfig(freeze=False),
            "finding_head": Path("x"),
        },
        {"max_question_len", "finding_head"},
    ),
    (QFormerAlignment.Config, {"temperature": 0}, {"temperature"}),
    (ImageText.Config, {"dropout": 1, "temperature": 0}, {"dropout", "temperature"}),
    (TextTower, {"hidden": 65, "dropout": -1}, {"hidden", "dropout"}),
    (LanguageModel.Config, {"dropout": 1}, {"dropout"}),
    (
        SmallLLM,
        {"init_std": 0, "embedding_std": float("nan"), "hidden": 65, "heads": 2, "vocab_size": 259},
        {"init_std", "embedding_std", "hidden", "vocab_size"},
    ),
    (SmallLLM, {"heads": 0}, {"heads"}),
    (
        QFormerConfig,
        {
            "num_queries": 0, "adapter": 0, "new_cross_attention": True, "hidden": 1,
            "dropout": 1, "patch_dropout": -1,
        },
        {"num_queries", "adapter", "hidden", "dropout", "patch_dropout"},
    ),
    (
        Generation,
        {
            "max_new_tokens": 0, "num_beams": 0, "candidates": 0, "references": -1,
            "guidance": -1, "temperature": 0, "top_p": 0,
        },
        {
            "max_new_tokens", "num_beams", "candidates", "references", "guidance",
            "temperature", "top_p",
        },
    ),
    (Generation, {"guidance": 1, "num_beams": 2, "do_sample": True}, {"guidance", "num_beams"}),
    (Generation, {"candidates": 2, "temperature": 0.5}, {"candidates", "temperature"}),
    (Generation, {"references": 1}, {"references"}),
    (Plan, {"agreement": -1, "thresholds": {"edema": 2.0}}, {"agreement", "thresholds.edema"}),
    (AdamW.Config, {"beta1": 1.0, "eps": 0.0}, {"beta1", "eps"}),
    (
        Muon.Config,
        {"momentum_start": 1, "momentum_warmup": 0},
        {"momentum_start", "momentum_warmup"},
    ),
    (DecoderSize, {"depth": 0, "context": 1, "dropout": 1}, {"depth", "context", "dropout"}),
    (DecoderSize, {"vocab_size": 10, "rope_dtype": "x"}, {"vocab_size", "rope_dtype"}),
    (DecoderConfig, {"freeze": True}, {"freeze"}),
    (PrefixConfig, {"width": 0, "noise": -1, "views": ["A", "A"]}, {"width", "noise", "views"}),
    (
        Budget,
        {"tflops": 0, "utilization": 2, "price_per_hour": -1},
        {"tflops", "utilization", "price_per_hour"},
    ),
    (Settings, {"text_frames": 0}, {"text_frames"}),
    (TraitSettings, {"samples": -1, "temperature": 0}, {"samples", "temperature"}),
    (ReportGeneration.Config, {"traits": TraitSettings(samples=2)}, {"traits.samples"}),
    (Muon.Config, {"beta1": 1.0, "momentum": -1, "ns_steps": 0}, {"beta1", "momentum", "ns_steps"}),
    (
        RunSettings,
        {
            "max_epoch": 1, "max_steps": 0, "batch_size_train": 0, "init_lr": 0, "min_lr": -1,
            "grad_clip": float("inf"), "ema_decay": 1, "warmup_steps": -1, "weight_decay": -1,
        },
        {
            "max_epoch", "max_steps", "batch_size_train", "init_lr", "min_lr", "grad_clip",
            "ema_decay", "warmup_steps", "weight_decay",
        },
    ),
    (RunSettings, {"init_lr": 1e-4, "min_lr": 1e-3}, {"min_lr"}),
    (
        Evaluator.Config,
        {"max_samples": 0, "batch_size_eval": 0, "shuffles": 0},
        {"max_samples", "batch_size_eval", "shuffles"},
    ),
    (ModelTable, {}, {"models", "tasks", "datasets"}),
    (
        TableRun,
        {"max_samples": 0, "batch_size_eval": 0, "shuffles": 0, "page_cases": -1},
        {"max_samples", "batch_size_eval", "shuffles", "page_cases"},
    ),
    (
        Worker.Config,
        {"script": None, "max_side": 4, "timeout": 0, "max_errors": -1},
        {"script", "max_side", "timeout", "max_errors"},
    ),
    (FeatureStore, {"views": -1, "max_gb": 0}, {"views", "max_gb"}),
    (
        Plan,
        {"findings": ["edema", "heart"], "threshold": 2, "thresholds": {"edema": -1, "lungs": 0}},
        {"findings.1", "threshold", "thresholds.edema", "thresholds.lungs"},
    ),
    (ClinicalMetrics, {"judge_url": "x", "chexbert_bert": Path()}, {"judge_url", "chexbert_bert"}),
    (ClinicalMetrics, {"judge_model": "x", "chexbert": Path()}, {"judge_model", "chexbert"}),
    (
        ImageTextContrastive.Config,
        {"mixup": -1, "target_temperature": 0, "matching_weight": 0, "label_weight": 0},
        {"mixup", "target_temperature", "matching_weight"},
    ),
    (
        QFormerAlignmentTask.Config,
        {"contrast_weight": 0, "match_weight": 0, "target_temperature": 0, "label_smoothing": 1},
        {"contrast_weight", "target_temperature", "label_smoothing"},
    ),
    (QFormerAlignmentTask.Config, {"match_weight": -1}, {"match_weight"}),
    (YesNo.Config, {"yes": "Yes", "no": "yes."}, {"no"}),
    (
        Filters,
        {"min_findings_words": -1, "min_impression_words": -1, "modality": "xrays"},
        {"min_findings_words", "min_impression_words", "modality"},
    ),
    (
        Recipe,
        {"studies": 0, "size": 31, "texts": "openi", "views": ("lateral",)},
        {"studies", "size", "texts", "views"},
    ),
    (Finding, {"name": "nodul"}, {"name"}),
    (
        Finding,
        {"name": "nodule", "side": "bilateral", "zone": "", "degree": "mild"},
        {"side", "zone", "degree", "size_mm"},
    ),
    (Boxes, {"xyxy": np.zeros((2, 2))}, {"xyxy"}),
    (
        Boxes,
        {"xyxy": [[0, 0, 2, 1]], "labels": ["a", "b"], "scores": [np.nan]},
        {"xyxy", "labels", "scores"},
    ),
    (
        Clip,
        {"contours": np.ones((2, 4, 5), np.uint8), "times": np.zeros(2)},
        {"contours", "times"},
    ),
    (Clip, {"contours": np.ones((3, 4, 4), np.uint8)}, {"contours"}),
    (DisplayImage.Config, {"max_side": 7}, {"max_side"}),
    (
        PictureFormat,
        {"max_side": 7, "max_frames": 0, "quality": 96},
        {"max_side", "max_frames", "quality"},
    ),
    (FrameSampling, {"num_frames": 0, "fps": 0}, {"num_frames", "fps"}),
    (
        FrameSampling,
        {"min_frames": 3, "max_frames": 2, "frames_per_slice": 2},
        {"min_frames", "frames_per_slice", "phases_per_slice"},
    ),
    (
        LlamaFactory.Config,
        {"max_records": 0, "val_fraction": 1},
        {"max_records", "val_fraction", "dataset"},
    ),
    (
        CardiacMR.Config,
        {"basal_ring": 2, "height": 20, "weight": 900},
        {"basal_ring", "height", "weight"},
    ),
    (TorchNetwork.Config, {"image_size": 0, "convention": "acdd"}, {"image_size", "convention"}),
    (OnnxNetwork.Config, {"network": "net.onnx", "threads": -1}, {"threads", "convention"}),
    (NnUNet.Config, {"convention": "acdd", "folds": (0, -1)}, {"convention", "folds"}),
    (Siim.Config, {"min_pixels": 0}, {"min_pixels"}),
    (RadVLMSet.Config, {"split": "all"}, {"split"}),
    (
        GroundedRecipe,
        {"studies": 0, "zoom": (2.0, 1.0), "shift": 2, "flips": -1, "texts": "openi"},
        {"studies", "zoom", "shift", "flips", "texts", "design"},
    ),
    (VindrCXR.Config, {"min_readers": 0, "threshold": 1}, {"min_readers", "threshold"}),
    (
        Entry,
        {"collection": "a", "task": "report", "splits": [], "cap": 0, "negatives": -1},
        {"splits", "cap", "negatives"},
    ),
    (Output, {"min_pixels": 0, "max_pixels": -1}, {"min_pixels", "max_pixels"}),
    (
        InstructionSet,
        {"collections": {}, "mixture": [Entry(collection="a", task="report")]},
        {"mixture.0.collection"},
    ),
]  # fmt: skip
REQUIRED = {
    RecordsBuilder.Config: {"storage": Path("x")},
    PlantedLesions.Config: {"storage": Path("x")},
    Clip: {
        "name": "slice",
        "caption": "",
        "frames": np.zeros((3, 4, 4), np.uint8),
        "duration": 1.0,
    },
    RunSettings: {"task": ReportGeneration.Config()},
    Evaluator.Config: {"task": ReportGeneration.Config()},
    ModelTable: {"models": {}, "datasets": {}, "tasks": {}},
    Worker.Config: {"script": Path("x")},
    CardiacMR.Config: {"segmenter": OnnxNetwork.Config()},
    TorchNetwork.Config: {"network": Path("x")},
    NnUNet.Config: {"folder": Path("x"), "python": Path("x")},
}


@pytest.mark.parametrize(("config", "settings", "fields"), CASES)
def test_a_config_reports_all_invalid_fields(config, settings, fields):
    with pytest.raises(ValueError) as caught:
        config(**REQUIRED.get(config, {}) | settings)
    assert isinstance(caught.value, SettingsError)
    assert {p.field for p in caught.value.problems} == fields
    assert str(caught.value).splitlines() == [
        f"{p.field}: {p.message}" for p in caught.value.problems
    ]
    names = config.__dataclass_fields__
    others = {name for p in caught.value.problems for name in p.others}
    assert {name.split(".")[0] for name in others} <= set(names)


@pytest.mark.slow
def test_all_checks_are_collected():
    """No `__post_init__` stops at the first problem, and each one with checks has a case above."""
    checked = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                nodes = list(ast.walk(node))
                assert not any(isinstance(n, ast.Raise) for n in nodes), path
                if any(isinstance(n, ast.Name) and n.id == "Checks" for n in nodes):
                    checked.add(path.name)
    covered = {Path(config.__module__.replace(".", "/")).name + ".py" for config, *_ in CASES}
    covered |= {"experiment.py", "builder.py"}  # tested in test_config and test_records
    assert checked <= covered


def test_a_wrong_type_hides_no_other_problem(tmp_path):
    messages = problems(tmp_path, GOOD + "  init_lr: fast\n  num_workers: -1\n  min_lr: 1\n")
    assert len(messages) == 2  # none about min_lr, which is compared with init_lr
    assert messages[0].startswith("line 12: run.init_lr: Input should be a valid number")
    assert messages[1] == "line 13: run.num_workers: must be at least 0, got -1"


def test_a_missing_field_hides_no_other_problem(tmp_path):
    messages = problems(tmp_path, GOOD.replace("task: report_generation", "num_workers: -1"))
    assert messages == [
        "line 9: run.task: missing",
        "line 10: run.num_workers: must be at least 0, got -1",
    ]


def test_a_problem_of_an_option_refers_to_the_option(tmp_path):
    messages = problems(tmp_path, GOOD, "run.num_workers=-1", "run.task.plan.thresholds.edema=7")
    assert messages == [
        "--options: run.task.plan.thresholds.edema: must be in [0, 1], got 7.0",
        "--options: run.num_workers: must be at least 0, got -1",
    ]


def test_stored_settings_are_checked_too():
    with pytest.raises(ConfigError) as caught:
        from_tree(Generation, {"num_beams": 0, "top_p": 2}, "run.task.generate")
    assert caught.value.problems[0] == "run.task.generate.num_beams: must be at least 1, got 0"
    assert len(caught.value.problems) == 3


@dataclass
class Plain:
    """Settings of a plug-in that raises its own errors."""

    sides: int = 2
    name: str = ""

    def __post_init__(self) -> None:
        if self.sides < 3:
            raise ValueError(f"{self.sides} sides make no polygon")
        self.name.upper()


def test_a_plug_in_may_raise_its_own_errors():
    with pytest.raises(ConfigError, match="shape: 1 sides make no polygon"):
        from_tree(Plain, {"sides": 1}, "shape")
    with pytest.raises(ConfigError) as caught:
        from_tree(Plain, {"sides": "x", "nmae": ""}, "shape")  # nothing about its default
    assert [p.split(":")[0] for p in caught.value.problems] == ["shape.nmae", "shape.sides"]


@dataclass
class WithRequired:
    """A required field and a check that needs it."""

    text: str
    count: int = 1

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(1, "count")
            check.refuse(self.text.isupper(), "text", "must not shout")


def test_a_check_that_fails_because_of_a_missing_field_is_ignored():
    with pytest.raises(ConfigError) as caught:
        from_tree(WithRequired, {"count": 0}, "x")
    assert caught.value.problems == ["x.text: missing"]


def test_other_errors_in_the_block_are_not_hidden():
    with pytest.raises(ZeroDivisionError), Checks(object()) as check:
        check.refuse(True, "a", "is wrong")
        _ = 1 / 0


def test_included_problems_use_the_field_names_of_this_config():
    def rules() -> None:
        raise SettingsError([Problem("size", "is odd", ("views",)), Problem("seed", "is old")])

    with pytest.raises(SettingsError) as caught, Checks(object()) as check:
        check.include(rules, size="picture_size", views="picture_views")
        check.refuse(True, "own", "is wrong")
    assert caught.value.problems == [
        Problem("picture_size", "is odd", ("picture_views",)),
        Problem("seed", "is old"),
        Problem("own", "is wrong"),
    ]


def test_messages_for_options_and_pickling():
    error = SettingsError([Problem("min_words", "must be at least 0, got -1"), Problem("b", "no")])
    assert error.as_options() == "--min-words: must be at least 0, got -1\n--b: no"
    copy = pickle.loads(pickle.dumps(error))
    assert copy.problems == error.problems and str(copy) == str(error)
