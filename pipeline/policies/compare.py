"""`prefloop compare`: policies on the same held-out prompts, without a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from prefloop.data.errors import InputError
from prefloop.data.hashing import json_hash
from prefloop.data.shards import atomic_write_json, read_json_object
from prefloop.data.strict import fingerprint
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.jury.round_jury import RoundJury
from prefloop.labelers.statistics.winrate import LENGTH_GAP, extrapolates
from prefloop.pipeline.config import POLICY, RunConfig
from prefloop.pipeline.policies.answer_table import answer_table, mean_rewards, write_answers
from prefloop.pipeline.policies.comparison import Evaluation
from prefloop.pipeline.policies.comparison_page import comparison_page
from prefloop.pipeline.policies.comparison_sheet import write_sheet
from prefloop.pipeline.policies.named_policy import NamedPolicy, named_policy
from prefloop.pipeline.run.answer_key import of_engines, of_labelers, of_settings
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.manifest import input_hashes
from prefloop.pipeline.run.metrics import metrics_table
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.round_jury import jury_on
from prefloop.pipeline.run.run_dir import JURY, RunDir, RunError
from prefloop.pipeline.stages.evaluate import answer_heldout, heldout_sampling, is_untempered
from prefloop.pipeline.stages.likelihood.likelihood_figures import (
    Likely,
    MeasuredPolicy,
    likelihood_figures,
)
from prefloop.pipeline.stages.matches import (
    MatchJury,
    match,
    match_figures,
    match_jury,
    voting,
)
from prefloop.pipeline.stages.measures import answer_figures
from prefloop.pipeline.stages.prompts import read_prompts

logger = logging.getLogger(__name__)

_MOST = 999


@dataclass(frozen=True)
class CompareOptions:
    """What of the policies is compared."""

    out: Path
    """Where answers and votes are kept."""
    all_pairs: bool = False
    """Each with each, and not only each with the first."""
    kl: bool = True
    """Whether to measure the KL of each to the first."""


@dataclass(frozen=True)
class _Match:
    """A comparison of two policies by their numbers."""

    policy: int
    opponent: int

    @property
    def kept_as(self) -> tuple[int, int]:
        """The two in the order in which their votes are kept, whoever was named first."""
        return max(self.policy, self.opponent), min(self.policy, self.opponent)


async def compare_policies(
    config: RunConfig, policies: Sequence[str], options: CompareOptions
) -> Evaluation:
    """Let ``policies`` (``named_policy`` says how they are called) answer the held-out prompts of
    ``config``, and its labelers compare each with the first.

    All get the same seeds, every labeler sees both orders as configured. What is there is not done
    again: answers and votes lie in a folder of ``options.out`` that is named after settings and the
    contents of the files that they name (prompts, judges, calibrations), by policy: with one policy
    more, only that one is asked. Raises subclasses of ``PrefloopError``.
    """
    if len(policies) < 2:
        raise InputError("nothing to compare: name two policies or more")
    named = [named_policy(name, config) for name in policies]
    shown = _unique([one.name for one in named])
    judge = next((one for one in named[1:] if not one.is_served), named[0])
    run = RunDir(options.out / _folder_name(config, judge))
    config = config.model_copy(
        update={"evaluate": config.evaluate.model_copy(update={"enabled": True})}
    )
    context = RunContext.of(config, run)
    with run.lock():
        read_prompts(
            context, config.prompts, block_size=config.block_size, given=config.sample.given
        )
        if not run.heldout.indices():
            raise RunError("there are no held-out prompts: set prompts.heldout in the config")
        numbers = _numbered(run, named)
        await _answer(config, context, options.out, dict(zip(numbers, named, strict=True)))
        pairs = list(combinations(range(len(named)), 2)) if options.all_pairs else []
        pairs = pairs or [(0, other) for other in range(1, len(named))]
        matches = [_Match(numbers[other], numbers[one]) for one, other in pairs]
        models = _models(config, judge, run, options.out)
        try:
            for one in matches:
                by = voting(config, config.evaluators, models.labelers)
                await match(models.working(context), *one.kept_as, by)
            divergence = await _divergences(context, config, models, named, numbers, options.kl)
        finally:
            await models.release()
        figures: list[dict[str, Any]] = []
        for (first, second), one in zip(pairs, matches, strict=True):
            rows = _match_rows(config, run, one, (shown[second], shown[first]), len(matches))
            figures += _named(rows, shown[second], shown[first])
        for number, name in zip(numbers, shown, strict=True):
            figures += _named(answer_figures(run, number, against=None), name, None)
        jury = {one.kept_as: _jury(config, run, one) for one in matches}
        answers = answer_table(run, jury, dict(zip(shown, numbers, strict=True)))
        figures += mean_rewards(answers, config.evaluate.confidence)
        for name, rows in zip(shown, divergence.rows, strict=True):
            figures += _named(rows, name, shown[0])
        stem = "compared-" + "-".join(f"{number:03d}" for number in numbers)
        found = Evaluation(
            policies=tuple(shown),
            folder=run.root,
            figures=figures,
            page=run.root / f"{stem}.html",
            table=run.root / f"{stem}.parquet",
            sheet=run.root / f"{stem}.md",
            notes=(*divergence.notes, *_notes(figures, len(matches), config.evaluate.confidence)),
        )
        write_answers(answers, found.table)
        comparison_page(found, answers)
        write_sheet(found, answers)
    return found


def _folder_name(config: RunConfig, judge: NamedPolicy) -> str:
    """A hash of all that answers and votes depend on besides the policies."""
    judging = config.model_copy(update={"policy": "embedded:policy"})
    by_policy = any(
        isinstance(one, JudgeLabeler) and one.model == POLICY for one in config.evaluators
    )
    about = {
        "judge": judge.key if by_policy else None,
        "others": Models(judging).revisions(),
        "inputs": input_hashes(config),
        "labelers": of_labelers(config.all_labelers),
        "engines": of_engines(config),
        "config": {
            key: of_settings(value)
            for key, value in fingerprint(config).items()
            if key in ("seed", "prompts", "sample", "label", "evaluate")
        },
    }
    return json_hash(about)[:12]


def _numbered(run: RunDir, policies: Sequence[NamedPolicy]) -> list[int]:
    """The numbers of ``policies`` in this folder; new ones get the next."""
    file = run.root / "policies.json"
    try:
        known = read_json_object(file, f"delete {run.root}, and all is asked again")
    except FileNotFoundError:
        known = {}
    for one in policies:
        # From 1 on: policy 0 is the starting policy of a run, whose KL nobody measures.
        known.setdefault(one.key, {"number": len(known) + 1, "name": one.name})
    if len(known) > _MOST:
        raise RunError(f"{run.root} holds {len(known)} policies: take another --out")
    atomic_write_json(file, known)
    return [int(known[one.key]["number"]) for one in policies]


def _models(config: RunConfig, policy: NamedPolicy, run: RunDir, ledgers: Path) -> Models:
    """Models among which ``policy`` is the policy."""
    sample = config.sample.model_copy(update={"engine": policy.engine})
    base = policy.model if policy.is_served else policy.base
    opened = config.model_copy(update={"policy": base, "sample": sample})
    models = Models(opened, cache=run.cache, ledgers=ledgers, rubrics=run.rubrics)
    models.use_policy(policy.model)
    models.take_probes(run.heldout, config.sample.system_prompt)
    return models


async def _answer(
    config: RunConfig, context: RunContext, ledgers: Path, policies: dict[int, NamedPolicy]
) -> None:
    """Let the ``policies``, by number, answer; one engine serves those of a family in turn."""
    run = context.run
    own = is_untempered(heldout_sampling(config.sample, config.evaluate))

    def is_there(number: int, one: NamedPolicy) -> bool:
        drawn = [run.answers(number)]
        if not own and not one.is_served:
            drawn.append(run.untempered(number))
        return all(each.exists(index) for each in drawn for index in run.heldout.indices())

    todo = {number: one for number, one in policies.items() if not is_there(number, one)}
    families: dict[str, list[int]] = {}
    for number, one in todo.items():
        families.setdefault(one.family, []).append(number)
    for family in families.values():
        models = _models(config, todo[family[0]], run, ledgers)
        try:
            for number in family:
                if not todo[number].is_served:
                    models.use_policy(todo[number].model)
                await answer_heldout(
                    models.working(context).round(0),
                    config.sample,
                    config.evaluate,
                    models,
                    number,
                    todo[number].member,
                )
        finally:
            await models.release()


@dataclass(frozen=True)
class _Divergences:
    rows: list[list[dict[str, Any]]]
    """Of each policy."""
    notes: list[str]


async def _divergences(
    context: RunContext,
    config: RunConfig,
    models: Models,
    policies: Sequence[NamedPolicy],
    numbers: Sequence[int],
    wanted: bool,
) -> _Divergences:
    """KL of each of ``policies`` to the first."""
    from prefloop.training.policy.checkpoints import load_tokenizer
    from prefloop.training.policy.log_ratios import token_difference

    found = _Divergences([[] for _ in policies], [])
    if not wanted:
        return found
    if policies[0].is_served:
        found.notes.append(f"no KL: {policies[0].name} is on a server")
        return found
    first = Path(policies[0].model)
    own = is_untempered(heldout_sampling(config.sample, config.evaluate))
    tokens = load_tokenizer(first)
    for at, (one, number) in enumerate(zip(policies, numbers, strict=True)):
        if at == 0:
            continue
        difference = None
        if not one.is_served:
            difference = token_difference(load_tokenizer(Path(one.model)), tokens)
        if one.is_served or difference:
            why = difference and f"it has other tokens than {policies[0].name} ({difference})"
            found.notes.append(f"no KL of {one.name}: {why or 'it is on a server'}")
            continue
        measured = MeasuredPolicy(
            number, Path(one.model), other=first, against="", start=Path(models.start)
        )
        likely = Likely(models.scoring, config.evaluate.confidence, own)
        found.rows[at] += await likelihood_figures(
            models.working(context).round(0), measured, likely
        )
    return found


def _jury(config: RunConfig, run: RunDir, one: _Match) -> MatchJury:
    fitted = RoundJury()
    if not config.evaluate.judges:  # theirs is the mean
        policy, opponent = one.kept_as
        kept = run.evaluation / f"jury-{policy:03d}-{opponent:03d}.json"
        fitted = jury_on(config.label, run.match_votes(policy, opponent), kept)
    return match_jury(config.label.jury, config.evaluate, config.evaluators, fitted)


def _match_rows(
    config: RunConfig, run: RunDir, one: _Match, names: tuple[str, str], comparisons: int
) -> list[dict[str, Any]]:
    """The figures of a match between policies of these ``names``, from the side of its policy."""
    jury = _jury(config, run, one)
    flipped = one.kept_as[0] != one.policy
    against = names[0] if flipped else names[1]
    rows = match_figures(run, jury, *one.kept_as, against)
    wide = replace(jury, confidence=1 - (1 - jury.confidence) / comparisons)
    wider = rows if comparisons == 1 else match_figures(run, wide, *one.kept_as, against)
    found = []
    for row, in_all in zip(rows, wider, strict=True):
        if row["name"] == "mean_score":  # of one alone, and told for every policy
            continue
        found.append(_turned(row) if flipped else row)
        if row["labeler"] == JURY and "estimate" in row:
            ends = (_turned(in_all) if flipped else in_all)["estimate"]
            found[-1] = {**found[-1], "low_all": ends.low, "high_all": ends.high}
    return found


def _turned(row: dict[str, Any]) -> dict[str, Any]:
    """A figure of a match from the opponent's side."""
    if row["name"] == LENGTH_GAP:
        return {**row, "value": -row["value"]}
    one = row["estimate"]
    turned = replace(one, value=1 - one.value, low=1 - one.high, high=1 - one.low)
    return {**row, "estimate": turned}


