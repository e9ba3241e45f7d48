"""What a run was made with, and whether an old run directory may be continued with this config."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefloop.data.config import PromptSource
from prefloop.data.embedded import resolve_embedded
from prefloop.data.preferences.reader import parquet_files
from prefloop.data.shards import (
    as_json,
    atomic_write_json,
    atomic_write_text,
    damaged,
    read_json_object,
    write_if_changed,
)
from prefloop.data.strict import LATER, fingerprint
from prefloop.labelers.config import (
    AcrossPolicies,
    JudgeLabeler,
    LabelConfig,
    LabelerConfig,
    OwnModelLabeler,
    VerifierLabeler,
)
from prefloop.labelers.judges.folder import judge_revision, question_revision
from prefloop.labelers.jury.calibrator import read_calibrator
from prefloop.labelers.scorers.function_files import function_files
from prefloop.pipeline.config import (
    ConfigError,
    RunConfig,
    dump_config,
    flatten,
    validate_config,
)
from prefloop.pipeline.engines.openai.batch.batch_settings import BatchSettings
from prefloop.pipeline.engines.settings import TransformersEngine
from prefloop.pipeline.machine.hardware import CPU, device_beside
from prefloop.pipeline.machine.packages import package_versions
from prefloop.pipeline.run.final_split import final_dir
from prefloop.pipeline.run.round_jury import keep_labels, with_labels_of
from prefloop.pipeline.run.run_dir import (
    CONFIG_REMEDY,
    EVALUATION,
    RoundDir,
    RunDir,
    RunError,
)
from prefloop.training.defaults import RESOLVED

logger = logging.getLogger(__name__)

JUDGE = "judge {}"
"""Name of a judge's folder among the inputs."""
CALIBRATION = "calibration of {}"
"""Name, among the inputs, of the file that calibrates a labeler."""
JUDGE_QUESTION = "question of judge {}"
"""Name, among the inputs, of what the judge asks."""
CODE = "code of {}"
"""Name, among the inputs, of the file that a verifier's function is in."""
LABELLED, DECIDED = "label", "decide"
"""Stages that a key reaches into: votes, which are paid for, and what they add up to, which is made
anew for nothing."""
FINAL = "final"
"""Stage that judges the policy to keep on prompts that no round saw."""
_OF_LABELS = {LABELLED, DECIDED, "filter", "write"}
"""Stages that can be done again over the same answers."""
_MANIFEST_REMEDY = (
    "delete it and give `prefloop run` again: inputs and models are then taken to be unchanged"
)
_SAMPLE_ONLY = {"sample.n", "sample.prompts_per_round"}
"""Keys that reach into the sampling, and not into the answers to held-out prompts."""
_HARMLESS = {
    "run_dir", "blocks_in_flight", "base_url", "api_key_env", "max_concurrency", "timeout_s",
    "max_retries", "max_backoff_s", "requests_per_minute", "tokens_per_minute", "max_total_tokens",
    "max_cost", "cache", "cache_dir", "leave_out", "top_logprobs", "max_tokens_field",
    "extra_headers", "gpu_memory_utilization", "block_wait_s", "save_steps", "then", "max_invalid",
    "processes", "memory", "tracking", "enable_sleep_mode", "endpoints", "replicas", "gpus",
    "cpus", "accelerator_type", "every_answer",
}  # fmt: skip
"""Last parts of keys that change how a run gets there, and not what comes out."""
_HOW_ASKED = re.compile(rf"engines\..*\.(mode|batch\.({'|'.join(BatchSettings.model_fields)}))")
"""Keys that say whether a server is asked at once or in jobs, and how: the answers are the same."""
_SPEED = {"max_num_seqs", "cpu_kv_cache_gib", "enable_prefix_caching"}
"""Last parts of an engine's keys that change how much it computes at once, where nothing is
promised to the last bit (vLLM)."""
_LAST_BITS = {"batch_size", "threads"}
"""The same of the transformers engine, whose rows are promised to the bit: a sum in another order
may differ in the last one."""
MENDING = {
    "max_tokens", "thought_tokens", "temperature", "chat_template_kwargs", "reasoning_effort",
}  # fmt: skip
"""Last parts of a judge's keys that decide whether its answers come out."""
_OF_OTHERS = {"extra_body", "extra_headers", "chat_template_kwargs", "engine_args"}
"""Keys that hold names of others, which mean nothing here."""
_WHOLES = _OF_OTHERS | {"replicas"}
"""Keys that are looked at as they are, whatever is in them."""
_WRITTEN_OUT = {"columns.prompt": "prompt", "columns.messages": "messages"}
"""What older versions wrote for keys that are null now, and mean the same."""
_LAST_TURN = "columns.last_turn"
"""Older versions took the last turn as a reference, as nobody could say."""


