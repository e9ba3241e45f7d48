"""What a finished run says on the terminal: dataset, win rates, report."""

from __future__ import annotations

from typing import Any

from prefloop.data.shards import ShardFolder
from prefloop.labelers.statistics.winrate import LENGTH_GAP, extrapolates
from prefloop.pipeline.remote.door import shown_path
from prefloop.pipeline.report.given_agreement import agreement_with_given
from prefloop.pipeline.run.final_split import final_dir, final_figures
from prefloop.pipeline.run.promotion import keeping
from prefloop.pipeline.run.round_jury import has_own_labels
from prefloop.pipeline.run.run_dir import EVALUATION, JURY, RoundDir, RunDir
from prefloop.pipeline.stages.write import rows_written


def headline(run: RunDir) -> str:
    """A few lines: where the dataset lies, what each round won, where the report lies."""
    rounds = [folder for folder in run.rounds() if folder.written.exists()]
    rows = [rows_written(folder) for folder in rounds]
    train, test = (sum(counts[split] for counts in rows) for split in ("train", "test"))
    lines = [f"dataset   {shown_path(run.dataset)}  ({train:,} train and {test:,} test triples)"]
    differ = any(has_own_labels(folder) for folder in rounds)
    for folder in rounds:
        by = f"; by {', '.join(_judges(folder.metrics))}" if differ else ""
        lines += [
            f"win rate  round {folder.index} against {against}: {text}{by}"
            for against, text in _win_rates(folder.metrics)
        ]
        lines += [f"policy    {shown_path(folder.policy)}"] if folder.policy.exists() else []
    kept = keeping(run)
    if kept.evaluated and kept.passed_over:
        best = shown_path(kept.folder.policy) if kept.folder else "the starting policy"
        lines.append(f"keep      {best}  ({kept.because})")
    lines += [f"final     {each}" for each in _final(run, kept.folder)]
    lines += [f"labels    {each}" for each in agreement_with_given(run)]
    lines.append(f"report    {shown_path(run.report)}")
    return "\n".join(lines)


def _final(run: RunDir, kept: RoundDir | None) -> list[str]:
    """What the prompts that no round saw say about the policy to keep."""
    found = final_figures(run, kept)
    if found is None:
        return []
    [(_, text)] = _win_rates(final_dir(run).round(found.round).metrics)
    return [
        f"round {found.round} against start: {text}, on prompts that no decision saw; "
        f"{found.judged_by}"
    ]


def _judges(metrics: ShardFolder) -> list[str]:
    """Who compared the round's policy with others."""
    rows = metrics.read(EVALUATION).to_pylist() if metrics.exists(EVALUATION) else []
    names = {row["labeler"] for row in rows if row["name"] == "win_rate"}
    return sorted(names - {JURY})


def _win_rates(metrics: ShardFolder) -> list[tuple[str, str]]:
    """Opponent, and the jury's win rate against it next to the length-controlled one."""
    if not metrics.exists(EVALUATION):
        return []
    rows = [row for row in metrics.read(EVALUATION).to_pylist() if row["labeler"] == JURY]
    controlled = {
        row["against"]: _with_interval(row)
        for row in rows
        if row["name"] == "length_controlled_win_rate"
    }
    gaps = {
        row["against"]: f" ({remark})"
        for row in rows
        if row["name"] == LENGTH_GAP and (remark := extrapolates(row["value"]))
    }
    return [
        (
            row["against"],
            f"{_with_interval(row)} of {row['n']}; length-controlled "
            f"{controlled.get(row['against'], 'none: lengths differ by a constant')}"
            f"{gaps.get(row['against'], '')}",
        )
        for row in rows
        if row["name"] == "win_rate"
    ]


def _with_interval(row: dict[str, Any]) -> str:
    return f"{row['value']:z.3f} [{row['low']:z.3f}, {row['high']:z.3f}]"
