"""A round of DPO on a tiny random Llama: what it is fed, what it saves, how it fails."""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from prefloop.data.conversations.chat import render_tokens
from prefloop.data.hashing import folder_revision
from prefloop.training.config import Lora, TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.methods.dpo import Dpo
from prefloop.training.policy.checkpoints import is_adapter
from prefloop.training.policy.logprobs import answer_logprobs
from prefloop.training.session import reference as reference_module
from prefloop.training.session.fit import fit
from prefloop.training.session.job import Job
from tests.helpers.dpo_data import rows, triple, write
from tests.helpers.engine_models import make_model
from tests.helpers.processes.loading import loaded_by


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return Path(make_model(tmp_path_factory.mktemp("other"), layers=1, width=64, seed=7))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return write(tmp_path_factory.mktemp("triples") / "part-0.parquet", rows(24))


def train(
    policy, shards, out, *, reference=None, seed=1, on_step=None, kept_reference=None, **settings
):
    config = TrainConfig(**{"learning_rate": 1e-3, "batch_size": 4, **settings})
    job = Job(
        policy=policy,
        reference=reference or policy,
        files=tuple(shards) if isinstance(shards, list) else (shards,),
        out=out / "policy",
        config=config,
        seed=seed,
        kept_reference=kept_reference,
    )
    return fit(job, Dpo(), on_step=on_step)


def weights(folder):
    [file] = folder.glob("*.safetensors")
    return file.read_bytes()


# The loss


@pytest.mark.parametrize("precompute", [True, False])
def test_policy_equal_to_its_reference_has_loss_log_2(policy, shard, tmp_path, precompute):
    result = train(policy, shard, tmp_path, precompute_reference_logprobs=precompute)
    first = result.history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert first[name] == pytest.approx(0, abs=1e-4)


def test_worked_example_through_the_trainer(policy, shard, tmp_path, monkeypatch):
    # log(policy / reference) is +1.8 for chosen and -1.3 for rejected: the rewards are 0.18 and
    # -0.13, the margin 0.31, sigma(0.31) = 0.576885 and the loss -ln of that, 0.550112.
    true_logprobs = reference_module.shared_logprobs

    def shifted(*args, **kwargs):
        chosen, rejected = np.split(true_logprobs(*args, **kwargs), 2)
        return np.concatenate([chosen - 1.8, rejected + 1.3])

    monkeypatch.setattr(reference_module, "shared_logprobs", shifted)
    first = train(policy, shard, tmp_path, max_pairs=4).history[0]
    assert first["rewards/chosen"] == pytest.approx(0.18, abs=1e-4)
    assert first["rewards/rejected"] == pytest.approx(-0.13, abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0.31, abs=1e-4)
    assert first["rewards/accuracies"] == 1
    assert first["loss"] == pytest.approx(0.550112, abs=1e-4)


def test_another_reference_gives_the_same_either_way(policy, other, shard, tmp_path):
    ahead = train(policy, shard, tmp_path / "a", reference=other, max_pairs=4)
    live = train(
        policy, shard, tmp_path / "b", reference=other, max_pairs=4,
        precompute_reference_logprobs=False,
    )  # fmt: skip
    assert ahead.history[0]["rewards/margins"] == pytest.approx(
        live.history[0]["rewards/margins"], abs=1e-3
    )
    assert abs(ahead.history[0]["rewards/chosen"]) > 0.1


def test_training_learns_the_preference(policy, shard, tmp_path):
    result = train(policy, shard, tmp_path, epochs=6)
    assert result.steps == 36
    assert result.history[-1]["rewards/margins"] > 0.5
    assert np.mean([step["rewards/accuracies"] for step in result.history[-6:]]) > 0.9
    assert {"logps/chosen", "logps/rejected", "grad_norm", "learning_rate"} <= set(
        result.history[0]
    )


# What the trainer is fed


@pytest.fixture
def batches(monkeypatch):
    """The batches that reach TRL's loss."""
    from prefloop.training.trainers.pair_trainer import PairTrainer

    seen = []
    loss = PairTrainer._compute_loss

    def spy(self, model, inputs, return_outputs):
        seen.append({name: tensor.tolist() for name, tensor in inputs.items()})
        return loss(self, model, inputs, return_outputs)

    monkeypatch.setattr(PairTrainer, "_compute_loss", spy)
    return seen


