"""The verifiers that ship with prefloop."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from prefloop.labelers.base import Vote
from prefloop.labelers.config import VerifierLabeler
from prefloop.labelers.factory import build_labeler
from prefloop.labelers.scorers.shipped import (
    choice_answer,
    exact_answer,
    json_answer,
    math_answer,
    unit_tests,
)
from prefloop.labelers.scorers.shipped.cage import CageError, Limits, run_caged
from prefloop.labelers.scorers.shipped.outcomes import RIGHT, UNPARSED, WRONG, GoldError
from tests.labelers.scorers.test_verifier import make_pair

OPTIONS = {"gold": None, "choices": None, "within": "final", "seconds": 10.0, "memory_mb": 512}


def scored(module: Any, text: str, gold: Any = None, *, options: Any = None, **metadata: Any):
    return module.score(
        text, messages=(), reference=gold if isinstance(gold, str) else None,
        metadata={"gold": gold, **metadata},
        options=OPTIONS | ({"gold": "gold"} if gold is not None else {}) | (options or {}),
    )  # fmt: skip


_COLUMN = r"\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix}"
"""As MATH has it: a bare formula."""


@pytest.mark.parametrize(
    ("text", "gold", "found"),
    [
        ("So the result is \\boxed{\\frac{1}{2}}.", "0.5", RIGHT),
        ("We have 3 + 4 = 7. The answer is 7.", "7", RIGHT),
        ("The answer is 1,234 apples.", "Long work.\n#### 1,234", RIGHT),
        ("\\boxed{(x+1)^2}", "x^2+2x+1", RIGHT),
        ("\\boxed{3}", "Hence \\boxed{4}", WRONG),
        ("At first I thought of 12, but it is \\boxed{13}.", "12", WRONG),
        ("I do not know.", "7", UNPARSED),
        ("", "7", UNPARSED),
        ("The answer is $\\sqrt{2}$", "\\sqrt{2}", RIGHT),
        ("\\boxed{50\\%}", "50\\%", RIGHT),
        ("So the answer is (1,2).", "(1,2)", RIGHT),
        ("So the answer is (2,1).", "(1,2)", WRONG),
        ("That makes\n3\\times 10^3", "3000", RIGHT),
        ("<answer>\\frac12</answer>", "0.5", RIGHT),
        ("Not sure, but 2 and 5 make 7", "7", RIGHT),
        ("The answer is 12, 5 more than 7.", "12", RIGHT),
        *(
            (f"The answer is {text}", "3", WRONG)
            for text in ("3 or 4", "4 or 3", "3, 4", "not 3", "3 to 4", "x = 3, y = 4", "3; 4")
        ),
    ],
)
def test_math(text: str, gold: str, found: float) -> None:
    assert scored(math_answer, text, gold) == found


@pytest.mark.parametrize(
    ("text", "gold", "found"),
    [
        ("The answer is 1e3.", "1000", RIGHT),
        ("#### 1.5e-2", "0.015", RIGHT),
        ("\\boxed{6E2}", "600", RIGHT),
        ("The answer is 1000", "1e3", RIGHT),
        ("The answer is 1e400", "0", WRONG),
        ("答案是４２", "42", RIGHT),
        ("The answer is ٤٢", "42", RIGHT),
        ("The answer is ½", "0.5", RIGHT),
        ("2½", "2.5", RIGHT),
        ("The answer is -2 1/2 metres", "-2.5", RIGHT),
        ("The answer is 2 1/2", "2", WRONG),
        ("The answer is 10 20/30", "10", WRONG),
        (f"The answer is {'9' * 5000} 1/2", "2", WRONG),
        # A later result takes the place of an earlier one; two side by side are both.
        ("First \\boxed{3}, so finally \\boxed{4}", "4", RIGHT),
        ("First \\boxed{3}, so finally \\boxed{4}", "3", WRONG),
        ("\\boxed{3} or \\boxed{4}", "4", WRONG),
        ("\\boxed{3} and \\boxed{4}", "\\{3,4\\}", RIGHT),
        ("\\boxed{}, that is $\\boxed{4}$", "4", RIGHT),
    ],
)
def test_math_reads_numbers_as_people_write_them(text: str, gold: str, found: float) -> None:
    assert scored(math_answer, text, gold) == found


@pytest.mark.parametrize(
    ("text", "gold", "found"),
    [
        (r"$\boxed{\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix}}$", _COLUMN, RIGHT),
        (r"So it is $\begin{pmatrix}-2\\-14\\-7\end{pmatrix}$.", _COLUMN, RIGHT),
        (r"$\boxed{\begin{pmatrix} 1 \\ 2 \\ -7 \end{pmatrix}}$", _COLUMN, WRONG),
        (r"\boxed{-7}", _COLUMN, WRONG),
        (r"\boxed{-7}", rf"\boxed{{{_COLUMN}}}", WRONG),
        (r"\boxed{\text{June 20}}", r"\text{June 20}", RIGHT),
        ("The answer is June 20.", r"\text{June 20}", RIGHT),
        (r"\boxed{\text{June 21}}", r"\text{June 20}", WRONG),
        (r"\boxed{20}", r"\text{June 20}", WRONG),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", RIGHT),
        (r"\boxed{\text{Angela}}", r"\text{Evelyn}", WRONG),
        (r"\boxed{32348}", r"\$32,\!348", RIGHT),
        (r"\boxed{1\,234\,567}", "1234567", RIGHT),
        (r"\boxed{10~000}", "10000", RIGHT),
        (r"\boxed{10 000}", "10000", RIGHT),
        (r"\boxed{2\,345\text{ m}}", "2345", RIGHT),
        (r"\boxed{1\,2\,3}", "123", WRONG),
        ("The answer is 1, 2, 3", "1,2,3", RIGHT),
        ("The answer is 3, 2, and 1.", "1,2,3", RIGHT),
        ("The answer is 3, 4.", "3,4", RIGHT),
        ("The answer is 1, 2, 3", "1,2", WRONG),
        ("The answer is 3, 4.", "3", WRONG),
        ("1, 2", "2", WRONG),
        ("not 3", "3", WRONG),
    ],
)
def test_math_reads_matrices_words_and_lists_whole(text: str, gold: str, found: float) -> None:
    assert scored(math_answer, text, gold) == found


def test_math_needs_a_gold_result() -> None:
    with pytest.raises(GoldError, match="no mathematical result"):
        scored(math_answer, "\\boxed{1}", "see the figure")
    with pytest.raises(GoldError, match="reference answer"):
        scored(math_answer, "\\boxed{1}")


CITIES = ["Paris", "London", "New York", "York"]


@pytest.mark.parametrize(
    ("text", "gold", "found"),
    [
        ("B", "B", RIGHT),
        ("b", "B", RIGHT),
        ("(B) London", "B", RIGHT),
        ("**B.** because it rains there", "B", RIGHT),
        ("The correct answer is (B), as A is in France.", "B", RIGHT),
        ("A is tempting.\n\nAnswer: B", "B", RIGHT),
        ("It must be London.", "B", RIGHT),
        ("\\boxed{\\text{B}}", "B", RIGHT),
        ("B", 1, RIGHT),
        ("B", "London", RIGHT),
        ("Answer: A", "B", WRONG),
        ("Answer: New York", "C", RIGHT),
        ("A good question. It could be any.", "A", UNPARSED),
        ("I think so.", "A", UNPARSED),
        ("Paris or London", "A", UNPARSED),
        ("", "A", UNPARSED),
        ("Z", "A", UNPARSED),
        # Several are named: which is meant is not for us to say.
        *(
            (f"{text}{end}", "B", UNPARSED)
            for end in ("", ".", " are right")
            for text in ("B and C", "B or C", "B/C", "B, C", "(B) & (C)", "**B**, **C** and **D**")
        ),
        ("B, A good choice", "B", RIGHT),
        ("B and only B", "B", RIGHT),
        # Named to be refused.
        ("A is wrong, so B", "A", UNPARSED),
        ("The answer is not A", "A", UNPARSED),
        ("A isn't it.", "A", UNPARSED),
        ("Not London", "B", UNPARSED),
        ("It isn't in London.", "B", UNPARSED),
        ("London, not Paris", "B", RIGHT),
        ("Not Paris, but London", "B", RIGHT),
        ("$\\boxed{\\mathrm{B}}$", "B", RIGHT),
        ("Option B is right", "B", RIGHT),
        ("Answer - B", "B", RIGHT),
        ("A or C?\n<answer>\nB\n</answer>", "B", RIGHT),
        ("Because it rains, the answer is (b).", "B", RIGHT),
        ("Nach langem Überlegen: Die Antwort ist B", "B", RIGHT),
        ("La respuesta correcta es: **B**", "B", RIGHT),
        ("答案是B", "B", RIGHT),
        ("答案：B", "B", RIGHT),
        ("**Answer**: B", "B", RIGHT),
        ("The answer issue is open.", "A", UNPARSED),
        ("The answer isn't B.", "A", UNPARSED),
        ("Ｂ", "B", RIGHT),
    ],
)
def test_choice(text: str, gold: Any, found: float) -> None:
    options = {"choices": "cities"}
    assert scored(choice_answer, text, gold, options=options, cities=CITIES) == found


def test_choices_may_have_labels_of_their_own() -> None:
    arc = {"text": ["ice", "steam"], "label": ["1", "2"]}
    options = {"choices": "choices"}
    assert scored(choice_answer, "steam", "2", options=options, choices=arc) == RIGHT
    assert scored(choice_answer, "A", "2", options=options, choices=arc) == WRONG


@pytest.mark.parametrize("gold", ["Rome", 9, -1])
def test_choice_needs_a_gold_that_is_one(gold: Any) -> None:
    with pytest.raises(GoldError):
        scored(choice_answer, "A", gold, options={"choices": "cities"}, cities=CITIES)


@pytest.mark.parametrize(
    ("text", "gold", "within", "found"),
    [
        ("paris.", "Paris", "whole", RIGHT),
        ("It is Paris.", "Paris", "whole", WRONG),
        ("It is Paris.", "Paris", "anywhere", RIGHT),
        ("It is Parisian.", "Paris", "anywhere", WRONG),
        ("Thinking...\nThe answer is Paris.", "Paris", "final", RIGHT),
        ("Thinking...\n\n“Paris”", "Paris", "final", RIGHT),
        ("The answer is London.\nParis", "Paris", "final", WRONG),
        ("the  big\napple", ["NYC", "The Big Apple"], "whole", RIGHT),
        ("  ", "Paris", "final", UNPARSED),
        ("Hm.\n<answer>Paris</answer>\nBye.", "Paris", "final", RIGHT),
        ("So \\boxed{\\text{Paris}}.", "Paris", "final", RIGHT),
    ],
)
def test_exact(text: str, gold: Any, within: str, found: float) -> None:
    assert scored(exact_answer, text, gold, options={"within": within}) == found


SCHEMA = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"name": "Ada"}', RIGHT),
        ('Here it is:\n```json\n{"name": "Ada"}\n```\nDone.', RIGHT),
        ('{"name": 3}', WRONG),
        ("[]", WRONG),
        ("name: Ada", UNPARSED),
        ('{"name": NaN}', UNPARSED),
        ("[" * 100_000, UNPARSED),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_json_schema(text: str, found: float, as_text: bool) -> None:
    schema = json.dumps(SCHEMA) if as_text else SCHEMA
    got = scored(json_answer, text, schema)
    assert got == found or (text.startswith("[[") and got == WRONG)


def test_json_without_a_schema_is_json() -> None:
    assert scored(json_answer, "[1, 2]") == RIGHT
    assert scored(json_answer, "one, two") == UNPARSED


@pytest.mark.parametrize("schema", ["{", {"type": "nothing"}])
def test_a_schema_that_is_none_is_said(schema: Any) -> None:
    with pytest.raises(GoldError, match="the schema is not one"):
        scored(json_answer, "{}", schema)


def test_nothing_is_fetched_for_a_schema() -> None:
    """A reference to elsewhere is no way to make this machine ask somebody."""
    with pytest.raises(GoldError, match="refers to what it does not hold"):
        scored(json_answer, "{}", {"$ref": "http://127.0.0.1:9/schema.json"})


def caged() -> bool:
    try:
        return bool(run_caged("x = 1", Limits(10, 512), ["x"]).passed)
    except CageError:
        return False


needs_cage = pytest.mark.skipif(
    not caged(), reason="this system gives users no namespaces: code is not run unprotected"
)
ADDS = "```python\ndef add(a, b):\n    return a + b\n```"
TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add(1, 1) == 11"]


@needs_cage
@pytest.mark.parametrize(
    ("text", "gold", "found"),
    [
        (f"Sure:\n{ADDS}\nIt adds.", TESTS, 2 / 3),
        (ADDS, "def check(f):\n    assert f(2, 2) == 4\n", RIGHT),
        (ADDS, "def check(f):\n    assert f(2, 2) == 5\n", WRONG),
        ("def add(a, b): return a + b", TESTS[:2], RIGHT),
        ("```python\ndef add(a, b)\n```", TESTS, WRONG),
        ("You add the numbers.", TESTS, UNPARSED),
        ("print", TESTS, UNPARSED),
        ("```\nprint(int(input()) * 2)\n```",
         [{"input": "21\n", "output": "42"}, {"input": "x", "output": ""}], 0.5),
    ],
)  # fmt: skip
def test_unit_tests(text: str, gold: Any, found: float) -> None:
    assert scored(unit_tests, text, gold, entry_point="add") == pytest.approx(found)


@pytest.mark.parametrize("gold", [[], ["assert ("], [3], {"input": "1"}, [{"input": "1"}]])
def test_tests_that_are_none_are_said(gold: Any) -> None:
    with pytest.raises(GoldError):
        scored(unit_tests, ADDS, gold)


@needs_cage
@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "import socket; socket.create_connection(('127.0.0.1', 22), 1)",
        "held = [0] * 10**9",
        "while True: pass",
        "import sys; sys.stdout.write('x' * 10**8)\nwhile True: pass",
    ],
)
def test_code_that_does_not_come_to_its_tests_passes_none(code: str) -> None:
    assert run_caged(code, Limits(2, 512), ["True"]).passed == []


@needs_cage
@pytest.mark.parametrize("code", ["os.kill(0, 9)", "os.killpg(os.getpgid(0), 9)", "os.kill(-1, 9)"])
def test_code_does_not_end_the_processes_beside_its_cage(code: str) -> None:
    label = (
        "from prefloop.labelers.scorers.shipped.cage import Limits, run_caged\n"
        f"run_caged({f'import os; {code}'!r}, Limits(5, 512), ['True'])\n"
        "print('still here')"
    )
    # In a group of its own: what is not kept in would end these tests.
    done = subprocess.run(
        [sys.executable, "-c", label], capture_output=True, text=True, start_new_session=True
    )
    assert (done.returncode, done.stdout) == (0, "still here\n"), done.stderr


@needs_cage
def test_code_can_change_nothing_outside(tmp_path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("whole", encoding="utf-8")
    outer = os.getpid()
    code = f"""
