"""Each part of the image path beside LAVIS's own, eager, in small and at full width.

`python -m tests.parity.test_table` prints the table that docs/weights.md shows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm.layers
import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from tests.parity.test_image_path import Original, Sizes
from xraygpt.models.qformer_llm.qformer import QFormer, QFormerConfig
from xraygpt.models.vision import published
from xraygpt.models.weights import lavis
from xraygpt.models.weights.rules import load_exactly

SIZES = {
    "small": Sizes(),
    # Widths of the published files; two of the 39 blocks, all twelve layers of the Q-Former.
    "full width": Sizes(
        width=1408, depth=2, size=224, heads=16, hidden=768, layers=12, queries=32, llm=4096,
        std=0.02,
    ),
}  # fmt: skip
PARTS = ("vision tower", "ln_vision", "Q-Former", "Q-Former, padded mask", "projection", "whole")


class Ours(nn.Module):
    """Our modules, filled through the rules that read the originals' files."""

    def __init__(self, original: Original, z: Sizes) -> None:
        super().__init__()
        state = lavis.convert_state(original.state_dict(), Path("whole.pth")).state
        settings = {
            "img_size": z.size,
            "patch_size": 14,
            "embed_dim": z.width,
            "num_heads": z.heads,
        }
        settings |= {**published.EVA, "depth": z.depth, "mlp_ratio": 4.3637}
        before = timm.layers.use_fused_attn()
        timm.layers.set_fused_attn(False)
        try:
            self.vision = Eva(**settings)
        finally:
            timm.layers.set_fused_attn(bool(before))
        self.qformer = QFormer(
            QFormerConfig(layers=z.layers, hidden=z.hidden, num_queries=z.queries),
            vision_width=z.width, num_patches=None,
        )  # fmt: skip
        self.qformer.qformer.set_attn_implementation("eager")
        self.proj = nn.Linear(z.hidden, z.llm)
        parts = {"vision.net.": self.vision, "qformer.": self.qformer, "proj.": self.proj}
        for prefix, module in parts.items():
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            load_exactly(module, own, Path("x"), required=set(module.state_dict()))


def their_queries(original: Original, features: Tensor, mask: Tensor) -> Tensor:
    out: Tensor = original.Qformer.bert(
        query_embeds=original.query_tokens.expand(len(features), -1, -1),
        encoder_hidden_states=features, encoder_attention_mask=mask, return_dict=True,
    ).last_hidden_state  # fmt: skip
    return out


@torch.no_grad()
def differences(z: Sizes, dtype: torch.dtype) -> dict[str, float]:
    """Greatest absolute difference of each part, given the same input."""
    torch.manual_seed(0)
    original = Original(z).eval()
    ours = Ours(original, z).eval().to(dtype)
    original.to(dtype)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, z.size, z.size, generator=generator).to(dtype)
    features = original.visual_encoder(pixels)
    normed = original.ln_vision(features)
    full = torch.ones(features.shape[:2], dtype=torch.long)
    padded = full.clone()
    padded[0, features.shape[1] // 2 :] = 0
    queries = their_queries(original, normed, full)
    pairs = {
        "vision tower": (features, ours.vision(pixels)),
        "ln_vision": (normed, ours.qformer.ln_vision(features)),
        "Q-Former": (queries, ours.qformer(features)),
        "Q-Former, padded mask": (
            their_queries(original, normed, padded),
            ours.qformer(features, padded),
        ),
        "projection": (original.llama_proj(queries), ours.proj(queries)),
        "whole": (original.llama_proj(queries), ours.proj(ours.qformer(ours.vision(pixels)))),
    }
    for name, (theirs, _) in pairs.items():
        assert theirs.std() > 1e-3, name  # there is something to differ in
    found = {name: float((theirs - mine).abs().max()) for name, (theirs, mine) in pairs.items()}
    ours.vision.blocks[0].attn.v_bias += 0.01  # the measure sees what differs
    changed = ours.proj(ours.qformer(ours.vision(pixels)))
    assert (pairs["whole"][0] - changed).abs().max() > 1e-4
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("size", SIZES)
def test_every_part_is_the_originals(size: str, dtype: torch.dtype):
    most = 1e-5 if dtype == torch.float32 else 1e-12
    found = differences(SIZES[size], dtype)
    assert set(found) == set(PARTS)
    assert all(value <= most for value in found.values()), found


if __name__ == "__main__":
    columns = [(s, d) for s in SIZES for d in (torch.float32, torch.float64)]
    table = {c: differences(SIZES[c[0]], c[1]) for c in columns}
    for part in PARTS:
        cells = " | ".join(f"{table[c][part]:.1e}" for c in columns)
        sys.stdout.write(f"| {part} | {cells} |\n")
