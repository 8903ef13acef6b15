"""Models from the options of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from rectools.models.base import ModelBase

from ..errors import did_you_mean
from ..models.pack import PackModel
from ..registry import MODELS, model_from_config
from .errors import InputError

_DEFAULT = "DSSMModel"


def make_model(name: str | None, config: Path | None, overrides: Sequence[str]) -> ModelBase[Any]:
    """
    Make a model.

    Parameters
    ----------
    name : str or None
        Its class, where there is no config; None for the two-tower model.
    config : Path or None
        A YAML file with `cls` and options.
    overrides : sequence of str
        ``name=value``, with dots in the names of nested options and values in YAML.

    Returns
    -------
    ModelBase
        Not fitted.
    """
    if name is not None and config is not None:
        raise InputError("--model and --config both name the model: give one of them, and change options with --set")
    options: dict[str, Any] = {"cls": name or _DEFAULT} if config is None else _read_config(config)
    try:
        cls = type(model_from_config({"cls": options.get("cls")}))
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise InputError(f"{config or '--model'}: {error}") from error
    for override in overrides:
        _set(options, override)
    valid = [field for field in cls.config_class.model_fields if field != "cls"]
    for option in options.keys() - {"cls"}:
        if option not in valid:
            raise InputError(f"{cls.__name__} has no option `{option}`{did_you_mean(option, valid)}")
    try:
        return model_from_config(options)
    except ValidationError as error:
        raise InputError(f"{cls.__name__}: {_first_fault(error)}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{cls.__name__}: {error}") from error


def make_pack_model(name: str | None, config: Path | None, overrides: Sequence[str]) -> PackModel[Any]:
    """Make a model that can be saved and read other data later; parameters as for `make_model`."""
    model = make_model(name, config, overrides)
    if not isinstance(model, PackModel):
        raise InputError(
            f"{type(model).__name__} is RecTools' own, and knows only the data set it was fitted on: take one of "
            f"{', '.join(sorted(MODELS))}; `evaluate` measures both kinds"
        )
    if model.require_recommend_context:
        raise InputError(
            "models with context (`context_numeric`, `context_categorical`) must be told the situation of each user "
            "when they recommend: use them in Python"
        )
    return model


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as error:
        raise InputError(f"--config {path} can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path} is no YAML: {error}") from error
    if not isinstance(config, dict) or "cls" not in config:
        raise InputError(f"--config {path} doesn't name the model: begin it with a line such as `cls: {_DEFAULT}`")
    return config


def _set(options: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *parents, name = path.strip().split(".")
    if not equals or not name or path.strip() == "cls":
        raise InputError(f"--set {override}: write an option of the model and its value, such as --set epochs=20")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: the value is no YAML: {error}") from error
    for parent in parents:
        # A small config given by its plain name has that name as the first of its options.
        inner = options.get(parent) or {}
        options[parent] = {"name": inner} if isinstance(inner, str) else dict(inner)
        options = options[parent]
    options[name] = value


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    option = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"there is no option `{option}`"
    message = fault["msg"].removeprefix("Value error, ")
    return f"option `{option}`: {message}, got {fault['input']!r}" if option else message
