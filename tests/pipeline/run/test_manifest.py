"""What may change between two starts of a run, and what is made anew then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefloop.data import schemas
from prefloop.data.errors import PrefloopError
from prefloop.data.strict import fingerprint
from prefloop.labelers.judges.folder import SHIPPED
from prefloop.pipeline.config import ConfigError, RunConfig, load_config, validate_config
from prefloop.pipeline.machine.hardware import Gpus, pretended
from prefloop.pipeline.run.manifest import as_begun, open_run
from prefloop.pipeline.run.run_dir import RunDir, RunError
from prefloop.pipeline.run.status import collect_status
from tests.helpers.runs import JUDGE, VERIFIER, small_config

COUNTS = {"read": 1, "kept": 1, "heldout": 0, "dropped": 0, "quarantined": 0}


def begun(root: Path, config: RunConfig, *made: str) -> RunDir:
    """A run whose prompts are read, with an empty first shard of each noun in ``made``."""
    run = RunDir(root)
    open_run(config, run, revisions={})
    run.prompt_counts.write_text(json.dumps(COUNTS))
    for noun in made:
        shards = getattr(run.round(0), noun)
        shards.write(0, shards.schema.empty_table())
    return run


def test_files_in_folders_of_any_depth_are_inputs(tmp_path: Path) -> None:
    deep = tmp_path / "prompts" / "a" / "b" / "p.jsonl"
    deep.parent.mkdir(parents=True)
    deep.write_text('{"prompt": "five"}\n')
    pattern = f"{tmp_path}/prompts/**/*.jsonl"
    config = small_config(prompts={"train": {"path": pattern}})
    run = begun(tmp_path / "run", config)
    deep.write_text('{"prompt": "six"}\n')
    with pytest.raises(RunError, match="changed since"):
        open_run(config, run, revisions={})


def test_prompts_mended_after_a_refused_first_start_are_those_of_the_run(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    config = small_config(prompts={"train": {"path": str(prompts)}})
    run = RunDir(tmp_path / "run")
    prompts.write_text('{"prompt": 5}\n')
    open_run(config, run, revisions={})  # reading them is refused
    prompts.write_text('{"prompt": "five"}\n')
    open_run(config, run, revisions={})
    run.prompt_counts.write_text(json.dumps(COUNTS))
    open_run(config, run, revisions={})
    prompts.write_text('{"prompt": "six"}\n')
    with pytest.raises(RunError, match="changed since"):
        open_run(config, run, revisions={})


@pytest.mark.parametrize(
    "change",
    [
        {"filter": {"filters": []}},
        {"filter": {"strategy": {"type": "all"}}},
        {"write": {"test_share": 0.5}},
    ],
)
def test_half_of_a_free_stage_is_made_anew_with_changed_settings(
    tmp_path: Path, change: dict
) -> None:
    nouns = ("candidates", "votes", "decisions", "unbalanced")
    run = begun(tmp_path, small_config(), *nouns)
    folder = run.round(0)
    open_run(small_config(**change), run, revisions={})
    assert folder.votes.exists(0)
    kept = "write" in change
    assert folder.decisions.exists(0) == kept
    assert folder.unbalanced.exists(0) == kept
    assert not run.undecided.exists()
    folder.written.write_text(json.dumps({"train": 0, "test": 0}))
    open_run(small_config(), run, revisions={})
    assert run.undecided.exists(), "a written round is decided again, its dataset stands meanwhile"
    assert folder.written.exists()
    folder.policy.mkdir()
    with pytest.raises(RunError, match=r"(filter|write)\..*-> .*rounds after it would be others"):
        open_run(small_config(**change), run, revisions={})


@pytest.mark.parametrize(
    ("made", "change"),
    [
        ("candidates", {"sample": {"n": 4, "max_tokens": 40}}),
        ("candidates", {"sample": {"n": 3, "max_tokens": 40, "prompts_per_round": 4}}),
        ("candidates", {"block_size": 4}),
        ("votes", {"label": {"labelers": [VERIFIER]}}),
        ("prompts", {"seed": 4}),
    ],
)
def test_half_of_a_paid_stage_refuses_changed_settings(
    tmp_path: Path, made: str, change: dict
) -> None:
    run = begun(tmp_path, small_config(), made)
    run.prompt_counts.unlink()  # lost: what was made of the prompts still stands
    with pytest.raises(RunError, match="config differs"):
        open_run(small_config(**change), run, revisions={})
    open_run(small_config(), run, revisions={})


@pytest.mark.parametrize("trained", ["policy", "warm_up", "metrics"])
def test_labels_that_were_trained_on_are_not_changed(tmp_path: Path, trained: str) -> None:
    run = begun(tmp_path, small_config(), "candidates", "votes", "decisions")
    changes: list[dict] = [
        {"label": {"labelers": [VERIFIER]}},
        {"label": {"labelers": [JUDGE, VERIFIER], "jury": {"rule": "majority"}}},
        {"label": {"labelers": [{**JUDGE, "weight": 2.0}, VERIFIER]}},
    ]
    with pytest.raises(
        RunError,
        match=r'with: label.labelers.judge: "judge" -> \(not set\)\. .*relabel .* --adopt`',
    ):
        open_run(small_config(**changes[0]), run, revisions={})
    found = getattr(run.round(0), trained)
    if trained == "metrics":
        found.write(0, found.schema.empty_table())
    else:
        found.mkdir(parents=True)
    for change in changes:
        with pytest.raises(RunError, match=r"-> .*trained on.*--judge CONFIG` labels"):
            open_run(small_config(**change), run, revisions={})
    assert run.round(0).decisions.exists(0)


@pytest.mark.parametrize(
    ("change", "asks"),
    [("prompt.jinja", r"relabel .* --adopt"), ("judge.yaml", r"reparse .* --write")],
)
def test_a_judge_s_folder_may_change_until_it_is_asked(
    tmp_path: Path, change: str, asks: str
) -> None:
    judge = Path(shutil.copytree(SHIPPED / "pairwise_short", tmp_path / "judge"))
    config = small_config(label={"labelers": [{**JUDGE, "judge": str(judge)}]})
    run = begun(tmp_path / "run", config, "candidates")
    file = judge / change
    number = 0

    def mend() -> None:
        nonlocal number
        number += 1
        comment = {"prompt.jinja": f"{{# {number} #}}", "judge.yaml": f"# {number}"}[change]
        file.write_text(f"{file.read_text()}\n{comment}\n")

    for _ in range(2):
        mend()
        open_run(config, run, revisions={"embedded:judge": "1"})
    votes = run.round(0).votes
    votes.replace(0, votes.schema.empty_table())
    with pytest.raises(RunError, match=r"embedded:judge changed since .*relabel .* --adopt"):
        open_run(config, run, revisions={"embedded:judge": "2"})
    asked = file.read_text()
    mend()
    with pytest.raises(RunError, match=rf"judge .* changed since .*{asks}"):
        open_run(config, run, revisions={"embedded:judge": "1"})
    file.write_text(asked)
    open_run(config, run, revisions={"embedded:judge": "1"})


def test_a_verifier_s_function_may_change_until_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "rules_of_a_run"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    module = package / "scoring.py"
    module.write_text("def score(text, **_):\n    return len(text)\n")
    monkeypatch.chdir(tmp_path)
    config = small_config(
        label={"labelers": [{"type": "verifier", "function": "rules_of_a_run.scoring:score"}]}
    )
    run = begun(tmp_path / "run", config, "candidates")
    module.write_text("def score(text, **_):\n    return -len(text)\n")
    open_run(config, run, revisions={})
    votes = run.round(0).votes
    votes.replace(0, votes.schema.empty_table())
    called = module.read_text()
    module.write_text("def score(text, **_):\n    return 0\n")
    with pytest.raises(RunError, match=r"code of verifier changed since .*relabel .* --adopt"):
        open_run(config, run, revisions={})
    module.write_text(called)
    open_run(config, run, revisions={})
    module.unlink()  # then calling it says what is wrong, where it is called at all
    open_run(config, run, revisions={})


def test_inputs_that_came_later_are_remembered(tmp_path: Path) -> None:
    run = begun(tmp_path, small_config())
    open_run(small_config(), run, revisions={"other": "1"})
    with pytest.raises(RunError, match="other changed"):
        open_run(small_config(), run, revisions={"other": "2"})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(["manifest", "config", "prompt_counts", "journal"]),
    share=st.floats(0, 1),
    junk=st.sampled_from([b"", b"null", b"[]", b"\xff", b"{}"]),
)
@example("config", 0.0, b"")
@example("manifest", 0.0, b"{}")
@example("prompt_counts", 0.0, b"null")
@example("journal", 0.5, b"null")
def test_a_control_file_cut_at_any_byte_is_one_line_whose_remedy_works(
    tmp_path_factory: pytest.TempPathFactory, name: str, share: float, junk: bytes
) -> None:
    config = small_config()
    run = begun(tmp_path_factory.mktemp("cut"), config, "candidates")
    run.note("sample", 0, 1.0)
    file = getattr(run, name)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))] + junk)

    def use() -> None:
        collect_status(run)
        open_run(config, run, revisions={})
        if run.prompt_counts.exists():
            run.read_prompt_counts()

    said = None
    try:
        use()
    except PrefloopError as error:
        said = str(error)
    if said is None:
        return
    assert str(file) in said
    assert "\n" not in said
    if name == "config":
        file.write_bytes(whole)  # as the message says
    else:
        assert "delete it" in said
        file.unlink()
    use()


def test_an_empty_run_directory_is_refused() -> None:
    for name in ("", "  "):
        with pytest.raises(ConfigError, match="run_dir"):
            validate_config(small_config().model_dump() | {"run_dir": name}, "test")


def test_a_directory_deleted_under_a_run_is_one_line(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.lock():
        run.root.rename(tmp_path / "elsewhere")
        run.prompts.write(0, schemas.PROMPT.empty_table())  # makes the folder again
        with pytest.raises(RunError, match="was deleted or moved"):
            run.note("prompts", 0, 1.0)


def served(**keys: object) -> RunConfig:
    """A run whose judge is served by an engine with ``keys``."""
    engine = {"type": "openai", "base_url": "http://127.0.0.1:9/v1", **keys}
    judge = {"type": "judge", "engine": "e", "model": "m"}
    return small_config(
        engines={"default": {"type": "transformers"}, "e": engine}, label={"labelers": [judge]}
    )


def test_what_is_handed_on_to_a_server_may_not_change_under_its_votes(tmp_path: Path) -> None:
    run = begun(tmp_path, served(), "candidates", "votes")
    open_run(served(extra_headers={"x-a": "b"}, max_tokens_field="max_completion_tokens"), run,
             revisions={})  # fmt: skip
    # Names of others mean nothing here, whatever they are.
    for keys in ({"extra_body": {"timeout_s": 3}}, {"chat_template_kwargs": {"then": 1}},
                 {"reasoning_effort": "low"}):  # fmt: skip
        with pytest.raises(RunError, match="differs") as raised:
            open_run(served(**keys), run, revisions={})
        assert str(raised.value).count("->") == 1


def test_a_run_goes_on_with_other_endpoints(tmp_path: Path) -> None:
    run = begun(tmp_path, served(), "candidates", "votes")
    usual = "http://127.0.0.1:8000/v1"
    several = [
        {"base_url": "http://a/v1", "max_concurrency": 2, "extra_headers": {"x-a": "b"}},
        {"base_url": "http://b/v1", "api_key_env": "B_KEY", "requests_per_minute": 9},
    ]
    for endpoints in (several, several[:1], []):
        config = served(base_url=usual, endpoints=endpoints)
        open_run(config, run, revisions={})
        assert RunConfig(**run.read_config()) == config
    with pytest.raises(RunError, match="differs"):
        open_run(served(base_url=usual, endpoints=several, api="completions", tokenizer="t"), run,
                 revisions={})  # fmt: skip


def test_a_run_of_a_version_that_wrote_columns_out_goes_on(tmp_path: Path) -> None:
    run = begun(tmp_path, small_config(), "candidates", "votes")
    raw = yaml.safe_load(run.config.read_text())
    for source in (raw["prompts"]["train"], raw["prompts"]["heldout"]):
        source["columns"] |= {"prompt": "prompt", "messages": "messages"}
        for key in ("last_turn", "prefer", "system", "tools"):
            del source["columns"][key]
        del source["size"], source["weight"]
    run.config.write_text(yaml.safe_dump(raw))
    as_before = {"path": "embedded:prompts", "limit": 16, "columns": {"last_turn": "reference"}}
    prompts = {**raw["prompts"], "train": as_before}
    for config in (small_config(prompts=prompts), small_config()):
        run.config.write_text(yaml.safe_dump(raw))
        open_run(config, run, revisions={})
    other = {**as_before, "columns": {"prompt": "topic"}}
    with pytest.raises(
        RunError, match=r"columns\.prompt: null -> \"topic\"|columns\.prompt: \(not"
    ):
        open_run(small_config(prompts={**prompts, "train": other}), run, revisions={})
    with pytest.raises(RunError, match=r"columns\.last_turn: \"drop\" -> \"reference\""):
        open_run(small_config(prompts=prompts), run, revisions={})


WRITTEN_BEFORE = """
{learning_rate: 5.0e-07, lr_scheduler: linear, warmup_ratio: 0.1, epochs: 1.0, batch_size: 8,
 gradient_accumulation: 1, max_length: 1024, max_pairs: null, weight_decay: 0.0,
 max_grad_norm: 1.0, precision: auto, lora: {r: 16, alpha: 32, dropout: 0.0,
 target_modules: all-linear, quantize: null}, gradient_checkpointing: false, save_steps: 500,
 method: dpo, loss: sigmoid, loss_weights: null, beta: 0.1, desirable_weight: 1.0,
 undesirable_weight: 1.0, reward: wins, clip: 0.2, scale_rewards: true, online: false,
 online_steps: 1, simpo_gamma: 1.0, ld_alpha: null, divergence: reverse_kl, divergence_alpha: 0.5,
 label_smoothing: 0.0, reference: start, data: fresh, replay_share: 0.25, order: length,
 precompute_reference_logprobs: true, accelerate: null, sft_warmup: null, guards: {enabled: true,
 window: 10, warn_share: 0.5, max_margin_nats: 200.0, max_margin: null, max_chosen_drop: 100.0,
 max_perfect_steps: 100, snapshots: 10, max_kl: 100.0, max_length_ratio: 3.0, max_truncated: 0.5,
 max_repetitive: 0.5, then: stop}}
