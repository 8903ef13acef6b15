"""Results as files, written whole or not at all, and on the screen."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import replacing
from .errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 50  # rows of a table on a terminal


def check_output(path: Path | None, overwrite: bool, formats: tuple[str, ...]) -> None:
    """Refuse, before any work, a file that could not or must not be written."""
    if path is None:
        return
    if path.suffix not in formats:
        raise InputError(f"--output {path} is of no known format: name a file that ends in {', '.join(formats)}")
    if path.is_dir():
        raise InputError(f"--output {path} is a folder: name a file")
    _check_free(path, overwrite)
    _check_writable(path, path.absolute().parent)


def check_folder(path: Path, overwrite: bool) -> None:
    """Refuse, before any work, a folder that could not or must not be replaced."""
    if path.is_file():
        raise InputError(f"--output {path} is a file: name a folder")
    if path.is_dir() and any(path.iterdir()):
        if not (path / "config.json").is_file():
            raise InputError(f"--output {path} has other files than those of a model: name another folder")
        _check_free(path, overwrite)
    _check_writable(path, next(parent for parent in path.absolute().parents if parent.exists()))


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise InputError(f"--output {path} exists: name another one, or allow to replace it with --overwrite")


def _check_writable(path: Path, parent: Path) -> None:
    if not parent.is_dir():
        raise InputError(f"--output {path}: there is no folder {parent}; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"--output {path}: the folder {parent} can't be written to; name another one")


def write_json(path: Path, value: Any) -> None:
    """Write an object as JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def records(table: pd.DataFrame) -> Any:
    """Rows of a table as plain objects, with None for what is missing."""
    return json.loads(table.to_json(orient="records", double_precision=15))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table, of recommendations for JSON lines, in the format that the name tells."""
    from ..export import to_jsonl

    if path.suffix == ".csv":
        with replacing(path) as temporary:
            table.to_csv(temporary, index=False)
    elif path.suffix == ".parquet":
        with replacing(path) as temporary:
            table.to_parquet(temporary, index=False)
    else:
        to_jsonl(table, path)


def is_terminal() -> bool:
    """Whether people read the results."""
    return sys.stdout.isatty()


@contextmanager
def progress(total: int, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """
    Show on a terminal how far the work is, where results don't go.

    Parameters
    ----------
    total : int
        Number of steps.
    quiet : bool
        Show nothing.

    Yields
    ------
    callable
        Takes the number of finished steps and what is to be said beside the bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    is_shown = sys.stderr.isatty() and not quiet
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, said: bar.update(task, completed=done, description=said)


def show(table: pd.DataFrame, title: str) -> None:
    """Print a table for people on a terminal, and as CSV for programs anywhere else."""
    if not is_terminal():
        table.to_csv(sys.stdout, index=False)
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for name in table.columns:
        shown.add_column(str(name), justify="right" if table[name].dtype.kind in "if" else "left")
    for row in table.head(_SHOWN).itertuples(index=False):
        shown.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    if len(table) > _SHOWN:
        shown.caption = f"{len(table) - _SHOWN} more rows: --output FILE writes all of them"
    Console(markup=False).print(shown)
