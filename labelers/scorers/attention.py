"""Attention as a model was made with, and over keys and values that several heads share without a
copy of them for each.

On a CPU transformers repeats keys and values for every head as soon as there is a mask, which
padding always brings: at 500 tokens that costs ten times the attention itself.
"""

from __future__ import annotations

from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHARED_HEADS = "sdpa_shared_heads"
"""The implementation's name in transformers, beside its own "sdpa"."""
_ELSEWHERE = ("cache", "position_bias")
"""What only transformers' own way knows to handle."""


_CAP = "attn_logit_softcapping"
"""What Gemma 2 and its kin hold the scores of their attention under."""


def attend_as_made(model: PreTrainedModel) -> None:
    """Have ``model`` attend as it was trained to: transformers' "sdpa", the default, leaves a cap
    on scores out without a word, so with one it is "eager"; without, see ``share_heads``."""
    if getattr(model.config.get_text_config(), _CAP, None) is not None:
        model.set_attn_implementation("eager")
    else:
        share_heads(model)


def share_heads(model: PreTrainedModel) -> None:
    """Have ``model`` attend in place, where it would attend by transformers' "sdpa".

    Values are the same to the bit on a CPU; elsewhere transformers' own way is taken.
    """
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(SHARED_HEADS, attend)
        AttentionMaskInterface.register(SHARED_HEADS, sdpa_mask)
        model.set_attn_implementation(SHARED_HEADS)


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **how: Any
) -> tuple[Any, None]:
    """What ``sdpa_attention_forward`` gives: [row, position, head, dimension], of ``query`` [row,
    head, position, dimension], ``key`` and ``value`` with a divisor of its heads."""
    import torch

    shares = getattr(module, "num_key_value_groups", 1) > 1
    plain = query.device.type == "cpu" and all(how.get(name) is None for name in _ELSEWHERE)
    if attention_mask is None or not shares or not plain:
        done: tuple[Any, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **how
        )
        return done
    found = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=how.get("dropout", 0.0),
        scale=how.get("scaling"),
        enable_gqa=True,
    )
    return found.transpose(1, 2).contiguous(), None
