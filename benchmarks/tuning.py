"""Optuna tuning on validation data: the same number of trials for every model that has a search space."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.config import ChoiceSearch, LeaderboardConfig, ModelSpec, Search
from benchmarks.data import Fold, folds
from benchmarks.files import write_atomically
from benchmarks.jobs import JobRunner
from benchmarks.measure import Job

if TYPE_CHECKING:
    import optuna


def validation_fold(train_fold: Fold, config: LeaderboardConfig) -> Fold:
    """
    Cut validation data from the train part of a fold, with the leaderboard's own splitter.

    Parameters
    ----------
    train_fold : Fold
        The fold; its test part is not looked at.
    config : LeaderboardConfig
        Says how to split.

    Returns
    -------
    Fold
        A fold whose train and test parts both lie in the train part of `train_fold`.
    """
    split = config.split.model_copy(update={"n_splits": 1})
    return next(folds(train_fold.train, split, train_fold.seed))


def tune(
    name: str, spec: ModelSpec, config: LeaderboardConfig, fold: Fold, runner: JobRunner, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """
    Search the best parameters of one model.

    The first trial takes the parameters as the configuration has them, so that tuning can't make a model worse on
    the validation data. A failed trial counts.

    Parameters
    ----------
    name : str
        Name of the model.
    spec : ModelSpec
        The model and its search space.
    config : LeaderboardConfig
        Says how many trials, and which metric to maximise.
    fold : Fold
        Validation fold.
    runner : JobRunner
        Runs the trials; one that resumes recalls the trials already made.
    say : callable
        Takes one line of progress.

    Returns
    -------
    dict or None
        ``params`` (parameter, dotted when nested -> best value), ``score``, ``trials``, ``failed``, ``seconds``. None
        if no trial succeeded.
    """
    import optuna

    with _quiet(optuna):
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=fold.seed))
    written = _written_values(spec)
    if written is not None:
        study.enqueue_trial(written)
    failed, start = 0, time.perf_counter()
    for number in range(config.trials):
        trial = study.ask()
        values = {param: _suggest(trial, param, search) for param, search in spec.search.items()}
        record = runner.run(Job(name, job_config(spec, fold.seed, values), fold, config.k, []))
        if record["error"] is None:
            score = record["metrics"][config.metric]
            study.tell(trial, score)
            outcome = f"{config.metric} {score:.4f}"
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            failed += 1
            outcome = f"failed: {record['error']}"
        say(f"tuning {name} [{number + 1}/{config.trials}] {_show(values)}  {outcome}")
    if failed == config.trials:
        return None
    return {
        "params": study.best_params,
        "score": study.best_value,
        "trials": config.trials,
        "failed": failed,
        "seconds": round(time.perf_counter() - start, 1),
    }


def job_config(spec: ModelSpec, seed: int, values: dict[str, Any]) -> dict[str, Any]:
    """
    Complete a model's configuration.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    seed : int
        Goes to the parameter that takes the seed, if there is one.
    values : dict
        Parameter (dotted when nested) -> value, laid over the model's own.

    Returns
    -------
    dict
        Configuration with ``cls`` or ``factory`` for `measure.build_model`.
    """
    seeded = {spec.seed_param: seed} if spec.seed_param else {}
    source = {"cls": spec.cls} if spec.cls else {"factory": spec.factory}
    return {**source, **spec.with_params({**values, **seeded})}


def read_tuned(path: Path | None) -> dict[str, dict[str, Any]]:
    """
    Read tuned parameters.

    Parameters
    ----------
    path : Path or None
        File that `write_tuned` made; None or a missing file means that nothing was tuned.

    Returns
    -------
    dict
        Model -> what `tune` returned, with the circumstances that `write_tuned` added.
    """
    if path is None or not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def write_tuned(path: Path, tuned: dict[str, dict[str, Any]]) -> None:
    """
    Write tuned parameters.

    Parameters
    ----------
    path : Path
        Target file.
    tuned : dict
        Model -> what `tune` returned, with its circumstances.
    """
    head = "# Written by `python -m benchmarks.leaderboard --trials N`; validation scores, not test scores.\n"
    write_atomically(path, head + yaml.safe_dump(tuned, sort_keys=False, allow_unicode=True))


def _written_values(spec: ModelSpec) -> dict[str, Any] | None:
    """Find the values that the configuration itself gives to the searched parameters; None if one has none."""
    values = {}
    for path in spec.search:
        value: Any = spec.params
        for name in path.split("."):
            if not isinstance(value, dict) or name not in value:
                return None
            value = value[name]
        values[path] = value
    return values


def _suggest(trial: optuna.Trial, name: str, search: Search) -> Any:
    if isinstance(search, ChoiceSearch):
        return trial.suggest_categorical(name, search.choices)
    if search.type == "int":
        return trial.suggest_int(name, int(search.low), int(search.high), log=search.log)
    return trial.suggest_float(name, search.low, search.high, log=search.log)


def _show(values: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Keep Optuna from announcing the study, and leave its verbosity as it was."""
    before = library.logging.get_verbosity()
    library.logging.set_verbosity(library.logging.WARNING)
    try:
        yield
    finally:
        library.logging.set_verbosity(before)
