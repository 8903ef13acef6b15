"""State of a training run on disk, so that a run that was killed goes on from the last finished epoch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class Checkpoints:
    """
    The checkpoints of a fit, one for each training run that it takes: a validation and the refit after it are two.

    Parameters
    ----------
    folder : Path
        Where they are.
    """

    folder: Path
    _n_runs: int = 0

    def next_run(self, fingerprint: str) -> Checkpoint:
        """
        Return the checkpoint of the next training run.

        Parameters
        ----------
        fingerprint : str
            Of the data and options of the run.

        Raises
        ------
        ValueError
            If there is a checkpoint of a run with another fingerprint.
        """
        self._n_runs += 1
        checkpoint = Checkpoint(self.folder / f"run-{self._n_runs}.ckpt", fingerprint)
        if checkpoint.exists and checkpoint.read().get("fingerprint") != fingerprint:
            raise ValueError(
                f"`checkpoint_dir` {self.folder} holds the training of a model with other options or data, or by other "
                "versions of the packages: delete it to start anew, or name another folder"
            )
        return checkpoint

    def remove(self) -> None:
        """Delete what was written."""
        for number in range(1, self._n_runs + 1):
            (self.folder / f"run-{number}.ckpt").unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            shutil.rmtree(self.folder)


@dataclass(frozen=True)
class Checkpoint:
    """
    A file with the state of a training run; never half-written.

    Parameters
    ----------
    path : Path
        The file.
    fingerprint : str
        Of the data and options of the run.
    """

    path: Path
    fingerprint: str

    @property
    def exists(self) -> bool:
        """Whether there is a state to go on from."""
        return self.path.exists()

    def read(self) -> dict[str, Any]:
        """Load the state."""
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{self.path} is no checkpoint that can be read: delete it to start anew") from error
        return state

    def write(self, save: Callable[[Path], None], is_main: bool = True) -> None:
        """
        Replace the state.

        Parameters
        ----------
        save : callable
            Writes the state to a path; called in all processes of a distributed run.
        is_main : bool
            Whether this process is the one that writes.
        """
        part = self.path.with_suffix(".part")
        if is_main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        save(part)
        if is_main:
            os.replace(part, self.path)
