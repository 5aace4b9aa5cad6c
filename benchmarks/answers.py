"""Reports per second in evaluation: our batches against transformers' `generate`, image by image.

    python benchmarks/answers.py [--count 300] [--batch 32] [--cfg-path eval_configs/….yaml]

Both sides answer the same questions about the same images by greedy decoding in float32; the number
of rows that differ is printed. In one process, one of our batches alternates with its images one by
one. Images are encoded beforehand, so that only the Q-Former and the language model are measured.
With `--blip2` the other side is transformers' own BLIP-2 with the same weights. It answers one
image at a time from pixels, as it is normally used; our side then starts from pixels, too.
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
    """A model and the questions of val with their encoded images."""

    def __init__(self, yaml: Path, count: int, options: list[str], blip2: bool) -> None:
        experiment = load(Evaluation, yaml, options)
        self.model: Any = build_model(experiment, 0).eval()
        self.model.merge_lora()  # as in evaluation; for both sides
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
        """Prompts of `count` samples, starting at index `first`."""
        return self.collate.prompts(self.samples[first : first + count])

    def ours(self, batch: Batch, generation: Generation) -> list[list[int]]:
        """Generated ids of each row, without the end token."""
        embeds, mask = self.model.embed(batch), batch["attention_mask"]
        return [self._cut(r) for r in self.decoder.generate_ids(embeds, mask, generation)]

    def theirs(self, batch: Batch, generation: Generation) -> list[int]:
        """The same for a batch of one row, by the other side."""
        if self.blip2 is not None:
            return self._by_blip2(batch, generation)
        (ids,) = self.decoder._generate_with_transformers(
            self.model.embed(batch),
            batch["attention_mask"],
            generation,
            None,
            StoppingCriteriaList(self.decoder._criteria()),
        )
        return self._cut(ids)

    def _by_blip2(self, batch: Batch, generation: Generation) -> list[int]:
        inputs = inputs_of(self.blip2, batch)
        ids = self.blip2.generate(  # type: ignore[union-attr]
            **inputs,
            max_new_tokens=generation.max_new_tokens,
            do_sample=False,
            repetition_penalty=generation.repetition_penalty,  # overrides the LLM's own file
            no_repeat_ngram_size=generation.no_repeat_ngram_size,
            eos_token_id=sorted(self.decoder.end_ids),
            pad_token_id=self.decoder.tokenizer.eos_token_id,
            stopping_criteria=StoppingCriteriaList(self.decoder._criteria()),
        )
        return self._cut(ids[0, inputs["input_ids"].shape[1] :].tolist())

    def _cut(self, ids: list[int]) -> list[int]:
        ends = (i for i, token in enumerate(ids) if token in self.decoder.end_ids)
        return ids[: next(ends, len(ids))]


@torch.inference_mode()
def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg-path", type=Path, default=ROOT / "eval_configs/xraygpt_mini.yaml")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=120)
    parser.add_argument("--blip2", action="store_true", help="compare with BLIP-2")
    parser.add_argument("--options", nargs="*", default=[], help="key=value overrides of the YAML")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    bench = Bench(args.cfg_path, args.count, args.options, args.blip2)
    generation = Generation(max_new_tokens=args.max_new_tokens)
    bench.ours(bench.batch(0, 2), generation)  # warm up both sides
    bench.theirs(bench.batch(0, 1), generation)
    ours, theirs, differing = [], [], 0
    for first in range(0, len(bench.samples), args.batch):
        count = min(args.batch, len(bench.samples) - first)
        start = time.perf_counter()
        rows = bench.ours(bench.batch(first, count), generation)
        middle = time.perf_counter()
        singles = [bench.theirs(bench.batch(first + i, 1), generation) for i in range(count)]
        ours.append(middle - start)
        theirs.append(time.perf_counter() - middle)
        differing += sum(a != b for a, b in zip(rows, singles, strict=True))
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    row = {
        "n": len(bench.samples),
        "batch": args.batch,
        "times": sum(theirs) / sum(ours),
        "median_of_batches": statistics.median(ratios),
        "reports_a_second": len(bench.samples) / sum(ours),
        "one_by_one": len(bench.samples) / sum(theirs),
        "differing": differing,
        "other_side": "BLIP-2 from pixels" if args.blip2 else "generate",
    }
    print(
        f"{row['n']} reports: {row['reports_a_second']:.2f} per second in batches of {args.batch}, "
        f"{row['one_by_one']:.2f} one by one; speed-up {row['times']:.1f} (median of batches "
        f"{row['median_of_batches']:.1f}); {differing} rows differ in a token"
    )
    if args.out:
        args.out.write_text(json.dumps(row, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_main(main))
