"""Whom a run is going to ask, as far as it is not done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prefloop.labelers.config import (
    JudgeLabeler,
    LabelerConfig,
    OwnModelLabeler,
    VerifierLabeler,
)
from prefloop.pipeline.config import POLICY, PoolMember, RunConfig
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.run.round_jury import with_labels_of
from prefloop.pipeline.run.run_dir import RunDir


@dataclass(frozen=True)
class StillToAsk:
    """The members that sample, the labelers whose models are asked, and the verifiers that need
    something of this machine, with the sections of the config that name them."""

    samplers: tuple[PoolMember, ...]
    labelers: tuple[tuple[str, JudgeLabeler | OwnModelLabeler], ...]
    verifiers: tuple[tuple[str, VerifierLabeler], ...] = ()


def wanted_by(config: RunConfig, run: RunDir | None = None) -> StillToAsk:
    """All that ``config`` asks; of ``run``, what it has not begun to ask."""
    rounds = run.rounds() if run is not None else []
    sampled = any(folder.candidates.indices() for folder in rounds)
    labelled = any(folder.votes.indices() or folder.votes_kept.indices() for folder in rounds)
    named = [("label.labelers", config.label.labelers)]
    if config.train and config.evaluate.enabled:
        named.append(("evaluate.judges", config.evaluate.judges))
        named.append(("evaluate.final.judges", config.final_judges))
    if labelled and run is not None:  # others label the rounds to come
        votes = [one for one in rounds if one.votes.indices() or one.votes_kept.indices()]
        before = [with_labels_of(config, one).label.labelers for one in votes]
        known = {one.name for labelers in before for one in labelers}
        new = tuple(one for one in config.label.labelers if one.name not in known)
        named = [("label.labelers", new)]
    voting = [(f"{section}.{one.name}", one) for section, labelers in named for one in labelers]
    asked = [(key, one) for key, one in voting if isinstance(one, JudgeLabeler | OwnModelLabeler)]
    # Where all answers are given, the policy is only asked for those to the held-out prompts.
    answers = config.sample.total > 0 or (config.train and config.evaluate.enabled)
    samplers = config.sample.members() if answers and not sampled else ()
    return StillToAsk(samplers, tuple(asked), verifiers_in(voting))


def verifiers_in(
    labelers: Iterable[tuple[str, LabelerConfig]],
) -> tuple[tuple[str, VerifierLabeler], ...]:
    """Those of ``labelers``, by their sections of the config, that may find no function of theirs
    or no library."""
    return tuple(
        (key, one)
        for key, one in labelers
        if isinstance(one, VerifierLabeler) and (one.function or one.check)
    )


def of_servers(config: RunConfig, wanted: StillToAsk) -> StillToAsk:
    """Those of ``wanted`` whom a server answers for."""
    return StillToAsk(
        tuple(one for one in wanted.samplers if not is_local(config, one.engine)),
        tuple(
            (key, one)
            for key, one in wanted.labelers
            if isinstance(one, JudgeLabeler) and not is_local(config, one.engine)
        ),
    )


def is_local(config: RunConfig, engine: str) -> bool:
    """Whether ``engine`` computes in this process, on this machine's memory."""
    return not isinstance(config.engines[engine], OpenAIEngine)


def is_toy(config: RunConfig, model: str) -> bool:
    """Whether ``model`` is one that ships with prefloop: it knows its own few tasks alone."""
    return (config.policy if model == POLICY else model).startswith("embedded:")
