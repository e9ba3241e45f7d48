"""The folder of a run's policy as it is published: weights, tokenizer and card, and nothing that a
training leaves beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined

from prefloop.data.storage.whole_files import link_file
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.report.card import plain_name
from prefloop.pipeline.run.promotion import keeping
from prefloop.pipeline.run.run_dir import EVALUATION, JURY, RoundDir, RunDir, RunError
from prefloop.training.policy.checkpoints import TOKENIZER_FILES, adapter_settings, is_adapter

_WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_IN_HUB_CACHE = re.compile(r"models--([^/\\]+)--([^/\\]+)[/\\]snapshots")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def copy_policy(
    config: RunConfig,
    run: RunDir,
    out: Path,
    *,
    repo: str,
    licence: str,
    languages: tuple[str, ...],
) -> None:
    """Make the folder ``out`` from the policy that the run keeps.

    Raises ``RunError`` where it keeps none, or one that nobody else could load.
    """
    best = keeping(run).folder
    if best is None:
        raise RunError(
            f"{run.root} keeps no policy: none was trained, or none won against the starting one "
            f"(`prefloop status {run.root}` says which)"
        )
    for pattern in (*_WEIGHTS, *TOKENIZER_FILES):
        for file in sorted(best.policy.glob(pattern)):
            if file.is_file():
                link_file(file, out / file.relative_to(best.policy))
    base = config.policy if _is_hub_name(config.policy) else None
    if is_adapter(best.policy):
        settings = adapter_settings(best.policy)
        base = _hub_name(str(settings["base_model_name_or_path"]), best.policy)
        path = out / "adapter_config.json"
        path.unlink()  # it may be a link to the run's own
        path.write_text(json.dumps(settings | {"base_model_name_or_path": base}, indent=2) + "\n")
    card = Environment(
        loader=PackageLoader("prefloop.pipeline"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  # Markdown, as the dataset's card
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("policy_card.md.jinja")
    text = card.render(
        repo=repo,
        licence=licence,
        languages=languages,
        base=base,
        start=plain_name(config.policy),
        round=best.index,
        method=config.train.method if config.train else "dpo",
        is_adapter=is_adapter(best.policy),
        rate=_win_rate(best),
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _is_hub_name(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists()


def _hub_name(base: str, adapter: Path) -> str:
    cached = _IN_HUB_CACHE.search(base)
    if cached:
        return "/".join(cached.groups())
    if _is_hub_name(base):
        return base
    raise RunError(
        f"{adapter} is an adapter of {base}, a folder of this machine, so nobody else could load "
        "it: publish that model under a name and begin the run with it as `policy`, or merge the "
        "two first (peft's merge_and_unload)"
    )


def _win_rate(folder: RoundDir) -> Estimate | None:
    """The jury's win rate against the starting policy."""
    if not folder.metrics.exists(EVALUATION):
        return None
    rows = folder.metrics.read(EVALUATION)
    wanted = pc.and_(pc.equal(rows["name"], "win_rate"), pc.equal(rows["labeler"], JURY))
    rows = rows.filter(pc.and_(wanted, pc.equal(rows["against"], "start")))
    for row in rows.to_pylist():
        if row["low"] is not None and row["high"] is not None:
            return Estimate(row["value"], row["low"], row["high"], row["n"])
    return None