def open_run(config: RunConfig, run: RunDir, *, revisions: Mapping[str, str]) -> None:
    """Begin a run directory, or check that it may be continued with ``config``.

    ``revisions`` are those of the models that the run begins with, by their names in the config.
    What costs nothing to make anew is made anew by changed settings, unless a policy was trained on
    it: ``run.undecided`` then says that the pairs of a written round are to be decided again.
    Raises :class:`RunError` showing the difference where the config, the prompts or a model
    changed in a way that reaches into finished work.
    """
    config = as_begun(config, run)
    inputs = input_hashes(config)
    before: LabelConfig | None = None
    if run.config.exists():
        changes = _refuse_changed_config(config, run)
        redo, before = changes.redo, changes.labels_before
        # Where nothing was made of what was there before, it does not count.
        manifest = new_manifest(config.seed, inputs, revisions)
        if run.begun():
            manifest, more = _checked_manifest(run, config, manifest)
            redo |= more
        if before is not None:
            _keep_labels_of_rounds(run, before, config.label)
        _forget(run, redo)  # first: a kill must not leave old decisions under new settings
        write_if_changed(run.manifest, as_json(manifest))
    elif run.begun():
        raise RunError(
            f"{run.root} holds a run but no config.yaml: {CONFIG_REMEDY}, or use an empty directory"
        )
    else:
        atomic_write_json(run.manifest, new_manifest(config.seed, inputs, revisions))
    write_if_changed(run.config, dump_config(config))  # last: it says that the run began


def as_begun(config: RunConfig, run: RunDir) -> RunConfig:
    """``config`` with the values that the run was begun with of keys of ``train`` and of
    ``label.pairs`` where it leaves them out: their defaults depend on other keys, and older
    versions had others."""
    return _train_as_begun(_pairs_as_begun(config, run), run)


def _pairs_as_begun(config: RunConfig, run: RunDir) -> RunConfig:
    label = config.label
    if "pairs" in label.model_fields_set:
        return config
    if run.config.exists() and any(
        folder.votes.indices() or folder.votes_kept.indices() for folder in run.rounds()
    ):
        before = run.read_config().get("label")
        pairs = before.get("pairs", "all") if isinstance(before, dict) else "all"
    else:
        pairs = "across_policies" if _judges_for_nothing(config) else "all"
    return config.model_copy(update={"label": label.model_copy(update={"pairs": pairs})})


def _judges_for_nothing(config: RunConfig) -> bool:
    """Whether some of a prompt's pairs are labelled, and only others can be kept."""
    return (
        config.label.pairs_per_prompt is not None
        and isinstance(config.filter.strategy, AcrossPolicies)
        and not _on_policy(config)
    )


def _train_as_begun(config: RunConfig, run: RunDir) -> RunConfig:
    if config.train is None or not run.config.exists():
        return config
    before = run.read_config().get("train")
    if not isinstance(before, dict):
        return config
    train = config.train.continuing(before)
    older = [key for key in RESOLVED if getattr(train, key) != getattr(config.train, key)]
    if older:
        logger.info(
            "%s: was begun with %s, and goes on with that: the config leaves it out",
            run.root,
            ", ".join(f"train.{key} {getattr(train, key)}" for key in older),
        )
    return config.model_copy(update={"train": train})


