"""The pairs of an online training, leg by leg, as its optimiser steps ask for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefloop.training.inputs.pairs import Pairs, read_triples, tokenised
from prefloop.training.inputs.rows import Dropped
from prefloop.training.inputs.tokens import check_embedding
from prefloop.training.policy.checkpoints import embeddings
from prefloop.training.session.checkpoint_folder import WEIGHTS
from prefloop.training.session.method import Session
from prefloop.training.session.on_policy import Prompts, Triples, Weights
from prefloop.training.session.open_policy import load_reference
from prefloop.training.session.reference import append_columns, no_reference, reference_logps

logger = logging.getLogger(__name__)


class OnlineChunks:
    """The optimiser steps of an online training: pairs of the leg that is trained on now."""

    def __init__(self, session: Session, triples: Triples, prompts: Prompts) -> None:
        """``prompts`` says which of them are held out: no pair of theirs is trained on."""
        config = session.job.config
        self.steps = config.online_steps
        """Optimiser steps a leg."""
        self.weights = Weights(session.job.policy, session.checkpoints / WEIGHTS)
        self._session, self._triples, self._prompts = session, triples, prompts
        self._live: Any = None
        self._leg = -1
        self._rows: list[dict[str, Any]] = []

    def rows(self, number: int) -> list[dict[str, Any]]:
        """The pairs of optimiser step ``number``, as the collator of pairs takes them; none where
        the leg kept none."""
        leg, part = divmod(number, self.steps)
        if leg != self._leg:
            self._rows, self._leg = self._make(leg), leg
        if not self._rows:
            return []
        own = np.array_split(np.arange(len(self._rows)), self.steps)[part]
        # Fewer pairs than steps: a pair is then trained on more than once.
        picked = own if len(own) else [part % len(self._rows)]
        return [self._rows[row] for row in picked]

    def _make(self, leg: int) -> list[dict[str, Any]]:
        pairs = self._read(self._triples(leg, self.weights.now))
        if pairs is None:
            logger.warning("leg %d of the online training kept no pair to train on", leg)
            return []
        config = self._session.job.config
        if config.uses_reference:
            columns = reference_logps(
                pairs,
                self._reference_model(),
                batch_size=2 * config.batch_size,
                autocast=self._session.opened.autocast,
                ld_alpha=config.ld_alpha,
            )
        else:
            columns = no_reference(len(pairs))
        return list(append_columns(pairs.table(), columns).to_pylist())

    def _read(self, shards: Sequence[Path]) -> Pairs | None:
        if not shards:
            return None
        session, dropped = self._session, Dropped()
        triples = read_triples(shards, dropped)
        asked = triples["prompt"].to_pylist()
        triples = triples.filter(pa.array([not self._prompts.is_held_out(one) for one in asked]))
        pairs, _ = tokenised(
            triples,
            session.tokenizer,
            max_length=session.max_length,
            dropped=dropped,
            rendering=session.job.rendering,
        )
        policy = session.job.policy
        check_embedding(
            embeddings(policy), policy, [*pairs.prompts, *pairs.chosen, *pairs.rejected]
        )
        if dropped.counts:
            logger.warning("pairs of an online training were dropped: %s", dropped.said())
        return pairs if len(pairs) else None

    def _reference_model(self) -> Any:
        if self._live is None:
            self._live = load_reference(self._session.job.reference, self._session.opened)
        return self._live
