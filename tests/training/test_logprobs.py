"""Log-probabilities of answers, the KL estimate and the implicit-reward margin."""

import math

import numpy as np
import pytest

from prefloop.data.conversations.chat import render_tokens
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.tokens import answer_ids, end_token, prompt_ids
from prefloop.training.policy.logprobs import answer_logprobs, kl_estimate, reward_margin
from tests.helpers.engine_models import make_adapter, make_model

PROMPTS = [
    [{"role": "user", "content": "Write one sentence about a fox."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A or B?"}],
    [{"role": "user", "content": "Use the word lantern. " * 5}],
]
ANSWERS = ["The quick brown fox.", "A", "seven wizards watch a lantern " * 3]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    from pathlib import Path

    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


@pytest.fixture(scope="module")
def tokenizer(policy):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(policy)


def by_hand(model, tokenizer, prompt, answer, *, complete=True):
    """One sequence, no padding, all logits, log_softmax in float64."""
    import torch

    end = [tokenizer.eos_token_id] if complete else []
    answer = tokenizer.encode(answer, add_special_tokens=False) + end
    prompt = render_tokens(tokenizer, prompt)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].double()
    picked = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return picked[range(len(answer)), answer].sum().item()


def load(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_equals_one_sequence_at_a_time(policy, tokenizer, batch_size, monkeypatch):
    model = load(policy)
    expected = [by_hand(model, tokenizer, *pair) for pair in zip(PROMPTS, ANSWERS, strict=True)]
    monkeypatch.setattr("prefloop.training.policy.logprobs.BATCH", batch_size)
    found = answer_logprobs(policy, PROMPTS, ANSWERS)
    assert found.dtype == np.float64
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_cut_off_answer_has_no_end_token_to_score(policy, tokenizer):
    found = answer_logprobs(policy, PROMPTS[:2], ANSWERS[:2], complete=[True, False])
    model = load(policy)
    assert found[1] == pytest.approx(
        by_hand(model, tokenizer, PROMPTS[1], ANSWERS[1], complete=False), abs=1e-4
    )
    assert found[0] == pytest.approx(by_hand(model, tokenizer, PROMPTS[0], ANSWERS[0]), abs=1e-4)


def test_adapter_is_its_base_with_the_adapter_on_top(policy, tokenizer, tmp_path):
    from peft import PeftModel

    adapter = tmp_path / "adapter"
    make_adapter(adapter, str(policy))
    tokenizer.save_pretrained(adapter)
    model = PeftModel.from_pretrained(load(policy), adapter)
    found = answer_logprobs(adapter, PROMPTS, ANSWERS)
    expected = [by_hand(model, tokenizer, *pair) for pair in zip(PROMPTS, ANSWERS, strict=True)]
    assert found == pytest.approx(expected, abs=1e-3)
    assert np.abs(found - answer_logprobs(policy, PROMPTS, ANSWERS)).max() > 0.1


def test_nothing_in_nothing_out_and_unequal_lengths_are_refused(policy):
    assert answer_logprobs(policy, [], []).shape == (0,)
    with pytest.raises(ValueError, match="3 prompts and 1 answers"):
        answer_logprobs(policy, PROMPTS, ["x"])


def test_a_folder_without_a_model_is_named(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="no model in"):
        answer_logprobs(tmp_path, PROMPTS, ANSWERS)


def test_control_tokens_spelt_out_in_an_answer_stay_text(tokenizer):
    end = end_token(tokenizer)
    [ids] = answer_ids(tokenizer, ["over<|end|>\n<|user|>\nmore <s>"], end)
    assert list(ids).count(end) == 1
    assert ids[-1] == end
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.decode(ids[:-1]) == "over<|end|>\n<|user|>\nmore <s>"


def test_prompt_has_one_bos(tokenizer):
    ids = prompt_ids(tokenizer, PROMPTS[1])
    assert list(ids).count(tokenizer.bos_token_id) == 1
    assert list(ids) == render_tokens(tokenizer, PROMPTS[1])


@pytest.mark.parametrize(
    ("turn", "token"),
    [
        ("<|{role}|>{content}<|end|>\n", "<|end|>"),
        ("{content} <|user|>\n", "<|user|>"),  # a turn's end that is not the EOS, as Gemma's
        ("{role}: {content}\n", "<|end|>"),  # the template writes no end: the EOS it is
    ],
)
def test_end_token_is_what_the_template_writes(tokenizer, monkeypatch, turn, token):
    body = turn.replace("{role}", "{{ m['role'] }}").replace("{content}", "{{ m['content'] }}")
    template = "{% for m in messages %}" + body + "{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    assert end_token(tokenizer) == tokenizer.convert_tokens_to_ids(token)


def test_no_end_token_at_all_is_refused(policy):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    tokenizer.eos_token = None
    with pytest.raises(TrainingError, match="no end-of-sequence token"):
        end_token(tokenizer)


def test_kl_is_the_mean_log_ratio():
    # log ratios 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.302653, half = 4.302653 / sqrt(3)
    estimate = kl_estimate([-10, -20, -30], [-11, -22, -33])
    assert estimate.value == 2
    assert estimate.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert estimate.n == 3


def test_kl_of_known_distributions():
    # 1000 samples of p = (0.7, 0.3) in exact proportion, against q = (0.5, 0.5):
    # KL = 0.7 ln 1.4 + 0.3 ln 0.6 = 0.082283
    first = np.arange(1000) < 700
    estimate = kl_estimate(np.log(np.where(first, 0.7, 0.3)), np.full(1000, np.log(0.5)))
    assert estimate.value == pytest.approx(0.082283, abs=1e-6)
    assert estimate.low < 0.082283 < estimate.high


def test_kl_refuses_what_cannot_be_averaged():
    with pytest.raises(ValueError, match="shapes"):
        kl_estimate([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        kl_estimate([1.0, -math.inf], [1.0, 1.0])
    with pytest.raises(ValueError, match="at least one"):
        kl_estimate([], [])


def test_reward_margin_worked_example():
    # Log-ratios +1.8 and -1.3 at beta 0.1: 0.1 * (1.8 - -1.3) = 0.31,
    # sigma(0.31) = 0.576885, -ln of it = 0.550112
    [margin] = reward_margin([-10.0], [-20.0], [-11.8], [-18.7], 0.1)
    assert margin == pytest.approx(0.31)
    preferred = 1 / (1 + math.exp(-margin))
    assert preferred == pytest.approx(0.576885, abs=1e-6)
    assert -math.log(preferred) == pytest.approx(0.550112, abs=1e-6)
