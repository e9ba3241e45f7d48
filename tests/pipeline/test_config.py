"""The config: refused keys name the nearest valid one, overrides reach everywhere."""

from pathlib import Path

import pytest
import yaml

from prefloop.pipeline.config import ConfigError, dump_config, flatten, load_config, validate_config
from tests.helpers.paths import ROOT
from tests.helpers.runs import small_config

MINIMAL = {
    "prompts": {"train": {"path": "prompts.jsonl"}},
    "label": {"labelers": [{"type": "verifier", "name": "verifier"}]},
}
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def written(tmp_path: Path, config: object) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize(
    ("override", "key", "near"),
    [
        ({"sampel": {}}, "sampel", "sample"),
        ({"sample": {"temprature": 1}}, "sample.temprature", "temperature"),
        ({"engines": {"default": {"type": "vllm", "dtyp": "auto"}}}, "dtyp", "dtype"),
        ({"train": {"learning_rat": 1e-6}}, "train.learning_rat", "learning_rate"),
        ({"filter": {"filters": [{"type": "margin", "minn": 1}]}}, "minn", "min"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_one(
    tmp_path: Path, override: dict, key: str, near: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, MINIMAL | override))
    assert key in str(caught.value)
    assert f"did you mean '{near}'?" in str(caught.value)
    assert "config.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sample.n=three", "sample.n: must be a whole number, not 'three'"),
        ("sample.n=1.5", "sample.n: must be a whole number, not 1.5"),
        ("train.beta=high", "train.beta: must be a number, not 'high'"),
        ("policy=null", "policy: must be text, not null"),
        ("policy=8", "policy: must be text, not 8: quote it"),
        ("evaluate.enabled=perhaps", "evaluate.enabled: must be true or false, not 'perhaps'"),
        ("tracking=wandb", "tracking: must be a list, such as [wandb], not 'wandb'"),
        ("filter.filters={type: margin}", "filter.filters: must be a list, not a mapping"),
        (
            "filter.strategy=best_worst",
            "filter.strategy: must be a mapping of keys, such as {type: best_vs_worst}, not "
            "'best_worst'",
        ),
        ("executor=ray", "executor: must be a mapping of keys, such as {type: ray}, not 'ray'"),
        (
            "label.jury=mean",
            "label.jury: must be a mapping of keys (penalty, reliability, rule, tie_band), not "
            "'mean'",
        ),
        (
            "label.labelers=[{type: verifyer}]",
            "label.labelers.0.type: must be 'judge', 'reward_model', 'implicit_reward', "
            "'verifier', 'reference', 'origin' or 'given', not 'verifyer': did you mean "
            "'verifier'?",
        ),
        ("label.labelers=[{type: judge, judge: rating}]", "label.labelers.0.model: Field required"),
        (
            "label.labelers=[{judge: rating}]",
            "label.labelers.0: has no 'type': 'judge', 'reward_model', 'implicit_reward', "
            "'verifier', 'reference', 'origin' or 'given'",
        ),
        ("filter.filters=[{type: margin, minn: 1}]",
         "filter.filters.0.minn: unknown key, did you mean 'min'?"),
        ("write.reasoning=no", "write.reasoning: must be 'keep' or 'strip', not false"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_told_with_what_can(
    tmp_path: Path, override: str, message: str
) -> None:
    path = written(tmp_path, MINIMAL)
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("override", "key"), [("train.loss=simpoo", "loss"), ("train.loss=[ipo, simpoo]", "loss.1")]
)
def test_a_value_of_several_forms_is_told_once(tmp_path: Path, override: str, key: str) -> None:
    path = written(tmp_path, MINIMAL)
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    told = str(caught.value)
    assert told.startswith(f"{path}: train.{key}: must be 'sigmoid', ")
    assert told.endswith(" or 'clipped', not 'simpoo': did you mean 'simpo'?")
    assert told.count("'sigmoid'") == 1


def test_many_problems_are_not_all_listed(tmp_path: Path) -> None:
    unknown = {f"no_such_{number:02}": 1 for number in range(14)}
    with pytest.raises(ConfigError, match=r"no_such_09: .*; and 4 more$"):
        load_config(written(tmp_path, MINIMAL | unknown))


def test_overrides_reach_nested_keys_and_named_list_items(tmp_path: Path) -> None:
    config = load_config(
        written(tmp_path, MINIMAL),
        ["sample.n=8", "label.labelers.verifier.weight=2.5", "sample.stop=['END']"],
    )
    assert config.sample.n == 8
    assert config.label.labelers[0].weight == 2.5
    assert config.sample.stop == ("END",)


@pytest.mark.parametrize("override", ["sample.n", "=3", "label.labelers.nobody.weight=1"])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(written(tmp_path, MINIMAL), [override])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 2}, "add a `train:` section"),
        ({"sample": {"engine": "gpu"}}, "has only default"),
        ({"engines": {"default": {"type": "openai"}}, "train": {}}, "cannot be given newly"),
        ({"evaluate": {"labelers": ["nobody"]}}, "has only verifier"),
    ],
)
def test_contradictions_are_refused_with_a_remedy(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config(MINIMAL | change, "test")


def test_a_missing_or_broken_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(
        ConfigError, match=r"config: is a NoneType: give a path or a mapping of keys"
    ):
        load_config(None)  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: is a folder, not a config \(`prefloop init"):
        load_config(tmp_path / "empty")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\nb: {")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML") as caught:
        load_config(broken)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"is a folder, .*did you mean .*broken\.yaml\?"):
        load_config(tmp_path)


def test_the_resolved_config_reads_back_as_itself() -> None:
    config = validate_config(MINIMAL, "test")
    again = validate_config(yaml.safe_load(dump_config(config)), "test")
    assert again == config


def test_flatten_names_list_items() -> None:
    assert flatten({"a": [{"name": "x", "b": 1}, 2], "c": {}}) == {
        "a.x.name": "x", "a.x.b": 1, "a.1": 2, "c": {},
    }  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path) -> None:
    load_config(path)


def test_the_starter_config_is_valid(tmp_path: Path) -> None:
    from prefloop.pipeline.starter import write_starter

    written_paths = write_starter(tmp_path / "mine")
    assert {path.name for path in written_paths} == {"prefloop.yaml", "prompts.jsonl"}
    config = load_config(tmp_path / "mine" / "prefloop.yaml")
    assert config.run_dir == str(tmp_path / "mine" / "run")
    (tmp_path / "mine" / "prompts.jsonl").write_text("mine\n")
    assert write_starter(tmp_path / "mine") == []
    assert (tmp_path / "mine" / "prompts.jsonl").read_text() == "mine\n"


def test_the_starter_prompts_can_be_verified(tmp_path: Path) -> None:
    import json

    from prefloop.labelers.scorers.constraints import score
    from prefloop.pipeline.starter import write_starter

    write_starter(tmp_path)
    for line in (tmp_path / "prompts.jsonl").read_text().splitlines():
        assert 0 <= score(json.loads(line)["constraints"], "The fox found a lantern!") <= 1


def test_the_real_example_can_be_planned_and_its_judge_loads(tmp_path: Path) -> None:
    """Everything about it but the weights and the hub."""
    from prefloop.labelers.judges.folder import load_judge
    from prefloop.pipeline.plan.plan import make_plan

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "Explain the number {i}."}}\n' for i in range(40)))
    [path] = [path for path in EXAMPLES if path.stem == "qwen3-0.6b"]
    local = [
        f"run_dir={tmp_path / 'run'}",
        *(f"prompts.{part}.path={prompts}" for part in ("train", "heldout")),
        "prompts.heldout=null",
        "prompts.heldout_share=0.2",
    ]
    config = load_config(path, local)
    plan = make_plan(config).as_dict()
    assert plan["prompts"]["kept"] + plan["prompts"]["heldout"] == 40
    judged = [step for step in plan["steps"] if step["stage"] == "label"]
    # 6 pairs of 4 candidates, both orders, for each of 3 rounds.
    assert [step["requests"] for step in judged] == [12 * plan["prompts"]["kept"]] * 3
    [judge] = config.label.labelers
    assert load_judge(judge.judge).settings.max_tokens == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run_dir=''", "run_dir"),
        ("run_dir=' '", "run_dir"),
        ("engines.default.device=tpu", "device"),
        ("engines.default.device=''", "device"),
        ("engines.default.threads=99999999999999999999999999", "threads"),
        ("label.labelers.judge.weight=.inf", "weight"),
        ("label.labelers.judge.weight=.nan", "weight"),
        ("sample.temperature=.inf", "temperature"),
        ("sample.temperature=1e400", "temperature"),
        ("sample.n=1e18", "sample.n"),
        ("seed=99999999999999999999999999", "seed"),
        ("sample.stop=x", "stop"),
        ("label.labelers=x", "labelers"),
        ("label.labelers={a: 1}", "labelers"),
        ("filter.filters=[[]]", "filters"),
        ("sample..n=3", "key=value"),
        (".=3", "key=value"),
        ("sample.n=[" + "[" * 3000, "nested deeper"),
        ("sample.n={a: 1, a: 2}", "second time"),
        ("engines.s={type: openai, base_url: 'http://[::1'}", "base_url"),
        ("engines.s={type: openai, base_url: 'http://127.0.0.1:99999/'}", "base_url"),
        ("engines.s={type: openai, base_url: 'http://x y/'}", "base_url"),
        ("engines.s={type: openai, base_url: 'ftp://x/'}", "base_url"),
        ("engines.s={type: openai, base_url: ''}", "base_url"),
    ],
)
def test_settings_that_cannot_be_are_one_line(override: str, message: str) -> None:
    raw = small_config().model_dump(mode="json")
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(raw, [override])
    assert "\n" not in str(raised.value)


def test_a_key_of_odd_characters_is_named_in_one_line() -> None:
    raw = {"prompts": {"train": {"path": "p"}}, "filter": {"a\nb\x1b[31m": 1}}
    with pytest.raises(ConfigError) as refused:
        load_config(raw)
    assert str(refused.value).isprintable()


def test_what_samples_while_it_trains_is_not_for_the_workers_of_a_cluster() -> None:
    online = {"train": {"online": True}, "executor": {"type": "ray"}}
    with pytest.raises(ConfigError, match=r"executor\.type: local"):
        validate_config(MINIMAL | online, "test")
    validate_config(MINIMAL | online | {"executor": {"type": "local"}}, "test")
    validate_config(MINIMAL | {"executor": {"type": "ray"}}, "test")
