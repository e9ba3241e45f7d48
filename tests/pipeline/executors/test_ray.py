"""A Ray cluster of three nodes makes what one process makes, whatever of it is killed.

Models are scripts of a server, which kills at the request that a test names.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefloop.data.embedded import resolve_embedded
from prefloop.data.errors import PrefloopError
from prefloop.data.protocol import EngineFailed
from prefloop.data.schemas import CANDIDATE
from prefloop.pipeline.config import PoolMember, RunConfig, validate_config
from prefloop.pipeline.loop import take_up
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.evaluate import answer_heldout
from prefloop.pipeline.stages.likelihood import reading
from prefloop.pipeline.stages.likelihood.likelihood_figures import (
    Likely,
    MeasuredPolicy,
    likelihood_figures,
)
from prefloop.pipeline.stages.matches import match, voting
from tests.helpers.paths import ROOT
from tests.helpers.runs import dataset_rows, run_small, small_config
from tests.helpers.servers import FaultyServer, Handler, Reply, faulty_server, good, status
from tests.pipeline.executors.ray_cluster import (
    QUIET,
    add_node,
    kill,
    ray_cluster,
    tries_of_stages,
    until,
    workers,
)
from tests.pipeline.stages.test_measures import candidate, table

# By a thread: Ray may hang where no signal of Python's is heard.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900, method="thread")]

PROMPTS = 24
BLOCK = 4
TOKENS = 15
"""What a request of the script takes."""
PRICES = {"price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 1e6}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster() as running:
        yield running


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


def config(url: str, file: Path, cluster: Any = None, **changes: Any) -> RunConfig:
    """Answers of a server, judged by a server; on ``cluster``, or here where there is none."""
    served = {"type": "openai", "base_url": url, "max_retries": 0, "cache": False}
    judge = {"type": "judge", "name": "j", "engine": "judge", "model": "m",
             "judge": str(file.parent / "judge")}  # fmt: skip
    raw: dict[str, Any] = {
        "seed": 1, "policy": "m", "block_size": BLOCK,
        "engines": {"default": served, "judge": served},
        "prompts": {"train": {"path": str(file)}, "heldout_share": 0,
                    "near_duplicates": {"enabled": False}},
        "sample": {"n": 2, "max_tokens": 8},
        "label": {"labelers": [judge]},
        "filter": {"filters": [], "strategy": {"type": "all"}},
    }  # fmt: skip
    if cluster is not None:
        raw["executor"] = {"type": "ray", "address": cluster.address}
    return validate_config(raw | changes, "test")


def asked(body: Any) -> str:
    return str(body["messages"][-1]["content"])


def is_judged(body: Any) -> bool:
    return asked(body).startswith("JUDGE")


def scripted(body: Any) -> Reply:
    """An answer that hangs on what is asked alone."""
    said = hashlib.sha256(f"{asked(body)} {body.get('seed')}".encode()).hexdigest()
    return good(f"[[{'AB'[int(said[0], 16) % 2]}]]" if is_judged(body) else f"answer {said[:12]}")


class Script:
    """Answers as :func:`scripted`; at the requests that ``wanted`` picks, something is done
    first, ``times`` times."""

    def __init__(
        self, wanted: Callable[[Any], bool], do: Callable[[], None], times: int = 1
    ) -> None:
        self._wanted, self._do, self._left = wanted, do, times
        self._lock = threading.Lock()

    def __call__(self, handler: Handler) -> None:
        self.before(handler.body)
        scripted(handler.body)(handler)

    def before(self, body: Any) -> None:
        """Do it, where it is time."""
        with self._lock:
            if self._left and self._wanted(body):
                self._left -= 1
                self._do()


def nth(number: int, wanted: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Picks the so-manieth of the requests that ``wanted`` picks."""
    seen = iter(range(1, number + 1))
    return lambda body: wanted(body) and next(seen, number) == number


def no_worker_is_left() -> bool:
    return until(lambda: not workers())


def shards(run: RunDir) -> dict[str, bytes]:
    """Every shard of a run, by its path in it."""
    found = sorted(run.root.rglob("*.parquet"))
    return {str(path.relative_to(run.root)): path.read_bytes() for path in found}


@pytest.fixture
def expected(tmp_path: Path, prompts: Path) -> dict[str, bytes]:
    """The shards of a run in this process."""
    with faulty_server(lambda handler: scripted(handler.body)(handler)) as server:
        found = shards(run_small(tmp_path / "local", config(server.url, prompts)))
    assert len(found) > 4 * PROMPTS // BLOCK
    return found


def repeated(server: FaultyServer) -> int:
    """Requests that came more than once."""
    every = [json.dumps(body, sort_keys=True) for _, _, body in server.requests]
    return len(every) - len(set(every))


