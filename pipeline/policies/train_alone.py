"""``prefloop train``: one training outside a run, on any triples.

A source is a run directory, a dataset folder that prefloop wrote, or a Parquet file of triples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from prefloop.data.errors import InputError
from prefloop.data.sources.shard_names import require_all_shards
from prefloop.data.strict import Strict
from prefloop.data.yaml_files import YamlError, read_yaml
from prefloop.labelers.refused_settings import refused_settings
from prefloop.pipeline.config import ConfigError, override_key, validate_config
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.dataset.layout import TRIPLES_FOLDER, UNPAIRED_FOLDER
from prefloop.pipeline.tracking.lone_training import trackers_of_training
from prefloop.pipeline.tracking.trackers import require_trackers
from prefloop.training.config import RewardConfig, TrainConfig
from prefloop.training.method_names import Method
from prefloop.training.session.records import history_of, summary_of

if TYPE_CHECKING:
    from prefloop.labelers.statistics.estimate import Estimate
    from prefloop.training.inputs.rendering import Rendering
    from prefloop.training.session.job import Job

Settings = TypeVar("Settings", bound=Strict)


@dataclass(frozen=True)
class Sources:
    """The Parquet files to train on, and those kept apart for measuring."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]
    runs: tuple[Path, ...] = ()
    """The run directories among the sources."""


@dataclass(frozen=True)
class TrainOptions:
    """What to train, and how."""

    method: Method
    base: str
    """Folder, hub name or ``embedded:policy``: the model to start from."""
    out: Path
    config: Path | None = None
    """A YAML file with the method's settings."""
    overrides: Sequence[str] = ()
    """``key=value``, which win over the file."""
    reference: str | None = None
    """The reference policy of ``dpo`` and ``kto``; null: ``base``."""
    accelerate: Path | None = None
    """A file that ``accelerate config`` wrote: a policy is trained in the processes it
    describes."""
    seed: int = 0
    chat_template_kwargs: Mapping[str, Any] | None = None
    """Variables of the chat template for the prompts; null: those that the runs among the sources
    sampled with."""
    tracking: Sequence[str] = ()
    """Trackers that hear of every step, and of what came out."""


@dataclass(frozen=True)
class Trained:
    """What a training made. ``heldout`` is the accuracy on pairs it has not seen, null where
    there were none; ``dropped`` and ``heldout_dropped`` count unused rows by reason."""

    method: Method
    model: Path
    steps: int
    examples: int
    seconds: float
    dropped: dict[str, int]
    heldout: Estimate | None
    heldout_dropped: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """All of it as values that ``json`` can write."""
        return asdict(self) | {"model": str(self.model), "method": str(self.method)}


def find_sources(
    sources: Sequence[Path], test: Sequence[Path] = (), *, method: Method = Method.dpo
) -> Sources:
    """The files behind ``sources`` and ``test``: triples, or for ``kto`` single answers with labels
    where a source has them.

    A run directory or dataset folder gives its train split to train on and its test split to
    measure on (only the latter where it is named in ``test``, and only the former if ``test``
    names something). A file is taken whole. Raises ``InputError`` where there are none, and
    ``RunError`` where a run's dataset is not whole.
    """
    for source in (*sources, *test):
        if (run := RunDir(source)).config.exists():
            run.require_whole_dataset()
    train: list[Path] = []
    held: list[Path] = []
    for source in sources:
        train += _files(source, "train", method)
        if not test and source.is_dir():
            held += _split(source, "test", method)
    for source in test:
        held += _files(source, "test", method)
    runs = dict.fromkeys(source for source in sources if RunDir(source).config.exists())
    return Sources(tuple(dict.fromkeys(train)), tuple(dict.fromkeys(held)), tuple(runs))


