"""The evaluate stage: answers to held-out prompts, matches between policies, and their figures.

Policies are counted: policy 0 is the starting policy, policy k + 1 the one that round k trained.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.conversation import with_system_prompt
from prefloop.data.hashing import content_id, pair_id
from prefloop.data.protocol import Message
from prefloop.data.schemas import MESSAGES, TRIPLE
from prefloop.data.shards import read_shard
from prefloop.labelers.config import Jury
from prefloop.labelers.decisions.decide import decide
from prefloop.labelers.statistics.diversity import distinct_n, repetitive_share, self_bleu
from prefloop.labelers.statistics.estimate import mean_estimate
from prefloop.labelers.statistics.winrate import length_controlled_win_rate, win_rate
from prefloop.pipeline.config import POLICY, PoolMember, RunConfig
from prefloop.pipeline.run.metrics import metrics_table
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.run.round_jury import RoundJury, load_round_jury
from prefloop.pipeline.run.run_dir import (
    EVALUATION,
    JURY,
    OPPONENT,
    PolicyKey,
    RoundDir,
    RunDir,
    Stopwatch,
)
from prefloop.pipeline.run.stream import run_blocks
from prefloop.pipeline.stages.label import OpenLabelers, build_pairs, vote
from prefloop.pipeline.stages.sample import Draw, open_source, sample_block, sampling_of
from prefloop.pipeline.stages.write import split_files
from prefloop.training.policy.heldout import MOST_PAIRS, implicit_margins
from prefloop.training.policy.logprobs import answer_logprobs, kl_estimate

logger = logging.getLogger(__name__)


async def answer_heldout(
    config: RunConfig,
    run: RunDir,
    models: Models,
    policy: PolicyKey,
    *,
    round_index: int,
    member: PoolMember | None = None,
) -> None:
    """Sample the answers of ``policy`` to the held-out prompts, once for each policy.

    It is the policy that ``models`` serve now, or that of ``member``. Every policy gets the same
    seeds (common random numbers), which narrows the comparison.
    """
    answers = run.answers(policy)
    missing = [index for index in run.heldout.indices() if not answers.exists(index)]
    settings = config.evaluate
    if not missing or not settings.enabled:
        return
    member = member or PoolMember(name=POLICY, engine=config.sample.engine)
    sampling = replace(
        sampling_of(config), temperature=settings.temperature, top_p=settings.top_p, top_k=0
    )
    if settings.max_tokens:
        sampling = replace(sampling, max_tokens=settings.max_tokens)
    draw = Draw(
        sources=[await open_source(member, models)],
        n=settings.samples_per_prompt,
        sampling=sampling,
        system_prompt=config.sample.system_prompt,
        seed_parts=(config.seed, "evaluate"),
        merge_identical=False,
    )
    watch = Stopwatch()
    with StepProgress(f"policy {policy} answers", len(missing), unit="blocks") as progress:

        async def work(index: int) -> None:
            prompts = _limited(run.heldout.read(index), index, config)
            table, failed = await sample_block(
                prompts, draw, round_index, f"evaluate/{policy}/{index}"
            )
            if len(failed):
                quarantine = run.round(round_index).quarantine(f"evaluate-{policy}")
                await asyncio.to_thread(quarantine.write, index, failed)
            await asyncio.to_thread(answers.write, index, table)
            progress.advance(1, tokens=pc.sum(table["tokens"]).as_py() or 0)

        await run_blocks(missing, work, in_flight=config.blocks_in_flight)
    run.note("evaluate", round_index, watch.lap(), answers_of=policy)


async def answer_opponent(config: RunConfig, run: RunDir, models: Models) -> None:
    """The fixed opponent's answers to the held-out prompts, once for a run."""
    opponent = config.evaluate.opponent
    if opponent is None:
        return
    engine = opponent.engine or config.sample.engine
    member = PoolMember(name=OPPONENT, engine=engine, model=opponent.model)
    answers = run.answers(OPPONENT)
    if all(answers.exists(index) for index in run.heldout.indices()):
        return
    await models.make_room()
    await answer_heldout(config, run, models, OPPONENT, round_index=0, member=member)
    await models.close(engine, opponent.model)


