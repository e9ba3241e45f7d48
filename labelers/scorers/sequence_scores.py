"""Scores of whole conversations by a sequence-classification model with one output.

Invariants:

* A score depends on its conversation alone, not on what else is in the batch: padding is on the
  right, masked, and of a token that the model's head does not take for the end of the text. A model
  that reads padding all the same (it is tried) has none: only equal lengths are batched.
* A conversation is scored whole or refused; nothing is cut.
* A head that was not in the checkpoint scores nothing: its weights would be random.

Imports torch and transformers inside functions only. Weights are read as safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from prefloop.data.conversations.chat import LEFT_OUT, render_tokens
from prefloop.data.conversations.tokenizing import open_tokenizer, padding_id
from prefloop.data.protocol import Message, RequestRejected
from prefloop.labelers.base import LabelerError
from prefloop.labelers.model_loading import loading_model
from prefloop.labelers.scorers.compute_threads import computing_with

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = ("Yes.", "No, not at all.")
_LONG = " ".join(_PROBES * 8)
_CPU_BATCH_TOKENS = 1_024
"""On a CPU, activations of larger batches leave its caches: see benchmarks/RESULTS.md."""
_NO_LIMIT = 10**9  # tokenizers without a limit say 10**30
_NEAR, _NEAR_IN_SHORT_TYPES = 1e-3, 0.1
"""By what part of a score above 1, or by how much of one below, rounding may change it."""


class SequenceScorer:
    """A reward model in this process. Not thread-safe: call it from one thread at a time."""

    def __init__(
        self,
        checkpoint: str,
        *,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        batch_tokens: int = 16_384,
        max_length: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Load the model in the folder ``checkpoint``; for the settings see
        ``prefloop.labelers.config.RewardModelLabeler``.

        Raises ``LabelerError`` for a folder that holds no such model: not loadable, more outputs
        than one, a head that is not in the checkpoint, or no chat template.
        """
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "bfloat16" if device.startswith("cuda") else "float32"
        self.tokenizer = _load_tokenizer(checkpoint, trust_remote_code)
        _check_template(self.tokenizer, checkpoint)
        self._model = _load_model(checkpoint, getattr(torch, dtype), device, trust_remote_code)
        self._dtype = dtype
        config = self._model.config.get_text_config()
        if config.pad_token_id is None or config.pad_token_id < 0:
            # It was never run in batches, so its head reads at the last token: keep it so.
            config.pad_token_id = padding_token(self.tokenizer)
        self._padding = int(config.pad_token_id)
        self._batch_tokens = (
            min(batch_tokens, _CPU_BATCH_TOKENS) if device == "cpu" else batch_tokens
        )
        self.max_length = min(max_length or _NO_LIMIT, context_length(config, self.tokenizer))
        """Tokens of the longest conversation that is scored."""
        self.tokenizer.model_max_length = _NO_LIMIT  # we refuse by ourselves; it would only warn
        self._pads = self._is_blind_to_padding()

    def encode(self, messages: Sequence[Message], answer: str) -> list[int]:
        """Token ids of the conversation that ends with ``answer``.

        Raises ``RequestRejected`` where the chat template refuses it (``unrenderable_chat``) or
        it is longer than ``max_length`` (``context_overflow``).
        """
        ids = conversation_tokens(self.tokenizer, messages, answer)
        if len(ids) > self.max_length:
            raise RequestRejected(
                "context_overflow", f"{len(ids)} tokens where {self.max_length} fit"
            )
        return ids

    def score(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """The model's output for each of N sequences of token ids [N]; may hold NaN."""
        return self._score(sequences, pads=self._pads)

    def _score(self, sequences: Sequence[Sequence[int]], *, pads: bool) -> NDArray[np.float64]:
        import torch

        found = np.empty(len(sequences), np.float64)
        device = self._model.device
        lengths = [len(ids) for ids in sequences]
        batches = length_sorted_batches(lengths, self._batch_tokens)
        if not pads:
            batches = [
                list(rows) for batch in batches for _, rows in groupby(batch, lengths.__getitem__)
            ]
        with computing_with(None), torch.inference_mode():
            for rows in batches:
                length = max(len(sequences[row]) for row in rows)
                ids = np.full((len(rows), length), self._padding, np.int64)
                real = np.zeros((len(rows), length), np.int64)
                for index, row in enumerate(rows):
                    ids[index, : len(sequences[row])] = sequences[row]
                    real[index, : len(sequences[row])] = 1
                output = self._model(
                    input_ids=torch.from_numpy(ids).to(device),
                    attention_mask=torch.from_numpy(real).to(device),
                )
                found[rows] = output.logits[:, 0].double().cpu().numpy()
        return found

    def _is_blind_to_padding(self) -> bool:
        """Whether the model says the same of a short conversation beside a long one."""
        asked = [{"role": "user", "content": "?"}]
        both = [conversation_tokens(self.tokenizer, asked, text) for text in (_PROBES[0], _LONG)]
        if max(map(len, both)) > self.max_length:
            return True
        alone = self._score(both, pads=False)
        near = _NEAR if self._dtype == "float32" else _NEAR_IN_SHORT_TYPES
        try:
            apart = np.abs(self._score(both, pads=True) - alone)
        except (ValueError, RuntimeError):  # it has no padding at all
            return False
        return bool((apart <= near * np.maximum(1.0, np.abs(alone))).all())


def conversation_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str
) -> list[int]:
    """Token ids of a conversation and its answer under the model's own chat template.

    What is trained on and what is scored both come from here. Raises as ``render_tokens`` does.
    """
    turn = {"role": "assistant", "content": answer}
    return render_tokens(tokenizer, [*messages, turn], add_generation_prompt=False)


