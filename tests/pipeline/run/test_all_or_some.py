"""Blocks in which everything failed are kept back until something came out."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from prefloop.data.errors import NothingCameOut
from prefloop.labelers.judges.json_answers import CUT_OFF, json_objects
from prefloop.pipeline.run.all_or_some import ENOUGH, AllOrSome


def run(blocks: list[dict[str, int]], *, came_before: bool = False) -> list[int]:
    """The blocks that were committed, in order; ``""`` counts what came."""
    stage = AllOrSome("round 0 sample", "prompts", "change sample", came_before=came_before)
    done: list[int] = []

    async def note(index: int) -> None:
        done.append(index)

    async def whole() -> None:
        for index, reasons in enumerate(blocks):
            await stage.take({"": reasons}, partial(note, index))
        await stage.close()

    try:
        asyncio.run(whole())
    except NothingCameOut:
        assert done == []
        raise
    return done


def test_blocks_wait_for_the_first_that_comes() -> None:
    assert run([{"bad: x": 2}, {"": 0}, {"": 1, "bad: x": 1}, {"bad: x": 3}]) == [1, 0, 2, 3]
    assert run([{"bad: x": ENOUGH * 2}], came_before=True) == [0]


def test_nothing_is_committed_where_nothing_came() -> None:
    with pytest.raises(NothingCameOut, match=r"of 3 prompts, 2 for one reason: bad: x: change"):
        run([{"bad: x": 2}, {"worse: y": 1}])


def test_the_end_is_plain_after_many_failures_for_one_reason() -> None:
    good = {"": 1}
    with pytest.raises(NothingCameOut, match=f"of {ENOUGH} prompts"):
        run([{"bad: x": ENOUGH - 1}, {"bad: y": 1}, good])
    assert run([{"worse: x": 1}, {"bad: x": ENOUGH}, good]) == [0, 1, 2]
    assert run([{"context_overflow: long": 2 * ENOUGH}, good]) == [0, 1]


def test_the_reason_cannot_command_a_terminal() -> None:
    with pytest.raises(NothingCameOut) as raised:
        run([{"bad: \x1b[2J\n" + "x" * 5000: 1}])
    assert "\x1b" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_where_a_judge_was_cut_off_its_max_tokens_are_named() -> None:
    stage = AllOrSome("judge-eval j", "votes", "change engines.default or the judge j")
    with pytest.raises(ValueError, match=CUT_OFF) as read:
        json_objects("<think>so", cut=True)

    async def whole() -> None:
        cut = {f"unparsable: {read.value}": 3}
        await stage.take({"j": cut, "other": {"late: x": 1}}, asyncio.Event().wait)
        await stage.close()

    with pytest.raises(NothingCameOut, match=rf"{CUT_OFF}: raise max_tokens of j\. None"):
        asyncio.run(whole())
