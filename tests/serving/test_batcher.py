"""Questions that wait together are answered together, by one source, and nobody else's fault is theirs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from rectools_neural.serving.batcher import Batcher, OverloadedError


class Gate:
    """An answerer that waits until it is let go, and notes what it was asked at once."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.asked: list[tuple[str, str, list[Any]]] = []
        self.sizes: list[int] = []
        self.version = "v1"

    def answer(self, snapshot: str, kind: str, queries: list[Any]) -> list[str]:
        assert self.open.wait(10)
        self.asked.append((snapshot, kind, queries))
        if "poison" in queries:
            raise ZeroDivisionError("poison")
        return [f"{snapshot} {kind} {query}" for query in queries]

    def batcher(self, max_size: int = 100, max_waiting: int = 100) -> Batcher[str]:
        return Batcher(lambda: self.version, self.answer, max_size, max_waiting, self.sizes.append)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 20))


async def put(batcher: Batcher[str], *jobs: tuple[str, Sequence[Any]]) -> list[asyncio.Task[Any]]:
    """Ask, and come back once all of it waits."""
    tasks = [asyncio.create_task(batcher.ask(kind, queries)) for kind, queries in jobs]
    await asyncio.sleep(0)
    return tasks


def test_what_waits_is_answered_at_once() -> None:
    gate = Gate()

    async def main() -> None:
        batcher = gate.batcher()
        batcher.start()
        (first,) = await put(batcher, ("a", [0]))
        while not batcher._jobs.empty():  # the thread has it, and stands at the gate
            await asyncio.sleep(0.001)
        others = await put(batcher, ("a", [1, 2]), ("b", [3]), ("a", [4]))
        gate.open.set()
        assert await first == ("v1", ["v1 a 0"])
        assert await others[0] == ("v1", ["v1 a 1", "v1 a 2"])
        assert await others[1] == ("v1", ["v1 b 3"])
        assert await others[2] == ("v1", ["v1 a 4"])
        await batcher.close()

    run(main)
    assert gate.asked == [("v1", "a", [0]), ("v1", "a", [1, 2, 4]), ("v1", "b", [3])]
    assert gate.sizes == [1, 4]


def test_batches_have_a_largest_size() -> None:
    gate = Gate()

    async def main() -> None:
        batcher = gate.batcher(max_size=3)
        tasks = []
        batcher.start()
        tasks += await put(batcher, ("a", [0]))
        while not batcher._jobs.empty():
            await asyncio.sleep(0.001)
        tasks += await put(batcher, *[("a", [1, 2])] * 5)
        gate.open.set()
        await asyncio.gather(*tasks)
        await batcher.close()

    run(main)
    assert gate.sizes == [1, 4, 4, 2]


def test_a_batch_is_of_one_snapshot() -> None:
    gate = Gate()

    async def main() -> None:
        batcher = gate.batcher()
        batcher.start()
        (early,) = await put(batcher, ("a", [0]))
        while not batcher._jobs.empty():
            await asyncio.sleep(0.001)
        gate.version = "v2"
        (late,) = await put(batcher, ("a", [1]))
        gate.open.set()
        assert await early == ("v1", ["v1 a 0"])
        assert await late == ("v2", ["v2 a 1"])
        await batcher.close()

    run(main)


def test_a_failure_is_told_to_the_one_who_caused_it() -> None:
    gate = Gate()

    async def main() -> None:
        batcher = gate.batcher()
        batcher.start()
        await put(batcher, ("b", [0]))
        while not batcher._jobs.empty():
            await asyncio.sleep(0.001)
        good, bad, other = await put(batcher, ("a", [1]), ("a", [2, "poison"]), ("a", [3]))
        gate.open.set()
        assert await good == ("v1", ["v1 a 1"])
        with pytest.raises(ZeroDivisionError):
            await bad
        assert await other == ("v1", ["v1 a 3"])
        assert (await batcher.ask("a", [4]))[1] == ["v1 a 4"]  # and the thread lives
        await batcher.close()

    run(main)


def test_the_queue_is_bounded() -> None:
    gate = Gate()

    async def main() -> None:
        batcher = gate.batcher(max_waiting=4)
        batcher.start()
        tasks = await put(batcher, ("a", [0]), ("a", [1, 2]))
        with pytest.raises(OverloadedError, match="Too many"):
            await batcher.ask("a", [3, 4])
        tasks += await put(batcher, ("a", [3]))
        gate.open.set()
        await asyncio.gather(*tasks)
        assert (await batcher.ask("a", [5, 6, 7, 8]))[1][-1] == "v1 a 8"  # there is room again
        await batcher.close()

    run(main)


def test_who_has_gone_makes_room_and_harms_nobody() -> None:
    gate = Gate()

    async def main() -> None:
        batcher = gate.batcher(max_waiting=2)
        batcher.start()
        gone, stays = await put(batcher, ("a", [0]), ("a", [1]))
        gone.cancel()
        await asyncio.sleep(0)
        (third,) = await put(batcher, ("a", [2]))
        gate.open.set()
        assert (await stays)[1] == ["v1 a 1"]
        assert (await third)[1] == ["v1 a 2"]
        assert gone.cancelled()
        await batcher.close()

    run(main)


def test_closing_answers_what_waits() -> None:
    gate = Gate()

    async def main() -> None:
        batcher = gate.batcher(max_size=2)
        with pytest.raises(OverloadedError, match="not running"):
            await batcher.ask("a", [0])
        batcher.start()
        tasks = await put(batcher, *[("a", [number]) for number in range(7)])
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="about to stop"):
            await batcher.ask("a", [9])
        gate.open.set()
        await closing
        assert [(await task)[1] for task in tasks] == [[f"v1 a {number}"] for number in range(7)]
        await batcher.close()  # again is no fault

    run(main)
    assert not [thread for thread in threading.enumerate() if thread.name == "rectools-neural-answers"]
