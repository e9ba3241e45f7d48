import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefloop.data.hashing import content_id, pair_id
from prefloop.labelers.base import Answer, LabelerError, Pair, Vote
from prefloop.labelers.config import ReferenceLabeler, VerifierLabeler
from prefloop.labelers.factory import build_labeler
from prefloop.labelers.scorers.function_pool import CHUNK
from prefloop.labelers.scorers.function_process import load_function
from tests.helpers import functions

FUNCTIONS = functions.__name__
WORD = {"type": "includes_word", "word": "fox"}
SHOUT = {"type": "ends_with", "suffix": "!"}


def make_pair(a: str, b: str, metadata: dict | None = None, origins: str = "ss") -> Pair:
    prompt = content_id("prompt")
    names = {"s": "sampled", "r": "reference"}
    answers = [
        Answer(content_id(prompt, text, origin), text, len(text.split()), names[origin])
        for text, origin in zip((a, b), origins, strict=True)
    ]
    return Pair(
        pair_id=pair_id(prompt, *(answer.candidate_id for answer in answers)),
        prompt_id=prompt,
        round=3,
        messages=({"role": "user", "content": "Write about a fox."},),
        reference="ref",
        metadata={} if metadata is None else metadata,
        a=answers[0],
        b=answers[1],
    )


def label(pairs: list[Pair], **config: object) -> list[Vote]:
    verifier = build_labeler(VerifierLabeler(**config), engine=None, seed=0)
    return asyncio.run(verifier.label(pairs, block="b"))


@pytest.mark.parametrize(
    ("a", "b", "preference", "p_a", "scores"),
    [
        ("A fox!", "A fox.", "a", 1.0, (1.0, 0.5)),
        ("A dog.", "A fox.", "b", 0.0, (0.0, 0.5)),
        ("A dog!", "A fox.", "tie", 0.5, (0.5, 0.5)),
    ],
)
def test_the_constraints_of_the_prompt_decide(a, b, preference, p_a, scores) -> None:
    [vote] = label([make_pair(a, b, {"constraints": [WORD, SHOUT]})])
    assert (vote.preference, vote.p_a, (vote.score_a, vote.score_b)) == (preference, p_a, scores)
    assert (vote.order, vote.labeler, vote.round, vote.cost) == ("none", "verifier", 3, 0.0)


def test_swapping_the_answers_flips_the_vote() -> None:
    """ANCHORS 1."""
    metadata = {"constraints": [WORD]}
    [one, other] = label([make_pair("fox", "dog", metadata), make_pair("dog", "fox", metadata)])
    assert (one.preference, other.preference) == ("a", "b")


def test_each_answer_is_scored_once_however_many_pairs_it_is_in() -> None:
    texts = ["a", "bb", "ccc", "dddd"]
    pairs = [make_pair(x, y) for i, x in enumerate(texts) for y in texts[i + 1 :]]
    votes = label(pairs, function=f"{FUNCTIONS}:how_often", name="count")
    assert [vote.pair_id for vote in votes] == [pair.pair_id for pair in pairs]
    assert {score for vote in votes for score in (vote.score_a, vote.score_b)} == {1, 2, 3, 4}


def test_the_function_sees_the_prompt_and_the_answer() -> None:
    [vote] = label([make_pair("a", "bb")], function=f"{FUNCTIONS}:length")
    assert (vote.preference, vote.score_a, vote.score_b) == ("b", 1, 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise", "KeyError: 'no such thing'"),
        ("nan", "not a finite number"),
        ("inf", "not a finite number"),
        ("none", "TypeError"),
        ("word", "ValueError"),
        ("function", "TypeError"),
        ("mute", "Mute"),
        ("leave", "SystemExit: I leave"),
        ("interrupt", "KeyboardInterrupt"),
        ("die", "ended its process (exit code 3)"),
        ("terminate", "ended its process (signal SIGTERM)"),
        ("kill", "ended its process (signal SIGKILL)"),
        ("loop", "took more than 1 s (timeout_s)"),
        ("sleep", "took more than 1 s (timeout_s)"),
        ("backtrack", "took more than 1 s (timeout_s)"),
        ("child", "took more than 1 s (timeout_s)"),
    ],
)
def test_an_answer_that_cannot_be_scored_is_invalid_and_alone(text: str, reason: str) -> None:
    """ANCHORS 3."""
    pairs = [make_pair("x", "y"), make_pair("x", text), make_pair("y", "z")]
    votes = label(pairs, function=f"{FUNCTIONS}:misbehaving", timeout_s=1)
    assert [vote.preference for vote in votes] == ["tie", "invalid", "tie"]
    assert reason in (votes[1].completion or "")
    assert (votes[1].p_a, votes[1].score_a, votes[1].score_b) == (None, 1.0, None)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "constraints_column"),
        ({"constraints": "includes_word"}, "constraints_column"),
        ({"constraints": [{"type": "no_such_type"}]}, "unknown constraint type"),
    ],
)
def test_constraints_that_cannot_be_checked_are_invalid(metadata: dict, reason: str) -> None:
    [vote] = label([make_pair("a", "b", metadata)])
    assert vote.preference == "invalid"
    assert reason in (vote.completion or "")


