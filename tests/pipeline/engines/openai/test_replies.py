"""What servers really answer, and what is taken from it."""

import json
import math

import pytest

from prefloop.data.protocol import Completion, EngineFailed, EverythingRefused, RequestRejected
from prefloop.pipeline.engines.openai.connections import connection
from prefloop.pipeline.engines.openai.reply_reader import read_reply
from tests.helpers.served import ask, asked, question
from tests.helpers.servers import by_prompt, endless, faulty_server, good, raw, says


def body(content="hello", usage=None, **choice):
    usage = {"prompt_tokens": 10, "completion_tokens": 5} if usage is None else usage
    first = {"message": {"content": content}, "finish_reason": "stop", **choice}
    return {"choices": [first], "usage": usage}


def answer_to(reply, **more):
    with faulty_server(reply) as server:
        (outcome,) = ask(server.url, question(**more.pop("asking", {})), **more)
    return outcome


def beside_a_good_one(reply):
    """What becomes of one request that is always answered so, while others are answered well."""
    with faulty_server(by_prompt(lambda text: reply if text == "odd" else good())) as server:
        odd, even = ask(server.url, question("odd"), question("even"))
    assert even[0].text == "hello"
    return odd


PARTS = [
    ([{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}], "hello"),
    ([{"type": "output_text", "text": "hello"}], "hello"),
    (["hel", "lo"], "hello"),
    ({"type": "text", "text": "hello"}, "hello"),
    ([{"type": "text", "text": {"value": "hello", "annotations": []}}], "hello"),
    ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "hello"], "hello"),
    ([{"type": "text", "text": "hel"}, {"type": "reference", "reference_ids": [1]}, "lo"], "hello"),
    ([], ""),
    (None, ""),
    ("A \ud83d cut", "A \ufffd cut"),
    ([{"type": "text", "text": "\udc80"}], "\ufffd"),
]


@pytest.mark.parametrize(("content", "text"), PARTS)
def test_an_answer_in_parts_is_its_text(content, text):
    assert answer_to(says(body(content)))[0].text == text


@pytest.mark.parametrize("message", [{"content": None, "reasoning_content": "hm"}, {}])
def test_an_answer_of_thoughts_alone_is_empty(message):
    reply = {"choices": [{"message": message, "finish_reason": "length"}]}
    [completion] = answer_to(says(reply))
    assert (completion.text, completion.finish_reason) == ("", "length")


def test_a_character_cut_at_the_token_limit_is_read():
    data = json.dumps(body("caf\u00e9"), ensure_ascii=False).encode()
    cut = data.replace("\u00e9".encode(), "\u00e9".encode()[:1])
    assert answer_to(lambda handler: handler.send(200, cut))[0].text == "caf\ufffd"


FINISHED = ["eos", "EOS_TOKEN", "end_turn", "stop_sequence", "complete", "STOP", "", None,
            "COMPLETE", "finished", "FINISH_REASON_STOP", "whatever"]  # fmt: skip


@pytest.mark.parametrize("word", FINISHED)
def test_other_words_for_the_end(word):
    assert answer_to(says(body(finish_reason=word)))[0].finish_reason == "stop"


def test_no_word_for_the_end():
    reply = body()
    del reply["choices"][0]["finish_reason"]
    assert answer_to(says(reply))[0].finish_reason == "stop"
    [full] = answer_to(says(reply), asking={"max_tokens": 5})
    assert full.finish_reason == "length"  # all tokens that there were


LIMITS = ["max_tokens", "MAX_TOKENS", "max_output_tokens", "model_length", "repetition",
          "model_context_window_exceeded", "pause_turn", "not_finished"]  # fmt: skip


@pytest.mark.parametrize("word", LIMITS)
def test_other_words_for_the_limit(word):
    assert answer_to(says(body(finish_reason=word)))[0].finish_reason == "length"


@pytest.mark.parametrize(("reason", "ends"), [("max_tokens", "length"), (128009, "stop")])
@pytest.mark.parametrize("finish", [{"finish_reason": None}, {}])
def test_the_word_for_the_end_may_stand_elsewhere(reason, ends, finish):
    reply = body()
    del reply["choices"][0]["finish_reason"]
    reply["choices"][0] |= {**finish, "stop_reason": reason}
    assert answer_to(says(reply))[0].finish_reason == ends


