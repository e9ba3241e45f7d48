"""The plan: hand counts, bounds, budgets, and what finished work replaces."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.machine.speed import MachineSpeed
from prefloop.pipeline.plan import plan as planning
from prefloop.pipeline.plan.disk import DiskSpace
from prefloop.pipeline.plan.plan import Plan
from prefloop.pipeline.plan.plan_text import render_plan
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.run.status import collect_status
from tests.helpers.synthetic_run import write_run

SPEED = MachineSpeed(flops=1e11, bytes_per_second=2e10, operation_s=1e-5)
PROMPTS = 20
HELDOUT = 4
VERIFIER = "verifier"
PROMPT = "Describe thing number {:04d} in one sentence."  # 43 characters


def make_plan(config: RunConfig, run: RunDir | None = None) -> Plan:
    """The plan for a machine of known speed."""
    return planning.make_plan(config, run, speed_of=lambda *_: SPEED)


def _write(path: Path, numbers: range, text: str = PROMPT) -> str:
    lines = [json.dumps({"prompt": text.format(number)}) for number in numbers]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def _config(folder: Path, **changes: Any) -> RunConfig:
    """Four samples a prompt, a token judge in both orders and a verifier, two rounds."""
    judge = {"type": "judge", "engine": "api", "model": "judge-model"}
    raw: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "rounds": 2,
        "policy": "policy-model",
        "engines": {
            "default": {"type": "vllm"},
            "api": {
                "type": "openai",
                "price_per_million_prompt_tokens": 2.0,
                "price_per_million_completion_tokens": 10.0,
            },
        },
        "prompts": {
            "train": {"path": _write(folder / "train.jsonl", range(PROMPTS))},
            "heldout": {"path": _write(folder / "held.jsonl", range(500, 500 + HELDOUT))},
            "near_duplicates": {"enabled": False},
        },
        "sample": {"n": 4, "max_tokens": 100},
        "label": {"labelers": [judge, {"type": "verifier"}]},
        "write": {"test_share": 0.1},
        "train": {"batch_size": 8},
    }
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    return validate_config(raw, "test")


def _steps(plan: Plan, stage: str, what: str) -> list[Any]:
    return [step for step in plan.steps if (step.stage, step.what) == (stage, what)]


def _text(plan: Plan) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render_plan(plan))
    return console.export_text()


def test_counts_by_hand(tmp_path: Path) -> None:
    plan = make_plan(_config(tmp_path))
    assert (plan.prompts.kept, plan.prompts.heldout) == (PROMPTS, HELDOUT)
    assert plan.prompts_per_round == (PROMPTS, PROMPTS)
    sample = _steps(plan, "sample", "policy")
    assert [step.requests for step in sample] == [80, 80]
    # 43 characters at 4 a token, and 8 tokens of template; answers are half of max_tokens.
    assert sample[0].prompt_tokens == round(80 * (43 / 4 + 8))
    assert sample[0].completion_tokens == 80 * 50
    assert sample[0].max_tokens == round(80 * (43 / 4 + 8 + 100))
    # 6 pairs of 4 candidates, in both orders, one token each.
    judged = _steps(plan, "label", "judge")[0]
    assert judged.requests == judged.completion_tokens == PROMPTS * 6 * 2
    assert judged.prompt_tokens > judged.requests * (43 / 4 + 2 * 50)
    assert judged.cost == pytest.approx(
        2e-6 * judged.prompt_tokens + 10e-6 * judged.completion_tokens, rel=1e-4
    )
    assert judged.max_cost > judged.cost
    verified = _steps(plan, "label", "verifier")[0]
    assert (verified.requests, verified.prompt_tokens, verified.cost) == (PROMPTS * 6, 0, 0)
    assert plan.requests == sum(step.requests for step in plan.steps if step.engine)
    assert plan.cost == sum(step.cost for step in plan.steps) > 0
    assert not plan.warnings


def test_a_prompt_is_paid_once_for_the_answers_of_one_request(tmp_path: Path) -> None:
    judge = {"type": "judge", "engine": "api", "model": "m", "judge": "pairwise_rationale",
             "votes": 3, "temperature": 0.7}  # fmt: skip

    def planned(**changes: Any) -> Plan:
        priced = {"type": "openai", "price_per_million_prompt_tokens": 2.0, **changes}
        return make_plan(
            _config(
                tmp_path,
                engines={"api": priced},
                sample={"engine": "api"},
                label={"labelers": [{**judge, "name": "judge"}]},
                rounds=1,
                evaluate={"enabled": False},
            )
        )

    apart, together = planned(), planned(n_per_request=2)
    for stage, what, share in (("sample", "policy", 2 / 4), ("label", "judge", 2 / 3)):
        [one], [other] = (_steps(plan, stage, what)[:1] for plan in (apart, together))
        assert other.requests == one.requests
        assert other.prompt_tokens == pytest.approx(share * one.prompt_tokens, rel=1e-3)
        assert other.cost == pytest.approx(share * one.cost)
        assert other.max_cost == one.max_cost  # where the server does not honour it


def test_several_endpoints_are_named_and_work_at_the_same_time(tmp_path: Path) -> None:
    def planned(**changes: Any) -> Plan:
        return make_plan(_config(tmp_path, engines={"api": {"type": "openai", **changes}}))

    one = planned(max_concurrency=4)
    several = planned(
        max_concurrency=4,
        endpoints=[{"base_url": f"http://{host}/v1", "api_key_env": "KEY_OF_IT"} for host in "abc"],
    )
    [alone], [together] = (_steps(plan, "label", "judge")[:1] for plan in (one, several))
    assert alone.seconds == pytest.approx(3 * together.seconds)
    told = " ".join(several.assumptions)
    assert "engines.api asks 3 endpoints: http://a/v1 (4 at once at most); http://b/v1" in told
    assert "KEY_OF_IT" not in told
    assert "endpoints" not in " ".join(one.assumptions)


def test_training_and_evaluation_by_hand(tmp_path: Path) -> None:
    plan = make_plan(_config(tmp_path))
    # best_vs_worst keeps one pair a prompt at most, a tenth of which goes to the test split.
    assert [each.examples for each in plan.training] == [18, 18]
    assert [each.steps for each in plan.training] == [3, 3]
    answers = [step for step in plan.steps if step.what.startswith("policy ")]
    assert [(step.round, step.what, step.requests) for step in answers] == [
        (0, "policy 0", HELDOUT),
        (0, "policy 1", HELDOUT),
        (1, "policy 2", HELDOUT),
    ]
    matches = _steps(plan, "evaluate", "judge")
    assert [step.requests for step in matches] == [HELDOUT * 2, HELDOUT * 2 * 2]


def test_neighbours_are_counted_among_given_answers_too(tmp_path: Path) -> None:
    """Each prompt has three answers that were there, and two that are drawn."""
    rows = [
        {"prompt": PROMPT.format(number), "answers": ["a", "b", "c"], "ratings": [3, 2, 1]}
        for number in range(PROMPTS)
    ]
    path = tmp_path / "given.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    held = {
        "heldout": {"path": str(tmp_path / "held.jsonl")},
        "near_duplicates": {"enabled": False},
    }
    for drawn, neighbours in ((0, 2), (2, 4)):
        config = _config(
            tmp_path,
            rounds=1,
            label={"labelers": [{"type": "verifier"}]},
            filter={"strategy": {"type": "ranked_neighbours"}},
            write={"test_share": 0.0},
        )
        raw = config.model_dump(mode="json", exclude_unset=True, by_alias=True)
        raw["prompts"] = held
        raw["sample"] = {"from": {"path": str(path)}, **({"n": drawn} if drawn else {})}
        plan = make_plan(validate_config(raw, "test"))
        assert plan.training[0].examples == PROMPTS * neighbours
        assert plan.training[0].steps == math.ceil(PROMPTS * neighbours / 8)


def test_supervised_training_sees_each_chosen_answer_once(tmp_path: Path) -> None:
    """Six pairs of four answers, of which three at most are chosen."""
    everything = {"filter": {"strategy": {"type": "all"}}, "write": {"test_share": 0.0}}
    plain, warm, sft = (
        make_plan(_config(tmp_path, rounds=1, train=train, **everything)).training[0]
        for train in ({}, {"sft_warmup": {"epochs": 2}}, {"method": "sft"})
    )
    assert (plain.examples, plain.steps) == (PROMPTS * 6, PROMPTS * 6 / 8)
    assert (sft.examples, sft.steps) == (PROMPTS * 3, math.ceil(PROMPTS * 3 / 8))
    assert warm.steps - plain.steps == 2 * sft.steps


def test_a_ranking_is_asked_for_once_an_opponent(tmp_path: Path) -> None:
    judge = {"type": "judge", "engine": "api", "model": "m", "judge": "listwise", "name": "ranks"}
    plan = make_plan(
        _config(tmp_path, label={"labelers": [judge]}, evaluate={"samples_per_prompt": 2})
    )
    first, second = _steps(plan, "evaluate", "ranks")
    # In both orders, the two answers of the policy and of its opponent in one listing.
    assert (first.requests, second.requests) == (2 * HELDOUT, 2 * 2 * HELDOUT)
    assert second.prompt_tokens == pytest.approx(2 * first.prompt_tokens, rel=1e-3)


@pytest.mark.parametrize("data", ["fresh", "accumulated"])
def test_log_probabilities_of_the_triples_that_a_round_holds_out(tmp_path: Path, data: str) -> None:
    plan = make_plan(_config(tmp_path, train={"data": data}))
    # A policy's answers under it and the starting one; 2 triples, of which both answers are read
    # under the policy and its reference. Those of the rounds before are not measured again.
    expected = 2 * HELDOUT + 4 * 2
    found = [step.requests for step in _steps(plan, "evaluate", "log-probabilities")]
    assert found == [expected, expected]


def test_options_that_change_the_counts(tmp_path: Path) -> None:
    plan = make_plan(
        _config(
            tmp_path,
            sample={"prompts_per_round": 5},
            label={"pairs_per_prompt": 2},
            filter={"strategy": {"type": "all"}},
            train={"data": "accumulated", "epochs": 2, "gradient_accumulation": 2},
            evaluate={"enabled": False},
        )
    )
    assert plan.prompts_per_round == (5, 5)
    assert _steps(plan, "label", "verifier")[0].requests == 10
    assert [each.examples for each in plan.training] == [9, 18]
    assert [each.steps for each in plan.training] == [2, 4]
    assert not [step for step in plan.steps if step.stage == "evaluate"]


@pytest.mark.parametrize(
    ("share", "examples"), [(0.25, [9, 12, 12]), (0.5, [9, 18, 18]), (0.6, [9, 18, 22])]
)
def test_replay_adds_its_share_of_earlier_pairs(
    tmp_path: Path, share: float, examples: list[int]
) -> None:
    plan = make_plan(
        _config(
            tmp_path,
            rounds=3,
            sample={"prompts_per_round": 5},
            label={"pairs_per_prompt": 2},
            filter={"strategy": {"type": "all"}},
            train={"data": "replay", "replay_share": share},
            evaluate={"enabled": False},
        )
    )
    assert [each.examples for each in plan.training] == examples


def test_thoughts_are_tokens_too(tmp_path: Path) -> None:
    judge = {"type": "judge", "engine": "api", "model": "judge-model"}
    changes = {"sample": {"thought_tokens": 300},
               "label": {"labelers": [{**judge, "thought_tokens": 1000}]}}  # fmt: skip
    plain = make_plan(_config(tmp_path, label={"labelers": [judge]}))
    thinking = make_plan(_config(tmp_path, **changes))
    for before, after in zip(plain.steps, thinking.steps, strict=True):
        if not after.engine:  # scored, and not generated
            continue
        thought = 1000 if after.what == "judge" else 300
        assert after.requests == before.requests
        assert after.max_tokens == before.max_tokens + after.requests * thought
        assert after.completion_tokens > before.completion_tokens
        assert after.prompt_tokens == before.prompt_tokens


@pytest.mark.parametrize(
    ("members", "most", "votes"),
    [
        ({"one": {"n": 3}, "two": {"n": 2}}, 4, 4),
        ({"one": {"n": 3}, "two": {"n": 2}}, 9, 6),  # of 10 in all
        ({"one": {"n": 1}, "two": {"n": 1}, "three": {"n": 2}}, 9, 5),
        ({"one": {"weight": 1}, "two": {"weight": 1}}, 9, 3),  # half of 6
    ],
)
def test_pairs_across_policies_alone_are_asked_about(
    tmp_path: Path, members: dict[str, Any], most: int, votes: int
) -> None:
    pool = [{"name": name, "engine": "default", **keys} for name, keys in members.items()]
    plan = make_plan(
        _config(
            tmp_path,
            rounds=1,
            sample={"pool": pool},
            label={"pairs_per_prompt": most},
            filter={"strategy": {"type": "across_policies"}},
        )
    )
    assert _steps(plan, "label", "verifier")[0].requests == PROMPTS * votes


def test_pool_shares_the_samples_by_weight(tmp_path: Path) -> None:
    pool = [
        {"name": "one", "weight": 3.0},
        {"name": "two", "model": "other", "engine": "api", "weight": 1.0},
    ]
    plan = make_plan(_config(tmp_path, sample={"pool": pool}, rounds=1))
    assert _steps(plan, "sample", "one")[0].requests == 60
    assert _steps(plan, "sample", "two")[0].requests == 20
    assert _steps(plan, "sample", "two")[0].cost > 0


def test_reference_answers_are_candidates(tmp_path: Path) -> None:
    rows = [{"prompt": PROMPT.format(number), "reference": "A thing."} for number in range(PROMPTS)]
    path = tmp_path / "with-references.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    train = {"path": str(path), "columns": {"reference": "reference"}}
    labelers = [{"type": "reference"}]
    plan = make_plan(
        _config(tmp_path, rounds=1, prompts={"train": train}, label={"labelers": labelers})
    )
    assert _steps(plan, "label", "reference")[0].requests == PROMPTS * math.comb(5, 2)


@pytest.mark.parametrize(
    ("budget", "words"),
    [({"max_cost": 0.001}, "will stop"), ({"max_total_tokens": 210_000}, "may stop"), ({}, "")],
)
def test_budget_warnings(tmp_path: Path, budget: dict[str, Any], words: str) -> None:
    config = _config(tmp_path)
    api = config.engines["api"].model_copy(update=budget)
    plan = make_plan(config.model_copy(update={"engines": {**config.engines, "api": api}}))
    asked = [step for step in plan.steps if step.engine == "api"]
    expected = sum(step.prompt_tokens + step.completion_tokens for step in asked)
    assert expected < 210_000 < sum(step.max_tokens for step in asked)
    assert len(plan.warnings) == bool(words)
    if words:
        assert words in plan.warnings[0]
        assert next(iter(budget)) in _text(plan)


def test_rate_limits_bound_the_time(tmp_path: Path) -> None:
    config = _config(tmp_path, rounds=1)
    api = config.engines["api"].model_copy(update={"requests_per_minute": 60})
    plan = make_plan(config.model_copy(update={"engines": {**config.engines, "api": api}}))
    judged = _steps(plan, "label", "judge")[0]
    assert judged.seconds == judged.requests


def test_measured_work_replaces_assumptions(tmp_path: Path) -> None:
    config = _config(tmp_path)
    guessed = make_plan(config)
    run = write_run(Path(config.run_dir), rounds=1, blocks=2)
    measured = make_plan(config)
    table = run.round(0).candidates.table(["tokens", "copies"]).to_pylist()
    samples = sum(row["copies"] for row in table)
    mean = sum(row["tokens"] * row["copies"] for row in table) / samples
    step = _steps(measured, "sample", "policy")[0]
    assert step.completion_tokens == round(80 * mean)
    assert step.seconds == pytest.approx(80 * 4.0 / samples)  # 2 s for each of two blocks
    assert measured.training[0].seconds == pytest.approx(3 * 9.0 / 40)  # 40 steps took 9 s
    assert any("measured in the run directory" in line for line in measured.assumptions)
    assert not any("measured in the run" in line for line in guessed.assumptions)
    assert make_plan(config, RunDir(tmp_path / "elsewhere")) == guessed


def test_measured_thoughts_are_apart_from_answers(tmp_path: Path) -> None:
    """What judges read has no thoughts in it, and what is generated has them once."""
    config = _config(tmp_path, sample={"thought_tokens": 300})
    run = write_run(Path(config.run_dir), rounds=1, blocks=2)
    candidates = run.round(0).candidates
    drawn = thoughts = tokens = 0
    for index in candidates.indices():
        table = candidates.read(index)
        sampled = [origin == "sampled" for origin in table["origin"].to_pylist()]
        own = [40 if one else None for one in sampled]
        place = table.column_names.index("reasoning_tokens")
        kind = table.schema.field("reasoning_tokens")
        candidates.path(index).unlink()
        candidates.write(index, table.set_column(place, kind, pa.array(own, kind.type)))
        for row, one in zip(table.to_pylist(), sampled, strict=True):
            drawn += row["copies"] * one
            thoughts += 40 * row["copies"] * one
            tokens += row["tokens"] * row["copies"] * one
    measured = make_plan(config)
    step = _steps(measured, "sample", "policy")[0]
    assert step.completion_tokens == round(80 * (tokens + thoughts) / drawn)
    judged = _steps(measured, "label", "judge")[0]
    plain = _steps(make_plan(config, RunDir(tmp_path / "elsewhere")), "label", "judge")[0]
    # The questions differ by two answers alone: 50 tokens were assumed of each.
    assert plain.prompt_tokens - judged.prompt_tokens == pytest.approx(
        judged.requests * 2 * (50 - tokens / drawn), abs=2
    )
    shown = config.model_copy(
        update={"label": config.label.model_copy(update={"show_reasoning": "always"})}
    )
    longer = _steps(make_plan(shown), "label", "judge")[0]
    assert longer.prompt_tokens - judged.prompt_tokens == pytest.approx(
        judged.requests * 2 * 40, abs=2
    )


@pytest.mark.parametrize(("kind", "votes"), [("rating", 6), ("listwise", 12), ("pairwise", 12)])
def test_measured_time_of_votes_is_that_of_votes(tmp_path: Path, kind: str, votes: int) -> None:
    """Of four answers a rating is one request an answer and a vote on each of the six pairs."""
    judge = {"type": "judge", "engine": "api", "model": "m", "judge": kind}
    judge["name"] = VERIFIER  # whose votes the run has
    config = _config(tmp_path, label={"labelers": [judge]})
    run = write_run(Path(config.run_dir), rounds=1, blocks=2)
    status = collect_status(run)
    each = status.seconds["label"] / status.rounds[0].votes[VERIFIER]
    step = _steps(make_plan(config), "label", VERIFIER)[0]
    assert step.seconds == pytest.approx(PROMPTS * votes * each)


def test_planning_writes_nothing(tmp_path: Path) -> None:
    config = _config(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    make_plan(config)
    assert sorted(tmp_path.rglob("*")) == before


def test_rendering_and_json(tmp_path: Path) -> None:
    plan = make_plan(_config(tmp_path))
    text = _text(plan)
    for assumption in plan.assumptions:
        assert assumption.split(",")[0] in " ".join(text.split())
    assert "policy 0 (default)" in text
    written = json.loads(json.dumps(plan.as_dict()))
    assert written["total"]["requests"] == plan.requests
    assert RunDir(tmp_path / "run").rounds() == []


def test_time_follows_the_size_of_the_model(tmp_path: Path) -> None:
    """The model that is guessed by its name is a hundred times larger, and takes that much."""
    plans = {
        size: make_plan(_config(tmp_path, policy=f"someone/model-{size}", rounds=1))
        for size in ("70M", "7B")
    }
    seconds = {
        size: [
            _steps(plan, "sample", "policy")[0].seconds,
            _steps(plan, "evaluate", "log-probabilities")[0].seconds,
            plan.training[0].seconds,
        ]
        for size, plan in plans.items()
    }
    for small, large in zip(*seconds.values(), strict=True):
        assert 30 < large / small <= 110
    # 80 prompts' 18.75 tokens are read once for four samples each: 2 operations a parameter.
    read = 2 * 7e9 * 20 * 18.75 / (0.6 * SPEED.flops)
    # One of four bytes a parameter is read for each step, whoever is in it.
    steps = 50 * 7e9 * 4 / SPEED.bytes_per_second
    assert seconds["7B"][0] > read + steps
    # 18 pairs, two answers of 50 tokens each: six operations, and two for the reference.
    learned = 8 * 7e9 * 18 * 2 * (43 / 4 + 8 + 50) / (0.6 * SPEED.flops)
    assert seconds["7B"][2] == pytest.approx(learned, rel=0.5)


def test_what_the_time_rests_on_is_said(tmp_path: Path) -> None:
    plan = make_plan(_config(tmp_path, policy="someone/model-7B"))
    said = " ".join(plan.assumptions)
    assert "size of someone/model-7B: 7 billion parameters, by its name" in said
    assert "speed of cpu in float32, measured here: 100 GFLOP/s, 20 GB/s, 10 µs" in said
    assert "nothing of it is on this machine" in " ".join(make_plan(_config(tmp_path)).assumptions)


def test_models_that_do_not_fit_are_warned_of(tmp_path: Path) -> None:
    plan = make_plan(_config(tmp_path, policy="someone/model-900B"))
    assert {one.stage for one in plan.memory if not one.fits} == {"sample", "train", "evaluate"}
    assert any("train: dpo" in warning and "train.lora" in warning for warning in plan.warnings)
    assert "does not fit" in _text(plan)


def test_a_plan_says_what_settings_come_to(tmp_path: Path) -> None:
    config = _config(tmp_path, train={"preset": "tulu3", "batch_size": 4})
    said = " ".join(make_plan(config).assumptions)
    assert "training: dpo, loss sigmoid_norm, beta 5, learning rate 5e-07" in said
    assert "128 pairs a step (4 x 32)" in said
    assert "set by the preset tulu3: " in said
    assert "train.beta 5.0" in said
    plain = _config(tmp_path, train={"batch_size": 4})
    said = " ".join(make_plan(plain).assumptions)
    assert "left out in the config" not in said
    assert "4 pairs a step (4 x 1; 16 to 128 are usual)" in said


def test_processes_share_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU they share what it computes, and begin their operations at the same time."""
    monkeypatch.setattr("prefloop.pipeline.plan.clock.usable_cores", lambda: (0, 1, 2, 3))

    def seconds(replicas: int, policy: str) -> float:
        local = {"type": "transformers", "device": "cpu", "threads": 1, "replicas": replicas}
        config = _config(
            tmp_path, policy=policy, rounds=1, engines={"default": local}, block_size=2
        )
        plan = make_plan(config)
        said = f"engines.default: {replicas} replicas, which share the cores of this machine"
        assert (said in plan.assumptions) is (replicas > 1)
        return _steps(plan, "sample", "policy")[0].seconds

    large = [seconds(n, "someone/model-7B") for n in (1, 2)]
    assert large[1] == pytest.approx(large[0], rel=0.1)
    small = [seconds(n, "embedded:policy") for n in (1, 2, 4, 8)]
    assert small[1] < 0.7 * small[0]
    assert small[2] < 0.7 * small[1]
    assert small[3] == small[2]


