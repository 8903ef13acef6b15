"""
The service over HTTP under load: how fast it answers, whether rightly, and what a new model in its folder does to it.

From the repository root::

    python -m benchmarks.serving [--seconds S] [--rate R] [--swap-minutes M] [--quick] [--output FILE]

One process with one thread serves, another one asks (`benchmarks.load`), both on this machine. Requests are due at a
fixed rate, and latency counts from when they are due. Sampled answers are compared with those of `model.recommend`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from rectools import Columns
from rectools.dataset import Dataset, Interactions

from benchmarks.files import write_atomically
from benchmarks.load import HOST, Plan, Report
from benchmarks.provenance import REPOSITORY, THREAD_VARIABLES, provenance
from benchmarks.speed import kion_like
from benchmarks.tables import serving_tables
from rectools_neural import load_dataset, model_from_config
from rectools_neural.models.pack import PackModel

OUTPUT = REPOSITORY / "benchmarks" / "results" / "serving.json"
K, LARGE_K, N_EXTRA = 10, 50, 20
SHARES = {"user": 0.7, "history": 0.2, "k": 0.05, "whitelist": 0.05}
N_QUERIES = 1_999  # a prime, so that the kept answers go through all of them
N_WHITELISTS, WHITELIST = 5, 200
MAX_HISTORY = 50
LIMIT = 50.0  # ms that the 99th percentile may take
SCORE_TOLERANCE, TIE_TOLERANCE = 1e-4, 1e-5  # of the scores, or relative to them where they are above 1
SEEDS = (0, 1, 2)  # of the models that replace each other
AROUND = 1.0  # seconds after a swap that still count as around it
STARTS, STOPS, SWAPS = 120.0, 15.0, 60.0  # seconds that a start, a stop and a swap may take
DISTRIBUTIONS = ("fastapi", "uvicorn", "uvloop", "httptools")
PROBLEMS = ("failed", "answers that differ")
N_SHOWN = 5  # differences that the result file shows

Query = dict[str, Any]
Figures = dict[str, float]


@dataclass(frozen=True)
class Case:
    """
    A model that is served.

    Parameters
    ----------
    name : str
        Of the model.
    config : dict
        Its options. Few epochs: how good it is makes no difference to the time it takes.
    rate : float, default 1
        The load on it, as a share of the rate that is asked for.
    takes_histories : bool, default True
        Whether a history alone can be a query; else known users take the share of these.
    """

    name: str
    config: dict[str, Any]
    rate: float = 1.0
    takes_histories: bool = True


#: Data, and the models that are fitted on them. Models are replaced in the first case.
CASES: dict[str, tuple[Callable[[], Dataset], list[Case]]] = {
    "MovieLens-1M": (
        lambda: load_dataset("ml-1m"),
        [
            Case("DSSM", {"cls": "DSSMModel", "epochs": 2}),
            Case("NeuMF", {"cls": "NCFModel", "epochs": 1}, rate=0.1, takes_histories=False),
        ],
    ),
    "50,000 items": (
        lambda: kion_like(50_000, 50_000, 500_000),
        [Case("DSSM", {"cls": "DSSMModel", "epochs": 1, "batch_size": 2048})],
    ),
}
QUICK_CASES: dict[str, tuple[Callable[[], Dataset], list[Case]]] = {
    "a few generated items": (
        lambda: kion_like(400, 300, 4_000),
        [Case("DSSM", {"cls": "DSSMModel", "epochs": 1, "n_factors": 8})],
    )
}


@dataclass(frozen=True)
class Settings:
    """
    How much load, and for how long.

    Parameters
    ----------
    rate : float
        Requests a second.
    seconds : float
        For how long.
    warm_up : float
        Seconds of load before anything is measured.
    step, max_rate, step_seconds : float
        The highest rate is looked for in steps of so many requests a second, up to a limit, each for so long.
    swap_seconds, swap_interval : float
        How long models are swapped under load, and the time between swaps.
    reload_interval : float
        Seconds between the looks of the service into its folder.
    """

    rate: float = 500
    seconds: float = 30
    warm_up: float = 3
    step: float = 250
    max_rate: float = 5_000
    step_seconds: float = 5
    swap_seconds: float = 600
    swap_interval: float = 60
    reload_interval: float = 1

    @property
    def n_swaps(self) -> int:
        """How often a new model is saved."""
        return max(1, round(self.swap_seconds / self.swap_interval))


QUICK = Settings(
    rate=100,
    seconds=2,
    warm_up=0.5,
    step=100,
    max_rate=100,
    step_seconds=1,
    swap_seconds=4,
    swap_interval=4,
    reload_interval=0.2,
)


def run(settings: Settings, is_quick: bool = False) -> dict[str, Any]:
    """
    Fit the models, serve them and put them under load.

    Parameters
    ----------
    settings : Settings
        How much, and for how long.
    is_quick : bool, default False
        With few generated data instead.

    Returns
    -------
    dict
        JSON-ready: provenance, settings, figures of the cases by name and of the swaps.
    """
    result: dict[str, Any] = {
        "provenance": provenance(),
        "load before": round(os.getloadavg()[0], 1),
        "note": "a load before of 1 or more: others were at work on the machine, and the times are too long",
        "service": {name: importlib.metadata.version(name) for name in DISTRIBUTIONS},
        "settings": {**asdict(settings), "queries": SHARES, "k": [K, LARGE_K], "whitelist": WHITELIST},
        "cases": {},
    }
    for data, (load, cases) in (QUICK_CASES if is_quick else CASES).items():
        dataset = load()
        for case in cases:
            name, own = f"{data}, {case.name}", replace(settings, rate=case.rate * settings.rate)
            queries = make_queries(dataset, N_QUERIES, case.takes_histories)
            with tempfile.TemporaryDirectory(prefix="serving-") as folder:
                bench = _Bench(own, dataset, queries, Path(folder))
                result["cases"][name] = {**asdict(case), **bench.measure(case.config)}
                if "swaps" not in result:
                    result["swaps"] = {"case": name, **bench.swap(case.config)}
    return result


# ---------------------------------------------------------------------- queries, and what they should give


def make_queries(dataset: Dataset, n: int, with_histories: bool = True) -> list[Query]:
    """
    Draw what is asked, in the shares of `SHARES`: known users with defaults, histories, long lists, whitelists.

    Parameters
    ----------
    dataset : Dataset
        Whose users and items are asked for.
    n : int
        How many queries.
    with_histories : bool, default True
        Else known users take the share of the histories.

    Returns
    -------
    list of dict
        Bodies of requests.
    """
    rng, frame = np.random.default_rng(0), dataset.interactions.df
    users = dataset.user_id_map.convert_to_external(frame[Columns.User].unique()).tolist()
    rows = dataset.item_id_map.convert_to_external(frame[Columns.Item].to_numpy())  # the popular ones more often
    items = np.unique(rows)
    whitelists = [rng.choice(items, min(WHITELIST, len(items) // 2), False).tolist() for _ in range(N_WHITELISTS)]
    queries: list[Query] = []
    for kind in rng.choice(list(SHARES), n, p=list(SHARES.values())):
        query: Query = {"user_id": users[rng.integers(len(users))], "k": LARGE_K if kind == "k" else K}
        if kind == "history" and with_histories:
            drawn = rng.choice(rows, rng.integers(1, MAX_HISTORY + 1))
            query = {"history": pd.unique(drawn).tolist(), "k": K}
        elif kind == "whitelist":
            query["items"] = whitelists[rng.integers(N_WHITELISTS)]
        queries.append(query)
    return queries


def expected_answers(model: PackModel[Any], dataset: Dataset, queries: Sequence[Query]) -> list[pd.Series]:
    """
    Answer queries by `model.recommend`.

    Parameters
    ----------
    model : PackModel
        The model that is served.
    dataset : Dataset
        What it was fitted on.
    queries : sequence of dict
        Bodies of requests.

    Returns
    -------
    list of pd.Series
        Scores by item, best first, of a few more items than are asked for: those may tie with the last ones.
    """
    answers: dict[int, pd.Series] = {}
    groups: dict[tuple[bool, int, tuple[Any, ...]], list[int]] = {}
    for number, query in enumerate(queries):
        group = "history" in query, query["k"], tuple(query.get("items", ()))
        groups.setdefault(group, []).append(number)
    for (has_history, k, whitelist), numbers in groups.items():
        users: list[Any]
        if has_history:
            # New users: the model is to know nothing of them but the history.
            users = [f"history {number}" for number in numbers]
            known = _with_histories(dataset, users, [queries[number]["history"] for number in numbers])
        else:
            users, known = [queries[number]["user_id"] for number in numbers], dataset
        reco = model.recommend(
            np.unique(users), known, k + N_EXTRA, True, items_to_recommend=list(whitelist) if whitelist else None
        )
        lists: dict[Any, pd.Series] = dict(iter(reco.set_index(Columns.Item).groupby(Columns.User)[Columns.Score]))
        answers |= {number: lists[user] for number, user in zip(numbers, users, strict=True)}
    return [answers[number] for number in range(len(queries))]


def _with_histories(dataset: Dataset, names: Sequence[str], histories: Sequence[Sequence[Any]]) -> Dataset:
    """Make a dataset of new users beside the old ones, who lose their histories here and have no features."""
    user_ids, lengths = dataset.user_id_map.add_ids(np.array(names, object)), [len(one) for one in histories]
    rows = {
        Columns.User: np.repeat(user_ids.convert_to_internal(names), lengths),
        Columns.Item: dataset.item_id_map.convert_to_internal(np.concatenate(histories)),
        Columns.Weight: 1.0,
        Columns.Datetime: np.datetime64("2024-01-01", "ns") + np.concatenate([np.arange(n) for n in lengths]),
    }
    interactions = Interactions(pd.DataFrame(rows))
    return Dataset(user_ids, dataset.item_id_map, interactions, dataset.user_features, dataset.item_features)


def difference(answer: Mapping[str, Any], query: Query, expected: pd.Series) -> str | None:
    """
    Tell how an answer differs from that of `model.recommend`.

    Parameters
    ----------
    answer : mapping
        What the service gave.
    query : dict
        What it was asked.
    expected : pd.Series
        See `expected_answers`.

    Returns
    -------
    str or None
        None where it does not: the scores are the same, and so are the items but for ties.
    """
    items = [row["item_id"] for row in answer["items"]]
    scores = np.array([row["score"] for row in answer["items"]], np.float64)
    best = expected.to_numpy(np.float64)[: query["k"]]
    if len(items) != len(best) or len(set(items)) != len(items) or answer["ignored"]:
        return f"{len(set(items))} different items in a list of {len(items)}, ignored {answer['ignored']}"
    scale = np.maximum(np.abs(best), 1.0)
    if not (np.abs(scores - best) <= SCORE_TOLERANCE * scale).all():
        return f"scores {scores.tolist()} instead of {best.tolist()}"
    if not (np.abs(expected.reindex(items).to_numpy(np.float64) - best) <= TIE_TOLERANCE * scale).all():
        return f"items {items} instead of {expected.index[: query['k']].tolist()}"
    return None


# ---------------------------------------------------------------------- the service and the load on it


class Service:
    """
    A running service.

    Parameters
    ----------
    process : subprocess.Popen
        Its process.
    port : int
        Where it answers.
    log : Path
        What it prints.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.port = port
        self._process, self._log, self._usage = process, log, psutil.Process(process.pid)

    def version(self) -> str | None:
        """Ask for the version of the model that answers; None before there is one."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/ready", timeout=STARTS) as answer:
                version: str = json.load(answer)["model"]
                return version
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):
                raise
        return None

    def next_version(self, earlier: str | None, seconds: float) -> str:
        """
        Wait for another model than that of an earlier version.

        Raises
        ------
        RuntimeError
            If the service ends, or has no other model in time.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process.poll() is None:
            version = self.version()
            if version not in (None, earlier):
                return str(version)
            time.sleep(0.1)
        happened = "has ended" if self._process.poll() is not None else f"has no new model after {seconds:g} s"
        raise RuntimeError(f"The service {happened}:\n{self._log.read_text(errors='replace')[-3000:]}")

    def cpu_seconds(self) -> float:
        """Add up what it has taken of the processor."""
        times = [process.cpu_times() for process in self._processes()]
        return float(sum(one.user + one.system for one in times))

    def memory(self) -> float:
        """Look up the resident memory, in MB."""
        return float(sum(process.memory_info().rss for process in self._processes()) / 2**20)

    def _processes(self) -> list[psutil.Process]:
        return [self._usage, *self._usage.children(recursive=True)]


