"""Tiny models, written once."""

from __future__ import annotations

import pytest

from tests.models.stock_vlm.tiny_models import FAMILIES, write_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A function from the name of a family to the folder of a tiny model."""
    root = tmp_path_factory.mktemp("tiny_models")

    def folder(family):
        path = root / family
        return path if path.is_dir() else write_model(family, path, scale=3.0)

    return folder


@pytest.fixture(params=FAMILIES)
def family(request):
    """Each family in turn."""
    return request.param
