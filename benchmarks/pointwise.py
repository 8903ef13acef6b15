"""What the benchmarks of ratings and of clicks share: tasks, the scores of given pairs, rows and the command line.

A model is anything with `fit(dataset)` and `predict_pairs(pairs, dataset)`: a baseline is a `factory` of the
configuration, so that its settings stand beside those of the models and are chosen in the same way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from pydantic import TypeAdapter
from rectools import Columns
from rectools.dataset import Dataset

from benchmarks.config import ModelSpec
from benchmarks.measure import build_model
from benchmarks.provenance import REPOSITORY, provenance
from benchmarks.published import add_row, read_results
from benchmarks.tuning import job_config

Values = npt.NDArray[np.float64]
Specs = dict[str, dict[str, ModelSpec]]


@dataclass(frozen=True)
class Part:
    """
    What a model learns from and what it is asked.

    Attributes
    ----------
    train : Dataset
        Interactions with the target as their weight, and context columns if there are any.
    test : pd.DataFrame
        Rows to predict the weight of, external ids, all columns of the interactions. Their users and items have rows
        in `train`, so that every model can predict them.
    cold_rows : int
        Test rows that were left out for want of that.
    """

    train: Dataset
    test: pd.DataFrame
    cold_rows: int


@dataclass(frozen=True)
class Task:
    """
    Values to predict.

    Attributes
    ----------
    name : str
        Short name, as in the configuration and the result files.
    title : str
        Data and split in words.
    seeds : tuple of int
        Each has a split of its own.
    split : Callable
        (seed, whether to validate) to the part; validation takes its test rows from the train part.
    metrics : Callable
        (weights of the test rows, scores) to metric values by name, the main one first.
    definitions : str
        What the metrics are, in words.
    largest_first : bool
        Whether more of the main metric is better.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    split: Callable[[int, bool], Part]
    metrics: Callable[[Values, Values], dict[str, float]]
    definitions: str
    largest_first: bool


def cut(dataset: Dataset, train: npt.NDArray[np.bool_], test: npt.NDArray[np.bool_]) -> Part:
    """
    Cut a dataset by row masks.

    Parameters
    ----------
    dataset : Dataset
        All interactions.
    train, test : np.ndarray
        Whether a row is in the part, shape (n_rows,).

    Returns
    -------
    Part
        Without the test rows of cold users and items.
    """
    raw = dataset.get_raw_interactions(include_extra_cols=True)
    asked = raw[test]
    warm = np.logical_and.reduce([asked[column].isin(raw.loc[train, column]) for column in Columns.UserItem])
    return Part(
        train=dataset.filter_interactions(np.flatnonzero(train)),
        test=asked[warm].reset_index(drop=True),
        cold_rows=int((~warm).sum()),
    )


def measure(task: Task, part: Part, name: str, spec: ModelSpec, seed: int) -> dict[str, Any]:
    """
    Fit a model, predict, evaluate.

    Parameters
    ----------
    task : Task
        Gives the metrics.
    part : Part
        What to fit on and to ask.
    name : str
        Name of the row.
    spec : ModelSpec
        The model.
    seed : int
        Goes to the parameter that takes the seed, if there is one.

    Returns
    -------
    dict
        JSON-ready row: ``model``, ``seed``, ``config``, ``metrics`` and the size of the ``cut``.
    """
    model: Any = build_model(job_config(spec, seed, {}))
    model.fit(part.train)
    # What is to be predicted stays hidden.
    pairs = part.test.drop(columns=[Columns.Weight, Columns.Datetime])
    scores = model.predict_pairs(pairs, part.train)[Columns.Score].to_numpy(dtype=np.float64)
    return {
        "model": name,
        "seed": seed,
        "config": spec.model_dump(mode="json", exclude_defaults=True),
        "metrics": task.metrics(part.test[Columns.Weight].to_numpy(), scores),
        "cut": {
            "train_rows": len(part.train.interactions.df),
            "test_rows": len(part.test),
            "cold_rows": part.cold_rows,
        },
    }


def load_specs(path: Path, tasks: Mapping[str, Task]) -> Specs:
    """
    Read the models of all tasks.

    Parameters
    ----------
    path : Path
        YAML file: task -> name of the row -> model.
    tasks : Mapping
        The tasks by name.

    Returns
    -------
    dict
        Task to row to model.

    Raises
    ------
    ValueError
        If a task is unknown, or a field is missing, unknown or of the wrong type.
    """
    specs = TypeAdapter(Specs).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    _refuse_unknown("tasks", specs, tasks)
    return specs


