"""Too many invalid votes end a labelling; its valid votes are kept, and the others asked again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prefloop.data.errors import NothingCameOut
from prefloop.labelers.base import Vote, votes_table
from prefloop.labelers.config import LabelConfig
from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.run.run_dir import RunDir, RunError
from prefloop.pipeline.run.status import collect_status
from prefloop.pipeline.stages.invalid_votes import (
    LEAST,
    WINDOW,
    Breaker,
    TooManyInvalid,
    set_aside,
)
from tests.helpers.runs import run_small
from tests.helpers.servers import FaultyServer, Handler, Reply, faulty_server, good

PROMPTS = 80
VERIFIER = {"type": "verifier", "name": "v", "function": "tests.helpers.served:letters"}


def config(
    url: str, file: Path, *, label: dict[str, Any] | None = None, cache: bool = False, **judge: Any
) -> RunConfig:
    """Eighty prompts with two answers each, judged in one order by text."""
    one = {"type": "judge", "name": "j", "engine": "judge", "model": "m", "orders": "one",
           "judge": str(file.parent / "judge")} | judge  # fmt: skip
    served = {"type": "openai", "base_url": url, "max_retries": 0, "cache": cache}
    raw = {
        "seed": 1, "policy": "m", "block_size": 8, "blocks_in_flight": 1,
        "engines": {"default": served, "judge": served},
        "prompts": {"train": {"path": str(file)}, "heldout_share": 0,
                    "near_duplicates": {"enabled": False}},
        "sample": {"n": 2, "max_tokens": 8},
        "label": {"labelers": [one, VERIFIER]} | (label or {}),
        "filter": {"filters": [], "strategy": {"type": "all"}},
        "write": {"test_share": 0},
    }  # fmt: skip
    return validate_config(raw, "test")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "judge.yaml").write_text("kind: pairwise\nparser: text\nmax_tokens: 50\n")
    (folder / "prompt.jinja").write_text("JUDGE {{ request }}\n{{ answer_a }}\n{{ answer_b }}")
    path = tmp_path / "prompts.jsonl"
    rows = [json.dumps({"prompt": f"Number {n:02d} is asked about."}) for n in range(PROMPTS)]
    path.write_text("\n".join(rows))
    return path


def asked(body: Any) -> str:
    return str(body["messages"][-1]["content"])


def judged(server: FaultyServer) -> list[str]:
    """What the judge was asked."""
    return [asked(body) for _, _, body in server.requests if "JUDGE" in asked(body)]


def judging(is_bad: Callable[[int], bool]) -> Reply:
    """A server whose verdict on prompt n is none where it ``is_bad``; it also samples."""

    def reply(handler: Handler) -> None:
        text = asked(handler.body)
        if "JUDGE" not in text:
            good(f"answer {handler.body['seed']}")(handler)
            return
        number = int(text.split("Number ")[1][:2])
        good("I cannot say." if is_bad(number) else "The first. [[A]]")(handler)

    return reply


def three_of_five_are_bad(number: int) -> bool:
    """Whether the verdict on prompt ``number`` is none."""
    return number % 5 < 3


def stopped(run: RunDir, prompts: Path, **changes: Any) -> set[str]:
    """The prompts on which the judge gave a valid vote until its invalid ones ended the run."""
    told = pytest.raises(TooManyInvalid, match=r"votes of j are invalid.*0\.3.*double brackets")
    with faulty_server(judging(three_of_five_are_bad)) as server, told as raised:
        run_small(run.root, config(server.url, prompts, **changes))
    assert raised.value.exit_code == 3
    assert "\n" not in str(raised.value)
    assert LEAST <= len(judged(server)) <= PROMPTS // 2 + 8
    assert run.round(0).votes.indices() == []
    votes = run.round(0).votes_kept.table().to_pylist()
    assert "invalid" not in {vote["preference"] for vote in votes}
    return {vote["prompt_id"] for vote in votes if vote["labeler"] == "j"}


def test_they_end_the_run_and_only_they_are_asked_again(tmp_path: Path, prompts: Path) -> None:
    run, whole = RunDir(tmp_path / "run"), RunDir(tmp_path / "whole")
    kept = stopped(run, prompts)
    assert 10 < len(kept) < PROMPTS // 2
    with faulty_server(judging(lambda _: False)) as server:
        run_small(whole.root, config(server.url, prompts))
        assert len(judged(server)) == PROMPTS
    with faulty_server(judging(lambda _: False)) as server:
        run_small(run.root, config(server.url, prompts))
        assert len(judged(server)) == PROMPTS - len(kept)
    assert run.round(0).votes.table().equals(whole.round(0).votes.table())
    assert not run.round(0).votes_kept.folder.exists()
    assert collect_status(run).rounds[0].triples > 0


def test_the_same_command_unmended_ends_again_and_loses_nothing(
    tmp_path: Path, prompts: Path
) -> None:
    run = RunDir(tmp_path / "run")
    first = stopped(run, prompts)
    told = pytest.raises(TooManyInvalid)
    with faulty_server(judging(three_of_five_are_bad)) as server, told:
        run_small(run.root, config(server.url, prompts))
    votes = run.round(0).votes_kept.table().to_pylist()
    assert first <= {vote["prompt_id"] for vote in votes if vote["labeler"] == "j"}


def test_a_mended_server_is_asked_although_its_answers_were_kept(
    tmp_path: Path, prompts: Path
) -> None:
    run = RunDir(tmp_path / "run")
    kept = stopped(run, prompts, cache=True)
    with faulty_server(judging(lambda _: False)) as server:
        run_small(run.root, config(server.url, prompts, cache=True))
        assert len(judged(server)) == PROMPTS - len(kept)
    assert collect_status(run).rounds[0].invalid_votes == {}
    # Nothing came out at all: that may be mended too.
    other = RunDir(tmp_path / "other")
    only = {"labelers": [config("http://127.0.0.1:9/v1", prompts).label.labelers[0]]}
    with faulty_server(judging(lambda _: True)) as server, pytest.raises(NothingCameOut):
        run_small(other.root, config(server.url, prompts, cache=True, label=only))
    with faulty_server(judging(lambda _: False)) as server:
        run_small(other.root, config(server.url, prompts, cache=True, label=only))
        assert len(judged(server)) == PROMPTS


def test_null_takes_kept_answers_as_they_are(tmp_path: Path, prompts: Path) -> None:
    run = RunDir(tmp_path / "run")
    kept = stopped(run, prompts, cache=True)
    with faulty_server(judging(three_of_five_are_bad)) as server:
        run_small(run.root, config(server.url, prompts, cache=True, label={"max_invalid": None}))
        assert len(judged(server)) < PROMPTS - len(kept)


def test_null_goes_on_whatever_comes(tmp_path: Path, prompts: Path) -> None:
    run = RunDir(tmp_path / "run")
    kept = stopped(run, prompts)
    with faulty_server(judging(three_of_five_are_bad)) as server:
        run_small(run.root, config(server.url, prompts, label={"max_invalid": None}))
        assert len(judged(server)) == PROMPTS - len(kept)
    assert collect_status(run).rounds[0].invalid_votes == {"j": PROMPTS * 3 // 5}


def test_what_mends_votes_may_change_and_who_gives_them_may_not(
    tmp_path: Path, prompts: Path
) -> None:
    run = RunDir(tmp_path / "run")
    kept = stopped(run, prompts)
    assert kept
    with faulty_server(judging(lambda _: False)) as server:
        run.round(0).votes.replace(0, run.round(0).votes_kept.read(0))
        with pytest.raises(RunError, match="orders"):
            run_small(run.root, config(server.url, prompts, orders="both"))
        run.round(0).votes.remove([0])
        mended = config(server.url, prompts, max_tokens=99, temperature=None)
        run_small(run.root, mended)
        assert len(judged(server)) == PROMPTS - len(kept)
        assert {body["max_tokens"] for _, _, body in server.requests} == {99}
    # Once all are there, they are as any others.
    with pytest.raises(RunError, match="max_tokens"):
        run_small(run.root, config("http://127.0.0.1:9/v1", prompts, max_tokens=7))


def test_votes_of_another_judge_are_not_kept(tmp_path: Path, prompts: Path) -> None:
    run = RunDir(tmp_path / "run")
    stopped(run, prompts)
    with faulty_server(judging(lambda _: False)) as server:
        run_small(run.root, config(server.url, prompts, model="another"))
        assert len(judged(server)) == PROMPTS
        assert {body["model"] for _, _, body in server.requests} == {"another"}
    names = run.round(0).votes.table()["labeler"].to_pylist()
    assert (names.count("j"), names.count("v")) == (PROMPTS, PROMPTS)


def test_votes_of_people_are_never_taken_back(tmp_path: Path, prompts: Path) -> None:
    run = RunDir(tmp_path / "run")
    with faulty_server(judging(lambda _: False)) as server:
        run_small(run.root, config(server.url, prompts))
        folder = run.round(0)
        votes = folder.votes.read(0)
        place = votes.column_names.index("labeler")
        human = votes.slice(0, 2).set_column(
            place, votes.schema.field(place), pa.array(["human:ann"] * 2)
        )
        folder.votes.replace(0, pa.concat_tables([votes, human]))
        set_aside(folder, config(server.url, prompts).label)
        run_small(run.root, config(server.url, prompts))
    assert folder.votes.read(0).equals(pa.concat_tables([votes, human]))


def test_some_are_part_of_a_healthy_run(tmp_path: Path, prompts: Path) -> None:
    run = RunDir(tmp_path / "run")
    with faulty_server(judging(lambda n: n % 4 == 0)) as server:
        run_small(run.root, config(server.url, prompts))
        assert len(judged(server)) == PROMPTS
    assert collect_status(run).rounds[0].invalid_votes == {"j": PROMPTS // 4}


def block(invalid: int, valid: int, labeler: str = "j") -> pa.Table:
    """So many votes, of which none is a verdict for one answer."""
    one = {"prompt_id": "p", "round": 0, "a_id": "a", "b_id": "b", "labeler": labeler,
           "order": "ab"}  # fmt: skip
    kinds = ["invalid"] * invalid + ["tie"] * valid
    return votes_table(
        [Vote(pair_id=str(n), preference=kind, rationale="no verdict", **one)  # type: ignore[arg-type]
         for n, kind in enumerate(kinds)]
    )  # fmt: skip


def breaker(max_invalid: float | None = 0.3) -> Breaker:
    judge = {"type": "judge", "name": "j", "model": "m"}
    other = {"type": "judge", "name": "k", "model": "m"}
    settings = {"labelers": [judge, other], "max_invalid": max_invalid}
    return Breaker("label", LabelConfig.model_validate(settings))


@pytest.mark.parametrize(
    ("blocks", "ends"),
    [
        ([(LEAST - 1, 0)], False),
        ([(LEAST, 0)], True),
        ([(12, 20)], False),  # 0.375 of 32: by chance one labeler of five at 0.3 does that
        ([(96, 160)], False),  # 0.375 of 256: barely by chance
        ([(110, 146)], True),
        ([(0, 5000), (110, 146)], True),  # the long good past does not count
        ([(110, 146)] * 0 + [(50, 206)] * 20, False),
        ([(0, 300)], False),  # ties are votes
    ],
)
def test_how_many_are_too_many(blocks: list[tuple[int, int]], ends: bool) -> None:
    watch = breaker()
    if not ends:
        for each in blocks:
            watch.take(block(*each))
        return
    for each in blocks[:-1]:
        watch.take(block(*each))
    with pytest.raises(TooManyInvalid):
        watch.take(block(*blocks[-1]))


def test_each_labeler_is_looked_at_alone() -> None:
    watch = breaker()
    watch.take(pa.concat_tables([block(30, 0), block(0, WINDOW, "k")]))
    with pytest.raises(TooManyInvalid, match="of the last 32 votes of j are invalid"):
        watch.take(pa.concat_tables([block(2, 0), block(0, 100, "k")]))
    breaker(None).take(block(500, 0))


@pytest.mark.parametrize(
    ("why", "key"),
    [
        ("the answer ends within an unfinished thought", r"raise .*\.j\.thought_tokens"),
        ("unparsable: x; the answer was cut off at its token limit", r"raise .*j\.max_tokens"),
        ("the verdicts have probability 0.01 in all, less than 0.5: the judge was about to say "
         "something else", r"set .*j\.thought_tokens .*j\.judge"),
        ("the engine gave no log-probabilities for the verdicts", r"set label\.labelers\.j\.judge"),
        ("refused_by_server: status 400: no", r"change engines\.default"),
        ("context_overflow: 9 > 8", r"lower label\.labelers\.j\.max_tokens"),
    ],
)  # fmt: skip
def test_the_key_is_named_by_the_commonest_reason(why: str, key: str) -> None:
    table = block(LEAST, 0)
    at = table.column_names.index("rationale")
    table = table.set_column(at, table.schema.field(at), pa.array([why] * LEAST))
    with pytest.raises(TooManyInvalid, match=key):
        breaker().take(table)