def test_killed_workers_and_nodes_leave_no_trace(
    tmp_path: Path, prompts: Path, expected: dict[str, bytes], cluster: Any
) -> None:
    def kill_node() -> None:
        node = next(iter(cluster.worker_nodes))
        cluster.remove_node(node, allow_graceful=False)

    first = Script(lambda body: "Number 09" in asked(body), lambda: kill(workers()[0]))
    second = Script(lambda body: "Number 13" in asked(body), kill_node)

    def reply(handler: Handler) -> None:
        (second if is_judged(handler.body) else first)(handler)

    with faulty_server(reply) as server:
        run = run_small(tmp_path / "ray", config(server.url, prompts, cluster))
        again = repeated(server)
    add_node(cluster)
    assert shards(run) == expected
    # Each kill repeats the blocks in flight at most: two of sampling, two of labelling.
    assert 0 < again <= 2 * BLOCK * 2 + 2 * BLOCK * 2
    assert no_worker_is_left()
    assert not (run.root / "attempts").exists()


def test_a_block_that_kills_its_workers_is_named_and_the_rest_is_kept(
    tmp_path: Path, prompts: Path, expected: dict[str, bytes], cluster: Any
) -> None:
    settings = {"type": "ray", "address": cluster.address, "attempts": 2}
    poison = Script(
        lambda body: "Number 10" in asked(body), lambda: [kill(one) for one in workers()], times=9
    )
    told = pytest.raises(PrefloopError, match="round 0 sample: block 2 ended 2 workers")
    with faulty_server(poison) as server, told as raised:
        run_small(tmp_path / "ray", config(server.url, prompts, executor=settings))
    assert "shard 2 in prompt" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert no_worker_is_left()
    sampled = RunDir(tmp_path / "ray").round(0).candidates
    assert 2 not in sampled.indices()
    with faulty_server(lambda handler: scripted(handler.body)(handler)) as server:
        run = run_small(tmp_path / "ray", config(server.url, prompts, cluster))
    assert shards(run) == expected


def test_a_killed_driver_leaves_nothing_running_and_the_same_command_goes_on(
    tmp_path: Path, prompts: Path, expected: dict[str, bytes], cluster: Any
) -> None:
    driver: list[subprocess.Popen[bytes]] = []
    script = Script(
        lambda body: is_judged(body) and "Number 13" in asked(body),
        lambda: os.kill(driver[0].pid, signal.SIGKILL),
    )
    with faulty_server(script) as server:
        file = tmp_path / "config.yaml"
        wanted = config(server.url, prompts, cluster)
        file.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
        command = [*(sys.executable, "-m", "prefloop", "run", str(file), "--no-check"),
                   *("--run-dir", str(tmp_path / "ray"))]  # fmt: skip
        with (tmp_path / "log").open("w") as log:
            driver.append(subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | QUIET
            ))  # fmt: skip
        assert driver[0].wait(300) == -signal.SIGKILL, (tmp_path / "log").read_text()
        assert no_worker_is_left()
        voted = RunDir(tmp_path / "ray").round(0).votes.indices()
        assert len(voted) < PROMPTS // BLOCK
        assert (
            subprocess.run(command, cwd=ROOT, env=os.environ | QUIET, check=False).returncode == 0
        )
    assert shards(RunDir(tmp_path / "ray")) == expected
    assert not (tmp_path / "ray" / "attempts").exists()


@pytest.mark.parametrize(
    "limit",
    [
        {"max_total_tokens": 20 * TOKENS},
        {"max_cost": 20.0 * TOKENS, **PRICES},
    ],
    ids=["tokens", "money"],
)  # fmt: skip
def test_a_budget_is_that_of_all_workers_and_of_all_starts(
    tmp_path: Path, prompts: Path, expected: dict[str, bytes], cluster: Any, limit: dict[str, Any]
) -> None:
    root = tmp_path / "ray"
    with faulty_server(lambda handler: scripted(handler.body)(handler)) as server:
        served = {"type": "openai", "base_url": server.url, "max_retries": 0, "cache": False}
        priced = served | (PRICES if "max_cost" in limit else {})
        limited, unlimited = (
            config(
                server.url, prompts, cluster, engines={"default": priced | most, "judge": served}
            )
            for most in (limit, {})
        )
        for _ in range(2):
            with pytest.raises(EngineFailed, match="budget reached"):
                run_small(root, limited)
            assert 5 < len(server.requests) <= 20
            assert no_worker_is_left()
        run = run_small(root, unlimited)
    assert shards(run).keys() == expected.keys()
    if "max_cost" not in limit:  # a price is told with what it bought
        assert shards(run) == expected


