"""What is measured of held-out answers: by characters, by prompts, on answers of the policy's own
distribution."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prefloop.data import schemas
from prefloop.data.hashing import content_id, pair_id
from prefloop.data.protocol import Sampling
from prefloop.labelers.jury.round_jury import RoundJury
from prefloop.labelers.statistics.estimate import mean_estimate
from prefloop.pipeline.config import SampleConfig
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.evaluate import heldout_sampling, is_untempered
from prefloop.pipeline.stages.likelihood.likelihood_figures import (
    Likely,
    MeasuredPolicy,
    likelihood_figures,
)
from prefloop.pipeline.stages.matches import MatchJury, match_figures
from prefloop.pipeline.stages.measures import answer_figures
from prefloop.training.config import EvaluateConfig
from prefloop.training.policy.logprobs import ReadShare, ScoredTexts, Scorer, Scores
from tests.helpers.runs import small_config

SAMPLES = 2
JURY = MatchJury(RoundJury(), 0.95)


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    whole = [{name: row.get(name) for name in schema.names} for row in rows]
    return pa.Table.from_pylist(whole, schema=schema)


def candidate(policy: str, prompt: str, sample: int, text: str, **more: Any) -> dict[str, Any]:
    return {
        "candidate_id": content_id(prompt, policy, sample), "prompt_id": prompt, "round": 0,
        "sample_index": sample, "text": text, "tokens": len(text) // 4, "finish_reason": "stop",
        "origin": "sampled", "policy": policy, "policy_revision": policy, "seed": 0, "copies": 1,
        "prompt_tokens": 1, "cost": 0.0,
    } | more  # fmt: skip


def write_heldout(run: RunDir, prompts: int) -> list[str]:
    ids = [content_id("prompt", number) for number in range(prompts)]
    rows = [
        {"prompt_id": one, "messages": [{"role": "user", "content": f"Number {number}?"}],
         "metadata": "{}", "source": "test", "row": number + 1}
        for number, one in enumerate(ids)
    ]  # fmt: skip
    run.heldout.write(0, table(rows, schemas.PROMPT))
    return ids


def write_match(run: RunDir, differences: Sequence[int], *, tokens: float = 1.0) -> None:
    """Policy 1 against policy 0 on a prompt for each of ``differences``, in characters. A judge
    that likes length votes: in each prompt's first sample the longer answer wins, in the second a
    coin does. The opponent's tokenizer makes ``tokens`` times as many of a text."""
    ids = write_heldout(run, len(differences))
    new, old, votes = [], [], []
    for number, (prompt, difference) in enumerate(zip(ids, differences, strict=True)):
        for sample in range(SAMPLES):
            size = 400 + 7 * (number % 5)
            a = candidate("new", prompt, sample, "x" * (size + difference))
            b = candidate("old", prompt, sample, "y" * size, tokens=int(tokens * size / 4))
            new.append(a)
            old.append(b)
            won = difference > 0 if sample == 0 else number % 2 == 0
            first, second = sorted((a["candidate_id"], b["candidate_id"]))
            prefers = a["candidate_id"] if won else b["candidate_id"]
            votes.append(
                {"pair_id": pair_id(prompt, first, second), "prompt_id": prompt, "round": 0,
                 "a_id": first, "b_id": second, "labeler": "judge", "order": "none",
                 "preference": "a" if prefers == first else "b",
                 "score_a": float(number), "score_b": float(number), "prompt_tokens": 0,
                 "completion_tokens": 0, "cost": 0.0}
            )  # fmt: skip
    run.answers(1).write(0, table(new, schemas.CANDIDATE))
    run.answers(0).write(0, table(old, schemas.CANDIDATE))
    run.match_votes(1, 0).write(0, table(votes, schemas.VOTE))


def figures_of(run: RunDir) -> dict[tuple[str, str | None, str | None], dict[str, Any]]:
    rows = match_figures(run, JURY, 1, 0, "start")
    return {(row["name"], row["labeler"], row["against"]): row for row in rows}


EVEN = [-60, 60, 30, -30, 90, -90, 15, -15] * 5


@pytest.mark.parametrize("tokens", [1.0, 1.3])
def test_equal_policies_are_even_whatever_the_opponents_tokenizer(
    tmp_path: Path, tokens: float
) -> None:
    """By tokens of 1.3 times as many, 0.64 and more was read here."""
    run = RunDir(tmp_path)
    write_match(run, EVEN, tokens=tokens)
    found = figures_of(run)
    assert found["win_rate", "jury", "start"]["estimate"].value == 0.5
    controlled = found["length_controlled_win_rate", "jury", "start"]["estimate"]
    assert controlled.value == pytest.approx(0.5, abs=0.005)
    assert found["length_gap", "jury", "start"]["value"] == 0


