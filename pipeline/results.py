"""What the Python API gives back: objects that print well, in a terminal and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import pyarrow as pa

from prefloop.data.schemas import METRIC
from prefloop.data.storage.objects import is_address
from prefloop.pipeline.remote.door import given_path
from prefloop.pipeline.run.run_dir import EVALUATION, JURY, RunDir

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from pandas import DataFrame
    from rich.console import Console, RenderableType


@dataclass(frozen=True)
class Run:
    """A run directory, or the address of one, finished or not. Prints what ``prefloop run`` prints
    at its end."""

    path: Path

    @property
    def directory(self) -> RunDir:
        """Where everything of it lies."""
        return RunDir(Path(given_path(str(self.path)))).require()

    @property
    def dataset_path(self) -> Path:
        """The folder that ``datasets.load_dataset`` opens."""
        return self.directory.dataset

    @property
    def policy(self) -> Path | None:
        """The policy to keep: the last one that won against the one kept before it, lost against
        none and set off no guard; null where none did, or nothing was evaluated."""
        from prefloop.pipeline.run.promotion import keeping

        best = keeping(self.directory).folder
        return best.policy if best else None

    def load_dataset(self, split: str | None = None) -> Dataset | DatasetDict:
        """The preference dataset: triples by split, or those of one split.

        Raises ``RunError`` while it is being written, and where its files are not those that were.
        """
        from datasets import load_dataset

        self.directory.require_whole_dataset()
        return load_dataset(str(self.dataset_path.resolve()), split=split)

    def metrics(self) -> DataFrame:
        """All evaluations, a row a figure: the columns of ``schemas.METRIC``."""
        folders = [folder.metrics for folder in self.directory.rounds()]
        tables = [one.read(EVALUATION) for one in folders if one.exists(EVALUATION)]
        frame: DataFrame = pa.concat_tables([METRIC.empty_table(), *tables]).to_pandas()
        return frame

    def win_rates(self) -> DataFrame:
        """The jury's win rates, plain and length-controlled, with their intervals, by round."""
        return _of_the_jury(self.metrics())

    def final(self) -> DataFrame:
        """The figures of the policy to keep on prompts that no decision saw (``evaluate.final``), a
        row a figure as in ``metrics``; empty without them, or before."""
        from prefloop.pipeline.run.final_split import final_dir, is_judged
        from prefloop.pipeline.run.promotion import keeping

        kept = keeping(self.directory).folder
        tables = [METRIC.empty_table()]
        if kept and is_judged(self.directory, kept):
            tables.append(final_dir(self.directory).round(kept.index).metrics.read(EVALUATION))
        frame: DataFrame = pa.concat_tables(tables).to_pandas()
        return frame

    def as_dict(self) -> dict[str, Any]:
        """For JSON: paths and win rates."""
        return {
            "path": str(self.path),
            "dataset": str(self.dataset_path),
            "policy": str(self.policy) if self.policy else None,
            "win_rates": self.win_rates().to_dict(orient="records"),
            "final": _of_the_jury(self.final()).to_dict(orient="records"),
        }

    def __str__(self) -> str:
        from prefloop.pipeline.report.headline import headline

        return headline(self.directory)

    def __repr__(self) -> str:
        begun = is_address(self.path) or RunDir(self.path).config.is_file()
        return f"Run({str(self.path)!r})" + (f"\n{self}" if begun else "  # not begun")

    def _repr_html_(self) -> str:
        if not is_address(self.path) and not RunDir(self.path).config.is_file():
            return f"<code>{html.escape(repr(self))}</code>"
        text = f"<p><strong>Run</strong> <code>{html.escape(str(self.path))}</code></p>"
        rates = self.win_rates()
        table = rates.to_html(index=False, float_format="{:.3f}".format) if len(rates) else ""
        return f"{text}<pre>{html.escape(str(self))}</pre>{table}"


def _of_the_jury(metrics: DataFrame) -> DataFrame:
    """The jury's win rates among figures."""
    wanted = metrics["name"].isin(["win_rate", "length_controlled_win_rate"])
    columns = ["round", "against", "name", "value", "low", "high", "n"]
    return metrics[wanted & (metrics["labeler"] == JURY)][columns].reset_index(drop=True)


class CommandFacts(Protocol):
    """What a command found out."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""


F = TypeVar("F", bound=CommandFacts)
_WIDTH = 110


class Result(Generic[F]):
    """What a command found: ``facts``, printed as the command prints them.

    The attributes of the facts are those of the result as well.
    """

    def __init__(self, facts: F, render: Callable[[F], RenderableType]) -> None:
        self.facts = facts
        self._render = render

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what the command prints with ``--json``."""
        return self.facts.as_dict()

    def renderable(self) -> RenderableType:
        """What a rich console prints; brackets in plain text are no markup."""
        from rich.text import Text

        shown = self._render(self.facts)
        return Text(shown) if isinstance(shown, str) else shown

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.facts, name)

    def __repr__(self) -> str:
        return self._print().export_text().rstrip()

    def _repr_html_(self) -> str:
        block = '<pre style="line-height:normal;overflow-x:auto">{code}</pre>'
        return self._print().export_html(code_format=block, inline_styles=True)

    def _print(self) -> Console:
        """A console that remembers what was printed."""
        from rich.text import Text

        from prefloop.pipeline.terminal import PlainConsole

        shown = self.renderable()
        console = PlainConsole(file=StringIO(), record=True, width=_WIDTH)
        console.print(shown, soft_wrap=isinstance(shown, Text))
        return console
