"""The newest model of a folder, exchanged while it answers."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from .engine import Engine
from .metrics import Metrics

_logger = logging.getLogger(__name__)
_PATIENCE = 10.0  # seconds that a stop waits for a model that is being loaded

Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Loaded:
    """An engine and when it was loaded."""

    engine: Engine
    at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))


class Reloader:
    """
    Holds the engine of a folder, and takes a new one where the folder was replaced.

    A folder that can't be loaded changes nothing but `error`, the log and the metrics.

    Parameters
    ----------
    folder : path
        The folder.
    ann : bool
        As for `Engine.load`.
    interval : float
        Seconds between two looks at the folder; 0 for none.
    metrics : Metrics
        Are told of swaps.

    Attributes
    ----------
    loaded : Loaded
        What answers now.
    error : str or None
        Why the folder, as it is now, could not be loaded.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        As for `Engine.load`.
    """

    def __init__(self, folder: str | os.PathLike[str], ann: bool, interval: float, metrics: Metrics) -> None:
        self._folder, self._ann, self._interval, self._metrics = Path(folder), ann, interval, metrics
        # Looked at before the files are read: a change in between is seen the next time.
        self._seen = _signature(self._folder)
        self.error: str | None = None
        self._take(Engine.load(folder, ann))
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look at the folder, in a thread."""
        self._stopped.clear()
        if self._interval:
            self._thread = threading.Thread(target=self._watch, name="rectools-neural-reload", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)

    def look(self) -> None:
        """Load the folder if it is not what it was at the last look."""
        signature = _signature(self._folder)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            engine = Engine.load(self._folder, self._ann)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            self._metrics.failed_swaps.inc()
            _logger.warning("%s was replaced, and can't be loaded: the old model stays. %s", self._folder, self.error)
            return
        self._take(engine)
        self.error = None
        self._metrics.swaps.inc()
        _logger.info("%s was replaced: model %s answers now", self._folder, engine.version)

    def _take(self, engine: Engine) -> None:
        self.loaded = Loaded(engine)
        self._metrics.tell_model(engine.version, engine.model_name)

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval):
            self.look()


def _signature(folder: Path) -> Signature | None:
    """
    Tell apart the contents of a folder, without reading them.

    All files count: one that is copied in place, file by file, is looked at again when the last one has come.
    """
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.stat()) for entry in entries]
    except OSError:  # it is being replaced; or gone, as loading will tell
        return None
    return tuple(sorted((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in found))
