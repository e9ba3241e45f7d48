"""KTO, SFT, GRPO and RLOO, as the trainers compute them, against plain NumPy."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from prefloop.data import schemas
from prefloop.data.hashing import folder_revision
from prefloop.training.config import TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.answers import read_answers
from prefloop.training.inputs.tokens import answer_ids, end_token, prompt_ids
from prefloop.training.methods.kto import Kto, mismatched_answers
from prefloop.training.methods.reinforcement import Reinforcement
from prefloop.training.methods.sft import Sft
from prefloop.training.policy.checkpoints import load_model, load_tokenizer
from prefloop.training.policy.logprobs import sequence_logprobs
from prefloop.training.session.fit import fit
from prefloop.training.session.job import Job
from prefloop.training.session.on_policy import Group, Prompts
from tests.helpers.dpo_data import WORDS, rows, triple, write
from tests.helpers.engine_models import make_model, make_tokenizer

BETA = 0.3


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("other"), layers=1, width=64, seed=7))


def logps(model: Path, prompts: list, answers: list) -> np.ndarray:
    import torch

    loaded = load_model(model, dtype=torch.float32, device="cpu")
    return sequence_logprobs(loaded, prompts, answers, batch_size=4)


def sigma(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def labelled(path: Path, answers: list[tuple[str, str, bool]]) -> Path:
    """A shard of single answers: (prompt, answer, label)."""
    table = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": text}],
            "label": label, "prompt_id": f"{index:032x}", "candidate_id": f"{index:032x}",
            "score": float(label), "pairs": 1, "tokens": 1, "round": 0, "policy": "policy@0",
        }
        for index, (prompt, text, label) in enumerate(answers)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(table, schema=schemas.UNPAIRED), path)
    return path


def some_answers(n: int) -> list[tuple[str, str, bool]]:
    draw = np.random.default_rng(1)
    return [
        (f"Write. {row}", " ".join(draw.choice(WORDS, 2 + row % 5)) + str(row), row % 3 != 0)
        for row in range(n)
    ]


def test_the_loss_of_kto_is_the_papers(policy: Path, reference: Path, tmp_path: Path) -> None:
    from prefloop.training.trainers.order import EpochRows

    shard = labelled(tmp_path / "a.parquet", some_answers(10))
    config = TrainConfig(
        method="kto", beta=BETA, batch_size=5, desirable_weight=1.5, undesirable_weight=0.5,
        learning_rate=1e-30, order="random",
    )  # fmt: skip
    job = Job(
        policy, reference, (shard,), tmp_path / "p", config, seed=3,
        kept_reference=tmp_path / "logps.parquet",
    )  # fmt: skip
    result = fit(job, Kto())
    data = read_answers([shard], load_tokenizer(policy), max_length=512, max_answers=None, seed=3)
    ratio = logps(policy, data.prompts, data.answers) - logps(reference, data.prompts, data.answers)
    # Behind each prompt another answer, the one before it of the five that it was read with.
    others = [data.answers[row - row % 5 + (row % 5 - 1) % 5] for row in range(10)]
    kl = logps(policy, data.prompts, others) - logps(reference, data.prompts, others)
    order = np.array(list(EpochRows(10, 3)))
    for batch, step in enumerate(result.history):
        part = order[5 * batch : 5 * batch + 5]
        z = max(float(kl[part].mean()), 0.0)
        good = np.array(data.labels)[part]
        value = np.where(
            good,
            1.5 * (1 - sigma(BETA * (ratio[part] - z))),
            0.5 * (1 - sigma(BETA * (z - ratio[part]))),
        )
        assert step["loss"] == pytest.approx(float(value.mean()), rel=2e-4)
        assert step["rewards/chosen"] == pytest.approx(
            float(BETA * ratio[part][good].mean()), rel=2e-3, abs=1e-5
        )
    kept = pq.read_table(tmp_path / "logps.parquet")
    np.testing.assert_allclose(
        kept["ref_logps"].to_numpy(), logps(reference, data.prompts, data.answers), atol=1e-4
    )


def test_each_answer_stands_behind_anothers_prompt() -> None:
    def of(*prompts: int) -> list[int]:
        rows = [np.array([n], dtype=np.int32) for n in range(len(prompts))]
        asked = [np.array([prompt], dtype=np.int32) for prompt in prompts]
        return [int(ids[0]) for ids in mismatched_answers(asked, rows, 3)]

    assert of(0, 1, 2, 3, 4, 5, 6) == [2, 0, 1, 5, 3, 4, 5]
    assert of(0, 0, 1, 2, 2, 3, 3) == [2, 2, 1, 5, 5, 4, 4]  # several answers to a prompt
    assert of(0, 1, 2, 3, 3, 3, 4) == [2, 0, 1, 2, 2, 2, 5]  # one prompt in a batch
    assert of(0, 0, 0, 0) == [2, 0, 1, 2]  # one prompt in all


def test_triples_are_single_answers_too(policy: Path, tmp_path: Path) -> None:
    ask = "Say something."
    table = [
        triple(0, "good", "bad", ask),
        triple(0, "good", "worse", ask),
        triple(0, "bad", "worse", ask),  # bad: once chosen, once rejected
        triple(0, "good", "bad", "Another."),
    ]
    shard = write(tmp_path / "t.parquet", table)
    tokenizer = load_tokenizer(policy)
    data = read_answers([shard], tokenizer, max_length=512, max_answers=None, seed=0)
    found = Counter(
        (len(prompt), tokenizer.decode(ids[:-1]), label)
        for prompt, ids, label in zip(data.prompts, data.answers, data.labels, strict=True)
    )
    one, other = (
        len(prompt_ids(tokenizer, [{"role": "user", "content": text}]))
        for text in (ask, "Another.")
    )
    assert found == Counter(
        [(one, "good", True), (one, "worse", False), (other, "good", True), (other, "bad", False)]
    )
    good = read_answers(
        [shard], tokenizer, max_length=512, max_answers=None, seed=0, good_only=True
    )
    assert len(good) == 2
    assert all(good.labels)
    short = read_answers([shard], tokenizer, max_length=512, max_answers=3, seed=0)
    assert len(short) == 3
    with pytest.raises(TrainingError, match="longer than 3 tokens"):
        read_answers([shard], tokenizer, max_length=3, max_answers=None, seed=0)


def test_kto_needs_both_labels(policy: Path, tmp_path: Path) -> None:
    good = [one for one in some_answers(9) if one[2]]
    shard = labelled(tmp_path / "a.parquet", good)
    job = Job(policy, policy, (shard,), tmp_path / "p", TrainConfig(method="kto"), seed=0)
    with pytest.raises(TrainingError, match="all 6 answers are good ones, and KTO needs both"):
        fit(job, Kto())
    with pytest.raises(ValidationError, match="kto needs batch_size 2"):
        TrainConfig(method="kto", batch_size=1)


def test_the_loss_of_sft_is_the_mean_over_tokens(policy: Path, tmp_path: Path) -> None:
    shard = write(tmp_path / "t.parquet", rows(9))
    config = TrainConfig(method="sft", batch_size=4, learning_rate=1e-30)
    result = fit(Job(policy, policy, (shard,), tmp_path / "p", config, seed=3), Sft())
    data = read_answers(
        [shard], load_tokenizer(policy), max_length=512, max_answers=None, seed=3, good_only=True
    )
    tokens = np.array([len(ids) for ids in data.answers])
    per_token = -logps(policy, data.prompts, data.answers).sum() / tokens.sum()
    # The batches are drawn by seed: together they are all answers.
    assert result.steps == 3
    assert result.examples == 9
    mean = np.mean([step["loss"] for step in result.history])
    assert mean == pytest.approx(per_token, rel=0.05)
    at_once = config.model_copy(update={"batch_size": 9})
    whole = fit(Job(policy, policy, (shard,), tmp_path / "whole", at_once, seed=3), Sft())
    assert whole.history[0]["loss"] == pytest.approx(per_token, rel=2e-4)


def test_answers_in_one_row_train_as_padded_ones(policy: Path, tmp_path: Path) -> None:
    """Two steps, so that the second one's loss tells of the first one's weights."""
    shard = labelled(tmp_path / "u.parquet", some_answers(9))
    losses = []
    for packed in (False, True):
        config = TrainConfig(
            method="sft", batch_size=3, learning_rate=1e-2, warmup_ratio=0, padding_free=packed
        )
        job = Job(policy, policy, (shard,), tmp_path / f"{packed}", config, seed=3)
        losses.append([step["loss"] for step in fit(job, Sft()).history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][1] < losses[0][0] - 0.01


def test_a_model_that_would_mix_the_answers_of_a_row_is_refused(
    policy: Path, tmp_path: Path
) -> None:
    shard = labelled(tmp_path / "u.parquet", some_answers(9))
    config = TrainConfig(method="sft", padding_free=True)
    mixing = tmp_path / "mixing"
    shutil.copytree(policy, mixing)
    about = json.loads((mixing / "config.json").read_text())
    about["layer_types"] = ["linear_attention"] * about["num_hidden_layers"]
    (mixing / "config.json").write_text(json.dumps(about))
    with pytest.raises(TrainingError, match=r"linear_attention.*carry a state"):
        fit(Job(mixing, mixing, (shard,), tmp_path / "p", config, seed=3), Sft())


def test_a_model_whose_mask_does_not_go_by_positions_is_refused(tmp_path: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    make_tokenizer(tmp_path / "opt")
    about = OPTConfig(
        vocab_size=432, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=2,
        word_embed_proj_dim=32, max_position_embeddings=256, init_std=0.3,
    )  # fmt: skip
    OPTForCausalLM(about).save_pretrained(tmp_path / "opt")
    shard = labelled(tmp_path / "u.parquet", some_answers(9))
    config = TrainConfig(method="sft", padding_free=True)
    job = Job(tmp_path / "opt", tmp_path / "opt", (shard,), tmp_path / "p", config, seed=3)
    with pytest.raises(TrainingError, match="opt let answers in one row see each other"):
        fit(job, Sft())


class Sampler:
    """Answers and rewards that a leg is given; remembers which weights it was offered."""

    def __init__(self, prompts: int, per_leg: int, size: int) -> None:
        draw = np.random.default_rng(5)
        self.groups = [
            Group(
                texts=[
                    " ".join(draw.choice(WORDS, 1 + int(draw.integers(5)))) for _ in range(size)
                ],
                complete=[bool(draw.integers(2)) for _ in range(size)],
                rewards=draw.normal(size=size).tolist(),
            )
            for _ in range(prompts)
        ]
        self.per_leg = per_leg
        self.legs: list[int] = []
        self.revisions: list[str] = []

    def __call__(self, leg: int, now: Any) -> list[Group]:
        self.legs.append(leg)
        self.revisions.append(folder_revision(now()))
        return self.groups[leg * self.per_leg : (leg + 1) * self.per_leg]


def asked(n: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"Write {n}."}] for n in range(n)]


def of(sampler: Sampler) -> Reinforcement:
    prompts = Prompts(asked(5), sampler.per_leg)
    return Reinforcement(prompts, sampler, group_size=3, temperature=1.0, max_tokens=40)


def reinforce(policy: Path, reference: Path, out: Path, sampler: Sampler, **settings: Any) -> Any:
    config = TrainConfig(**{"beta": BETA, "learning_rate": 1e-3, **settings})
    return fit(Job(policy, reference, (), out, config, seed=1), of(sampler))


class Sampled:
    """Per-token log-probabilities of the first leg's answers under both policies."""

    def __init__(self, policy: Path, reference: Path, groups: list[Group]) -> None:
        import torch

        tokenizer = load_tokenizer(policy)
        end = end_token(tokenizer)
        self.rewards = np.array([reward for group in groups for reward in group.rewards])
        models = [load_model(one, dtype=torch.float32, device="cpu") for one in (policy, reference)]
        self.tokens: list[list[np.ndarray]] = []
        for index, group in enumerate(groups):
            prompt = prompt_ids(tokenizer, asked(5)[index]).tolist()
            ids = answer_ids(tokenizer, group.texts, end)
            for one, complete in zip(ids, group.complete, strict=True):
                answer = one.tolist() if complete else one.tolist()[:-1]
                found = []
                for model in models:
                    with torch.no_grad():
                        logits = model(torch.tensor([prompt + answer])).logits[0]
                    steps = logits[len(prompt) - 1 : -1].log_softmax(-1)
                    found.append(steps[range(len(answer)), answer].double().numpy())
                self.tokens.append(found)


