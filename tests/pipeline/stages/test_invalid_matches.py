"""Too many invalid votes end the matches of an evaluation, and the evaluation of a judge, too."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import yaml

from prefloop.data.hashing import content_id
from prefloop.data.schemas import CANDIDATE, PROMPT
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.judging.gold_eval import JudgeEvalOptions, judge_eval
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.manifest import open_run
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.run_dir import RunDir, RunError
from prefloop.pipeline.stages.invalid_votes import LEAST, TooManyInvalid
from prefloop.pipeline.stages.matches import match, voting
from tests.helpers.servers import faulty_server
from tests.pipeline.stages.test_invalid_votes import (
    PROMPTS,
    config,
    judged,
    judging,
    prompts,
    three_of_five_are_bad,
)

__all__ = ["prompts"]
BLOCK = 8


def with_judge(url: str, file: Path, **judge: object) -> RunConfig:
    """A judge ``j`` that labels nothing and evaluates."""
    made = config(url, file, **judge)
    [judge_of, verifier] = made.label.labelers
    label = made.label.model_copy(update={"labelers": (verifier,)})
    evaluate = made.evaluate.model_copy(update={"judges": (judge_of,)})
    return made.model_copy(update={"label": label, "evaluate": evaluate})


def answered(run: RunDir) -> None:
    """Held-out prompts, and the answers of two policies to each."""
    for block in range(PROMPTS // BLOCK):
        rows = []
        for number in range(BLOCK * block, BLOCK * (block + 1)):
            said = [{"role": "user", "content": f"Number {number:02d} is asked about."}]
            row = dict.fromkeys(PROMPT.names) | {"prompt_id": content_id(number), "row": number}
            rows.append(row | {"messages": said, "metadata": "{}", "source": "s"})
        run.heldout.write(block, PROMPT.empty_table().from_pylist(rows, schema=PROMPT))
        for policy in (0, 1):
            answers = [
                dict.fromkeys(CANDIDATE.names)
                | {"candidate_id": content_id(policy, row["prompt_id"]), "round": 0, "tokens": 3,
                   "prompt_id": row["prompt_id"], "sample_index": 0, "seed": 1, "copies": 1,
                   "text": f"answer {policy}", "finish_reason": "stop", "origin": "sampled",
                   "policy": "m", "policy_revision": str(policy), "prompt_tokens": 1, "cost": 0.0}
                for row in rows
            ]  # fmt: skip
            table = CANDIDATE.empty_table().from_pylist(answers, schema=CANDIDATE)
            run.answers(policy).write(block, table)


def play(run: RunDir, settings: RunConfig) -> None:
    async def voted() -> None:
        models = Models(settings, cache=run.cache)
        by = voting(settings, settings.evaluators, models.labelers)
        try:
            await match(RunContext.of(settings, run), 1, 0, by)
        finally:
            await models.release()

    asyncio.run(voted())


def test_a_match_ends_and_only_its_invalid_votes_are_asked_again(
    tmp_path: Path, prompts: Path
) -> None:
    run, whole = RunDir(tmp_path / "run"), RunDir(tmp_path / "whole")
    answered(whole)
    with faulty_server(judging(three_of_five_are_bad)) as server:
        settings = with_judge(server.url, prompts, cache=True)
        open_run(settings, run, revisions={})
        answered(run)
        told = r"policy 1 against 0: .* votes of j are invalid.*evaluate\.judges\.j"
        with pytest.raises(TooManyInvalid, match=told):
            play(run, settings)
        assert LEAST <= len(judged(server)) <= PROMPTS // 2 + BLOCK
    assert run.match_votes(1, 0).indices() == []
    kept = run.match_votes_kept(1, 0).table()
    assert "invalid" not in kept["preference"].to_pylist()
    assert len(kept) > 10
    # What mends votes may change now, and who gives them may not.
    with faulty_server(judging(lambda _: False)) as server:
        with pytest.raises(RunError, match=r"evaluate\.judges\.j\.orders"):
            open_run(with_judge(server.url, prompts, orders="both"), run, revisions={})
        mended = with_judge(server.url, prompts, cache=True, max_tokens=99)
        open_run(mended, run, revisions={})
        play(run, mended)
        assert len(judged(server)) == PROMPTS - len(kept)
        play(whole, mended)
    assert run.match_votes(1, 0).table().equals(whole.match_votes(1, 0).table())
    assert not run.keeps_match_votes()
    with pytest.raises(RunError, match=r"evaluate\.judges\.j\.max_tokens"):
        open_run(with_judge("http://127.0.0.1:9/v1", prompts, max_tokens=7), run, revisions={})


def test_the_evaluation_of_a_judge_ends_too(tmp_path: Path, prompts: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    rows = [
        {"prompt": f"Number {n:02d} is asked about.", "chosen": f"yes {n}", "rejected": f"no {n}"}
        for n in range(PROMPTS)
    ]
    gold.write_text("\n".join(map(json.dumps, rows)))

    def judge(url: str, **more: object) -> JudgeEvalOptions:
        served = {"type": "openai", "base_url": url, "max_retries": 0}
        labeler = {"type": "judge", "name": "j", "engine": "e", "model": "m", "orders": "one",
                   "judge": str(prompts.parent / "judge")}  # fmt: skip
        path = tmp_path / "judge.yaml"
        path.write_text(yaml.safe_dump({**labeler, "engines": {"e": served}, **more}))
        return JudgeEvalOptions(judges=[path], out=tmp_path / "out")

    with faulty_server(judging(three_of_five_are_bad)) as server:
        told = r"judge-eval j: .* are invalid.*max_invalid: null in the judge's file"
        with pytest.raises(TooManyInvalid, match=told):
            asyncio.run(judge_eval(str(gold), judge(server.url)))
        first = len(judged(server))
        assert LEAST <= first < PROMPTS
        # Some judges are like that, and how often is what one wants to know.
        found = asyncio.run(judge_eval(str(gold), judge(server.url, max_invalid=None)))
        votes = found.votes["j"]["preference"].to_pylist()
        assert (len(votes), votes.count("invalid")) == (PROMPTS, PROMPTS * 3 // 5)
