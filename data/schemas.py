"""The nouns of prefloop, one declared Arrow schema each.

Every shard of a run is written with one of these schemas, never with an inferred one, so that
shards of one noun can always be read together. Ids are 32 hexadecimal characters (see
``prefloop.data.hashing``) and are content hashes: rows are joined by id, never by position.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
"""A conversation: list of ``{role, content}``."""

ADDED: Mapping[str, str] = {"added": "after 0.1.0"}
"""Of a nullable column that shards of earlier versions do not have: it is null there."""

PROMPT = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("messages", MESSAGES, nullable=False),
        pa.field("reference", pa.string()),  # a human's answer, where the source has one
        pa.field("metadata", pa.string(), nullable=False),  # JSON object, "{}" if none
        pa.field("source", pa.string(), nullable=False),  # file or dataset it was read from
        pa.field("row", pa.int64(), nullable=False),  # 1-based row (line) in the source
        # JSON list of the tools that may be called, as chat templates take them; null: none
        pa.field("tools", pa.string(), metadata=ADDED),
        # JSON list of the turns as chat templates take them, where any is more than role and
        # content (calls of tools); ``messages`` then has the calls as text
        pa.field("turns", pa.string(), metadata=ADDED),
    ]
)

CANDIDATE = pa.schema(
    [
        pa.field("candidate_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("sample_index", pa.int32(), nullable=False),  # first sample with this text
        pa.field("text", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),  # of the answer, end token included
        pa.field("finish_reason", pa.string(), nullable=False),  # stop | length
        pa.field("logprob", pa.float64()),  # nats, sum over the tokens; null if unknown
        pa.field("origin", pa.string(), nullable=False),  # sampled | reference | given
        pa.field("policy", pa.string(), nullable=False),
        pa.field("policy_revision", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("copies", pa.int32(), nullable=False),  # identical samples merged into this row
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("cost", pa.float64(), nullable=False),
        # what the model thought before the answer; null where it did not think
        pa.field("reasoning", pa.string(), metadata=ADDED),
        pa.field("reasoning_tokens", pa.int32(), metadata=ADDED),  # of the thought and its marks
        # thought and answer as the model wrote them; null where it did not think, or the server
        # does not tell
        pa.field("raw_text", pa.string(), metadata=ADDED),
        # what was sampled, the end token included; null where the text says it: encoded anew, and
        # with an end unless it was cut, it is the same tokens, or the server does not tell
        pa.field("token_ids", pa.list_(pa.int32()), metadata=ADDED),
    ]
)

# Answers that were there before the run, a row for each time that one is given.
GIVEN = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("reasoning", pa.string()),  # the thought that stood before it
        pa.field("policy", pa.string(), nullable=False),  # who wrote it; "given" if unknown
        pa.field("source", pa.string(), nullable=False),  # file or dataset it was read from
        pa.field("row", pa.int64(), nullable=False),  # 1-based row (line) in the source
        pa.field("set", pa.int64(), nullable=False),  # number of the answers given together
        pa.field("rating", pa.float64()),  # higher is better within the set; null if unknown
        pa.field("absolute", pa.bool_(), nullable=False),  # ratings are scores, not an order
        pa.field("ties", pa.bool_(), nullable=False),  # equal ratings mean equally good
    ]
)

VOTE = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("a_id", pa.string(), nullable=False),
        pa.field("b_id", pa.string(), nullable=False),
        pa.field("labeler", pa.string(), nullable=False),
        pa.field("order", pa.string(), nullable=False),  # ab | ba as shown; "none" if not shown
        # a | b | tie | invalid, always about a_id and b_id whatever order was shown
        pa.field("preference", pa.string(), nullable=False),
        pa.field("p_a", pa.float64()),  # P(a preferred to b), null for hard or invalid votes
        pa.field("score_a", pa.float64()),  # the labeler's own absolute score, if it has one
        pa.field("score_b", pa.float64()),
        pa.field("rationale", pa.string()),
        pa.field("completion", pa.string()),  # the judge's raw answer (or why there is none)
        # stop | length; JSON of the answers' shape where there are several; null if unknown
        pa.field("finish_reason", pa.string(), metadata=ADDED),
        # JSON object: log-probability (nats) of each verdict or rating as the first token
        pa.field("choice_logprobs", pa.string()),
        pa.field("prompt_hash", pa.string()),  # hash of what the judge was shown
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("completion_tokens", pa.int32(), nullable=False),  # thoughts included
        pa.field("cost", pa.float64(), nullable=False),
        # what the judge thought; JSON of the answers' shape where there are several
        pa.field("reasoning", pa.string(), metadata=ADDED),
        pa.field("reasoning_tokens", pa.int32(), metadata=ADDED),
        # of a judge with a rubric: JSON object with the criteria as they were asked, where they
        # are from, and the value of each for a and for b, see labelers/judges/rubric/values.py
        pa.field("criteria", pa.string(), metadata=ADDED),
    ]
)

DECISION = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        # The preferred and the other candidate; for a tie or an undecided pair, a and b as they
        # stand in the votes, with ``reason`` saying so.
        pa.field("chosen_id", pa.string(), nullable=False),
        pa.field("rejected_id", pa.string(), nullable=False),
        pa.field("p_chosen", pa.float64(), nullable=False),  # jury's P(chosen preferred), >= 0.5
        pa.field("score_chosen", pa.float64(), nullable=False),  # mean win probability, 0..1
        pa.field("score_rejected", pa.float64(), nullable=False),
        pa.field("margin", pa.float64(), nullable=False),  # score_chosen - score_rejected
        pa.field("quality_chosen", pa.float64()),  # mean absolute score of labelers that have one
        pa.field("agreement", pa.float64(), nullable=False),  # share of labelers that say so
        pa.field("position_consistent", pa.bool_()),  # null where nobody saw both orders
        pa.field("chosen_tokens", pa.int32(), nullable=False),
        pa.field("rejected_tokens", pa.int32(), nullable=False),
        pa.field("labelers", pa.list_(pa.string()), nullable=False),  # who gave a valid vote
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field("reason", pa.string()),  # name of the first filter that dropped it, null if kept
        # Characters, where the two answers' tokens were counted by tokenizers that may differ
        pa.field("chosen_chars", pa.int32(), metadata=ADDED),
        pa.field("rejected_chars", pa.int32(), metadata=ADDED),
    ]
)

# Of the prompt. The dataset has these columns only where a prompt of the run has tools or calls.
_TOOLS = (
    pa.field("tools", pa.string(), metadata=ADDED),  # as in PROMPT, and as TRL takes them
    pa.field("prompt_turns", pa.string(), metadata=ADDED),  # ``turns`` as in PROMPT
)

TRIPLE = pa.schema(
    [
        pa.field("prompt", MESSAGES, nullable=False),
        pa.field("chosen", MESSAGES, nullable=False),
        pa.field("rejected", MESSAGES, nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("chosen_id", pa.string(), nullable=False),
        pa.field("rejected_id", pa.string(), nullable=False),
        pa.field("score_chosen", pa.float64(), nullable=False),
        pa.field("score_rejected", pa.float64(), nullable=False),
        pa.field("margin", pa.float64(), nullable=False),
        pa.field("p_chosen", pa.float64(), nullable=False),
        pa.field("agreement", pa.float64(), nullable=False),
        pa.field("chosen_tokens", pa.int32(), nullable=False),
        pa.field("rejected_tokens", pa.int32(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),  # who wrote chosen, "name@revision"
        pa.field("rejected_policy", pa.string(), nullable=False),
        pa.field("labelers", pa.list_(pa.string()), nullable=False),
        # what the policy thought before the answer; null where it did not think
        pa.field("chosen_reasoning", pa.string(), metadata=ADDED),
        pa.field("rejected_reasoning", pa.string(), metadata=ADDED),
        pa.field("chosen_reasoning_tokens", pa.int32(), metadata=ADDED),
        pa.field("rejected_reasoning_tokens", pa.int32(), metadata=ADDED),
        *_TOOLS,
    ]
)

# Single answers with a label each, as TRL's KTOTrainer takes them.
UNPAIRED = pa.schema(
    [
        pa.field("prompt", MESSAGES, nullable=False),
        pa.field("completion", MESSAGES, nullable=False),
        pa.field("label", pa.bool_(), nullable=False),  # whether it wins more often than not
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("candidate_id", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),  # mean win probability, 0..1
        pa.field("pairs", pa.int32(), nullable=False),  # decided pairs that the score is a mean of
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),  # who wrote it, "name@revision"
        pa.field("reasoning", pa.string(), metadata=ADDED),  # see TRIPLE
        pa.field("reasoning_tokens", pa.int32(), metadata=ADDED),
        *_TOOLS,
    ]
)

METRIC = pa.schema(
    [
        pa.field("round", pa.int32(), nullable=False),
        pa.field("name", pa.string(), nullable=False),  # e.g. win_rate, kl, rewards/margins
        pa.field("value", pa.float64(), nullable=False),
        pa.field("low", pa.float64()),  # 95% interval, null where there is none
        pa.field("high", pa.float64()),
        pa.field("n", pa.int64()),  # observations behind the value
        pa.field("against", pa.string()),  # opponent of a win rate or KL: "start" | "previous"
        pa.field("labeler", pa.string()),  # whose votes; "jury" for the decided ones
        pa.field("step", pa.int64()),  # optimiser step, for training curves
    ]
)

# Log-probabilities that KL and rewards on held-out triples are made of.
LOGPROB = pa.schema(
    [
        pa.field("texts", pa.string(), nullable=False),  # answers | triples
        pa.field("under", pa.string(), nullable=False),  # policy | other | reference
        pa.field("row", pa.int64(), nullable=False),  # which of the texts, from 0
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("logprob", pa.float64(), nullable=False),  # nats, sum over the tokens
        pa.field("dtype", pa.string(), nullable=False),  # of the numbers that were computed with
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),  # prompts | sample | label
        pa.field("round", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64()),  # 1-based row (line) in the source, null if unknown
        pa.field("field", pa.string()),  # column at fault, null if the whole row is
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),  # the row as read, so nothing is lost
    ]
)

DROPPED = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        # exact_duplicate | near_duplicate | overlap:<name of the evaluation set> | not_drawn
        pa.field("reason", pa.string(), nullable=False),
        pa.field(
            "detail", pa.string(), nullable=False
        ),  # what it collides with, or whose share is full
        pa.field("messages", MESSAGES, nullable=False),
    ]
)
