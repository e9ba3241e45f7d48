"""``prefloop train``: one training outside a run, on any triples.

A source is a run directory, a dataset folder that prefloop wrote, or a Parquet file of triples.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import ValidationError

from prefloop.data.errors import InputError
from prefloop.data.strict import Strict
from prefloop.pipeline.config import ConfigError, override_key
from prefloop.pipeline.report.formats import count, duration, figure
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.stages.write import TRIPLES_FOLDER, UNPAIRED_FOLDER
from prefloop.training.config import Method, RewardConfig, TrainConfig

if TYPE_CHECKING:
    import pyarrow as pa

    from prefloop.labelers.statistics.estimate import Estimate

Settings = TypeVar("Settings", bound=Strict)


@dataclass(frozen=True)
class Sources:
    """The Parquet files to train on, and those kept apart for measuring."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]


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
    names something). A file is taken whole. Raises ``InputError`` where there are none.
    """
    train: list[Path] = []
    held: list[Path] = []
    for source in sources:
        train += _files(source, "train", method)
        if not test and source.is_dir():
            held += _split(source, "test", method)
    for source in test:
        held += _files(source, "test", method)
    return Sources(tuple(dict.fromkeys(train)), tuple(dict.fromkeys(held)))


def train_model(
    sources: Sources,
    *,
    method: Method,
    base: str,
    out: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    reference: str | None = None,
    accelerate: Path | None = None,
    seed: int = 0,
) -> Trained:
    """Train ``base`` (folder, hub name or ``embedded:policy``) by ``method`` into ``out``.

    ``config`` is a YAML file with the method's settings, ``overrides`` are ``key=value`` strings
    that win over it. ``reference`` is the reference policy of ``dpo`` and ``kto``, ``base`` by
    default. ``accelerate`` is a file that ``accelerate config`` wrote: a policy is then trained in
    the processes it describes.
    Raises ``ConfigError``, ``InputError``, ``EngineFailed`` or ``TrainingError``.
    """
    from prefloop.pipeline.run.models import checkpoint

    if reference is not None and method not in (Method.dpo, Method.kto):
        raise InputError("--reference is for --method dpo and kto: nothing else compares with one")
    if accelerate is not None and method is Method.reward:
        raise InputError("--accelerate is for policies: train the reward model without it")
    settings: RewardConfig | TrainConfig
    if method is Method.reward:
        settings = load_settings(RewardConfig, config, overrides)
    else:
        named = [f"method={method}"]
        if accelerate:
            named.append(f"accelerate={json.dumps(str(accelerate))}")
        settings = load_settings(TrainConfig, config, [*overrides, *named])
    folder = Path(checkpoint(base, served=False))
    out.parent.mkdir(parents=True, exist_ok=True)
    start = Path(checkpoint(reference, served=False)) if reference else folder
    # What is there already is not made again, and has no progress to show.
    progress = nullcontext() if out.exists() else StepProgress(f"train {method}", 0, unit="steps")
    with progress as bar:

        def on_step(log: dict[str, float]) -> None:
            if bar:
                bar.update(int(log["step"]), int(log["total_steps"]))

        if isinstance(settings, RewardConfig):
            return _train_reward(sources, folder, out, settings, seed, on_step)
        return _train_policy(sources, folder, start, out, settings, seed, on_step)


def load_settings(
    model: type[Settings], config: Path | None, overrides: Sequence[str] = ()
) -> Settings:
    """The settings in the YAML file ``config`` (none: the defaults) with ``overrides``.

    Raises ``ConfigError`` that names the file and the key.
    """
    raw: Any = {}
    if config is not None:
        try:
            raw = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"{config}: cannot be read: {why}: check the path") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{config}: not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(raw, dict):
            raise ConfigError(
                f"{config}: must be a mapping of settings, e.g. `learning_rate: 1e-5`"
            )
    for override in overrides:
        override_key(raw, override)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(problem, model) for problem in error.errors(include_url=False)]
        raise ConfigError(f"{config or '--set'}: " + "; ".join(problems)) from None


def summary(trained: Trained) -> list[str]:
    """What a person wants to know, line by line."""
    kind = "reward model" if trained.method is Method.reward else "policy"
    examples = "answers" if trained.method in (Method.kto, Method.sft) else "pairs"
    lines = [
        f"{kind:<13} {trained.model}",
        f"trained       {count(trained.steps)} steps on {count(trained.examples)} {examples} in "
        f"{duration(trained.seconds)}" + _counted(trained.dropped),
    ]
    if trained.method not in (Method.reward, Method.dpo):
        return lines
    if trained.heldout is None:
        lines.append("accuracy      not measured: no held-out pairs (--test PATH names some)")
    else:
        found = trained.heldout
        lines.append(
            f"accuracy      {figure(found.value)} [{found.low:.3f}, {found.high:.3f}] of "
            f"{count(found.n)} held-out pairs" + _counted(trained.heldout_dropped)
        )
    if trained.method is not Method.reward:
        return lines
    path = json.dumps(str(trained.model))
    lines += ["use it        label:", "                labelers:"]
    lines.append(f"                  - {{type: reward_model, name: reward_model, model: {path}}}")
    return lines


def _counted(dropped: dict[str, int]) -> str:
    if not dropped:
        return ""
    reasons = ", ".join(f"{count(number)} {reason}" for reason, number in dropped.items())
    return f" (dropped: {reasons})"


def _train_reward(
    sources: Sources, base: Path, out: Path, config: RewardConfig, seed: int, on_step: Any
) -> Trained:
    from prefloop.training.methods.reward import RewardJob, heldout_accuracy, train_reward

    job = RewardJob(base, tuple(sources.train), out, config, seed)
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


def _train_policy(
    sources: Sources,
    policy: Path,
    reference: Path,
    out: Path,
    config: TrainConfig,
    seed: int,
    on_step: Any,
) -> Trained:
    from prefloop.training.methods.offline import train_offline
    from prefloop.training.policy.heldout import Heldout, heldout_pairs
    from prefloop.training.session.job import Job

    with ExitStack() as stack:
        files = _with_prompt_ids(sources.train, stack)
        job = Job(policy, reference, tuple(files), out, config, seed)
        result = train_offline(job, on_step=on_step)
    heldout = Heldout(None, {})
    if config.method == "dpo" and sources.test:
        for file in sources.test:
            _triples_without_ids(file)  # says what is wrong with it
        heldout = heldout_pairs(
            out, reference, sources.test, beta=config.beta, trained_on=sources.train
        )
    overlong = result.dropped_overlong
    return Trained(
        method=Method(config.method),
        model=out,
        steps=result.steps,
        examples=result.examples,
        seconds=result.seconds,
        dropped={"context_overflow": overlong} if overlong else {},
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
    """The files of ``split`` in a run directory or dataset folder."""
    places = [folder / "dataset" / TRIPLES_FOLDER, folder / TRIPLES_FOLDER, folder]
    if method is Method.kto:
        places = [folder / "dataset" / UNPAIRED_FOLDER, folder / UNPAIRED_FOLDER, *places]
    for where in places:
        found = sorted(where.glob(f"{split}-*.parquet"))
        if found:
            return found
    return []


def _with_prompt_ids(files: Sequence[Path], stack: ExitStack) -> list[Path]:
    """``files``; those of somebody else's making are copied with the ids that we give prompts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from prefloop.data.hashing import prompt_id

    found: list[Path] = []
    for index, file in enumerate(files):
        table = _triples_without_ids(file)
        if table is None:
            found.append(file)
            continue
        try:
            ids = [prompt_id(messages) for messages in table["prompt"].to_pylist()]
        except (TypeError, KeyError):
            raise InputError(
                f"{file}: the column prompt is not a conversation: write it as "
                '[{"role": "user", "content": "..."}]'
            ) from None
        copy = Path(stack.enter_context(TemporaryDirectory())) / f"{index}.parquet"
        pq.write_table(table.append_column("prompt_id", pa.array(ids, pa.string())), copy)
        found.append(copy)
    return found


def _triples_without_ids(file: Path) -> pa.Table | None:
    """The triples of ``file``, or null where they have prompt ids."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(file).names
        if "completion" in names:
            missing = [name for name in ("prompt", "label") if name not in names]
            kind = "single answers have prompt, completion and label"
        else:
            missing = [name for name in ("prompt", "chosen", "rejected") if name not in names]
            kind = "triples have prompt, chosen and rejected"
        if missing:
            raise InputError(f"{file}: has no column {missing[0]!r}: {kind}")
        if "prompt_id" in names or "completion" in names:
            return None
        return pq.read_table(file, columns=["prompt", "chosen", "rejected"])
    except (OSError, pa.ArrowException) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{file}: cannot be read as Parquet: {first}") from None


def _explain(problem: Any, model: type[Strict]) -> str:
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{location}: {message}" if location else str(message)
    names = sorted(model.model_fields)
    near = difflib.get_close_matches(location, names, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else f"; valid here: {', '.join(names)}"
    return f"{location}: unknown key{hint}"
