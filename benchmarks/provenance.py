"""Where a result comes from: machine, versions, commit, time."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
DISTRIBUTIONS = (
    "rectools-neural",
    "rectools",
    "rectools-lightfm",
    "pm-implicit",
    "replay-rec",
    "pyspark",
    "torch",
    "faiss-cpu",
    "pytorch-lightning",
    "numpy",
    "scipy",
    "pandas",
    "optuna",
    "scikit-learn",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def provenance() -> dict[str, Any]:
    """
    Describe what a result depends on besides its own configuration.

    Returns
    -------
    dict
        JSON-ready: ``machine`` (system, cpu, cores, memory in GiB), ``versions`` (Python and the libraries that are
        installed), ``git`` (commit and whether the tree has changes; both None outside a repository), ``threads``
        (the thread limits set in the environment), ``command`` and ``utc`` (ISO time).
    """
    return {
        "machine": dict(_machine()),
        "versions": dict(versions()),
        "git": _git(),
        "threads": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@functools.cache
def versions() -> dict[str, str]:
    """
    Look up Python's version and the versions of the libraries in `DISTRIBUTIONS` that are installed.

    Returns
    -------
    dict
        Distribution name -> version.
    """
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _git() -> dict[str, Any]:
    commit = _git_output("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    # Results are written by the runs themselves: they say nothing about the code that made them.
    changes = _git_output("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return {"commit": commit, "dirty": bool(changes)}


def _git_output(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
