"""Progress within a block, and steps that say that they take hours."""

from __future__ import annotations

import asyncio

import pytest

from prefloop.data.protocol import Request, Sampling
from prefloop.pipeline.engines.asked import announce, answered
from prefloop.pipeline.run import progress as progress_module
from prefloop.pipeline.run.progress import StepProgress, remaining_seconds, said_of_long


def request(block: str, size: int) -> Request:
    return Request("r", (), Sampling(), (1,), block=block, block_size=size)


def test_a_block_counts_by_its_answered_requests() -> None:
    seen: list[float] = []

    async def work(progress: StepProgress, name: str, size: int) -> None:
        progress.begin(10)
        asked = [request(name, size) for _ in range(size)]
        for one in asked:
            announce(one)
        seen.append(progress.completed)
        for one in asked[: size // 2]:
            answered(one)
        seen.append(progress.completed)
        await asyncio.sleep(0)
        progress.advance(10)
        seen.append(progress.completed)

    async def both() -> None:
        with StepProgress("step", 40, done=5) as progress:
            await asyncio.gather(work(progress, "a", 4), work(progress, "b", 8))

    asyncio.run(both())
    assert seen == [5, 10, 10, 15, 20, 25]


def test_a_step_is_named_before_its_first_block_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "FIRST_LINE_S", 0.0)
    with StepProgress("slow step", 40, done=5) as progress:
        progress._begins.join()
        assert capsys.readouterr().err == "slow step: 5/40 prompts ...\n"
    # One that is over by then has its last line only.
    monkeypatch.setattr(progress_module, "FIRST_LINE_S", 3600.0)
    with StepProgress("quick step", 1) as progress:
        progress.advance(1)
    progress._begins.join()
    assert "..." not in capsys.readouterr().err


def test_requests_without_a_block_that_began_change_nothing() -> None:
    with StepProgress("step", 4) as progress:
        announce(request("a", 1))
        answered(request("a", 1))
        progress.advance(1)
        assert progress.completed == 1


def test_a_block_is_not_done_before_it_says_so() -> None:
    async def work(progress: StepProgress) -> float:
        progress.begin(6)
        for _ in range(2):  # one more than was announced: a judge asked again
            announce(request("a", 1))
            answered(request("a", 1))
        return progress.completed

    with StepProgress("step", 6) as progress:
        assert asyncio.run(work(progress)) == 4


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "left"),
    [(10, 110, 60, 600), (0, 10, 60, None), (5, None, 60, None), (12, 10, 60, 0)],
)
def test_what_remains(done: float, total: float | None, elapsed: float, left: float | None) -> None:
    assert remaining_seconds(done, total, elapsed) == left


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "hours"),
    [
        (10, 3010, 60, "5.0 h"),
        (10, 3010, 59, None),  # the first minute is not over
        (10, 100, 60, None),  # nine minutes
        (0, 3000, 600, None),
    ],
)
def test_only_a_step_of_hours_says_so(
    done: float, total: float, elapsed: float, hours: str | None
) -> None:
    said = said_of_long(done, total, elapsed)
    assert (said is None) if hours is None else (said is not None and hours in said)


def test_the_bar_shows_whole_items(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    async def work(progress: StepProgress) -> None:
        progress.begin(10)
        for _ in range(3):
            announce(request("a", 4))
        answered(request("a", 4))

    with StepProgress("step", 40) as progress:
        asyncio.run(work(progress))
    assert "2/40" in capsys.readouterr().err  # a quarter of ten


def test_a_batch_that_is_answered_at_once_is_counted_as_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Judged by the first of its answers, the step would take a hundred times as long."""
    monkeypatch.setattr(progress_module, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(progress_module, "BURST_S", 3600.0)
    monkeypatch.setattr(progress_module, "LONG_S", 0.0)
    looked = []
    monkeypatch.setattr(
        progress_module, "said_of_long", lambda done, *_: looked.append(done) or "hours to go"
    )

    async def work(progress: StepProgress) -> None:
        progress.begin(100)
        asked = [request("a", 100) for _ in range(100)]
        for one in asked:
            announce(one)
        for one in asked[:96]:
            answered(one)
        assert progress._looks is not None
        progress._looks.cancel()
        progress._looks.function()

    with StepProgress("step", 300) as progress:
        asyncio.run(work(progress))
    assert looked == [96]
    assert caplog.messages == ["step: hours to go"]
