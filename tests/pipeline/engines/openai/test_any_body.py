"""Whatever JSON a server sends: an answer that the tables can hold, a refusal, or another try."""

import asyncio
import json
import math

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefloop.data.protocol import EngineFailed, Request, RequestRejected, Sampling
from prefloop.data.schemas import CANDIDATE, VOTE
from prefloop.labelers.judges.stored_logprobs import store_logprobs
from prefloop.pipeline.engines.openai.budget import Charge
from prefloop.pipeline.engines.openai.connections.response import Response
from prefloop.pipeline.engines.openai.ledger import Amount
from prefloop.pipeline.engines.openai.openai_errors import TransientError
from prefloop.pipeline.engines.openai.openai_server import OpenAIServer
from prefloop.pipeline.engines.openai.server_words import LONGEST, said_by, said_in
from prefloop.pipeline.engines.settings import OpenAIEngine
from tests.helpers.mutated import mutated

TOP = [
    {"token": "A", "logprob": -0.5},
    {"token": " A", "logprob": -2},
    {"token": "B", "logprob": -3},
]
CHAT = {
    "id": "x",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "A", "refusal": None},
            "finish_reason": "stop",
            "token_ids": [5, 6],
            "logprobs": {"content": [{"token": "A", "logprob": -0.5, "top_logprobs": TOP}]},
        }
    ],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}
TEXT = {
    "choices": [
        {
            "text": "A",
            "finish_reason": "length",
            "logprobs": {"token_logprobs": [-0.5], "top_logprobs": [{"A": -0.5, "B": -2.0}]},
        }
    ],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5},
}
ERROR = {"error": {"message": "no", "code": 500, "param": "seed", "type": "x"},
         "detail": [{"loc": ["body", "seed"], "msg": "no"}]}  # fmt: skip

NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30, 10**400, -1, 0, 402, 429, 500]),
    st.floats(),
    st.sampled_from([math.inf, -math.inf, math.nan, 1e308, -1e308, 1e-320, -0.0, 0.5, 1000.0]),
)
WORDS = st.one_of(
    st.text(),
    st.text(st.characters(), max_size=5),  # lone surrogates too
    st.sampled_from(
        ["\ud83d", "eos", "", "content_filter", "error", "A", " A", "\x00", "\x1b[31m"]
    ),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
KEYS = st.one_of(
    st.sampled_from(["choices", "message", "content", "text", "type", "usage", "error", "logprobs",
                     "logprob", "token", "top_logprobs", "detail", "code", "finish_reason", "msg"]),
    WORDS,
)  # fmt: skip
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


BODIES = [CHAT, TEXT, ERROR, CHAT | ERROR]


def request(choices):
    chat = ({"role": "user", "content": "a fox"},)
    return Request("r", chat, Sampling(max_tokens=5), (1,), ("A", "B") if choices else None)


ENGINE = OpenAIServer(
    OpenAIEngine(price_per_million_prompt_tokens=2.0, price_per_million_completion_tokens=8.0), "m"
)


def outcome(data, status, choices, n=1):
    """What one try comes to, without the network; of several answers, all that came."""
    asked = request(choices)
    question = ENGINE._questions.several(asked, range(1, n + 1), None)
    charge = Charge(Amount(1000, 1.0))
    try:
        read = ENGINE._outcomes.read(
            ENGINE._servers.only, question, Response(status, {}, data), charge
        )
        read.body.encode("ascii")
        if n == 1:
            return ENGINE._counts.completion(asked, read.reply, None)
        assert len(read.replies) == n
        came = [ENGINE._counts.completion(asked, one, None) for one in read.replies if one]
        # Of what was paid, no more is said of the answers than all of it.
        if all(one and one.completion_tokens is not None for one in read.replies):
            paid = sum(one.completion_tokens for one in came)
            assert paid <= max(charge.spent.tokens, sum(len(one.token_ids) for one in came))
        return came
    except (RequestRejected, EngineFailed, TransientError) as error:
        return error
    except Exception as error:
        if type(error).__name__ == "GarbledResponseError":
            return error
        raise
    finally:
        assert 0 <= charge.spent.tokens < 2**33
        assert 0 <= charge.spent.cost < math.inf


def check(data, status, choices, n=1):
    got = outcome(data, status, choices, n)
    if isinstance(got, Exception):
        assert "\n" not in str(got)
        assert len(str(got)) < 4 * LONGEST
        str(got).encode("utf-8")
        pa.array([str(got)])
        return
    for answer in got if n > 1 else [got]:
        fits(answer)


def fits(got):
    """An answer is one that the tables hold."""
    assert got.finish_reason in ("stop", "length")
    assert 0 <= got.reasoning_tokens <= got.completion_tokens
    assert got.logprob is None or -math.inf < got.logprob <= 0
    found = [*(got.choice_logprobs or {}).values()]
    known = [value for value in found if not math.isnan(value)]
    assert all(value <= 0 for value in known)
    # Not known is what was not listed beside one that was.
    assert known == found or any(value > -math.inf for value in known)
    row = dict.fromkeys(CANDIDATE.names) | {
        "candidate_id": "c", "prompt_id": "p", "round": 0, "sample_index": 0, "text": got.text,
        "tokens": got.answer_tokens, "finish_reason": got.finish_reason,
        "reasoning": got.reasoning, "reasoning_tokens": got.reasoning_tokens,
        "raw_text": got.raw_text, "token_ids": got.token_ids or None,
        "logprob": got.logprob, "origin": "sampled", "policy": "m", "policy_revision": "m",
        "seed": 1, "copies": 1, "prompt_tokens": got.prompt_tokens, "cost": got.cost,
    }  # fmt: skip
    pa.Table.from_pylist([row], schema=CANDIDATE).validate(full=True)
    vote = dict.fromkeys(VOTE.names, "x") | {
        "round": 0, "p_a": None, "score_a": None, "score_b": None, "completion": got.text,
        "choice_logprobs": json.dumps(store_logprobs(got.choice_logprobs), allow_nan=False),
        "prompt_tokens": got.prompt_tokens, "completion_tokens": got.completion_tokens,
        "cost": got.cost, "reasoning": got.reasoning, "reasoning_tokens": got.reasoning_tokens,
    }  # fmt: skip
    pa.Table.from_pylist([vote], schema=VOTE).validate(full=True)
    pa.array(got.token_ids, pa.int64())


MANY = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
STATUSES = st.sampled_from([200, 200, 200, 201, 204, 304, 400, 401, 403, 404, 422, 429, 500, 599])


@MANY
@given(JSON | mutated(BODIES, JSON), STATUSES, st.booleans())
@example({"choices": [{"text": "\ud83d"}]}, 200, False)
@example(CHAT | {"usage": {"prompt_tokens": 10**30}}, 200, False)
@example(CHAT | {"usage": {"prompt_tokens": 50, "completion_tokens": 3_000_000_000}}, 200, False)
@example({"choices": [{"text": "A", "logprobs": {"token_logprobs": [1000.0]}}]}, 200, True)
@example({"error": {"message": "\ud83d", "code": 1e999}}, 200, False)
@example({"error": {"message": "no", "code": "٤٠٢"}}, 200, False)
@example([[[[{"error": "x"}]]]], 400, False)
def test_any_json(body, status, choices):
    check(json.dumps(body).encode(), status, choices)


SEVERAL = CHAT | {"choices": [CHAT["choices"][0] | {"index": index} for index in (2, 0, 1)]}


@MANY
@given(JSON | mutated([SEVERAL, CHAT, CHAT | ERROR], JSON), STATUSES)
@example(SEVERAL, 200)
@example(SEVERAL | {"choices": [None, [], *SEVERAL["choices"]]}, 200)
@example(SEVERAL | {"usage": {"prompt_tokens": 1, "completion_tokens": 0}}, 200)
def test_any_json_of_several_answers(body, status):
    check(json.dumps(body).encode(), status, False, 3)


@MANY
@given(st.binary(), st.sampled_from([CHAT, TEXT]), st.integers(0, 400), st.booleans())
@example(b"", CHAT, 0, True)
@example(b"\xff\xfe", CHAT, 0, True)
@example(b"9" * 6000, CHAT, 0, True)
@example(b"[" * 200_000, CHAT, 0, True)
@example(b'{"a":' * 900 + b"1" + b"}" * 900, CHAT, 0, True)
def test_any_bytes(junk, body, at, choices):
    data = json.dumps(body).encode()
    check(data[:at] + junk, 200, choices)
    check(data[:at] + junk + data[at:], 200, choices)


@MANY
@given(mutated(BODIES, JSON), st.booleans())
def test_numbers_that_overflow_in_json(body, choices):
    text = json.dumps(body).replace("-0.5", "-1e999").replace(": 10", ": 1e999")
    check(text.encode(), 200, choices)


@MANY
@given(JSON | mutated(BODIES, JSON))
def test_words_are_one_short_line(body):
    for said in (said_by(body), said_in(json.dumps(body).encode())):
        said.words.encode("utf-8")
        assert len(said.words) <= LONGEST
        assert said.words.isprintable()


@pytest.mark.parametrize("body", [CHAT, TEXT])
def test_the_bodies_that_are_mutated_are_good_ones(body):
    got = outcome(json.dumps(body).encode(), 200, True)
    assert got.text == "A"
    assert got.logprob == -0.5
    assert got.choice_logprobs["B"] < got.choice_logprobs["A"] < 0


def teardown_module():
    asyncio.run(ENGINE.aclose())
