"""Training of reward models: the loss, what is trained on, what is saved, and using it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from prefloop.data.embedded import resolve_embedded
from prefloop.data.errors import InputError
from prefloop.data.hashing import folder_revision
from prefloop.data.schemas import MESSAGES
from prefloop.labelers.scorers.sequence_scores import SequenceScorer, conversation_tokens
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import ConfigError
from prefloop.pipeline.policies.train_alone import (
    TrainOptions,
    find_sources,
    load_settings,
    train_model,
)
from prefloop.pipeline.policies.train_text import render_training
from prefloop.training.config import Lora, RewardConfig, TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.method_names import Method
from prefloop.training.methods.reward import (
    RewardJob,
    RewardResult,
    heldout_accuracy,
    train_reward,
)
from prefloop.training.policy.heldout import implicit_margins
from tests.helpers.dpo_data import rows, triple, write
from tests.helpers.engine_models import make_adapter, make_model
from tests.helpers.reward_models import make_bert_reward, make_llama_reward
from tests.helpers.runs import VERIFIER, dataset_rows, run_small, small_config

PREFLOOP = Path(sys.executable).parent / "prefloop"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model without a head."""
    return Path(make_model(tmp_path_factory.mktemp("base"), layers=1))


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model to go on training."""
    folder = tmp_path_factory.mktemp("scorer")
    return Path(make_llama_reward(folder, num_hidden_layers=1))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("triples") / "part-0.parquet", rows(24))


def train(
    base: Path, shards: Path | list[Path], out: Path, *, seed: int = 1, on_step: Any = None,
    **settings: Any,
) -> RewardResult:  # fmt: skip
    config = RewardConfig(**{"learning_rate": 1e-3, "batch_size": 4, **settings})
    files = tuple(shards) if isinstance(shards, list) else (shards,)
    return train_reward(RewardJob(base, files, out / "rm", config, seed), on_step=on_step)


def weights(folder: Path) -> bytes:
    [file] = folder.glob("*.safetensors")
    return file.read_bytes()


def scores_of(folder: Path, triples: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Scores of the chosen and of the rejected answers by the labeler's own scorer."""
    model = SequenceScorer(str(folder))
    sides = [
        [model.encode(row["prompt"], row[side][0]["content"]) for row in triples]
        for side in ("chosen", "rejected")
    ]
    return model.score(sides[0]), model.score(sides[1])


# The loss


def test_the_loss_is_bradley_terrys(scorer: Path, tmp_path: Path) -> None:
    triples = rows(4)
    chosen, rejected = scores_of(scorer, triples)
    gap = chosen - rejected
    assert np.ptp(gap) > 0.01
    first = train(scorer, write(tmp_path / "t.parquet", triples), tmp_path).history[0]
    # -log sigma(g) = log(1 + e^-g)
    assert first["loss"] == pytest.approx(np.log1p(np.exp(-gap)).mean(), abs=1e-4)
    assert first["margin"] == pytest.approx(gap.mean(), abs=1e-4)
    assert first["accuracy"] == pytest.approx((gap > 0).mean())
    assert first["mean_reward"] == pytest.approx((chosen + rejected).mean() / 2, abs=1e-4)


def test_centering_and_margins_are_in_the_loss(scorer: Path, tmp_path: Path) -> None:
    triples = [row | {"margin": 0.5 * index} for index, row in enumerate(rows(4))]
    chosen, rejected = scores_of(scorer, triples)
    gap = chosen - rejected - np.array([0, 0.5, 1, 1.5])
    expected = np.log1p(np.exp(-gap)).mean() + 0.1 * ((chosen + rejected) ** 2).mean()
    shard = write(tmp_path / "t.parquet", triples)
    settings = {"use_margin": True, "center_rewards_coefficient": 0.1}
    first = train(scorer, shard, tmp_path, **settings).history[0]
    assert first["loss"] == pytest.approx(expected, abs=1e-4)


