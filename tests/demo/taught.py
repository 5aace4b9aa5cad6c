"""A minute model that was taught to say on which side a square is, and a desk around it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.conftest import toy_image
from tests.models.qformer_llm.test_model import collator, sample, tiny
from xraygpt.conversation import ChatEngine
from xraygpt.datasets.base import read_media
from xraygpt.demo.controller import DemoController
from xraygpt.experiment import ChatParts
from xraygpt.media.base import MediaRef
from xraygpt.models.base import Generation
from xraygpt.models.llm.small_llm import SmallLLM
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.processors.image import XrayImage

REPORTS = {
    "left": "Findings: A square is on the left. No bone is broken. Impression: Left square.",
    "right": "Findings: The square is on the right. The heart is normal. Impression: Right square.",
    "none": "Findings: The image is clear. Impression: Normal.",
}
PROMPT = "Report."


@cache
def taught() -> XrayGPT:
    """Greedy, it says the report of the square it is shown, after whatever is asked."""
    llm = SmallLLM(vocab_size=260, hidden=64, layers=2, heads=2, context=2048)
    model = tiny(llm=llm, freeze_llm=False, freeze_vit=False, prompt_path=None)
    vis = processor(model)
    torch.manual_seed(0)
    model.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for a second
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 3e-3)
    asked = [PROMPT, "What is there?", "Is it left?", "A longer question, whatever it says."]
    for step in range(STEPS):
        rows = []
        for i in range(12):
            kind = list(REPORTS)[i % 3]
            image = vis(toy_image(kind, 12 * step + i).astype(np.float32) / 255)
            rows.append(sample(f"{i}", [image], REPORTS[kind], asked[(i + step) % len(asked)]))
        out = model(collator(model)(rows))
        (out.loss / sum(out.num_targets)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    return model.eval()


STEPS = 220


def processor(model: XrayGPT) -> XrayImage:
    """The image processor of evaluation."""
    return XrayImage(XrayImage.Config(), image_spec=model.image_spec)


def parts(model: XrayGPT | None = None, **how: Any) -> ChatParts:
    """As `experiment.build_chat` makes them of a YAML."""
    model = model or taught()
    model.renderer.prompts = [f"<image> {PROMPT}"]
    vis = processor(model)
    facts = {"arch": "XrayGPT", "weights": "0" * 64, "device": "cpu", "xraygpt": "test"}
    return ChatParts(
        ChatEngine(model),
        lambda path, frame=0: read_media(MediaRef(path, index=frame), "", vis),
        vis.fit,
        Generation(**{"max_new_tokens": 100, **how}),
        facts,
    )


def desk(**how: Any) -> DemoController:
    """A desk with the taught model."""
    return DemoController(parts(**how), "taught", synthetic=False)


def square(folder: Path, kind: str, seed: int = 5, kinds: str = "png") -> Path:
    """A picture of it."""
    path = folder / f"{kind}-{seed}.{kinds}"
    picture = Image.fromarray(toy_image(kind, seed))
    if kinds == "jpg":
        picture.save(path, quality=95)
    else:
        picture.save(path)
    return path