def train_model(sources: Sources, options: TrainOptions) -> Trained:
    """Train a model on ``sources``.

    Raises ``ConfigError``, ``InputError``, ``EngineFailed`` or ``TrainingError``.
    """
    from prefloop.pipeline.run.models import checkpoint
    from prefloop.training.inputs.unread import warn_of_unread

    method, out = options.method, options.out
    if options.reference is not None and method not in (Method.dpo, Method.kto):
        raise InputError("--reference is for --method dpo and kto: nothing else compares with one")
    if options.accelerate is not None and method is Method.reward:
        raise InputError("--accelerate is for policies: train the reward model without it")
    if options.chat_template_kwargs is not None and method is Method.reward:
        raise InputError("--template is for policies: train the reward model without it")
    warn_of_unread((*sources.train, *sources.test))
    trackers_named = require_trackers(options.tracking)
    settings = _as_made(_settings(options), out)
    base = Path(checkpoint(options.base, served=False))
    out.parent.mkdir(parents=True, exist_ok=True)
    reference = Path(checkpoint(options.reference, served=False)) if options.reference else base
    # What is there already is not made again, and has no progress to show.
    progress = nullcontext() if out.exists() else StepProgress(f"train {method}", 0, unit="steps")
    told = settings.model_dump(mode="json") | {
        "method": str(method), "base": options.base, "seed": options.seed,
    }  # fmt: skip
    with trackers_of_training(trackers_named, out, told) as trackers:
        with progress as bar:

            def on_step(log: dict[str, float]) -> None:
                trackers.step(log)
                if bar:
                    bar.update(int(log["step"]), int(log["total_steps"]))

            if isinstance(settings, RewardConfig):
                found = _train_reward(sources, base, out, settings, options.seed, on_step)
            else:
                from prefloop.training.session.job import Job

                job = Job(
                    base, reference, sources.train, out, settings, options.seed,
                    held_out=sources.test, rendering=_rendering(sources, options, base),
                )  # fmt: skip
                found = _train_policy(job, sources.test, on_step)
        trackers.end(history_of(out), _figures(found))
    return found


def _figures(found: Trained) -> dict[str, float]:
    """What came out, for trackers."""
    figures = {"training/steps": found.steps, "training/examples": found.examples,
               "training/seconds": found.seconds}  # fmt: skip
    figures |= {f"training/dropped/{why}": count for why, count in found.dropped.items()}
    if found.heldout is not None:
        for name in ("value", "low", "high"):
            end = "" if name == "value" else f"/{name}"
            figures[f"held_out/accuracy{end}"] = getattr(found.heldout, name)
    return {name: float(value) for name, value in figures.items()}


def _rendering(sources: Sources, options: TrainOptions, base: Path) -> Rendering:
    """How prompts and answers become tokens: as the runs among the sources sampled them, unless the
    options say otherwise.

    Raises ``InputError`` where these did so in different ways, and ``ConfigError`` for a run whose
    config this version cannot read.
    """
    from prefloop.pipeline.stages.rendering import rendering_of
    from prefloop.training.inputs.rendering import Rendering

    found = {}
    for path in sources.runs:
        run = RunDir(path)
        context = RunContext.of(validate_config(run.read_config(), str(run.config)), run)
        rounds = run.rounds()
        if rounds:
            found[path] = rendering_of(context.round(0), range(len(rounds)), base)
    if options.chat_template_kwargs is not None:
        variables = dict(options.chat_template_kwargs)
    else:
        variables = dict(next((one.template_kwargs for one in found.values()), {}))
        for path, one in found.items():
            if one.template_kwargs != variables:
                first = next(iter(found))
                raise InputError(
                    f"{first} was sampled with the template variables {variables}, and {path} with "
                    f"{dict(one.template_kwargs)}: say which with --template KEY=VALUE, or train "
                    "on one of them"
                )
    return Rendering(variables, tuple(shard for one in found.values() for shard in one.sampled))


def _settings(options: TrainOptions) -> RewardConfig | TrainConfig:
    if options.method is Method.reward:
        return load_settings(RewardConfig, options.config, options.overrides)
    named = [f"method={options.method}"]
    if options.accelerate:
        named.append(f"accelerate={json.dumps(str(options.accelerate))}")
    return load_settings(TrainConfig, options.config, [*options.overrides, *named])


def _as_made(settings: RewardConfig | TrainConfig, out: Path) -> RewardConfig | TrainConfig:
    """``settings``, what they leave out being as it was when ``out`` was made, where it was."""
    made = (summary_of(out) or {}).get("settings") if out.is_dir() else None
    return settings.continuing(made) if isinstance(made, dict) else settings