"""
"""What a version before wrote of ``train: {lora: {}}``, when all defaults were the same for all."""


def test_a_run_goes_on_with_what_it_was_begun_with_of_what_its_config_leaves_out(
    tmp_path: Path,
) -> None:
    config = small_config(train={"lora": {}})
    assert config.train is not None
    assert (config.train.learning_rate, config.train.gradient_accumulation) == (5e-6, 4)
    run = begun(tmp_path, config, "candidates", "votes")
    run.round(0).policy.mkdir()
    raw = yaml.safe_load(run.config.read_text())
    raw["train"] = yaml.safe_load(WRITTEN_BEFORE)
    run.config.write_text(yaml.safe_dump(raw))
    for _ in range(2):  # and again from what it now wrote itself
        open_run(config, run, revisions={})
        kept = yaml.safe_load(run.config.read_text())["train"]
        assert {key: kept[key] for key in raw["train"] if key != "guards"} == {
            key: raw["train"][key] for key in raw["train"] if key != "guards"
        }
        assert as_begun(config, run).train == validate_config(raw, "old").train
    for said in ({"learning_rate": 5e-6}, {"gradient_accumulation": 4}, {"loss": "simpo"}):
        with pytest.raises(RunError, match=rf"train\.{next(iter(said))}: "):
            open_run(small_config(train={"lora": {}, **said}), run, revisions={})
    # Where a key changed that decides the others, they follow it, as long as nothing is trained.
    run.round(0).policy.rmdir()
    open_run(small_config(train={"lora": {}, "loss": "simpo"}), run, revisions={})
    assert yaml.safe_load(run.config.read_text())["train"]["beta"] == 2


def test_overrides_of_a_config_resolve_anew_what_it_leaves_out() -> None:
    config = small_config(train={"epochs": 2})
    changed = load_config(config, {"train.loss": "sigmoid_norm"})
    assert changed.train is not None
    assert (changed.train.beta, changed.train.epochs) == (5, 2)
    said = load_config(small_config(train={"beta": 0.2}), {"train.loss": "sigmoid_norm"})
    assert said.train is not None
    assert said.train.beta == 0.2


def test_how_much_an_engine_computes_at_once_may_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def with_engine(**settings: Any) -> RunConfig:
        return small_config(engines={"default": settings})

    local = {"type": "transformers"}
    run = begun(tmp_path / "a", with_engine(**local), "candidates", "votes")
    open_run(with_engine(**local, batch_size=8, threads=1), run, revisions={})
    [said] = caplog.messages
    assert "engines.default.batch_size: 64 -> 8" in said
    assert "engines.default.threads: (not set) -> 1" in said
    assert "bit for bit" in said
    with pytest.raises(RunError, match=r"engines.default.dtype"):
        open_run(with_engine(**local, dtype="bfloat16"), run, revisions={})
    caplog.clear()
    served = {"type": "vllm"}
    run = begun(tmp_path / "b", with_engine(**served), "candidates", "votes")
    open_run(with_engine(**served, max_num_seqs=8, cpu_kv_cache_gib=2), run, revisions={})
    assert not caplog.messages


def test_the_number_of_an_engine_s_processes_may_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def with_engine(**settings: Any) -> RunConfig:
        return small_config(engines={"default": settings})

    bound = {"type": "transformers", "threads": 1}
    run = begun(tmp_path / "a", with_engine(**bound), "candidates", "votes")
    for replicas in (3, {"min": 1, "max": 4}, 1):
        open_run(with_engine(**bound, replicas=replicas), run, revisions={})
    served = {"type": "vllm"}
    run = begun(tmp_path / "b", with_engine(**served), "candidates", "votes")
    open_run(with_engine(**served, replicas=2, gpus=2), run, revisions={})
    assert not caplog.messages
    shared = {"type": "transformers", "device": "cpu"}
    run = begun(tmp_path / "c", with_engine(**shared), "candidates", "votes")
    open_run(with_engine(**shared, replicas=2), run, revisions={})
    [said] = caplog.messages
    assert "engines.default.replicas: 1 -> 2" in said
    assert "bit for bit" in said


def test_workers_may_be_more_than_this_machine_has_gpus_for(tmp_path: Path) -> None:
    def with_workers(replicas: int) -> RunConfig:
        engines = {"default": {"type": "transformers", "replicas": replicas}}
        return small_config(engines=engines, executor={"type": "ray"})

    with pretended(Gpus("H100", 1, 80 << 30, "")):
        run = begun(tmp_path / "run", with_workers(4), "candidates", "votes")
        open_run(with_workers(8), run, revisions={})


def test_who_works_on_the_blocks_may_change_at_any_time(tmp_path: Path) -> None:
    config = small_config()
    before = fingerprint(config)
    run = begun(tmp_path, config, "candidates", "votes", "metrics")
    old = yaml.safe_load(run.config.read_text())
    del old["executor"]  # of an older version
    run.config.write_text(yaml.safe_dump(old))
    moved = small_config(executor={"type": "ray", "address": "10.0.0.1:6379", "attempts": 5})
    open_run(moved, run, revisions={})
    open_run(config, run, revisions={})
    assert "executor" not in before