def test_a_zero_head_has_loss_log_2(shard: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = make_llama_reward(tmp_path / "base", num_hidden_layers=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.nn.init.zeros_(model.score.weight)
    model.save_pretrained(folder)
    first = train(Path(folder), shard, tmp_path).history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (first["margin"], first["accuracy"]) == (0, 0)


# What is trained on


def test_the_ids_are_those_that_are_scored_later(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefloop.training.trainers.reward_trainer import PretokenizedRewardTrainer

    seen: set[tuple[int, ...]] = set()
    loss = PretokenizedRewardTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        for ids, real in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            seen.add(tuple(ids[: real.sum()].tolist()))
        return loss(self, model, inputs, *rest, **more)

    monkeypatch.setattr(PretokenizedRewardTrainer, "compute_loss", spy)
    triples = [*rows(6), triple(90, "It is <|end|> and <s>!", "no", "Say <s><|end|>\n<|user|>")]
    result = train(base, write(tmp_path / "t.parquet", triples), tmp_path)
    labeler = SequenceScorer(str(result.model_path))
    assert seen == {
        tuple(labeler.encode(row["prompt"], row[side][0]["content"]))
        for row in triples
        for side in ("chosen", "rejected")
    }


def test_rows_that_cannot_be_used_are_counted_by_reason(base: Path, tmp_path: Path) -> None:
    long = "fox " * 120
    triples = [
        *rows(5),
        triple(11, long, "short"),
        triple(12, "short", long),
        triple(13, "same", "same"),
        triple(14, "a", "b") | {"chosen": [{"role": "user", "content": "a"}]},
        triple(15, "a", "b") | {"rejected": []},
        triple(16, "a", "b") | {"prompt": []},
        triple(17, "a", "b") | {"prompt": [{"role": "user", "content": None}]},
    ]
    result = train(base, write(tmp_path / "t.parquet", triples), tmp_path, max_length=100)
    assert result.examples == 5
    assert result.dropped == {"context_overflow": 2, "same_answer": 1, "unreadable": 4}
    assert result.settings["max_length"] == 100


def test_text_that_is_no_utf8_drops_its_row_only(base: Path, tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "t.parquet", rows(3))).select(
        ["prompt", "chosen", "rejected"]
    )
    content = pa.array([b"good", b"\xff\xfe", b"fine"]).view(pa.string())
    turns = pa.StructArray.from_arrays(
        [pa.array(["assistant"] * 3), content], fields=list(MESSAGES.value_type)
    )
    chosen = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), turns)
    file = tmp_path / "bad.parquet"
    pq.write_table(table.set_column(1, "chosen", chosen), file)
    result = train(base, file, tmp_path)
    assert (result.examples, result.dropped) == (2, {"unreadable": 1})


@pytest.mark.parametrize(
    ("triples", "message"),
    [
        ([], "the files are empty"),
        ([triple(1, "same", "same")], "1 same_answer"),
        ([triple(1, "fox " * 500, "b")], "1 context_overflow"),
    ],
)
def test_nothing_to_train_on_is_one_line(
    base: Path, tmp_path: Path, triples: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(TrainingError, match=f"no triples to train on.*{message}") as caught:
        train(base, write(tmp_path / "t.parquet", triples), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "rm").exists()


def test_files_that_are_no_triples(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "chosen": ["b"]}), file)
    with pytest.raises(TrainingError, match="has no column 'rejected'"):
        train(base, file, tmp_path)
    file.write_text("not parquet")
    with pytest.raises(TrainingError, match="cannot be read as Parquet"):
        train(base, file, tmp_path)
    with pytest.raises(TrainingError, match=r"nowhere\.parquet: cannot be read"):
        train(base, tmp_path / "nowhere.parquet", tmp_path)


def test_a_seeded_share_of_the_pairs(base: Path, shard: Path, tmp_path: Path) -> None:
    first = train(base, shard, tmp_path / "a", max_pairs=8)
    again = train(base, shard, tmp_path / "b", max_pairs=8)
    other = train(base, shard, tmp_path / "c", max_pairs=8, seed=2)
    assert (first.examples, first.steps) == (8, 2)
    assert weights(first.model_path) == weights(again.model_path)
    assert weights(first.model_path) != weights(other.model_path)


