"""The texts that a policy is measured on: its own answers for KL, held-out triples for rewards."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.conversations.conversation import as_sampled
from prefloop.data.protocol import Message
from prefloop.data.schemas import TRIPLE
from prefloop.data.shards import read_shard
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.rendering import rendering_of, template_kwargs_of
from prefloop.pipeline.stages.write import split_files
from prefloop.training.policy.checkpoints import load_tokenizer
from prefloop.training.policy.heldout import MOST_PAIRS, both_answers
from prefloop.training.policy.logprobs import ScoredTexts

logger = logging.getLogger(__name__)

ANSWERS, TRIPLES = "answers", "triples"
"""Names of texts."""


@dataclass(frozen=True)
class MeasuredTexts:
    """Texts, and the prompts that figures are means over."""

    texts: ScoredTexts
    prompt_ids: Sequence[str]
    """One for each text."""


@dataclass(frozen=True)
class TextsOfPolicy:
    """Where the texts of a policy are, for whoever sees the run directory."""

    policy: int
    untempered: bool
    """Whether held-out answers are drawn from the policy's own distribution; else only those that
    were drawn for KL are."""
    folder: Path
    """Of the policy: the chat template in it says how answers without a thought are asked for."""

    def find(self, name: str, context: RoundContext) -> MeasuredTexts | None:
        """Those of this name; null where nothing can be measured on them, which is said of
        answers."""
        return self._answers(context) if name == ANSWERS else self._triples(context)

    def _answers(self, context: RunContext) -> MeasuredTexts | None:
        """The held-out answers where these are drawn from the policy's own distribution, and else
        those that were drawn from it for this."""
        conversations = _conversations(context)
        columns = [
            "prompt_id", "text", "finish_reason", "token_ids", "reasoning", "reasoning_tokens",
        ]  # fmt: skip
        drawn = context.run.answers if self.untempered else context.run.untempered
        answers = drawn(self.policy).table(columns)
        prompts = answers["prompt_id"].to_pylist()
        shown = [conversations[prompt] for prompt in prompts]
        rows = answers.to_pylist()
        if not rows:
            logger.warning(
                "no KL of policy %d: none of its answers is there to measure it on", self.policy
            )
            return None
        unknown = sum(row["token_ids"] is None and _thought(row) for row in rows)
        if unknown:
            logger.warning(
                "no KL of policy %d: it thought before %d of %d answers, and its engine does not "
                "tell the tokens; vLLM does, in this process or as a server with vllm_extensions: "
                "true",
                self.policy,
                unknown,
                len(rows),
            )
            return None
        # Of a policy that thought, the tokens that it sampled: its answer alone is not what it
        # said.
        said = [row["text"] if row["token_ids"] is None else row["token_ids"] for row in rows]
        complete = pc.equal(answers["finish_reason"], "stop").to_pylist()
        return MeasuredTexts(ScoredTexts(shown, said, complete, context.template_kwargs), prompts)

    def _triples(self, context: RoundContext) -> MeasuredTexts | None:
        triples = _heldout_triples(context.run, context.index)
        if not len(triples):
            return None
        texts = both_answers(triples, template_kwargs_of(context, self.folder))
        texts = self._as_sampled(context, triples, texts)
        return MeasuredTexts(texts, triples["prompt_id"].to_pylist() * 2)

    def _as_sampled(
        self, context: RoundContext, triples: pa.Table, texts: ScoredTexts
    ) -> ScoredTexts:
        """``texts`` of ``triples`` in the tokens that answers like them are trained on."""
        whose = [*triples["chosen_id"].to_pylist(), *triples["rejected_id"].to_pylist()]
        rendering = rendering_of(context, range(context.index + 1), self.folder)
        known = rendering.sampled_ids(set(whose), load_tokenizer(self.folder))
        said = [
            known.as_sampled(one, str(text)) for one, text in zip(whose, texts.answers, strict=True)
        ]
        answers = [one if isinstance(one, str) else one.tolist() for one, _ in said]
        return replace(texts, answers=answers, complete=[whole for _, whole in said])


def _thought(row: Mapping[str, Any]) -> bool:
    return row["reasoning"] is not None or bool(row["reasoning_tokens"])


def _conversations(context: RunContext) -> dict[str, tuple[Message, ...]]:
    heldout = context.run.heldout.table(["prompt_id", "messages", "turns", "tools"]).to_pylist()
    return {row["prompt_id"]: as_sampled(row, context.system_prompt) for row in heldout}


def _heldout_triples(run: RunDir, round_index: int) -> pa.Table:
    """The first triples that the round put in the test split; empty if there are none."""
    files = split_files(run, "test", round_index)
    columns = [
        "prompt", "chosen", "rejected", "prompt_id", "chosen_id", "rejected_id", "tools",
        "prompt_turns",
    ]  # fmt: skip
    if not files:
        return TRIPLE.empty_table().select(columns)
    return read_shard(files[0], TRIPLE, columns).slice(0, MOST_PAIRS)
