"""Rows that TRL pads on the left, as GRPO's: a token has the position that it was sampled at."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from trl.trainer.utils import add_fused_lm_head

from prefloop.training.trainers import answers_only
from prefloop.training.trainers.answers_only import on_answers_only


def model() -> GPT2LMHeadModel:
    """Of learned positions, which matter."""
    torch.manual_seed(0)
    made = GPT2LMHeadModel(
        GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    )
    with torch.no_grad():
        made.transformer.wpe.weight.normal_(0, 1)
        made.transformer.wte.weight.normal_(0, 1)
    return made.eval()


@pytest.mark.parametrize("by_trl", [True, False])
def test_padding_on_the_left_moves_no_token(by_trl: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, trained = model(), model()
    add_fused_lm_head(trained)
    if by_trl:
        monkeypatch.setattr(answers_only, "_TRITON", ("cpu",))
    on_answers_only(trained)
    draw = np.random.default_rng(0)
    prompts = [draw.integers(96, size=size).tolist() for size in (9, 3)]
    answer = draw.integers(96, size=5).tolist()
    ids = torch.tensor([[0] * (9 - len(one)) + one + answer for one in prompts])
    real = torch.tensor([[0] * (9 - len(one)) + [1] * (len(one) + 5) for one in prompts])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < 9, -100)
    with torch.no_grad():
        found = trained(
            input_ids=ids, attention_mask=real, labels=labels, fused_lm_head=True, use_cache=False
        ).log_probs[:, -5:]
        for row, prompt in enumerate(prompts):
            whole = torch.tensor([[*prompt, *answer]])
            log_p = plain(whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = log_p.gather(1, whole[0, len(prompt) :, None])[:, 0]
            torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)