def test_of_several_answers_the_first_by_its_number_is_taken():
    several = [
        {"index": index, "message": {"content": f"no. {index}"}, "finish_reason": "stop"}
        for index in (2, 0, 1)
    ]
    assert answer_to(says({"choices": several}))[0].text == "no. 0"
    for one in several:
        del one["index"]
    assert answer_to(says({"choices": several}))[0].text == "no. 2"


@pytest.mark.parametrize(
    ("content", "reasoning", "text", "thought"),
    [
        ("<think>\nhm [[B]]\n</think>\n\nhello", "hm [[B]]", "hello", "hm [[B]]"),
        ("hm\n</think>\nhello", "hm", "hello", "hm"),
        ("<think>hm", "hm", "", "hm"),
        ("<think>else</think>hello", "hm", "<think>else</think>hello", "hm"),
        ("hello", "hm", "hello", "hm"),
    ],
)
def test_a_thought_that_stands_in_two_places_is_no_answer(content, reasoning, text, thought):
    message = {"content": content, "reasoning_content": reasoning}
    [completion] = answer_to(says(body(message=message)))
    assert (completion.text, completion.reasoning) == (text, thought)


def test_a_thought_in_blocks_beside_the_answer():
    message = {"content": "hello", "thinking_blocks": [{"type": "thinking", "thinking": "hm"}]}
    [completion] = answer_to(says(body(message=message)))
    assert (completion.text, completion.reasoning) == ("hello", "hm")


@pytest.mark.parametrize("content", [None, "look"])
def test_a_call_of_the_first_api_is_an_answer(content):
    call = {"name": "f", "arguments": '{"in": "Rome"}'}
    message = {"content": content, "function_call": call}
    reply = body(message=message, finish_reason="function_call")
    said = '[{"name": "f", "arguments": {"in": "Rome"}}]'
    assert answer_to(says(reply))[0].text == (said if content is None else f"look\n{said}")


def test_tokens_as_the_vocabulary_has_them():
    top = [{"token": token, "logprob": logprob} for token, logprob in
           [("▁A", -0.5), ("ĠB", -1.5), ("B", -2.5), ("▁", -3.0)]]  # fmt: skip
    step = {"token": "▁A", "logprob": -0.5, "top_logprobs": top}
    found = read_reply(body("A", logprobs={"content": [step]}), 10).first_logprobs
    both = math.log(math.exp(-1.5) + math.exp(-2.5))
    assert found == {"A": -0.5, "B": pytest.approx(both), "": -3.0}


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"finish_reason": "content_filter"}, "content_filter"),
        ({"finish_reason": "SAFETY", "message": {}}, "SAFETY"),
        ({"message": {"content": None, "refusal": "I cannot help"}}, "I cannot help"),
        ({"finish_reason": "tool_calls", "message": {"tool_calls": [{}]}}, "called a tool"),
    ],
)
def test_a_refusal_is_one_request_s(choice, said):
    odd = beside_a_good_one(says(body(**choice)))
    assert isinstance(odd, RequestRejected)
    assert odd.reason == "refused_by_server"
    assert said in odd.detail


def test_unknown_log_probabilities_are_none():
    for logprobs in [None, {}, {"content": []}, {"content": None}, "none", 5, [],
                     {"content": [{"logprob": None}]}, {"content": [{"logprob": "-1"}]},
                     {"token_logprobs": [None, -1.0]}]:  # fmt: skip
        assert answer_to(says(body(logprobs=logprobs)))[0].logprob is None, logprobs


def test_a_rounding_error_above_0_is_0():
    reply = says(body(logprobs={"content": [{"token": "x", "logprob": 1e-7}]}))
    assert answer_to(reply)[0].logprob == 0.0


