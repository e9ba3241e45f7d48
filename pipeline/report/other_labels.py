"""A run's relabellings as the report lists them: how far each is from the run's own labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.data.errors import StorageError
from prefloop.data.shards import read_json_object
from prefloop.pipeline.run.run_dir import RunDir


@dataclass(frozen=True)
class OtherLabels:
    """One relabelling, by what its comparison said."""

    name: str
    labelers: tuple[str, ...]
    pairs: int
    same: float | None
    """Share of pairs decided alike."""
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None
    turned: int
    kept: int
    rows: int
    """Triples of its dataset."""
    cost: float
    adopted: bool


def read_other_labels(run: RunDir) -> list[OtherLabels]:
    """The relabellings of ``run`` that were compared; what cannot be read is left out."""
    found = [_read(path) for path in sorted(run.relabels.glob("*/comparison.json"))]
    return [one for one in found if one is not None]


def _read(path: Path) -> OtherLabels | None:
    try:
        raw: dict[str, Any] = read_json_object(path, "give the same `prefloop relabel` again")
        difference, decisions = raw["difference"], raw["difference"]["decisions"]
        kappa = decisions["kappa"]
        return OtherLabels(
            name=path.parent.name,
            labelers=tuple(map(str, raw["labelers"])),
            pairs=int(difference["pairs"]),
            same=decisions["raw"]["value"],
            kappa=kappa["value"],
            kappa_low=kappa["low"],
            kappa_high=kappa["high"],
            turned=int(difference["turned"]),
            kept=int(difference["kept"]["kept"]),
            rows=sum(map(int, raw["rows"].values())),
            cost=sum(float(one["cost"]) for one in difference["spent"].values()),
            adopted=bool(raw["adopted"]),
        )
    except (StorageError, FileNotFoundError, KeyError, TypeError, ValueError, AttributeError):
        return None
