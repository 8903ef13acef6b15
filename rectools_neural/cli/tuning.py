"""Search of good options with Optuna."""

from __future__ import annotations

import json
import math
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rectools.dataset import Dataset

from .errors import InputError, WorkError
from .evaluation import measure
from .models import build_model, build_pack_model, fit_model, read_yaml, with_option
from .options import RunOptions, SplitOptions
from .output import progress
from .spaces import SPACES

_FORMS = "{choices: [32, 64]} or {low: 1e-4, high: 1e-2, log: true}"


@dataclass(frozen=True)
class Choices:
    """Some values."""

    values: list[Any]

    def suggest(self, trial: Any, name: str) -> Any:
        """Let Optuna choose; it takes plain values only, hence places in the list."""
        return self.values[trial.suggest_categorical(name, list(range(len(self.values))))]


@dataclass(frozen=True)
class Range:
    """All numbers between two; whole ones if both are."""

    low: float
    high: float
    log: bool

    @property
    def values(self) -> list[Any]:
        """Both ends."""
        return [self.low, self.high]

    def suggest(self, trial: Any, name: str) -> Any:
        """Let Optuna choose."""
        suggest = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        return suggest(name, self.low, self.high, log=self.log)


Space = dict[str, Choices | Range]


def choose_space(cls: str, options: Mapping[str, Any], path: Path | None) -> Space:
    """
    Find out what to search.

    Parameters
    ----------
    cls : str
        Public name of the model.
    options : mapping
        Options that are given: they are not searched.
    path : Path or None
        A YAML file of the user's; None for the space that comes with the model.

    Returns
    -------
    dict
        Option, with a dot where it is nested -> values, each of which is valid beside the given options.
    """
    source = f"--search {path}" if path else "the search"
    raw = SPACES[cls] if path is None else read_yaml(path, "--search")
    if not isinstance(raw, Mapping) or not raw:
        raise InputError(f"{source} names no options: write lines such as `n_factors: {_FORMS}`")
    given = options.keys() - {"cls"}
    if path is None:
        raw = {name: values for name, values in raw.items() if name.partition(".")[0] not in given}
        if not raw:
            raise InputError(f"all that is searched for {cls} is given already: name other options with --search")
    for name in raw:
        if str(name).partition(".")[0] in given:
            raise InputError(f"{source}: `{name}` is searched and given by --set or --config: leave one of them out")
    space = {str(name): _read_values(f"{source}: `{name}`", values) for name, values in raw.items()}
    _check(space, options, source)
    return space


def _read_values(what: str, values: Any) -> Choices | Range:
    keys = set(values) if isinstance(values, Mapping) else set()
    if keys == {"choices"} and isinstance(values["choices"], list) and values["choices"]:
        return Choices(values["choices"])
    if not {"low", "high"} <= keys <= {"low", "high", "log"}:
        raise InputError(f"{what} is {values!r}: write {_FORMS}")
    ends, log = [_read_number(what, values[end]) for end in ("low", "high")], values.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"{what} has log {log!r}: write true or false")
    low, high = ends if all(isinstance(end, int) for end in ends) else map(float, ends)
    if low >= high or (log and low <= 0):
        raise InputError(f"{what} goes from {low} to {high}: low is less than high, and with log more than 0")
    return Range(low, high, log)


def _read_number(what: str, value: Any) -> float:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML reads 1e-4 as text
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{what} goes from or to {value!r}: write finite numbers")
    return number


def _check(space: Space, options: Mapping[str, Any], source: str) -> None:
    """Refuse values that are not valid, before any work: each takes its turn beside the first ones of the others."""
    first = {name: values.values[0] for name, values in space.items()}
    for name, values in space.items():
        for value in values.values:
            try:
                build_pack_model(with_values(options, {**first, name: value}))
            except InputError as error:
                raise InputError(f"{source}: `{name}` {value!r}: {error}") from error