def test_differences_up_to_the_gap_are_ties() -> None:
    metadata = {"rules": [WORD, SHOUT, {"type": "starts_with", "prefix": "A"}]}
    pairs = [make_pair("A fox!", "A fox", metadata), make_pair("A fox!", "fox", metadata)]
    votes = label(pairs, constraints_column="rules", min_gap=1 / 3)
    assert [vote.preference for vote in votes] == ["tie", "a"]


def test_processes_run_at_the_same_time_share_no_state_and_keep_the_order(tmp_path: Path) -> None:
    here = {"folder": str(tmp_path)}
    pairs = [make_pair("x" * i, "y" * i, here) for i in range(1, 2 * CHUNK)]
    votes = label(pairs, function=f"{FUNCTIONS}:wait_for_another", processes=2)
    assert [(vote.score_a, vote.score_b) for vote in votes] == [(i, i) for i in range(1, 2 * CHUNK)]
    assert len(list(tmp_path.iterdir())) == 2


def test_several_blocks_are_scored_at_the_same_time_by_one_pool() -> None:
    config = VerifierLabeler(function=f"{FUNCTIONS}:length_of_answer")
    verifier = build_labeler(config, engine=None, seed=0)
    blocks = [[make_pair("x" * (i + 1), "y" * j) for j in range(9)] for i in range(4)]

    async def votes() -> list[list[Vote]]:
        return await asyncio.gather(*(verifier.label(one, block="b") for one in blocks))

    for block, found in zip(blocks, asyncio.run(votes()), strict=True):
        assert [vote.pair_id for vote in found] == [pair.pair_id for pair in block]
        assert [vote.score_b for vote in found] == list(range(9))


