"""Runs published to a hub of our own, and read back as others read them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from typer.testing import CliRunner

import prefloop
from prefloop.data.errors import InputError
from prefloop.data.schemas import UNPAIRED, VOTE
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import load_config
from prefloop.pipeline.publish.hub_upload import UploadFailed
from prefloop.pipeline.report.card import write_card
from prefloop.pipeline.run.run_dir import RunDir, RunError
from tests.helpers.synthetic_run import write_run
from tests.pipeline.publish.hub_server import TOKEN, HubServer, hub_server

NAME = "fox/pairs"
LICENCE = "cc-by-4.0"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server(monkeypatch) as server:
        yield server


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run whose config can be begun again."""
    run = write_run(tmp_path / "run")
    config = {
        "rounds": 2,
        "policy": "fox/small",
        "prompts": {"train": {"path": "/data/of/mine/prompts.jsonl"}},
        "label": {"labelers": [{"type": "judge", "model": "fox/judge"}]},
        "train": {"method": "dpo"},
    }
    run.config.write_text(yaml.safe_dump(config), encoding="utf-8")
    seal(run)
    return run


def seal(run: RunDir) -> None:
    """Let the dataset's card say that it is whole, as it is now."""
    run.card.unlink(missing_ok=True)
    write_card(load_config(run.config), run)


def write_policy(run: RunDir, folder: Path) -> None:
    """A policy with what a training leaves beside it."""
    folder.mkdir()
    for name in ("model.safetensors", "training.jsonl", "optimizer.pt", "training_args.bin"):
        (folder / name).write_bytes(name.encode())
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def write_unpaired(run: RunDir) -> None:
    """Two single answers among the dataset's files."""
    turn = [{"role": "user", "content": "A fox?"}]
    row = dict.fromkeys(UNPAIRED.names) | {
        "prompt": turn, "completion": turn, "label": True, "prompt_id": "p", "candidate_id": "c",
        "score": 0.75, "pairs": 2, "tokens": 3, "round": 0, "policy": "policy@1",
    }  # fmt: skip
    folder = run.dataset / "unpaired"
    folder.mkdir()
    table = pa.Table.from_pylist([row, row | {"label": False}], schema=UNPAIRED)
    pq.write_table(table, folder / "train-round-000-00000.parquet")
    seal(run)


def put_into_candidates(run: RunDir, text: str) -> None:
    shards = run.round(0).candidates
    table = shards.read(0)
    texts = [text, *table["text"].to_pylist()[1:]]
    at = table.column_names.index("text")
    shards.replace(0, table.set_column(at, "text", pa.array(texts, pa.string())))


def test_all_four_configs_open_as_they_were_uploaded(
    hub: HubServer, run: RunDir, tmp_path: Path
) -> None:
    write_unpaired(run)
    found = prefloop.publish(run.root, NAME, license=LICENCE, languages=["en"])
    repo = hub.repos["dataset", NAME]
    assert found.uploaded.changed
    assert repo.private
    copy = repo.write_to(tmp_path / "copy")
    rounds = run.rounds()
    wanted = {
        "unpaired": 2,
        "default": sum(one.triples.rows() for one in rounds),
        "candidates": sum(one.candidates.rows() for one in rounds),
        "votes": sum(one.votes.rows() for one in rounds),
    }
    opened = {name: load_dataset(str(copy), name) for name in wanted}
    assert {name: sum(sets.num_rows.values()) for name, sets in opened.items()} == wanted
    texts = {
        row["candidate_id"]: row["text"]
        for one in rounds
        for shard in one.candidates.iter(["candidate_id", "text"])
        for row in shard.to_pylist()
    }
    assert opened["unpaired"]["train"]["label"] == [True, False]
    for row in opened["votes"]["train"]:
        assert (texts[row["a_id"]], texts[row["b_id"]]) == (row["answer_a"], row["answer_b"])
        assert row["prompt"][-1]["content"].startswith("Write one sentence about fox")
    splits = [set(opened["votes"][one]["prompt_id"]) for one in ("train", "test")]
    assert splits == [set(opened["candidates"][one]["prompt_id"]) for one in ("train", "test")]
    assert not splits[0] & splits[1]
    assert any(score is not None for score in opened["candidates"]["train"]["score"])


