"""`prefloop judge-eval`: labelers on pairs with gold labels, side by side."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError, NothingCameOut
from prefloop.data.hashing import json_hash
from prefloop.data.preferences import PreferenceColumns
from prefloop.data.preferences.gold import GoldPair, gold_layout, read_gold
from prefloop.data.prompts.criteria import RUBRIC
from prefloop.data.schemas import VOTE
from prefloop.data.shards import ShardFolder
from prefloop.data.strict import fingerprint
from prefloop.data.yaml_files import read_yaml
from prefloop.labelers.base import Answer, Labeler, Pair
from prefloop.labelers.config import LabelConfig
from prefloop.pipeline.config import ConfigError, RunConfig, reason_of, validate_config
from prefloop.pipeline.judging.figures.by_group import ByGroup, by_group, groups_of
from prefloop.pipeline.judging.judge_figures import JudgeFigures, judge_figures
from prefloop.pipeline.judging.verdict_file import read_verdicts
from prefloop.pipeline.run.all_or_some import AllOrSome, any_valid_vote, tally_votes
from prefloop.pipeline.run.answer_key import of_engines, of_labelers, of_settings
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.stages.invalid_votes import (
    Breaker,
    VotesAside,
    asks_again,
    kept_votes,
    set_aside,
    together,
)
from prefloop.pipeline.stages.label import remedy_of, vote

logger = logging.getLogger(__name__)

BLOCK = 64
"""Pairs whose votes are kept together: what an interruption costs at most."""


@dataclass(frozen=True)
class JudgeEvalOptions:
    """Which judges to compare, on which of the pairs."""

    judges: Sequence[Path] = ()
    """YAML files of a labeler, of several, or of a run."""
    verdicts: Sequence[str] = ()
    """Files with the verdicts of judges."""
    columns: PreferenceColumns | None = None
    limit: int | None = None
    """Read only so many rows."""
    out: Path = Path("judge-eval")
    """Where votes are kept, by judge and data."""
    seed: int = 0
    by: Sequence[str] = ()
    """Columns of the rows: the judges are compared on the groups of each."""


@dataclass(frozen=True)
class JudgeEval:
    """What judging the judges found."""

    source: str
    pairs: int
    refused: dict[str, int]
    """Rows of the file with gold labels that hold no pair, by reason."""
    examples: tuple[str, ...]
    figures: tuple[JudgeFigures, ...]
    votes: dict[str, pa.Table]
    """Schema VOTE, by judge."""
    verdicts_refused: dict[str, dict[str, int]]
    """Rows of each file with verdicts that are no verdict, by reason."""
    gold: tuple[GoldPair, ...]
    groups: tuple[ByGroup, ...] = ()
    """Each judge on the groups of each column that was asked for."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "source": self.source,
            "pairs": self.pairs,
            "rows_without_a_pair": self.refused,
            "examples": list(self.examples),
            "verdict_rows_refused": self.verdicts_refused,
            "judges": [one.as_dict() for one in self.figures],
            "groups": [one.as_dict() for one in self.groups],
        }


async def judge_eval(path: str, options: JudgeEvalOptions) -> JudgeEval:
    """Let the judges vote on the pairs in ``path``, read the verdicts given in files, and compare
    all with the gold labels.

    The same call goes on where it was interrupted, and asks nothing twice. Raises subclasses of
    ``PrefloopError``.
    """
    if not options.judges and not options.verdicts:
        raise InputError("nothing to evaluate: give --judge CONFIG or --verdicts FILE")
    source = PromptSource(path=path, limit=options.limit)
    gold, refused = read_gold(source, options.columns)
    layout = gold_layout(source, options.columns)
    # A column that is not there is told before anybody is asked.
    groups = {by: groups_of(by, gold, path) for by in options.by}
    votes: dict[str, pa.Table] = {}
    failed: list[NothingCameOut] = []
    for config_path in options.judges:
        for name, table in (await _ask(config_path, gold, options, failed)).items():
            votes[_free(name, config_path.stem, votes)] = table
    lost: dict[str, dict[str, int]] = {}
    for verdict_path in options.verdicts:
        read = read_verdicts(verdict_path, gold, options.columns, layout)
        for name, table in read.votes.items():
            votes[_free(name, Path(verdict_path).stem, votes)] = table
        if read.refused:
            lost[verdict_path] = dict(read.refused)
    if failed and not votes:
        raise failed[0]
    for error in failed:
        logger.warning("%s", error)
    return JudgeEval(
        source=path,
        pairs=len(gold),
        refused=dict(Counter(row.reason for row in refused)),
        examples=tuple(str(row) for row in refused[:3]),
        figures=tuple(judge_figures(name, table, gold) for name, table in votes.items()),
        votes=votes,
        verdicts_refused=lost,
        gold=tuple(gold),
        groups=tuple(
            by_group(name, table, gold, by, of_each)
            for by, of_each in groups.items()
            for name, table in votes.items()
        ),
    )


def _free(name: str, file: str, taken: dict[str, pa.Table]) -> str:
    """``name``, or one that says the file too where another judge has it."""
    for candidate in (name, f"{name} ({file})"):
        if candidate not in taken:
            return candidate
    raise InputError(f"two judges are named {name!r} in files named {file}: rename one of them")


