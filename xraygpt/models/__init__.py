"""Imports all models and vision encoders so that they register themselves by name."""

from xraygpt.models.endpoint import model as endpoint
from xraygpt.models.llm import language_model
from xraygpt.models.prefix_lm import model as prefix_lm
from xraygpt.models.qformer_llm import alignment, instruct
from xraygpt.models.qformer_llm import model as xraygpt
from xraygpt.models.stock_vlm import model as stock_vlm
from xraygpt.models.vision import hf, image_text, published, run_encoder
from xraygpt.models.worker import model as worker

__all__ = [
    "alignment",
    "endpoint",
    "hf",
    "image_text",
    "instruct",
    "language_model",
    "prefix_lm",
    "published",
    "run_encoder",
    "stock_vlm",
    "worker",
    "xraygpt",
]