def load_settings(
    model: type[Settings], config: Path | None, overrides: Sequence[str] = ()
) -> Settings:
    """The settings in the YAML file ``config`` (none: the defaults) with ``overrides``.

    Raises ``ConfigError`` that names the file and the key.
    """
    raw: Any = {}
    if config is not None:
        try:
            raw = read_yaml(config) or {}
        except YamlError as error:
            raise ConfigError(f"{config}: not valid YAML: {error}") from None
        except OSError as error:
            raise ConfigError(
                f"{config}: cannot be read: {error.strerror}: check the path"
            ) from None
        if not isinstance(raw, dict):
            raise ConfigError(
                f"{config}: must be a mapping of settings, e.g. `learning_rate: 1e-5`"
            )
    for override in overrides:
        override_key(raw, override)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = refused_settings(error, model)
        raise ConfigError(f"{config or '--set'}: " + "; ".join(problems)) from None


def _train_reward(
    sources: Sources, base: Path, out: Path, config: RewardConfig, seed: int, on_step: Any
) -> Trained:
    from prefloop.training.methods.reward import (
        RewardJob,
        check_heldout,
        heldout_accuracy,
        train_reward,
    )

    job = RewardJob(base, tuple(sources.train), out, config, seed)
    if sources.test:
        check_heldout(base, sources.test, config.max_length)
    result = train_reward(job, on_step=on_step)
    heldout, dropped = None, {}
    if sources.test:
        found = heldout_accuracy(out, sources.test, trained_on=sources.train)
        heldout, dropped = found.accuracy, found.dropped
    return Trained(
        method=Method.reward,
        model=out,
        steps=result.steps,
        examples=result.examples,
        seconds=result.seconds,
        dropped=result.dropped,
        heldout=heldout,
        heldout_dropped=dropped,
    )


def _train_policy(job: Job, test: Sequence[Path], on_step: Any) -> Trained:
    """Train by ``job`` and measure on ``test``, which is read before the training begins."""
    from prefloop.training.inputs.rows import Dropped
    from prefloop.training.methods.offline import train_offline
    from prefloop.training.policy.heldout import Heldout, heldout_pairs, measurable

    config = job.config
    measured = config.method == "dpo" and bool(test)
    if measured:
        measurable(job.policy, test, Dropped())
    result = train_offline(job, on_step=on_step)
    heldout = Heldout(None, {})
    if measured:
        heldout = heldout_pairs(
            job.out, job.reference, test, beta=config.beta, trained_on=job.files,
            template_kwargs=job.rendering.template_kwargs,
        )  # fmt: skip
    overlong = result.dropped_overlong
    dropped = result.dropped or ({"context_overflow": overlong} if overlong else {})
    return Trained(
        method=Method(config.method),
        model=job.out,
        steps=result.steps,
        examples=result.examples,
        seconds=result.seconds,
        dropped=dropped,
        heldout=heldout.accuracy,
        heldout_dropped=heldout.dropped,
    )


def _files(source: Path, split: str, method: Method) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(
            f"{source}: no such file or folder: give a run directory, a dataset folder or a "
            "Parquet file"
        )
    found = _split(source, split, method)
    if not found:
        raise InputError(
            f"{source}: holds no {split} triples: a run directory has "
            f"dataset/data/{split}-*.parquet once a round is written, a dataset folder "
            f"data/{split}-*.parquet"
        )
    return found


def _split(folder: Path, split: str, method: Method) -> list[Path]:
    """The files of ``split`` in a run directory or dataset folder. Raises ``InputError`` where some
    are missing by the names of the others."""
    places = [folder / "dataset" / TRIPLES_FOLDER, folder / TRIPLES_FOLDER, folder]
    if method is Method.kto:
        places = [folder / "dataset" / UNPAIRED_FOLDER, folder / UNPAIRED_FOLDER, *places]
    for where in places:
        found = sorted(where.glob(f"{split}-*.parquet"))
        if found:
            require_all_shards(found, folder)
            return found
    return []
