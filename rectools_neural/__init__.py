"""Neural recommenders that plug into RecTools and RePlay pipelines."""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .datasets import load_dataset
    from .export import to_jsonl
    from .models.autoencoder import DAEModel, MultDAEModel, MultVAEModel, RecVAEModel
    from .models.dlrm import DLRMModel
    from .models.dssm import DSSMModel
    from .models.gfcf import GFCFModel
    from .models.lightgcn import LightGCNModel
    from .models.ncf import NCFModel
    from .models.userknn import UserKNNModel
    from .pretrained import from_pretrained
    from .registry import model_from_config, model_from_params

__all__ = [
    "DAEModel",
    "DLRMModel",
    "DSSMModel",
    "GFCFModel",
    "LightGCNModel",
    "MultDAEModel",
    "MultVAEModel",
    "NCFModel",
    "RecVAEModel",
    "UserKNNModel",
    "from_pretrained",
    "load_dataset",
    "model_from_config",
    "model_from_params",
    "to_jsonl",
]
__version__ = _version("rectools-neural")

_FUNCTIONS = {
    "from_pretrained": "rectools_neural.pretrained",
    "load_dataset": "rectools_neural.datasets",
    "model_from_config": "rectools_neural.registry",
    "model_from_params": "rectools_neural.registry",
    "to_jsonl": "rectools_neural.export",
}


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): importing the package costs nothing until a name of it is used.
    module = _FUNCTIONS.get(name)
    if module is None and name in __all__:
        from .registry import MODELS

        module = MODELS[name]
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
