import json
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.protocol import Completion, Request, RequestRejected
from prefloop.labelers.base import Vote
from prefloop.labelers.judges.rankings import listings, read_ranking
from tests.helpers.judging import ScriptedEngine, all_pairs, completion, label

SHOWN = re.compile(r'<answer label="([A-Z])">\n(.*?)\n</answer>', re.DOTALL)


def listed(request: Request) -> dict[str, str]:
    """Label of each answer, and its text, as shown."""
    return dict(SHOWN.findall(request.messages[-1]["content"]))


def by_length(request: Request) -> Completion:
    """A judge that ranks the longest answer first; the same length is the same place."""
    shown = listed(request)
    lengths = sorted({len(text) for text in shown.values()}, reverse=True)
    ranking = [[one for one in shown if len(shown[one]) == length] for length in lengths]
    return completion(json.dumps({"rationale": "by length", "ranking": ranking}))


def says(text: str) -> Callable[[Request], Completion]:
    return lambda _: completion(text)


def ranked(engine: ScriptedEngine, *texts: str, **config: object) -> list[Vote]:
    return label(engine, *all_pairs(*texts), judge="listwise", **config)


def test_a_ranking_becomes_a_vote_on_each_pair_in_both_orders() -> None:
    engine = ScriptedEngine(by_length)
    pairs = all_pairs("four", "sixsix", "two2")
    votes = label(engine, *pairs, judge="listwise")
    assert len(engine.requests) == 2
    one, other = (list(listed(request).values()) for request in engine.requests)
    assert one == other[::-1]
    assert sorted(one) == ["four", "sixsix", "two2"]
    assert [vote.pair_id for vote in votes] == [pair.pair_id for pair in pairs for _ in "ab"]
    # Answer 1 is the longest, 0 and 2 are as long as each other; pairs are (0, 1), (0, 2), (1, 2).
    assert [vote.preference for vote in votes] == ["b", "b", "tie", "tie", "a", "a"]
    assert {
        frozenset((x.order, y.order)) for x, y in zip(votes[::2], votes[1::2], strict=True)
    } == {frozenset(("ab", "ba"))}
    assert {vote.p_a for vote in votes} == {None}
    assert {vote.rationale for vote in votes} == {"by length"}


def test_a_list_is_ranked_as_often_as_votes_are_wanted() -> None:
    engine = ScriptedEngine(by_length)
    votes = ranked(engine, "a", "bb", votes=3, temperature=0.7)
    assert len(engine.requests) == 2 * 3
    assert len({request.seeds for request in engine.requests}) == 6
    assert [vote.preference for vote in votes] == ["b"] * 6
    assert sorted(vote.order for vote in votes) == ["ab"] * 3 + ["ba"] * 3
    assert sum(vote.cost for vote in votes) == pytest.approx(6 * 0.5)


def test_the_order_of_a_vote_is_the_one_in_which_its_answers_were_listed() -> None:
    engine = ScriptedEngine(by_length)
    texts = ["one", "three", "sevenseven"]
    votes = ranked(engine, *texts)
    for index, request in enumerate(engine.requests):
        shown = list(listed(request).values())
        orders = [vote.order for vote in votes[index::2]]
        expected = [
            "ab" if shown.index(texts[a]) < shown.index(texts[b]) else "ba"
            for a, b in ((0, 1), (0, 2), (1, 2))
        ]
        assert orders == expected


def test_what_a_listing_cost_is_counted_once() -> None:
    votes = ranked(ScriptedEngine(by_length), "a", "bb", "ccc")
    assert sum(vote.cost for vote in votes) == pytest.approx(2 * 0.5)
    assert sum(vote.prompt_tokens for vote in votes) == 2 * 20
    assert sum(vote.completion_tokens for vote in votes) == 2 * 1


def test_one_order_is_one_listing() -> None:
    engine = ScriptedEngine(by_length)
    votes = ranked(engine, "a", "bb", "ccc", orders="one")
    assert len(engine.requests) == 1
    assert [vote.preference for vote in votes] == ["b", "b", "b"]