def _forget(run: RunDir, redo: set[str]) -> None:
    """Have what changed settings of the stages in ``redo`` reach into made anew."""
    written = [folder for folder in run.rounds() if folder.written.exists()]
    if redo and written:
        atomic_write_text(
            run.undecided, "Settings were changed. `prefloop run` decides the pairs by them.\n"
        )
    if redo & {DECIDED, "filter"}:
        for folder in run.rounds():
            if not folder.written.exists():
                folder.forget_decisions()


def new_manifest(
    seed: int, inputs: Mapping[str, str], revisions: Mapping[str, str]
) -> dict[str, Any]:
    """What ``manifest.json`` of a run says that begins now."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "models": dict(revisions),
        "inputs": dict(inputs),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
    }


def read_manifest(run: RunDir) -> dict[str, Any]:
    """The manifest, with ``inputs`` and ``models`` in it. Raises ``StorageError`` where it is
    damaged, ``FileNotFoundError`` where it is missing."""
    manifest = read_json_object(run.manifest, _MANIFEST_REMEDY)
    for key in ("inputs", "models"):
        if not isinstance(manifest.get(key), dict):
            raise damaged(run.manifest, f"no {key}", _MANIFEST_REMEDY)
    return manifest


def _checked_manifest(
    run: RunDir, config: RunConfig, current: dict[str, Any]
) -> tuple[dict[str, Any], set[str]]:
    """The run's manifest with the inputs and models put in that it does not know, or that nothing
    was made with, by ``current``, that of a run that begins now; and the stages to make anew.

    Raises ``RunError`` where finished work was made with an input or a model that changed.
    """
    try:
        manifest = read_manifest(run)
    except FileNotFoundError:
        logger.warning(
            "%s: is missing: inputs and models are taken to be unchanged since the run was begun",
            run.manifest,
        )
        manifest = current
    begun = _stages_begun(run, on_policy=_on_policy(config))
    stages = _stages_of_inputs(config)
    refused: list[tuple[str, set[str]]] = []
    redo: set[str] = set()
    for key in ("inputs", "models"):
        before, now = manifest[key], current[key]
        for name in now:
            if before.get(name, now[name]) == now[name]:
                continue
            reached = stages.get(name, {"prompts"})
            if reached & begun:
                refused.append((name, reached))
            else:
                redo |= reached & {DECIDED}
                before[name] = now[name]
        manifest[key] = {**now, **before}
    if refused:
        raise RunError(
            f"{', '.join(name for name, _ in refused)} changed since {run.root} was begun: "
            + _remedy(run, config, refused, trained=DECIDED in begun)
        )
    return manifest, redo


def _stages_of_inputs(config: RunConfig) -> dict[str, set[str]]:
    """The stages whose outcome a file or model that only labelers use reaches into, by its name."""
    found: dict[str, set[str]] = {}
    for stage, labelers in (
        (LABELLED, config.label.labelers), ("evaluate", config.evaluate.judges),
        (FINAL, config.final_judges),
    ):  # fmt: skip
        for labeler in labelers:
            names = []
            if isinstance(labeler, JudgeLabeler):
                names += [JUDGE.format(labeler.judge), JUDGE_QUESTION.format(labeler.judge)]
            if isinstance(labeler, JudgeLabeler | OwnModelLabeler):
                names += labeler.models
            if isinstance(labeler, VerifierLabeler) and labeler.function:
                names.append(CODE.format(labeler.name))
            for name in names:
                found[name] = found.get(name, set()) | {stage}
    found |= {name: {"prompts"} for name in _writers(config) if name in found}
    return found | {CALIBRATION.format(name): {DECIDED} for name in config.label.calibrations}


def models_of_labelers(config: RunConfig) -> set[str]:
    """The models that vote and write no answers, by their names in the config."""
    models = {
        model
        for labeler in config.label.labelers
        if isinstance(labeler, JudgeLabeler | OwnModelLabeler)
        for model in labeler.models
    }
    return models - _writers(config)


def _writers(config: RunConfig) -> set[str]:
    """The models that write answers, by their names in the config."""
    found = {config.policy, *(member.model for member in config.sample.pool)}
    return found | ({config.evaluate.opponent.model} if config.evaluate.opponent else set())


def _remedy(
    run: RunDir, config: RunConfig, refused: Sequence[tuple[str, set[str]]], *, trained: bool
) -> str:
    """What to do about changes, by name and the stages that they reach into, that are refused."""
    reached = {stage for _, stages in refused for stage in stages}
    if not reached <= _OF_LABELS:
        return "put the old version back, or use a new --run-dir"
    judges = {one.judge for one in config.label.labelers if isinstance(one, JudgeLabeler)}
    if {name for name, _ in refused} <= {JUDGE.format(judge) for judge in judges}:
        return (
            f"what it asks is the same, so `prefloop reparse {run.root} --write` reads its kept "
            "answers again and asks nobody; or put the old version back"
        )
    return _relabel(run, "put the old version back", trained=trained, of_files=True)


def _relabel(run: RunDir, undo: str, *, trained: bool, of_files: bool = False) -> str:
    """How to get other labels for a run's answers; ``undo`` says how to do without them. Where
    ``of_files``, files changed and not the config."""
    command = f"prefloop relabel {run.root}" + ("" if of_files else " --judge CONFIG")
    what = "with what is there now" if of_files else "with the config that has the change"
    if trained:
        return (
            "a policy was trained on the labels as they are, and the rounds after it would be "
            f"others. {undo[0].upper()}{undo[1:]} to go on (other labelers, under names of their "
            "own, may label rounds to come, once the rounds that were begun are over and `rounds` "
            f"is raised); `{command}` labels the same answers "
            f"again beside, {what}, as a dataset of its own; or use a new --run-dir"
        )
    return (
        f"the answers stay: `{command} --adopt` labels them again, {what}, keeps the votes of now "
        f"in {run.relabels}, and the same `prefloop run` goes on; or {undo}"
    )


@dataclass(frozen=True)
class _Changes:
    """What differs between a run's config and another."""

    keys: dict[str, tuple[str, set[str]]]
    """By key: the difference in words, and the stages whose outcome it reaches into."""
    begun: set[str]
    """Stages that are not made anew."""
    is_whole: bool
    """Whether the run's config has every section."""
    last_bits: tuple[str, ...]
    """Differences in words that may reach into the last bits of what a model computes."""
    labels_before: LabelConfig | None = None
    """By what the rounds that are done were labelled, where the rounds to come are labelled
    otherwise."""

    @property
    def redo(self) -> set[str]:
        """Stages that cost nothing to make anew."""
        reached = set().union(*(stages for _, stages in self.keys.values()))
        return reached & {DECIDED, "filter", "write"}

    def refused(self) -> list[tuple[str, set[str]]]:
        """Differences that reach into begun stages, and all stages that they reach into."""
        return [change for change in self.keys.values() if change[1] & self.begun]