def _named(
    rows: Sequence[dict[str, Any]], policy: str, against: str | None
) -> list[dict[str, Any]]:
    """``rows`` of ``policy`` as figures."""
    wide = ("low_all", "high_all")
    found = [
        {**{key: value for key, value in row.items() if key not in wide}, "against": against}
        for row in rows
    ]
    table = metrics_table([{**row, "round": 0} for row in found]).to_pylist()
    return [
        {**row, "policy": policy} | {key: given[key] for key in wide if key in given}
        for row, given in zip(table, rows, strict=True)
    ]


def _notes(figures: Sequence[dict[str, Any]], comparisons: int, confidence: float) -> list[str]:
    found = [
        f"{row['policy']} against {row['against']}: {remark}"
        for row in figures
        if row["name"] == LENGTH_GAP and (remark := extrapolates(row["value"]))
    ]
    if comparisons == 1:
        return found
    return [
        *found,
        f"{comparisons} comparisons: each {100 * confidence:g} % interval holds by itself; a win "
        f"rate is marked * where 0.5 lies outside the interval that holds for all {comparisons} "
        "together (Bonferroni)",
    ]


def _unique(names: Sequence[str]) -> list[str]:
    """``names``, those that were there before with their place behind."""
    return [f"{name} ({at + 1})" if name in names[:at] else name for at, name in enumerate(names)]