def test_the_card_says_what_others_need_and_no_folder_of_this_machine(
    hub: HubServer, run: RunDir
) -> None:
    prefloop.publish(run.root, NAME, license=LICENCE, languages=["en"])
    card = hub.repos["dataset", NAME].files["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["language"]) == (LICENCE, ["en"])
    names = [one["config_name"] for one in front["configs"]]
    assert names == ["default", "candidates", "votes"]
    assert "`prompts.jsonl`" in card
    assert "/data/of/mine" not in card
    assert f'load_dataset("{NAME}", "votes")' in card
    assert "Starting policy: `fox/small`" in card
    assert "report.html" in hub.repos["dataset", NAME].files


def test_the_same_content_makes_no_new_commit_and_what_is_gone_goes(
    hub: HubServer, run: RunDir
) -> None:
    prefloop.publish(run.root, NAME, license=LICENCE)
    sent, repo = list(hub.sent), hub.repos["dataset", NAME]
    again = prefloop.publish(run.root, NAME, license=LICENCE)
    assert not again.uploaded.changed
    assert "no new commit" in str(again)
    assert (len(repo.commits), hub.sent) == (1, sent)
    shutil.rmtree(run.round(1).root)
    for file in run.dataset.glob("data/*-round-001-*"):
        file.unlink()
    with pytest.raises(RunError, match=r"holds other files than its README\.md says"):
        prefloop.publish(run.root, NAME, license=LICENCE)
    seal(run)
    assert prefloop.publish(run.root, NAME, license=LICENCE).uploaded.changed
    assert not [name for name in repo.files if "round-001" in name]
    assert hub.sent == sent


def test_an_upload_that_broke_off_goes_on(hub: HubServer, run: RunDir) -> None:
    hub.breaks_after = 2
    with pytest.raises(UploadFailed, match="the same command goes on from here"):
        prefloop.publish(run.root, NAME, license=LICENCE)
    assert not hub.repos["dataset", NAME].commits
    hub.breaks_after = None
    prefloop.publish(run.root, NAME, license=LICENCE)
    assert len(hub.sent) == len(set(hub.sent)) == 6 + 6


def test_a_secret_stops_it_before_anything_is_sent(hub: HubServer, run: RunDir) -> None:
    secret = "ghp_" + "b7" * 18
    put_into_candidates(run, f"Use {secret}, or ask jane.doe@foxes.org")
    asked = ["publish", str(run.root), NAME, "--license", LICENCE]
    said = CliRunner().invoke(app, asked)
    assert said.exit_code == 1
    assert secret not in said.output
    assert "candidates/train-round-000-00000.parquet:1 text: GitHub Token ghp_…" in said.output
    assert "candidates/train-round-000-00000.parquet:1 text: e-mail address jane…" in said.output
    assert "votes/train-round-000-00000.parquet:1 answer_a: GitHub Token" in said.output
    assert not hub.paths
    listed = json.loads(CliRunner().invoke(app, [*asked, "--json"]).output)
    assert listed["stopped"]
    assert listed["finds"]["kinds"]["GitHub Token"] == len(
        [one for one in listed["finds"]["named"] if one["kind"] == "GitHub Token"]
    )
    assert CliRunner().invoke(app, [*asked, "--allow-findings"]).exit_code == 0
    assert hub.repos["dataset", NAME].commits


def test_a_dry_run_sends_nothing_and_leaves_nothing(hub: HubServer, run: RunDir) -> None:
    found = prefloop.publish(run.root, NAME, license=LICENCE, dry_run=True)
    assert "votes/train-round-001-00000.parquet" in found.files
    assert not hub.paths
    assert not (run.root / ".publish").exists()


def test_people_are_called_by_numbers(hub: HubServer, run: RunDir, tmp_path: Path) -> None:
    shards = run.round(0).votes
    votes = shards.read(0)
    at = votes.column_names.index("labeler")
    names = ["human:jane", "human:ali", *votes["labeler"].to_pylist()[2:]]
    shards.replace(0, votes.set_column(at, VOTE.field("labeler"), pa.array(names, pa.string())))
    triples = sorted(run.dataset.glob("data/train-round-000-*"))[0]
    table = pq.read_table(triples)
    lists = [["human:jane", "judge"], *table["labelers"].to_pylist()[1:]]
    at = table.column_names.index("labelers")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(lists)), triples)
    seal(run)
    prefloop.publish(run.root, NAME, license=LICENCE)
    copy = hub.repos["dataset", NAME].write_to(tmp_path / "copy")
    sets = load_dataset(str(copy), "votes")
    voters = {name for one in sets.values() for name in one["labeler"]}
    assert {name for name in voters if name.startswith("human")} == {"human:1", "human:2"}
    opened = load_dataset(str(copy))["train"]
    assert opened[0]["labelers"] == ["human:2", "judge"]
    assert (
        opened["labelers"][1:]
        == [
            row
            for path in sorted(copy.glob("data/train-*"))
            for row in pq.read_table(path)["labelers"].to_pylist()
        ][1:]
    )
    assert pq.read_table(triples)["labelers"][0].as_py() == ["human:jane", "judge"]
    assert not [name for name, text in hub.repos["dataset", NAME].files.items() if b"jane" in text]


