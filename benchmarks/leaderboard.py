"""
Leaderboard: models beside each other on the same folds, with the same metrics and the same tuning budget.

From the repository root::

    python -m benchmarks.leaderboard [--config FILE] [--output FOLDER] [--resume] [--trials N] [--seeds N ...]
        [--models NAME ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rectools.dataset import Dataset
from rectools.utils.misc import import_object

from benchmarks import pictures, report, tuning
from benchmarks.config import LeaderboardConfig, ModelSpec, load_config, select_models
from benchmarks.data import fingerprint, folds, prepare
from benchmarks.jobs import JobRunner, preload
from benchmarks.measure import Job, build_model, model_module
from benchmarks.metrics import REPLAY, describe, make_metrics
from benchmarks.provenance import REPOSITORY, provenance
from benchmarks.summary import summarise

CONFIG = REPOSITORY / "benchmarks" / "configs" / "leaderboard.yaml"
RESULTS = REPOSITORY / "benchmarks" / "results"

Say = Callable[[str], None]


def run_leaderboard(
    config: dict[str, Any] | str | Path,
    output: str | Path = RESULTS,
    resume: bool = False,
    models: list[str] | None = None,
    progress: Say | None = None,
    **overrides: Any,
) -> pd.DataFrame:
    """
    Measure every model of a configuration on every seed and fold, each in a process of its own.

    Each finished job is kept in ``output/jobs``; the table is written to ``output`` as CSV, JSON and HTML, named after
    the configuration file (``leaderboard`` when the configuration is a dictionary). The best model that is no baseline
    is fitted once more for the pictures of the HTML page. A script that calls this needs the usual
    ``if __name__ == "__main__":`` guard of multiprocessing.

    Parameters
    ----------
    config : dict, str or Path
        Configuration (see ``benchmarks/configs/leaderboard.yaml``) or its file. ``data`` may also be a
        ``rectools.dataset.Dataset``.
    output : str or Path
        Folder for the results.
    resume : bool
        Recall jobs that succeeded before, with the same data, code, versions and parameters. Failed jobs run again.
    models : list of str, optional
        Run only these models.
    progress : callable, optional
        Takes one line per job; by default nothing is shown.
    **overrides
        Top-level fields of the configuration to replace, such as ``trials`` or ``seeds``.

    Returns
    -------
    DataFrame
        One row per model, best first; see `summarise`.

    Raises
    ------
    ValueError
        If the configuration is wrong; no job has run then.
    """
    return _Run(config, Path(output), resume, models, progress or (lambda line: None), overrides).run()


class _Run:
    """A run, checked as soon as it is made: whatever is wrong with the configuration shows here."""

    def __init__(
        self,
        source: dict[str, Any] | str | Path,
        output: Path,
        resume: bool,
        models: list[str] | None,
        say: Say,
        overrides: dict[str, Any],
    ) -> None:
        config = load_config(source, **overrides)
        config = config if models is None else select_models(config, models)
        name = "leaderboard" if isinstance(source, dict) else Path(source).stem
        self.config = config
        self.output = output
        self.name = name
        self.say = say
        self.provenance = provenance()
        self.tuned_file = config.tuned or output / f"{name}-tuned.yaml"
        self.tuned = {} if config.trials else tuning.read_tuned(self.tuned_file)
        self.runner = JobRunner(output / "jobs", resume, config.time_limit, self.provenance)
        self.modules = {self._check_model(name, spec) for name, spec in config.models.items()}
        self.dataset = prepare(config.data)

    def run(self) -> pd.DataFrame:
        preload(self.modules)
        if self.config.trials:
            self._tune()
        else:
            self._note_foreign_tuning()
        records = self._measure()
        frame, comparisons = summarise(records, self.config)
        result = {
            "title": self.config.title,
            "metric": self.config.metric,
            "provenance": self.provenance,
            "config": _describe_config(self.config),
            "data": _describe_data(self.dataset),
            "metrics": self._describe_metrics(frame),
            "tuned": {name: self.tuned[name] for name in self.config.models if name in self.tuned},
            "rows": frame,
            "comparisons": comparisons,
            "jobs": [self._shorten(record) for record in records],
        }
        files = report.write_all(result, self._pictures(frame), self.output, self.name)
        self.say(report.screen_table(result))
        self.say("\n".join(str(file) for file in files))
        return frame

    def _check_model(self, name: str, spec: ModelSpec) -> str:
        """Build a model once, so that a wrong name or parameter stops the run at its start; return its module."""
        config = self._job_config(name, self.config.seeds[0])
        try:
            if spec.factory:
                import_object(spec.factory)
            else:
                build_model(config)
        except (ValueError, TypeError, AttributeError, ImportError) as error:
            # A model that RecTools or this package has, but that needs something not installed, only fails itself.
            if not (isinstance(error, ImportError) and spec.cls and "." not in spec.cls):
                raise ValueError(f"model {name!r}: {error}") from error
            self.say(f"{name} will fail: {error}")
        return model_module(config)

    def _job_config(self, name: str, seed: int) -> dict[str, Any]:
        spec = self.config.models[name]
        best = self.tuned.get(name, {}).get("params", {})
        return tuning.job_config(spec, seed, {param: value for param, value in best.items() if param in spec.search})

    def _circumstances(self) -> dict[str, Any]:
        described = _describe_config(self.config)
        return {"metric": self.config.metric, "data": described["data"], "split": described["split"]}

    def _tune(self) -> None:
        seed = self.config.seeds[0]
        validation = tuning.validation_fold(next(folds(self.dataset, self.config.split, seed)), self.config)
        made = {**self._circumstances(), "seed": seed, "commit": self.provenance["git"]["commit"]}
        for name, spec in self.config.models.items():
            if not spec.search:
                continue
            best = tuning.tune(name, spec, self.config, validation, self.runner, self.say)
            if best is not None:
                self.tuned[name] = {**best, **made}
                # Written after each model: what a long tuning has found survives a kill.
                tuning.write_tuned(self.tuned_file, {**tuning.read_tuned(self.tuned_file), name: self.tuned[name]})

    def _note_foreign_tuning(self) -> None:
        now = self._circumstances()
        for name in self.config.models:
            made = {key: value for key, value in self.tuned.get(name, now).items() if key in now}
            if made != now:
                self.say(f"{name}: its parameters were tuned for {made}, which is not what is measured here")

    def _pictures(self, frame: pd.DataFrame) -> str:
        """Draw the best model that is no baseline, fitted once more on the first fold."""
        ours = frame.loc[~frame["baseline"] & (frame["finished"] > 0), "model"]
        if ours.empty:
            return pictures.note("There is no model to draw: none besides the baselines has finished.")
        name, seed = str(ours.iloc[0]), self.config.seeds[0]
        fold = next(folds(self.dataset, self.config.split, seed))
        job = Job(name, self._job_config(name, seed), fold, self.config.k, [])
        return pictures.section(job, self.config.time_limit, self.output / "jobs" / "pictures.log")

    def _measure(self) -> list[dict[str, Any]]:
        config = self.config
        kept = list(dict.fromkeys([config.metric, f"recall@{config.k[-1]}"]))
        total = len(config.models) * len(config.seeds) * config.split.n_splits
        width = max(map(len, config.models))
        records: list[dict[str, Any]] = []
        for seed in config.seeds:
            for fold in folds(self.dataset, config.split, seed):
                for name in config.models:
                    job = Job(name, self._job_config(name, seed), fold, config.k, kept, config.replay_metrics)
                    record = self.runner.run(job)
                    records.append(record)
                    where = f"seed {seed}" if config.split.n_splits == 1 else f"seed {seed} fold {fold.index}"
                    self.say(f"[{len(records)}/{total}] {name:<{width}}  {where}  {_outcome(record, config.metric)}")
        return records

    def _shorten(self, record: dict[str, Any]) -> dict[str, Any]:
        """Leave out what only the job's own file holds, and a provenance that says nothing new."""
        known = record["provenance"] == self.provenance
        left_out = {"users", "per_user", "provenance"} if known else {"users", "per_user"}
        return {name: value for name, value in record.items() if name not in left_out}

    def _describe_metrics(self, frame: pd.DataFrame) -> dict[str, Any]:
        versions = self.provenance["versions"]
        flags = {label: describe(metric) for label, metric in make_metrics(self.config.k, self.dataset).items()}
        for label in frame.columns[frame.columns.str.startswith(REPLAY) & ~frame.columns.str.endswith(" std")]:
            flags[label] = f"{label.removeprefix(REPLAY)} of replay-rec {versions['replay-rec']}"
        return {"library": f"rectools {versions['rectools']}", "flags": flags}


