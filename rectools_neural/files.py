"""Files and folders that are there as a whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Give a temporary path beside `path` that takes its place at the end of the block, or vanishes if the block fails.

    Parameters
    ----------
    path : path
        The file to write. The temporary path has its suffix, by which some writers choose a format.

    Yields
    ------
    Path
        Where to write.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex}{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike[str], names: Collection[str]) -> Iterator[Path]:
    """
    Give a temporary folder beside `path` that takes its place at the end of the block, or vanishes if the block fails.

    A folder can't be replaced in one step. In between, `find_folder` finds the old one.

    Parameters
    ----------
    path : path
        The folder to write. Where a link leads is replaced, not the link.
    names : collection of str
        The files that the old and the new one may consist of; nothing else is ever deleted.

    Yields
    ------
    Path
        Where to write.
    """
    target, old = Path(os.path.realpath(path)), old_folder(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.mkdir()
        yield temporary
        _sync(temporary)
        if target.exists():
            _remove(old, names)
            os.rename(target, old)
        try:
            os.rename(temporary, target)
        except BaseException:
            if old.exists():
                os.rename(old, target)
            raise
        _sync_folder(target.parent)
        _remove(old, names)
    finally:
        _remove(temporary, names)


def find_folder(path: str | os.PathLike[str]) -> Path:
    """Give the folder, or the old one where the new one has not taken its place yet, or never will."""
    folder = Path(path)
    return old_folder(folder) if not folder.exists() and old_folder(folder).is_dir() else folder


def old_folder(path: str | os.PathLike[str]) -> Path:
    """Tell where the old folder is while the new one takes its place."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.old")


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere folders can't be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path, names: Collection[str]) -> None:
    if not folder.is_dir():
        return
    for name in names:
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
