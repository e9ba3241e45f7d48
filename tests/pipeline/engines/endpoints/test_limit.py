"""The rule of the limit against simulated servers: no clock, no network."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from prefloop.pipeline.engines.endpoints.limit import START, Limit
from prefloop.pipeline.engines.endpoints.pace import Pace


@dataclass
class Simulated:
    """Sends as much as the limit allows to a server that answers or refuses; all in virtual time.

    ``bears``: how many at once it takes at a time; ``latency``: seconds, by how many are under way.
    """

    bears: Callable[[float], int]
    latency: Callable[[int], float]
    limit: Limit = field(default_factory=lambda: Limit(256))
    now: float = 0.0
    answered: int = 0
    refused: int = 0

    def run(self, seconds: float) -> Simulated:
        end, closed_until = self.now + seconds, self.now
        coming: list[tuple[float, int, float, bool]] = []
        under_way = accepted = number = 0
        self.answered = self.refused = 0
        while self.now < end:
            while self.now >= closed_until and self.limit.has_room(under_way):
                good = accepted < self.bears(self.now)
                accepted, under_way, number = accepted + good, under_way + 1, number + 1
                takes = self.latency(accepted) if good else 0.001
                heapq.heappush(coming, (self.now + takes, number, self.now, good))
            if not coming or (self.now < closed_until < coming[0][0] and under_way == 0):
                self.now = closed_until
                continue
            waits = self.limit.has_room(under_way) and closed_until > self.now
            if waits and closed_until < coming[0][0]:
                self.now = closed_until
                continue
            self.now, _, sent, good = heapq.heappop(coming)
            if good:
                self.limit.answered(self.now, sent, under_way)
                accepted, self.answered = accepted - 1, self.answered + 1
            else:
                pause = self.limit.refused(self.now, sent, under_way)
                closed_until, self.refused = max(closed_until, self.now + pause), self.refused + 1
            under_way -= 1
        return self


@pytest.mark.parametrize("bears", [1, 2, 8, 40, 200])
def test_it_finds_what_a_server_bears_and_stays_there(bears: int) -> None:
    server = Simulated(lambda _: bears, lambda _: 0.5).run(30).run(120)
    assert server.answered >= 0.85 * bears * 120 / 0.5
    assert server.refused <= 0.1 * server.answered + 5
    assert server.limit.value <= 1.2 * bears + 1


def test_it_goes_up_to_the_most_and_no_further() -> None:
    server = Simulated(lambda _: 10_000, lambda _: 0.5, Limit(64)).run(10).run(10)
    assert server.limit.value == 64
    assert server.answered == pytest.approx(64 * 10 / 0.5, rel=0.05)


def test_it_begins_low_and_doubles_with_every_round() -> None:
    assert Limit(256).value == START
    assert Limit(2).value == 2
    assert Simulated(lambda _: 10_000, lambda _: 1.0).run(3.5).limit.value >= 8 * START - 4


def test_it_recovers_from_a_storm_and_finds_more_room_where_there_is_some() -> None:
    server = Simulated(lambda now: 0 if 30 <= now < 50 else 40, lambda _: 0.5).run(55)
    assert server.limit.value < 40
    assert server.run(60).run(30).answered >= 0.75 * 40 * 30 / 0.5
    wider = Simulated(lambda now: 20 if now < 60 else 160, lambda _: 0.5).run(400)
    assert wider.run(30).answered >= 0.8 * 160 * 30 / 0.5


def test_a_server_that_queues_is_not_given_ever_more_at_once() -> None:
    """One that works on 10 at a time, and lets the others wait."""
    server = Simulated(lambda _: 10_000, lambda under_way: 0.1 * max(1.0, under_way / 10))
    server.run(60)
    assert 10 <= server.limit.value <= 60
    assert server.run(30).answered >= 0.9 * 30 * 10 / 0.1


def test_of_many_that_are_refused_together_one_counts() -> None:
    limit = Limit(64)
    limit.value = 40.0
    pauses = [limit.refused(1.0, 0.5, 40) for _ in range(10)]
    assert limit.value == pytest.approx(34)
    assert pauses[0] > 0
    assert set(pauses[1:]) == {0.0}
    longer = [limit.refused(float(at), float(at), 1) for at in range(2, 20)]
    assert longer == sorted(longer)
    assert longer[-1] == 30
    assert limit.value == 1


def test_what_comes_back_begins_low() -> None:
    server = Simulated(lambda _: 10_000, lambda _: 0.5).run(20)
    assert server.limit.value > START
    server.limit.restart()
    assert server.limit.value == START
    assert server.limit.latency is None


def test_rates_are_kept_and_nothing_is_saved_up() -> None:
    pace, now, sent = Pace(600, None), 100.0, 0
    while now < 160:
        now = max(now, pace.ready_at(now, 10))
        pace.take(now, 10)
        sent += 1
    assert sent == pytest.approx(600, abs=2)
    pace, now, tokens = Pace(None, 6000), 100.0, 0
    while now < 160:
        now = max(now, pace.ready_at(now, 50))
        pace.take(now, 50)
        tokens += 50
    assert tokens == pytest.approx(6000 + 1000, abs=100)  # a bucket of ten seconds beside
    assert Pace(None, 60).ready_at(5.0, 10_000) <= 5.0  # larger than the bucket: alone


def test_what_was_not_sent_takes_nothing() -> None:
    pace = Pace(60, 6000)
    pace.take(100.0, 800)
    pace.take(100.0, 800)
    pace.give_back(100.0, 800)
    other = Pace(60, 6000)
    other.take(100.0, 800)
    for tokens in (1, 200, 900):
        assert pace.ready_at(100.0, tokens) == pytest.approx(other.ready_at(100.0, tokens))
