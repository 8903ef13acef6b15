"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
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
