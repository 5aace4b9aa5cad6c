"""Writes safetensors files tensor by tensor, in the memory of one file."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 4 * 10**9


class ShardWriter:
    """Collects tensors and writes a file whenever the next one would make it too large.

    Args:
        folder: Folder for the files, named as transformers names them.
        limit: Size of a file in bytes; a single larger tensor gets its own file.
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES) -> None:
        self.folder, self.limit = folder, limit
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = self.total_bytes = 0
        self.files: list[list[str]] = []  # names in each file written

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor; it may be written now or later."""
        size = tensor.numel() * tensor.element_size()
        if self.pending and self.pending_bytes + size > self.limit:
            self._flush()
        self.pending[name] = tensor.detach().cpu().contiguous()
        self.pending_bytes += size
        self.total_bytes += size

    def close(self) -> None:
        """Write the rest, and the index if there are several files."""
        self._flush()
        count = len(self.files)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self.files, start=1):
            final = f"model-{number:05d}-of-{count:05d}.safetensors"
            final = "model.safetensors" if count == 1 else final
            self._part(number).rename(self.folder / final)
            weight_map |= dict.fromkeys(names, final)
        if count > 1:
            metadata = {"total_size": self.total_bytes}
            index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
            path = self.folder / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        if self.pending:
            self.files.append(list(self.pending))
            save_file(self.pending, self._part(len(self.files)), metadata={"format": "pt"})
            self.pending, self.pending_bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number}.safetensors"
