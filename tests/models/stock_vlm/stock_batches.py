"""The same samples as batches of this project and as batches of transformers' processors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.video_utils import VideoMetadata

from xraygpt.datasets.base import Batch, Sample
from xraygpt.datasets.collate import Collator
from xraygpt.media.base import Media
from xraygpt.models.stock_vlm.model import StockVlm
from xraygpt.processors.plain import PlainPixels

FPS = 25.0
STEP = 5  # every fifth frame of a source with 25 frames per second is kept


def image(seed: int, height: int = 70, width: int = 100) -> np.ndarray:
    """Random uint8 pixels, (H, W, 3)."""
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return values


def clip(seed: int, frames: int = 6, height: int = 64, width: int = 80) -> np.ndarray:
    """Random uint8 frames, (F, H, W, 3)."""
    shape = (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def sample(name: str, question: str, answer: str, media: Sequence[np.ndarray]) -> Sample:
    """A sample; arrays with four axes are clips."""
    processor = PlainPixels(PlainPixels.Config())
    read = []
    for array in media:
        data = torch.from_numpy(array.astype(np.float32) / 255)
        times = tuple(i * STEP / FPS for i in range(len(array))) if array.ndim == 4 else None
        kind = "clip" if array.ndim == 4 else "image"
        read.append(processor.process(Media(data, kind, frame_times=times)))
    turns = [{"role": "user", "text": question}]
    if answer:
        turns.append({"role": "assistant", "text": answer})
    return Sample(
        sample_id=name,
        study_id=name,
        media=read,
        turns=turns,
        meta={"arrays": list(media)},
        rng_key=name,
    )


def samples() -> dict[str, Sample]:
    """One image, nine images, a clip, an image with a clip, two turns and text only."""
    nine = [image(i, 50 + 3 * i, 60) for i in range(9)]
    return {
        "one": sample("one", "<image>What is there?", "Left.", [image(0)]),
        "nine": sample("nine", "<image>" * 9 + "Is there an effusion?", "No.", nine),
        "clip": sample("clip", "<video>Is the motion coordinated?", "Reduced motion.", [clip(1)]),
        "both": sample("both", "<image><video>Why?", "The apex.", [image(3), clip(2, 4)]),
        "text": sample("text", "What is there?", "Clear lungs.", []),
    }


def stock_batch(
    processor: Any, chosen: Sequence[Sample], *, prompt: bool = False
) -> dict[str, Any]:
    """The batch that transformers' processor makes of the same conversations."""
    texts, images, videos = [], [], []
    for item in chosen:
        parts, turns = [], item["turns"]
        question = turns[0]["text"].replace("<image>", "").replace("<video>", "")
        arrays = item["meta"]["arrays"]
        parts += [{"type": "video" if a.ndim == 4 else "image"} for a in arrays]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        if not prompt and len(turns) > 1:
            content = [{"type": "text", "text": turns[1]["text"]}]
            messages.append({"role": "assistant", "content": content})
        texts.append(
            processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        )
        images.append([a for a in arrays if a.ndim == 3])
        videos += [a for a in arrays if a.ndim == 4]
    found = [each for each in images if each]
    metadata = [
        VideoMetadata(
            total_num_frames=len(v) * STEP,
            fps=FPS,
            frames_indices=[i * STEP for i in range(len(v))],
        )
        for v in videos
    ]
    processor.tokenizer.padding_side = "left" if prompt else "right"
    more = {"do_sample_frames": False, "video_metadata": metadata} if videos else {}
    batch = processor(
        text=texts, images=found or None, videos=videos or None, padding=True,
        return_tensors="pt", **more,
    )  # fmt: skip
    batch.pop("video_metadata", None)
    return dict(batch)


def load_stock(folder: Path) -> tuple[Any, Any]:
    """The network and processor of transformers."""
    network = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    return network.eval(), transformers.AutoProcessor.from_pretrained(folder)


def build(folder: Path, **keys: Any) -> StockVlm:
    """Our model."""
    return StockVlm.Config.from_keys(path=str(folder), **keys).build()


def our_batch(model: StockVlm, chosen: Sequence[Sample], *, prompt: bool = False) -> Batch:
    """The batch of this project."""
    collate = Collator(model.renderer, model.media_collator, max_len=model.context_len)
    return collate.prompts(chosen) if prompt else collate(chosen)