@pytest.mark.parametrize("scaled", [True, False])
def test_the_loss_of_grpo_is_the_papers(
    policy: Path, reference: Path, tmp_path: Path, scaled: bool
) -> None:
    sampler = Sampler(5, per_leg=2, size=3)
    result = reinforce(
        policy, reference, tmp_path / "p", sampler, method="grpo", batch_size=6,
        scale_rewards=scaled, warmup_ratio=0,
    )  # fmt: skip
    it = Sampled(policy, reference, sampler.groups[:2])
    groups = it.rewards.reshape(-1, 3)
    advantages = groups - groups.mean(axis=1, keepdims=True)
    if scaled:
        advantages /= groups.std(axis=1, ddof=1, keepdims=True) + 1e-4
    # The ratio to the policy that sampled is 1; the KL is Schulman's k3, per token.
    losses = [
        np.mean(-advantage + BETA * (np.exp(ref - own) - (ref - own) - 1))
        for advantage, (own, ref) in zip(advantages.ravel(), it.tokens, strict=True)
    ]
    assert result.history[0]["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-3)
    assert result.history[0]["reward"] == pytest.approx(float(it.rewards.mean()), rel=1e-4)
    # Five prompts fill two legs; each is asked of the policy as it then is.
    assert (result.steps, sampler.legs) == (2, [0, 1])
    assert sampler.revisions[0] == folder_revision(policy)
    assert sampler.revisions[1] not in (sampler.revisions[0], folder_revision(tmp_path / "p"))


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_an_end_that_only_the_template_knows_is_an_end(
    policy: Path, method: str, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(policy, base)
    file = base / "tokenizer_config.json"
    named = json.loads(file.read_text()) | {"eos_token": "<s>"}  # turns end with <|end|>
    file.write_text(json.dumps(named))
    for name in ("config.json", "generation_config.json"):
        known = json.loads((base / name).read_text()) | {"eos_token_id": 1}
        (base / name).write_text(json.dumps(known))
    sampler = Sampler(5, per_leg=2, size=3)
    result = reinforce(base, base, tmp_path / "p", sampler, method=method, batch_size=6)
    for leg, step in enumerate(result.history):
        groups = sampler.groups[2 * leg : 2 * leg + 2]
        cut = np.mean([not one for group in groups for one in group.complete])
        assert step["completions/clipped_ratio"] == pytest.approx(cut)
        assert step["completions/truncated"] == pytest.approx(cut)


def first_loss(policy: Path, out: Path, sampler: Sampler, **settings: Any) -> dict[str, Any]:
    """What GRPO logs of its first step, in two forward passes, without a KL."""
    settings = {"batch_size": 3, "gradient_accumulation": 2, "beta": 0.0, **settings}
    return reinforce(policy, policy, out, sampler, method="grpo", **settings).history[0]


@pytest.mark.parametrize("loss", ["dr_grpo", "dapo", "bnpo"])
def test_how_tokens_are_averaged_is_the_papers(policy: Path, tmp_path: Path, loss: str) -> None:
    """The ratio is 1, so each token's loss is minus its answer's advantage."""
    sampler = Sampler(5, per_leg=2, size=3)
    # TRL mixes the answers of a step before it cuts them into forward passes.
    one_pass = {"batch_size": 6, "gradient_accumulation": 1} if loss == "bnpo" else {}
    step = first_loss(policy, tmp_path / "p", sampler, policy_loss=loss, **one_pass)
    it = Sampled(policy, policy, sampler.groups[:2])
    lengths = np.array([len(own) for own, _ in it.tokens])
    groups = it.rewards.reshape(-1, 3)
    advantages = groups - groups.mean(axis=1, keepdims=True)
    if loss != "dr_grpo":  # whose paper leaves the deviation out, as the default here does
        advantages /= groups.std(axis=1, ddof=1, keepdims=True) + 1e-4
    sums = -advantages.ravel() * lengths
    by_paper = {
        "dr_grpo": sums.sum() / 6 / 40,  # max_tokens
        "dapo": sums.sum() / lengths.sum(),
        "bnpo": sums.sum() / lengths.sum(),
    }[loss]
    assert step["loss"] == pytest.approx(float(by_paper), rel=1e-3)


def test_truncated_answers_can_be_masked(policy: Path, tmp_path: Path) -> None:
    """DAPO: neither their tokens nor their number count; their rewards still do in the mean."""
    sampler = Sampler(5, per_leg=2, size=3)
    complete = np.array([one for group in sampler.groups[:2] for one in group.complete])
    assert 0 < complete.sum() < 6
    step = first_loss(
        policy, tmp_path / "p", sampler, policy_loss="dapo", mask_truncated=True, batch_size=6,
        gradient_accumulation=1,
    )  # fmt: skip
    it = Sampled(policy, policy, sampler.groups[:2])
    lengths = np.array([len(own) for own, _ in it.tokens]) * complete
    groups = it.rewards.reshape(-1, 3)
    advantages = groups - groups.mean(axis=1, keepdims=True)
    advantages /= groups.std(axis=1, ddof=1, keepdims=True) + 1e-4
    by_paper = (-advantages.ravel() * lengths).sum() / lengths.sum()
    assert step["loss"] == pytest.approx(float(by_paper), rel=1e-3)
    assert step["completions/truncated"] == pytest.approx(1 - complete.mean())


@pytest.mark.parametrize("correction", ["truncate", "mask"])
def test_a_samplers_mismatch_is_corrected(
    policy: Path, tmp_path: Path, correction: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The second answer was half as likely to the sampler, the third a tenth; of the fourth it said
    nothing, and the fifth has other tokens than it counted."""
    sampler = Sampler(5, per_leg=2, size=3)
    it = Sampled(policy, policy, sampler.groups[:2])
    own = np.array([tokens.sum() for tokens, _ in it.tokens])
    told = [*(own[:3] - np.log([1, 2, 10])).tolist(), None, own[4] - 5, own[5]]
    lengths = [len(tokens) for tokens, _ in it.tokens]
    lengths[4] += 1
    for index in (0, 1):
        part = slice(3 * index, 3 * index + 3)
        sampler.groups[index] = replace(
            sampler.groups[index], logprobs=told[part], tokens=lengths[part]
        )
    step = first_loss(policy, tmp_path / "p", sampler, sampler_correction=correction)
    groups = it.rewards.reshape(-1, 3)
    advantages = groups - groups.mean(axis=1, keepdims=True)
    advantages /= groups.std(axis=1, ddof=1, keepdims=True) + 1e-4
    weights = [1, 2, 3 if correction == "truncate" else 0, 1, 1, 1]
    by_hand = float(np.mean(-advantages.ravel() * weights))
    assert step["loss"] == pytest.approx(by_hand, rel=1e-3)
    assert step["sampling/unknown"] == pytest.approx(2 / 6)
    assert caplog.text.count("each has the weight 1") == 1  # those of the second leg


def test_the_advantages_of_rloo_are_the_papers(
    policy: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefloop.training.trainers.rl_trainers import LeaveOneOutTrainer

    seen: list[np.ndarray] = []
    score = LeaveOneOutTrainer._generate_and_score_completions

    def spy(self: Any, inputs: Any) -> Any:
        made = score(self, inputs)
        seen.append(made["advantages"].numpy())
        return made

    monkeypatch.setattr(LeaveOneOutTrainer, "_generate_and_score_completions", spy)
    sampler = Sampler(5, per_leg=2, size=3)
    result = reinforce(
        policy, reference, tmp_path / "p", sampler, method="rloo", batch_size=3,
        gradient_accumulation=2,
    )  # fmt: skip
    it = Sampled(policy, reference, sampler.groups[:2])
    kl = np.array([(own - ref).sum() for own, ref in it.tokens])
    rewards = (it.rewards - BETA * kl).reshape(-1, 3)
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / 2
    np.testing.assert_allclose(seen[0], (rewards - others).ravel(), rtol=1e-3, atol=1e-4)
    # The loss of a first update is minus the mean advantage, which is 0; its gradient is not.
    assert result.history[0]["loss"] == pytest.approx(0, abs=1e-5)
    assert result.history[0]["grad_norm"] > 0
    assert result.steps == 2


def test_answers_without_a_reward_count_for_nothing(
    policy: Path, reference: Path, tmp_path: Path
) -> None:
    """Also those that were never sampled: a prompt that the engine refused."""
    for method in ("grpo", "rloo"):
        sampler = Sampler(4, per_leg=2, size=3)
        sampler.groups[0] = Group([], [], [])
        sampler.groups[1] = Group(["a", "b", "c"], [True] * 3, [math.nan] * 3)
        out = tmp_path / method / "p"
        result = reinforce(
            policy, policy, out, sampler, method=method, batch_size=6, learning_rate=1e-2,
            warmup_ratio=0,
        )  # fmt: skip
        assert result.history[0]["grad_norm"] == pytest.approx(0, abs=1e-6)
        assert math.isfinite(result.history[1]["grad_norm"])
        assert result.history[1]["grad_norm"] > 0


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_an_interrupted_reinforcement_ends_with_the_same_policy(
    policy: Path, tmp_path: Path, method: str
) -> None:
    class Interrupted(Exception):
        pass

    def stop(record: dict[str, float]) -> None:
        if record["step"] == 4:
            raise Interrupted

    def train(out: Path, **more: Any) -> tuple[Any, Sampler]:
        sampler = Sampler(5, per_leg=1, size=3)
        config = TrainConfig(
            method=method, batch_size=3, learning_rate=1e-3, save_steps=2, beta=0.05
        )
        job = Job(policy, policy, (), out / "p", config, seed=1)
        return fit(job, of(sampler), **more), sampler

    whole, sampler = train(tmp_path / "whole")
    assert sampler.legs == [0, 1, 2, 3, 4]
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", on_step=stop)
    parts, sampler = train(tmp_path / "parts")
    assert sampler.legs == [2, 3, 4]  # from the checkpoint of step 2
    assert folder_revision(parts.policy_path) == folder_revision(whole.policy_path)
    assert not (tmp_path / "parts" / ".policy.checkpoints").exists()


def test_too_few_prompts_for_a_step(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="5 prompts are fewer than the 6 of one step"):
        reinforce(policy, policy, tmp_path / "p", Sampler(5, per_leg=6, size=3), method="grpo")


def test_methods_that_sample_take_each_prompt_once() -> None:
    for settings in ({"method": "grpo"}, {"online": True}):
        for other in ({"epochs": 2}, {"data": "accumulated"}, {"max_pairs": 3}):
            with pytest.raises(ValidationError, match=f"leave out {next(iter(other))}"):
                TrainConfig(**settings, **other)
    with pytest.raises(ValidationError, match="online is for method dpo"):
        TrainConfig(method="sft", online=True)
    with pytest.raises(ValidationError, match="sft_warmup needs answers"):
        TrainConfig(online=True, sft_warmup={})
