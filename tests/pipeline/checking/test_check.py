"""What goes wrong with a server is found by asking it once, and the key to set is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import prefloop
from prefloop.data.errors import PrefloopError
from prefloop.pipeline.checking.check_lines import Check, CheckFailed
from prefloop.pipeline.checking.run_check import what_fits_into_memory
from prefloop.pipeline.checking.still_to_ask import of_servers, wanted_by
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.engines.openai.ledger import ledger_at
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.runs import small_config
from tests.helpers.servers import FaultyServer, Handler, Reply, faulty_server, says, status

RIGHT = "capital of France is Paris"


class Ideal:
    """A server that does all that is asked of it; tests take one thing away."""

    logprobs = True
    seeds = True
    schemas = True
    system = True
    reasoning: str | None = None
    prefers_right = True
    cut = False

    def __call__(self, handler: Handler) -> None:
        body = handler.body
        asked = body["messages"][-1]["content"]
        says(self.answer(handler, body, asked))(handler)

    def answer(self, handler: Handler, body: Any, asked: str) -> dict[str, Any]:
        text = self.text(handler, body, asked)
        message: dict[str, Any] = {"content": text}
        if self.reasoning is not None:
            message["reasoning"] = self.reasoning
        choice: dict[str, Any] = {
            "message": message,
            "finish_reason": "length" if self.cut else "stop",
        }
        if self.logprobs and body.get("logprobs"):
            first = {"token": text[:1], "logprob": -0.1}
            other = {"token": "AB"[text[:1] == "A"], "logprob": -2.5}
            choice["logprobs"] = {"content": [first | {"top_logprobs": [first, other]}]}
        shown = [one for one in body["messages"] if self.system or one["role"] != "system"]
        words = sum(len(one["content"].split()) for one in shown)
        return {
            "choices": [choice],
            "usage": {"prompt_tokens": words, "completion_tokens": len(text.split())},
        }

    def text(self, handler: Handler, body: Any, asked: str) -> str:
        if "response_format" in body and "hello" in asked:
            return '{"colour": "red"}' if self.schemas else "Hello there!"
        if "<answer_a>" in asked:
            return self.verdict(asked, as_json="response_format" in body)
        seed = body.get("seed", 0) if self.seeds else len(handler.server.requests)
        return f"Paris is number {seed}."

    @classmethod
    def but(cls, **changes: Any) -> Ideal:
        """One that differs in ``changes``."""
        server = cls()
        for name, value in changes.items():
            assert hasattr(server, name)
            setattr(server, name, value)
        return server

    def verdict(self, asked: str, *, as_json: bool) -> str:
        first, second = (
            asked.split(f"<answer_{side}>")[-1].split(f"</answer_{side}>")[0] for side in "ab"
        )
        first_is_right = RIGHT in first if RIGHT in asked else first > second
        word = "A" if first_is_right == self.prefers_right else "B"
        return json.dumps({"rationale": "so", "verdict": word}) if as_json else word


but = Ideal.but


class InOne(Ideal):
    """It gives several answers to one request: as many as asked for, but no more than ``most``."""

    most = 100
    refuses = False
    draws = True

    def __call__(self, handler: Handler) -> None:
        if handler.body.get("n", 1) > 1 and self.refuses:
            status(400, "one at a time")(handler)
        else:
            super().__call__(handler)

    def answer(self, handler: Handler, body: Any, asked: str) -> dict[str, Any]:
        n = min(body.get("n", 1), self.most)
        seeds = [body.get("seed", 0) + index * self.draws for index in range(n)]
        answers = [super(InOne, self).answer(handler, {**body, "seed": s}, asked) for s in seeds]
        for index, one in enumerate(answers):
            one["choices"][0]["index"] = index
        return answers[0] | {"choices": [one["choices"][0] for one in answers]}


class SystemRefused(Ideal):
    """Its template raises at a system message."""

    def __call__(self, handler: Handler) -> None:
        if any(one["role"] == "system" for one in handler.body["messages"]):
            status(400, "System role not supported")(handler)
        else:
            super().__call__(handler)


class OneAnswer(Ideal):
    """It draws nothing."""

    def text(self, handler: Handler, body: Any, asked: str) -> str:
        return "Paris." if "<answer_a>" not in asked else super().text(handler, body, asked)


class NoVerdict(Ideal):
    """It talks."""

    def verdict(self, asked: str, *, as_json: bool) -> str:
        return "I think that both are fine."


class OnlyThought(Ideal):
    """Its thought leaves no room for an answer."""

    reasoning = "Let me see"
    cut = True

    def text(self, handler: Handler, body: Any, asked: str) -> str:
        return ""

    def answer(self, handler: Handler, body: Any, asked: str) -> dict[str, Any]:
        reply = super().answer(handler, body, asked)
        reply["usage"]["completion_tokens"] = body["max_tokens"]
        return reply


class TakenApart(Ideal):
    """It does not think, and its server takes what it says for a thought."""

    def answer(self, handler: Handler, body: Any, asked: str) -> dict[str, Any]:
        reply = super().answer(handler, body, asked)
        message = reply["choices"][0]["message"]
        message |= {"content": None, "reasoning_content": message["content"]}
        return reply


class EmptyOnce(Ideal):
    """By chance, its first answer is empty."""

    def text(self, handler: Handler, body: Any, asked: str) -> str:
        empty = "capital" in asked and "<answer_a>" not in asked
        handler.server.sent += empty
        return "" if empty and handler.server.sent == 1 else super().text(handler, body, asked)


class ForgetsWhatItRead(Ideal):
    """It does not count a system message that it has seen before, as some caches do not."""

    def answer(self, handler: Handler, body: Any, asked: str) -> dict[str, Any]:
        answer = super().answer(handler, body, asked)
        if body["messages"][0] == {"role": "system", "content": SYSTEM["system_prompt"]}:
            answer["usage"]["prompt_tokens"] = 1
        return answer


def config(
    url: str, root: Path, *, judge: str = "pairwise", engine: dict[str, Any] | None = None,
    **sections: Any,
) -> RunConfig:  # fmt: skip
    served = {"type": "openai", "base_url": url, "max_retries": 0, "max_backoff_s": 0.02}
    raw = {
        "run_dir": str(root), "policy": "m",
        "engines": {"default": served | (engine or {})},
        "prompts": {"train": {"path": "embedded:prompts", "limit": 4}, "heldout_share": 0},
        "sample": {"n": 2, "max_tokens": 16},
        "label": {"labelers": [{"type": "judge", "judge": judge, "model": "j"}]},
        "filter": {"filters": [], "strategy": {"type": "all"}},
    }  # fmt: skip
    return validate_config(raw | sections, "test")


def check(server: FaultyServer, root: Path, **changes: Any) -> Check:
    return prefloop.check(config(server.url, root, **changes)).facts


def said(found: Check, level: str) -> list[str]:
    return [str(one) for one in found.lines if one.level == level]


def test_an_ideal_server(tmp_path: Path) -> None:
    sample = {"n": 2, "max_tokens": 16, "system_prompt": "Answer as a sailor would, in few words."}
    with faulty_server(Ideal()) as server:
        found = check(server, tmp_path, judge="pairwise_rationale", sample=sample)
    assert (found.failures, found.warnings, found.exit_code) == ((), (), 0)
    assert said(found, "ok") == [
        "label.labelers.judge: a verdict comes out",
        "label.labelers.judge: JSON schemas are honoured",
        "sample: answers, in 4 tokens",
        "sample: the system prompt reaches the model",
        "sample: the same seed gives the same answer",
    ]


def test_several_answers_that_come_with_one_request(tmp_path: Path) -> None:
    with faulty_server(InOne()) as server:
        found = check(server, tmp_path, **SEVERAL)
    assert (found.failures, found.warnings) == ((), ())
    assert said(found, "ok")[-1] == "sample: one request brings 4 answers, 4 of them different"


def over_endpoints(root: Path, *urls: str, **sections: Any) -> RunConfig:
    endpoints = [{"base_url": url} for url in urls]
    usual = "http://127.0.0.1:8000/v1"
    return config(usual, root, engine={"endpoints": endpoints, "timeout_s": 5}, **sections)


def test_each_endpoint_is_a_line_and_the_rest_is_asked_of_those_that_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")
    with faulty_server(Ideal()) as one, faulty_server(status(401, "who are you")) as other:
        one.models = [{"id": name, "root": f"/models/{name}"} for name in "jm"]
        found = prefloop.check(over_endpoints(tmp_path, one.url, other.url)).facts
    assert found.failures == ()
    assert said(found, "ok")[:2] == [
        f"engines.default: {one.url} answers for {name}" for name in ("j", "policy")
    ]
    assert [line.split(": ", 2)[:2] for line in said(found, "warning")] == [
        ["engines.default", f"{other.url} does not answer for {name}"] for name in ("j", "policy")
    ]
    assert all("OPENAI_API_KEY" in line for line in said(found, "warning"))
    assert "sk-secret" not in json.dumps(found.as_dict())


def test_where_no_endpoint_answers_nobody_else_is_asked(tmp_path: Path) -> None:
    with faulty_server(status(500, "boom")) as one, faulty_server(status(404)) as other:
        found = prefloop.check(over_endpoints(tmp_path, one.url, other.url)).facts
        assert len(one.requests) == len(other.requests) == 2
    assert found.exit_code == 3
    assert [one.subject for one in found.lines] == ["engines.default"] * 4
    assert len(found.failures) == 4


def test_endpoints_of_other_models_are_told(tmp_path: Path) -> None:
    with faulty_server(Ideal()) as one, faulty_server(Ideal()) as other:
        one.models = [{"id": name, "root": "org/large"} for name in "jm"]
        other.models = [{"id": name, "root": "/models/small"} for name in "jm"]
        found = prefloop.check(over_endpoints(tmp_path / "first", one.url, other.url)).facts
        assert any("'j' may not be the same model" in line for line in said(found, "warning"))
        other.models = [{"id": "small"}]  # and answers to whatever name
        found = prefloop.check(over_endpoints(tmp_path, one.url, other.url)).facts
    assert f"{other.url}: it lists 'small', and not 'j'" in said(found, "warning")[0]


def test_a_server_that_lists_another_model_is_told(tmp_path: Path) -> None:
    """llama.cpp and others answer with what they have, whatever they are asked for."""
    with faulty_server(Ideal()) as server:
        server.models = [{"id": "small-q4.gguf"}, {"id": "m"}]
        found = check(server, tmp_path / "one")
        assert said(found, "warning") == [
            "engines.default: the server may answer with another model than it is asked for: it "
            "lists 'small-q4.gguf', 'm', and not 'j': name a model that it lists, or serve this one"
        ]
        server.models = [{"id": "org/J:latest"}, {"id": "models/m"}]
        assert check(server, tmp_path / "two").warnings == ()
        server.models = [{"id": f"one of many {number}"} for number in range(30)]
        assert check(server, tmp_path / "three").warnings == ()


SEVERAL = {"sample": {"n": 4, "max_tokens": 16}, "engine": {"n_per_request": 8}}
SYSTEM = {"n": 2, "max_tokens": 16, "system_prompt": "Answer as a sailor would, in few words."}
THINKING = {"n": 2, "max_tokens": 16, "thought_tokens": 40}
CASES: dict[str, tuple[Reply, dict[str, Any], str, str]] = {
    "a server that is ill": (
        status(500, "boom"), {}, "failure", "sample: .*status 500: boom"),
    "an unknown key": (
        status(401, "who are you"), {}, "failure", r"label\.labelers\.judge: .*OPENAI_API_KEY"),
    "a judge without log-probabilities": (
        but(logprobs=False), {}, "failure",
        r"judge: .*no log-probabilities.*set label\.labelers\.judge\.judge: a judge that answers"),
    "samples without log-probabilities": (
        but(logprobs=False), {}, "warning", r"sample: no log-probabilities.*logprobs: false"),
    "seeds are not honoured": (
        but(seeds=False), {}, "warning",
        r"sample: the same seed gives another answer.*engines\.default\.leave_out: \[seed\]"),
    "all answers are alike": (
        OneAnswer(), {}, "warning", r"sample: two seeds give the same answer.*sample\.temperature"),
    "no schemas": (
        but(schemas=False), {"judge": "pairwise_rationale"}, "warning",
        r"judge: JSON schemas are not honoured.*label\.labelers\.judge\.judge"),
    "a system message is refused": (
        SystemRefused(), {"sample": SYSTEM}, "failure",
        r"sample: a system message is refused.*System role not supported.*system_prompt: null"),
    "the system message is lost": (
        but(system=False), {"sample": SYSTEM}, "failure",
        r"sample: the chat template leaves the system prompt out.*system_prompt: null"),
    "no verdict": (
        NoVerdict(), {"judge": "pairwise_rationale"}, "failure",
        r"judge: no verdict comes out of 2 of 2 answers .*unparsable"),
    "the worse answer": (
        but(prefers_right=False), {}, "warning", r"judge: .*the right one in 0 of 2 votes"),
    "the policy thinks": (
        but(reasoning="Hm."), {}, "warning",
        r"sample: the model thinks .*sample\.thought_tokens, or sample\.chat_template_kwargs"),
    "the judge thinks": (
        but(reasoning="Hm."), {"judge": "pairwise_rationale"}, "warning",
        r"judge: the judge thinks.*label\.labelers\.judge\.thought_tokens"),
    "a thought and no answer": (
        OnlyThought(), {"sample": THINKING}, "failure",
        r"sample: a thought .* no answer .*raise sample\.thought_tokens"),
    "an answer that is taken for a thought": (
        TakenApart(), {"sample": THINKING}, "failure",
        r"sample: all that came, 4 tokens, .* takes answers for thoughts: .*--reasoning-parser"),
    "an empty answer by chance": (
        EmptyOnce(), {}, "warning", r"sample: an answer without text .*raise sample\.max_tokens"),
    "several answers in one request, of which one comes": (
        but(), SEVERAL, "warning",
        r"sample: 4 answers .* and one came: .*set engines\.default\.n_per_request: 1"),
    "some of them": (
        InOne.but(most=3), SEVERAL, "warning",
        r"sample: 4 answers .* and 3 came: .*set engines\.default\.n_per_request: 3"),
    "a refusal of several": (
        InOne.but(refuses=True), SEVERAL, "warning",
        r"sample: a request for 4 answers is refused.*n_per_request: 1, or fewer than 4"),
    "one seed for all of them": (
        InOne.but(draws=False), SEVERAL, "warning",
        r"sample: of 4 answers that came with one request 1 differ.*n_per_request: 1"),
    "cut off": (
        but(cut=True), {}, "warning", r"sample: .*cut off at 16 tokens: raise sample\.max_tokens"),
    "a refused parameter": (
        status(400, "Unrecognized request argument supplied: seed"), {}, "failure",
        "Unrecognized request argument"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_amiss_is_one_line_with_its_remedy(case: str, tmp_path: Path) -> None:
    import re

    reply, changes, level, line = CASES[case]
    with faulty_server(reply) as server:
        found = check(server, tmp_path, **changes)
    lines = said(found, level)
    assert any(re.search(line, one) for one in lines), (lines, found)
    assert all("\n" not in one for one in lines)
    assert found.exit_code == (3 if found.failures else 0)
    with faulty_server(InOne()) as server:  # the same line is not there where all is well
        healthy = check(server, tmp_path / "healthy", **changes)
    assert not any(re.search(line, one) for one in said(healthy, level))


def test_a_server_that_does_not_count_what_it_had_read(tmp_path: Path) -> None:
    with faulty_server(ForgetsWhatItRead()) as server:
        found = check(server, tmp_path, sample=SYSTEM)
    assert found.failures == ()
    assert "sample: the system prompt reaches the model" in said(found, "ok")


def test_thinking_that_was_asked_for_is_no_warning(tmp_path: Path) -> None:
    judge = {"type": "judge", "judge": "pairwise_rationale", "model": "j", "thought_tokens": 40}
    with faulty_server(but(reasoning="Hm.")) as server:
        found = check(server, tmp_path, sample=THINKING, label={"labelers": [judge]})
    assert found.warnings == ()


def test_its_answers_are_kept_and_its_costs_count(tmp_path: Path) -> None:
    with faulty_server(Ideal()) as server:
        first = check(server, tmp_path)
        asked = len(server.requests)
        assert check(server, tmp_path) == first
        # One answer is asked for anew each time: whether a seed gives it again.
        assert len(server.requests) == asked + 1
        spent = ledger_at(tmp_path / "cache" / "default.spent.jsonl").settled.tokens
        assert spent > 0
        limit = {"max_total_tokens": spent}
        no_more = prefloop.check(config(server.url, tmp_path, engine=limit)).facts
        assert len(server.requests) == asked + 1
    assert any("budget reached" in str(one) for one in no_more.failures)


def test_a_key_that_is_not_set_is_told_where_a_server_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefloop.pipeline.checking.run_check import keys_that_are_set

    monkeypatch.delenv("FAR_KEY", raising=False)
    far = {"base_url": "https://api.far.example/v1", "api_key_env": "FAR_KEY"}
    [finding] = keys_that_are_set(config("", tmp_path, engine=far))
    assert str(finding) == (
        "engines.default: the environment variable FAR_KEY is not set: no key is sent: set FAR_KEY"
    )
    monkeypatch.setenv("FAR_KEY", "something-secret")
    assert list(keys_that_are_set(config("", tmp_path, engine=far))) == []
    assert list(keys_that_are_set(config("http://127.0.0.1:1/v1", tmp_path))) == []


def outcome(work: Callable[[], Any]) -> PrefloopError | None:
    try:
        work()
    except PrefloopError as error:
        return error
    return None


def test_a_run_asks_first_and_begins_nothing_where_it_would_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(tmp_path)
    with faulty_server(NoVerdict()) as server:
        wanted = config(server.url, tmp_path, judge="pairwise_rationale")
        failed = outcome(lambda: prefloop.run(wanted))
        assert isinstance(failed, CheckFailed)
        assert failed.exit_code == 3
        assert "no verdict comes out" in str(failed)
        assert run.round(0).candidates.indices() == []
        assert len(server.requests) < 10
    with faulty_server(but(seeds=False)) as server:
        prefloop.run(config(server.url, tmp_path, judge="pairwise_rationale"))
        asked = len(server.requests)
        assert any("same seed" in record.getMessage() for record in caplog.records)
        prefloop.run(config(server.url, tmp_path, judge="pairwise_rationale"))
        assert len(server.requests) == asked
    assert run.round(0).votes.indices()


def test_a_run_asks_those_alone_who_are_still_to_be_asked(tmp_path: Path) -> None:
    import shutil

    with faulty_server(Ideal()) as server:
        prefloop.run(config(server.url, tmp_path, engine={"cache": False}), check=False)
        unchecked = len(server.requests)
        assert unchecked == 8 + 2 * 4
    shutil.rmtree(tmp_path / "round-000" / "vote")
    with faulty_server(Ideal()) as server:
        prefloop.run(config(server.url, tmp_path, engine={"cache": False}))
        # The judge's two orders of the plain pair; nobody samples any more.
        assert len(server.requests) == 8 + 2


def test_the_command_says_it_and_ends_with_a_code(tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "c.yaml"
    runner = CliRunner()
    for reply, code in [(Ideal(), 0), (but(logprobs=False), 3)]:
        with faulty_server(reply) as server:
            raw = config(server.url, tmp_path / f"run{code}").model_dump(mode="json")
            path.write_text(yaml.safe_dump(raw))
            shown = runner.invoke(app, ["check", str(path)])
            as_json = runner.invoke(app, ["check", str(path), "--json"])
        assert shown.exit_code == as_json.exit_code == code
        found = json.loads(as_json.stdout)
        assert found["failures"] == (1 if code else 0)
        assert "label.labelers.judge: " in shown.stdout
        assert f"{found['failures']} failure" in shown.stdout


def test_tiny_models_are_checked_in_this_process(tmp_path: Path) -> None:
    raw = {
        "run_dir": str(tmp_path), "prompts": {"train": {"path": "embedded:prompts", "limit": 4}},
        "label": {"labelers": [
            {"type": "judge", "judge": "pairwise_short", "model": "embedded:judge"},
            {"type": "verifier"}]},
    }  # fmt: skip
    found = prefloop.check(raw).facts
    assert (found.failures, found.warnings) == ((), ())
    assert [one.subject for one in found.lines] == [
        "memory of cpu", "memory of cpu", "label.labelers.judge", "sample",
    ]  # fmt: skip
    assert all("fits" in one.says for one in found.lines[:2])
    assert not (tmp_path / "cache").exists()


def test_who_is_computed_by_a_cluster_is_not_asked_from_here() -> None:
    judges = [
        {"type": "judge", "name": "a", "model": "m"},
        {"type": "judge", "name": "b", "model": "m", "engine": "server"},
        {"type": "reward_model", "name": "r", "model": "m"},
    ]
    engines = {"default": {"type": "transformers"}, "server": {"type": "openai"}}
    on_ray = small_config(engines=engines, label={"labelers": judges}, executor={"type": "ray"})
    asked = of_servers(on_ray, wanted_by(on_ray))
    assert asked.samplers == ()
    assert [key for key, _ in asked.labelers] == ["label.labelers.b"]
    assert list(what_fits_into_memory(on_ray)) == []


def test_a_policy_that_answers_nothing_is_not_asked() -> None:
    given = {"from": {"path": "answers.jsonl"}, "n": 0}
    assert wanted_by(small_config(sample=given)).samplers == ()
    beside = wanted_by(small_config(sample={**given, "n": 2}))
    assert [member.name for member in beside.samplers] == ["policy"]
    held_out = wanted_by(small_config(sample=given, train={}))
    assert [member.name for member in held_out.samplers] == ["policy"]
    apart = small_config(sample=given, train={}, evaluate={"enabled": False})
    assert wanted_by(apart).samplers == ()


def test_a_verifier_that_is_not_there_is_found_before_anything_is_sampled(tmp_path: Path) -> None:
    labelers = [
        {"type": "verifier", "name": "mine", "function": "no_such_module:score"},
        {"type": "verifier", "name": "shipped", "check": "exact"},
        {"type": "verifier", "name": "constraints"},
    ]
    config = small_config(label={"labelers": labelers}, run_dir=str(tmp_path / "run"))
    found = prefloop.check(config)
    keys = {line.subject: line.level for line in found.lines}
    assert keys["label.labelers.mine"] == "failure"
    assert keys["label.labelers.shipped"] == "ok"
    assert "label.labelers.constraints" not in keys  # it needs nothing
    with pytest.raises(PrefloopError, match="importing no_such_module failed"):
        prefloop.run(config)
    assert not list((tmp_path / "run").glob("round-*/candidate/*"))
    on_ray = small_config(label={"labelers": labelers}, executor={"type": "ray"})
    assert [key for key, _ in wanted_by(on_ray).verifiers] == [
        "label.labelers.mine", "label.labelers.shipped",
    ]  # fmt: skip
    assert not of_servers(on_ray, wanted_by(on_ray)).verifiers