def _refuse_changed_config(config: RunConfig, run: RunDir) -> _Changes:
    """Raise ``RunError`` where a changed key reaches into finished or paid work; returns the
    changes that do not."""
    changes = _for_rounds_to_come(config, run, _changes(config, run))
    if refused := changes.refused():
        remedy = "Undo the change, or use a new --run-dir"
        if set().union(*(stages for _, stages in refused)) <= _OF_LABELS:
            remedy = _relabel(run, "undo the change", trained=DECIDED in changes.begun)
            remedy = remedy[0].upper() + remedy[1:]
        lacks = f" ({run.config} lacks keys: where it is damaged, {CONFIG_REMEDY})"
        raise RunError(
            f"the config differs from the one {run.root} was begun with: "
            + "; ".join(dict.fromkeys(difference for difference, _ in refused))
            + f". {remedy}"
            + ("" if changes.is_whole else lacks)
        )
    if changes.last_bits and changes.begun & {"sample", LABELLED, "answers"}:
        logger.warning(
            "%s: the rows that are still to come are right, and may not be bit for bit those of a "
            "run without the change: sums are made in another order",
            "; ".join(changes.last_bits),
        )
    return changes


def _for_rounds_to_come(config: RunConfig, run: RunDir, changes: _Changes) -> _Changes:
    """``changes`` without other labelers and another jury, where these are for rounds to come: a
    policy was trained on all labels that there are, every round that has some is over, and the
    config has another round.

    Raises ``RunError`` where a labeler of before has its name, and is another now.
    """
    labelled = [one for one in run.rounds() if one.votes.indices() or one.votes_kept.indices()]
    over = all(_is_over(config, folder) for folder in labelled)
    if not changes.refused() or not labelled or not over or config.rounds <= len(labelled):
        return changes
    raw = run.read_config()
    try:
        old = validate_config(raw, str(run.config))
    except ConfigError:
        return changes
    added = {f"engines.{name}." for name in config.engines.keys() - old.engines.keys()}
    later = {key for key in changes.keys if key.startswith(("label.", *added))}
    if not any(changes.keys[key][1] & changes.begun for key in later):
        return changes
    before = {one.name: one for one in old.label.labelers}
    for folder in labelled:
        before |= {one.name: one for one in with_labels_of(old, folder).label.labelers}
    for one in config.label.labelers:
        if one.name in before and _identity(one) != _identity(before[one.name]):
            raise RunError(
                f"label.labelers.{one.name}: rounds of {run.root} have votes under this name, "
                "given with other settings: give the labeler of the rounds to come another `name`"
            )
    keys = {key: change for key, change in changes.keys.items() if key not in later}
    return replace(changes, keys=keys, labels_before=old.label)