async def evaluate_round(
    config: RunConfig,
    run: RunDir,
    folder: RoundDir,
    open_labelers: OpenLabelers,
    *,
    start: str,
    previous: int,
    reference: Path,
) -> None:
    """Measure the policy that this round trained: win rates, KL, lengths, reward margin.

    ``previous`` is the number of the policy that the round began with, ``reference`` the reference
    policy of its training.
    """
    if folder.metrics.exists(EVALUATION) or not run.heldout.indices():
        return
    watch = Stopwatch()
    new = folder.index + 1
    rows = answer_figures(run, new, against=None)
    rows += answer_figures(run, 0, against="start")
    opponents: dict[str, PolicyKey] = {"start": 0, "previous": previous}
    if config.evaluate.opponent:
        opponents[OPPONENT] = OPPONENT
    for opponent in dict.fromkeys(opponents.values()):
        await match(config, run, new, opponent, open_labelers)
    jury = load_round_jury(config, folder)
    for against, opponent in opponents.items():
        rows += match_figures(config, run, jury, new, opponent, against)
    rows += await asyncio.to_thread(_likelihood_figures, config, run, folder, start, reference)
    for row in rows:
        row["round"] = folder.index
    folder.metrics.write(EVALUATION, metrics_table(rows))
    run.note("evaluate", folder.index, watch.lap())


async def match(
    config: RunConfig,
    run: RunDir,
    policy: int,
    opponent: PolicyKey,
    open_labelers: OpenLabelers,
) -> None:
    """Let the labelers vote on the held-out answers of two policies to the same prompts."""
    votes = run.match_votes(policy, opponent)
    missing = [index for index in run.heldout.indices() if not votes.exists(index)]
    if not missing:
        return
    labelers = await open_labelers()
    title = f"policy {policy} against {opponent}"
    with StepProgress(title, len(missing), unit="blocks") as progress:

        async def work(index: int) -> None:
            pairs, answers = _match_pairs(run, policy, opponent, index)
            prompts = run.heldout.read(index)
            built = build_pairs(pairs, prompts, answers, policy - 1, config.sample.system_prompt)
            table = await vote(built, labelers, f"evaluate/{policy}-{opponent}/{index}")
            await asyncio.to_thread(votes.write, index, table)
            progress.advance(1)

        await run_blocks(missing, work, in_flight=config.blocks_in_flight)


def _match_pairs(
    run: RunDir, policy: PolicyKey, opponent: PolicyKey, index: int
) -> tuple[pa.Table, pa.Table]:
    """Pairs of answers with the same prompt and sample index, and all answers of both policies.

    Columns of the pairs: those of ``prefloop.labelers.decisions.pairs.propose_pairs``, then
    ``new_id`` (the policy's answer) and ``same_text``. Which answer is a and which is b follows the
    hash order of their ids, not who wrote them.
    """
    keys = ["prompt_id", "sample_index"]
    old = run.answers(opponent).read(index)
    new = _distinguish_answers(run.answers(policy).read(index), old)
    opposed = {tuple(row[key] for key in keys): row for row in old.to_pylist()}
    pairs = []
    for row in new.to_pylist():
        other = opposed.get(tuple(row[key] for key in keys))
        if other is None:  # the prompt failed for one of the two
            continue
        first, second = sorted((row["candidate_id"], other["candidate_id"]))
        pairs.append(
            {
                "pair_id": pair_id(row["prompt_id"], first, second),
                "prompt_id": row["prompt_id"],
                "a_id": first,
                "b_id": second,
                "new_id": row["candidate_id"],
                "same_text": row["text"].strip() == other["text"].strip(),
            }
        )
    schema = pa.schema(
        [(name, pa.string()) for name in ("pair_id", "prompt_id", "a_id", "b_id", "new_id")]
        + [("same_text", pa.bool_())]
    )
    return pa.Table.from_pylist(pairs, schema=schema), pa.concat_tables([new, old])


