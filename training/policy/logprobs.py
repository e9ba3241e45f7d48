"""Log-probabilities of answers under a policy, and what follows from them: KL and reward margin.

All are natural logarithms of the untempered distribution, summed over the tokens of an answer,
its end token included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefloop.data.protocol import Message
from prefloop.labelers.statistics.clusters import Clusters
from prefloop.labelers.statistics.estimate import Estimate, mean_estimate
from prefloop.training.inputs.tokens import (
    TokenIds,
    answer_ids,
    check_embedding,
    end_token,
    prompt_ids,
)
from prefloop.training.policy.checkpoints import embeddings, load_model, load_tokenizer
from prefloop.training.policy.rotary import rotary_limit

if TYPE_CHECKING:
    import torch

    from prefloop.training.policy.passes import Passes


BATCH = 16
"""Answers that are scored together."""
WHOLE = (0, 1)
"""The share that is all."""


@dataclass(frozen=True)
class Placement:
    """Where a policy is computed, and in which type of numbers; both as torch names them."""

    device: str = "cpu"
    dtype: str = "float32"

    @classmethod
    def fastest(cls) -> Placement:
        """A GPU where there is one, in bfloat16 where it can."""
        import torch

        if not torch.cuda.is_available():
            return cls()
        return cls("cuda", "bfloat16" if torch.cuda.is_bf16_supported() else "float32")


@dataclass(frozen=True)
class ScoredTexts:
    """Answers behind their prompts, as :func:`answer_logprobs` takes them. Raises ``ValueError``
    where the lengths differ."""

    prompts: Sequence[Sequence[Message]]
    answers: Sequence[str | Sequence[int]]
    complete: Sequence[bool] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        flags = self.answers if self.complete is None else self.complete
        if not len(self.prompts) == len(self.answers) == len(flags):
            raise ValueError(
                f"{len(self.prompts)} prompts and {len(self.answers)} answers (and their flags)"
            )

    def __len__(self) -> int:
        return len(self.answers)


Scores = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Rows of some texts, and their log-probabilities."""
ReadShare = Callable[[tuple[int, int]], Scores]
"""Gives those of a share of some texts; see :func:`share_logprobs`."""


@dataclass(frozen=True)
class Scorer:
    """Whoever computes log-probabilities."""

    dtype: str
    """The type of the numbers that it computes with."""
    read: Callable[[Path, ScoredTexts], ReadShare]
    """Opens the checkpoint (or adapter) in a folder for some texts, which may load it; who has what
    it gave has it in memory."""


def answer_logprobs(
    checkpoint: Path,
    prompts: Sequence[Sequence[Message]],
    answers: Sequence[str | Sequence[int]],
    *,
    complete: Sequence[bool] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    at: Placement = Placement(),  # frozen
) -> NDArray[np.float64]:
    """log p(answer | prompt) in nats [N] under the policy (or adapter) in ``checkpoint``, computed
    ``at`` a device in a type; the softmax is in float32 whatever that type.

    Teacher-forced: each answer is encoded anew and ends with the end token; one that is given as
    token ids is taken as it is. ``template_kwargs`` are those that the answers were sampled with.
    ``complete`` [N] is False for an answer that was cut off at its token limit (finish reason
    ``length``): it has no end token, so none is scored. Raises ``ValueError`` where the lengths
    differ and ``TrainingError`` where ``checkpoint`` holds no model.
    """
    texts = ScoredTexts(prompts, answers, complete, template_kwargs or {})
    if not answers:
        return np.empty(0)
    return whole_of([loaded_reader(checkpoint, texts, at)(WHOLE)], len(answers))


def loaded_reader(checkpoint: Path, texts: ScoredTexts, at: Placement) -> ReadShare:
    """Computes shares of what :func:`answer_logprobs` computes, by one model in memory."""
    import torch

    asked, ids = scored_tokens(checkpoint, texts)
    model = load_model(checkpoint, dtype=getattr(torch, at.dtype), device=at.device)

    def read(share: tuple[int, int]) -> Scores:
        return share_logprobs(model, asked, ids, batch_size=BATCH, share=share)

    return read


