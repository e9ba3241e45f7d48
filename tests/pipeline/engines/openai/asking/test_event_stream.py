"""Answers that come in events, asked for or not, are read like those that come at once."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines.openai.asking.event_stream import body_of_events, is_stream
from tests.helpers.served import ask, question
from tests.helpers.servers import Handler, Reply, faulty_server

USAGE = {"prompt_tokens": 10, "completion_tokens": 7}


def events(*said: Any, done: bool = True, end: str = "\n\n") -> str:
    lines = [f"data: {json.dumps(one)}" for one in said]
    return end.join([*lines, *(["data: [DONE]"] if done else []), ""])


def piece(delta: dict[str, Any], index: int = 0, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": None, **more}]}


def streamed(text: str) -> Reply:
    def reply(handler: Handler) -> None:
        handler.send(200, text)

    return reply


def answer_to(text: str, **asking: Any) -> Any:
    with faulty_server(streamed(text)) as server:
        [outcome] = ask(server.url, question(**asking))
    return outcome


LAST = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE}
WHOLE = [piece({"role": "assistant", "content": ""}), piece({"reasoning_content": "h"}),
         piece({"reasoning_content": "m"}), piece({"content": "hel"}), piece({"content": "lo"}),
         LAST]  # fmt: skip


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("before", ["", ": OPENROUTER PROCESSING\n\n", "\n", "event: message\n"])
@pytest.mark.parametrize("done", [True, False])
def test_its_pieces_are_put_together(before: str, end: str, done: bool) -> None:
    [found] = answer_to(before + events(*WHOLE, done=done, end=end))
    assert (found.text, found.reasoning, found.finish_reason) == ("hello", "hm", "stop")
    assert (found.prompt_tokens, found.completion_tokens) == (10, 7)


def test_a_whole_answer_in_one_event() -> None:
    choice = {"index": 0, "message": {"content": "hello"}, "finish_reason": "length"}
    [found] = answer_to(events({"choices": [choice], "usage": USAGE}))
    assert (found.text, found.finish_reason) == ("hello", "length")


def test_usage_in_an_event_of_its_own() -> None:
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None}
    [found] = answer_to(events(piece({"content": "hello"}), last, {"choices": [], "usage": USAGE}))
    assert (found.text, found.completion_tokens) == ("hello", 7)


def test_log_probabilities_and_calls_go_on_over_events() -> None:
    def steps(token: str) -> dict[str, Any]:
        top = [{"token": token, "logprob": -0.1}, {"token": "B", "logprob": -2.5}]
        return {"content": [{"token": token, "logprob": -0.1, "top_logprobs": top}]}

    said = events(
        piece({"content": "A"}, logprobs=steps("A")),
        piece({"content": "."}, logprobs=steps(".")), LAST,
    )  # fmt: skip
    [found] = answer_to(said, choices=("A", "B"))
    assert found.choice_logprobs == {"A": -0.1, "B": -2.5}
    assert found.logprob == pytest.approx(-0.2)
    calls = [
        {"index": 0, "function": {"name": "f", "arguments": '{"in":'}},
        {"index": 0, "function": {"arguments": ' "Rome"}'}},
        {"index": 1, "function": {"name": "g", "arguments": "{}"}},
    ]
    called = [piece({"tool_calls": [one]}) for one in calls]
    [found] = answer_to(events(*called, LAST))
    assert json.loads(found.text) == [
        {"name": "f", "arguments": {"in": "Rome"}}, {"name": "g", "arguments": {}},
    ]  # fmt: skip


def test_several_answers_whose_pieces_come_mixed() -> None:
    def end(index: int) -> dict[str, Any]:
        return {"index": index, "delta": {}, "finish_reason": "stop"}

    mixed = [piece({"content": f"{word} {index}"}, index) for word in "ab" for index in (1, 0)]
    last = {"choices": [end(0), end(1)], "usage": USAGE}
    with faulty_server(streamed(events(*mixed, last))) as server:
        [answers] = ask(server.url, question(seeds=(1, 2)), n_per_request=2)
    assert [one.text for one in answers] == ["a 0b 0", "a 1b 1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (events(*WHOLE[:-1], done=False), "broke off"),
        (events(*WHOLE)[:150], "garbage"),
        (events(), "without an answer"),
        (events(*WHOLE[:-1], {"error": {"message": "provider gone", "code": 502}}),
         "provider gone"),
        ("data: 7\n\n", "no object"),
    ],
)  # fmt: skip
def test_a_stream_without_its_end_is_no_answer(text: str, said: str, tmp_path: Path) -> None:
    with faulty_server(streamed(text)) as server:
        [failure] = ask(server.url, question(), folder=tmp_path / "c", max_retries=0)
    assert isinstance(failure, EngineFailed)
    assert said in str(failure)


@given(st.binary())
def test_any_bytes_are_an_answer_or_none(junk: bytes) -> None:
    whole = events(*WHOLE).encode()
    for data in (b"data:" + junk, whole[: len(junk)] + junk, whole + junk):
        if is_stream(data):
            with suppress(ValueError):
                assert "choices" in body_of_events(data) or "error" in body_of_events(data)
