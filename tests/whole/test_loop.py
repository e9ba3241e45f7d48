"""The whole loop on the embedded models: what comes out, resuming, refusals."""

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from prefloop.data.errors import NothingCameOut, StorageError
from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.config import dump_config, validate_config
from prefloop.pipeline.run.run_dir import EVALUATION, TRAINING_CURVES, RunDir, RunError
from prefloop.pipeline.run.status import collect_status
from prefloop.pipeline.stages.matches import forget_other_votes
from prefloop.pipeline.stages.prompts import round_rows
from tests.helpers.runs import JUDGE, VERIFIER, dataset_rows, run_small, small_config
from tests.helpers.servers import faulty_server, good, status

TRAIN = {"learning_rate": 1e-4, "batch_size": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """One round with training and evaluation."""
    return run_small(tmp_path_factory.mktemp("trained"), small_config(train=TRAIN))


def test_the_dataset_opens_with_datasets_and_has_its_provenance(trained: RunDir) -> None:
    import datasets

    found = datasets.load_dataset(str(trained.dataset), cache_dir=str(trained.root / "cache"))
    rows = [row for split in found.values() for row in split]
    assert rows
    assert set(rows[0]) >= {
        "prompt", "chosen", "rejected", "prompt_id", "chosen_id", "rejected_id", "score_chosen",
        "score_rejected", "margin", "agreement", "chosen_tokens", "rejected_tokens", "round",
        "policy", "labelers",
    }  # fmt: skip
    candidates = {
        row["candidate_id"]: row for row in trained.round(0).candidates.table().to_pylist()
    }
    prompts = {row["prompt_id"]: row for row in trained.prompts.table().to_pylist()}
    for row in rows:
        assert row["chosen"] != row["rejected"]
        assert row["chosen"][0]["content"] == candidates[row["chosen_id"]]["text"]
        assert row["rejected"][0]["content"] == candidates[row["rejected_id"]]["text"]
        assert row["prompt"] == prompts[row["prompt_id"]]["messages"]
        assert row["margin"] == pytest.approx(row["score_chosen"] - row["score_rejected"])
        assert row["policy"].startswith("policy@")
    by_split = {name: {row["prompt_id"] for row in split} for name, split in found.items()}
    assert not by_split["train"] & by_split.get("test", set())


def test_trl_trains_on_the_dataset_as_it_is(trained: RunDir, tmp_path: Path) -> None:
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from prefloop.data.embedded import resolve_embedded

    policy = resolve_embedded("embedded:policy")
    data = datasets.load_dataset(
        str(trained.dataset), split="train", cache_dir=str(tmp_path / "cache")
    )
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy),
        args=DPOConfig(
            output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2,
            report_to="none", use_cpu=True, bf16=False,
        ),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(policy),
    )  # fmt: skip
    assert trainer.train().training_loss == pytest.approx(0.69, abs=0.1)


def test_counts_add_up_and_every_stage_left_its_rows(trained: RunDir) -> None:
    found = collect_status(trained).as_dict()
    folder = trained.round(0)
    decisions = folder.decisions.table().to_pylist()
    kept = [row for row in decisions if row["kept"]]
    reasons = Counter(row["reason"] for row in decisions if not row["kept"])
    assert None not in reasons
    assert len(decisions) == len(kept) + sum(reasons.values())
    assert sum(map(len, dataset_rows(trained).values())) == len(kept)
    [one] = found["rounds"]
    assert one["pairs"] == one["kept"] + sum(one["dropped"].values()) == len(decisions)
    votes = folder.votes.table().to_pylist()
    judged = [vote for vote in votes if vote["labeler"] == "judge"]
    assert Counter(vote["order"] for vote in judged) == {"ab": len(decisions), "ba": len(decisions)}
    assert all(vote["p_a"] is not None and vote["completion"] for vote in judged)
    copies = sum(row["copies"] for row in folder.candidates.table().to_pylist())
    assert copies == 3 * trained.prompts.rows()


def test_evaluation_measures_the_new_policy(trained: RunDir) -> None:
    rows = trained.round(0).metrics.read(EVALUATION).to_pylist()
    named = {(row["name"], row["against"], row["labeler"]): row for row in rows}
    for labeler in ("jury", "judge", "verifier"):
        win = named["win_rate", "start", labeler]
        assert 0 <= win["low"] <= win["value"] <= win["high"] <= 1
        assert win["n"] == trained.heldout.rows()
    assert named["win_rate", "previous", "jury"]["value"] == pytest.approx(
        named["win_rate", "start", "jury"]["value"]
    )
    assert named["kl", "start", None]["value"] >= -0.05
    assert ("mean_tokens", None, None) in named
    assert ("reward_margin", None, None) in named or not list(
        (trained.dataset / "data").glob("test-*")
    )
    page = trained.report.read_text()
    assert "<script" not in page
    assert str(trained.prompts.rows()) in page


