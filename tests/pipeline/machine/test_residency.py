"""Who leaves for whom, and that nobody leaves who is asked something."""

from __future__ import annotations

import asyncio

import pytest

from prefloop.pipeline.engines.settings import MemoryMode
from prefloop.pipeline.machine.footprint import Footprint
from prefloop.pipeline.machine.residency import ModelKey, Residency, who_leaves

A, B, C = ("a", "m"), ("b", "m"), ("c", "m")


def footprint(size: int, *devices: str) -> Footprint:
    return Footprint({"weights": size}, devices)


@pytest.mark.parametrize(
    ("mode", "size", "leaving"),
    [
        ("keep_open", 90, []),
        ("auto", 30, []),
        ("auto", 40, [A]),  # the least recently used of two that would do
        ("auto", 80, [A, B]),
        ("auto", 200, [A, B]),  # too large for an empty device: it is tried
        ("one_at_a_time", 1, [A, B]),
    ],
)
def test_who_leaves(mode: MemoryMode, size: int, leaving: list[ModelKey]) -> None:
    inside = {
        A: footprint(30, "cuda:0"),
        C: footprint(99, "cuda:1"),
        B: footprint(30, "cuda:0"),
        ("server", "m"): footprint(0),
    }
    assert who_leaves(mode, footprint(size, "cuda:0"), inside, lambda _: 100) == leaving


def test_nobody_leaves_for_a_server() -> None:
    assert not who_leaves("one_at_a_time", footprint(0), {A: footprint(1, "cpu")}, lambda _: 1)


class House:
    """Two models of which one fits, and what happened."""

    def __init__(self, mode: MemoryMode) -> None:
        self.residency = Residency(mode, lambda _: 100)
        self.events: list[str] = []

    async def ask(self, key: ModelKey, questions: int = 1) -> None:
        async def enter() -> None:
            await asyncio.sleep(0)
            self.events.append(f"{key[0]} enters")

        async def leave() -> None:
            await asyncio.sleep(0)
            self.events.append(f"{key[0]} leaves")

        async with self.residency.place(key, footprint(60, "cpu"), enter=enter, leave=leave):
            for _ in range(questions):
                assert key in self.residency.inside()
                await asyncio.sleep(0)
            self.events.append(f"{key[0]} answers")


def test_models_take_turns_and_each_turn_serves_all_who_wait() -> None:
    house = House("auto")

    async def stage() -> None:
        await asyncio.gather(*(house.ask(key, n) for n in (1, 5, 9) for key in (A, B)))

    asyncio.run(stage())
    assert house.events == [
        "a enters", "a answers", "a answers", "a answers",
        "a leaves", "b enters", "b answers", "b answers", "b answers",
    ]  # fmt: skip


def test_models_that_may_stay_answer_side_by_side() -> None:
    house = House("keep_open")

    async def stage() -> None:
        await asyncio.gather(*(house.ask(key, 3) for key in (A, B)))

    asyncio.run(stage())
    assert not [event for event in house.events if "leaves" in event]
    assert set(house.residency.inside()) == {A, B}


def test_a_model_that_cannot_be_opened_takes_nobody_s_place() -> None:
    house = House("auto")

    async def broken() -> None:
        raise OSError("no such model")

    async def nothing() -> None:
        pass

    async def stage() -> None:
        with pytest.raises(OSError, match="no such model"):
            async with house.residency.place(B, footprint(60, "cpu"), enter=broken, leave=nothing):
                pass
        await house.ask(A)

    asyncio.run(stage())
    assert house.events == ["a enters", "a answers"]


def test_a_question_that_is_given_up_frees_its_place() -> None:
    house = House("auto")

    async def stage() -> None:
        asking = asyncio.ensure_future(house.ask(A, 10_000))
        await asyncio.sleep(0.01)
        waiting = asyncio.ensure_future(house.ask(B))
        await asyncio.sleep(0.01)
        assert house.events == ["a enters"]
        asking.cancel()
        await waiting

    asyncio.run(stage())
    assert house.events == ["a enters", "a leaves", "b enters", "b answers"]