def test_the_disk_that_training_takes(tmp_path: Path) -> None:
    def of(size: str, **train: Any) -> DiskSpace:
        changes = {"guards": {"snapshots": 3}, **train}
        plan = make_plan(_config(tmp_path, policy=f"someone/model-{size}", train=changes))
        assert plan.disk is not None
        return plan.disk

    weights = 4 * 7 * 10**9
    # 3 steps a round; three snapshots of 28 GB would be more than 64 GB.
    assert of("7B", batch_size=6, gradient_accumulation=1) == DiskSpace(
        kept=2 * weights, meanwhile=2 * weights, written=2 * weights
    )
    often = of("7B", batch_size=6, gradient_accumulation=1, save_steps=2)
    assert often.meanwhile == (2 + 6) * weights
    small = of("70M", batch_size=6, gradient_accumulation=1)
    assert small.written == 3 * weights // 100
    adapter = of("7B", lora={"r": 8})
    assert adapter.kept < small.kept
    off = of("7B", guards={"enabled": False})
    assert (off.meanwhile, off.written) == (0, 0)
    plan = make_plan(_config(tmp_path, policy="someone/model-7B"))
    assert "disk      56.0\u00a0GB of policies" in _text(plan)
    assert make_plan(_config(tmp_path, train=None, rounds=1)).disk is None
    # The policy after a warm-up stays beside those of the rounds.
    assert of("7B", sft_warmup={"epochs": 1}).kept == of("7B").kept // 2 * 3  # two rounds


@pytest.mark.parametrize("by", ["cluster", "accelerate"])
def test_processes_share_the_training(tmp_path: Path, by: str) -> None:
    alone = make_plan(_config(tmp_path, policy="someone/model-7B", train={"batch_size": 2}))
    file = tmp_path / "accelerate.yaml"
    file.write_text("num_processes: 3\n", encoding="utf-8")
    several = {"batch_size": 2, by: {"workers": 3} if by == "cluster" else str(file)}
    plan = make_plan(_config(tmp_path, policy="someone/model-7B", train=several))
    assert [each.steps for each in alone.training] == [9, 9]
    assert [each.steps for each in plan.training] == [3, 3]
    assert plan.training[0].seconds < alone.training[0].seconds
    assert "6 pairs a step (2 x 1 x 3 processes" in " ".join(plan.assumptions)