IMPOSSIBLE = [
    {"logprobs": {"content": [{"token": "A", "logprob": 1000.0}]}},
    {"logprobs": {"content": [{"token": "A", "logprob": math.nan}]}},
    {"logprobs": {"content": [{"token": "A", "logprob": -math.inf}]}},
    {"usage": {"prompt_tokens": 10**30, "completion_tokens": 1}},
    {"usage": {"prompt_tokens": 10, "completion_tokens": 3_000_000_000}},
    {"usage": {"prompt_tokens": math.inf, "completion_tokens": 1}},
    {"usage": {"prompt_tokens": -5, "completion_tokens": 1}},
    {"usage": {"prompt_tokens": 1.5, "completion_tokens": 1}},
    {"content": 7},
    {"content": {"verdict": "A"}},
    {"content": [[["a"]]]},
    {"finish_reason": ["stop", "x"]},
    {"finish_reason": "error"},
    {"message": None},
    {"token_ids": [1, 2**70]},
]


@pytest.mark.parametrize("odd", IMPOSSIBLE, ids=str)
def test_what_cannot_be_is_asked_again_then_refused_alone_and_never_kept(odd, tmp_path):
    reply = says(body(**odd))
    with faulty_server(by_prompt(lambda text: reply if text == "odd" else good())) as server:
        rejected, even = ask(server.url, question("odd"), question("even"), folder=tmp_path / "c")
        assert asked(server).count("odd") >= 2
    assert isinstance(rejected, RequestRejected)
    assert rejected.reason == "unparsable_answer"
    assert even[0].text == "hello"
    with faulty_server(good("mended")) as server:
        again, even = ask(server.url, question("odd"), question("even"), folder=tmp_path / "c")
    assert (again[0].text, even[0].text) == ("mended", "hello")


@pytest.mark.parametrize(
    "text",
    [
        '{"choices": ' + "[" * 200_000 + "]" * 200_000 + "}",
        '{"choices": [{"mess',
        "<html>login</html>",
        "[]",
        "null",
        "7" * 6000,
        '{"choices": [null]}',
        '{"choices": {"0": 1}}',
    ],
    ids=lambda text: text[:20],
)
def test_any_other_body_is_one_request_s_trouble(text):
    odd = beside_a_good_one(raw(text))
    assert isinstance(odd, RequestRejected)
    assert "garbage" in odd.detail
    assert len(odd.detail) < 500


def test_more_choices_than_asked_for():
    reply = body()
    reply["choices"] *= 3
    assert answer_to(says(reply))[0].text == "hello"


USAGES = [
    (None, (2, 2)),
    ({}, (2, 2)),
    ("many", (2, 2)),
    ({"prompt_tokens": None, "completion_tokens": None}, (2, 2)),
    ({"prompt_tokens": 0, "completion_tokens": 0}, (2, 2)),
    ({"completion_tokens": 7}, (2, 7)),
    ({"prompt_tokens": 9}, (9, 2)),
    ({"prompt_tokens": 20, "total_tokens": 33}, (20, 13)),
    ({"input_tokens": 9, "output_tokens": 7}, (9, 7)),
    ({"prompt_tokens": "9", "completion_tokens": 7.0}, (2, 7)),
]


@pytest.mark.parametrize(("usage", "counts"), USAGES, ids=str)
def test_tokens_that_the_server_does_not_count_are_counted(usage, counts, caplog):
    reply = body() | {"usage": usage}
    with faulty_server(says(reply)) as server:
        outcomes = ask(server.url, question("a fox ab"), question("b fox ab"))
    for [completion] in outcomes:
        assert (completion.prompt_tokens, completion.completion_tokens) == counts
    warnings = [text for text in caplog.messages if "how many tokens" in text]
    assert len(warnings) == (2 in counts)  # once


def test_tokens_are_counted_by_the_log_probabilities_where_there_are_some():
    reply = body(logprobs={"content": [{"logprob": -1.0}] * 3}) | {"usage": None}
    assert answer_to(says(reply))[0].completion_tokens == 3


def test_a_judge_without_log_probabilities_is_told_before_all_is_paid():
    requests = [question(str(i), choices=("A", "B")) for i in range(40)]
    with faulty_server(good("A")) as server:
        outcomes = ask(server.url, *requests, max_concurrency=1)
    assert all(isinstance(each, EverythingRefused) for each in outcomes)
    assert "no log-probabilities" in str(outcomes[0])
    assert len(server.requests) == 2