def test_running_again_changes_nothing_and_loads_no_model(
    trained: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_engine(*_: object, **__: object) -> None:
        raise AssertionError("an engine was built for a finished run")

    monkeypatch.setattr("prefloop.pipeline.run.models.build_engine", no_engine)
    before = {path: path.stat().st_mtime_ns for path in trained.root.rglob("part-*.parquet")}
    run_small(trained.root, small_config(train=TRAIN))
    after = {path: path.stat().st_mtime_ns for path in trained.root.rglob("part-*.parquet")}
    assert after == before


def test_a_policy_that_rotted_is_noticed_and_the_advice_makes_it_anew(
    trained: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(trained.root, run.root)
    weights, config = run.round(0).policy / "model.safetensors", small_config(train=TRAIN)
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    curves = run.round(0).metrics.path(TRAINING_CURVES)
    with pytest.raises(RunError) as caught:
        run_small(run.root, config)
    assert str(caught.value) == (
        f"{run.round(0).policy} is damaged (model.safetensors was changed): put it back from a "
        f"copy, or delete it and {curves}: the same command then trains it again"
    )
    shutil.rmtree(run.round(0).policy)
    curves.unlink()
    run_small(run.root, config)
    assert weights.read_bytes() == sound


def test_votes_on_heldout_answers_that_are_others_now_are_forgotten(
    trained: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(trained.root, run.root)
    answers, votes = run.answers(1), run.match_votes(1, 0)
    for policy in (0, 1):
        forget_other_votes(run, policy, 0)
    assert votes.exists(0)
    table = answers.read(0)
    ids = ["x" * 32, *table["candidate_id"].to_pylist()[1:]]
    answers.replace(0, table.set_column(0, table.schema.field(0), pa.array(ids)))
    forget_other_votes(run, 0, 0)
    assert run.matches() == [(1, 0)]
    assert not votes.exists(0)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"seed": 4}, "seed: 3 -> 4"),
        ({"sample": {"n": 4, "max_tokens": 40}}, "sample.n: 3 -> 4"),
        ({"filter": {"filters": [{"type": "margin", "min": 0.2}]}}, "filter.filters"),
        ({"train": TRAIN | {"beta": 0.2}}, "train.beta: 0.1 -> 0.2"),
    ],
)
def test_a_changed_config_is_refused_with_the_difference(
    change: dict, shown: str, trained: RunDir
) -> None:
    with pytest.raises(RunError) as caught:
        run_small(trained.root, small_config(**({"train": TRAIN} | change)))
    assert shown in str(caught.value)
    assert "\n" not in str(caught.value)


def test_changes_that_reach_no_finished_work_are_taken(tmp_path: Path) -> None:
    data_only = small_config()
    run = run_small(tmp_path, data_only)
    first = dataset_rows(run)
    engines = {"default": {"type": "transformers", "block_wait_s": 5.0}}
    run_small(tmp_path, small_config(engines=engines, blocks_in_flight=1, train=TRAIN))
    assert dataset_rows(run) == first
    assert run.round(0).policy.exists()
    assert yaml.safe_load(run.config.read_text())["blocks_in_flight"] == 1