def _outcome(record: dict[str, Any], metric: str) -> str:
    if record["error"] is not None:
        return f"FAILED: {record['error']}"
    memory = "" if record["peak_memory_mb"] is None else f"  memory {record['peak_memory_mb']:.0f} MB"
    return (
        f"{metric} {record['metrics'][metric]:.4f}  fit {record['fit_seconds']:.1f} s  "
        f"recommend {record['recommend_seconds']:.1f} s{memory}"
    )


def _describe_config(config: LeaderboardConfig) -> dict[str, Any]:
    described = config.model_dump(mode="json", exclude={"data", "tuned"})
    in_memory = isinstance(config.data, Dataset)
    described["data"] = {"name": "in memory"} if in_memory else config.data.model_dump(mode="json")
    return described


def _describe_data(dataset: Dataset) -> dict[str, Any]:
    return {
        "users": int(dataset.n_hot_users),
        "items": int(dataset.n_hot_items),
        "interactions": len(dataset.interactions.df),
        "fingerprint": fingerprint(dataset),
    }


def main(arguments: list[str] | None = None) -> int:
    """
    Run from the command line.

    Parameters
    ----------
    arguments : list of str, optional
        Command line without the program's name; by default the real one.

    Returns
    -------
    int
        Exit status: 0 if any job succeeded, 1 if none did, 2 for a wrong configuration, 130 when interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaderboard", description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", type=Path, default=CONFIG, help="YAML file (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="recall the jobs that an earlier run finished")
    parser.add_argument("--trials", type=int, help="tune every model with so many trials first, and keep what is found")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the configuration's")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="only these models")
    given = parser.parse_args(arguments)
    overrides = {"trials": given.trials, "seeds": given.seeds}
    try:
        run = _Run(given.config, given.output, given.resume, given.models, partial(print, flush=True), overrides)
    except (ValueError, OSError) as error:
        print(f"leaderboard: {error}", file=sys.stderr)
        return 2
    try:
        frame = run.run()
    except KeyboardInterrupt:
        print("\nInterrupted; finished jobs are kept: add --resume to go on.", file=sys.stderr)
        return 130
    return 0 if frame["finished"].any() else 1


if __name__ == "__main__":
    sys.exit(main())
