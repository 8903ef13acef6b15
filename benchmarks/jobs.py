"""Jobs in processes of their own, and the files that remember them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import rectools_neural
from benchmarks import data, measure, metrics, protocols
from benchmarks.files import write_atomically
from benchmarks.measure import Job
from benchmarks.provenance import versions

# The libraries whose version may change a measurement.
DECISIVE = ("python", "rectools", "rectools-lightfm", "pm-implicit", "replay-rec", "torch", "numpy", "scipy", "pandas")

# What `measure` tells of a job, and nobody of one that failed.
MEASURED = ("metrics", "fit_seconds", "recommend_seconds", "peak_memory_mb", "users", "per_user")

# A process that has sent its outcome may still remove temporary files of its own; it need not be waited for longer.
CLEANUP_SECONDS = 5


class JobRunner:
    """
    Runs jobs one at a time, each in its own process, and keeps what they measured.

    Parameters
    ----------
    folder : Path
        Where finished jobs are kept, one JSON each.
    resume : bool
        Whether a job that succeeded before is read from its file rather than run again.
    time_limit : float
        Seconds after which a job is stopped and counts as failed.
    provenance : dict
        Written into every job's file.
    """

    def __init__(self, folder: Path, resume: bool, time_limit: float, provenance: dict[str, Any]) -> None:
        self.folder = folder
        self.resume = resume
        self.time_limit = time_limit
        self.provenance = provenance

    def run(self, job: Job) -> dict[str, Any]:
        """
        Measure a job, or recall it.

        Parameters
        ----------
        job : Job
            What to measure.

        Returns
        -------
        dict
            What `measure` returns, or None in place of each value and an ``error``; besides: ``model``, ``seed``,
            ``fold``, ``config``, ``error`` (None after success), ``provenance``.
        """
        file = self.folder / f"{_slug(job.model)}-seed{job.fold.seed}-fold{job.fold.index}-{job_key(job)}.json"
        if self.resume and file.exists():
            known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if known["error"] is None:
                return known
        record = {
            "model": job.model,
            "seed": job.fold.seed,
            "fold": job.fold.index,
            "config": job.config,
            "error": None,
            **dict.fromkeys(MEASURED),
            **run_in_process(partial(measure.measure, job), self.time_limit, file.with_suffix(".log")),
            "provenance": self.provenance,
        }
        write_atomically(file, json.dumps(record))
        return record


def preload(modules: Iterable[str]) -> None:
    """
    Name the modules that job processes inherit, already imported.

    Parameters
    ----------
    modules : iterable of str
        Modules; ones that cannot be imported are skipped.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.get_context("forkserver").set_forkserver_preload(sorted({*modules, measure.__name__}))


def job_key(job: Job) -> str:
    """
    Hash everything that determines the outcome of a job, but for the machine.

    Parameters
    ----------
    job : Job
        Any job.

    Returns
    -------
    str
        20 hexadecimal digits.
    """
    known = versions()
    content = {
        "config": job.config,
        "data": job.fold.fingerprint,
        "seed": job.fold.seed,
        "ks": job.ks,
        "kept_per_user": job.kept_per_user,
        "replay_metrics": job.replay_metrics,
        "versions": {name: known.get(name) for name in DECISIVE},
        "model code": _code_hash(measure.model_module(job.config)),
        "benchmark code": [_code_hash(module.__name__) for module in (data, measure, metrics, protocols)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()[:20]


def _code_hash(module: str) -> str:
    """Hash the file of a module; for one of the package the whole package, since its models share their parts."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    file = Path(spec.origin)
    is_ours = module.partition(".")[0] == "rectools_neural"
    files = sorted(Path(rectools_neural.__file__).parent.rglob("*.py")) if is_ours else [file]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def run_in_process(work: Callable[[], dict[str, Any]], time_limit: float, log: Path) -> dict[str, Any]:
    """
    Do some work in a process of its own, which may run too long, fill the memory or crash.

    Parameters
    ----------
    work : callable
        What to do; it goes to the process pickled.
    time_limit : float
        Seconds after which it is stopped.
    log : Path
        File for what it prints; kept only where it failed.

    Returns
    -------
    dict
        What `work` returned, or its ``error``.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    log.parent.mkdir(parents=True, exist_ok=True)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, work, log))  # type: ignore[attr-defined]
    try:
        process.start()
        sender.close()
        outcome = _await_outcome(receiver, process, time_limit)
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        receiver.close()
    if "error" not in outcome:
        log.unlink(missing_ok=True)
    return outcome


def _await_outcome(receiver: Connection, process: Any, time_limit: float) -> dict[str, Any]:
    if not wait([receiver, process.sentinel], time_limit):
        return _failure(f"took longer than the time limit of {time_limit:g} s")
    try:
        outcome: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        return _failure(f"the process died, {_cause_of_death(process.exitcode)}")
    process.join(CLEANUP_SECONDS)
    return outcome


def _failure(error: str) -> dict[str, Any]:
    return {"error": error}


def _cause_of_death(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    hint = " (out of memory?)" if -exit_code == signal.SIGKILL else ""
    return f"signal {signal.Signals(-exit_code).name}{hint}"


def _child(sender: Connection, work: Callable[[], dict[str, Any]], log: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _redirect_output(log)
    try:
        outcome = work()
    except BaseException as error:
        traceback.print_exc()
        first_line = str(error).strip().partition("\n")[0]
        outcome = _failure(f"{type(error).__name__}: {first_line}"[:300])
    sender.send(outcome)
    sender.close()


def _exit_with_parent() -> None:
    """End the job when the benchmark is killed: nobody would read its outcome, and it would hold the cores."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _redirect_output(log: Path) -> None:
    """Send what models and their libraries print, C code included, into a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
