"""Matches between two policies: pairs of their held-out answers, votes on them, and win rates."""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.errors import NothingCameOut
from prefloop.data.hashing import content_id, pair_id
from prefloop.labelers.base import Labeler, Pair
from prefloop.labelers.config import Jury, LabelConfig, LabelerConfig
from prefloop.labelers.decisions.decide import decide
from prefloop.labelers.jury.round_jury import RoundJury
from prefloop.labelers.statistics.estimate import mean_estimate
from prefloop.labelers.statistics.winrate import (
    LENGTH_GAP,
    extrapolates,
    length_controlled_win_rate,
    length_gap,
    win_rate,
)
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.executors.block_task import (
    BlockFacts,
    BlockJob,
    BlockTask,
    Keep,
    Make,
    Tables,
)
from prefloop.pipeline.run.all_or_some import AllOrSome, any_valid_vote
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.run.run_dir import JURY, PolicyKey, RunDir
from prefloop.pipeline.stages.invalid_votes import (
    LABELERS,
    Breaker,
    VotesAside,
    asks_again,
    kept_votes,
    set_aside,
    together,
)
from prefloop.pipeline.stages.label import LabelledBlocks, build_pairs, engines_of, vote
from prefloop.training.config import EvaluateConfig

logger = logging.getLogger(__name__)

MATCH = "match"
"""Name of the stage."""
OpenSome = Callable[..., Awaitable[list[Labeler]]]
"""Opens the labelers that it is given; ``anew``: their servers are asked whatever they answered."""


@dataclass(frozen=True)
class MatchJury:
    """How the votes on a match add up, and how sure its win rates are to be."""

    together: RoundJury
    """By what all labelers decide together."""
    confidence: float
    """Coverage of the intervals."""


def match_jury(
    jury: Jury, evaluate: EvaluateConfig, evaluators: Sequence[LabelerConfig], fitted: RoundJury
) -> MatchJury:
    """The jury of ``evaluators``: that of the labelling, or the mean of judges that only
    evaluate."""
    together = _mean_of(jury) if evaluate.judges else jury
    weights = {labeler.name: labeler.weight for labeler in evaluators}
    return MatchJury(replace(fitted, config=together, weights=weights), evaluate.confidence)


def _mean_of(jury: Jury) -> Jury:
    return Jury(rule="mean", tie_band=jury.tie_band)


class OpenMatchLabelers(Protocol):
    """Opens the labelers of a match."""

    def __call__(self, *, anew: bool) -> Awaitable[list[Labeler]]:
        """``anew``: servers are asked whatever they answered before."""


@dataclass(frozen=True)
class Voting:
    """Who votes on a match."""

    open_labelers: OpenMatchLabelers
    settings: LabelConfig
    """The labelers, and how many of their votes may be invalid."""
    section: str
    """Where in the config they stand."""


def voting(config: RunConfig, evaluators: Sequence[LabelerConfig], open_them: OpenSome) -> Voting:
    """The voting of ``evaluators``, some of the config's labelers; ``open_them`` opens those it is
    given."""
    section = LABELERS
    for key, judges in (
        ("evaluate.judges", config.evaluate.judges), ("evaluate.final.judges", config.final_judges),
    ):  # fmt: skip
        section = key if judges and evaluators == judges else section
    settings = config.label.model_copy(update={"labelers": tuple(evaluators)})
    return Voting(partial(open_them, evaluators), settings, section)


async def match(context: RunContext, policy: int, opponent: PolicyKey, by: Voting) -> None:
    """Let the labelers vote on the held-out answers of two policies to the same prompts."""
    run = context.run
    votes = run.match_votes(policy, opponent)
    missing = votes.missing(run.heldout.indices())
    if not missing:
        return
    folder = VotesAside(votes, run.match_votes_kept(policy, opponent))
    ready = await context.executor.open(match_job(context, policy, opponent, by))
    title = f"policy {policy} against {opponent}"
    breaker = Breaker(title, by.settings, by.section)
    remedy = (
        "change the labelers that evaluate (label.labelers or evaluate.judges) or their engines"
    )
    outcome = AllOrSome(title, "votes", remedy, came_before=any_valid_vote(votes))
    with StepProgress(title, len(missing), unit="blocks") as progress:

        async def take(facts: BlockFacts, keep: Keep) -> None:
            await outcome.take(facts.tally, keep)
            breaker.count(facts.tally)
            progress.advance(1)

        try:
            await ready.run(missing, begin=lambda _: progress.begin(1), take=take)
            await outcome.close()
        except NothingCameOut:
            set_aside(folder, by.settings)
            raise
    shutil.rmtree(folder.votes_kept.folder, ignore_errors=True)


def match_job(context: RunContext, policy: int, opponent: PolicyKey, by: Voting) -> BlockJob:
    """What the votes on a held-out block take."""
    run = context.run
    votes = run.match_votes(policy, opponent)
    folder = VotesAside(votes, run.match_votes_kept(policy, opponent))
    anew = asks_again(folder, by.settings)

    async def here() -> Make:
        labelers = await by.open_labelers(anew=anew)

        async def make(index: int) -> Tables:
            pairs, answers = match_pairs(run, policy, opponent, index)
            prompts = run.heldout.read(index)
            built = build_pairs(pairs, prompts, answers, policy - 1, context.system_prompt)
            kept = _of_pairs(kept_votes(folder, index, by.settings), built)
            table = await vote(built, labelers, f"evaluate/{policy}-{opponent}/{index}", kept)
            if len(kept):
                table = together(kept, table, built, [one.name for one in labelers])
            return (table,)

        return make

    details = {
        "policy": policy, "opponent": opponent, "anew": anew, "section": by.section,
        "label": by.settings.model_dump(mode="json"),
    }  # fmt: skip
    task = BlockTask(MATCH, run.root, policy - 1, details)
    in_flight = context.blocks_for(engines_of(by.settings.labelers))
    return BlockJob(task, LabelledBlocks(votes), here, in_flight)