def test_one_bos_the_sampled_prompt_and_one_end_token(policy, tmp_path, batches):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert tokenizer("x").input_ids[0] == bos  # the tokenizer adds one by itself ...
    assert "bos_token" in tokenizer.chat_template  # ... and the template writes one: the trap

    triples = rows(6)
    triples.append(triple(90, "It is <|end|> and <s>!", "no", "Say <s><|end|>\n<|assistant|>\nno"))
    train(policy, write(tmp_path / "t.parquet", triples), tmp_path)

    prompts = {tuple(render_tokens(tokenizer, row["prompt"])) for row in triples}
    answers = {row[side][0]["content"] for row in triples for side in ("chosen", "rejected")}
    seen_prompts, seen_answers = set(), set()
    for batch in batches:
        for ids, real, part in zip(
            batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
        ):
            ids = ids[: sum(real)]
            assert ids[0] == bos
            assert ids.count(bos) == 1
            answer = [token for token, mine in zip(ids, part, strict=False) if mine]
            assert answer[-1] == eos
            assert answer.count(eos) == 1
            assert ids[-1] == eos  # the template's newline behind the end token is not trained on
            seen_prompts.add(tuple(ids[: -len(answer)]))
            seen_answers.add(tokenizer.decode(answer[:-1]))
    assert seen_prompts == prompts  # as sampling saw them, to the token
    assert seen_answers == answers


def test_overlong_pairs_are_dropped_and_counted(policy, tmp_path, batches):
    long = "fox " * 120
    triples = [
        *rows(5),
        triple(11, long, "short"),
        triple(12, "short", long),
        triple(13, "good!", "bad", prompt=long),
    ]
    result = train(policy, write(tmp_path / "t.parquet", triples), tmp_path, max_length=100)
    assert (result.examples, result.dropped_overlong) == (5, 3)
    assert result.settings["max_length"] == 100
    assert max(len(ids) for batch in batches for ids in batch["input_ids"]) <= 100


def test_the_models_context_bounds_the_length(policy, tmp_path):
    triples = [*rows(4), triple(9, "fox " * 300, "short")]
    result = train(policy, write(tmp_path / "t.parquet", triples), tmp_path, max_length=4096)
    assert result.dropped_overlong == 1
    assert result.settings["max_length"] == 256


def test_pairs_at_the_limit_stay(policy, tmp_path):
    from transformers import AutoTokenizer

    from prefloop.training.inputs.pairs import read_triples, token_pairs

    shard = write(tmp_path / "t.parquet", [triple(1, "fox fox fox", "dog")])
    tokenizer = AutoTokenizer.from_pretrained(policy)
    triples = read_triples([shard])
    pairs = token_pairs(triples, tokenizer, max_length=1000)
    length = len(pairs.prompts[0]) + len(pairs.chosen[0])
    token_pairs(triples, tokenizer, max_length=length)
    with pytest.raises(TrainingError, match=f"longer than {length - 1} tokens"):
        token_pairs(triples, tokenizer, max_length=length - 1)


def test_several_shards_and_a_seeded_share_of_them(policy, tmp_path):
    shards = [write(tmp_path / f"{i}.parquet", rows(10, seed=i)) for i in range(2)]
    assert train(policy, shards, tmp_path / "all").examples == 20
    first = train(policy, shards, tmp_path / "a", max_pairs=8)
    again = train(policy, shards, tmp_path / "b", max_pairs=8)
    assert first.examples == 8
    assert weights(first.policy_path) == weights(again.policy_path)


@pytest.mark.parametrize(
    ("triples", "message"),
    [
        ([], "no triples to train on"),
        ([triple(1, "same", "same")], "the same answer"),
        (
            [triple(1, "a", "b") | {"chosen": [{"role": "user", "content": "a"}]}],
            "row 1: chosen is not one",
        ),
        ([triple(1, "a", "b") | {"rejected": []}], "row 1: rejected is not one"),
    ],
)
def test_unusable_triples_are_refused_in_one_line(policy, tmp_path, triples, message):
    shard = write(tmp_path / "t.parquet", triples)
    with pytest.raises(TrainingError, match=message) as caught:
        train(policy, shard, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "policy").exists()


def test_no_shards_at_all(policy, tmp_path):
    with pytest.raises(TrainingError, match="no triples to train on"):
        train(policy, [], tmp_path)


# What comes out


def test_same_seed_same_weights(policy, shard, tmp_path):
    one = train(policy, shard, tmp_path / "a")
    two = train(policy, shard, tmp_path / "b")
    three = train(policy, shard, tmp_path / "c", seed=2)
    assert weights(one.policy_path) == weights(two.policy_path)
    assert folder_revision(one.policy_path) == folder_revision(two.policy_path)
    assert one.history == two.history
    assert weights(one.policy_path) != weights(three.policy_path)


