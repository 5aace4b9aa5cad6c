"""Reports a second in evaluation: batches of ours against transformers' `generate`, image by image.

    python benchmarks/answers.py [--count 300] [--batch 32] [--cfg-path eval_configs/….yaml]

All sides answer the same questions about the same images with the same greedy tokens in float32;
how many rows differ is said. A batch of ours and its images one by one take turns in one process.
Images are encoded beforehand: only Q-Former and language model are measured. `--blip2` has
transformers' own BLIP-2 with the same weights answer the images one by one instead, as it is used:
from pixels, which are then counted on our side too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from blip2_peer import blip2_of, inputs_of
from transformers import StoppingCriteriaList

from xraygpt.common.cli import run_main
from xraygpt.common.config import load
from xraygpt.datasets.base import Batch
from xraygpt.datasets.collate import Collator
from xraygpt.experiment import Evaluation, build_model
from xraygpt.media.base import media_from_tensor
from xraygpt.models.base import Generation
from xraygpt.models.llm.decoding import Decoder

ROOT = Path(__file__).resolve().parents[1]


class Bench:
    """A model and val's questions, their images encoded."""

    def __init__(self, yaml: Path, count: int, options: list[str], blip2: bool) -> None:
        experiment = load(Evaluation, yaml, options)
        self.model: Any = build_model(experiment, 0).eval()
        self.model.merge_lora()  # as evaluation does; for all sides
        self.decoder = Decoder(self.model.llm, self.model.renderer)
        (corpus,) = experiment.datasets.values()
        data = corpus.build(image_spec=self.model.image_spec, seed=0).build("val", "eval")
        self.collate = Collator(
            self.model.renderer, self.model.media_collator, max_len=self.model.context_len
        )
        self.samples = [data[i] for i in range(min(count, len(data)))]
        self.blip2 = blip2_of(self.model) if blip2 else None
        if blip2:
            return
        for sample in self.samples:
            pixels = torch.stack([media.data for media in sample["media"]])
            sample["media"] = [media_from_tensor(f) for f in self.model.encode_frozen(pixels)]

    def batch(self, first: int, count: int) -> Batch:
        """Prompts of some samples."""
        return self.collate.prompts(self.samples[first : first + count])

    def ours(self, batch: Batch, how: Generation) -> list[list[int]]:
        """New ids of each row, without what ends them."""
        embeds, mask = self.model.embed(batch), batch["attention_mask"]
        return [self._cut(r) for r in self.decoder.generate_ids(embeds, mask, how)]

    def theirs(self, batch: Batch, how: Generation) -> list[int]:
        """The same of a batch of one, by `generate`."""
        if self.blip2 is not None:
            return self._by_blip2(batch, how)
        (ids,) = self.decoder._generate_with_transformers(
            self.model.embed(batch),
            batch["attention_mask"],
            how,
            None,
            StoppingCriteriaList(self.decoder._criteria()),
        )
        return self._cut(ids)

    def _by_blip2(self, batch: Batch, how: Generation) -> list[int]:
        inputs = inputs_of(self.blip2, batch)
        ids = self.blip2.generate(  # type: ignore[union-attr]
            **inputs,
            max_new_tokens=how.max_new_tokens,
            do_sample=False,
            repetition_penalty=how.repetition_penalty,  # not what the LLM's own file says
            no_repeat_ngram_size=how.no_repeat_ngram_size,
            eos_token_id=sorted(self.decoder.end_ids),
            pad_token_id=self.decoder.tokenizer.eos_token_id,
            stopping_criteria=StoppingCriteriaList(self.decoder._criteria()),
        )
        return self._cut(ids[0, inputs["input_ids"].shape[1] :].tolist())

    def _cut(self, ids: list[int]) -> list[int]:
        at = (i for i, token in enumerate(ids) if token in self.decoder.end_ids)
        return ids[: next(at, len(ids))]


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg-path", type=Path, default=ROOT / "eval_configs/xraygpt_mini.yaml")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=120)
    parser.add_argument("--blip2", action="store_true", help="the other side is BLIP-2")
    parser.add_argument("--options", nargs="*", default=[], help="over the YAML")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    bench = Bench(given.cfg_path, given.count, given.options, given.blip2)
    how = Generation(max_new_tokens=given.max_new_tokens)
    bench.ours(bench.batch(0, 2), how)  # warm up both
    bench.theirs(bench.batch(0, 1), how)
    ours, theirs, differing = [], [], 0
    for first in range(0, len(bench.samples), given.batch):
        count = min(given.batch, len(bench.samples) - first)
        began = time.perf_counter()
        rows = bench.ours(bench.batch(first, count), how)
        middle = time.perf_counter()
        singles = [bench.theirs(bench.batch(first + i, 1), how) for i in range(count)]
        ours.append(middle - began)
        theirs.append(time.perf_counter() - middle)
        differing += sum(a != b for a, b in zip(rows, singles, strict=True))
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    row = {
        "n": len(bench.samples),
        "batch": given.batch,
        "times": sum(theirs) / sum(ours),
        "median_of_batches": statistics.median(each),
        "reports_a_second": len(bench.samples) / sum(ours),
        "one_by_one": len(bench.samples) / sum(theirs),
        "differing": differing,
        "other_side": "BLIP-2 from pixels" if given.blip2 else "generate",
    }
    print(
        f"{row['n']} reports, {given.batch} at once: {row['reports_a_second']:.2f} a second, one "
        f"by one {row['one_by_one']:.2f}: {row['times']:.1f} times (median of batches "
        f"{row['median_of_batches']:.1f}); {differing} differ in a token"
    )
    if given.out:
        given.out.write_text(json.dumps(row, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_main(main))