def _keep_labels_of_rounds(run: RunDir, before: LabelConfig, now: LabelConfig) -> None:
    """Write down that the rounds that have votes have them by ``before``, as far as that is not
    known."""
    labelled = [folder for folder in run.rounds() if folder.votes.indices()]
    for folder in labelled:
        keep_labels(before, folder)
    logger.warning(
        "%s: rounds 0 to %d keep their labels; %s label from round %d on, and compare the policies "
        "unless evaluate.judges do: win rates of rounds that others compared are not on one scale",
        run.root,
        len(labelled) - 1,
        ", ".join(one.name for one in now.labelers),
        len(labelled),
    )


def _is_over(config: RunConfig, folder: RoundDir) -> bool:
    """Whether nothing is left to do in a round."""
    if config.train is None or not folder.policy.exists():
        return False
    return not config.evaluate.enabled or folder.metrics.exists(EVALUATION)


def _identity(labeler: LabelerConfig) -> dict[str, Any]:
    """The settings of a labeler that say who it is."""
    return {key: value for key, value in fingerprint(labeler).items() if key != "weight"}


def require_adoptable(config: RunConfig, run: RunDir) -> None:
    """Raise ``RunError`` where the labels of a run cannot be changed to those of ``config``: as a
    policy was trained on them, or as ``config`` would change more than labels."""
    changes = _changes(config, run)
    if DECIDED in changes.begun:
        raise RunError(
            f"a policy of {run.root} was trained on the labels as they are, and the rounds after "
            "it would be others: leave out --adopt for a dataset of its own beside, or use a new "
            "--run-dir"
        )
    more = [words for words, stages in changes.refused() if not stages <= _OF_LABELS]
    if more:
        raise RunError(f"more than labels would change: {'; '.join(more)}: undo that")


