"""The forward pass of TRL's trainers, on what counts: answers' positions, prompts once.

TRL asks a model for log-probabilities with ``fused_lm_head=True``. Its own answer to that scores
all positions where there is no Triton, prompts and padding too; ours scores those that have a
label, and puts both answers of a pair behind one forward pass of their prompt where that is less
work.

Imports torch and TRL: import this module inside functions only.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from trl.trainer.utils import FusedCausalLMOutput

from prefloop.training.policy.bundles import Batch, Bundle, batch_of, is_cheaper_packed
from prefloop.training.policy.head import TokenScores, score_tokens
from prefloop.training.policy.passes import Passes, passes_of
from prefloop.training.session.setup import is_sharded

_TRITON = ("cuda", "xpu")
SHARED = "shared"
"""What a training's record says where pairs share the forward pass of their prompt."""


class AnswersOnly:
    """In front of a trainer of TRL's: its model's forward pass is as above."""

    in_pairs: ClassVar[bool] = False
    """Whether the second half of a batch are other answers to the prompts of the first."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        trainer: Any = self
        temperature = getattr(trainer, "temperature", 1.0)
        of_policy = on_answers_only(trainer.model, temperature=temperature, pairs=self.in_pairs)
        if getattr(trainer, "ref_model", None) is not None:
            on_answers_only(trainer.ref_model, temperature=temperature, pairs=self.in_pairs)
        self.how = {"prompts": of_policy} if self.in_pairs else {}
        """See ``prefloop.training.session.fit.TrainResult``."""


def on_answers_only(model: Any, *, temperature: float = 1.0, pairs: bool = False) -> str:
    """Have ``model``, which TRL has given its fused output layer, answer for it as above.

    ``pairs``: the second half of each batch are other answers to the prompts of the first.

    Returns ``SHARED``, or why prompts are not shared.
    """
    if is_sharded():
        return "apart: its weights lie on several devices"
    passes = passes_of(model).at(temperature)
    inner = passes.model
    experts = getattr(inner.config, "output_router_logits", False)
    # With Triton, TRL's own scores answers only.
    by_trl = passes.head is None or experts or (not pairs and inner.device.type in _TRITON)
    forward = None if by_trl else _Forward(passes, pairs=pairs and passes.apart is None)
    inner.forward = types.MethodType(_answering(inner, forward), inner)
    if passes.head is None or experts:
        return f"apart: {passes.apart or 'it is a mixture of experts'}"
    if forward and forward.pairs:
        return SHARED
    return f"apart: {passes.apart}" if pairs else "apart"


def _answering(inner: Any, forward: _Forward | None) -> Any:
    """The ``forward`` of ``inner``, by ``forward`` where that knows all that is asked."""
    of_trl = inner.forward
    takes_positions = "position_ids" in inspect.signature(type(inner).forward).parameters

    # The signature is what `generate` checks its arguments by.
    @functools.wraps(type(inner).forward)
    def answer(_self: Any, *given: Any, **named: Any) -> Any:
        if given or not named.get("fused_lm_head"):
            return of_trl(*given, **named)
        by_us = forward is not None and forward.knows(named)
        if takes_positions:
            named = _with_positions(named)
        return forward(named) if forward is not None and by_us else of_trl(**named)

    return answer


def _with_positions(named: dict[str, Any]) -> dict[str, Any]:
    """``named`` with positions that count from each row's first token, where rows are padded on the
    left: TRL leaves them out, and models of learned positions would read the tokens at others than
    those that they were sampled at."""
    real = named.get("attention_mask")
    if real is None or named.get("position_ids") is not None or bool(real[:, 0].all()):
        return named
    return {**named, "position_ids": (real.long().cumsum(1) - 1).clamp(min=0)}


@dataclass(frozen=True)
class _Forward:
    """One forward pass for a batch [B, T], padded on either side."""

    passes: Passes
    pairs: bool

    def knows(self, named: dict[str, Any]) -> bool:
        """Whether nothing else is asked."""
        return named.get("labels") is not None and not {
            name for name, value in named.items() if value is not None and value is not False
        } - {"input_ids", "attention_mask", "labels", "fused_lm_head", "use_cache",
             "num_items_in_batch", "return_dict"}  # fmt: skip

    def __call__(self, named: dict[str, Any]) -> FusedCausalLMOutput:
        ids, labels = named["input_ids"], named["labels"]
        real = named.get("attention_mask")
        scored = labels[:, 1:] != -100
        packed = self._packed(ids, real, labels) if self.pairs else None
        if packed is not None:
            found = self.passes.scores(packed)
        else:
            body = self.passes.model.base_model
            places = named.get("position_ids")
            where = {} if places is None else {"position_ids": places}
            hidden = body(
                input_ids=ids, attention_mask=real, use_cache=False, **where
            ).last_hidden_state
            assert self.passes.head is not None
            tokens = labels[:, 1:][scored].to(hidden.device)
            found = score_tokens(hidden[:, :-1][scored], tokens, self.passes.head)
        return _as_trl(found, scored, named.get("num_items_in_batch"))

    def _packed(self, ids: Any, real: Any, labels: Any) -> Batch | None:
        """The pairs in one sequence each, their answers' tokens in the order of the rows; null
        where that saves nothing, or they are no pairs."""
        bundles = _bundles(ids, real, labels)
        if bundles is None or not is_cheaper_packed(bundles, self.passes.width):
            return None
        return _by_row(batch_of(bundles, ids.device), len(bundles))


def _bundles(ids: Any, real: Any, labels: Any) -> Sequence[Bundle] | None:
    """The pairs of a batch that has the second answers below the first; null where it has not."""
    rows, of_answer = ids.cpu().numpy(), (labels != -100).cpu().numpy()
    there = real.cpu().numpy().astype(bool) if real is not None else of_answer | True
    half, odd = divmod(len(rows), 2)
    if odd:
        return None
    bundles = []
    for row in range(half):
        prompts, answers = [], []
        for at in (row, row + half):
            whole, mine = rows[at][there[at]], of_answer[at][there[at]]
            begin = len(mine) - int(mine.sum())
            if not mine[begin:].all() or not begin:  # what is learned is not the end of it
                return None
            prompts.append(whole[:begin])
            answers.append(whole[begin:])
        if not (len(prompts[0]) == len(prompts[1]) and (prompts[0] == prompts[1]).all()):
            return None
        bundles.append(Bundle(prompts[0], tuple(answers)))
    return bundles


def _by_row(batch: Batch, pairs: int) -> Batch:
    """``batch`` of pairs with all first answers before all second ones, as TRL has its rows."""
    order = torch.argsort(batch.answer % 2 * pairs + batch.answer // 2, stable=True)
    row, column = batch.spots
    return Batch(
        batch.ids, batch.positions, batch.part, (row[order], column[order]), batch.tokens[order],
        batch.answer[order],
    )  # fmt: skip


def _as_trl(found: TokenScores, scored: torch.Tensor, items: Any) -> FusedCausalLMOutput:
    """``found``, in the order of the rows, at its places [B, T - 1]."""

    def placed(flat: torch.Tensor) -> torch.Tensor:
        return flat.new_zeros(scored.shape).masked_scatter(scored, flat)

    log_probs = placed(found.log_probs)
    count = scored.sum().clamp(min=1) if items is None else items
    return FusedCausalLMOutput(
        loss=-log_probs.sum() / count,
        log_probs=log_probs,
        entropy=placed(found.entropy),
        mean_logits=placed(found.mean_logits),
        is_top1=placed(found.is_top1),
        log_sum_sq_probs=placed(found.log_sum_squares),
        label_mask=scored,
    )