def test_both_listings_share_rubric_and_request_as_prefix() -> None:
    engine = ScriptedEngine(by_length)
    ranked(engine, "first", "second")
    one, other = (request.messages[-1]["content"] for request in engine.requests)
    start = one.index('<answer label="A">\n')
    assert one[:start] == other[:start]
    assert "Say something p." in one[:start]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B > A > C",
        '{"rationale": "x"}',
        '{"ranking": "BAC"}',
        '{"ranking": ["A", "B"]}',
        '{"ranking": ["A", "B", "C", "D"]}',
        '{"ranking": ["A", "B", "C", "A"]}',
        '{"ranking": [["A", ["B"]], "C"]}',
        '{"ranking": ["a", "b", "c"]}',
        '{"ranking": ["A", "B", 3]}',
        '{"ranking": ["A", "B", "C"]} {"ranking": ["C", "B", "A"]}',
        '{"ranking": ["A", "B", "C"], "ranking": ["C", "B", "A"]}',
        '{"ranking": {"A": 1, "B": 2, "C": 3}}',
    ],
)
def test_a_ranking_that_cannot_be_read_is_invalid_and_kept(text: str) -> None:
    votes = ranked(ScriptedEngine(says(text)), "x", "y", "z")
    assert {vote.preference for vote in votes} == {"invalid"}
    assert {vote.completion for vote in votes} == {text}
    assert all(vote.rationale for vote in votes)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ('{"ranking": [["B"], ["A", "C"]]}', [1, 0, 1]),
        ('{"ranking": ["C", "A", "B"]}', [1, 2, 0]),
        ('{"ranking": [["C"], "A", ["B"]]}', [1, 2, 0]),
        ('```json\n{"ranking": [["A", "B", "C"]]}\n```', [0, 0, 0]),
        ('<think>["B"]?</think>{"ranking": ["A", "B", "C"], "rationale": "r"}', [0, 1, 2]),
    ],
)
def test_rankings(text: str, places: list[int]) -> None:
    assert read_ranking(text, 3)[0] == places
    assert read_ranking(text, 3, "length")[0] == places  # the object is closed


@given(ids=st.sets(st.text("0123456789abcdef", min_size=4, max_size=8), min_size=2, max_size=9))
def test_listings_show_each_pair_in_both_orders_whatever_order_they_come_in(ids: set[str]) -> None:
    one, other = listings(sorted(ids), 0, "p")
    assert sorted(one) == sorted(ids)
    assert other == one[::-1]
    assert listings(sorted(ids, reverse=True), 0, "p") == (one, other)


def test_a_refused_listing_takes_no_other_prompt_with_it() -> None:
    def script(request: Request) -> Completion:
        if "long" in request.messages[-1]["content"]:
            raise RequestRejected("context_overflow", "9000 tokens > 4096")
        return by_length(request)

    pairs = [*all_pairs("long", "b", name="p1"), *all_pairs("a", "bb", name="p2")]
    votes = label(ScriptedEngine(script), *pairs, judge="listwise")
    assert [vote.preference for vote in votes] == ["invalid", "invalid", "b", "b"]
    assert votes[0].completion == "context_overflow: 9000 tokens > 4096"
    assert votes[0].rationale is None


def test_more_candidates_than_a_judge_ranks_are_not_asked_about() -> None:
    engine = ScriptedEngine(by_length)
    votes = ranked(engine, *(f"answer {i}" for i in range(11)))
    assert engine.requests == []
    assert len(votes) == 11 * 10 // 2 * 2
    assert {vote.preference for vote in votes} == {"invalid"}
    assert "11" in (votes[0].completion or "")


def test_the_schema_allows_the_labels_shown_and_no_others() -> None:
    engine = ScriptedEngine(by_length)
    ranked(engine, "a", "b", "c")
    schema = engine.requests[0].json_schema
    assert schema is not None
    group = schema["properties"]["ranking"]["items"]
    assert group["items"]["enum"] == ["A", "B", "C"]
    assert list(schema["properties"]) == ["rationale", "ranking"]


def test_no_pairs_no_requests() -> None:
    engine = ScriptedEngine(by_length)
    assert label(engine, judge="listwise") == []
    assert engine.requests == []
