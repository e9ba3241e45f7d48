"""Tiny reward models with random weights, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.engine_models import make_tokenizer

ENCODER_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% if not loop.last %}[SEP]{% endif %}{% endfor %}"
)


def make_llama_reward(folder: Path, *, seed: int = 0, labels: int = 1, **config: Any) -> str:
    """A LlamaForSequenceClassification of 256 positions; the folder as a string.

    Its scores differ clearly from answer to answer. ``config`` are settings of LlamaConfig.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    make_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": labels,
    } | config
    LlamaForSequenceClassification(LlamaConfig(**settings)).save_pretrained(folder)
    return str(folder)


def make_bert_reward(folder: Path, *, seed: int = 0) -> str:
    """A BertForSequenceClassification of 200 positions, whose tokenizer adds [CLS] and [SEP] by
    itself and whose chat template does not write them; the folder as a string."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.BpeTrainer(
        special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(["user assistant the quick brown fox"], trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, raw.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=200,
    )  # fmt: skip
    tokenizer.chat_template = ENCODER_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=200, initializer_range=0.3, num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)