@contextmanager
def service(folder: Path, reload_interval: float) -> Iterator[Service]:
    """
    Serve a saved model by the command line in a process with one thread, and stop it at the end.

    Parameters
    ----------
    folder : Path
        Of the model; what the service prints goes to a file beside it.
    reload_interval : float
        Seconds between its looks into the folder.

    Yields
    ------
    Service
        It is ready.
    """
    port, log = _free_port(), folder.with_suffix(".log")
    command = [sys.executable, "-m", "rectools_neural.cli", "serve", str(folder)]
    command += ["--port", str(port), "--reload-interval", str(reload_interval)]
    with log.open("wb") as output, running(command, stdout=output, stderr=output) as process:
        server = Service(process, port, log)
        server.next_version(None, STARTS)
        yield server


@contextmanager
def load_on(port: int, queries: Sequence[Query], rate: float, seconds: float) -> Iterator[Callable[[], Report]]:
    """
    Put load on a service from a process of its own.

    Parameters
    ----------
    port : int
        Of the service.
    queries : sequence of dict
        What is asked in turn.
    rate, seconds : float
        Requests a second, and for how long.

    Yields
    ------
    callable
        Waits for the end and gives the report. The load has started.
    """
    plan = Plan(port, "/recommend", [json.dumps(query) for query in queries], rate, seconds)
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        files = [Path(name) / file for file in ("plan.json", "report.json")]
        files[0].write_text(json.dumps(asdict(plan)), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.load", *map(str, files)]
        with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()  # it has started, or failed

            def report() -> Report:
                _, errors = process.communicate(timeout=seconds + 2 * plan.patience + STARTS)
                if process.returncode:
                    raise RuntimeError(f"The load failed:\n{errors.decode(errors='replace')[-3000:]}")
                return Report(**json.loads(files[1].read_text(encoding="utf-8")))

            yield report


@contextmanager
def running(command: Sequence[str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """
    Run a command with one thread for each library, and stop it at the end, whatever happens.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments.
    **streams
        Where what it prints goes, as for `subprocess.Popen`.

    Yields
    ------
    subprocess.Popen
        The process.
    """
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, **streams) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOPS)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


# ---------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class _Bench:
    settings: Settings
    dataset: Dataset
    queries: list[Query]
    folder: Path

    @property
    def _saved(self) -> Path:
        return self.folder / "model"

    def measure(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Load at the given rate, then at rising ones."""
        model = self._fit(config)
        model.save_pretrained(self._saved, dataset=self.dataset)
        with self._warm_service() as (server, version):
            cpu_seconds = server.cpu_seconds()
            report = self._load(server, self.settings.rate, self.settings.seconds)
            cpu_seconds = server.cpu_seconds() - cpu_seconds
            memory, steps = server.memory(), self._steps(server)
        n, differences = len(report.latencies), self._differences(report, {version: model})
        figures = {
            "requests a second": n / (report.end - report.start),
            **_latencies(report),
            "answers compared": len(report.answers),
            "answers that differ": len(differences),
            "CPU of the server, ms a request": 1e3 * cpu_seconds / n,
            "CPU of the load, ms a request": 1e3 * report.cpu_seconds / n,
            "memory of the server, MB": memory,
            f"highest rate with p99 below {LIMIT:g} ms": max(
                (step["rate"] for step in steps if _holds(step)), default=0
            ),
        }
        return {"figures": figures, "steps": steps, **_details(report, differences)}

    def _steps(self, server: Service) -> list[Figures]:
        steps: list[Figures] = []
        for rate in np.arange(1, self.settings.max_rate / self.settings.step + 1) * self.settings.step:
            # Twice, where it fails: others may have been at work on the machine.
            for _ in range(2):
                report = self._load(server, float(rate), self.settings.step_seconds)
                steps.append({"rate": float(rate), **_latencies(report)})
                if _holds(steps[-1]):
                    break
            else:
                break
        return steps

    def swap(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Save other models over the one that is served, again and again, under load."""
        settings = self.settings
        models = [self._fit({**config, "seed": seed}) for seed in SEEDS]
        models[0].save_pretrained(self._saved, dataset=self.dataset)
        swaps: list[Figures] = []
        with self._warm_service() as (server, version):
            versions, memory = {version: models[0]}, []
            with load_on(server.port, self.queries, settings.rate, settings.swap_seconds) as report_of:
                start = time.monotonic()
                for number in range(settings.n_swaps):
                    time.sleep(max(start + (number + 0.5) * settings.swap_interval - time.monotonic(), 0))
                    memory.append(server.memory())
                    model, began = models[(number + 1) % len(models)], time.monotonic()
                    model.save_pretrained(self._saved, dataset=self.dataset)
                    saved = time.monotonic()
                    version = server.next_version(version, SWAPS)
                    versions[version] = model
                    swaps.append({"began": began, "saved": saved, "served": time.monotonic()})
                report = report_of()
            swaps = [{name: moment - report.start for name, moment in swap.items()} for swap in swaps]
            memory.append(server.memory())
        differences = self._differences(report, versions)
        figures = {
            "swaps": len(swaps),
            "requests": len(report.latencies),
            **_latencies(report),
            **self._latencies_around(report, swaps),
            "answers compared": len(report.answers),
            "answers that differ": len(differences),
            "from the end of saving until the new model answers, at most, s": max(
                swap["served"] - swap["saved"] for swap in swaps
            ),
            "memory of the server before the first swap, MB": memory[0],
            "memory after the first swap, MB": memory[1],
            "memory after the last swap, MB": memory[-1],
        }
        return {"figures": figures, "memory": memory, "swaps": swaps, **_details(report, differences)}

    def _latencies_around(self, report: Report, swaps: Sequence[Figures]) -> Figures:
        due = np.arange(len(report.latencies)) / self.settings.rate
        near = np.zeros(len(due), bool)
        for swap in swaps:
            near |= (due >= swap["began"]) & (due <= swap["served"] + AROUND)
        times = 1e3 * np.array(report.latencies)
        parts = {"around": times[near], "between": times[~near]}
        return {f"p99 {name} swaps, ms": float(np.quantile(part, 0.99)) for name, part in parts.items() if len(part)}

    def _fit(self, config: Mapping[str, Any]) -> PackModel[Any]:
        model: PackModel[Any] = model_from_config(config).fit(self.dataset)  # type: ignore[assignment]
        return model

    @contextmanager
    def _warm_service(self) -> Iterator[tuple[Service, str]]:
        with service(self._saved, self.settings.reload_interval) as server:
            self._load(server, self.settings.rate, self.settings.warm_up)
            yield server, server.next_version(None, STARTS)

    def _load(self, server: Service, rate: float, seconds: float) -> Report:
        with load_on(server.port, self.queries, rate, seconds) as report:
            return report()

    def _differences(self, report: Report, models: Mapping[str, PackModel[Any]]) -> list[str]:
        """Compare the kept answers with those of the model that each of them names."""
        expected = {version: expected_answers(model, self.dataset, self.queries) for version, model in models.items()}
        found = []
        for number, text in report.answers:
            answer, place = json.loads(text), number % len(self.queries)
            if answer["model"] in expected:
                problem = difference(answer, self.queries[place], expected[answer["model"]][place])
            else:
                problem = f"an answer of the unknown model {answer['model']}"
            if problem is not None:
                found.append(f"{json.dumps(self.queries[place])}: {problem}")
        return found


def _latencies(report: Report) -> Figures:
    times = 1e3 * np.array(report.latencies)
    quantiles = {f"p{share}, ms": float(np.quantile(times, share / 100)) for share in (50, 95, 99)}
    return {**quantiles, "longest, ms": float(times.max()), "failed": len(report.failures)}


def _details(report: Report, differences: Sequence[str]) -> dict[str, Any]:
    """Tell what went wrong: failures by status, 0 where no answer came, and some answers that differ."""
    return {"failures": Counter(status for _, status in report.failures), "differences": differences[:N_SHOWN]}


def _holds(step: Figures) -> bool:
    return not step["failed"] and step["p99, ms"] < LIMIT


def problems(result: Mapping[str, Any]) -> list[str]:
    """
    List what must not happen: requests that fail and answers that are not those of the model.

    Parameters
    ----------
    result : mapping
        What `run` returns.

    Returns
    -------
    list of str
        Empty where all is well.
    """
    parts = {**result["cases"], "swaps": result["swaps"]}
    counts = [(name, part["figures"][kind], kind) for name, part in parts.items() for kind in PROBLEMS]
    return [f"{name}: {count} {kind}" for name, count, kind in counts if count]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the result file, print the tables; exit with 1 where requests failed or answers are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=(__doc__ or "").strip().split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="a few generated data and seconds")
    parser.add_argument("--seconds", type=float, help=f"of load on each case (default: {Settings.seconds:g})")
    parser.add_argument("--rate", type=float, help=f"requests a second (default: {Settings.rate:g})")
    minutes = Settings.swap_seconds / 60
    parser.add_argument("--swap-minutes", type=float, help=f"of load with a swap each minute (default: {minutes:g})")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    if any(value is not None and value <= 0 for value in (given.seconds, given.rate, given.swap_minutes)):
        parser.error("--seconds, --rate and --swap-minutes must be above 0")
    changes = {"seconds": given.seconds, "rate": given.rate}
    changes["swap_seconds"] = None if given.swap_minutes is None else 60 * given.swap_minutes
    settings = replace(QUICK if given.quick else Settings(), **{n: v for n, v in changes.items() if v is not None})
    result = run(settings, given.quick)
    write_atomically(given.output, json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(serving_tables(result))
    if found := problems(result):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