def test_a_thought_without_an_answer_says_nothing_about_log_probabilities():
    requests = [question(str(i), choices=("A", "B")) for i in range(9)]
    with faulty_server(good("", finish_reason="length")) as server:
        outcomes = ask(server.url, *requests)
    assert [each[0].text for each in outcomes] == [""] * 9
    assert len(server.requests) == 9


def test_one_answer_without_log_probabilities_is_that_answer_s(tmp_path):
    top = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]
    full = good("A", logprobs={"content": [{"token": "A", "logprob": -0.1, "top_logprobs": top}]})
    requests = [question(str(i), choices=("A", "B")) for i in range(12)]
    bare = by_prompt(lambda text: good("A") if text == "3" else full)
    with faulty_server(bare) as server:
        outcomes = ask(server.url, *requests, folder=tmp_path / "c")
    assert [each[0].choice_logprobs is None for each in outcomes] == [i == 3 for i in range(12)]
    with faulty_server(full) as server:  # it was not kept
        outcomes = ask(server.url, *requests, folder=tmp_path / "c")
    assert all(each[0].choice_logprobs is not None for each in outcomes)
    assert len(server.requests) == 1


def test_a_body_without_end_is_not_read(monkeypatch):
    monkeypatch.setattr(connection, "LARGEST_BODY", 1 << 20)
    with faulty_server(endless(b" " * 65536, 2000)) as server:
        (error,) = ask(server.url, question(), max_retries=0)
    assert isinstance(error, EngineFailed)
    assert "more than 1 MiB" in str(error)
    assert server.sent < 60 << 20  # of 3 x 125 MiB; the rest lies in the sockets


def test_a_body_that_says_how_large_it_is_is_not_read_at_all(monkeypatch):
    monkeypatch.setattr(connection, "LARGEST_BODY", 1000)
    with faulty_server(good("x" * 2000)) as server:
        (error,) = ask(server.url, question(), max_retries=0)
    assert "which is not read" in str(error)


def test_an_unknown_encoding_is_not_unpacked():
    with faulty_server(lambda h: h.send(200, "{}", content_encoding="gzip, gzip")) as server:
        (error,) = ask(server.url, question(), max_retries=0)
    assert "content-encoding" in str(error)


def test_fields_that_a_server_refuses_are_left_out():
    top = [{"token": "A", "logprob": -0.1}]
    seen = {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": top}]}
    with faulty_server(good(logprobs=seen)) as server:
        (answers,) = ask(
            server.url, question(seeds=(1, 2), choices=("A",)), leave_out=("seed", "top_p"),
            top_logprobs=5,
        )  # fmt: skip
    assert [each.text for each in answers] == ["hello", "hello"]
    assert all(isinstance(each, Completion) for each in answers)
    assert len(server.requests) == 2
    for _, _, sent in server.requests:
        assert not {"seed", "top_p"} & sent.keys()
        assert sent["top_logprobs"] == 5


THINKING = [
    ({"content": "the answer", "reasoning_content": "hm"}, "hm", "the answer"),
    ({"content": "\n\nthe answer", "reasoning": "hm"}, "hm", "the answer"),
    ({"content": "the answer", "thinking": "hm"}, "hm", "the answer"),
    ({"content": "the answer", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
     "hm", "the answer"),
    ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                  {"type": "text", "text": "the answer"}]}, "hm", "the answer"),
    ({"content": "<think>\nhm\n</think>\n\nthe answer"}, "hm", "the answer"),
    ({"content": "hm\n</think>\n\nthe answer"}, "hm", "the answer"),
    ({"content": "[THINK]hm[/THINK]the answer"}, "hm", "the answer"),
    ({"content": "analysisHm.assistantfinalthe answer"}, "Hm.", "the answer"),
    ({"content": "the answer", "reasoning_content": ""}, None, "the answer"),
    ({"content": "the answer", "reasoning": {"effort": 3}}, None, "the answer"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "reasoning", "text"), THINKING)