def _refuse_unknown(what: str, names: Sequence[str] | Mapping[str, Any], valid: Mapping[str, Any]) -> None:
    unknown = [name for name in names if name not in valid]
    if unknown:
        raise ValueError(f"unknown {what} {unknown}; choose from {list(valid)}")


def run(tasks: Sequence[Task], specs: Specs, models: Sequence[str] | None, *, validate: bool, output: Path) -> None:
    """
    Measure models on tasks, write the results and print the tables.

    Parameters
    ----------
    tasks : Sequence of Task
        What to predict.
    specs : dict
        From `load_specs`.
    models : Sequence of str, optional
        Names of models, all of them in each task's configuration; None runs all models of each task.
    validate : bool
        Whether to cut the train part instead of touching the test part.
    output : Path
        Folder of the result files.

    Raises
    ------
    ValueError
        If a name is unknown, a model's configuration is wrong or a result file is broken; before any work starts.
    """
    for task in tasks:
        _refuse_unknown(f"models for {task.name}", models or (), specs[task.name])
        read_results(result_path(output, task, validate))
        for name in models or specs[task.name]:
            try:
                build_model(job_config(specs[task.name][name], task.seeds[0], {}))
            except (ValueError, TypeError, AttributeError, ImportError) as error:
                raise ValueError(f"{task.name}: {name} cannot be made: {error}") from error
    origin = provenance()
    for task in tasks:
        path = result_path(output, task, validate)
        header = {
            "task": task.name,
            "title": task.title,
            "part": "validation" if validate else "test",
            "definitions": task.definitions,
            "largest_first": task.largest_first,
        }
        for seed in task.seeds:
            part = task.split(seed, validate)
            for name in models or specs[task.name]:
                row = measure(task, part, name, specs[task.name][name], seed)
                add_row(path, header, row, origin)
                print(f"{task.name} {name} seed {seed}: {row['metrics']}", file=sys.stderr, flush=True)
        print(f"\n{task.name}: {task.title}{' - VALIDATION' if validate else ''}")
        print(screen_table(read_results(path), task))


def result_path(output: Path, task: Task, validate: bool) -> Path:
    """Name the result file of a task."""
    return output / f"{task.name}{'-validation' if validate else ''}.json"


def screen_table(results: dict[str, Any], task: Task) -> str:
    """
    Draw the means over the seeds in aligned plain text.

    Parameters
    ----------
    results : dict
        Content of a result file.
    task : Task
        Says which models are best.

    Returns
    -------
    str
        A line a model, the best first.
    """
    rows = pd.DataFrame([{"model": row["model"], **row["metrics"]} for row in results["rows"]])
    means = rows.groupby("model").mean()
    table = means.assign(seeds=rows["model"].value_counts())
    return table.sort_values(means.columns[0], ascending=not task.largest_first).to_string(float_format="%.4f")


def main(program: str, what: str, tasks: Mapping[str, Task], arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line of a benchmark.

    Parameters
    ----------
    program : str
        Name of the module in this folder; that of its configuration and of the folder of its results.
    what : str
        What it does.
    tasks : Mapping
        Its tasks by name.
    arguments : Sequence of str, optional
        Arguments; those of the process by default.
    """
    folder = REPOSITORY / "benchmarks"
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}", description=what)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"from {', '.join(tasks)} (default: all)")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="rows of the configuration (default: all)")
    parser.add_argument("--validate", action="store_true", help="cut the train part: the way to choose settings")
    parser.add_argument("--output", type=Path, default=folder / "results" / program, metavar="FOLDER")
    parser.add_argument("--config", type=Path, default=folder / "configs" / f"{program}.yaml", metavar="FILE")
    given = parser.parse_args(arguments)
    try:
        _refuse_unknown("tasks", given.tasks, tasks)
        specs = load_specs(given.config, tasks)
        chosen = [tasks[name] for name in given.tasks or specs]
        run(chosen, specs, given.models, validate=given.validate, output=given.output)
    except (ValueError, RuntimeError, OSError) as error:
        parser.error(str(error))
