"""Collections of chest X-rays: one file per collection."""

from __future__ import annotations

from xraygpt.instructions.collections import vindr_cxr

__all__ = ["vindr_cxr"]