def _of_pairs(votes: pa.Table, pairs: Sequence[Pair]) -> pa.Table:
    """Those of ``votes`` that are about ``pairs``: answers may have been lost and drawn again."""
    ids = pa.array([pair.pair_id for pair in pairs], pa.string())
    return votes.filter(pc.is_in(votes["pair_id"], ids))


def forget_other_votes(run: RunDir, policy: PolicyKey, index: int) -> None:
    """Remove votes on held-out block ``index`` that are about other answers of ``policy`` than it
    has: those were lost, and came out differently when they were drawn again."""
    for one, other in run.matches():
        votes = run.match_votes(one, other)
        sides = (run.answers(one), run.answers(other))
        if policy not in (one, other) or not votes.exists(index):
            continue
        if not all(answers.exists(index) for answers in sides):
            continue  # looked at when those are there again
        pairs, _ = match_pairs(run, one, other, index)
        voted = set(votes.read(index, ["pair_id"])["pair_id"].to_pylist())
        if voted and voted != set(pairs["pair_id"].to_pylist()):
            logger.warning(
                "the held-out answers of policy %s in block %d were lost and are others now: votes "
                "on them against policy %s are asked for again where its round is not evaluated "
                "yet; figures of an evaluation that is over are those of the lost answers",
                policy,
                index,
                other if policy == one else one,
            )
            votes.remove([index])


def match_pairs(
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
    run: RunDir, jury: MatchJury, policy: PolicyKey, opponent: PolicyKey, against: str
) -> list[dict[str, Any]]:
    """Win rates of a match, for the jury and for each labeler alone.

    A labeler alone decides by its own probabilities, whatever the rule of the jury.
    """
    alone = replace(jury.together, config=_mean_of(jury.together.config))
    blocks = [match_pairs(run, policy, opponent, index) for index in run.heldout.indices()]
    pairs = pa.concat_tables([block_pairs for block_pairs, _ in blocks])
    answers = pa.concat_tables([block_answers for _, block_answers in blocks])
    votes = run.match_votes(policy, opponent).table()
    rows: list[dict[str, Any]] = []
    if against == "start":
        rows += _mean_scores(votes, pairs, None, jury.confidence, of_new=True)
        rows += _mean_scores(votes, pairs, "start", jury.confidence, of_new=False)
    present = sorted(set(votes["labeler"].to_pylist()))
    for labeler in [JURY, *present]:
        counted = votes if labeler == JURY else votes.filter(pc.equal(votes["labeler"], labeler))
        outcomes, prompts, longer = _outcomes(
            decide(
                counted,
                pairs.select(["pair_id", "prompt_id", "a_id", "b_id"]),
                answers,
                jury.together if labeler == JURY else alone,
            ),
            pairs,
            answers,
        )
        if not len(outcomes):
            logger.warning("no win rate against %s by %s: no vote could be read", against, labeler)
            continue
        estimate = win_rate(outcomes, prompts, confidence=jury.confidence)
        common = {"against": against, "labeler": labeler}
        rows.append({"name": "win_rate", "estimate": estimate, **common})
        try:
            controlled = length_controlled_win_rate(
                outcomes, longer, prompts, confidence=jury.confidence
            )
        except ValueError as error:
            logger.warning(
                "no length-controlled win rate of policy %d against %s by %s: %s",
                policy,
                against,
                labeler,
                error,
            )
            continue
        rows.append({"name": "length_controlled_win_rate", "estimate": controlled, **common})
        if labeler == JURY:
            gap = length_gap(longer)
            rows.append({"name": LENGTH_GAP, "value": gap, "n": len(longer), **common})
            if remark := extrapolates(gap):
                logger.warning("policy %d against %s: %s", policy, against, remark)
    return rows


def _outcomes(
    decisions: pa.Table, pairs: pa.Table, answers: pa.Table
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1, 0.5 or 0 for each decided pair (float64), its prompt id, and new minus old characters:
    the two policies need not have one tokenizer.

    Answers that read the same are a tie. Pairs on which nobody gave a valid vote do not count.
    """
    lengths = pc.utf8_length(answers["text"]).to_pylist()
    chars = dict(zip(answers["candidate_id"].to_pylist(), lengths, strict=True))
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
        longer.append(chars[pair["new_id"]] - chars[old_id])
    return np.array(outcomes), np.array(prompts), np.array(longer, dtype=np.float64)


def _mean_scores(
    votes: pa.Table, pairs: pa.Table, against: str | None, confidence: float, *, of_new: bool
) -> list[dict[str, Any]]:
    """Mean absolute score of one side's answers, for each labeler that gives such scores."""
    new = dict(zip(pairs["pair_id"].to_pylist(), pairs["new_id"].to_pylist(), strict=True))
    scores: dict[str, list[float]] = defaultdict(list)
    prompts: dict[str, list[str]] = defaultdict(list)
    columns = ["pair_id", "prompt_id", "a_id", "labeler", "score_a", "score_b"]
    for row in votes.select(columns).to_pylist():
        a_is_new = row["a_id"] == new[row["pair_id"]]
        score = row["score_a"] if a_is_new == of_new else row["score_b"]
        if score is not None:
            scores[row["labeler"]].append(score)
            prompts[row["labeler"]].append(row["prompt_id"])
    return [
        {
            "name": "mean_score",
            "labeler": labeler,
            "against": against,
            "estimate": mean_estimate(values, prompts[labeler], confidence),
        }
        for labeler, values in scores.items()
    ]
