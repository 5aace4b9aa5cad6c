"""xraygpt: an open framework for medical vision-language models. Importing it loads no torch."""

from typing import TYPE_CHECKING, Any

from xraygpt.version import __version__

if TYPE_CHECKING:
    from xraygpt.loading import LoadedModel, load_model, load_model_and_preprocess

__all__ = ["LoadedModel", "__version__", "load_model", "load_model_and_preprocess"]


def __getattr__(name: str) -> Any:
    """Import the names that need torch on first access."""
    if name in __all__:
        from xraygpt import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'xraygpt' has no attribute {name!r}")
