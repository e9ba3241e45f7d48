"""A policy and its reference as a labeler: scores, votes, and what cannot be scored."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from prefloop.data.errors import PrefloopError
from prefloop.labelers.base import Answer, LabelerError, Pair, Vote
from prefloop.labelers.config import ImplicitRewardLabeler, RewardModelLabeler
from prefloop.labelers.factory import build_labeler
from prefloop.pipeline.config import ConfigError, RunConfig, validate_config
from prefloop.pipeline.judging.gold_eval import JudgeEvalOptions, judge_eval
from prefloop.pipeline.plan.plan import make_plan
from prefloop.pipeline.relabel.vote_keys import vote_keys
from prefloop.pipeline.run.models import Models
from prefloop.training.errors import TrainingError
from prefloop.training.policy.logprobs import answer_logprobs
from tests.helpers.engine_models import make_adapter, make_model
from tests.helpers.runs import run_small

QUESTION = ({"role": "user", "content": "Write one sentence about a fox."},)
TEXTS = ["A fox.", "The quick brown fox jumps over the lazy dog!", "", "a <|end|> b <s>"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("policy"), seed=1)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("reference"), seed=0)


def config_of(policy: str, reference: str, **changes: Any) -> RunConfig:
    labeler = {"type": "implicit_reward", "policy": policy, "reference": reference}
    raw = {
        "prompts": {
            "train": {"path": "embedded:prompts", "limit": 6},
            "heldout": {"path": "embedded:heldout", "limit": 4},
        },
        "sample": {"n": 4, "max_tokens": 24},
        "filter": {"filters": [{"type": "identical"}]},
        "label": {"labelers": [labeler | changes]},
    }
    return validate_config(raw, "test")


def label(config: RunConfig, pairs: list[Pair]) -> list[Vote]:
    async def labelled() -> list[Vote]:
        models = Models(config)
        [labeler] = await models.labelers(config.label.labelers)
        found = await labeler.label(pairs, block="b")
        await models.release()
        return found

    return asyncio.run(labelled())


def pair(index: int, *texts: str, cut: str | None = None) -> Pair:
    answers = [
        Answer(f"{text}{text == cut}", text, 3, "sampled", complete=text != cut) for text in texts
    ]
    return Pair(f"pair{index}", "p", 0, QUESTION, None, {}, *answers)


def log_ratio(policy: str, reference: str, text: str, *, complete: bool = True) -> float:
    of_policy, of_reference = (
        answer_logprobs(Path(one), [QUESTION], [text], complete=[complete])[0]
        for one in (policy, reference)
    )
    return float(of_policy - of_reference)


def test_a_score_is_beta_times_the_log_ratio(policy: str, reference: str) -> None:
    pairs = [pair(0, TEXTS[0], TEXTS[1]), pair(1, TEXTS[2], TEXTS[3]), pair(2, *TEXTS[:3:2])]
    votes = label(config_of(policy, reference, beta=0.3), pairs)
    expected = {text: 0.3 * log_ratio(policy, reference, text) for text in TEXTS}
    assert len(set(expected.values())) == len(TEXTS)
    for one, vote in zip(pairs, votes, strict=True):
        a, b = expected[one.a.text], expected[one.b.text]
        assert (vote.score_a, vote.score_b) == pytest.approx((a, b), abs=1e-4)
        assert vote.p_a == pytest.approx(1 / (1 + math.exp(b - a)), abs=1e-4)
        assert vote.preference == ("a" if a > b else "b")


def test_an_answer_that_was_cut_off_has_no_end_token_that_is_scored(
    policy: str, reference: str
) -> None:
    [vote] = label(config_of(policy, reference), [pair(0, TEXTS[0], TEXTS[1], cut=TEXTS[1])])
    cut = log_ratio(policy, reference, TEXTS[1], complete=False)
    assert vote.score_b == pytest.approx(0.1 * cut, abs=1e-4)
    assert abs(cut - log_ratio(policy, reference, TEXTS[1])) > 0.01


def test_a_score_per_token(policy: str, reference: str) -> None:
    [vote] = label(config_of(policy, reference, per_token=True, beta=2), [pair(0, *TEXTS[:2])])
    [plain] = label(config_of(policy, reference, beta=1), [pair(0, *TEXTS[:2])])
    from prefloop.training.policy.checkpoints import load_tokenizer

    tokenizer = load_tokenizer(Path(policy))
    sizes = [len(tokenizer.encode(one, add_special_tokens=False)) + 1 for one in TEXTS[:2]]
    assert plain.score_a is not None
    assert plain.score_b is not None
    assert vote.score_a == pytest.approx(2 * plain.score_a / sizes[0], abs=1e-5)
    assert vote.score_b == pytest.approx(2 * plain.score_b / sizes[1], abs=1e-5)


def test_what_cannot_be_scored_is_an_invalid_vote_and_takes_no_other_with_it(
    policy: str, reference: str
) -> None:
    long = "fox " * 300
    pairs = [pair(0, "A fox.", long), pair(1, "", "A fox.", cut=""), pair(2, "A fox.", "No")]
    votes = label(config_of(policy, reference), pairs)
    assert [vote.preference for vote in votes[:2]] == ["invalid", "invalid"]
    assert "context_overflow" in str(votes[0].completion)
    assert "256 fit" in str(votes[0].completion)
    assert str(votes[1].completion) == "nothing_to_score: the answer is empty and was cut off"
    assert votes[0].score_a is not None
    assert votes[0].score_b is None
    assert votes[2].preference in ("a", "b")
    [short] = label(config_of(policy, reference, max_length=30), [pair(0, "A fox.", "fox " * 30)])
    assert "30 fit" in str(short.completion)


def test_each_answer_is_read_once_by_both(policy: str, reference: str) -> None:
    once = label(config_of(policy, reference), [pair(0, *TEXTS[:2])])
    twice = label(config_of(policy, reference), [pair(0, *TEXTS[:2]), pair(1, *TEXTS[:2])])
    assert once[0].prompt_tokens > 0
    assert once[0].prompt_tokens % 2 == 0
    assert [vote.prompt_tokens for vote in twice] == [once[0].prompt_tokens, 0]


def test_an_adapter_is_a_policy(reference: str, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", reference)
    [vote] = label(config_of(adapter, reference), [pair(0, *TEXTS[:2])])
    expected = 0.1 * log_ratio(adapter, reference, TEXTS[0])
    assert vote.score_a == pytest.approx(expected, abs=1e-4)
    assert abs(expected) > 1e-3


def test_other_tokens_are_refused(policy: str) -> None:
    with pytest.raises(TrainingError, match="do not have the same tokens") as refused:
        label(config_of(policy, "embedded:policy"), [pair(0, "a", "b")])
    assert "\n" not in str(refused.value)


def test_tokens_at_other_places_are_refused(policy: str, reference: str, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(reference, moved)
    file = moved / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(TrainingError, match=r"the token '[ab]' is"):
        label(config_of(policy, str(moved)), [pair(0, "a", "b")])


def test_no_template_is_refused(policy: str, reference: str, tmp_path: Path) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(policy, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(TrainingError, match="no chat template"):
        label(config_of(str(bare), reference), [pair(0, "a", "b")])


def test_the_same_model_twice_is_refused(policy: str) -> None:
    with pytest.raises(ConfigError, match="policy and reference are the same model"):
        config_of(policy, policy)


def test_the_factory_needs_the_models() -> None:
    settings = ImplicitRewardLabeler(policy="a", reference="b")
    with pytest.raises(LabelerError, match="needs the policy and the reference"):
        build_labeler(settings, engine=None, seed=0)


def test_a_run_by_implicit_rewards(policy: str, reference: str, tmp_path: Path) -> None:
    config = config_of(policy, reference).model_copy(update={"policy": policy})
    run = run_small(tmp_path / "run", config)
    votes = run.round(0).votes.table()
    assert len(votes)
    assert set(votes["labeler"].to_pylist()) == {"implicit_reward"}
    assert "invalid" not in votes["preference"].to_pylist()
    models = json.loads(run.manifest.read_text())["models"]
    assert {policy, reference} <= set(models)
    assert models[policy] != models[reference]
    assert vote_keys(config, {}, models)["implicit_reward"] is not None
    assert vote_keys(config, {}, {policy: "x"})["implicit_reward"] is None


def test_it_is_judged_and_calibrated_like_a_judge(
    policy: str, reference: str, tmp_path: Path
) -> None:
    gold = tmp_path / "gold.jsonl"
    rows = [
        {"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": f"Fox {n}", "id": str(n)}
        for n in range(24)
    ]
    gold.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = tmp_path / "judge.yaml"
    judge.write_text(f"type: implicit_reward\npolicy: {policy}\nreference: {reference}\n")
    options = JudgeEvalOptions(judges=[judge], out=tmp_path / "out")
    found = asyncio.run(judge_eval(str(gold), options))
    [figures] = found.figures
    assert figures.calibration is not None
    from prefloop.pipeline.judging.calibrate import calibrate_judges

    [written] = calibrate_judges(found, tmp_path / "calibrations", "platt", 0)
    config = config_of(policy, reference, calibration=written.path)
    assert config.label.calibrations == {"implicit_reward": Path(written.path)}


def test_reward_models_can_be_calibrated_and_keep_their_fingerprints() -> None:
    from prefloop.data.strict import fingerprint

    assert "calibration" not in fingerprint(RewardModelLabeler(model="m"))
    assert fingerprint(RewardModelLabeler(model="m", calibration=Path("c")))["calibration"] == "c"


def test_the_plan_counts_what_both_models_read(policy: str, reference: str) -> None:
    config = config_of(policy, reference)
    alone = {"labelers": [{"type": "reward_model", "model": policy}]}
    one = validate_config(config.model_dump(mode="json") | {"label": alone}, "test")
    [both], [single] = (
        [step for step in make_plan(each).steps if step.stage == "label"] for each in (config, one)
    )
    assert both.requests == single.requests > 0
    assert both.prompt_tokens == pytest.approx(2 * single.prompt_tokens, abs=2)
    assert both.seconds > 1.5 * single.seconds
    assert both.cost == 0


def test_a_model_that_is_nowhere_stops_a_run_before_it_begins(policy: str, tmp_path: Path) -> None:
    with pytest.raises(PrefloopError, match="no such folder"):
        Models(config_of(policy, str(tmp_path / "nowhere"))).revisions()