@pytest.mark.parametrize("answer", [status(400, "This is not answered here"), status(401, "no")])
def test_what_a_server_refuses_is_said_as_in_one_process(
    tmp_path: Path, prompts: Path, cluster: Any, answer: Reply
) -> None:
    said = []
    for where in (None, cluster):
        run = RunDir(tmp_path / ("ray" if where else "local"))
        with faulty_server(answer) as server, pytest.raises(PrefloopError) as raised:
            run_small(run.root, config(server.url, prompts, where))
        said.append((type(raised.value), raised.value.exit_code))
        words = str(raised.value).replace(server.url, "URL")
        said[-1] += (words.partition(" of ")[0], words.rpartition(": ")[2])
        assert run.round(0).candidates.indices() == []
        assert run.round(0).quarantine("sample").indices() == []
    assert said[0] == said[1]
    assert no_worker_is_left()


def config_to_compare(url: str, file: Path, cluster: Any = None) -> RunConfig:
    """:func:`config` with half of the prompts held out."""
    heldout = {"train": {"path": str(file)}, "heldout_share": 0.5,
               "near_duplicates": {"enabled": False}}  # fmt: skip
    return config(url, file, cluster, prompts=heldout, sample={"n": 1}, block_size=2)


@pytest.fixture
def compared(tmp_path: Path, prompts: Path) -> dict[str, bytes]:
    """The shards of a comparison in this process."""
    run = RunDir(tmp_path / "local")
    with faulty_server(lambda handler: scripted(handler.body)(handler)) as server:
        asyncio.run(compare(config_to_compare(server.url, prompts), run))
    found = shards(run)
    kinds = {name.split("/")[1] for name in found if name.startswith("evaluation/")}
    assert kinds == {"answers-000", "answers-001", "votes-001-against-000"}
    return found


def test_policies_are_compared_as_in_one_process(
    tmp_path: Path, prompts: Path, compared: dict[str, bytes], cluster: Any
) -> None:
    run = RunDir(tmp_path / "ray")
    with faulty_server(lambda handler: scripted(handler.body)(handler)) as server:
        asyncio.run(compare(config_to_compare(server.url, prompts, cluster), run))
    assert shards(run) == compared
    assert no_worker_is_left()


COMPARING = """
import asyncio, sys
from pathlib import Path
import yaml
from prefloop.pipeline.config import validate_config
from prefloop.pipeline.run.run_dir import RunDir
from tests.pipeline.executors.test_ray import compare
config = validate_config(yaml.safe_load(Path(sys.argv[1]).read_text()), "test")
asyncio.run(compare(config, RunDir(Path(sys.argv[2]))))
"""


def test_a_comparison_survives_a_worker_a_node_and_who_waits_for_it(
    tmp_path: Path, prompts: Path, compared: dict[str, bytes], cluster: Any
) -> None:
    """A worker while held-out prompts are answered, the others while votes are given."""
    driver: list[subprocess.Popen[bytes]] = []

    def kill_node() -> None:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    scripts = [
        Script(nth(7, lambda body: not is_judged(body)), lambda: kill(workers()[0])),
        Script(nth(3, is_judged), kill_node),
        Script(nth(9, is_judged), lambda: os.kill(driver[0].pid, signal.SIGKILL)),
    ]

    def reply(handler: Handler) -> None:
        for script in scripts:
            script.before(handler.body)
        scripted(handler.body)(handler)

    run, file = RunDir(tmp_path / "ray"), tmp_path / "config.yaml"
    with faulty_server(reply) as server:
        wanted = config_to_compare(server.url, prompts, cluster)
        file.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
        with (tmp_path / "log").open("w") as log:
            driver.append(subprocess.Popen(
                [sys.executable, "-c", COMPARING, str(file), str(run.root)],
                cwd=ROOT, stdout=log, stderr=log, env=os.environ | QUIET,
            ))  # fmt: skip
        assert driver[0].wait(300) == -signal.SIGKILL, (tmp_path / "log").read_text()
        assert no_worker_is_left()
        add_node(cluster)
        voted = run.match_votes(1, 0).indices()
        assert len(voted) < len(run.heldout.indices())
        asyncio.run(compare(wanted, run))
        again = repeated(server)
    assert shards(run) == compared
    # Two blocks of two prompts in flight: answers of one worker, votes in both orders of two, and
    # of all that are left.
    assert 0 < again <= 2 * 2 + 2 * 2 * 2 * 2 + 2 * 2 * 2 * 2
    assert no_worker_is_left()


