"""Models from the options of the command line, and from folders."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rectools.models
import yaml
from pydantic import ValidationError
from rectools.dataset import Dataset
from rectools.models.base import ModelBase

from ..errors import did_you_mean
from ..models.pack import PackModel
from ..pretrained import from_pretrained
from ..registry import MODELS, model_from_config
from .errors import InputError
from .options import ModelOptions

_DEFAULT = "DSSMModel"


def read_options(choice: ModelOptions) -> dict[str, Any]:
    """
    Read the options of a model.

    Parameters
    ----------
    choice : ModelOptions
        `model`: its class, where there is no config; None for the two-tower model. `config`: a YAML file with `cls`
        and options. `overrides`: ``name=value``, with dots in the names of nested options and values in YAML.

    Returns
    -------
    dict
        `cls` and options, for `build_model`.
    """
    if choice.model is not None and choice.config is not None:
        raise InputError("--model and --config both name the model: give one of them, and change options with --set")
    options = {"cls": choice.model or _DEFAULT} if choice.config is None else _read_config(choice.config)
    _find_class(options, str(choice.config or "--model"))
    for override in choice.overrides or ():
        path, value = _parse(override)
        options = with_option(options, path, value)
    return options


def build_model(options: Mapping[str, Any], source: str = "--model") -> ModelBase[Any]:
    """
    Make a model.

    Parameters
    ----------
    options : mapping
        `cls` and options.
    source : str
        Where the class was named, for messages.

    Returns
    -------
    ModelBase
        Not fitted.
    """
    cls = _find_class(options, source)
    valid = [field for field in cls.config_class.model_fields if field != "cls"]
    for option in options.keys() - {"cls"}:
        if option not in valid:
            raise InputError(f"{cls.__name__} has no option `{option}`{did_you_mean(str(option), valid)}")
    try:
        return model_from_config(options)
    except ValidationError as error:
        raise InputError(f"{cls.__name__}: {_first_fault(error)}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{cls.__name__}: {error}") from error


def build_pack_model(options: Mapping[str, Any]) -> PackModel[Any]:
    """Make a model that can be saved and read other data later."""
    model = build_model(options)
    if not isinstance(model, PackModel):
        raise InputError(
            f"{type(model).__name__} is RecTools' own, and knows only the data set it was fitted on: take one of "
            f"{', '.join(sorted(MODELS))}; `evaluate` and `leaderboard` measure both kinds"
        )
    if model.require_recommend_context:
        raise InputError(
            "models with context (`context_numeric`, `context_categorical`) must be told the situation of each user "
            "when they recommend: use them in Python"
        )
    return model


def load_model(folder: Path) -> PackModel[Any]:
    """Load what `fit` has written."""
    try:
        return from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from error


def fit_model(model: ModelBase[Any], dataset: Dataset, quiet: bool) -> float:
    """Fit, with progress on a terminal, and return the seconds."""
    verbose, started = model.verbose, time.perf_counter()
    model.verbose = 0 if quiet else max(verbose, int(sys.stderr.isatty()))
    try:
        # Results go to the standard output, and nothing else.
        with contextlib.redirect_stdout(sys.stderr):
            model.fit(dataset)
    finally:
        model.verbose = verbose
    return time.perf_counter() - started


def read_yaml(path: Path, option: str) -> Any:
    """Read the file that an option names."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as error:
        raise InputError(f"{option} {path} can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{option} {path} is no YAML: {error}") from error


def with_option(options: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set an option, whose name has dots where it is nested, in a copy."""
    name, dot, rest = path.partition(".")
    if not dot:
        return {**options, name: value}
    inner = options.get(name) or {}
    # A small config given by its plain name has that name as the first of its options.
    inner = {"name": inner} if isinstance(inner, str) else inner
    if not isinstance(inner, Mapping):
        raise InputError(f"option `{name}` is {inner!r} and has no options of its own, so that `{path}` can't be set")
    return {**options, name: with_option(inner, rest, value)}


def _find_class(options: Mapping[str, Any], source: str) -> type[ModelBase[Any]]:
    name = options.get("cls")
    if isinstance(name, str) and name not in MODELS:
        # Some of RecTools' models can't be made without options, so that their class is looked up.
        found = getattr(rectools.models, name.removeprefix("rectools.models."), None)
        if isinstance(found, type) and issubclass(found, ModelBase):
            return found
    try:
        return type(model_from_config({"cls": name}))
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise InputError(f"{source}: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    config = read_yaml(path, "--config")
    if not isinstance(config, dict) or "cls" not in config:
        raise InputError(f"--config {path} doesn't name the model: begin it with a line such as `cls: {_DEFAULT}`")
    return config


def _parse(override: str) -> tuple[str, Any]:
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or path == "cls" or not all(path.split(".")):
        raise InputError(f"--set {override}: write an option of the model and its value, such as --set epochs=20")
    try:
        return path, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: the value is no YAML: {error}") from error


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    option = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"there is no option `{option}`"
    message = fault["msg"].removeprefix("Value error, ")
    return f"option `{option}`: {message}, got {fault['input']!r}" if option else message
