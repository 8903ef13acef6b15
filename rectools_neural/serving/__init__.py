"""A service over HTTP for the folders that `save_pretrained` writes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): the answers of a model, `serving.engine`, need nothing of HTTP.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module(".app", __name__).create_app
    except ModuleNotFoundError as error:
        raise ImportError(
            f"rectools_neural.serving needs `{error.name}`: pip install rectools-neural[serve] brings it"
        ) from error
