"""One triple as other projects have it: pure functions from a row to an object of JSON.

Each is named after the project. What a form cannot say raises :class:`Unsayable`, and the row is
left out with that reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefloop.data.conversations.conversation import conversation_of, template_turn, tools_in
from prefloop.data.conversations.reasoning import split_thought
from prefloop.data.hashing import derive_seed
from prefloop.data.protocol import Message
from prefloop.data.utf8 import is_blank

Json = dict[str, Any]
_SIDES = ("chosen", "rejected")


class Unsayable(ValueError):
    """The form has no place for what the row holds; says what."""


@dataclass(frozen=True)
class PairToSay:
    """A triple as the forms take it."""

    prompt_id: str
    turns: list[Json]
    """The prompt's turns, as chat templates take them."""
    tools: list[Json] | None
    chosen: str
    rejected: str
    thought_about: bool
    """Whether a thought stood before an answer, or beside it: it is in neither of them."""
    seed: int

    @classmethod
    def of(cls, row: Mapping[str, Any], seed: int) -> PairToSay:
        """Of a row of ``schemas.TRIPLE``, or of one with its first three columns."""
        said = {one: split_thought(_answer(row[one]), opened=None) for one in _SIDES}
        if any(is_blank(one.answer) for one in said.values()):
            raise Unsayable("an answer is a thought alone, or holds no text")
        if said["chosen"].answer == said["rejected"].answer and row["chosen"] != row["rejected"]:
            raise Unsayable("both answers are the same but for their thoughts")
        prompt = conversation_of(row["prompt"], row.get("prompt_turns"), row.get("tools"))
        return cls(
            prompt_id=row.get("prompt_id") or "",
            turns=[template_turn(turn) for turn in prompt],
            tools=tools_in(prompt),
            chosen=said["chosen"].answer,
            rejected=said["rejected"].answer,
            thought_about=any(said[one].reasoning or row.get(f"{one}_reasoning") for one in _SIDES),
            seed=seed,
        )

    @property
    def texts(self) -> list[Json]:
        """The prompt's turns, which have to be plain texts."""
        if self.tools or any(turn.keys() != {"role", "content"} for turn in self.turns):
            raise Unsayable("tools and their calls have no place in this form")
        return self.turns


def _answer(turns: Sequence[Message]) -> str:
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise Unsayable("an answer is not one turn of the assistant")
    return str(turns[0]["content"])


def alpaca(pair: PairToSay) -> Json:
    """LLaMA-Factory's Alpaca form for preferences: instruction, input, history, system, chosen,
    rejected."""
    system, turns = _system_apart(pair.texts)
    *before, last = turns
    if last["role"] != "user" or len(before) % 2:
        raise Unsayable("turns that do not go question, answer, question")
    history = []
    for asked, answered in zip(before[::2], before[1::2], strict=True):
        if (asked["role"], answered["role"]) != ("user", "assistant"):
            raise Unsayable("turns that do not go question, answer, question")
        history.append([asked["content"], answered["content"]])
    return {
        "instruction": last["content"], "input": "", "system": system or "", "history": history,
        "chosen": pair.chosen, "rejected": pair.rejected,
    }  # fmt: skip


_SPEAKERS = {"user": "human", "assistant": "gpt", "tool": "observation"}