async def compare(config: RunConfig, run: RunDir) -> None:
    """Two policies, which are asked at different temperatures, on held-out prompts."""
    with run.lock():
        config, models, context = take_up(config, run)
        try:
            first = context.round(0)
            for policy in (0, 1):
                settings = config.evaluate.model_copy(update={"temperature": 1.0 - policy / 2})
                member = PoolMember(name="other", model="m", max_tokens=8 - policy)
                asking = config.sample.of_member(member)
                await answer_heldout(first, asking, settings, models, policy, member)
            by = voting(config, config.evaluators, models.labelers)
            await match(first, 1, 0, by)
        finally:
            await context.executor.aclose()
            await models.release()


def test_models_in_workers_compute_what_they_compute_here(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit of a log-probability, and of KL: workers take as many threads as this
    process, which loads no model but to train it."""
    monkeypatch.setattr(reading, "TEXTS_OF_BLOCK", 16)
    found = []
    for where in ({}, {"executor": {"type": "ray", "address": cluster.address}}):
        if where:
            monkeypatch.setattr("prefloop.pipeline.run.models.loaded_reader", None)
            monkeypatch.setattr("prefloop.pipeline.run.models.build_engine", None)
        labelers = [{"type": "verifier", "name": "v", "function": "tests.helpers.served:letters"}]
        wanted = small_config(
            label={"labelers": labelers},
            train={"learning_rate": 1e-4, "batch_size": 4},
            evaluate={"samples_per_prompt": 8},
            **where,
        )
        run = run_small(tmp_path / ("ray" if where else "local"), wanted)
        found.append((shards(run), dataset_rows(run)))
    assert found[0][0].keys() == found[1][0].keys()
    assert [name for name, shard in found[0][0].items() if found[1][0][name] != shard] == []
    assert found[0][1] == found[1][1]
    candidates = RunDir(tmp_path / "ray").round(0).candidates.table()
    assert candidates["logprob"].null_count == 0
    figures = {row["name"] for row in run.round(0).metrics.read(1).to_pylist()}
    assert figures >= {"kl", "reward_margin"}
    assert len([name for name in found[1][0] if name.startswith("evaluation/logps-001-")]) >= 8
    assert no_worker_is_left()


def test_killed_workers_leave_log_probabilities_as_they_are(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that answers many times is read by two workers, both of which are killed."""
    monkeypatch.setattr(reading, "TEXTS_OF_BLOCK", 16)
    expected = asyncio.run(measure(small_config(), RunDir(tmp_path / "local")))
    tries = tries_of_stages(monkeypatch)
    run = RunDir(tmp_path / "ray")
    killed: list[int] = []

    def is_hit() -> bool:
        """Kill all workers, where one of them is at a block and two are committed."""
        found = workers()
        for one in found:
            one.suspend()  # or the last block in work may be committed before the kill
        begun = len([*run.root.glob("attempts/*/*/*")])
        committed = len([*run.root.glob("evaluation/logps-*/part-*.parquet")])
        for one in found:
            if 1 < committed < begun:
                killed.append(one.pid)
                kill(one)
            else:
                one.resume()
        return bool(killed)

    killer = threading.Thread(target=until, args=(is_hit, 300))
    killer.start()
    on_ray = small_config(executor={"type": "ray", "address": cluster.address})
    found = asyncio.run(measure(on_ray, run))
    killer.join()
    assert killed
    assert found == expected
    assert shards(run) == shards(RunDir(tmp_path / "local"))
    blocks = len([name for name in shards(run) if name.startswith("evaluation/logps-")])
    assert blocks == 2 * ANSWERS_TO_EACH * 8 // 16
    assert blocks < tries[0] <= blocks + len(killed)
    assert no_worker_is_left()


ANSWERS_TO_EACH = 40


async def measure(config: RunConfig, run: RunDir) -> list[dict[str, Any]]:
    """KL of a policy to the starting policy."""
    other = Path(resolve_embedded("embedded:judge"))
    with run.lock():
        config, models, context = take_up(config, run)
        start = Path(models.start)
        try:
            prompts = run.heldout.table(["prompt_id"])["prompt_id"].to_pylist()
            assert len(prompts) == 8
            rows = [
                candidate("other", one, at, f"The {at} to {number}. " * (1 + (7 * at) % 30))
                for number, one in enumerate(prompts)
                for at in range(ANSWERS_TO_EACH)
            ]
            run.answers(1).write(0, table(rows, CANDIDATE))
            measured = MeasuredPolicy(1, other, other=start, against="start", start=start)
            likely = Likely(models.scoring, 0.95, untempered=True)
            return await likelihood_figures(context.round(0), measured, likely)
        finally:
            await context.executor.aclose()
            await models.release()
