"""What identifies the content of media, so that random choices do not depend on file names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

ContentDigest = str | Callable[[], str]
"""A digest of a medium's content, or a function that computes it when it is needed."""
BLACK = "black"  # the digest of a blank control image, whatever its size
MAX_VALUES = 2**16  # hashed per medium; different images that share a digest do no harm


def digest_values(data: Tensor) -> str:
    """Return the SHA-256 of a medium's shape and values, of which a regular sample is read.

    The digest is the same for a file, its bytes and the array decoded from it. It seeds random
    numbers and must not be used to tell images apart: they may differ in a value that is not read.

    Args:
        data: Display values or embeddings of any shape. Values in 0..255 as uint8 have the digest
            of the same values in [0, 1] as float32.
    """
    step = 1
    while data.numel() > MAX_VALUES * step ** min(2, data.dim()):
        step += 1
    values = data.detach().cpu()
    for axis in sorted(range(data.dim()), key=lambda a: -data.shape[a])[:2]:
        values = values.index_select(axis, torch.arange(0, data.shape[axis], step))
    sha = hashlib.sha256(f"{tuple(data.shape)}".encode())
    in_bytes = values.dtype == torch.uint8
    values = values.float() / 255 if in_bytes else values.float()
    sha.update(np.ascontiguousarray(values.numpy()).tobytes())
    return sha.hexdigest()


def content_key(digests: Sequence[ContentDigest]) -> str:
    """Return a key for the media of one study, or "" if it has none."""
    found = [digest() if callable(digest) else digest for digest in digests]
    return found[0] if len(found) == 1 else " ".join(found)


def row_key(digests: Sequence[ContentDigest]) -> Callable[[], str]:
    """Return a function that computes `content_key`, which can be passed to other processes."""
    return partial(content_key, tuple(digests))
