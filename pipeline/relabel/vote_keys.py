"""What a labeler's votes depend on, so that votes are used again for the same labeler alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefloop.data.hashing import json_hash
from prefloop.data.strict import fingerprint
from prefloop.labelers.config import (
    JudgeLabeler,
    LabelerConfig,
    OwnModelLabeler,
    VerifierLabeler,
)
from prefloop.pipeline.config import POLICY, RunConfig, load_config
from prefloop.pipeline.run.answer_key import of_engines, of_labelers, of_settings
from prefloop.pipeline.run.manifest import CODE, JUDGE, JUDGE_QUESTION, read_manifest
from prefloop.pipeline.run.round_jury import has_own_labels, with_labels_of
from prefloop.pipeline.run.run_dir import RunDir

_DECIDES = {"weight", "calibration", "decides"}
"""Keys of a labeler that change what its votes add up to, and not the votes."""
_NOT_SHOWN = {"labelers", "jury", "people", "max_invalid"}
"""Keys of ``label`` that change nothing of what labelers are shown."""

VoteKeys = dict[str, str | None]
"""A hash for each labeler by name; null where it is not known what made its votes."""


def keys_in(run: RunDir) -> VoteKeys:
    """What the votes of a run, or of a relabelling, are made with, by config and manifest.

    Raises ``ConfigError`` or ``StorageError``.
    """
    return vote_keys(load_config(run.config), *recorded(run))


def keys_by_round(run: RunDir) -> dict[int, VoteKeys]:
    """The same of the votes in each round, which may have been labelled by others."""
    config, (inputs, models) = load_config(run.config), recorded(run)
    now = vote_keys(config, inputs, models)
    return {
        folder.index: vote_keys(with_labels_of(config, folder), inputs, models)
        if has_own_labels(folder)
        else now
        for folder in run.rounds()
    }


def recorded(run: RunDir) -> tuple[dict[str, str], dict[str, str]]:
    """The inputs and models in a run's manifest; none where it is missing."""
    try:
        manifest = read_manifest(run)
    except FileNotFoundError:
        return {}, {}
    return manifest["inputs"], manifest["models"]


def vote_keys(config: RunConfig, inputs: Mapping[str, str], models: Mapping[str, str]) -> VoteKeys:
    """The keys of the labelers of ``config``, whose files and models are ``inputs`` and ``models``
    as a manifest has them."""
    engines = of_engines(config)
    return {
        labeler.name: _key(labeler, config, engines, inputs, models)
        for labeler in config.label.labelers
    }


def files_of(labelers: tuple[LabelerConfig, ...]) -> dict[str, str]:
    """Hashes of the files behind the labelers' votes, as they are now, by their names among the
    inputs. Raises ``LabelerError`` for a judge that cannot be read."""
    found = {}
    hashes = of_labelers(labelers, calibrated=False)
    for labeler in labelers:
        mine = hashes[labeler.name]
        if isinstance(labeler, JudgeLabeler):
            found[JUDGE.format(labeler.judge)] = mine["judge"]
            found[JUDGE_QUESTION.format(labeler.judge)] = mine["question"]
        elif "code" in mine:
            found[CODE.format(labeler.name)] = mine["code"]
    return found


def _key(
    labeler: LabelerConfig,
    config: RunConfig,
    engines: Mapping[str, Any],
    inputs: Mapping[str, str],
    models: Mapping[str, str],
) -> str | None:
    settings = of_settings(fingerprint(labeler))
    # Without defaults: a key that a later version adds changes nothing of what was asked.
    shown = config.label.model_dump(mode="json", exclude=_NOT_SHOWN, exclude_defaults=True)
    about: dict[str, Any] = {
        "type": labeler.type,
        "name": labeler.name,
        "settings": {
            key: settings[key]
            for key in settings
            # In the keys of given labels it always was, and they cost nothing.
            if key not in _DECIDES or (key == "decides" and labeler.type == "given")
        },
        "seed": config.seed,
        "shown": shown,
        "system_prompt": config.sample.system_prompt,
    }
    wanted: list[str | None] = []
    if isinstance(labeler, JudgeLabeler):
        about["engine"] = engines[labeler.engine]
        if labeler.writer is not None:
            about["writer"] = engines[labeler.writer.engine]
        wanted += [inputs.get(JUDGE.format(labeler.judge))]
        wanted += [inputs.get(JUDGE_QUESTION.format(labeler.judge))]
    elif isinstance(labeler, VerifierLabeler) and labeler.function:
        wanted.append(inputs.get(CODE.format(labeler.name)) or None)
    if isinstance(labeler, JudgeLabeler | OwnModelLabeler):
        # The round's policy, where the policy is the judge: the same for all that label the round.
        wanted += [POLICY if model == POLICY else models.get(model) for model in labeler.models]
    if None in wanted:
        return None
    return json_hash(about | {"files": wanted})
