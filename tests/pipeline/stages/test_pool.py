"""A pool of policies, each asked its own way: what is drawn, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prefloop.data.hashing import prompt_id
from prefloop.data.protocol import Completion, Request, Sampling
from prefloop.data.schemas import PROMPT
from prefloop.pipeline.config import ConfigError, PoolMember, SampleConfig
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.sample import Draw, Source, open_draw, sample_block, sampling_of
from tests.helpers.runs import JUDGE, dataset_rows, run_small, small_config

ORIGIN = {"type": "origin", "order": ["strong", "weak"]}
DELTA = [
    {"name": "strong", "n": 2, "temperature": 0.5},
    {"name": "weak", "n": 1, "temperature": 2.0, "system_prompt": "Answer badly.",
     "max_tokens": 8, "stop": ["."], "top_p": 0.9},
]  # fmt: skip


class Recorder:
    """An engine that keeps what it is asked, and answers with the seeds."""

    def __init__(self, text: str = "{}") -> None:
        self.asked: list[Request] = []
        self._text = text

    async def generate(self, request: Request) -> list[Completion]:
        self.asked.append(request)
        return [Completion(self._text.format(s), (), "stop", None, 1, 1) for s in request.seeds]

    async def load_policy(self, path: str) -> None:
        raise AssertionError(path)

    async def aclose(self) -> None:
        pass


def prompts(count: int) -> pa.Table:
    turns = [[{"role": "user", "content": f"{n}?"}] for n in range(count)]
    rows = [
        {"prompt_id": prompt_id(one), "messages": one, "reference": None, "metadata": "{}",
         "source": "s", "row": n}
        for n, one in enumerate(turns)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=PROMPT)


def drawn(settings: SampleConfig, engine: Recorder, count: int = 40) -> list[dict[str, Any]]:
    sources = [
        Source(member.name, "r", member.weight, engine, n=member.n) for member in settings.members()
    ]
    draw = Draw(sources, settings.total, sampling_of(settings), None, (7, "sample", 0))
    candidates, failed = asyncio.run(sample_block(prompts(count), draw, 0, "b"))
    assert not len(failed)
    return candidates.to_pylist()


def test_tokens_are_kept_where_the_text_does_not_say_them() -> None:
    class Odd(Recorder):
        async def generate(self, request: Request) -> list[Completion]:
            return [
                Completion(f"{request.messages[0]['content']} {n}", (5, n), "stop", None, 1, 2,
                           ids_differ=n > 0)
                for n in range(len(request.seeds))
            ]  # fmt: skip

    rows = drawn(SampleConfig(n=2), Odd(), count=2)
    assert [row["token_ids"] for row in rows] == [None, [5, 1]] * 2
    assert {row["reasoning_tokens"] for row in rows} == {None}


def test_a_fixed_n_is_drawn_and_the_rest_by_weight() -> None:
    pool = (PoolMember(name="two", n=2), PoolMember(name="a", weight=3), PoolMember(name="b"))
    rows = drawn(SampleConfig(n=6, pool=pool), Recorder())
    by_prompt = Counter((row["prompt_id"], row["policy"]) for row in rows)
    assert {by_prompt[row["prompt_id"], "two"] for row in rows} == {2}
    number = Counter(row["policy"] for row in rows)
    assert number.total() == 6 * 40
    assert number["a"] > number["b"] > 0


def test_seeds_hang_on_the_sample_and_not_on_who_draws_it() -> None:
    alone = drawn(SampleConfig(n=4), Recorder())
    fixed = (PoolMember(name="a", n=1), PoolMember(name="b", n=3))
    for pool in (fixed, (PoolMember(name="a"), PoolMember(name="b"))):
        rows = drawn(SampleConfig(n=4, pool=pool), Recorder())
        key = ("prompt_id", "sample_index", "seed")
        assert sorted([row[k] for k in key] for row in rows) == sorted(
            [row[k] for k in key] for row in alone
        )


def test_weights_draw_what_they_always_drew() -> None:
    pool = (PoolMember(name="a", weight=3), PoolMember(name="b"))
    rows = drawn(SampleConfig(n=4, pool=pool), Recorder(), count=8)
    of_b = [row["sample_index"] for row in rows if row["policy"] == "b"]
    assert of_b == [2, 0, 3, 0, 1, 3, 0, 1, 2]


def test_equal_answers_are_merged_unless_their_members_were_asked_otherwise() -> None:
    engine = Recorder("the same")
    for names, wanted in (((), [("one", 3)]), (("two",), [("one", 2), ("two", 1)])):
        sources = [
            Source("one", "r", 1, engine, n=2),
            Source("two", "r", 1, engine, n=1, apart=names),
        ]
        draw = Draw(sources, 3, sampling_of(SampleConfig()), None, (7,))
        candidates, _ = asyncio.run(sample_block(prompts(1), draw, 0, "b"))
        rows = candidates.to_pylist()
        assert [(row["policy"], row["copies"]) for row in rows] == wanted
        assert len({row["candidate_id"] for row in rows}) == len(wanted)


def test_delta_pairs_alone_and_in_a_jury(tmp_path: Path) -> None:
    strategy = {"strategy": {"type": "across_policies", "choose": "all"}, "filters": []}
    sample = {"max_tokens": 24, "pool": DELTA, "system_prompt": "Be kind."}
    config = small_config(sample=sample, label={"labelers": [ORIGIN]}, filter=strategy)
    run = run_small(tmp_path / "alone", config)
    rows = [row for rows in dataset_rows(run).values() for row in rows]
    assert rows
    assert {row["policy"].partition("@")[0] for row in rows} == {"strong"}
    assert {row["rejected_policy"].partition("@")[0] for row in rows} == {"weak"}
    assert {row["prompt"][0]["content"] for row in rows} == {"Be kind."}
    candidates = run.round(0).candidates.table().to_pylist()
    drawn = Counter[tuple[str, str]]()
    for row in candidates:
        drawn[row["prompt_id"], row["policy"]] += row["copies"]
    assert {drawn[row["prompt_id"], "strong"] for row in candidates} == {2}
    assert {drawn[row["prompt_id"], "weak"] for row in candidates} == {1}
    assert max(row["tokens"] for row in candidates if row["policy"] == "weak") <= 8
    assert max(row["tokens"] for row in candidates if row["policy"] == "strong") > 8

    jury = small_config(sample=sample, label={"labelers": [JUDGE, ORIGIN]}, filter=strategy)
    votes = run_small(tmp_path / "jury", jury).round(0).votes.table().to_pylist()
    assert {row["labeler"] for row in votes} == {"judge", "origin"}


class OneModel:
    """Models of a run that has one."""

    def __init__(self, engine: Recorder) -> None:
        self._engine = engine

    async def engine(self, engine: str, model: str) -> Recorder:
        return self._engine

    def member_revision(self, member: PoolMember) -> str:
        return "r"


def test_each_member_is_asked_its_own_way(tmp_path: Path) -> None:
    pool = [*DELTA, {"name": "bare", "n": 1, "system_prompt": ""}, {"name": "plain", "n": 2}]
    config = small_config(sample={"n": 99, "pool": pool, "system_prompt": "Pool.", "top_k": 7})
    context = RunContext.of(config, RunDir(tmp_path)).round(0)
    engine = Recorder("same")

    async def sample() -> list[dict[str, Any]]:
        models: Any = OneModel(engine)
        draw = await open_draw(context, config.sample, models, with_references=False)
        return (await sample_block(prompts(1), draw, 0, "b"))[0].to_pylist()

    rows = asyncio.run(sample())
    shown = [[turn["content"] for turn in request.messages] for request in engine.asked]
    assert shown == [["Pool.", "0?"], ["Answer badly.", "0?"], ["0?"], ["Pool.", "0?"]]
    assert [one.sampling for one in engine.asked] == [
        Sampling(0.5, 1.0, 7, 512, ()),
        Sampling(2.0, 0.9, 7, 8, (".",)),
        *[Sampling(1.0, 1.0, 7, 512, ())] * 2,
    ]
    assert [len(one.seeds) for one in engine.asked] == [2, 1, 1, 2]
    assert [(row["policy"], row["copies"]) for row in rows] == [
        ("strong", 2), ("weak", 1), ("bare", 1), ("plain", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        ({"pool": [{"name": "a"}, {"name": "a"}]}, "two members of pool are named 'a'"),
        ({"pool": [{"name": "reference"}]}, "is the name of reference answers"),
        ({"pool": [{"name": " "}]}, "is empty"),
        ({"pool": [{"name": "a\nb"}]}, "nobody sees"),
        ({"n": 2, "pool": [{"name": "a", "n": 2}, {"name": "b"}]}, "none is left for 'b'"),
    ],
)
def test_what_is_no_pool_is_refused(sample: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        small_config(sample=sample)


def test_names_of_models_are_names_of_members() -> None:
    assert PoolMember(name="Qwen/Qwen3-0.6B").name == "Qwen/Qwen3-0.6B"


def test_an_origin_that_the_pool_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"origin\.order names 'strong', and sample\.pool has"):
        small_config(label={"labelers": [ORIGIN]})


def test_an_origin_cannot_evaluate() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.judges, or set evaluate\.enabled"):
        small_config(sample={"pool": DELTA}, label={"labelers": [ORIGIN]}, train={})
    small_config(
        sample={"pool": DELTA}, label={"labelers": [ORIGIN]}, train={}, evaluate={"enabled": False}
    )
