"""What a finished run says on the terminal: dataset, win rates, report."""

from __future__ import annotations

from data.shards import ShardFolder
from pipeline.run_dir import RunDir
from pipeline.stages.evaluate import EVALUATION, JURY
from pipeline.stages.write import rows_written


def headline(run: RunDir) -> str:
    """A few lines: where the dataset lies, what each round won, where the report lies."""
    rounds = [folder for folder in run.rounds() if folder.written.exists()]
    rows = [rows_written(folder) for folder in rounds]
    train, test = (sum(counts[split] for counts in rows) for split in ("train", "test"))
    lines = [f"dataset   {run.dataset}  ({train:,} train and {test:,} test triples)"]
    for folder in rounds:
        lines += [
            f"win rate  round {folder.index} against {against}: {text}"
            for against, text in _win_rates(folder.metrics)
        ]
        lines += [f"policy    {folder.policy}"] if folder.policy.exists() else []
    lines.append(f"report    {run.report}")
    return "\n".join(lines)


def _win_rates(metrics: ShardFolder) -> list[tuple[str, str]]:
    if not metrics.exists(EVALUATION):
        return []
    found = []
    for row in metrics.read(EVALUATION).to_pylist():
        if row["name"] == "win_rate" and row["labeler"] == JURY:
            interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
            found.append((row["against"], f"{row['value']:.3f} {interval} of {row['n']}"))
    return found