def _distinguish_answers(new: pa.Table, old: pa.Table) -> pa.Table:
    """``new`` with other ids for the answers that ``old`` has too: those of one and the same
    policy, where a round changed nothing."""
    ids, taken = new["candidate_id"].to_pylist(), set(old["candidate_id"].to_pylist())
    column = [content_id(one, "new") if one in taken else one for one in ids]
    return new.set_column(
        new.column_names.index("candidate_id"),
        new.schema.field("candidate_id"),
        pa.array(column, pa.string()),
    )


def match_figures(
    config: RunConfig,
    run: RunDir,
    jury: RoundJury,
    policy: PolicyKey,
    opponent: PolicyKey,
    against: str,
) -> list[dict[str, Any]]:
    """Win rates of a match, for the jury and for each labeler alone.

    A labeler alone decides by its own probabilities, whatever the rule of the jury.
    """
    alone = Jury(rule="mean", tie_band=config.label.jury.tie_band)
    together = alone if config.evaluate.judges else config.label.jury
    weights = {labeler.name: labeler.weight for labeler in config.evaluators}
    blocks = [_match_pairs(run, policy, opponent, index) for index in run.heldout.indices()]
    pairs = pa.concat_tables([block_pairs for block_pairs, _ in blocks])
    answers = pa.concat_tables([block_answers for _, block_answers in blocks])
    votes = run.match_votes(policy, opponent).table()
    rows: list[dict[str, Any]] = []
    if against == "start":
        rows += _mean_scores(votes, pairs, None, of_new=True)
        rows += _mean_scores(votes, pairs, "start", of_new=False)
    present = sorted(set(votes["labeler"].to_pylist()))
    for labeler in [JURY, *present]:
        counted = votes if labeler == JURY else votes.filter(pc.equal(votes["labeler"], labeler))
        outcomes, prompts, longer = _outcomes(
            decide(
                counted,
                pairs.select(["pair_id", "prompt_id", "a_id", "b_id"]),
                answers,
                jury=together if labeler == JURY else alone,
                weights=weights,
                fitted=jury.fitted,
                calibrators=jury.calibrators,
            ),
            pairs,
            answers,
        )
        if not len(outcomes):
            logger.warning("no win rate against %s by %s: no vote could be read", against, labeler)
            continue
        estimate = win_rate(outcomes, prompts, confidence=config.evaluate.confidence)
        common = {"against": against, "labeler": labeler}
        rows.append({"name": "win_rate", "estimate": estimate, **common})
        try:
            controlled = length_controlled_win_rate(
                outcomes, longer, prompts, confidence=config.evaluate.confidence
            )
        except ValueError as error:
            logger.warning(
                "no length-controlled win rate of policy %d against %s by %s: %s",
                policy, against, labeler, error,
            )  # fmt: skip
            continue
        rows.append({"name": "length_controlled_win_rate", "estimate": controlled, **common})
    return rows