def with_values(options: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Set options, whose names have dots where they are nested, in a copy."""
    changed = dict(options)
    for name, value in values.items():
        changed = with_option(changed, name, value)
    return changed


class Tuning:
    """
    A search; what is found is there at any time.

    Parameters
    ----------
    options : mapping
        `cls` and the options that are given.
    space : dict
        What to search.
    train, validation : Dataset, pd.DataFrame
        Parts of the data.
    metric : str
        What to maximise.
    k : int
        Of the metric.

    Attributes
    ----------
    start : float or None
        The metric of the given options alone; None before it is measured, or if that failed.
    best : dict or None
        The best options: those that are given, unless a trial beat them. None before anything has succeeded.
    value : float
        Their metric.
    finished : int
        Trials that succeeded.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        space: Space,
        train: Dataset,
        validation: pd.DataFrame,
        metric: str,
        k: int,
    ) -> None:
        self.options, self.space, self.metric = dict(options), space, f"{metric}@{k}"
        self._train, self._validation, self._k = train, validation, k
        self.start: float | None = None
        self.best: dict[str, Any] | None = None
        self.value = -math.inf
        self.finished = 0

    def search(self, trials: int, timeout: float | None, run: RunOptions) -> None:
        """
        Measure the given options, then trials.

        Parameters
        ----------
        trials : int
            How many.
        timeout : float or None
            Seconds after which no further trial begins; the first one always does.
        run : RunOptions
            What to say beside the results.

        Raises
        ------
        WorkError
            If no trial succeeded.
        """
        started, last = time.monotonic(), ""
        with _study() as (study, failed), progress(trials + 1, run.quiet) as update:
            try:
                self.start = self._measure(self.options)
            except Exception as error:
                _warn("the given options", error, run)
            update(1, self._said())
            for number in range(trials):
                if number and timeout is not None and time.monotonic() - started >= timeout:
                    break
                trial = study.ask()
                values = {name: choice.suggest(trial, name) for name, choice in self.space.items()}
                try:
                    study.tell(trial, self._measure(with_values(self.options, values)))
                    self.finished += 1
                except Exception as error:
                    study.tell(trial, state=failed)
                    last = _warn(f"trial {number + 1} with {json.dumps(values, default=str)}", error, run)
                update(number + 2, self._said())
        if not self.finished:
            raise WorkError(f"all trials failed, the last one with {last}")

    def _measure(self, options: dict[str, Any]) -> float:
        model = build_model(options)
        fit_model(model, self._train, quiet=True)
        value = measure(model, self._train, self._validation, self._k)[self.metric]
        if not math.isfinite(value):
            raise ValueError(f"{self.metric} is {value}")
        if value > self.value:
            self.best, self.value = options, value
        return value

    def _said(self) -> str:
        return f"best {self.metric} {self.value:.4f}" if self.best is not None else ""


def _warn(what: str, error: Exception, run: RunOptions) -> str:
    if run.debug:
        traceback.print_exception(error)
    said = f"{type(error).__name__}: {error}"
    warnings.warn(f"{what} failed: {said}", UserWarning, stacklevel=2)
    return said


def check_optuna() -> None:
    """Complain, before any work, if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"tune needs the module `{error.name}`: pip install rectools-neural[cli] brings it") from error


@contextmanager
def _study() -> Iterator[tuple[Any, Any]]:
    """Give a study and the state of a failed trial, while Optuna says nothing."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        sampler = optuna.samplers.TPESampler(seed=0)
        yield optuna.create_study(direction="maximize", sampler=sampler), optuna.trial.TrialState.FAIL
    finally:
        optuna.logging.set_verbosity(before)


def describe(tuning: Tuning, data: Path, held: SplitOptions) -> str:
    """Write what a search has found as YAML for `fit --config`, with comments that tell how it came about."""
    start = "failed" if tuning.start is None else f"{tuning.start:.6f}"
    size, option = ("", "") if held.size is None else (f", size {held.size:g}", f" --size {held.size:g}")
    name = held.split.value
    comments = [
        f"The best options that `rectools-neural tune` found on {json.dumps(data.name)}, trials: {tuning.finished}.",
        f"{tuning.metric} on validation rows: {tuning.value:.6f}; of the options without the search: {start}.",
        f"Split: {name}{size}, seed 0, cut twice. `evaluate --split {name}{option}` holds out rows that the search has",
        "not seen; they count as misses above, so that its figures are higher.",
        f"Searched: {', '.join(tuning.space)}.",
    ]
    text = yaml.safe_dump(tuning.best, sort_keys=False, allow_unicode=True)
    return "".join(f"# {comment}\n" for comment in comments) + text
