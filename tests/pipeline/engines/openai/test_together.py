"""What many ask for at nearly the same time is done at once, and never lost."""

import asyncio

import pytest

from prefloop.pipeline.engines.openai.budget import Budget
from prefloop.pipeline.engines.openai.ledger import Amount, ledger_at
from prefloop.pipeline.engines.openai.response_cache import ResponseCache
from prefloop.pipeline.engines.openai.together import Together


def test_all_of_one_moment_is_one_piece_of_work_and_each_gets_its_own():
    done = []

    def work(items):
        done.append(list(items))
        return [item * 2 for item in items]

    async def go():
        together = Together(work)
        first = await asyncio.gather(*(together.do(number) for number in range(5)))
        second = await asyncio.gather(*(together.do(number) for number in range(5, 8)))
        return first + second

    assert asyncio.run(go()) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert done == [[0, 1, 2, 3, 4], [5, 6, 7]]


def test_a_fault_is_raised_to_all_who_asked_and_the_next_go_on():
    faults = [OSError("full")]

    def work(items):
        if faults:
            raise faults.pop()
        return list(items)

    async def go():
        together = Together(work)
        both = await asyncio.gather(together.do(1), together.do(2), return_exceptions=True)
        return both, await together.do(3)

    both, after = asyncio.run(go())
    assert [str(one) for one in both] == ["full", "full"]
    assert after == 3


@pytest.mark.parametrize(("whatever", "done"), [(False, [2]), (True, [1, 2])])
def test_who_is_cancelled_leaves_nothing_behind_unless_it_is_to_be_done_whatever_comes(
    whatever, done
):
    found = []

    def work(items):
        found.extend(items)
        return list(items)

    async def go():
        together = Together(work)
        lost = asyncio.ensure_future(together.do(1, whatever=whatever))
        await asyncio.sleep(0)
        lost.cancel()
        await together.do(2)

    asyncio.run(go())
    assert found == done


def test_an_answer_is_kept_although_its_task_is_cancelled_and_the_engine_closed(tmp_path):
    async def go():
        cache = ResponseCache(tmp_path)
        await cache.put("first", "[1]")
        lost = asyncio.ensure_future(cache.put("second", "[2]"))
        await asyncio.sleep(0)
        lost.cancel()
        cache.close()

    asyncio.run(go())
    kept = ResponseCache(tmp_path)
    assert (kept.get("first"), kept.get("second")) == ([1], [2])
    kept.close()


def test_what_was_spent_is_written_although_the_task_is_cancelled(tmp_path):
    path = tmp_path / "spent.jsonl"

    async def spend(budget, waiting):
        async with budget.reserved(Amount(40)) as charge:
            charge.spent = Amount(7)
        waiting.set()

    async def go():
        budget = Budget(None, None, ledger_at(path))
        await spend(budget, asyncio.Event())
        lost = asyncio.ensure_future(spend(budget, asyncio.Event()))
        while budget.spent != Amount(7) or ledger_at(path).under_way == 0:
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # it has its reservation, and waits to settle it
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
        budget.close()
        return budget.spent

    assert asyncio.run(go()) == Amount(14)
    assert Budget(100, None, ledger_at(path)).spent == Amount(14)