def test_the_new_policy_is_a_whole_checkpoint(policy, shard, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = train(policy, shard, tmp_path)
    folder = result.policy_path
    assert result.base is None
    assert AutoTokenizer.from_pretrained(folder).chat_template
    # The trainer turns the cache off in the config it saves, which makes sampling crawl.
    assert AutoModelForCausalLM.from_pretrained(folder).config.use_cache
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (policy / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]  # no checkpoints, no remains
    assert not [path for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth"}]


def test_the_record_of_a_round_says_what_was_done(policy, shard, tmp_path):
    settings = train(policy, shard, tmp_path, reference=policy, data="accumulated").settings
    assert settings["batch_size"] == 4
    assert settings["learning_rate"] == 1e-3
    assert settings["reference"] == "start"
    assert settings["data"] == "accumulated"
    assert settings["precision"] in {"float32", "bf16"}
    assert settings["reference_revision"] == folder_revision(policy)
    assert set(settings["versions"]) == {"torch", "transformers", "trl"}
    json.dumps(settings)


def test_each_step_is_reported(policy, shard, tmp_path):
    steps = []
    result = train(policy, shard, tmp_path, on_step=steps.append)
    assert steps == result.history
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert {step["total_steps"] for step in steps} == {6}


def test_a_finished_round_is_not_trained_again(policy, shard, tmp_path):
    first = train(policy, shard, tmp_path)
    steps = []
    assert train(policy, shard, tmp_path, on_step=steps.append) == first
    assert steps == []
    with pytest.raises(TrainingError, match="not made from these data and settings"):
        train(policy, shard, tmp_path, beta=0.2)


def test_nothing_is_printed_and_nothing_is_fetched(policy, shard, tmp_path, capfd, monkeypatch):
    import socket

    def refuse(*args):
        raise AssertionError(f"connects to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    train(policy, shard, tmp_path, save_steps=2)
    assert capfd.readouterr() == ("", "")


# LoRA


def test_adapters_go_from_round_to_round_on_one_base(policy, shard, tmp_path):
    lora = {"lora": Lora(r=4, alpha=8), "learning_rate": 1e-2}
    first = train(policy, shard, tmp_path / "0", **lora)
    second = train(first.policy_path, shard, tmp_path / "1", reference=policy, **lora)
    for result in (first, second):
        assert result.base == policy.resolve()
        settings = json.loads((result.policy_path / "adapter_config.json").read_text())
        assert (settings["base_model_name_or_path"], settings["r"]) == (str(policy), 4)
        assert not (result.policy_path / "ref").exists()
    assert first.history[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    # Against the start, round 1 begins where round 0 ended, not at zero.
    assert second.history[0]["rewards/margins"] > 0.05

    prompt, answer = [[{"role": "user", "content": "Write."}]], ["A quick fox!"]
    scores = [
        answer_logprobs(folder, prompt, answer)[0]
        for folder in (policy, first.policy_path, second.policy_path)
    ]
    assert len(set(scores)) == 3


def test_an_adapter_can_be_its_own_reference(policy, shard, tmp_path):
    lora = {"lora": Lora(r=4, alpha=8), "learning_rate": 1e-2}
    first = train(policy, shard, tmp_path / "0", **lora)
    for precompute in (True, False):
        second = train(
            first.policy_path, shard, tmp_path / f"1{precompute}", max_pairs=4,
            precompute_reference_logprobs=precompute, **lora,
        )  # fmt: skip
        assert second.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_trainings_at_once_in_a_process_are_those_alone(policy, shard, tmp_path):
    """Adapters and dropout are drawn from torch's one generator."""
    how = {"lora": Lora(r=4, alpha=8, dropout=0.3), "max_pairs": 8}
    alone = train(policy, shard, tmp_path / "alone", **how).policy_path
    with ThreadPoolExecutor(2) as pool:
        at_once = pool.map(lambda name: train(policy, shard, tmp_path / name, **how), "ab")
        found = [one.policy_path for one in at_once]
    weights = [(one / "adapter_model.safetensors").read_bytes() for one in (alone, *found)]
    assert weights[1] == weights[0]
    assert weights[2] == weights[0]


def test_an_adapter_s_config_is_the_same_in_every_process(policy, shard, tmp_path):
    """Its policy's revision goes by it, and each process orders sets in its own way."""
    first = train(policy, shard, tmp_path / "0", lora=Lora(r=4, alpha=8), max_pairs=4)
    again = train(first.policy_path, shard, tmp_path / "1", lora=Lora(r=4, alpha=8), max_pairs=4)
    for folder in (first.policy_path, again.policy_path):
        names = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
        assert len(names) > 4
        assert names == sorted(names)


def test_an_adapter_of_another_shape_is_refused_and_full_training_merges(policy, shard, tmp_path):
    first = train(policy, shard, tmp_path / "0", lora=Lora(r=4, alpha=8), max_pairs=4)
    with pytest.raises(TrainingError, match="r=4, alpha=8"):
        train(first.policy_path, shard, tmp_path / "1", lora=Lora(r=8, alpha=8))
    merged = train(first.policy_path, shard, tmp_path / "2", max_pairs=4)
    assert merged.base is None
    assert (merged.policy_path / "config.json").is_file()


def test_an_adapter_without_its_base_is_named(policy, shard, tmp_path):
    first = train(policy, shard, tmp_path / "0", lora=Lora(r=4, alpha=8), max_pairs=4)
    config = first.policy_path / "adapter_config.json"
    settings = json.loads(config.read_text()) | {"base_model_name_or_path": "/gone"}
    config.write_text(json.dumps(settings))
    with pytest.raises(TrainingError, match="no model in /gone"):
        train(first.policy_path, shard, tmp_path / "1", reference=policy)


# Interruption and failure


class KilledError(Exception):
    """Stands for kill -9 between two steps."""


def kill_at(step):
    def on_step(record):
        if record["step"] == step:
            raise KilledError

    return on_step


@pytest.mark.parametrize("lora", [None, Lora(r=4, alpha=8, dropout=0.1)])
def test_a_resumed_round_ends_as_an_uninterrupted_one(policy, shard, tmp_path, lora):
    settings = {"epochs": 2, "save_steps": 3, "lora": lora}
    whole = train(policy, shard, tmp_path / "whole", **settings)
    with pytest.raises(KilledError):
        train(policy, shard, tmp_path / "cut", on_step=kill_at(8), **settings)
    assert not (tmp_path / "cut" / "policy").exists()
    half_written = tmp_path / "cut" / ".policy.checkpoints" / "checkpoint-8"
    half_written.mkdir()
    (half_written / "trainer_state.json").write_text("{")

    steps = []
    resumed = train(policy, shard, tmp_path / "cut", on_step=steps.append, **settings)
    assert [step["step"] for step in steps] == list(range(7, 13))  # from checkpoint 6
    assert weights(resumed.policy_path) == weights(whole.policy_path)
    assert resumed.history == whole.history
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["policy"]


def test_a_checkpoint_of_other_settings_is_not_resumed(policy, shard, tmp_path):
    with pytest.raises(KilledError):
        train(policy, shard, tmp_path, save_steps=2, on_step=kill_at(5))
    steps = []
    train(policy, shard, tmp_path, save_steps=2, beta=0.3, on_step=steps.append)
    assert steps[0]["step"] == 1


def test_nan_stops_training_and_saves_nothing(policy, shard, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(policy)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(policy).save_pretrained(broken)
    with pytest.raises(TrainingError, match="loss became nan at step 1; no policy was saved"):
        train(broken, shard, tmp_path, reference=policy)
    assert not (tmp_path / "policy").exists()


def test_bf16_autocast_keeps_float32_weights(policy, shard, tmp_path):
    import torch
    from safetensors.torch import load_file

    result = train(policy, shard, tmp_path, precision="bf16", gradient_accumulation=2)
    assert result.settings["precision"] == "bf16"
    assert result.steps == 3
    assert result.history[0]["loss"] == pytest.approx(math.log(2), abs=0.02)
    tensors = load_file(result.policy_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


# The config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "exo_pair"}, "label_smoothing above 0"),
        ({"loss": ["sigmoid", "sft"], "loss_weights": [1.0]}, "1 values for 2 losses"),
        ({"loss": []}, "at least one name"),
        ({"precision": "fp16"}, "precision"),
        ({"lr": 1e-6}, "lr"),
        ({"learning_rate": 0}, "learning_rate"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**settings)


def test_several_losses_with_weights(policy, shard, tmp_path):
    result = train(policy, shard, tmp_path, loss=["sigmoid", "sft"], loss_weights=[1, 0.2])
    # log 2 + 0.2 * the mean negative log-likelihood of the chosen tokens
    assert result.history[0]["loss"] > math.log(2) + 0.1


def test_config_needs_no_machine_learning_library():
    found = loaded_by(
        "import prefloop.training.config, prefloop.training.methods.dpo\n"
        "import prefloop.labelers.statistics.winrate, prefloop.training.policy.logprobs"
    )
    assert not found & {"torch", "trl", "transformers", "datasets", "scipy"}


def test_qlora_trains_an_adapter_for_the_base_as_it_is(policy, shard, tmp_path):
    lora = {"lora": Lora(r=4, alpha=8, quantize="nf4"), "learning_rate": 1e-2, "max_pairs": 16}
    first = train(policy, shard, tmp_path / "0", epochs=2, **lora)
    # Reference and policy are rounded alike (an unrounded reference gives 0.95 here); bitsandbytes
    # multiplies a little differently where gradients are wanted.
    assert first.history[0]["loss"] == pytest.approx(math.log(2), abs=0.03)
    assert first.history[-1]["loss"] < 0.6
    assert is_adapter(first.policy_path)
    assert first.base == policy.resolve()
    second = train(first.policy_path, shard, tmp_path / "1", reference=policy, **lora)
    assert second.history[0]["loss"] < 0.6  # goes on from the adapter
    third = train(first.policy_path, shard, tmp_path / "2", reference=first.policy_path, **lora)
    assert third.history[0]["loss"] == pytest.approx(math.log(2), abs=0.03)


def test_qlora_without_bitsandbytes(policy, shard, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TrainingError, match="needs bitsandbytes"):
        train(policy, shard, tmp_path, lora=Lora(quantize="nf4"))


def test_reference_logprobs_are_computed_once_for_all_losses(
    policy, other, shard, tmp_path, monkeypatch
):
    kept = tmp_path / "logps.parquet"
    first = train(policy, shard, tmp_path / "0", kept_reference=kept)
    table = pq.read_table(kept)
    assert table.column_names == ["ref_chosen_logps", "ref_rejected_logps"]
    assert len(table) == first.examples

    def never(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(reference_module, "shared_logprobs", never)
    again = train(policy, shard, tmp_path / "1", kept_reference=kept, loss="ipo", epochs=2)
    assert again.steps == 2 * first.steps
    # Other pairs, another reference or another weight of long answers are no longer the same.
    for change in ({"max_pairs": 3}, {"ld_alpha": 0.5}, {"reference": other}):
        with pytest.raises(AssertionError, match="computed again"):
            train(policy, shard, tmp_path / "2", kept_reference=kept, **change)
    kept.write_bytes(b"torn")
    monkeypatch.undo()
    third = train(policy, shard, tmp_path / "3", kept_reference=kept)
    assert third.history == first.history
    assert pq.read_table(kept).equals(table)


# A training that does nothing


def test_one_step_with_a_warm_up_has_a_rate(policy, tmp_path, caplog):
    shard = write(tmp_path / "t.parquet", rows(4))
    result = train(policy, shard, tmp_path, warmup_ratio=0.1)
    assert result.steps == 1
    assert result.history[0]["learning_rate"] == pytest.approx(1e-3)
    assert weights(result.policy_path) != weights(policy)
    assert "did not change" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"learning_rate": 1e-30}, "learning_rate 1e-30 is below"),
        ({"loss_weights": (0.0,), "loss": ("sigmoid",)}, "every gradient was 0"),
    ],
)
def test_weights_that_did_not_change_are_said(policy, tmp_path, caplog, settings, why):
    shard = write(tmp_path / "t.parquet", rows(4))
    result = train(policy, shard, tmp_path, **settings)
    [said] = [one for one in caplog.messages if "did not change" in one]
    assert why in said
    assert str(result.policy_path) in said


def test_the_likely_reason_is_named():
    from prefloop.training.session.weights_moved import unchanged

    config = TrainConfig(learning_rate=1e-5)
    assert "rate was 0 at every step" in unchanged(config, [{"learning_rate": 0.0}])
    assert "no optimiser step" in unchanged(config, [])


# Tokenizers of others


@pytest.mark.parametrize("method", ["dpo", "kto", "sft"])
def test_a_tokenizer_without_a_pad_token_trains(policy, tmp_path, method):
    from prefloop.training.methods.offline import train_offline

    model = tmp_path / "model"
    shutil.copytree(policy, model)
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        settings = json.loads((model / name).read_text())
        settings.pop("pad_token", None)
        settings.pop("pad_token_id", None)
        (model / name).write_text(json.dumps(settings))
    shard = write(tmp_path / "t.parquet", rows(4))
    found = []
    for base in (policy, model):
        config = TrainConfig(method=method, learning_rate=1e-3, batch_size=4)
        out = tmp_path / f"{base.name}-{method}"
        train_offline(Job(base, base, (shard,), out, config, seed=1))
        found.append(weights(out))
    assert found[0] == found[1]  # padding counts for nothing
