"""Answers that do not end: a policy that goes on with turns that nobody took.

That is what a policy looks like whose end-of-turn token nobody stops at, or that was never taught
to write one: each answer is cut at the token limit, or holds the next user's question.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

_FEW = 4
_SHARE = 0.25
_NEXT_TURN = re.compile(
    r"<\|(?:im_start|im_end|user|assistant|eot_id|start_header_id|end)\|>|<start_of_turn>|\[/?INST\]"
    # What is left of such a marker where special tokens are taken out of the text.
    r"|\n[ \t]*(?:user|assistant|human)[ \t]*\n"
    r"|\n[ \t]*(?:#+[ \t]*)?(?:User|Human|Assistant|Instruction)[ \t]*:"
)


def run_on(candidates: pa.Table) -> str | None:
    """A warning where sampled answers (schema CANDIDATE) of a first block do not end; null where
    all is well or there are too few of them to tell."""
    sampled = candidates.filter(pc.equal(candidates["origin"], "sampled"))
    total = sampled.num_rows
    if total < _FEW:
        return None
    cut = pc.sum(pc.equal(sampled["finish_reason"], "length")).as_py() or 0
    turns = sum(_NEXT_TURN.search(text) is not None for text in sampled["text"].to_pylist())
    if turns >= _SHARE * total:
        return (
            f"{turns} of the first {total} answers ({turns / total:.0%}) run on into turns that "
            "nobody took: the policy does not stop at the end of its turn; see that its chat "
            "template ends an assistant's turn with the token that the model writes there (and "
            "that eos_token_id in generation_config.json names it), or give sample.stop"
        )
    if cut == total:
        return (
            f"all of the first {total} answers were cut at the token limit: raise "
            "sample.max_tokens, or see that the model ends its turn with the token that its chat "
            "template and generation_config.json name (a base model may never end one)"
        )
    return None
