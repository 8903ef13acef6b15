"""
Load on a service over HTTP: requests at a fixed rate, whether or not the earlier ones are answered.

It runs in a process of its own, ``python -m benchmarks.load PLAN REPORT``, on the standard library alone, to take
little of the machine from the service. Both files are JSON: the fields of `Plan` and of `Report`.

A request is due at a fixed time, and its latency counts from then: a server that stalls can't hide it by keeping the
client from asking ("coordinated omission"). The clock of the event loop adds up to a millisecond.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

HOST = "127.0.0.1"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")
_CLOSES = b"\r\nconnection: close"
_RETRY = 0.1  # seconds until a refused connection is tried again


@dataclass(frozen=True)
class Plan:
    """
    What is asked, and how fast.

    Parameters
    ----------
    port : int
        Of the service, on this machine.
    path : str
        What is posted to.
    bodies : list of str
        JSON texts, asked in turn, again and again.
    rate : float
        Requests a second.
    seconds : float
        For how long.
    connections : int, default 32
        How many are kept open; each has one request at a time.
    keep_every : int, default 20
        Of which requests the answers are kept: the 0th, the 20th and so on. It should share no divisor with the number
        of bodies, so that all of them are met.
    patience : float, default 10
        Seconds to wait for the first connections, and for answers after the last request.
    """

    port: int
    path: str
    bodies: list[str]
    rate: float
    seconds: float
    connections: int = 32
    keep_every: int = 20
    patience: float = 10.0

    def __post_init__(self) -> None:
        if not self.bodies or self.rate * self.seconds < 1 or self.connections < 1 or self.keep_every < 1:
            raise ValueError("A plan needs bodies, at least one request and connection, and `keep_every` of at least 1")


@dataclass
class Report:
    """
    What came of it.

    Parameters
    ----------
    start, end : float
        When the first request was due and the last one over, by the machine's monotonic clock.
    cpu_seconds : float
        What the load took of the processor.
    latencies : list of float
        Seconds from when each request was due to its answer or its failure.
    failures : list of (int, int)
        Number and status of each request whose answer was not 200; 0 where no answer came.
    answers : list of (int, str)
        Number of the request and text of the answers that are kept.
    """

    start: float = 0.0
    end: float = 0.0
    cpu_seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: list[tuple[int, int]] = field(default_factory=list)
    answers: list[tuple[int, str]] = field(default_factory=list)


def run(plan: Plan) -> Report:
    """
    Put the load on the service.

    Parameters
    ----------
    plan : Plan
        What is asked.

    Returns
    -------
    Report
        Of all requests.

    Raises
    ------
    ConnectionError
        If there is no service at the beginning.
    """
    gc.collect()
    gc.freeze()  # a collection that looks at all bodies would look like a stall of the server
    return asyncio.run(_Load(plan).run())


class _Load:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._requests = [_request(plan.path, body) for body in plan.bodies]
        self._free: deque[_Connection] = deque()
        self._waiting: deque[int] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._n_open = round(plan.rate * plan.seconds)
        self._report = Report(latencies=[-1.0] * self._n_open)
        self._is_over = asyncio.Event()

    async def run(self) -> Report:
        report, clock = self._report, asyncio.get_running_loop().time
        await self._connect_all()
        print("started", flush=True)  # who has started this process may wait for the line
        cpu_seconds = time.process_time()
        report.start = clock() + 0.05
        for number in range(self._n_open):
            await asyncio.sleep(max(self._due(number) - clock(), 0.0))
            self._waiting.append(number)
            self._send()
        try:
            await asyncio.wait_for(self._is_over.wait(), self._plan.patience)
        except asyncio.TimeoutError:
            for number in [n for n, latency in enumerate(report.latencies) if latency < 0]:
                self.finish(number, 0, b"")
        report.end, report.cpu_seconds = clock(), time.process_time() - cpu_seconds
        return report

    def _due(self, number: int) -> float:
        return self._report.start + number / self._plan.rate

    async def _connect_all(self) -> None:
        connections = [self._connect() for _ in range(self._plan.connections)]
        try:
            await asyncio.wait_for(asyncio.gather(*connections), self._plan.patience)
        except asyncio.TimeoutError:
            raise ConnectionError(f"No service takes connections at port {self._plan.port}") from None

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.create_connection(lambda: _Connection(self), HOST, self._plan.port)
                return
            except OSError:
                await asyncio.sleep(_RETRY)

    def _send(self) -> None:
        while self._waiting and self._free:
            number = self._waiting.popleft()
            self._free.popleft().send(number, self._requests[number % len(self._requests)])

    def free(self, connection: _Connection) -> None:
        self._free.append(connection)
        self._send()

    def lost(self, connection: _Connection) -> None:
        if connection in self._free:
            self._free.remove(connection)
        task = asyncio.get_running_loop().create_task(self._connect())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def finish(self, number: int, status: int, body: bytes) -> None:
        self._report.latencies[number] = asyncio.get_running_loop().time() - self._due(number)
        if status != 200:
            self._report.failures.append((number, status))
        elif number % self._plan.keep_every == 0:
            self._report.answers.append((number, body.decode()))
        self._n_open -= 1
        if not self._n_open:
            self._is_over.set()


class _Connection(asyncio.Protocol):
    """One connection that is kept open, with one request at a time."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._number: int | None = None
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._load.free(self)

    def send(self, number: int, request: bytes) -> None:
        self._number = number
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = bytes(self._received[:end]).lower()
        length = _LENGTH.search(head)
        if self._number is None or length is None:  # nothing was asked, or no telling where the answer ends
            self._transport.abort()
        elif len(self._received) >= end + int(length[1]):
            number, self._number = self._number, None
            self._load.finish(number, int(head[9:12]), bytes(self._received[end:]))
            self._received.clear()
            if _CLOSES in head:
                self._transport.close()
            else:
                self._load.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        number, self._number = self._number, None
        if number is not None:
            self._load.finish(number, 0, b"")
        self._load.lost(self)


def _request(path: str, body: str) -> bytes:
    content = body.encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return f"{head}\r\n\r\n".encode() + content


def main() -> None:
    """Read the plan, put the load on the service and write the report."""
    plan, result = map(Path, sys.argv[1:])
    report = run(Plan(**json.loads(plan.read_text(encoding="utf-8"))))
    result.write_text(json.dumps(asdict(report)), encoding="utf-8")


if __name__ == "__main__":
    main()
