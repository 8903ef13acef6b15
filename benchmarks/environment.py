"""Libraries that this project is compared with and that need older packages than it: in environments of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.files import write_atomically
from benchmarks.provenance import THREAD_VARIABLES

LAST_PYTHON = (3, 12)  # of numpy below 2


@dataclass(frozen=True)
class Environment:
    """
    A virtual environment for one library.

    Attributes
    ----------
    package : str
        The library with its version, installed without its dependencies.
    requirements : tuple of str
        What it needs, numpy below 2 among it.
    """

    package: str
    requirements: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the library."""
        return self.package.partition("==")[0]

    @property
    def stamp(self) -> str:
        """Name of the file that marks the folder of a virtual environment made here."""
        return f"rectools-neural-{self.name}.txt"

    @property
    def content(self) -> str:
        """What that file says once everything is installed."""
        return "\n".join([self.package, *self.requirements, ""])

    def make(self, folder: Path) -> Path:
        """
        Make the virtual environment, unless it is there.

        Parameters
        ----------
        folder : Path
            Where it is, or shall be.

        Returns
        -------
        Path
            Its Python.

        Raises
        ------
        ValueError
            If the folder holds something else, or no such environment can be made.
        """
        folder = folder.expanduser().absolute()
        python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        stamp = folder / self.stamp
        if stamp.exists() and stamp.read_text(encoding="utf-8") == self.content:
            return python
        if not stamp.exists() and folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and no environment of this benchmark: choose another folder")
        if sys.version_info[:2] > LAST_PYTHON:
            raise ValueError(
                f"{self.package} needs numpy below 2, and so a Python up to {'.'.join(map(str, LAST_PYTHON))}: "
                "run with that"
            )
        print(f"making an environment with {self.package} in {folder}", file=sys.stderr, flush=True)
        # Until everything is installed the stamp says only whose folder it is.
        write_atomically(stamp, "unfinished\n")
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [*install, *self.requirements],
            [*install, "--no-deps", self.package],
        ):
            outcome = subprocess.run(command, capture_output=True, text=True, check=False)
            if outcome.returncode:
                raise ValueError(f"`{' '.join(command)}` failed:\n{(outcome.stderr or outcome.stdout)[-3000:]}")
        write_atomically(stamp, self.content)
        return python


def ask_worker(python: Path, worker: Path, request: dict[str, Any], folder: Path, threads: int) -> Any:
    """
    Run a script of this folder in another environment.

    Parameters
    ----------
    python : Path
        Python of the environment.
    worker : Path
        The script; it takes the names of a JSON file to read and of one to write.
    request : dict
        JSON-ready, what it is asked.
    folder : Path
        Where it runs and where both files are written.
    threads : int
        Threads of the libraries below it.

    Returns
    -------
    object
        What it answered, from JSON.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    # -I: the folder of the script stays off the path, where a file of this project would hide the package of its name.
    command = [str(python), "-I", str(worker), "request.json", "result.json"]
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    outcome = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise RuntimeError(f"{worker.stem} failed:\n{outcome.stderr[-3000:]}")
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))