def scored_tokens(checkpoint: Path, texts: ScoredTexts) -> tuple[list[TokenIds], list[TokenIds]]:
    """The token ids of prompts and of answers that :func:`answer_logprobs` scores.

    Raises ``TrainingError`` where the model in ``checkpoint`` does not have one of them.
    """
    tokenizer = load_tokenizer(checkpoint)
    said = [one if isinstance(one, str) else "" for one in texts.answers]
    ids = answer_ids(tokenizer, said, end_token(tokenizer), texts.template_kwargs)
    if texts.complete is not None:
        ids = [one if whole else one[:-1] for one, whole in zip(ids, texts.complete, strict=True)]
    ids = [
        encoded if isinstance(given, str) else np.asarray(given, dtype=np.int32)
        for encoded, given in zip(ids, texts.answers, strict=True)
    ]
    asked = [prompt_ids(tokenizer, prompt, texts.template_kwargs) for prompt in texts.prompts]
    check_embedding(embeddings(checkpoint), checkpoint, [*asked, *ids])
    return asked, ids


def sequence_logprobs(
    model: Any,
    prompts: Sequence[TokenIds],
    answers: Sequence[TokenIds],
    *,
    batch_size: int,
    autocast: torch.dtype | None = None,
) -> NDArray[np.float64]:
    """Summed log-probability [N] of the ids ``answers[i]`` behind the ids ``prompts[i]``; see
    :func:`share_logprobs`."""
    found = share_logprobs(model, prompts, answers, batch_size=batch_size, autocast=autocast)
    return whole_of([found], len(answers))


def whole_of(shares: Sequence[Scores], count: int) -> NDArray[np.float64]:
    """All log-probabilities [count], of every share. Raises ``ValueError`` where a row is in none
    of them, or in several."""
    rows = np.concatenate([np.empty(0, dtype=np.int64), *(rows for rows, _ in shares)])
    if not np.array_equal(np.sort(rows), np.arange(count)):
        raise ValueError(f"{len(rows)} rows, {len(set(rows.tolist()))} of them once, for {count}")
    out = np.empty(count)
    for found, values in shares:
        out[found] = values
    return out


def share_logprobs(
    model: Any,
    prompts: Sequence[TokenIds],
    answers: Sequence[TokenIds],
    *,
    batch_size: int,
    autocast: torch.dtype | None = None,
    share: tuple[int, int] = WHOLE,
) -> Scores:
    """Summed log-probabilities of the ids ``answers[i]`` behind the ids ``prompts[i]``, and which i
    they are of: those of a share.

    Runs in batches of similar length, with logits of the answers' tokens only, some of them at a
    time; equal prompts are computed once where the model can (``prefloop.training.policy.passes``)
    and it pays. ``autocast``: mixed precision as the trainer would use it, for a reference that
    must round alike. ``share`` (index, of): of the batches of all only every so-manieth, so that
    the shares together are the whole to the bit.
    """
    import torch

    from prefloop.training.policy.passes import passes_of

    device = next(model.parameters()).device
    found: list[int] = []
    values = [np.empty(0)]
    with torch.inference_mode(), torch.autocast(device.type, autocast, enabled=bool(autocast)):
        passes = passes_of(model)
        together = _ANSWERS_A_PROMPT if passes.apart is None else 1
        index, of = share
        lengths = [len(one) + len(two) for one, two in zip(prompts, answers, strict=True)]
        parts = _by_length(lengths, rotary_limit(passes.model))
        batches = chain.from_iterable(
            _batches(_by_prompt(prompts, answers, rows, together), batch_size) for rows in parts
        )
        for rows in islice(batches, index, None, of):
            flat = [row for bundle in rows for row in bundle]
            if passes.head is None:
                pairs = [prompts[row] for row in flat], [answers[row] for row in flat]
                values.append(_batch_logprobs(model, *pairs, device))
            else:
                bundles = [
                    (prompts[bundle[0]], [answers[row] for row in bundle]) for bundle in rows
                ]
                values.append(_bundle_logprobs(passes, bundles, device))
            found += flat
    return np.array(found, dtype=np.int64), np.concatenate(values)


_ANSWERS_A_PROMPT = 4
"""Answers that share a forward pass of their prompt, at most: each attends over all of them."""

_Rows = list[int]


def _by_length(lengths: Sequence[int], limit: int | None) -> list[_Rows]:
    """The rows that may be in a batch together: a long one would change what short ones are to a
    model that has a ``limit``, see ``rotary_limit``."""
    rows = range(len(lengths))
    if limit is None:
        return [list(rows)]
    return [[row for row in rows if (lengths[row] > limit) == long] for long in (False, True)]


def _by_prompt(
    prompts: Sequence[TokenIds], answers: Sequence[TokenIds], rows: Sequence[int], together: int
) -> list[_Rows]:
    """``rows`` of equal prompts, at most ``together`` of them each, the shortest first."""
    bundles: list[_Rows] = []
    last: dict[bytes, _Rows] = {}
    for row in rows:
        key = np.asarray(prompts[row]).tobytes()
        if key not in last or len(last[key]) == together:
            last[key] = []
            bundles.append(last[key])
        last[key].append(row)

    def length(rows: _Rows) -> int:
        return len(prompts[rows[0]]) + sum(len(answers[row]) for row in rows)

    return sorted(bundles, key=length)


