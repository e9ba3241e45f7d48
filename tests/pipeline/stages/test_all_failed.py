"""All is not some: what fails as a whole is said, and done by the same command once mended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from prefloop.data.errors import NothingCameOut, PrefloopError
from prefloop.pipeline.audit.audit_options import make_options
from prefloop.pipeline.audit.check import audit
from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.run.status import collect_status
from tests.helpers.runs import run_small
from tests.helpers.servers import Handler, faulty_server, good, status

SCORE = f"{__name__}:score"
REFUSAL = "This text is not answered here"


def score(text: str, **_: Any) -> float:
    """Length; raises for the text of one answer."""
    if "poison" in text:
        raise ValueError("cannot score poison")
    return float(len(text))


def never(text: str, **_: Any) -> float:
    """Scores nothing."""
    raise KeyError(text[:4])


def exits(text: str, **_: Any) -> float:
    """Ends the process, where it is let."""
    raise SystemExit(f"no \udcff {len(text)}")


def config(url: str, file: Path, **changes: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "seed": 1,
        "policy": "m",
        "block_size": 2,
        "engines": {"default": {"type": "openai", "base_url": url, "max_retries": 0,
                                "cache": False}},
        "prompts": {"train": {"path": str(file)}, "heldout_share": 0},
        "sample": {"n": 2, "max_tokens": 8},
        "label": {"labelers": [{"type": "verifier", "name": "v", "function": SCORE}]},
        "filter": {"filters": [], "strategy": {"type": "all"}},
        "write": {"test_share": 0},
    }  # fmt: skip
    return validate_config(raw | changes, "test")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    names = ["river", "harbour", "mountain", "library", "orchard", "railway"]
    lines = [json.dumps({"prompt": f"Tell me about the {name}."}) for name in names]
    path.write_text("\n".join(lines))
    return path


def by_seed(text_of: Callable[[Any], str | None]) -> Callable[[Handler], None]:
    """A server whose answers differ by request."""

    def reply(handler: Handler) -> None:
        text = text_of(handler.body)
        (good(text) if text is not None else status(400, REFUSAL))(handler)

    return reply


def different(body: Any) -> str:
    return f"answer {'x' * (body['seed'] % 97)} {body['seed']}"


def asked(body: Any) -> str:
    return str(body["messages"][-1]["content"])


def test_nothing_is_done_where_every_request_is_refused(tmp_path: Path, prompts: Path) -> None:
    run = RunDir(tmp_path / "run")
    told = pytest.raises(PrefloopError, match=REFUSAL)
    with faulty_server(status(400, REFUSAL)) as server, told as raised:
        run_small(run.root, config(server.url, prompts))
    assert raised.value.exit_code == 3
    assert not run.dataset.exists()
    assert run.round(0).candidates.indices() == []
    assert collect_status(run).rounds[0].quarantined == {}
    with faulty_server(by_seed(different)) as server:
        mended = config(server.url, prompts, sample={"n": 2, "max_tokens": 16})
        run_small(run.root, mended)
    assert collect_status(run).rounds[0].triples == 6


def test_the_rest_is_not_asked_where_the_first_are_all_refused(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    rows = [json.dumps({"prompt": f"{n} " + "abcdefghij"[n % 10] * n}) for n in range(1, 201)]
    prompts.write_text("\n".join(rows))
    source = {"train": {"path": str(prompts)}, "heldout_share": 0,
              "near_duplicates": {"enabled": False}}  # fmt: skip
    with faulty_server(status(400, REFUSAL)) as server:
        wanted = config(server.url, prompts, prompts=source, block_size=16, blocks_in_flight=1)
        with pytest.raises(PrefloopError, match=REFUSAL) as raised:
            run_small(tmp_path / "run", wanted)
        assert raised.value.exit_code == 3
        assert len(server.requests) <= 2 * 32


@pytest.mark.parametrize("place", range(6))
def test_one_refused_prompt_costs_itself(tmp_path: Path, prompts: Path, place: int) -> None:
    poison = json.loads(prompts.read_text().splitlines()[place])["prompt"]

    def reply(body: Any) -> str | None:
        return None if asked(body) == poison else different(body)

    run = RunDir(tmp_path / "run")
    with faulty_server(by_seed(reply)) as server:
        wanted = config(server.url, prompts, block_size=1)
        run_small(run.root, wanted)
        found = collect_status(run).rounds[0]
        assert found.quarantined == {"sample": {"refused_by_server": 1}}
        assert found.triples == 5
        # Also where a kill left nothing but the poison to do.
        run.round(0).candidates.path(place).unlink()
        run.round(0).written.unlink()
        run_small(run.root, wanted)
        assert collect_status(run).rounds[0].triples == 5


def test_votes_that_are_all_invalid_are_given_again(tmp_path: Path, prompts: Path) -> None:
    run = RunDir(tmp_path / "run")
    labelers = [{"type": "verifier", "name": "v", "function": f"{__name__}:never"}]
    with faulty_server(by_seed(different)) as server:
        with pytest.raises(NothingCameOut, match=r"6 votes, for one reason: KeyError: 'answ'.*v"):
            run_small(run.root, config(server.url, prompts, label={"labelers": labelers}))
        assert run.round(0).votes.indices() == []
        asked_before = len(server.requests)
        run_small(run.root, config(server.url, prompts))
        assert len(server.requests) == asked_before
    assert collect_status(run).rounds[0].triples == 6


def test_the_engine_of_judges_that_all_failed_may_be_changed(tmp_path: Path, prompts: Path) -> None:
    judge = {"type": "judge", "name": "j", "engine": "judge", "model": "m", "orders": "one",
             "judge": "pairwise"}  # fmt: skip
    run = RunDir(tmp_path / "run")
    with faulty_server(by_seed(different)) as server, faulty_server(status(400, REFUSAL)) as bad:
        engine = {"type": "openai", "base_url": server.url, "max_retries": 0, "cache": False}
        engines = {"default": engine, "judge": engine | {"base_url": bad.url}}
        wanted = config(server.url, prompts, label={"labelers": [judge]}, engines=engines)
        with pytest.raises(NothingCameOut, match=r"votes.*refused_by_server.*engines\.judge"):
            run_small(run.root, wanted)
    first = [{"token": "A", "logprob": -0.01}, {"token": "B", "logprob": -5.0}]
    verdict = good("A", logprobs={"content": [{**first[0], "top_logprobs": first}]})
    with faulty_server(verdict) as server:
        engines["judge"] = engine | {
            "base_url": server.url,
            "max_tokens_field": "max_completion_tokens",
        }
        run_small(run.root, config("", prompts, label={"labelers": [judge]}, engines=engines))
    assert collect_status(run).rounds[0].triples == 6


def test_one_unreadable_labeler_of_two_is_told_and_costs_itself(
    tmp_path: Path, prompts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labelers = [
        {"type": "verifier", "name": "never", "function": f"{__name__}:exits"},
        {"type": "verifier", "name": "v", "function": SCORE},
    ]
    run = RunDir(tmp_path / "run")
    with faulty_server(by_seed(different)) as server:
        run_small(run.root, config(server.url, prompts, label={"labelers": labelers}))
    found = collect_status(run).rounds[0]
    assert (found.triples, found.invalid_votes) == (6, {"never": 6})
    [line] = [record.getMessage() for record in caplog.records if "never" in record.getMessage()]
    assert "6 of 6 votes of never failed, for one reason: SystemExit: no \\" in line


def test_one_answer_that_cannot_be_scored_costs_itself(tmp_path: Path, prompts: Path) -> None:
    def reply(body: Any) -> str:
        return different(body) + " poison" * ("river" in asked(body))

    run = RunDir(tmp_path / "run")
    with faulty_server(by_seed(reply)) as server:
        run_small(run.root, config(server.url, prompts))
    found = collect_status(run).rounds[0]
    assert (found.triples, found.dropped) == (5, {"no_valid_vote": 1})


def test_pairs_that_are_all_dropped_are_decided_again(tmp_path: Path, prompts: Path) -> None:
    run = RunDir(tmp_path / "run")
    harsh = {"filters": [{"type": "length", "min_tokens": 500}], "strategy": {"type": "all"}}
    with faulty_server(by_seed(different)) as server:
        for _ in range(2):
            with pytest.raises(NothingCameOut, match=r"all 6 pairs.*6 of them by length: loosen"):
                run_small(run.root, config(server.url, prompts, filter=harsh))
        assert not run.dataset.exists()
        run_small(run.root, config(server.url, prompts))
    assert collect_status(run).rounds[0].triples == 6
    assert run.card.exists()


def test_pairs_that_all_went_to_the_test_split_are_written_again(
    tmp_path: Path, prompts: Path
) -> None:
    from prefloop.pipeline.run.context import RunContext
    from prefloop.pipeline.stages.write import require_train_rows, split_files, write_round

    run = RunDir(tmp_path / "run")
    with faulty_server(by_seed(different)) as server:
        wanted = config(server.url, prompts, write={"test_share": 0.999, "unpaired": True})
        run_small(run.root, wanted)
    context = RunContext.of(wanted, run).round(0)
    with pytest.raises(NothingCameOut, match=r"kept 6 .*test split.*write\.test_share \(0\.999"):
        require_train_rows(context, 0.999)
    for unpaired in (False, True):
        assert split_files(run, "test", unpaired=unpaired) == []
    asyncio.run(write_round(context, test_share=0.5, unpaired=True))
    require_train_rows(context, 0.5)


@pytest.mark.parametrize("empty", ["", " \n\t", "\u2003"])
def test_empty_answers_are_no_pairs_and_are_counted(
    tmp_path: Path, prompts: Path, empty: str
) -> None:
    def reply(body: Any) -> str:
        return empty if body["seed"] % 2 else different(body)

    run = RunDir(tmp_path / "run")
    with faulty_server(by_seed(reply)) as server:
        wanted = config(server.url, prompts, sample={"n": 4, "max_tokens": 8},
                        write={"test_share": 0, "unpaired": True})  # fmt: skip
        run_small(run.root, wanted)
    found = collect_status(run).rounds[0]
    assert found.adds_up
    assert found.dropped["empty_answer"] > 0
    assert found.pairs == found.triples + found.dropped["empty_answer"]
    assert found.votes["v"] == found.triples  # nobody is paid to judge them
    for path in run.dataset.rglob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            for turns in (row.get("chosen"), row.get("rejected"), row.get("completion")):
                assert turns is None or turns[0]["content"].strip()
    errors = [
        one for one in audit(str(run.root), make_options()).findings if one.severity == "error"
    ]
    assert errors == []


def test_answers_that_are_all_empty_are_asked_again(tmp_path: Path, prompts: Path) -> None:
    run = RunDir(tmp_path / "run")
    told = r"empty_answer: .*'length'.*max_tokens"
    empty = good("", finish_reason="length")
    with faulty_server(empty) as server, pytest.raises(NothingCameOut, match=told):
        run_small(run.root, config(server.url, prompts))
    assert run.round(0).candidates.indices() == []


def test_no_usable_prompt_says_why(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps([{"prompt": "Say \x1b[31mhello"}, {"prompt": "bye"}], indent=1))
    with pytest.raises(NothingCameOut, match=r"broken_json .*row 1") as raised:
        run_small(tmp_path / "run", config("http://127.0.0.1:9/v1", prompts))
    assert "\x1b" not in str(raised.value)
