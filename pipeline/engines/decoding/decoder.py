"""The decode loop of the transformers engine: batches of prompts in, drawn tokens out.

``model.generate`` would do, but it prefills a prompt once for each of its samples, keeps decoding
rows that have ended, and copies the whole KV cache at every step. This loop prefills each prompt
once, gives the places of rows that have ended to rows that wait, or drops them, and writes the
cache in place; see benchmarks for what that is worth. Whose turn it is depends on the batches
alone, so the same batches give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from transformers import PreTrainedModel, StopStringCriteria

from prefloop.data.protocol import Sampling
from prefloop.pipeline.engines.decoding.sampler import SeededSampler
from prefloop.pipeline.engines.decoding.stepper import Stepper
from prefloop.pipeline.engines.prefixes import PromptTokens

SeededPrompt = tuple[PromptTokens, int]
"""A prompt and the seed of one of its samples."""

_DROP_SHARE = 0.125  # ended rows make room once they are this share of the batch
_NO_TOKEN = 2**31 - 1  # beyond every vocabulary: no part of any stop string


@dataclass(frozen=True)
class StopStrings:
    """Where rows end beside their end tokens. ``silent_ids``: tokens that a text leaves out; no
    stop string is in their names, and one may go on behind them."""

    criteria: StopStringCriteria
    silent_ids: Sequence[int] = ()


@dataclass(frozen=True)
class Drawn:
    """One decoded row. ``logprob`` in nats, untempered, over ``token_ids`` (end token included).

    ``first_logprobs`` (float32, [token]) are those of the asked-for tokens at the first position.
    """

    token_ids: tuple[int, ...]
    logprob: float
    ended: bool
    first_logprobs: np.ndarray


def decode(
    model: PreTrainedModel,
    prompts: Sequence[PromptTokens],
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    end_ids: Sequence[int],
    stops: StopStrings | None = None,
    watch_ids: Sequence[int] = (),
) -> list[Drawn]:
    """Continue each of ``prompts``, all in one batch. See ``decode_batches``."""
    batch = list(zip(prompts, seeds, strict=True))
    found = decode_batches(
        model, [batch], sampling, end_ids=end_ids, stops=stops, watch_ids=watch_ids
    )
    return [drawn for _, drawn in sorted(found, key=lambda row: row[0])]


@torch.inference_mode()
def decode_batches(
    model: PreTrainedModel,
    batches: Sequence[Sequence[SeededPrompt]],
    sampling: Sampling,
    *,
    end_ids: Sequence[int],
    stops: StopStrings | None = None,
    watch_ids: Sequence[int] = (),
) -> Iterator[tuple[int, Drawn]]:
    """Continue each prompt until an end token, a stop string or ``max_tokens``; rows of all
    ``batches``, counted through, as they end.

    There are never more rows together than the first batch has: those of later ones take the
    places of rows that have ended, for which ``model`` has to pass ``can_refill``.
    ``watch_ids``: tokens whose log-probability at the first position is asked for.
    """
    stepper = Stepper(
        model, [[prompt for prompt, _ in batch] for batch in batches], sampling.max_tokens
    )
    rows = iter(enumerate(seed for batch in batches for _, seed in batch))
    places = torch.arange(len(batches[0]), device=model.device)  # those that are decoded still
    answers = _Answers(sampling, len(places), model.device, end_ids, stops, watch_ids)

    logits = stepper.begin()
    answers.begin(places, islice(rows, len(places)), logits)
    drawn = answers.draw(places, logits)
    while True:
        over = answers.over[places]
        n_over = int(over.sum())
        if n_over == len(places) and not stepper.waiting:
            yield from answers.take(places)
            return
        keep = None
        if n_over and (n_over >= _DROP_SHARE * len(places) or stepper.is_full):
            free = over.nonzero().squeeze(1)
            yield from answers.take(places[free])
            # While rows wait none is dropped: a row of the batch is at the place of its number.
            taken = free[: stepper.waiting]
            if len(taken):
                logits = stepper.seat(taken)
                answers.begin(taken, islice(rows, len(taken)), logits)
                drawn[taken] = answers.draw(taken, logits)
            if len(taken) < len(free):
                over[taken] = False
                keep = (~over).nonzero().squeeze(1)
                places, drawn = places[keep], drawn[keep]
        logits = stepper.advance(drawn, keep)
        drawn = answers.draw(places, logits)


class _Answers:
    """What was drawn for the row at each place."""

    def __init__(
        self,
        sampling: Sampling,
        places: int,
        device: torch.device,
        end_ids: Sequence[int],
        stops: StopStrings | None,
        watch_ids: Sequence[int],
    ) -> None:
        budget = sampling.max_tokens
        self._sampler = SeededSampler(sampling, places, device)
        self._ends = torch.tensor(list(end_ids), dtype=torch.long, device=device)
        self._watched = torch.tensor(list(watch_ids), dtype=torch.long, device=device)
        self._budget = budget
        # The last column takes what is drawn for rows that are over already.
        self._tokens = torch.zeros((places, budget + 1), dtype=torch.long, device=device)
        self._stops = None if stops is None else stops.criteria
        silent = () if stops is None else stops.silent_ids
        self._silent = torch.tensor(list(silent), dtype=torch.long, device=device)
        # What the text is made of, for stop strings.
        self._said = torch.zeros_like(self._tokens) if stops else self._tokens
        self._said_lengths = torch.zeros(places, dtype=torch.long, device=device)
        self._logprobs = torch.zeros((places, budget + 1), dtype=torch.float32, device=device)
        self._lengths = torch.zeros(places, dtype=torch.long, device=device)
        self._ended = torch.zeros(places, dtype=torch.bool, device=device)
        self._first = torch.zeros((places, len(watch_ids)), dtype=torch.float32, device=device)
        self._rows = [0] * places
        self.over = torch.zeros(places, dtype=torch.bool, device=device)
        """Rows that ended, or may not be longer."""

    def begin(
        self, places: torch.Tensor, rows: Iterable[tuple[int, int]], logits: torch.Tensor
    ) -> None:
        """Have ``rows`` (numbers and seeds) take ``places``; ``logits`` of their first tokens."""
        numbers, seeds = zip(*rows, strict=True)
        for place, number in zip(places.tolist(), numbers, strict=True):
            self._rows[place] = number
        self._sampler.seat(places, seeds)
        self._lengths[places] = self._said_lengths[places] = 0
        self._ended[places] = self.over[places] = False
        self._first[places] = logits[:, self._watched] - logits.logsumexp(dim=-1, keepdim=True)

    def draw(self, places: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The next token (int64) of the row at each of ``places``, kept unless it is over."""
        over, lengths = self.over[places], self._lengths[places]
        steps = torch.where(over, self._budget, lengths)
        drawn = self._sampler.draw(logits, places, steps.clamp(max=self._budget - 1))
        self._tokens[places, steps] = drawn
        drawn_logits = logits.gather(1, drawn.unsqueeze(1)).squeeze(1)
        self._logprobs[places, steps] = drawn_logits - logits.logsumexp(dim=-1)
        lengths = lengths + ~over
        done = torch.isin(drawn, self._ends)
        if self._stops is not None:
            is_said = ~over & ~torch.isin(drawn, self._silent)
            said = self._said_lengths[places]
            self._said[places, torch.where(is_said, said, self._budget)] = drawn
            self._said_lengths[places] = said = said + is_said
            done |= is_said & self._stops(self._latest(places, said), None)
        self._lengths[places] = lengths
        self._ended[places] |= done & ~over
        self.over[places] = over | done | (lengths == self._budget)
        return drawn

    def take(self, places: torch.Tensor) -> Iterator[tuple[int, Drawn]]:
        """The rows at ``places``, with their numbers."""
        lengths = self._lengths[places]
        kept = torch.arange(self._budget, device=lengths.device) < lengths[:, None]
        logprobs = self._logprobs[places, : self._budget].double()
        columns = (self._tokens[places], lengths, (logprobs * kept).sum(1), self._ended[places])
        for place, ids, length, total, ended, first in zip(
            places.tolist(), *(column.tolist() for column in columns),
            self._first[places].cpu().numpy(), strict=True,
        ):  # fmt: skip
            yield self._rows[place], Drawn(tuple(ids[:length]), total, ended, first)

    def _latest(self, places: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The last tokens of the rows' texts, as many as a stop string can have, on the right."""
        assert self._stops is not None
        window = min(self._stops.maximum_token_len, self._budget)
        columns = lengths[:, None] + torch.arange(-window, 0, device=lengths.device)
        tokens = self._said[places[:, None], columns.clamp(min=0)]
        return tokens.masked_fill(columns < 0, _NO_TOKEN)