def test_a_thought_is_apart_from_its_answer(message, reasoning, text):
    usage = {"prompt_tokens": 10, "completion_tokens": 20}
    [got] = answer_to(says({"choices": [{"message": message, "finish_reason": "stop"}],
                            "usage": usage}))  # fmt: skip
    assert (got.reasoning, got.text, got.completion_tokens) == (reasoning, text, 20)
    if reasoning is None:
        assert got.reasoning_tokens == 0
    else:
        assert 0 < got.reasoning_tokens < 20  # by its share of the characters
    is_marked = reasoning is not None and reasoning in str(message["content"])
    assert got.raw_text == (message["content"] if is_marked and len(message) == 1
                            and isinstance(message["content"], str) else None)  # fmt: skip


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"},
        {"message": {"content": "", "reasoning": "hm"}, "finish_reason": "stop"},
        {"message": {"content": "<think>\nhm"}, "finish_reason": "length"},
    ],
)
def test_an_unfinished_thought_is_no_answer(choice):
    [got] = answer_to(says({"choices": [choice], "usage": {"prompt_tokens": 1,
                                                           "completion_tokens": 7}}))  # fmt: skip
    assert (got.text, got.reasoning, got.finish_reason) == ("", "hm", "length")
    assert got.answer_tokens == 0


def test_what_was_cut_off_where_a_thought_was_to_come_is_one():
    """The server rendered the prompt: nobody knows whether it opened a thought."""
    cut = says(body("Well, let me see", finish_reason="length"))
    [thought] = answer_to(cut, asking={"thought_tokens": 20})
    assert (thought.text, thought.reasoning) == ("", "Well, let me see")
    [answer] = answer_to(cut)
    assert (answer.text, answer.reasoning) == ("Well, let me see", None)


def test_a_hidden_thought_is_counted():
    usage = {"prompt_tokens": 10, "completion_tokens": 90,
             "completion_tokens_details": {"reasoning_tokens": 80}}  # fmt: skip
    [got] = answer_to(says(body("hello", usage)))
    assert (got.reasoning, got.reasoning_tokens, got.answer_tokens) == (None, 80, 10)


def steps(*words, top="AB"):
    return {"content": [
        {"token": word, "logprob": -0.1,
         "top_logprobs": [{"token": each, "logprob": -0.1 - i} for i, each in enumerate(top)]}
        for word in words
    ]}  # fmt: skip


def test_log_probabilities_are_those_behind_the_thought():
    words = ["<think>", "First", " A", ",", " no", "</think>", "\n\n", "B"]
    logprobs = steps(*words)
    logprobs["content"][-1]["top_logprobs"] = [{"token": "B", "logprob": -0.2},
                                              {"token": "A", "logprob": -3.0}]  # fmt: skip
    for content, more in (("".join(words), {}), ("B", {"reasoning_content": "First A, no"})):
        reply = {"choices": [{"message": {"content": content, **more}, "finish_reason": "stop",
                              "logprobs": logprobs}],
                 "usage": {"prompt_tokens": 1, "completion_tokens": 8}}  # fmt: skip
        [got] = answer_to(says(reply), asking={"choices": ("A", "B"), "thought_tokens": 50})
        assert (got.text, got.reasoning_tokens) == ("B", 7)
        assert got.choice_logprobs == {"A": -3.0, "B": -0.2}
        # Without them, the words behind the thought are the verdict.
        del reply["choices"][0]["logprobs"]
        [got] = answer_to(says(reply), asking={"choices": ("A", "B"), "thought_tokens": 50})
        assert (got.text, got.choice_logprobs) == ("B", None)


CALLS = [
    {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
    {"id": "2", "type": "function", "function": {"name": "say", "arguments": "no JSON"}},
]
CALLED = '[{"name": "add", "arguments": {"a": 1}}, {"name": "say", "arguments": "no JSON"}]'


@pytest.mark.parametrize(
    ("content", "wanted"), [(None, CALLED), ("", CALLED), ("Let me see.", f"Let me see.\n{CALLED}")]
)
@pytest.mark.parametrize("reason", ["tool_calls", "stop"])
def test_a_call_of_a_tool_is_an_answer_as_json(content, wanted, reason):
    message = {"content": content, "tool_calls": CALLS}
    reply = read_reply(body(message=message, finish_reason=reason), 100)
    assert (reply.text, reply.finish_reason) == (wanted, "stop")
