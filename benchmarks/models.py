"""Models with random weights, for benchmarks of speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefloop.data.embedded import resolve_embedded

WORDS = ["amber", "birch", "cedar", "dune", "ember", "fern", "grove", "heath", "iris", "juniper"]
"""What made-up texts are made of."""


def make_model(
    folder: Path,
    width: int,
    layers: int,
    *,
    tokenizer: Any = None,
    positions: int = 1024,
    scores: bool = False,
    seed: int = 0,
) -> None:
    """A Llama with ``tokenizer`` (default: the embedded policy's); with ``scores`` one output
    instead of a language model's."""
    import torch
    from transformers import (
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
    )

    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(resolve_embedded("embedded:policy"))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width * 3,
        num_hidden_layers=layers, num_attention_heads=width // 64, num_key_value_heads=width // 64,
        max_position_embeddings=positions, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=not scores, num_labels=1 if scores else 2,
    )  # fmt: skip
    kind = LlamaForSequenceClassification if scores else LlamaForCausalLM
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