# What comes out


def test_training_learns_the_preference(shard: Path, tmp_path: Path) -> None:
    result = train(Path(resolve_embedded("embedded:policy")), shard, tmp_path, epochs=3)
    assert result.steps == 18
    assert {"loss", "accuracy", "margin", "mean_reward", "grad_norm"} <= set(result.history[0])
    held = write(tmp_path / "held.parquet", rows(60, seed=9)[24:])
    found = heldout_accuracy(result.model_path, [held])
    assert found.accuracy is not None
    assert found.accuracy.n == 36
    assert found.accuracy.value > 0.9  # chosen answers end with an exclamation mark


@pytest.mark.parametrize("lora", [None, Lora(r=4, alpha=8)])
def test_the_model_is_a_plain_checkpoint(
    base: Path, shard: Path, tmp_path: Path, lora: Lora | None
) -> None:
    from transformers import AutoModelForSequenceClassification

    result = train(base, shard, tmp_path, lora=lora, max_pairs=8)
    folder = result.model_path
    _, loading = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not (folder / "adapter_config.json").exists()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (base / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"rm"}  # no checkpoints, no remains
    assert not [path for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth"}]


def test_lora_trains_the_adapter_and_the_head(base: Path, shard: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    lora = {"lora": Lora(r=4, alpha=8), "max_pairs": 8}
    one = train(base, shard, tmp_path / "a", **lora, learning_rate=1e-2)
    other = train(base, shard, tmp_path / "b", **lora, learning_rate=1e-9)
    trained, start = (load_file(x.model_path / "model.safetensors") for x in (one, other))
    changed = {name for name in start if (trained[name] - start[name]).abs().max() > 1e-4}
    assert "score.weight" in changed
    assert any("self_attn" in name for name in changed)
    assert not any("embed" in name or "norm" in name for name in changed)


def test_an_encoder_can_be_the_base(shard: Path, tmp_path: Path) -> None:
    folder = Path(make_bert_reward(tmp_path / "bert"))
    result = train(folder, shard, tmp_path, max_pairs=8)
    assert SequenceScorer(str(result.model_path)).max_length == 200


def test_the_head_is_drawn_by_the_seed(base: Path, shard: Path, tmp_path: Path) -> None:
    one = train(base, shard, tmp_path / "a")
    two = train(base, shard, tmp_path / "b")
    three = train(base, shard, tmp_path / "c", seed=2)
    assert weights(one.model_path) == weights(two.model_path)
    assert folder_revision(one.model_path) == folder_revision(two.model_path)
    assert one.history == two.history
    assert one.history[0]["loss"] != three.history[0]["loss"]


def test_a_finished_training_is_not_done_again(base: Path, shard: Path, tmp_path: Path) -> None:
    steps: list[dict[str, float]] = []
    first = train(base, shard, tmp_path, on_step=steps.append)
    assert steps == first.history
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert {step["total_steps"] for step in steps} == {6}
    steps.clear()
    assert train(base, shard, tmp_path, on_step=steps.append) == first
    assert steps == []
    with pytest.raises(TrainingError, match="not made from these data and settings"):
        train(base, shard, tmp_path, epochs=2)
    json.dumps(first.settings)


class KilledError(Exception):
    """Stands for kill -9 between two steps."""


@pytest.mark.parametrize("lora", [None, Lora(r=4, alpha=8, dropout=0.1)])
def test_a_resumed_training_ends_as_an_uninterrupted_one(
    base: Path, shard: Path, tmp_path: Path, lora: Lora | None
) -> None:
    def kill(record: dict[str, float]) -> None:
        if record["step"] == 8:
            raise KilledError

    settings: dict[str, Any] = {"epochs": 2, "save_steps": 3, "lora": lora}
    whole = train(base, shard, tmp_path / "whole", **settings)
    with pytest.raises(KilledError):
        train(base, shard, tmp_path / "cut", on_step=kill, **settings)
    assert not (tmp_path / "cut" / "rm").exists()
    steps: list[dict[str, float]] = []
    resumed = train(base, shard, tmp_path / "cut", on_step=steps.append, **settings)
    assert [step["step"] for step in steps] == list(range(7, 13))  # from checkpoint 6
    assert weights(resumed.model_path) == weights(whole.model_path)
    assert resumed.history == whole.history
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["rm"]


def test_nothing_is_printed_and_nothing_is_fetched(
    base: Path, shard: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*args: Any) -> None:
        raise AssertionError(f"connects to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    result = train(base, shard, tmp_path, save_steps=2)
    SequenceScorer(str(result.model_path))
    assert capfd.readouterr() == ("", "")


def test_bases_that_cannot_be_trained(base: Path, shard: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", str(base))
    with pytest.raises(TrainingError, match="is a LoRA adapter: give its base"):
        train(Path(adapter), shard, tmp_path)
    with pytest.raises(TrainingError, match="no model in"):
        train(tmp_path / "nowhere", shard, tmp_path)
    two = make_llama_reward(tmp_path / "two", labels=2)
    with pytest.raises(TrainingError, match="cannot be loaded with a head of one output") as caught:
        train(Path(two), shard, tmp_path)
    assert "\n" not in str(caught.value)


# Held-out accuracy


def test_heldout_accuracy_by_hand(scorer: Path, tmp_path: Path) -> None:
    triples = rows(12)
    chosen, rejected = scores_of(scorer, triples)
    right = int((chosen > rejected).sum())
    assert 0 < right < 12
    file = write(tmp_path / "t.parquet", triples)
    found = heldout_accuracy(scorer, [file]).accuracy
    assert found is not None
    p, z = right / 12, 1.959964
    # Wilson: (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n)
    centre, half = p + z * z / 24, z * math.sqrt(p * (1 - p) / 12 + z * z / (4 * 144))
    assert (found.value, found.n) == (pytest.approx(p), 12)
    assert found.low == pytest.approx((centre - half) / (1 + z * z / 12), abs=0.01)
    assert found.high == pytest.approx((centre + half) / (1 + z * z / 12), abs=0.01)


def test_pairs_on_trained_prompts_do_not_count(scorer: Path, tmp_path: Path) -> None:
    trained = write(tmp_path / "train.parquet", rows(8))
    held = write(tmp_path / "test.parquet", [*rows(12, seed=5), triple(99, "same", "same")])
    found = heldout_accuracy(scorer, [held], trained_on=[trained])
    assert found.accuracy is not None
    assert found.accuracy.n == 4
    assert found.dropped == {"same_answer": 1, "trained_prompt": 8}
    assert heldout_accuracy(scorer, [trained], trained_on=[trained]).accuracy is None


# The command


def plain_triples(path: Path, count: int, seed: int = 0) -> Path:
    """A Parquet file of somebody else's making: three columns and no ids."""
    columns = ["prompt", "chosen", "rejected"]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows(count, seed)).select(columns), path)
    return path


def test_sources_are_runs_datasets_and_files(tmp_path: Path) -> None:
    run_train = plain_triples(tmp_path / "run/dataset/data/train-round-000-00000.parquet", 2)
    run_test = plain_triples(tmp_path / "run/dataset/data/test-round-000-00000.parquet", 2)
    file = plain_triples(tmp_path / "mine.parquet", 2)
    run, dataset = tmp_path / "run", tmp_path / "run/dataset"
    assert find_sources([run]) == find_sources([dataset])
    found = find_sources([run, file, dataset])
    assert (found.train, found.test) == ((run_train, file), (run_test,))
    assert find_sources([run], [file]).test == (file,)  # what is named wins
    assert find_sources([file], [run]).test == (run_test,)
    with pytest.raises(InputError, match="no such file or folder"):
        find_sources([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="holds no train triples"):
        find_sources([tmp_path])


def test_settings_come_from_yaml_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("learning_rate: 1.0e-4\nepochs: 2\n")
    settings = load_settings(RewardConfig, file, ["epochs=3", "lora.r=4"])
    assert (settings.learning_rate, settings.epochs) == (1e-4, 3)
    assert settings.lora == Lora(r=4)
    assert load_settings(TrainConfig, None) == TrainConfig()
    for text, message in [
        ("learningrate: 1", "did you mean 'learning_rate'"),
        ("epochs: 0", "epochs: Input should be greater than 0"),
        ("- 1", "must be a mapping"),
        ("a: [", "not valid YAML"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=message) as caught:
            load_settings(RewardConfig, file)
        assert str(caught.value).startswith(str(file))
        assert "\n" not in str(caught.value)


def test_dpo_on_the_same_sources(base: Path, tmp_path: Path) -> None:
    sources = find_sources([plain_triples(tmp_path / "mine.parquet", 8)])
    with pytest.raises(InputError, match="--reference is for --method dpo"):
        train_model(
            sources, TrainOptions(Method.reward, str(base), out=tmp_path / "x", reference="y")
        )
    options = TrainOptions(
        Method.dpo,
        str(base),
        out=tmp_path / "policy",
        overrides=["learning_rate=1e-4", "batch_size=4"],
    )
    trained = train_model(sources, options)
    assert (trained.steps, trained.examples, trained.heldout) == (2, 8, None)
    assert render_training(trained).splitlines()[0] == f"policy        {tmp_path / 'policy'}"
    assert weights(tmp_path / "policy") != weights(base)
    assert "not measured: no held-out pairs" in render_training(trained).splitlines()[2]

    held = plain_triples(tmp_path / "held.parquet", 12, seed=3)
    measured = train_model(
        find_sources([tmp_path / "mine.parquet"], [held]),
        replace(options, out=tmp_path / "measured"),
    )
    assert measured.heldout is not None
    assert measured.heldout.n == 4
    said = render_training(measured).splitlines()
    assert "of 4 held-out pairs (dropped: 8 trained_prompt)" in said[2]
    triples = pq.read_table(held).slice(8)
    margins = implicit_margins(tmp_path / "measured", base, triples, beta=0.1)
    assert measured.heldout.value == np.mean(margins > 0)


def test_a_policy_that_was_trained_under_other_defaults_is_not_trained_again(
    base: Path, tmp_path: Path
) -> None:
    """What the settings leave out is as it was when the folder was made."""
    sources = find_sources([plain_triples(tmp_path / "mine.parquet", 8)])
    said = ["lora.r=4", "learning_rate=5e-7", "gradient_accumulation=1"]
    options = TrainOptions(Method.dpo, str(base), out=tmp_path / "policy", overrides=said)
    before = train_model(sources, options)
    again = train_model(sources, replace(options, overrides=["lora.r=4"]))
    assert (again.steps, again.seconds) == (before.steps, before.seconds)
    with pytest.raises(TrainingError, match="was not made from these data and settings"):
        train_model(sources, replace(options, overrides=["lora.r=4", "learning_rate=5e-6"]))


def prefloop(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PREFLOOP), *arguments],
        capture_output=True, text=True, check=False, env=dict(os.environ), timeout=300,
    )  # fmt: skip


def test_the_command_says_where_how_good_and_how_to_use(base: Path, tmp_path: Path) -> None:
    file = str(plain_triples(tmp_path / "train.parquet", 8))
    # Rows are numbered, and prompts with them: only rows 8 to 11 are new.
    held = str(plain_triples(tmp_path / "held.parquet", 12, seed=3))
    out = str(tmp_path / "models" / "rm")
    command = [
        "train", file, "--method", "reward", "--base", str(base), "--out", out, "--test", held,
        "--set", "batch_size=4",
    ]  # fmt: skip
    done = prefloop(*command)
    assert done.returncode == 0, done.stderr
    assert f"reward model  {out}" in done.stdout
    assert "2 steps on 8 pairs" in done.stdout
    assert "of 4 held-out pairs (dropped: 8 trained_prompt)" in done.stdout
    assert f'{{type: reward_model, name: reward_model, model: "{out}"}}' in done.stdout
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert found["method"] == "reward"
    assert found["heldout"]["n"] == 4


def test_a_mistake_in_the_command_is_one_line(tmp_path: Path) -> None:
    options = ["--method", "reward", "--base", "embedded:policy", "--out", str(tmp_path / "rm")]
    for arguments, message in [
        (["train", str(tmp_path / "nowhere"), *options], "no such file or folder"),
        (["train", __file__, *options, "--set", "lr=1"], "lr: unknown key"),
        (["train", __file__, *options, "--config", "no.yaml"], "no.yaml: cannot be read"),
    ]:
        done = prefloop(*arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


# From a run to a reward model to a run


def test_a_reward_model_labels_filters_and_ranks_the_next_run(tmp_path: Path) -> None:
    config = small_config(label={"labelers": [VERIFIER]})
    first = run_small(tmp_path / "first", config)
    trained = train_model(
        find_sources([first.root]),
        TrainOptions(
            Method.reward,
            base="embedded:policy",
            out=tmp_path / "rm",
            overrides=["learning_rate=3e-4", "batch_size=4"],
        ),
    )
    assert trained.examples == sum(
        len(found) for name, found in dataset_rows(first).items() if name.startswith("train")
    )
    labeler = {"type": "reward_model", "name": "rm", "model": str(trained.model)}
    strict = [{"type": "margin", "min": 0.001}]
    jury = {"tie_band": 0}
    both = {"labelers": [labeler, VERIFIER], "jury": jury}
    second = run_small(tmp_path / "second", small_config(label=both, filter={"filters": strict}))
    of_rm = [x for x in second.round(0).votes.table().to_pylist() if x["labeler"] == "rm"]
    assert of_rm
    for vote in of_rm:
        assert vote["p_a"] == pytest.approx(1 / (1 + math.exp(vote["score_b"] - vote["score_a"])))
    candidates = second.round(0).candidates.table()
    assert {x[key] for x in of_rm for key in ("a_id", "b_id")} <= set(
        candidates["candidate_id"].to_pylist()
    )
    assert all("rm" in row["labelers"] for row in second.round(0).decisions.table().to_pylist())
    assert sum(map(len, dataset_rows(second).values())) > 0
    manifest = json.loads(second.manifest.read_text())
    assert folder_revision(trained.model) in json.dumps(manifest)

    # Alone, with a floor for its absolute score: what is kept lies above it, and best_vs_worst
    # takes the two ends of each prompt's ranking.
    scores = {x["a_id"]: x["score_a"] for x in of_rm} | {x["b_id"]: x["score_b"] for x in of_rm}
    floor = float(np.median(list(scores.values())))
    filters = [{"type": "min_quality", "min": floor}, *strict]
    alone = small_config(
        label={"labelers": [labeler], "jury": jury},
        filter={"filters": filters, "strategy": {"type": "best_vs_worst"}},
    )
    third = run_small(tmp_path / "third", alone)
    decisions = third.round(0).decisions.table().to_pylist()
    kept = [row for row in decisions if row["kept"]]
    low = [row for row in decisions if row["reason"] == "min_quality"]
    assert kept
    assert low
    assert min(scores[row["chosen_id"]] for row in kept) >= floor
    assert max(scores[row["chosen_id"]] for row in low) < floor
    of_prompt: dict[str, list[float]] = {}
    for row in candidates.to_pylist():
        if row["candidate_id"] in scores:
            of_prompt.setdefault(row["prompt_id"], []).append(scores[row["candidate_id"]])
    for row in kept:
        ranked = of_prompt[row["prompt_id"]]
        assert scores[row["chosen_id"]] == pytest.approx(max(ranked))
        assert scores[row["rejected_id"]] == pytest.approx(min(ranked))


def test_what_is_encoded_is_the_conversation_itself(base: Path) -> None:
    from prefloop.training.policy.checkpoints import load_tokenizer

    tokenizer = load_tokenizer(base)
    ids = conversation_tokens(tokenizer, [{"role": "user", "content": "a fox"}], "no!")
    assert tokenizer.decode(ids) == "<s><|user|>\na fox<|end|>\n<|assistant|>\nno!<|end|>\n"
