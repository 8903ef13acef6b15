"""Run models on published evaluation protocols and set their numbers beside the published ones.

From the repository root: ``python -m benchmarks.published P1 P2 --models EASE DSSMModel --seeds 0 1 2``. Settings are
chosen with ``--validate``, which cuts the train part alone; the test part is touched only without it.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from rectools import Columns
from rectools.dataset import Dataset

from benchmarks.config import ModelSpec
from benchmarks.files import write_atomically
from benchmarks.measure import build_model
from benchmarks.protocols import PROTOCOLS, Cut, Protocol
from benchmarks.provenance import provenance
from benchmarks.tuning import job_config
from rectools_neural import load_dataset

FOLDER = Path(__file__).resolve().parent


class PublishedRows(BaseModel):
    """Published numbers that share a source."""

    model_config = ConfigDict(extra="forbid")

    source: str
    rows: dict[str, dict[str, float]] = Field(description="Model -> metric name with k -> value.")


class ProtocolConfig(BaseModel):
    """What a protocol is run with and compared with."""

    model_config = ConfigDict(extra="forbid")

    published: list[PublishedRows]
    models: dict[str, ModelSpec] = Field(description="Name of the row -> model.")


def load_config(path: Path) -> dict[str, ProtocolConfig]:
    """
    Read the models and the published numbers of all protocols.

    Parameters
    ----------
    path : Path
        YAML file: protocol name -> `ProtocolConfig`.

    Returns
    -------
    dict
        Protocol name to configuration.

    Raises
    ------
    ValueError
        If a protocol is unknown, or a field is missing, unknown or of the wrong type.
    """
    config = TypeAdapter(dict[str, ProtocolConfig]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    _refuse_unknown("protocols", config, PROTOCOLS)
    return config


def _refuse_unknown(what: str, names: Iterable[str], valid: Iterable[str]) -> None:
    valid = list(valid)
    unknown = [name for name in names if name not in valid]
    if unknown:
        raise ValueError(f"unknown {what} {unknown}; choose from {valid}")


def measure(protocol: Protocol, cut: Cut, name: str, spec: ModelSpec, seed: int) -> dict[str, Any]:
    """
    Fit a model, recommend, evaluate.

    Parameters
    ----------
    protocol : Protocol
        Gives the list length and the metrics.
    cut : Cut
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
        JSON-ready row: ``model``, ``seed``, ``config``, ``metrics``, ``fit_seconds``, ``recommend_seconds``, the
        size of the ``cut`` and, of a model that was fitted with validation, the ``learning_curve``.
    """
    model = build_model(job_config(spec, seed, {}))
    start = time.perf_counter()
    model.fit(cut.train)
    fitted = time.perf_counter()
    reco = cut.recommend(model, protocol.k)
    recommended = time.perf_counter()
    history: pd.DataFrame = getattr(model, "history", pd.DataFrame())
    validated = ["epoch", *(column for column in map(str, history) if "@" in column)]
    curve = history[validated].dropna().to_dict("records") if len(validated) > 1 else None
    return {
        "model": name,
        "seed": seed,
        "config": spec.model_dump(mode="json", exclude_defaults=True),
        "metrics": protocol.metrics(reco, cut, protocol.k),
        "fit_seconds": fitted - start,
        "recommend_seconds": recommended - fitted,
        "cut": {
            "train_rows": len(cut.train.interactions.df),
            "test_rows": len(cut.test),
            "test_users": int(cut.test[Columns.User].nunique()),
        },
        **({"learning_curve": curve} if curve else {}),
    }


def read_results(path: Path) -> dict[str, Any]:
    """
    Read a result file.

    Parameters
    ----------
    path : Path
        File written by `add_row`; it may be missing.

    Returns
    -------
    dict
        At least ``rows`` and ``runs``.

    Raises
    ------
    ValueError
        If the file holds something else.
    """
    if not path.exists():
        return {"rows": [], "runs": {}}
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(results["rows"], list) and isinstance(results["runs"], dict):
            return results
    except (json.JSONDecodeError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is no result file of this benchmark; move it away or choose another --output")


def add_row(path: Path, header: dict[str, Any], row: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """
    Put a row into a result file.

    It replaces the row of the same model and seed, and all rows of that model with another configuration: a mean over
    seeds must be of one model.

    Parameters
    ----------
    path : Path
        The result file, made if missing, never left half-written.
    header : dict
        What the file says before its rows.
    row : dict
        From `measure`.
    run : dict
        From `provenance`; the file keeps one for each run that still has a row.

    Returns
    -------
    dict
        Content of the file.
    """
    old = read_results(path)
    kept = [
        other
        for other in old["rows"]
        if other["model"] != row["model"] or (other["config"] == row["config"] and other["seed"] != row["seed"])
    ]
    rows = sorted([*kept, {**row, "run": run["utc"]}], key=lambda other: (other["model"], other["seed"]))
    runs = {utc: origin for utc, origin in (old["runs"] | {run["utc"]: run}).items() if utc in {r["run"] for r in rows}}
    results = {**header, "rows": rows, "runs": runs}
    write_atomically(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results


def table(results: dict[str, Any], published: Sequence[PublishedRows], main_metric: str) -> pd.DataFrame:
    """
    Set our rows beside the published ones.

    Parameters
    ----------
    results : dict
        Content of a result file.
    published : Sequence of PublishedRows
        The published rows.
    main_metric : str
        Orders the rows, best first.

    Returns
    -------
    pd.DataFrame
        One row a model: metrics as "mean ± standard deviation over seeds", seconds as means.
    """
    ours = pd.json_normalize(results["rows"])
    metrics = list(results["rows"][0]["metrics"])
    lines: list[dict[str, Any]] = [
        {"model": name, "from": f"published [{number}]", **{k: f"{v:.4f}" for k, v in values.items()}}
        | {"order": values.get(main_metric)}
        for number, group in enumerate(published, start=1)
        for name, values in group.rows.items()
    ]
    for name, rows in ours.groupby("model"):
        line: dict[str, Any] = {"model": name, "from": "ours", "order": rows[f"metrics.{main_metric}"].mean()}
        line |= {metric: _mean_and_deviation(rows[f"metrics.{metric}"]) for metric in metrics}
        line |= {"seeds": str(len(rows))}
        line |= {f"{part} s": f"{rows[f'{part}_seconds'].mean():.1f}" for part in ("fit", "recommend")}
        lines.append(line)
    columns = ["model", "from", *metrics, "seeds", "fit s", "recommend s"]
    return pd.DataFrame(lines).sort_values("order", ascending=False)[columns].fillna("").reset_index(drop=True)


def _mean_and_deviation(values: pd.Series) -> str:
    return f"{values.mean():.4f}" + (f" ± {values.std():.4f}" if len(values) > 1 else "")


def run(
    protocols: Sequence[str],
    models: Sequence[str] | None,
    seeds: Sequence[int],
    *,
    validate: bool,
    output: Path,
    config: dict[str, ProtocolConfig],
) -> None:
    """
    Measure models on protocols, write the results and print the tables.

    Parameters
    ----------
    protocols : Sequence of str
        Names of protocols.
    models : Sequence of str, optional
        Names of models, all of them in each protocol's configuration; None runs all models of each protocol.
    seeds : Sequence of int
        Seeds of the models, and of the cuts that are not the same for everybody.
    validate : bool
        Whether to cut the train part instead of touching the test part.
    output : Path
        Folder of the result files.
    config : dict
        From `load_config`.

    Raises
    ------
    ValueError
        If a name is unknown, a model's configuration is wrong or a result file is broken; before any work starts.
    """
    _refuse_unknown("protocols", protocols, config)
    chosen: dict[str, dict[str, ModelSpec]] = {}
    for name in protocols:
        specs = config[name].models
        _refuse_unknown(f"models for {name}", models or (), specs)
        chosen[name] = {model: specs[model] for model in models or specs}
        read_results(_result_path(output, name, validate))
        for model, spec in chosen[name].items():
            _check_model(f"{name}: {model}", spec, seeds[0])
    origin = provenance()
    for name in protocols:
        _run_protocol(PROTOCOLS[name], chosen[name], seeds, validate=validate, output=output, origin=origin)
        results = read_results(_result_path(output, name, validate))
        # Published numbers are of the test part: they say nothing beside a validation.
        published = [] if validate else config[name].published
        print(f"\n{name}: {PROTOCOLS[name].title}{' - VALIDATION' if validate else ''}")
        print(f"metrics: {PROTOCOLS[name].definitions}")
        print(table(results, published, PROTOCOLS[name].main_metric).to_string(index=False))
        for number, group in enumerate(published, start=1):
            print(f"[{number}] {group.source}")


def _check_model(row: str, spec: ModelSpec, seed: int) -> None:
    try:
        build_model(job_config(spec, seed, {}))
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"{row} cannot be made: {error}") from error


def _run_protocol(
    protocol: Protocol,
    specs: dict[str, ModelSpec],
    seeds: Sequence[int],
    *,
    validate: bool,
    output: Path,
    origin: dict[str, Any],
) -> None:
    header = {
        "protocol": protocol.name,
        "title": protocol.title,
        "part": "validation" if validate else "test",
        "k": protocol.k,
        "definitions": protocol.definitions,
    }
    for seed in seeds:
        cut = (protocol.validation if validate else protocol.split)(_load(protocol.dataset), seed)
        for name, spec in specs.items():
            row = measure(protocol, cut, name, spec, seed)
            add_row(_result_path(output, protocol.name, validate), header, row, origin)
            value = row["metrics"][protocol.main_metric]
            print(
                f"{protocol.name} {name} seed {seed}: {protocol.main_metric} {value:.4f}", file=sys.stderr, flush=True
            )


def _result_path(output: Path, protocol: str, validate: bool) -> Path:
    return output / f"{protocol}{'-validation' if validate else ''}.json"


@functools.cache
def _load(name: str) -> Dataset:
    return load_dataset(name)


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Parameters
    ----------
    argv : Sequence of str, optional
        Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__)
    parser.add_argument("protocols", nargs="+", metavar="PROTOCOL", help=f"from {', '.join(PROTOCOLS)}")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="rows of the configuration (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--validate", action="store_true", help="cut the train part: the way to choose settings")
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "published", metavar="FOLDER")
    parser.add_argument("--config", type=Path, default=FOLDER / "configs" / "published.yaml", metavar="FILE")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config)
        run(
            arguments.protocols,
            arguments.models,
            arguments.seeds,
            validate=arguments.validate,
            output=arguments.output,
            config=config,
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
