"""How likely answers are under a policy and under its reference, in the tokens of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefloop.data.conversations.tokenizing import beyond_embedding
from prefloop.data.protocol import AnsweredPrompt, Likelihood, RequestRejected
from prefloop.labelers.scorers.compute_threads import computing_with
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.tokens import (
    OVERLONG,
    RenderedPrompts,
    TokenIds,
    answer_ids,
    end_token,
)
from prefloop.training.policy.checkpoints import (
    context_length,
    embeddings,
    load_model,
    load_tokenizer,
)
from prefloop.training.policy.logprobs import BATCH, Placement, sequence_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = ("The quick brown fox, 12,345 times: don't!", "  if x == 1:\n\treturn 'é'", "你好 🦊")


@dataclass(frozen=True)
class Scoring:
    """How the two models are computed. ``max_length``: longest conversation; null: as the models
    allow. ``template_kwargs``: variables of the policy's chat template."""

    at: Placement = Placement()  # noqa: RUF009
    batch_size: int = BATCH
    max_length: int | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


class PolicyAndReference:
    """Both models in memory. Not thread-safe: call it from one thread at a time.

    Prompts and answers are encoded by the policy's tokenizer and chat template; the reference reads
    the same ids.
    """

    def __init__(self, policy: Path, reference: Path, scoring: Scoring) -> None:
        """Load the checkpoints (or adapters) in the two folders.

        Raises ``TrainingError`` where one holds no model, where the policy has no chat template, or
        where the two do not have the same tokens.
        """
        import torch

        self._scoring = scoring
        self._tokenizer = load_tokenizer(policy)
        if not self._tokenizer.chat_template:
            raise TrainingError(
                f"{policy}: the tokenizer has no chat template, so nobody knows how this policy "
                "was asked: put its chat_template.jinja into the folder"
            )
        _require_same_tokens(policy, self._tokenizer, reference, load_tokenizer(reference))
        folders = (policy, reference)
        self._embeddings = min(
            (size for size in map(embeddings, folders) if size is not None), default=None
        )
        contexts = [context_length(folder) for folder in folders]
        self.max_length = min([*contexts, *([scoring.max_length] if scoring.max_length else [])])
        """Tokens of the longest conversation that is scored."""
        self._end = end_token(self._tokenizer)
        dtype = getattr(torch, scoring.at.dtype)
        self._models = [load_model(one, dtype=dtype, device=scoring.at.device) for one in folders]

    def __call__(self, asked: Sequence[AnsweredPrompt]) -> list[Likelihood | RequestRejected]:
        """See ``prefloop.data.protocol.Likelihoods``."""
        prompt_of = RenderedPrompts(self._tokenizer, self._scoring.template_kwargs)
        encoded = answer_ids(
            self._tokenizer,
            [one.answer for one in asked],
            self._end,
            self._scoring.template_kwargs,
        )
        read: list[tuple[TokenIds, TokenIds] | RequestRejected] = []
        for one, ids in zip(asked, encoded, strict=True):
            try:
                prompt = prompt_of(one.messages)
                read.append((prompt, self._checked(prompt, ids if one.complete else ids[:-1])))
            except RequestRejected as rejected:
                read.append(rejected)
        whole = [one for one in read if not isinstance(one, RequestRejected)]
        prompts, answers = [prompt for prompt, _ in whole], [answer for _, answer in whole]
        with computing_with(None):
            sums = [
                sequence_logprobs(model, prompts, answers, batch_size=self._scoring.batch_size)
                for model in self._models
            ]
        found = iter(
            Likelihood(policy, reference, len(answer), len(prompt) + len(answer))
            for policy, reference, prompt, answer in zip(
                sums[0].tolist(), sums[1].tolist(), prompts, answers, strict=True
            )
        )
        return [one if isinstance(one, RequestRejected) else next(found) for one in read]

    def _checked(self, prompt: TokenIds, answer: TokenIds) -> TokenIds:
        """``answer``, if it can be scored. Raises ``RequestRejected``."""
        if not len(answer):
            raise RequestRejected("nothing_to_score", "the answer is empty and was cut off")
        length = len(prompt) + len(answer)
        if length > self.max_length:
            raise RequestRejected(OVERLONG, f"{length} tokens where {self.max_length} fit")
        highest = int(max(np.max(prompt, initial=0), np.max(answer)))
        if self._embeddings is not None and highest >= self._embeddings:
            raise RequestRejected("beyond_embedding", beyond_embedding(highest, self._embeddings))
        return answer


def token_difference(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """Why a text is not the same ids for both, in words; null where it is. Tokens that only one of
    the two was given beside its vocabulary, as for padding, are no difference."""
    ours, theirs = one.get_vocab(), other.get_vocab()
    moved = next((token for token, at in ours.items() if theirs.get(token, at) != at), None)
    if moved is not None:
        return f"the token {moved!r} is {ours[moved]} in one and {theirs[moved]} in the other"
    added = {str(token) for each in (one, other) for token in each.added_tokens_decoder.values()}
    if only_one := (ours.keys() ^ theirs.keys()) - added:
        return f"only one of them has the token {min(only_one)!r}"
    for text in _PROBES:
        cut, cut_by_other = (each.encode(text, add_special_tokens=False) for each in (one, other))
        if cut != cut_by_other:
            return f"they cut the text {text!r} differently"
    return None


def _require_same_tokens(
    policy: Path,
    of_policy: PreTrainedTokenizerBase,
    reference: Path,
    of_reference: PreTrainedTokenizerBase,
) -> None:
    """Raise ``TrainingError`` unless a text is the same ids for both."""
    what = token_difference(of_policy, of_reference)
    if what is not None:
        raise TrainingError(
            f"{policy} and {reference} do not have the same tokens ({what}), so their "
            "probabilities are of different things: name the model that the policy was trained "
            "from as its reference"
        )
