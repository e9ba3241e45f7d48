"""The page as a file: what is in it, and that hostile text stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import prefloop
from prefloop.data.errors import InputError
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.view.pair_texts import shown_pairs
from prefloop.pipeline.view.view_page import open_pairs, script_json
from tests.helpers.synthetic_run import ANSWERS, HOSTILE, JUDGE, write_run


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open = tag if tag != "script" else dict(attrs).get("id") or "script"

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.inside[self._open] = self.inside.get(self._open, "") + data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return write_run(tmp_path_factory.mktemp("view") / "run")


def page_of(path: Path, out: Path, **more: Any) -> tuple[Elements, dict[str, Any]]:
    page = Elements(prefloop.view(path, html=out, **more).read_text(encoding="utf-8"))
    return page, json.loads(page.inside["data"])


def test_all_pairs_of_a_small_run_are_in_the_page(run: RunDir, tmp_path: Path) -> None:
    _, data = page_of(run.root, tmp_path / "page.html")
    decisions = [row for one in run.rounds() for row in one.decisions.table().to_pylist()]
    assert {pair["pair_id"] for pair in data["pairs"]} == {row["pair_id"] for row in decisions}
    assert data["total"] == len(data["pairs"]) == data["why"]["all"] == len(decisions)
    assert dict(map(tuple, data["choices"]["fate"])) == {"kept": 48, "tie": 48, "length_ratio": 48}
    splits = dict(map(tuple, data["choices"]["split"]))
    assert splits == {"train": 42, "test": 6}  # as the dataset's files have them


def test_votes_are_told_about_the_chosen_answer(run: RunDir) -> None:
    pairs = open_pairs(run.root)
    row = pairs.facts["fate"].to_pylist().index("kept", 3)
    [pair] = shown_pairs(pairs, [row])
    said = [(vote["labeler"], vote["first"], vote["preferred"]) for vote in pair["votes"]]
    assert said == [(JUDGE, "chosen", "chosen"), (JUDGE, "rejected", "chosen"),
                    ("verifier", "", "chosen")]  # fmt: skip
    assert pair["votes"][0]["p_chosen"] == 0.9
    assert HOSTILE in pair["votes"][0]["rationale"]
    chosen = "".join(text for text, _ in pair["chosen"]["parts"])
    assert chosen == ANSWERS[0] + HOSTILE
    assert pair["chosen"]["policy"] == "policy@abc0"
    assert pair["source"].startswith("prompts.jsonl:")
    assert pair["decided"]


def test_a_pair_without_a_winner_says_so(run: RunDir) -> None:
    pairs = open_pairs(run.root)
    [pair] = shown_pairs(pairs, [pairs.facts["fate"].to_pylist().index("tie")])
    assert not pair["decided"]


def test_the_page_loads_nothing_and_runs_its_own_script_alone(run: RunDir, tmp_path: Path) -> None:
    page, _ = page_of(run.root, tmp_path / "page.html")
    loads = [
        (tag, name, value)
        for tag, attributes in page.found
        for name, value in attributes.items()
        if name in ("src", "href", "action", "style") or name.startswith("on")
    ]
    assert loads == [("link", "href", "data:,"), ("a", "href", "#pair")]
    assert [tag for tag, _ in page.found].count("script") == 2
    policy = next(
        attributes["content"] or ""
        for tag, attributes in page.found
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    for name in ("script", "style"):
        digest = hashlib.sha256(page.inside[name].encode()).digest()
        assert f"{name}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "unsafe" not in policy


def test_nothing_in_the_data_can_end_its_element(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "sesame-open-sesame")
    text = "</script><!--<script>\u2028\u2029&amp; sesame-open-sesame"
    said = script_json({"text": text})
    assert not re.search("[<>&\u2028\u2029]", said)
    assert json.loads(said) == {"text": text.replace("sesame-open-sesame", "[hidden]")}


def test_a_page_is_bounded_and_says_what_is_in_it(run: RunDir, tmp_path: Path) -> None:
    _, data = page_of(run.root, tmp_path / "page.html", pairs=20, seed=1)
    assert data["total"] == 144
    assert len(data["pairs"]) == sum(data["why"].values()) == 20
    assert data["why"]["drawn"] == 10
    reasons = [pair["why"] for pair in data["pairs"]]
    assert {reason: reasons.count(reason) for reason in data["why"]} == data["why"]
    again = page_of(run.root, tmp_path / "again.html", pairs=20, seed=1)[1]
    assert again == data
    other = page_of(run.root, tmp_path / "other.html", pairs=20, seed=2)[1]
    assert [one["pair_id"] for one in other["pairs"]] != [one["pair_id"] for one in data["pairs"]]


def test_long_texts_are_cut_and_counted(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefloop.pipeline.view.view_page.LONGEST_TEXT", 10)
    _, data = page_of(run.root, tmp_path / "page.html")
    chosen = next(pair for pair in data["pairs"] if pair["fate"] == "kept")["chosen"]
    assert sum(len(text) for text, _ in chosen["parts"]) == 10
    assert chosen["characters"] == len(ANSWERS[0] + HOSTILE)
    assert data["pairs"][0]["turns"][0]["content"].endswith(" more characters")


@pytest.mark.parametrize("place", ["dataset", "dataset/data/test-round-000-00000.parquet"])
def test_triples_are_shown_without_a_run(run: RunDir, tmp_path: Path, place: str) -> None:
    path = run.root / place
    _, data = page_of(path, tmp_path / "page.html")
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    margins = sorted(row["margin"] for row in rows)
    assert sorted(pair["margin"] for pair in data["pairs"]) == margins
    pair = next(pair for pair in data["pairs"] if pair["round"] == 0)
    assert "".join(text for text, _ in pair["rejected"]["parts"]) == ANSWERS[1]
    assert pair["source"].endswith(f"{pair['pair_id'].rpartition(':')[2]}")
    splits = {value for value, _ in data["choices"]["split"]}
    assert splits == ({"train", "test"} if path.is_dir() else set())


@pytest.mark.parametrize(
    ("text", "count"),
    [("LANTERN SWUNG beside", 96), ("fox 3. Use the word", 6), ("first one is better", 144),
     ("no such words", 0), ("{{ 7 * 7 }}", 144)],
)  # fmt: skip
def test_texts_are_searched(run: RunDir, text: str, count: int) -> None:
    pairs = open_pairs(run.root)
    assert len(pairs.search(text)) == count


def test_texts_of_triples_are_searched(run: RunDir) -> None:
    pairs = open_pairs(run.root / "dataset")
    found = pairs.search("fox 3. use the WORD").tolist()
    assert len(found) == 2
    for pair in pairs.read(found):
        assert "fox 3. Use the word" in pair["turns"][0]["content"]


def test_what_holds_no_pair_is_one_line(run: RunDir, tmp_path: Path) -> None:
    empty = RunDir(tmp_path / "empty")
    empty.root.mkdir()
    empty.config.write_text("rounds: 1\n")
    with pytest.raises(InputError, match="no decided pair"):
        prefloop.view(empty.root, html=tmp_path / "page.html")
    with pytest.raises(InputError, match="is not there"):
        prefloop.view(tmp_path / "nowhere", html=tmp_path / "page.html")
    other = tmp_path / "other.parquet"
    pq.write_table(run.prompts.read(0), other)
    with pytest.raises(InputError, match="holds no triples of turns"):
        prefloop.view(other, html=tmp_path / "page.html")
    kept = other.read_bytes()
    with pytest.raises(InputError, match="is there and no page"):
        prefloop.view(run.root, html=other)
    assert other.read_bytes() == kept
    lines = tmp_path / "pairs.jsonl"
    lines.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    with pytest.raises(InputError, match="audit FILE --fix DIR"):
        prefloop.view(lines, html=tmp_path / "page.html")
    with pytest.raises(InputError, match="at least 1"):
        prefloop.view(run.root, html=tmp_path / "page.html", pairs=0)
    assert not (tmp_path / "page.html").exists()


def test_thoughts_and_tools_come_with_a_pair(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=1, blocks=1, trained=False)
    folder = run.round(0)
    _replaced(folder.candidates, {"reasoning": "First I <b>think</b>."})
    _replaced(folder.votes, {"reasoning": "The judge thinks."})
    _replaced(folder.prompts, {"tools": '[{"name": "clock"}]', "turns": '[{"role": "user"}]'})
    pairs = open_pairs(run.root)
    [pair] = shown_pairs(pairs, [0])
    assert pair["chosen"]["thought"] == pair["rejected"]["thought"] == "First I <b>think</b>."
    assert {vote["thought"] for vote in pair["votes"]} == {"The judge thinks."}
    assert {vote["raw"] for vote in pair["votes"]} == {"A"}
    assert json.loads(pair["tools"]) == [{"name": "clock"}]
    assert json.loads(pair["as_given"]) == [{"role": "user"}]
    assert len(pairs.search("i <B>think")) == len(pairs.facts)
    assert not len(pairs.search("the judge thinks"))  # a judge's thought is not searched


def _replaced(shards: ShardFolder, values: dict[str, str]) -> None:
    shards.replace(0, pa.Table.from_pylist([row | values for row in shards.read(0).to_pylist()],
                                         schema=shards.schema))  # fmt: skip


def test_triples_of_others_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "Hello?"}
    said = {"role": "assistant", "content": "Hello!"}
    calls = {"role": "assistant", "content": None}
    file = tmp_path / "triples.parquet"
    rows = [
        {"prompt": [turn], "chosen": [said], "rejected": [calls], "margin": 2},
        {"prompt": None, "chosen": None, "rejected": [said], "margin": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
    _, data = page_of(file, tmp_path / "page.html")
    by_place = {pair["source"]: pair for pair in data["pairs"]}
    first, second = by_place["triples.parquet:1"], by_place["triples.parquet:2"]
    assert (first["margin"], first["chosen_length"], first["rejected_length"]) == (2.0, 6, 0)
    assert (second["margin"], second["turns"], second["chosen"]["parts"]) == (None, [], [])
    assert first["agreement"] is None


def test_a_column_of_the_same_name_that_is_something_else_is_named(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "x"}]
    file = tmp_path / "triples.parquet"
    row = {"prompt": turns, "chosen": turns, "rejected": turns, "margin": "wide"}
    pq.write_table(pa.Table.from_pylist([row]), file)
    with pytest.raises(InputError, match="column 'margin' is string"):
        open_pairs(file)
