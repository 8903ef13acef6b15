"""Questions that wait together are answered together, by one thread beside the event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

S = TypeVar("S")
Resolved = list[tuple["asyncio.Future[Any]", Any]]


class OverloadedError(Exception):
    """No more questions can wait, or none are taken any more."""


@dataclass(frozen=True)
class _Job:
    kind: str
    queries: Sequence[Any]
    future: asyncio.Future[Any]


class Batcher(Generic[S]):
    """
    Answers questions in batches of whatever waits: nothing is delayed for the sake of a larger batch.

    All methods belong to the thread of the event loop.

    Parameters
    ----------
    snapshot : callable
        Gives what answers now; it is asked once a batch, so that a batch has answers of one source alone.
    answer : callable
        Takes the snapshot, a kind and queries of this kind, and returns an answer for each.
    max_size : int
        Queries in a batch; the last job of it may exceed them.
    max_waiting : int
        Queries that may wait.
    observe : callable
        Is told the number of queries of each batch.
    """

    def __init__(
        self,
        snapshot: Callable[[], S],
        answer: Callable[[S, str, list[Any]], Sequence[Any]],
        max_size: int,
        max_waiting: int,
        observe: Callable[[int], object],
    ) -> None:
        self._snapshot, self._answer, self._observe = snapshot, answer, observe
        self._max_size, self._max_waiting = max_size, max_waiting
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._waiting = 0

    def start(self) -> None:
        """Begin to answer, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="rectools-neural-answers", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Answer what waits, and take no more."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)

    async def ask(self, kind: str, queries: Sequence[Any]) -> tuple[S, Sequence[Any]]:
        """
        Have queries answered.

        Parameters
        ----------
        kind : str
            Their kind.
        queries : sequence
            At least one.

        Returns
        -------
        (snapshot, answers)
            What answered, and its answers.

        Raises
        ------
        OverloadedError
            If too many wait already, or after `close`.
        """
        if self._thread is None or self._loop is None:
            raise OverloadedError("The service is not running: it has not started yet, or it is about to stop")
        if self._waiting + len(queries) > self._max_waiting:
            raise OverloadedError("Too many requests wait already: ask again in a moment")
        job = _Job(kind, queries, self._loop.create_future())
        self._waiting += len(queries)
        self._jobs.put(job)
        try:
            answered: tuple[S, Sequence[Any]] = await job.future
            return answered
        finally:
            self._waiting -= len(queries)

    # ------------------------------------------------------------------ in the thread

    def _work(self) -> None:
        is_open = True
        while is_open:
            jobs, is_open = self._take()
            if jobs:
                self._answer_all(jobs)
            del jobs  # a thread that waits holds on to nothing

    def _take(self) -> tuple[list[_Job], bool]:
        """Wait for a job and take what else is there; the second value tells whether there may be more."""
        jobs: list[_Job] = []
        size = 0
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            size += len(job.queries)
            if size >= self._max_size:
                return jobs, True
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, True
        return jobs, False

    def _answer_all(self, jobs: list[_Job]) -> None:
        self._observe(sum(len(job.queries) for job in jobs))
        snapshot = self._snapshot()
        groups: dict[str, list[_Job]] = {}
        for job in jobs:
            groups.setdefault(job.kind, []).append(job)
        resolved: Resolved = []
        for kind, group in groups.items():
            resolved += self._answer_group(snapshot, kind, group)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_resolve, resolved)

    def _answer_group(self, snapshot: S, kind: str, jobs: list[_Job]) -> Resolved:
        try:
            answers = self._answer(snapshot, kind, [query for job in jobs for query in job.queries])
        except Exception as error:
            if len(jobs) == 1:
                return [(jobs[0].future, error)]
            # One of them is to blame: the others get their answers.
            return [pair for job in jobs for pair in self._answer_group(snapshot, kind, [job])]
        resolved: Resolved = []
        start = 0
        for job in jobs:
            stop = start + len(job.queries)
            resolved.append((job.future, (snapshot, answers[start:stop])))
            start = stop
        return resolved


def _resolve(resolved: Resolved) -> None:
    for future, outcome in resolved:
        if future.done():  # who asked has gone
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