def _batches(bundles: Sequence[_Rows], batch_size: int) -> Iterator[list[_Rows]]:
    """The bundles in their order, at most ``batch_size`` rows at a time (one bundle at least)."""
    batch: list[_Rows] = []
    for bundle in bundles:
        if batch and sum(map(len, batch)) + len(bundle) > batch_size:
            yield batch
            batch = []
        batch.append(bundle)
    if batch:
        yield batch


def _bundle_logprobs(
    passes: Passes,
    bundles: Sequence[tuple[TokenIds, Sequence[TokenIds]]],
    device: torch.device,
) -> NDArray[np.float64]:
    """One for each answer, of prompts and the answers to them."""
    import torch

    from prefloop.training.policy.bundles import Bundle, batch_of, is_cheaper_packed

    made = [Bundle(prompt, tuple(answers)) for prompt, answers in bundles]
    count = sum(len(one.answers) for one in made)
    if not is_cheaper_packed(made, passes.width):
        made = [alone for one in made for alone in one.apart()]
    batch = batch_of(made, device)
    log_probs = passes.scores(batch).log_probs.double()
    sums = torch.zeros(count, dtype=torch.float64, device=log_probs.device)
    found: NDArray[np.float64] = sums.index_add_(0, batch.answer, log_probs).cpu().numpy()
    return found


def _batch_logprobs(
    model: Any, prompts: list[TokenIds], answers: list[TokenIds], device: torch.device
) -> NDArray[np.float64]:
    """[B] for one batch, by the model's own logits. Padding is on the right: causal attention never
    sees it."""
    import torch

    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = np.zeros((len(prompts), length), dtype=np.int64)  # 0: any valid id pads
    real = np.zeros((len(prompts), length), dtype=np.int64)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = np.concatenate([prompt, answer])
        real[row, :end] = 1
    first = min(len(prompt) for prompt in prompts) - 1  # its logits are the earliest we need
    logits = model(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(real).to(device),
        use_cache=False,
        logits_to_keep=length - first,
    ).logits[:, first - length :]  # some models do not know how many to keep
    sums = np.zeros(len(prompts))
    # Row by row, so that a large vocabulary takes the float32 memory of one sequence, not of all.
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        begin = len(prompt) - 1 - first
        scores = logits[row, begin : begin + len(answer)].float()
        target = torch.from_numpy(answer.astype(np.int64)).to(device)
        picked = scores.gather(1, target[:, None])[:, 0] - scores.logsumexp(1)
        sums[row] = picked.double().sum().item()
    return sums


def kl_estimate(
    logp_policy: ArrayLike,
    logp_start: ArrayLike,
    prompts: Clusters | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """KL(policy || start) per answer in nats, with Student's t interval, whose unit are the
    ``prompts`` [N] (default: each answer has its own).

    Schulman's k1 estimator (http://joschu.net/blog/kl-approx.html): the mean over the policy's
    own answers of log policy - log start. It is unbiased if the answers were drawn from the
    policy at temperature 1 and top-p 1, and can be a little below 0 by chance. Raises
    ``ValueError`` for inputs that are empty, of unequal length or not finite.
    """
    policy, start = np.asarray(logp_policy, float), np.asarray(logp_start, float)
    if policy.shape != start.shape:
        raise ValueError(f"log-probabilities of shapes {policy.shape} and {start.shape}")
    return mean_estimate(policy - start, prompts, confidence)


def reward_margin(
    chosen: ArrayLike,
    rejected: ArrayLike,
    reference_chosen: ArrayLike,
    reference_rejected: ArrayLike,
    beta: float,
) -> NDArray[np.float64]:
    """The policy's implicit reward of chosen minus that of rejected, for each pair [N].

    beta * ((chosen - reference_chosen) - (rejected - reference_rejected)) of log-probabilities in
    nats: the argument of sigma in equation 7 of Rafailov et al. 2023 (arXiv 2305.18290). The
    loss of a pair is -log sigma of it.
    """
    gain_chosen = np.asarray(chosen, float) - np.asarray(reference_chosen, float)
    gain_rejected = np.asarray(rejected, float) - np.asarray(reference_rejected, float)
    return np.asarray(beta * (gain_chosen - gain_rejected))