import os, signal, subprocess
refused = []
for act in (
    lambda: open({str(victim)!r}, "w"),
    lambda: os.unlink({str(victim)!r}),
    lambda: open({str(tmp_path / "new")!r}, "w"),
    lambda: os.kill({outer}, signal.SIGKILL),
    lambda: os.setuid(0),
):
    try:
        act()
    except OSError as error:
        refused.append(type(error).__name__)
again = subprocess.run(["mount", "-o", "remount,rw", "/"], capture_output=True).returncode
open("own.txt", "w").write("may be written")
keys = [name for name in os.environ if "KEY" in name or name == "HOME"]
"""
    tests = [
        "assert len(refused) == 5",
        "assert again",
        "assert not keys",
        "assert open('own.txt')",
    ]
    os.environ["PREFLOOP_TEST_KEY"] = "secret"
    try:
        assert run_caged(code, Limits(10, 512), tests).passed == [True] * 4
    finally:
        del os.environ["PREFLOOP_TEST_KEY"]
    assert victim.read_text(encoding="utf-8") == "whole"


def votes(check: str, answers: tuple[str, str], **config: Any) -> Vote:
    metadata = config.pop("metadata", {})
    verifier = build_labeler(
        VerifierLabeler(check=check, name="checks", **config), engine=None, seed=0
    )
    [vote] = asyncio.run(verifier.label([make_pair(*answers, metadata)], block="b"))
    return vote


@pytest.mark.parametrize(
    ("unparsed", "preference", "scores"),
    [("wrong", "tie", (0, 0)), ("worse", "a", (0, -1)), ("invalid", "invalid", (0, None))],
)
def test_what_cannot_be_parsed_is_told_from_what_is_wrong(unparsed, preference, scores) -> None:
    vote = votes(
        "math", ("It is 8.", "Who knows?"), gold="result", unparsed=unparsed,
        metadata={"result": "7"},
    )  # fmt: skip
    assert (vote.preference, (vote.score_a, vote.score_b)) == (preference, scores)
    assert "cannot be parsed" in str(vote.completion)


@needs_cage
def test_every_shipped_verifier_votes() -> None:
    asked = {
        "choice": ("B", "A", {"gold": "answer"}, {"answer": "B"}),
        "exact": ("Paris", "London", {"gold": "city"}, {"city": "Paris"}),
        "json_schema": ("{}", "{", {}, {}),
        "unit_tests": (ADDS, "def add(a, b): return a - b", {"gold": "tests"}, {"tests": TESTS}),
    }
    for check, (right, wrong, config, metadata) in asked.items():
        vote = votes(check, (right, wrong), metadata=metadata, **config)
        assert (vote.preference, vote.p_a) == ("a", 1.0), check
        assert str(vote.completion).startswith("a: "), check


def test_a_prompt_without_gold_has_invalid_votes_that_say_so() -> None:
    vote = votes("exact", ("Paris", "London"), gold="city", metadata={})
    assert vote.preference == "invalid"
    assert "the prompt has no metadata column 'city'" in str(vote.completion)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"check": "math", "function": "a:b"}, "leave out one"),
        ({"check": "math", "constraints": "ifeval"}, "check scores answers by itself"),
        ({"gold": "answer"}, "gold is for check math"),
        ({"check": "math", "within": "whole"}, "within is for check exact"),
        ({"check": "unit_tests", "test_seconds": 30}, "timeout_s must be above"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys, message) -> None:
    with pytest.raises(ValidationError, match=message):
        VerifierLabeler(**keys)