def load_judges(path: Path, seed: int = 0) -> RunConfig:
    """A config of labelers: one labeler, ``labelers`` with ``engines``, or a run's config."""
    try:
        raw = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {reason_of(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a labeler (`type: judge`, ...) or hold `labelers`")
    if "label" in raw:
        return validate_config(raw, str(path))
    # Nothing is sampled, but a config has to name an engine for it.
    engines = {"default": {"type": "transformers"}} | (raw.pop("engines", None) or {})
    more = {"max_invalid": raw.pop("max_invalid")} if "max_invalid" in raw else {}
    labelers = raw.pop("labelers", None) or [raw]
    if raw and labelers != [raw]:
        raise ConfigError(
            f"{path}: unknown key {', '.join(map(str, raw))}: beside `labelers` stand `engines` "
            "and `max_invalid`; all else belongs to a labeler or an engine"
        )
    # Of rows that are judged, the column of this name is their rubric.
    prompts = {"train": {"path": "embedded:prompts", "columns": {"rubric": RUBRIC}}}
    label = {"labelers": labelers} | more
    whole = {"seed": seed, "prompts": prompts, "label": label, "engines": engines}
    return validate_config(whole, str(path))


async def _ask(
    path: Path,
    gold: Sequence[GoldPair],
    options: JudgeEvalOptions,
    failed: list[NothingCameOut],
) -> dict[str, pa.Table]:
    """The votes of each labeler in the file; one whose every vote failed is told in ``failed``."""
    config = load_judges(path, options.seed)
    # Two servers that serve a model under one name share no response.
    cache = options.out / "cache" / json_hash(of_engines(config))[:12]
    # What an engine may spend holds for all that is kept in the folder, whatever else changed.
    models = Models(
        config, cache=cache, ledgers=options.out / "cache", rubrics=options.out / "rubrics"
    )
    revisions = models.revisions()
    found = {}
    try:
        for labeler in config.label.labelers:
            about = {
                "labeler": {
                    key: value
                    for key, value in of_settings(fingerprint(labeler)).items()
                    if key not in ("weight", "calibration", "decides")
                },
                "models": revisions,
                "files": of_labelers([labeler], calibrated=False),
                "engines": of_engines(config),
                "pairs": json_hash([_shown(pair) for pair in gold]),
                "seed": config.seed,
            }
            folder = ShardFolder(options.out / f"{labeler.name}-{json_hash(about)[:12]}", VOTE)
            missing = folder.missing(range(-(-len(gold) // BLOCK)))
            if missing:
                kept = ShardFolder(folder.folder.with_name(f"{folder.folder.name}-kept"), VOTE)
                votes = VotesAside(folder, kept)
                settings = config.label.model_copy(update={"labelers": (labeler,)})
                [asked] = await models.labelers([labeler], anew=asks_again(votes, settings))
                try:
                    await _vote(asked, gold, votes, missing, settings)
                except NothingCameOut as error:
                    failed.append(error)
                    continue
            found[labeler.name] = folder.table()
    finally:
        await models.release()
    return found


async def _vote(
    labeler: Labeler,
    gold: Sequence[GoldPair],
    votes: VotesAside,
    missing: Sequence[int],
    settings: LabelConfig,
) -> None:
    folder, title = votes.votes, f"judge-eval {labeler.name}"
    remedy = remedy_of(settings.labelers)
    outcome = AllOrSome(title, "votes", remedy, came_before=any_valid_vote(folder))
    breaker = Breaker(title, settings, "labelers", "max_invalid: null in the judge's file")
    todo = sum(len(gold[BLOCK * at : BLOCK * (at + 1)]) for at in missing)
    with StepProgress(labeler.name, len(gold), done=len(gold) - todo, unit="pairs") as progress:
        try:
            for at in missing:
                pairs = [_pair(one) for one in gold[BLOCK * at : BLOCK * (at + 1)]]
                progress.begin(len(pairs))
                kept = kept_votes(votes, at, settings)
                table = await vote(pairs, [labeler], f"judge-eval/{at}", kept)
                if len(kept):
                    table = together(kept, table, pairs, [labeler.name])
                await outcome.take(
                    tally_votes(table), partial(asyncio.to_thread, folder.write, at, table)
                )
                breaker.take(table)
                progress.advance(
                    len(pairs),
                    tokens=pc.sum(table["prompt_tokens"]).as_py() or 0,
                    cost=pc.sum(table["cost"]).as_py() or 0.0,
                )
            await outcome.close()
        except NothingCameOut:
            set_aside(votes, settings)
            raise
    shutil.rmtree(votes.votes_kept.folder, ignore_errors=True)


def _shown(gold: GoldPair) -> tuple[Any, ...]:
    """What of a pair a labeler may see."""
    return gold.messages, gold.a, gold.b, gold.reference, gold.metadata


def _pair(gold: GoldPair) -> Pair:
    # The number of tokens is the policy's to know; labelers do not read it.
    return Pair(
        pair_id=gold.pair_id,
        prompt_id=gold.prompt_id,
        round=0,
        messages=gold.messages,
        reference=gold.reference,
        metadata=gold.metadata,
        a=Answer(gold.a_id, gold.a, 0, "sampled"),
        b=Answer(gold.b_id, gold.b, 0, "sampled"),
    )
