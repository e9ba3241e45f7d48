"""Prompts of very different lengths are not padded to the longest, and nothing else changes."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.embedded import resolve_embedded
from prefloop.data.protocol import Request, Sampling
from prefloop.pipeline.engines import transformers_engine
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.padding import cut_by_length
from prefloop.pipeline.engines.prefixes import PASS, Work
from prefloop.pipeline.engines.settings import TransformersEngine

WORK = Work(576)


def cut(lengths: list[int], passes: int) -> list[list[int]]:
    """Prompts of these lengths, all different."""
    prompts = [(at, *[7] * (length - 1)) for at, length in enumerate(sorted(lengths))]
    return [list(map(len, part)) for part in cut_by_length(prompts, prompts, WORK, passes)]


def cost(parts: list[list[int]], passes: int) -> float:
    return sum(len(part) * WORK(max(part)) + passes * PASS for part in parts)


def test_one_long_prompt_is_computed_apart() -> None:
    assert cut([50] * 63 + [1500], 96) == [[50] * 63, [1500]]
    assert cut([50] * 30 + [600] * 3 + [3000], 96) == [[50] * 30, [600] * 3, [3000]]


def test_a_batch_stays_whole_where_it_would_bring_little() -> None:
    assert len(cut([40 + at % 20 for at in range(64)], 64)) == 1
    assert len(cut([50] * 63 + [1500], 4096)) == 1  # decoding twice costs more
    assert cut([9], 1) == [[9]]


def test_samples_of_one_prompt_stay_together() -> None:
    short, long = (1, 2), (1,) * 2000
    rows = [short] * 4 + [long] * 60
    # The long prompt is read once for its samples: the short one is padded, and not for much.
    assert [len(part) for part in cut_by_length(rows, rows, WORK, 96)] == [64]
    rows = [short] * 3 + [long]
    assert [len(part) for part in cut_by_length(rows, rows, WORK, 1)] == [3, 1]


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=40), st.integers(1, 200))
def test_nothing_is_lost_and_it_never_costs_more(lengths: list[int], passes: int) -> None:
    parts = cut(lengths, passes)
    assert [length for part in parts for length in part] == sorted(lengths)
    assert cost(parts, passes) <= cost([sorted(lengths)], passes)


def test_the_engine_answers_as_it_did(monkeypatch) -> None:
    folder = resolve_embedded("embedded:policy")
    sampling = Sampling(temperature=1.0, max_tokens=3)
    texts = ["Name a fruit."] * 3 + ["Name a fruit, please. " * 20]

    def requests() -> list[Request]:
        return [
            Request(str(at), ({"role": "user", "content": text},), sampling, (at, 50 + at),
                    block="b", block_size=len(texts))
            for at, text in enumerate(texts)
        ]  # fmt: skip

    async def ask() -> list:
        engine = await build_engine(TransformersEngine(threads=1), folder)
        try:
            return await asyncio.gather(*(engine.generate(one) for one in requests()))
        finally:
            await engine.aclose()

    sizes: list[int] = []
    decode = transformers_engine.HfEngine._decode

    def counted(self, batches):
        sizes.extend(map(len, batches))
        return decode(self, batches)

    monkeypatch.setattr(transformers_engine.HfEngine, "_decode", counted)
    apart = asyncio.run(ask())
    assert sizes == [6, 2]
    monkeypatch.setattr(transformers_engine, "cut_by_length", lambda rows, *_: [rows])
    together = asyncio.run(ask())
    assert sizes == [6, 2, 8]
    assert [[one.token_ids for one in each] for each in apart] == [
        [one.token_ids for one in each] for each in together
    ]