def test_a_gap_beyond_its_spread_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunDir(tmp_path)
    write_match(run, [100 + one for one in EVEN])
    with caplog.at_level(logging.WARNING):
        found = figures_of(run)
    gap = found["length_gap", "jury", "start"]["value"]
    assert gap == pytest.approx(100 / np.std(EVEN))
    assert f"answers are longer by {gap:.1f} times" in caplog.text
    assert "extrapolation" in caplog.text
    lengths = {row["name"]: row["value"] for row in answer_figures(run, 1, against=None)}
    assert lengths["mean_chars"] == pytest.approx(100 + 400 + 7 * 2)


def test_scores_of_one_prompt_count_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_match(run, EVEN)
    found = figures_of(run)["mean_score", "judge", None]["estimate"]
    once = mean_estimate(np.arange(len(EVEN)))
    assert (found.value, found.low, found.high) == pytest.approx((once.value, once.low, once.high))
    assert found.n == SAMPLES * len(EVEN)


# KL


def scored(moved: Any, *, untempered: bool) -> Likely:
    """The new policy finds each text as much likelier than the other as ``moved`` says of it."""

    def read(checkpoint: Path, texts: ScoredTexts) -> ReadShare:
        def share_of(share: tuple[int, int]) -> Scores:
            rows = np.arange(len(texts))[share[0] :: share[1]]
            is_new = checkpoint.name == "new"
            return rows, np.array([float(is_new and moved(texts.answers[row])) for row in rows])

        return share_of

    @asynccontextmanager
    async def opened(dtype: str | None) -> AsyncIterator[Scorer]:
        yield Scorer(dtype or "float32", read)

    return Likely(opened, 0.95, untempered)


def kl_of(run: RunDir, moved: Any, *, untempered: bool = True) -> Any:
    other = Path("other")
    measured = MeasuredPolicy(1, Path("new"), other=other, against="start", start=other)
    context = RunContext.of(small_config(), run).round(0)
    likely = scored(moved, untempered=untempered)
    rows = asyncio.run(likelihood_figures(context, measured, likely))
    return rows[0]["estimate"] if rows else None


def test_kl_counts_prompts(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    ids = write_heldout(run, 6)
    rows = [candidate("new", one, at, "z" * (1 + number)) for number, one in enumerate(ids)
            for at in range(8)]  # fmt: skip
    run.answers(1).replace(0, table(rows, schemas.CANDIDATE))
    found, once = kl_of(run, len), mean_estimate([1, 2, 3, 4, 5, 6])
    assert (found.value, found.low, found.high) == pytest.approx((once.value, once.low, once.high))
    assert found.n == 48


def test_kl_is_of_the_draw_that_was_made_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(tmp_path)
    ids = write_heldout(run, 3)
    greedy = [candidate("new", one, 0, "greedy") for one in ids]
    own = [candidate("new", one, 0, "own") for one in ids]
    run.answers(1).replace(0, table(greedy, schemas.CANDIDATE))
    run.untempered(1).replace(0, table(own, schemas.CANDIDATE))
    moved = {"greedy": 9.0, "own": 2.0}.get
    assert kl_of(run, moved, untempered=False).value == 2.0
    run.untempered(1).remove([0])
    with caplog.at_level(logging.WARNING):
        assert kl_of(run, moved, untempered=False) is None
    assert "no KL of policy 1: none of its answers is there to measure it on" in caplog.text


def test_kl_of_thoughts_is_of_the_tokens_or_not_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(tmp_path)
    ids = write_heldout(run, 3)
    known = [candidate("new", one, 0, "so", reasoning="hm", token_ids=[5, 6, 7]) for one in ids]
    run.answers(1).replace(0, table(known, schemas.CANDIDATE))
    assert kl_of(run, len).value == 3.0
    untold = [*known[:2], candidate("new", ids[2], 0, "so", reasoning_tokens=4)]
    run.answers(1).replace(0, table(untold, schemas.CANDIDATE))
    with caplog.at_level(logging.WARNING):
        assert kl_of(run, len) is None
    assert "no KL of policy 1: it thought before 1 of 3 answers" in caplog.text


@pytest.mark.parametrize(
    ("sample", "evaluate", "drawn", "own"),
    [
        ({}, {}, (1.0, 1.0, 0), True),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 20}, {}, (1.0, 1.0, 0), True),
        ({}, {"temperature": 0}, (0.0, 1.0, 0), False),
        ({"temperature": 0.7}, {"temperature": None}, (0.7, 1.0, 0), False),
        ({"temperature": None}, {"temperature": None}, (None, 1.0, 0), False),
        ({"top_p": 0.9}, {"top_p": None}, (1.0, 0.9, 0), False),
        ({"temperature": 1}, {"temperature": None, "top_p": None}, (1.0, 1.0, 0), True),
    ],
)
def test_held_out_answers_are_drawn_as_the_settings_say(
    sample: dict[str, Any], evaluate: dict[str, Any], drawn: tuple[Any, ...], own: bool
) -> None:
    found = heldout_sampling(SampleConfig(**sample), EvaluateConfig(**evaluate))
    assert isinstance(found, Sampling)
    assert (found.temperature, found.top_p, found.top_k) == drawn
    assert is_untempered(found) is own
