"""The models of the pack by name, and models from configs with short names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rectools.models
from rectools.models.base import ModelBase
from rectools.utils.misc import unflatten_dict

from .errors import did_you_mean

#: Public model name -> module that holds it. A new model adds one line here.
MODELS: dict[str, str] = {
    "DAEModel": "rectools_neural.models.autoencoder",
    "DLRMModel": "rectools_neural.models.dlrm",
    "DSSMModel": "rectools_neural.models.dssm",
    "GFCFModel": "rectools_neural.models.gfcf",
    "LightGCNModel": "rectools_neural.models.lightgcn",
    "MultDAEModel": "rectools_neural.models.autoencoder",
    "MultVAEModel": "rectools_neural.models.autoencoder",
    "RecVAEModel": "rectools_neural.models.autoencoder",
    "NCFModel": "rectools_neural.models.ncf",
    "UserKNNModel": "rectools_neural.models.userknn",
}


def model_from_config(config: Mapping[str, Any]) -> ModelBase[Any]:
    """
    Create a model from a config, with short class names.

    Parameters
    ----------
    config : mapping
        A RecTools model config. ``cls`` is a name of this pack (``"DSSMModel"``), a name of RecTools
        (``"EASEModel"``), a dotted path, or a class. Where both have a name, this pack's model is meant.

    Returns
    -------
    ModelBase
        The model, not fitted.

    Raises
    ------
    ValueError
        If ``cls`` is missing or names no model.
    """
    name = config.get("cls")
    if name is None:
        raise ValueError('The config has no `cls`: name the model, for example {"cls": "DSSMModel"}')
    if isinstance(name, str) and "." not in name:
        if name in MODELS:
            config = {**config, "cls": f"rectools_neural.{name}"}
        elif not _is_model(getattr(rectools.models, name, None)):
            raise ValueError(f"Unknown model `{name}`{did_you_mean(name, [*MODELS, *rectools.models.__all__])}")
    return rectools.models.model_from_config(dict(config))


def model_from_params(params: Mapping[str, Any], sep: str = ".") -> ModelBase[Any]:
    """
    Create a model from a flat dict of parameters, with short class names.

    Parameters
    ----------
    params : mapping
        As for `model_from_config`, with nested keys joined by `sep`.
    sep : str, default "."
        Separator of nested keys.

    Returns
    -------
    ModelBase
        The model, not fitted.
    """
    return model_from_config(unflatten_dict(dict(params), sep=sep))


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, ModelBase)