def _changes(config: RunConfig, run: RunDir) -> _Changes:
    raw = run.read_config()
    config = as_begun(config, run)
    try:  # keys that an older version did not write out have their defaults
        old = flatten(validate_config(raw, str(run.config)).model_dump(mode="json"))
    except ConfigError:
        old = flatten(raw)
    written = flatten(raw)
    new = flatten(config.model_dump(mode="json"))
    keys: dict[str, tuple[str, set[str]]] = {}
    last_bits: list[str] = []
    # Whether a round samples before it trains decides how its prompts are cut into blocks.
    moved = _samples_in_training(old) != _samples_in_training(new)
    for key in sorted(old.keys() | new.keys()):
        before, after = (None if each.get(key) == {} else each.get(key) for each in (old, new))
        if before == after:
            continue
        if _shares_threads_out(key, config):
            last_bits.append(_difference(key, old, new))
            continue
        if _last_name(key) in _HARMLESS or _HOW_ASKED.fullmatch(key):
            continue
        if key.startswith("engines.") and _last_name(key) in _SPEED | _LAST_BITS:
            if _last_name(key) in _LAST_BITS:
                last_bits.append(_difference(key, old, new))
            continue
        if after is None and before == _WRITTEN_OUT.get(_last_names(key)):
            continue
        if _last_names(key) == _LAST_TURN and key not in written:
            continue
        if key.startswith("executor."):  # who works on a block does not reach into it
            continue
        if key.startswith("train.cluster.") and key != "train.cluster.workers":
            continue
        if key == "label.people":  # for the next pull of their votes
            continue
        if _mends_votes(key, config, run):
            continue
        if key == "rounds" and int(after or 0) >= len(run.rounds()):
            continue
        stages = _stages_of(key, config)
        if stages & {"sample"} and key not in _SAMPLE_ONLY and not key.startswith("sample.pool"):
            stages |= {"answers"}
        if moved and key in ("train.method", "train.online"):
            stages |= {"sample"}
        keys[key] = (_difference(key, old, new), stages)
    on_policy = _samples_in_training(old) or _samples_in_training(new)
    is_whole = raw.keys() >= {
        name for name, field in RunConfig.model_fields.items() if LATER not in field.metadata
    }
    return _Changes(keys, _stages_begun(run, on_policy=on_policy), is_whole, tuple(last_bits))


def _shares_threads_out(key: str, config: RunConfig) -> bool:
    """Whether ``key`` decides how many threads each process of an engine has: sums in another order
    may differ in the last bit."""
    if not key.startswith("engines.") or _last_name(key) != "replicas":
        return False
    engine = config.engines.get(key.split(".")[1])
    if not isinstance(engine, TransformersEngine) or engine.threads is not None:
        return False
    return device_beside(engine) == CPU