def test_calls_that_end_their_process_cost_no_others() -> None:
    """Also where many were sent to it at once."""
    bad = ["die", "loop", "kill", "backtrack"]
    pairs = [make_pair(f"x{i}", bad[i // 25] if i % 25 == 0 else f"y{i}") for i in range(100)]
    votes = label(pairs, function=f"{FUNCTIONS}:misbehaving", timeout_s=1)
    invalid = [i for i, vote in enumerate(votes) if vote.preference == "invalid"]
    assert invalid == [0, 25, 50, 75]


def test_a_process_that_is_ended_by_others_costs_nothing(tmp_path: Path) -> None:
    """Who ends a job ends every process of it: no call is to blame."""
    here = {"folder": str(tmp_path)}
    pairs = [make_pair(f"{i}", f"terminate once {i}", here) for i in range(5)]
    votes = label(pairs, function=f"{FUNCTIONS}:terminated_once")
    assert [vote.preference for vote in votes] == ["tie"] * 5


def test_what_the_function_prints_is_no_output_of_ours(capfd) -> None:
    [vote] = label([make_pair("print", "x")], function=f"{FUNCTIONS}:misbehaving")
    assert vote.preference == "tie"
    out, err = capfd.readouterr()
    assert (out, err.strip()) == ("", "printed by the function")


def test_a_fork_that_the_function_forgets_answers_nothing() -> None:
    votes = label([make_pair("fork", text) for text in "xyz"], function=f"{FUNCTIONS}:misbehaving")
    assert [vote.preference for vote in votes] == ["tie", "tie", "tie"]


def test_cancelling_ends_the_calls_and_their_processes() -> None:
    config = VerifierLabeler(function=f"{FUNCTIONS}:misbehaving", timeout_s=3600)
    verifier = build_labeler(config, engine=None, seed=0)

    async def cancelled() -> None:
        task = asyncio.create_task(verifier.label([make_pair("x", "backtrack")], block="b"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())  # waits for the threads too
    assert verifier._pool.pids == []
    [vote] = asyncio.run(verifier.label([make_pair("x", "y")], block="b"))
    assert vote.preference == "tie"


def test_the_processes_end_with_the_labeler() -> None:
    config = VerifierLabeler(function=f"{FUNCTIONS}:misbehaving")
    verifier = build_labeler(config, engine=None, seed=0)
    [pid] = verifier._pool.pids
    del verifier
    assert not Path(f"/proc/{pid}").exists()


LOOP = """
import os, re, time
def score(text, **_):
    open("started", "w").write(str(os.getpid()))
    {body}
"""


BACKTRACK = "re.match(r'(a|a)*$', 'a' * 60 + 'b')"  # holds the interpreter


@pytest.mark.parametrize(
    ("number", "body"),
    [
        (signal.SIGTERM, "while True: pass"),
        (signal.SIGTERM, BACKTRACK),
        (signal.SIGKILL, BACKTRACK),
    ],
)
def test_a_signal_ends_a_run_with_a_function_that_does_not(
    number: int, body: str, tmp_path: Path
) -> None:
    (tmp_path / "never_ends.py").write_text(LOOP.format(body=body))
    rows = [{"prompt": f"Number {n}?", "responses": [f"a{n}", f"it is {n}"]} for n in range(2)]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "sample": {"from": {"path": "answers.jsonl"}},
        "label": {"labelers": [
            {"type": "verifier", "function": "never_ends:score", "timeout_s": 3600}
        ]},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd())])}
    process = subprocess.Popen(
        [sys.executable, "-m", "prefloop", "run", "run.yaml", "--run-dir", "run", "--no-check"],
        cwd=tmp_path, env=environment,
    )  # fmt: skip
    started = tmp_path / "started"
    while not (started.exists() and started.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    scorer = Path("/proc") / started.read_text()
    assert scorer.exists()
    process.send_signal(number)
    assert process.wait() == (130 if number == signal.SIGTERM else -number)
    while scorer.exists() and ") Z " not in (scorer / "stat").read_text():
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no_such_module_here:f", "ModuleNotFoundError"),
        ("math:no_such_function", "no function 'no_such_function'"),
        ("math:pi", "no function 'pi'"),
        ("__main__:score", "write it into a module"),
    ],
)
def test_a_function_that_is_not_there_is_refused_in_one_line(path: str, problem: str) -> None:
    with pytest.raises(LabelerError, match=problem) as error:
        build_labeler(VerifierLabeler(function=path), engine=None, seed=0)
    assert "\n" not in str(error.value)


def test_modules_of_the_working_directory_are_found(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_checks_for_test.py").write_text(
        "def short(text, **_):\n    return -len(text)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert load_function("my_checks_for_test:short")("abc") == -3


@pytest.mark.parametrize("path", ["module", ":f", "module:", "a:b:c", "a b:c"])
def test_a_function_is_written_module_colon_name(path: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        VerifierLabeler(function=path)


def test_the_reference_is_preferred_and_abstains_elsewhere() -> None:
    labeler = build_labeler(ReferenceLabeler(), engine=None, seed=0)
    pairs = [make_pair("x", "y", origins=origins) for origins in ("ss", "rs", "sr", "rr")]
    votes = asyncio.run(labeler.label(pairs, block="b"))
    assert [(vote.pair_id, vote.preference, vote.p_a) for vote in votes] == [
        (pairs[1].pair_id, "a", 1.0),
        (pairs[2].pair_id, "b", 0.0),
    ]


def test_a_judge_without_an_engine_is_refused() -> None:
    from prefloop.labelers.config import JudgeLabeler

    with pytest.raises(LabelerError, match="needs an engine"):
        build_labeler(JudgeLabeler(model="m"), engine=None, seed=0)