def _outcomes(
    decisions: pa.Table, pairs: pa.Table, answers: pa.Table
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1, 0.5 or 0 for each decided pair (float64), its prompt id, and new minus old tokens.

    Answers that read the same are a tie. Pairs on which nobody gave a valid vote do not count.
    """
    tokens = dict(
        zip(answers["candidate_id"].to_pylist(), answers["tokens"].to_pylist(), strict=True)
    )
    outcomes, prompts, longer = [], [], []
    for pair, decision in zip(pairs.to_pylist(), decisions.to_pylist(), strict=True):
        if pair["same_text"] or decision["reason"] == "tie":
            outcome = 0.5
        elif decision["reason"] is not None:
            continue
        else:
            outcome = float(decision["chosen_id"] == pair["new_id"])
        old_id = pair["b_id"] if pair["a_id"] == pair["new_id"] else pair["a_id"]
        outcomes.append(outcome)
        prompts.append(pair["prompt_id"])
        longer.append(tokens[pair["new_id"]] - tokens[old_id])
    return np.array(outcomes), np.array(prompts), np.array(longer, dtype=np.float64)


def _mean_scores(
    votes: pa.Table, pairs: pa.Table, against: str | None, *, of_new: bool
) -> list[dict[str, Any]]:
    """Mean absolute score of one side's answers, for each labeler that gives such scores."""
    new = dict(zip(pairs["pair_id"].to_pylist(), pairs["new_id"].to_pylist(), strict=True))
    scores: dict[str, list[float]] = {}
    for row in votes.select(["pair_id", "a_id", "labeler", "score_a", "score_b"]).to_pylist():
        a_is_new = row["a_id"] == new[row["pair_id"]]
        score = row["score_a"] if a_is_new == of_new else row["score_b"]
        if score is not None:
            scores.setdefault(row["labeler"], []).append(score)
    return [
        {"name": "mean_score", "labeler": labeler, "against": against,
         "estimate": mean_estimate(values)}
        for labeler, values in scores.items()
    ]  # fmt: skip


def answer_figures(run: RunDir, policy: PolicyKey, *, against: str | None) -> list[dict[str, Any]]:
    """What a policy's held-out answers are like, without anyone's judgement."""
    answers = run.answers(policy).table(["text", "tokens", "finish_reason"])
    if not len(answers):
        return []
    texts = answers["text"].to_pylist()
    figures = {
        "mean_tokens": float(np.mean(answers["tokens"].to_numpy())),
        "truncated_share": float(np.mean(pc.equal(answers["finish_reason"], "length").to_numpy())),
        "repetitive_share": repetitive_share(texts),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "self_bleu": self_bleu(texts),
    }
    return [
        {"name": name, "value": value, "n": len(texts), "against": against}
        for name, value in figures.items()
        if value is not None
    ]


def _limited(prompts: pa.Table, index: int, config: RunConfig) -> pa.Table:
    """The part of held-out block ``index`` that lies within ``evaluate.limit`` prompts."""
    limit = config.evaluate.limit
    return prompts if limit is None else prompts.slice(0, max(limit - index * config.block_size, 0))


def _likelihood_figures(
    config: RunConfig, run: RunDir, folder: RoundDir, start: str, reference: Path
) -> list[dict[str, Any]]:
    """KL to the starting policy on the new policy's answers, and rewards on held-out triples."""
    new = folder.policy
    rows = kl_figures(config, run, folder.index + 1, new, Path(start), against="start")
    triples = _heldout_triples(run, folder.index)
    if config.train and len(triples):
        margins = implicit_margins(new, reference, triples, config.train.beta)
        confidence = config.evaluate.confidence
        rows.append({"name": "reward_margin", "estimate": mean_estimate(margins, confidence)})
        right = np.sign(margins) / 2 + 0.5
        rows.append({"name": "reward_accuracy", "estimate": win_rate(right, confidence=confidence)})
    return rows


def kl_figures(
    config: RunConfig, run: RunDir, policy: int, new: Path, other: Path, *, against: str
) -> list[dict[str, Any]]:
    """KL from ``new``, whose held-out answers are those of ``policy``, to ``other``."""
    conversations = _conversations(run, config)
    answers = run.answers(policy).table(["prompt_id", "text", "finish_reason"])
    shown_prompts = [conversations[prompt] for prompt in answers["prompt_id"].to_pylist()]
    texts = answers["text"].to_pylist()
    if not texts:
        return []
    complete = pc.equal(answers["finish_reason"], "stop").to_pylist()
    of_new = answer_logprobs(new, shown_prompts, texts, complete=complete)
    of_other = answer_logprobs(other, shown_prompts, texts, complete=complete)
    divergence = kl_estimate(of_new, of_other, config.evaluate.confidence)
    return [{"name": "kl", "against": against, "estimate": divergence}]


def _conversations(run: RunDir, config: RunConfig) -> dict[str, tuple[Message, ...]]:
    heldout = run.heldout.table(["prompt_id", "messages"]).to_pylist()
    return {
        row["prompt_id"]: with_system_prompt(row["messages"], config.sample.system_prompt)
        for row in heldout
    }


def _heldout_triples(run: RunDir, round_index: int) -> pa.Table:
    """The first triples that the round put in the test split; empty if there are none."""
    files = split_files(run, "test", round_index)
    columns = ["prompt", "chosen", "rejected"]
    if not files:
        return pa.table({name: pa.array([], MESSAGES) for name in columns})
    return read_shard(files[0], TRIPLE, columns).slice(0, MOST_PAIRS)