def llamafactory(pair: PairToSay) -> Json:
    """LLaMA-Factory's ShareGPT form for preferences: conversations with from and value."""
    system, turns = _system_apart(pair.turns)
    said = []
    for turn in turns:
        calls = turn.get("tool_calls")
        if calls:
            if len(calls) != 1 or turn.get("content"):
                raise Unsayable("a turn with several calls, or with a call and text")
            called = calls[0]["function"]
            value = {"name": called["name"], "arguments": _object(called["arguments"])}
            said.append({"from": "function_call", "value": json.dumps(value, ensure_ascii=False)})
        elif turn["role"] in _SPEAKERS:
            said.append({"from": _SPEAKERS[turn["role"]], "value": turn["content"]})
        else:
            raise Unsayable(f"a turn of {turn['role']!r}")
    odd = ("human", "observation")
    if any((turn["from"] in odd) != (place % 2 == 0) for place, turn in enumerate(said)):
        raise Unsayable("turns that do not alternate")
    if len(said) % 2 == 0:
        raise Unsayable("a conversation that does not end with a question")
    tools = {"tools": json.dumps(pair.tools, ensure_ascii=False)} if pair.tools else {}
    return {
        "conversations": said, "system": system or "", **tools,
        "chosen": {"from": "gpt", "value": pair.chosen},
        "rejected": {"from": "gpt", "value": pair.rejected},
    }  # fmt: skip


def axolotl(pair: PairToSay) -> Json:
    """Axolotl's ``chat_template.default`` for DPO: messages, and a turn each for the answers."""
    return {
        "messages": pair.texts,
        "chosen": {"role": "assistant", "content": pair.chosen},
        "rejected": {"role": "assistant", "content": pair.rejected},
    }


def openrlhf(pair: PairToSay) -> Json:
    """OpenRLHF's preferences with ``apply_chat_template``: lists of turns."""
    return {
        "prompt": pair.texts,
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }


def nemo_rl(pair: PairToSay) -> Json:
    """NeMo-RL's ``PreferenceDataset``: a context, and completions by rank (0 is the best)."""
    return {
        "context": pair.texts,
        "completions": [
            {"rank": rank, "completion": [{"role": "assistant", "content": text}]}
            for rank, text in enumerate((pair.chosen, pair.rejected))
        ],
    }


def openai(pair: PairToSay) -> Json:
    """OpenAI's file for fine-tuning on preferences."""
    asked: Json = {"messages": [_with_text_arguments(turn) for turn in pair.turns]}
    if pair.tools:
        asked["tools"] = pair.tools
    return {
        "input": asked,
        "preferred_output": [{"role": "assistant", "content": pair.chosen}],
        "non_preferred_output": [{"role": "assistant", "content": pair.rejected}],
    }


def label_studio(pair: PairToSay) -> Json:
    """A task of Label Studio: two answers, which of them stands left is drawn by seed. What was
    chosen is in ``meta``, which the page for labelling does not show."""
    flipped = bool(
        np.random.default_rng(derive_seed(pair.seed, pair.prompt_id, pair.chosen)).integers(2)
    )
    left, right = (pair.rejected, pair.chosen) if flipped else (pair.chosen, pair.rejected)
    shown = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in pair.texts)
    return {
        "data": {"prompt": shown, "left": left, "right": right},
        "meta": {"prompt_id": pair.prompt_id, "chosen": "right" if flipped else "left"},
    }


ROW_FORMATS: dict[str, Callable[[PairToSay], Json]] = {
    "llamafactory": llamafactory,
    "alpaca": alpaca,
    "axolotl": axolotl,
    "openrlhf": openrlhf,
    "nemo-rl": nemo_rl,
    "openai": openai,
    "label-studio": label_studio,
}


def _system_apart(turns: Sequence[Json]) -> tuple[str | None, Sequence[Json]]:
    if turns and turns[0]["role"] == "system":
        return turns[0]["content"], turns[1:]
    return None, turns


def _with_text_arguments(turn: Json) -> Json:
    """Chat templates take the arguments of a call as an object, OpenAI's API as its text."""
    if not turn.get("tool_calls"):
        return turn
    calls = []
    for call in turn["tool_calls"]:
        called = call["function"]
        if not isinstance(called["arguments"], str):
            text = json.dumps(called["arguments"], ensure_ascii=False)
            call = {**call, "function": {**called, "arguments": text}}
        calls.append(call)
    return {**turn, "tool_calls": calls}


def _object(arguments: Any) -> Any:
    return json.loads(arguments) if isinstance(arguments, str) else arguments