def length_sorted_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices of ``lengths`` [N] in batches of similar length, the longest first.

    A batch's rows times its longest length is at most ``batch_tokens``, except for a single
    sequence that is longer. Equal lengths stay in their order.
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if room == 0:
            batches.append([])
            room = max(batch_tokens // max(lengths[index], 1), 1)
        batches[-1].append(index)
        room -= 1
    return batches


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to pad with for a model that names none.

    Heads on decoders read at the last token that is not padding, so the token that ends a
    conversation must not be it. Raises ``LabelerError`` where every special token is that one.
    """
    last = conversation_tokens(tokenizer, [{"role": "user", "content": "?"}], _PROBES[0])[-1]
    token = padding_id(tokenizer, but=last)
    if token is not None:
        return token
    raise LabelerError(
        f"the tokenizer of {tokenizer.name_or_path} has no token to pad with: set pad_token in its "
        "tokenizer_config.json"
    )


def context_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the model and its tokenizer were made for; a billion where neither says."""
    positions = getattr(config, "max_position_embeddings", None) or _NO_LIMIT
    if positions < 0:  # XLNet's way to say that there is no limit
        positions = _NO_LIMIT
    return int(min(positions, tokenizer.model_max_length or _NO_LIMIT, _NO_LIMIT))


def _load_tokenizer(checkpoint: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        return open_tokenizer(
            checkpoint, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise _unusable(checkpoint, "its tokenizer cannot be loaded", error) from error


def _check_template(tokenizer: PreTrainedTokenizerBase, checkpoint: str) -> None:
    """Refuse a model whose chat template is missing or does not show it the answer."""
    if not tokenizer.chat_template:
        raise LabelerError(
            f"{checkpoint}: the tokenizer has no chat template, so nobody knows how this reward "
            "model wants to read a conversation: put its chat_template.jinja into the folder"
        )
    question = [{"role": "user", "content": "?"}]
    try:
        one, other = (conversation_tokens(tokenizer, question, answer) for answer in _PROBES)
    except RequestRejected as rejected:
        if rejected.reason == LEFT_OUT and _takes(tokenizer, question):
            raise _hidden_answer(checkpoint) from rejected
        raise LabelerError(
            f"{checkpoint}: the chat template refuses a question with its answer: {rejected}"
        ) from rejected
    if one == other:
        raise _hidden_answer(checkpoint)


def _takes(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> bool:
    try:
        render_tokens(tokenizer, messages, add_generation_prompt=False)
    except RequestRejected:
        return False
    return True


def _hidden_answer(checkpoint: str) -> LabelerError:
    return LabelerError(
        f"{checkpoint}: the chat template does not write the assistant's answer, so all answers "
        "would score alike: use a template that does"
    )


def _load_model(checkpoint: str, dtype: Any, device: str, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForSequenceClassification

    from prefloop.labelers.scorers.attention import attend_as_made

    if not (Path(checkpoint) / "config.json").is_file():
        raise LabelerError(
            f"{checkpoint}: no config.json: a reward model is a whole checkpoint (merge an adapter "
            "into its base first)"
        )
    try:
        with _quiet():
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                checkpoint,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unusable(checkpoint, "cannot be loaded as a reward model", error) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise LabelerError(
            f"{checkpoint} is no reward model: its weights lack {missing[0]}, which would be "
            "random: train a head with `prefloop train --method reward`"
        )
    if model.config.num_labels != 1:
        raise LabelerError(
            f"{checkpoint}: the model has {model.config.num_labels} outputs, and a reward model "
            "has one: use a checkpoint with num_labels 1"
        )
    attend_as_made(model)
    _score_in_float32(model)
    return model.to(device).eval()


def _score_in_float32(model: Any) -> None:
    """Have the head of a decoder compute in float32: bfloat16 has so few digits that different
    answers get equal scores."""
    import torch

    head = getattr(model, "score", None)
    if isinstance(head, torch.nn.Linear) and head.weight.dtype != torch.float32:
        head.float().register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))


def _quiet() -> Any:
    """No progress bar and no table of missing weights: what is wrong is said in our own line."""
    from contextlib import ExitStack

    from transformers.utils import logging

    stack = ExitStack()
    stack.enter_context(loading_model())
    stack.callback(logging.set_verbosity, logging.get_verbosity())
    logging.set_verbosity_error()
    return stack


def _unusable(checkpoint: str, what: str, error: Exception) -> LabelerError:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return LabelerError(
        f"{checkpoint}: {what}: {first} (a reward model is a folder with config.json, "
        "*.safetensors and a tokenizer, or its hub name)"
    )
