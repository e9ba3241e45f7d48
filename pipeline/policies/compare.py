"""`prefloop evaluate`: one policy against another on held-out prompts, without a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.data.conversation import with_system_prompt
from prefloop.data.hashing import json_hash
from prefloop.labelers.base import Labeler
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.run.metrics import metrics_table
from prefloop.pipeline.run.models import PROBES, Models, checkpoint, revision
from prefloop.pipeline.run.round_jury import RoundJury, jury_on
from prefloop.pipeline.run.run_dir import JURY, RunDir, RunError
from prefloop.pipeline.stages.evaluate import (
    answer_figures,
    answer_heldout,
    kl_figures,
    match,
    match_figures,
)
from prefloop.pipeline.stages.prompts import read_prompts

if TYPE_CHECKING:
    from rich.console import Group

AGAINST = "other"
_OTHER, _NEW = 0, 1
_FIGURES = {
    "mean_tokens": "tokens an answer",
    "truncated_share": "truncated",
    "repetitive_share": "repetitive",
    "distinct_2": "distinct pairs of words",
    "self_bleu": "self-BLEU",
}
_SHOWN = ("win_rate", "length_controlled_win_rate")


@dataclass(frozen=True)
class Evaluation:
    """One policy against another."""

    policy: str
    against: str
    folder: Path
    """Where answers and votes lie."""
    rows: list[dict[str, Any]]
    """Schema METRIC; ``against`` is "other" for what concerns the other policy or both."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        columns = ("name", "value", "low", "high", "n", "against", "labeler")
        return {
            "policy": self.policy,
            "against": self.against,
            "folder": str(self.folder),
            "figures": [{name: row[name] for name in columns} for row in self.rows],
        }


async def evaluate_policy(config: RunConfig, *, policy: str, against: str, out: Path) -> Evaluation:
    """Let both policies answer the held-out prompts of ``config``, and its labelers compare.

    Both get the same seeds, every labeler sees both orders as configured. What is there is not done
    again: answers and votes lie in a folder of ``out`` that is named after models and settings.
    Raises subclasses of ``PrefloopError``.
    """
    served = isinstance(config.engines[config.sample.engine], OpenAIEngine)
    if served:
        raise RunError(
            "sample.engine is an OpenAI-compatible server, which serves one policy: set it to vllm "
            "or transformers"
        )
    paths = {name: checkpoint(name, served=False) for name in (policy, against)}
    about = {
        "models": [revision(paths[name]) for name in (policy, against)],
        "config": config.model_dump(
            mode="json", include={"seed", "prompts", "sample", "label", "evaluate"}
        ),
    }
    run = RunDir(out / json_hash(about)[:12])
    models = Models(config.model_copy(update={"policy": against}), cache=run.cache)

    async def open_labelers() -> list[Labeler]:
        return [await models.labeler(labeler) for labeler in config.evaluators]

    with run.lock():
        try:
            read_prompts(config, run)
            models.probes = [
                with_system_prompt(row["messages"], config.sample.system_prompt)
                for index in run.heldout.indices()[:1]
                for row in run.heldout.read(index).slice(0, PROBES).to_pylist()
            ]
            if not models.probes:
                raise RunError("there are no held-out prompts: set prompts.heldout in the config")
            await answer_heldout(config, run, models, _OTHER, round_index=0)
            models.use_policy(paths[policy])
            await answer_heldout(config, run, models, _NEW, round_index=0)
            await match(config, run, _NEW, _OTHER, open_labelers)
        finally:
            await models.release()
        jury = RoundJury()
        if not config.evaluate.judges:  # theirs is the mean
            votes = run.match_votes(_NEW, _OTHER)
            jury = jury_on(config.label, votes, run.evaluation / "jury.json")
        rows = match_figures(config, run, jury, _NEW, _OTHER, AGAINST)
        rows += answer_figures(run, _NEW, against=None)
        rows += answer_figures(run, _OTHER, against=AGAINST)
        rows += kl_figures(
            config, run, _NEW, Path(paths[policy]), Path(paths[against]), against=AGAINST
        )
    table = metrics_table([{**row, "round": 0} for row in rows]).to_pylist()
    return Evaluation(policy, against, run.root, table)


def render_evaluation(found: Evaluation) -> Group:
    """For the terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("by", "win rate", "length-controlled", "prompts x samples"):
        table.add_column(name, justify="left" if name == "by" else "right")
    rates = {(row["labeler"], row["name"]): row for row in found.rows if row["name"] in _SHOWN}
    names = list(dict.fromkeys(labeler for labeler, _ in rates))
    for name in sorted(names, key=lambda one: (one != JURY, one)):
        cells = [_interval(rates.get((name, figure))) for figure in _SHOWN]
        table.add_row(Text(name), *cells, f"{rates[name, _SHOWN[0]]['n']:,}")
    figures = {(row["name"], row["against"]): row for row in found.rows}
    lines = [f"{found.policy} against {found.against}"]
    for name, words in _FIGURES.items():
        new, other = figures.get((name, None)), figures.get((name, AGAINST))
        if new and other:
            lines.append(f"{words}: {new['value']:.3g} and {other['value']:.3g}")
    divergence = figures.get(("kl", AGAINST))
    if divergence:
        lines.append(f"KL to the other: {_interval(divergence)} nats an answer")
    lines.append(f"answers and votes: {found.folder}")
    return Group(Text(lines[0]), table, Text("\n".join(lines[1:])))


def _interval(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row["low"] is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