def _difference(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What a key was and is, in words; a labeler that came or went is one difference."""
    parts = key.split(".")
    kind = ".".join([*parts[:3], "type"])
    if parts[:2] == ["label", "labelers"] and (kind in old) != (kind in new):
        return f"{'.'.join(parts[:3])}: {_show(old.get(kind))} -> {_show(new.get(kind))}"
    return f"{key}: {_show(old.get(key))} -> {_show(new.get(key))}"


def _on_policy(config: RunConfig) -> bool:
    return config.train is not None and config.train.on_policy


def _mends_votes(key: str, config: RunConfig, run: RunDir) -> bool:
    """Whether ``key`` is one that mends invalid votes, and votes wait to be mended: a labelling
    ended for them, and the valid ones were kept."""
    waits = any(folder.votes_kept.indices() for folder in run.rounds())
    if not waits and not run.keeps_match_votes() and not final_dir(run).keeps_match_votes():
        return False
    if key.startswith("engines."):
        return _stages_of(key, config) == {"label"}
    of_labelers = ("label.labelers.", "evaluate.judges.", "evaluate.final.judges.")
    return key.startswith(of_labelers) and _last_name(key) in MENDING


def _samples_in_training(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("train.online")) or settings.get("train.method") in ("grpo", "rloo")


def samplers(config: RunConfig) -> set[str]:
    """The engines, by name, that write answers."""
    found = {member.engine for member in config.sample.members()} | {config.sample.engine}
    if config.evaluate.opponent and config.evaluate.opponent.engine:
        found.add(config.evaluate.opponent.engine)
    return found


def _stages_of(key: str, config: RunConfig) -> set[str]:
    """The stages whose outcome a config key reaches into."""
    section, _, rest = key.partition(".")
    if section == "label" and (
        rest.startswith("jury.") or rest.rpartition(".")[2] in ("weight", "calibration", "decides")
    ):
        return {DECIDED}
    if key.startswith("evaluate.final.judges"):
        return {FINAL}
    if section == "engines" and rest.partition(".")[0] not in samplers(config):
        return {LABELLED}
    return {
        "prompts": {"prompts"},
        "block_size": {"prompts"},
        "sample": {"sample"},
        "policy": {"sample"},
        "engines": {"sample", LABELLED},
        "label": {LABELLED},
        "filter": {"filter"},
        "write": {"write"},
        "train": {"train"},
        "evaluate": {"evaluate"},
    }.get(section, {"prompts"})


def _stages_begun(run: RunDir, *, on_policy: bool) -> set[str]:
    """The stages that a changed key may not reach into any more.

    Half of a paid stage counts; deciding, filtering and writing do not, as they are made anew for
    nothing: they have begun once a policy was trained on what came of them.
    """
    begun = {"prompts"} if run.begun() else set()
    for folder in run.rounds():
        stages = {"sample": folder.candidates, LABELLED: folder.votes}
        begun |= {stage for stage, shards in stages.items() if shards.indices()}
        sampled_in_training = on_policy and "sample" in begun
        if folder.policy.exists() or folder.metrics.indices() or sampled_in_training:
            begun |= {"train"}
        if folder.trained() or sampled_in_training:
            begun |= {DECIDED, "filter", "write"}
    if run.evaluation.exists():
        begun |= {"evaluate", "answers"}
    if final_dir(run).evaluation.exists():
        begun |= {FINAL}
    return begun


def input_hashes(config: RunConfig) -> dict[str, str]:
    """SHA-256 of the files that prompts come from and of those of labelers; hub datasets are not
    files of ours."""
    sources = [*config.prompts.train_sources.values(), config.prompts.heldout]
    sources += [overlap.source for overlap in config.prompts.exclude_overlap]
    found = {source.path: _named(source) for source in sources if isinstance(source, PromptSource)}
    if config.sample.given:
        answers = config.sample.given.source
        found[answers.path] = parquet_files(answers) or _named(answers)
    hashes = {name: digest(paths) for name, paths in found.items() if paths}
    return hashes | labeler_hashes(config)


def labeler_hashes(config: RunConfig) -> dict[str, str]:
    """SHA-256 of the judges' folders, of the files of verifiers' functions and of calibrations, by
    their names among the inputs."""
    hashes = {}
    for labeler in config.all_labelers:
        if isinstance(labeler, JudgeLabeler):
            hashes[JUDGE.format(labeler.judge)] = judge_revision(labeler.judge)
            hashes[JUDGE_QUESTION.format(labeler.judge)] = question_revision(labeler.judge)
        elif isinstance(labeler, VerifierLabeler) and labeler.function:
            code = function_code(labeler.function)
            hashes |= {CODE.format(labeler.name): code} if code else {}
    for name, path in config.label.calibrations.items():
        read_calibrator(path)  # now rather than after the votes are paid for
        hashes[CALIBRATION.format(name)] = digest([path.expanduser()])
    return hashes


def _named(source: PromptSource) -> list[Path]:
    path = Path(resolve_embedded(source.path)).expanduser()
    return [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207


def function_code(function: str) -> str:
    """SHA-256 of the files that decide what ``module:function`` says, none of which is run; empty
    where there is no such function's file. See
    ``prefloop.labelers.scorers.function_files.function_files``."""
    files = function_files(function)
    return digest(files) if files else ""


def digest(paths: Sequence[Path]) -> str:
    """SHA-256 of the names and contents of files, folders with all that is in them."""
    found = hashlib.sha256()
    for file in sorted({p for path in paths for p in (path, *path.rglob("*")) if p.is_file()}):
        found.update(file.name.encode())
        with file.open("rb") as handle:
            found.update(hashlib.file_digest(handle, "sha256").digest())
    return found.hexdigest()


def _last_name(key: str) -> str:
    """The last part of a key that is no index of a list, and none of what others name."""
    parts = key.split(".")
    last = next((at + 1 for at, part in enumerate(parts) if part in _WHOLES), len(parts))
    return next((part for part in reversed(parts[:last]) if not part.isdigit()), key)


def _last_names(key: str) -> str:
    return ".".join(key.split(".")[-2:])


def _show(value: Any) -> str:
    return "(not set)" if value is None else json.dumps(value, ensure_ascii=False)
