"""The output layer on answers only, in chunks, and prompts that answers share: exact, and small."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefloop.training.config import Lora, TrainConfig
from prefloop.training.methods.offline import train_offline
from prefloop.training.policy import logprobs as logprobs_module
from prefloop.training.policy.checkpoints import load_model
from prefloop.training.policy.logprobs import sequence_logprobs
from prefloop.training.session.job import Job
from tests.helpers.dpo_data import rows, write
from tests.helpers.engine_models import make_model
from tests.training.trainers.test_steps import assert_same_step, plain_descent

__all__ = ["plain_descent"]  # a fixture

LONG = "Write one sentence about a quick wizard with a lantern. " * 6


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=2, width=64))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("other"), layers=2, width=64, seed=7))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long prompts and short answers."""
    triples = rows(8)
    for row, one in enumerate(triples):
        one["prompt"][0]["content"] = LONG + str(row)
    return write(tmp_path_factory.mktemp("triples") / "t.parquet", triples)


def drawn(vocabulary: int, *lengths: int, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(vocabulary, size=length).astype(np.int32) for length in lengths]


# The output layer


def plain(hidden: Any, layer: Any, tokens: Any, how: dict[str, float]) -> tuple[Any, Any]:
    """Log-probabilities and entropies from all logits at once."""
    logits = layer(hidden) * how["scale"]
    if how["softcap"]:
        logits = how["softcap"] * (logits / how["softcap"]).tanh()
    log_p = (logits / how["temperature"]).log_softmax(-1)
    return log_p.gather(1, tokens[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize(
    "how",
    [
        {"scale": 1.0, "softcap": None, "temperature": 1.0},
        {"scale": 0.3, "softcap": 5.0, "temperature": 0.7},
    ],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("linear", [True, False])
def test_scores_and_gradients_are_those_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], bias: bool, linear: bool
) -> None:
    import torch

    from prefloop.training.policy import head as head_module

    class Other(torch.nn.Linear):  # as one with an adapter is
        pass

    monkeypatch.setattr(head_module, "CHUNK", 97 * 5)  # five rows at a time
    torch.manual_seed(0)
    layer = (torch.nn.Linear if linear else Other)(16, 97, bias=bias)
    hidden = torch.randn(13, 16, requires_grad=True)
    tokens = torch.randint(97, (13,))
    weights = torch.randn(2, 13)

    def gradients(log_probs: Any, entropy: Any) -> list[Any]:
        loss = (log_probs * weights[0]).sum() + (entropy * weights[1]).sum()
        return list(torch.autograd.grad(loss, [hidden, *layer.parameters()]))

    found = head_module.score_tokens(hidden, tokens, head_module.Head(layer, **how))
    expected = plain(hidden, layer, tokens, how)
    torch.testing.assert_close(found.log_probs, expected[0], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found.entropy, expected[1], rtol=1e-6, atol=1e-5)
    for one, other in zip(
        gradients(found.log_probs, found.entropy), gradients(*expected), strict=True
    ):
        assert float((one - other).norm()) <= 1e-6 * float(other.norm())
    alone = torch.autograd.grad(
        head_module.score_tokens(hidden, tokens, head_module.Head(layer, **how)).entropy.sum(),
        hidden,
    )[0]
    torch.testing.assert_close(
        alone, torch.autograd.grad(plain(hidden, layer, tokens, how)[1].sum(), hidden)[0],
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip
    logits = head_module.Head(layer, **how).logits(layer(hidden))
    torch.testing.assert_close(found.mean_logits, logits.mean(-1))
    assert found.is_top1.tolist() == (logits.argmax(-1) == tokens).tolist()
    torch.testing.assert_close(
        found.log_sum_squares, logits.softmax(-1).square().sum(-1).log(), rtol=1e-5, atol=1e-5
    )


def peak_bytes(work: Any) -> int:
    """The most that ``work`` had allocated at a time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    assert events
    changes = [one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())]
    return int(np.cumsum(changes).max())


def test_logits_of_a_large_vocabulary_never_exist_at_once() -> None:
    import torch

    from prefloop.training.policy.head import CHUNK, Head, score_tokens

    vocabulary, tokens, width = 150_000, 600, 16
    layer = torch.nn.Linear(width, vocabulary, bias=False)
    hidden = torch.randn(tokens, width, requires_grad=True)
    asked = torch.randint(vocabulary, (tokens,))
    whole = 4 * tokens * vocabulary

    def chunked() -> None:
        score_tokens(hidden, asked, Head(layer, 1.0, None)).log_probs.sum().backward()

    def at_once() -> None:
        plain(hidden, layer, asked, {"scale": 1, "softcap": 0, "temperature": 1})[
            0
        ].sum().backward()

    layer.weight.grad = torch.zeros_like(layer.weight)  # the optimiser's, whatever the way
    small, large = peak_bytes(chunked), peak_bytes(at_once)
    assert small < 3 * 4 * CHUNK + 2 * 4 * layer.weight.numel() < whole
    assert large > 2 * whole


# Prompts that are shared


def models() -> dict[str, Any]:
    """Small models of several families: how each goes over two answers to a prompt."""
    import transformers as hf

    of = {
        "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return {
        "llama": hf.LlamaConfig(**of),
        "llama, eager": hf.LlamaConfig(**of, attn_implementation="eager"),
        "qwen3": hf.Qwen3Config(**of, head_dim=16),
        "gpt2": hf.GPT2Config(
            vocab_size=120, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3,
            bos_token_id=1, eos_token_id=2,
        ),
        "cohere": hf.CohereConfig(**of, logit_scale=0.4),
        "granite": hf.GraniteConfig(**of, logits_scaling=3.0),
        "mistral with a window": hf.MistralConfig(**of, sliding_window=8),
        "gemma 2": hf.Gemma2Config(
            **of, head_dim=16, sliding_window=8, final_logit_softcapping=4.0,
        ),
        "bloom": hf.BloomConfig(
            vocab_size=120, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.3,
        ),
        "mamba": hf.MambaConfig(
            vocab_size=120, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0,
        ),
    }  # fmt: skip


SHARES = ["llama", "llama, eager", "qwen3", "gpt2", "cohere", "granite"]
APART = {
    "mistral with a window": "window",
    "gemma 2": "sliding_attention",
    "bloom": "mask",
    "mamba": "linear_attention",
}


@pytest.mark.parametrize("name", [*SHARES, *APART])
def test_each_family_has_its_log_probabilities(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from prefloop.training.policy.passes import passes_of

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(models()[name]).eval()
    prompts = [*drawn(120, 20, 14)] * 2
    answers = drawn(120, 5, 9, 3, 7, seed=1)
    expected = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor(np.concatenate([prompt, answer]))[None].long()
        with torch.no_grad():
            steps = model(ids).logits[0].double().log_softmax(-1)
        place = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        expected.append(float(steps[list(place), answer.astype(int)].sum()))
    found = sequence_logprobs(model, prompts, answers, batch_size=4)
    assert found == pytest.approx(expected, abs=1e-3)
    passes = passes_of(model)
    assert passes.head is not None
    if name in SHARES:
        assert passes.apart is None
    else:
        assert passes.apart is not None
        assert APART[name] in passes.apart
    assert not model.training


def test_a_model_is_forgotten_with_its_weights() -> None:
    import gc
    import weakref

    from transformers import AutoModelForCausalLM

    from prefloop.training.policy.passes import passes_of

    model = AutoModelForCausalLM.from_config(models()["llama"]).eval()
    passes_of(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_layer_that_is_more_than_its_config_says_keeps_its_own_logits() -> None:
    """Not a silent wrong value: what cannot be taken apart is run as it is."""
    import torch
    from transformers import AutoModelForCausalLM

    from prefloop.training.policy.passes import passes_of

    model = AutoModelForCausalLM.from_config(models()["llama"]).eval()
    of_model = model.forward

    def odd(*given: Any, **named: Any) -> Any:
        out = of_model(*given, **named)
        out.logits = out.logits * 0.5
        return out

    model.forward = odd
    passes = passes_of(model)
    assert passes.head is None
    [prompt], [answer] = drawn(120, 6), drawn(120, 4, seed=1)
    ids = torch.tensor(np.concatenate([prompt, answer]))[None].long()
    with torch.no_grad():
        steps = odd(ids).logits[0].log_softmax(-1)
    expected = steps[range(5, 9), answer.astype(int)].sum()
    assert sequence_logprobs(model, [prompt], [answer], batch_size=2) == pytest.approx(
        [float(expected)], abs=1e-4
    )


@pytest.mark.parametrize("eager", [False, True])
def test_gradients_of_pairs_that_share_their_prompt(
    monkeypatch: pytest.MonkeyPatch, eager: bool
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from prefloop.training.policy.bundles import Bundle, batch_of
    from prefloop.training.policy.passes import passes_of

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(models()["llama, eager" if eager else "llama"]).eval()
    bundles = [
        Bundle(one, (two, three))
        for one, two, three in (drawn(120, 17, 4, 6), drawn(120, 9, 8, 2, seed=3))
    ]
    apart = [alone for one in bundles for alone in one.apart()]
    weights = torch.tensor([0.3, -0.3, 1.1, -0.7])

    def gradient(what: list[Bundle]) -> Any:
        model.zero_grad()
        batch = batch_of(what, model.device)
        log_probs = passes_of(model).scores(batch).log_probs
        (log_probs * weights[batch.answer]).sum().backward()
        return torch.cat([one.grad.flatten() for one in model.parameters()])

    packed, plainly = gradient(bundles), gradient(apart)
    assert batch_of(bundles, model.device).ids.numel() < batch_of(apart, model.device).ids.numel()
    assert float((packed - plainly).norm()) < 1e-6 * float(plainly.norm())


def test_what_is_less_work_is_chosen() -> None:
    from prefloop.training.policy.bundles import Bundle, is_cheaper_packed

    def bundle(prompt: int, *answers: int) -> Bundle:
        asked, *said = drawn(9, prompt, *answers)
        return Bundle(asked, tuple(said))

    assert is_cheaper_packed([bundle(100, 10, 12)] * 4, 64)
    assert not is_cheaper_packed([bundle(2, 50, 60)] * 4, 64)  # nothing to share
    assert not is_cheaper_packed([bundle(10, 10, 300)] * 2 + [bundle(10, 300, 300)], 64)
    assert not is_cheaper_packed([bundle(100, 10)] * 4, 64)  # one answer each


def test_equal_prompts_are_computed_once(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from prefloop.training.policy.passes import Passes

    seen: list[int] = []
    run = Passes.hidden

    def spy(self: Any, batch: Any) -> Any:
        seen.append(int((batch.part >= 0).sum()))
        return run(self, batch)

    monkeypatch.setattr(Passes, "hidden", spy)
    model = load_model(policy, dtype=torch.float32)
    vocabulary = model.config.vocab_size
    [asked, other] = drawn(vocabulary, 80, 40)
    prompts, answers = [asked, asked, other, asked], drawn(vocabulary, 5, 6, 4, 3, seed=2)
    sequence_logprobs(model, prompts[:1], answers[:1], batch_size=8)  # the model is tried once
    seen.clear()
    together = sequence_logprobs(model, prompts, answers, batch_size=8)
    assert sum(seen) == 80 + 40 + 5 + 6 + 4 + 3
    monkeypatch.setattr(logprobs_module, "_ANSWERS_A_PROMPT", 1)
    apart = sequence_logprobs(model, prompts, answers, batch_size=8)
    assert together == pytest.approx(apart, abs=1e-4)
    assert sequence_logprobs(model, prompts, answers, batch_size=1) == pytest.approx(
        apart, abs=1e-4
    )


# Trainings


def once(policy: Path, reference: Path, shard: Path, out: Path, **settings: Any) -> Any:
    config = TrainConfig(
        **{
            "batch_size": 8, "learning_rate": 1.0, "warmup_ratio": 0, "max_grad_norm": 0,
            "lr_scheduler": "constant", **settings,
        }
    )  # fmt: skip
    return train_offline(Job(policy, reference, (shard,), out / "policy", config, seed=1))


@pytest.mark.usefixtures("plain_descent")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": ("sigmoid", "sft", "soft"), "precompute_reference_logprobs": False},
        {"loss": "ipo", "ld_alpha": 0.5, "gradient_checkpointing": True},
        {"method": "kto", "batch_size": 16},
        {"method": "sft"},
    ],
)
def test_a_training_is_that_of_trl(
    policy: Path,
    reference: Path,
    shard: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    from prefloop.training.trainers import answers_only

    ours = once(policy, reference, shard, tmp_path / "ours", **settings)
    if settings.get("method", "dpo") == "dpo":
        assert ours.how["prompts"] == answers_only.SHARED
    with monkeypatch.context() as plainly:
        plainly.setattr(answers_only, "on_answers_only", lambda *_, **__: "apart")
        trl = once(policy, reference, shard, tmp_path / "trl", **settings)
    assert_same_step(ours.policy_path, trl.policy_path, policy)
    [one], [other] = ours.history, trl.history
    assert set(one) == set(other)
    for name, value in other.items():
        assert one[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_an_adapter_is_trained_on_shared_prompts(
    policy: Path, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefloop.training.trainers import answers_only

    settings = {"lora": Lora(r=4, alpha=8), "learning_rate": 1e-2, "epochs": 2}
    ours = once(policy, policy, shard, tmp_path / "ours", **settings)
    assert ours.how["prompts"] == answers_only.SHARED
    monkeypatch.setattr(answers_only, "on_answers_only", lambda *_, **__: "apart")
    trl = once(policy, policy, shard, tmp_path / "trl", **settings)
    for one, other in zip(ours.history, trl.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert ours.history[-1]["loss"] != pytest.approx(math.log(2), abs=1e-3)


def test_a_prompt_is_computed_once_a_pair(
    policy: Path, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaModel

    sizes: list[int] = []
    run = LlamaModel.forward

    def spy(self: Any, input_ids: Any = None, **named: Any) -> Any:
        sizes.append(input_ids.numel())
        return run(self, input_ids, **named)

    monkeypatch.setattr(LlamaModel, "forward", spy)
    once(policy, policy, shard, tmp_path / "ours", learning_rate=1e-4)
    shared = sizes[-1]
    from prefloop.training.trainers import answers_only

    monkeypatch.setattr(answers_only, "on_answers_only", lambda *_, **__: "apart")
    once(policy, policy, shard, tmp_path / "trl", learning_rate=1e-4)
    assert shared < 0.65 * sizes[-1]


def test_a_record_says_why_prompts_were_not_shared(shard: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    model = tmp_path / "model"
    make_model(model)
    size = len(AutoTokenizer.from_pretrained(model))
    MistralForCausalLM(
        MistralConfig(
            vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, sliding_window=16, pad_token_id=0,
            max_position_embeddings=256,
        )
    ).save_pretrained(model)  # fmt: skip
    result = once(model, model, shard, tmp_path / "out", learning_rate=1e-4)
    assert result.how["prompts"] == "apart: its attention has a window"