def test_of_a_policy_only_what_loads_is_sent(hub: HubServer, run: RunDir) -> None:
    write_policy(run, run.round(0).policy)
    prefloop.publish(run.root, NAME, license=LICENCE, languages=["en"], policy=True)
    repo = hub.repos["model", NAME]
    assert repo.files.keys() == {
        ".gitattributes", "README.md", "chat_template.jinja", "config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    card = repo.files["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "fox/small"
    assert "0.580 [0.520, 0.640]" in card


def test_an_adapter_names_its_base_on_the_hub_or_is_not_sent(hub: HubServer, run: RunDir) -> None:
    write_policy(run, run.round(0).policy)
    settings = run.round(0).policy / "adapter_config.json"
    cached = "/home/x/.cache/huggingface/hub/models--fox--small/snapshots/0123"
    settings.write_text(json.dumps({"base_model_name_or_path": cached, "r": 8}))
    prefloop.publish(run.root, NAME, license=LICENCE, policy=True)
    sent = json.loads(hub.repos["model", NAME].files["adapter_config.json"])
    assert sent == {"base_model_name_or_path": "fox/small", "r": 8}
    assert json.loads(settings.read_text())["base_model_name_or_path"] == cached
    settings.write_text(json.dumps({"base_model_name_or_path": "/models/mine"}))
    with pytest.raises(RunError, match="is an adapter of /models/mine, a folder of this machine"):
        prefloop.publish(run.root, NAME, license=LICENCE, policy=True)


def test_a_repository_that_others_see_or_filled_is_left_alone(hub: HubServer, run: RunDir) -> None:
    write_policy(run, run.round(0).policy)
    prefloop.publish(run.root, NAME, license=LICENCE, policy=True)
    repo = hub.repos["model", NAME]
    repo.private = False
    with pytest.raises(UploadFailed, match="already and public: give --public"):
        prefloop.publish(run.root, NAME, license="mit", policy=True)
    repo.files["README.md"] = b"---\ntags: [cats]\n---\nCats."
    with pytest.raises(UploadFailed, match="holds what prefloop did not publish"):
        prefloop.publish(run.root, NAME, license="mit", public=True, policy=True)
    assert len(repo.commits) == 1


def test_what_the_hub_refuses_is_one_line_without_the_token(
    hub: HubServer, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_policy(run, run.round(0).policy)
    with pytest.raises(UploadFailed, match=r"answered 403 .*rights.*: the token may not write"):
        prefloop.publish(run.root, "others/pairs", license=LICENCE, policy=True)
    with pytest.raises(UploadFailed, match='"license" is unknown'):
        prefloop.publish(run.root, NAME, license="no-such", policy=True)
    wrong = TOKEN.replace("a", "b")
    monkeypatch.setenv("HF_TOKEN", wrong)
    with pytest.raises(UploadFailed, match="the token is not valid") as refused:
        prefloop.publish(run.root, NAME, license=LICENCE, policy=True)
    assert wrong not in str(refused.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UploadFailed, match="there is no token for the hub: set HF_TOKEN"):
        prefloop.publish(run.root, NAME, license=LICENCE, policy=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UploadFailed, match="cannot be uploaded"):
        prefloop.publish(run.root, NAME, license=LICENCE, policy=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pairs", {"license": LICENCE}, "write the name on the hub as ORG/NAME"),
        (NAME, {"license": "CC BY"}, "write it as the hub does"),
        (NAME, {"license": LICENCE, "languages": ["English"]}, "write a code such as en"),
    ],
)
def test_a_mistake_is_named_before_anything_is_made(
    run: RunDir, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prefloop.publish(run.root, name, **options)


def test_a_run_without_a_policy_to_keep_says_so(hub: HubServer, run: RunDir) -> None:
    for folder in run.rounds():
        shutil.rmtree(folder.metrics.folder)
    with pytest.raises(RunError, match="keeps no policy"):
        prefloop.publish(run.root, NAME, license=LICENCE, policy=True)
