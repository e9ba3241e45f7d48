"""Tokenizer and chat format of the tiny models.

They behave like Llama's on purpose: the tokenizer adds BOS by itself *and* the chat template
writes BOS, so whoever encodes a rendered template has to pass ``add_special_tokens=False``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, SYSTEM, USER, ASSISTANT, END, PAD = (
    "<s>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|pad|>",
)
MAX_LENGTH = 1024

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|assistant|>' -}}{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
{%- elif message['role'] in ('system', 'user') -%}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- else -%}
{{- raise_exception('unknown role: ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on ``texts``; deterministic for given texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, SYSTEM, USER, ASSISTANT, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every text can be encoded
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A",
                pair=f"{BOS} $A {BOS} $B",
                special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
            ),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


class ChatEncoder:
    """Encodes one-turn chats in bulk, token for token as the chat template does."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._ids = {
            name: tokenizer.convert_tokens_to_ids(name)
            for name in (BOS, SYSTEM, USER, ASSISTANT, END)
        }

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain texts, without special tokens."""
        if not texts:
            return []
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def prompts(self, texts: Sequence[str], system: str = "") -> list[list[int]]:
        """Token ids of user messages, ready for the model to answer."""
        ids = self._ids
        head = [ids[BOS]]
        if system:
            head += [ids[SYSTEM], *self.encode([system])[0], ids[END]]
        return [[*head, ids[USER], *text, ids[END], ids[ASSISTANT]] for text in self.encode(texts)]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of assistant messages, the end token included."""
        return [[*text, self._ids[END]] for text in self.encode(texts)]
