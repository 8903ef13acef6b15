from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.load import HOST, Plan, Report
from benchmarks.provenance import REPOSITORY

PLAN = Plan(port=0, path="/ask", bodies=[json.dumps({"n": n}) for n in range(7)], rate=100, seconds=1, keep_every=5)
Answer = Callable[[bytes], Awaitable[bytes]]


@contextmanager
def service(answer: Answer) -> Iterator[int]:
    """A server in a thread that answers each request by a function of its body; it closes where that gives nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"POST /ask HTTP/1.1\r\n")
                answered = await answer(await reader.readexactly(int(head.rpartition(b":")[2])))
                writer.write(answered)
                if not answered or b"Connection: close" in answered:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, HOST, 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


def put(plan: Plan, folder: Path) -> Report:
    (folder / "plan.json").write_text(json.dumps(asdict(plan)))
    command = [sys.executable, "-m", "benchmarks.load", str(folder / "plan.json"), str(folder / "report.json")]
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    return Report(**json.loads((folder / "report.json").read_text()))


def response(body: bytes, status: str = "200 OK", *fields: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", ""])
    return head.encode() + body


def test_latency_is_the_delay_of_the_server(tmp_path: Path) -> None:
    async def late(body: bytes) -> bytes:
        await asyncio.sleep(0.05)
        return response(body)

    with service(late) as port:
        report = put(replace(PLAN, port=port), tmp_path)
    assert len(report.latencies) == 100
    assert min(report.latencies) >= 0.05
    assert np.median(report.latencies) < 0.07
    assert not report.failures
    assert [number for number, _ in report.answers] == list(range(0, 100, 5))
    assert all(json.loads(text) == {"n": number % 7} for number, text in report.answers)
    assert 0.99 <= report.end - report.start < 2
    assert 0 < report.cpu_seconds < report.end - report.start


@pytest.mark.parametrize("connections", [1, 32])
def test_stall_shows_in_all_requests_due_in_it(tmp_path: Path, connections: int) -> None:
    asked: list[float] = []

    async def stalling(body: bytes) -> bytes:
        asked.append(time.monotonic())
        if len(asked) == 50:
            time.sleep(1)  # nobody else is answered either
        return response(body)

    with service(stalling) as port:
        report = put(replace(PLAN, port=port, seconds=2, connections=connections), tmp_path)
    latencies = np.array(report.latencies)
    assert not report.failures
    # A second of requests at 100 a second was due meanwhile: they waited from 1 second down to nothing.
    assert np.quantile(latencies, 0.99) > 0.9
    assert 95 <= (latencies > 0.02).sum() <= 115
    np.testing.assert_allclose(latencies[49:139], 1 - np.arange(90) / 100, atol=0.08)


def test_closed_connections_are_failures_and_opened_again(tmp_path: Path) -> None:
    async def closing(body: bytes) -> bytes:
        return b"" if json.loads(body)["n"] == 3 else response(body)

    with service(closing) as port:
        report = put(replace(PLAN, port=port, connections=2), tmp_path)
    assert sorted(report.failures) == [[number, 0] for number in range(3, 100, 7)]
    assert max(report.latencies) < 0.5


def test_other_statuses_are_failures(tmp_path: Path) -> None:
    statuses = {1: "503 Service Unavailable", 2: "422 Unprocessable Content"}

    async def refusing(body: bytes) -> bytes:
        # A server may close after an answer that says so: no request is lost by that.
        return response(body, statuses.get(json.loads(body)["n"], "200 OK"), "Connection: close")

    with service(refusing) as port:
        report = put(replace(PLAN, port=port), tmp_path)
    expected = [[n, int(statuses[n % 7][:3])] for n in range(100) if n % 7 in statuses]
    assert sorted(report.failures) == expected


def test_silence_ends_after_the_patience(tmp_path: Path) -> None:
    async def silent(body: bytes) -> bytes:
        if json.loads(body)["n"] == 6:
            await asyncio.sleep(3600)
        return response(body)

    with service(silent) as port:
        report = put(replace(PLAN, port=port, rate=30, connections=1, patience=0.5), tmp_path)
    # The first silence blocks the only connection for the rest.
    assert sorted(report.failures) == [[number, 0] for number in range(6, 30)]
    np.testing.assert_allclose(report.end - report.start, 29 / 30 + 0.5, atol=0.1)


def test_no_service_is_an_error(tmp_path: Path) -> None:
    async def nothing(body: bytes) -> bytes:
        return b""

    with service(nothing) as port:
        pass
    with pytest.raises(subprocess.CalledProcessError) as caught:
        put(replace(PLAN, port=port, patience=0.5), tmp_path)
    assert f"ConnectionError: No service takes connections at port {port}" in caught.value.stderr


@pytest.mark.parametrize("changes", [{"bodies": []}, {"rate": 0.5}, {"connections": 0}, {"keep_every": 0}])
def test_plan_without_requests_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="A plan needs"):
        replace(PLAN, **changes)