def test_changed_prompts_under_an_old_run_are_refused(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    row = {"prompt": "Write a sentence.", "constraints": [{"type": "no_comma"}]}
    prompts.write_text(json.dumps(row) + "\n")
    config = small_config(prompts={"train": {"path": str(prompts)}, "heldout_share": 0.0})
    run_small(tmp_path / "run", config)
    prompts.write_text(json.dumps(row | {"prompt": "Write a line."}) + "\n")
    with pytest.raises(RunError, match=r"p\.jsonl changed"):
        run_small(tmp_path / "run", config)


def test_the_same_seed_gives_the_same_triples_and_another_seed_others(tmp_path: Path) -> None:
    one = dataset_rows(run_small(tmp_path / "1", small_config()))
    two = dataset_rows(run_small(tmp_path / "2", small_config(blocks_in_flight=1)))
    other = dataset_rows(run_small(tmp_path / "3", small_config(seed=4)))
    assert one == two
    assert one != other


def test_a_reference_answer_is_preferred_to_sampled_ones(tmp_path: Path) -> None:
    prompts = {
        "train": {"path": "embedded:prompts", "limit": 8, "columns": {"reference": "reference"}},
        "heldout_share": 0.0,
    }
    config = small_config(prompts=prompts, label={"labelers": [{"type": "reference"}]})
    run = run_small(tmp_path, config)
    rows = [row for rows in dataset_rows(run).values() for row in rows]
    references = {row["prompt_id"]: row["reference"] for row in run.prompts.table().to_pylist()}
    assert rows
    for row in rows:
        assert row["chosen"][0]["content"] == references[row["prompt_id"]]
        assert row["policy"] == "reference@reference"
        assert row["labelers"] == ["reference"]
    undecided = [r for r in run.round(0).decisions.table().to_pylist() if not r["kept"]]
    assert {row["reason"] for row in undecided} <= {
        "no_valid_vote", "pair_strategy", "identical", "margin",
    }  # fmt: skip


def test_a_pool_of_policies_is_drawn_from_by_weight(tmp_path: Path) -> None:
    pool = [
        {"name": "policy", "weight": 3},
        {"name": "other", "model": "embedded:judge", "weight": 1},
    ]
    config = small_config(
        sample={"n": 4, "max_tokens": 16, "pool": pool}, label={"labelers": [VERIFIER]}
    )
    run = run_small(tmp_path, config)
    drawn: Counter[str] = Counter()
    for row in run.round(0).candidates.table().to_pylist():
        drawn[row["policy"]] += row["copies"]
    assert sum(drawn.values()) == 4 * run.prompts.rows()
    assert drawn["policy"] > drawn["other"] > 0


def test_a_prompt_longer_than_the_context_is_quarantined(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    rows = [{"prompt": "Write a sentence."}, {"prompt": "word " * 3000}]
    prompts.write_text("".join(json.dumps(row | {"constraints": []}) + "\n" for row in rows))
    config = small_config(prompts={"train": {"path": str(prompts)}, "heldout_share": 0.0})
    run = run_small(tmp_path / "run", config)
    [failed] = run.round(0).quarantine("sample").table().to_pylist()
    assert (failed["reason"], failed["source"], failed["row"]) == (
        "context_overflow", str(prompts), 2,
    )  # fmt: skip
    assert len(set(run.round(0).candidates.table()["prompt_id"].to_pylist())) == 1


def test_a_failing_judge_server_stops_the_run_in_one_line_and_it_resumes(tmp_path: Path) -> None:
    top = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]
    logprobs = {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": top}]}
    answer = good("A", logprobs=logprobs)

    def config(url: str) -> object:
        judge = {**JUDGE, "engine": "server", "model": "served"}
        return small_config(
            engines={
                "default": {"type": "transformers"},
                "server": {
                    "type": "openai", "base_url": url, "max_retries": 1, "max_backoff_s": 0.01,
                },
            },
            label={"labelers": [judge, VERIFIER]},
        )  # fmt: skip

    with faulty_server(answer, answer, answer, status(500, "out of order")) as broken:
        with pytest.raises(EngineFailed) as caught:
            run_small(tmp_path, config(broken.url))
        assert "\n" not in str(caught.value)
        assert "500" in str(caught.value)
    sampled = RunDir(tmp_path).round(0).candidates.table()
    with faulty_server(answer) as repaired:
        run = run_small(tmp_path, config(repaired.url))
    assert run.round(0).candidates.table().equals(sampled)
    votes = [v for v in run.round(0).votes.table().to_pylist() if v["labeler"] == "judge"]
    # A judge that says A in both orders is inconsistent everywhere, and never decides anything.
    assert {(vote["order"], vote["preference"]) for vote in votes} == {("ab", "a"), ("ba", "b")}
    assert not any(run.round(0).decisions.table()["position_consistent"].to_pylist())


def test_a_run_without_a_usable_prompt_says_so(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": ""}\n{broken\n')
    config = small_config(prompts={"train": {"path": str(prompts)}, "heldout_share": 0.0})
    told = "no usable prompt among the 2 read: 2 quarantined"
    with pytest.raises(NothingCameOut, match=told):
        run_small(tmp_path / "run", config)


def test_a_round_that_keeps_nothing_says_where_to_look(tmp_path: Path) -> None:
    config = small_config(
        train=TRAIN, filter={"filters": [{"type": "margin", "min": 1.0}, {"type": "truncated"},
                                         {"type": "length", "min_tokens": 999}]}
    )  # fmt: skip
    told = r"all 48 pairs were dropped, \d+ of them by margin: loosen margin in `filter`"
    with pytest.raises(NothingCameOut, match=told):
        run_small(tmp_path, config)


def test_prompts_per_round_uses_all_before_any_twice() -> None:
    seen: list[int] = []
    for index in range(5):
        rows = round_rows(10, 4, index, seed=1).tolist()
        assert len(set(rows)) == 4
        seen += rows
    assert sorted(seen[:8]) == sorted(set(seen[:8]))
    assert Counter(seen) == dict.fromkeys(range(10), 2)


def test_a_resolved_config_of_a_run_runs(trained: RunDir) -> None:
    raw = yaml.safe_load(trained.config.read_text())
    assert dump_config(validate_config(raw, "test")) == trained.config.read_text()


def test_a_missing_policy_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EngineFailed, match="nobody/nothing") as caught:
        run_small(tmp_path, small_config(policy="nobody/nothing"))
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_clear_line_and_the_run_goes_on_once_there_is_room(
    tmp_path: Path,
) -> None:
    """On a file system that really is full."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(StorageError, match="No space left") as caught:
            run_small(small / "run", small_config())
        assert "\n" not in str(caught.value)
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        expected = dataset_rows(run_small(tmp_path / "calm", small_config()))
        assert dataset_rows(run_small(small / "run", small_config())) == expected
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
