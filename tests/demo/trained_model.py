"""A tiny model trained to say on which side a square is, and a demo controller for it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.conftest import toy_image
from tests.models.qformer_llm.test_model import collator, sample, tiny
from xraygpt.answering import Answerer
from xraygpt.conversation import ChatEngine
from xraygpt.datasets.base import read_media
from xraygpt.demo.controller import DemoController
from xraygpt.experiment import ChatParts
from xraygpt.media.base import MediaRef
from xraygpt.models.base import Generation
from xraygpt.models.llm.small_llm import SmallLLM
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.processors.image import XrayImage
from xraygpt.tasks.report_generation import ReportGeneration

REPORTS = {
    "left": "Findings: A square is on the left. No bone is broken. Impression: Left square.",
    "right": "Findings: The square is on the right. The heart is normal. Impression: Right square.",
    "none": "Findings: The image is clear. Impression: Normal.",
}
PROMPT = "Report."
STEPS = 220


@cache
def trained_model() -> XrayGPT:
    """Greedy decoding gives the report of the square in the image, whatever the question."""
    llm = SmallLLM(vocab_size=260, hidden=64, layers=2, heads=2, context=2048)
    model = tiny(llm=llm, freeze_llm=False, freeze_vit=False, prompt_path=None)
    vis = processor(model)
    torch.manual_seed(0)
    model.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads do not speed up so small a model
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 3e-3)
    questions = [PROMPT, "What is there?", "Is it left?", "A longer question, whatever it says."]
    for step in range(STEPS):
        rows = []
        for i in range(12):
            kind = list(REPORTS)[i % 3]
            image = vis(toy_image(kind, 12 * step + i).astype(np.float32) / 255)
            rows.append(
                sample(f"{i}", [image], REPORTS[kind], questions[(i + step) % len(questions)])
            )
        out = model(collator(model)(rows))
        (out.loss / sum(out.num_targets)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    return model.eval()


def processor(model: XrayGPT) -> XrayImage:
    """The image processor used in evaluation."""
    return XrayImage(XrayImage.Config(), image_spec=model.image_spec)


def build_parts(model: XrayGPT | None = None, **generation: Any) -> ChatParts:
    """Like `experiment.build_chat`, without a YAML."""
    model = model or trained_model()
    model.renderer.prompts = [f"<image> {PROMPT}"]
    vis = processor(model)
    facts = {"arch": "XrayGPT", "weights": "0" * 64, "device": "cpu", "xraygpt": "test"}
    return ChatParts(
        ChatEngine(model, Answerer(model, ReportGeneration(ReportGeneration.Config()))),
        lambda path, frame=0: read_media(MediaRef(path, index=frame), "", vis),
        vis.fit,
        Generation(**{"max_new_tokens": 100, **generation}),
        facts,
    )


def build_controller(**generation: Any) -> DemoController:
    """A controller with the trained model."""
    return DemoController(build_parts(**generation), "trained", synthetic=False)


def square(folder: Path, kind: str, seed: int = 5, kinds: str = "png") -> Path:
    """An image file of a square."""
    path = folder / f"{kind}-{seed}.{kinds}"
    image = Image.fromarray(toy_image(kind, seed))
    if kinds == "jpg":
        image.save(path, quality=95)
    else:
        image.save(path)
    return path
