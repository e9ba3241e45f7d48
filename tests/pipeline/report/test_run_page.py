"""The report: complete, self-contained, and unmoved by hostile content."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from prefloop.data.schemas import CANDIDATE, PROMPT, VOTE
from prefloop.labelers.decisions.filters import PAIR_STRATEGY
from prefloop.pipeline.report.excerpts import PairLots, read_excerpts
from prefloop.pipeline.report.formats import percent
from prefloop.pipeline.report.plots import Bars, Series, Words, histogram, length_bins, lines, rebin
from prefloop.pipeline.report.redact import HIDDEN, hide_environment_secrets, redact
from prefloop.pipeline.report.run_page import (
    LONGEST_TEXT,
    MOST_SOURCES,
    render_report,
    write_report,
)
from prefloop.pipeline.report.side_by_side import read_side_by_side
from prefloop.pipeline.report.status_text import render_status
from prefloop.pipeline.report.tally import tally_run
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.run.status import collect_status
from tests.helpers.processes.loading import loaded_by
from tests.helpers.synthetic_run import (
    BLOCK,
    HOSTILE,
    JUDGE,
    candidates_of,
    write_block,
    write_run,
    write_start,
)


class _Page(HTMLParser):
    """Collects tags, attributes, ids and text of a page; checks that tags are balanced."""

    _VOID = frozenset({"meta", "link", "br", "line", "path", "use", "rect"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self._VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return write_run(tmp_path_factory.mktemp("report") / "fox-run")


@pytest.fixture(scope="module")
def page(run: RunDir) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_sections_in_order(page: str) -> None:
    sections = re.findall(r'<section id="(\w+)">', page)
    assert sections == ["counts", "policy", "length", "decisions", "labelers", "samples", "made"]


def test_headline_and_sums(page: str) -> None:
    text = " ".join(_Page(page).text.replace("\u00a0", " ").split())
    assert "68.0 %" in text
    assert "round 1: 68.0 % [62.0 %, 74.0 %], n = 120" in text
    assert "65.0 %" in text  # length-controlled
    assert "31 read = 24 kept + 4 held out for evaluation + 2 dropped + 1 quarantined" in text
    assert "72 pairs = 24 kept + 24 length_ratio + 24 tie ✓ adds up" in text
    assert text.count("✓ adds up") == 3
    assert "does not add up" not in text


def test_hostile_content_is_shown_as_text(page: str) -> None:
    parsed = _Page(page)
    assert HOSTILE in parsed.text  # in full, as text
    assert JUDGE in parsed.text
    assert not parsed.tags & {"script", "img", "iframe", "object", "embed", "i_judge"}
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert "<i>judge" not in page


def test_page_loads_nothing(page: str) -> None:
    for name, value in _Page(page).attributes:
        assert name not in {"src", "srcset", "xlink:href", "action", "data", "background"}
        if name == "href":
            assert value.startswith("#") or value == "data:,"
        if name == "style":
            assert "url(" not in value.replace("url(#", "")
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert page.count("<style") == 1


def test_ids_are_unique_and_references_lead_somewhere(page: str) -> None:
    parsed = _Page(page)
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for name, value in parsed.attributes if name == "href" and value[0] == "#"}
    wanted |= {value for name, value in parsed.attributes if name == "aria-labelledby"}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted <= set(ids)


def test_plots_take_the_colours_of_the_page(page: str) -> None:
    plots = re.findall(r'<svg class="plot".*?</svg>', page, flags=re.DOTALL)
    assert len(plots) == 17
    for plot in plots:
        root = ET.fromstring(plot)
        assert root.find("title") is not None
        assert not re.search(r"#[0-9a-f]{6}\b(?!\")", re.sub(r'(href|id)="[^"]*"', "", plot))
        assert "var(--series-0)" in plot


def test_no_secret_gets_in(page: str, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "hunter2" not in page
    assert "very-secret-api-key" not in page
    assert HIDDEN in page
    monkeypatch.setenv("SOME_API_KEY", "Under the old bridge")  # stands in answers
    assert "Under the old bridge" in page
    assert "Under the old bridge" not in render_report(run)


def test_equal_runs_give_equal_pages(page: str, run: RunDir) -> None:
    assert render_report(run) == page


def test_rewriting_leaves_no_other_file(page: str, run: RunDir) -> None:
    before = sorted(run.root.iterdir())
    write_report(run)
    assert sorted(run.root.iterdir()) == before


@pytest.mark.parametrize("stage", ["nothing", "start", "labelled", "undecided", "dataset"])
def test_partial_runs(tmp_path: Path, stage: str) -> None:
    run = RunDir(tmp_path / "run")
    if stage == "nothing":
        run.root.mkdir()
    elif stage == "dataset":
        write_run(run.root, rounds=1, trained=False)
    else:
        write_start(run, blocks=1)
        if stage != "start":
            write_block(run, run.round(0), 0)
        if stage == "undecided":
            run.round(0).decisions.path(0).unlink()
            run.round(0).triples.path(0).unlink()
    text = " ".join(_Page(render_report(run)).text.split())
    assert ("This run is not finished" in text) == (stage != "dataset")
    assert "no policy evaluated yet" in text


def test_samples_come_from_all_thirds_and_every_filter(run: RunDir) -> None:
    kept, dropped = read_excerpts(run)
    assert [each.group for each in kept] == (
        ["Low margin"] * 4 + ["Middle margin"] * 4 + ["High margin"] * 4
    )
    assert sorted(each.margin for each in kept) == [each.margin for each in kept]
    assert {name: len(each) for name, each in dropped.items()} == {"length_ratio": 3, "tie": 3}
    assert not any(each.decided for each in dropped["tie"])
    sample = kept[0]
    assert sample.votes[0].preferred == "chosen"
    assert sample.votes[0].first == "chosen"
    assert sample.votes[0].p_chosen == pytest.approx(0.9)
    assert sample.chosen.text.startswith("The fox carried")
    assert read_excerpts(run) == (kept, dropped)


def test_lots_are_the_lowest_ids_however_decisions_are_cut() -> None:
    """Of reasons that are seen early, late and seldom; a pair may be in two rounds."""
    draw = np.random.default_rng(0)
    ids = [f"{number:032x}" for number in draw.permutation(6_000)]
    reasons = draw.choice(["", "tie", "margin", "seldom"], 6_000, p=[0.5, 0.3, 0.199, 0.001])
    reasons[:2_000] = np.where(reasons[:2_000] == "margin", "tie", reasons[:2_000])
    rows = pa.table(
        {
            "pair_id": ids,
            "margin": draw.random(6_000),
            "kept": reasons == "",
            "reason": [reason or None for reason in reasons.tolist()],
            "part": np.arange(6_000) // 50,
        }
    )
    expected = {}
    for reason in ("tie", "margin", "seldom"):
        expected[reason] = sorted(np.array(ids)[reasons == reason].tolist())[:3]
    pool = sorted(np.array(ids)[reasons == ""].tolist())[:600]
    for size in (6_000, 700, 50):
        lots = PairLots()
        for start in range(0, 6_000, size):
            lots.add(rows.slice(start, size), round_index=0)
        kept, dropped = lots.drawn()
        assert [pick.pair_id for pick in kept] == pool
        found = {reason: [pick.pair_id for pick in picks] for reason, picks in dropped.items()}
        assert found == expected
        for pick in kept + dropped["seldom"]:
            place = ids.index(pick.pair_id)
            assert (pick.part, pick.margin) == (place // 50, rows["margin"][place].as_py())
    lots.add(rows.slice(0, 50), round_index=1)
    assert len(lots.drawn()[0]) == 600


def test_a_report_without_training_loads_no_settings_and_no_statistics(tmp_path: Path) -> None:
    """Each takes longer than to write the report of a small run."""
    run = write_run(tmp_path / "run", rounds=1, blocks=1, trained=False)
    slow = {"torch", "datasets", "scipy.stats", "sklearn", "statsmodels"}
    settings = {f"prefloop.{room}.config" for room in ("pipeline", "labelers", "training")}
    found = loaded_by(f"import prefloop\nprefloop.report({str(run.root)!r})")
    assert not found & (slow | settings)
    assert run.report.exists()


def test_pairs_that_the_strategy_left_are_not_called_dropped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=1, trained=False)
    decisions = run.round(0).decisions
    for index in decisions.indices():
        table = decisions.read(index)
        place = table.schema.get_field_index("reason")
        reasons = pc.replace_substring(table["reason"], "length_ratio", PAIR_STRATEGY)
        decisions.replace(index, table.set_column(place, table.schema.field(place), reasons))
    status = collect_status(run)
    assert status.as_dict()["rounds"][0]["dropped"][PAIR_STRATEGY] == 24
    page = " ".join(_Page(render_report(run)).text.split())
    assert "72 pairs = 24 kept + 24 not chosen by the pair strategy + 24 tie ✓ adds up" in page
    assert "24 pairs were dropped." in page
    assert "Not chosen by the pair strategy: 3 to read" in page
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_status(status))
    terminal = " ".join(console.export_text().split())
    assert "= kept 24 + not chosen by the pair strategy 24 + dropped 24 tie 24" in terminal
    assert PAIR_STRATEGY not in page + terminal


def test_a_vote_for_b_is_told_about_chosen_and_rejected(run: RunDir) -> None:
    lots = PairLots(per_reason=100)
    tally_run(run, lots)
    _, dropped = read_excerpts(run, lots)
    judged = [vote for each in dropped["tie"] for vote in each.votes if vote.labeler == JUDGE]
    flipped = [vote for vote in judged if vote.preferred == "rejected"]
    assert flipped
    assert all(vote.first == "rejected" for vote in flipped)  # it preferred what it saw first
    assert all(vote.p_chosen == pytest.approx(0.1) for vote in flipped)


def test_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=1, blocks=1, trained=False)
    table = run.round(0).candidates.read(0)
    texts = [text + "x" * 10_000 for text in table["text"].to_pylist()]
    place = table.schema.get_field_index("text")
    run.round(0).candidates.replace(0, table.set_column(place, "text", [texts]))
    page = render_report(run)
    assert "more characters" in page
    assert "x" * LONGEST_TEXT not in page


def test_thoughts_are_folded_apart_from_answers_and_votes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=1, blocks=1, trained=False)
    folder = run.round(0)
    for shards, thought, tokens in (
        (folder.candidates, f"what a policy thinks {HOSTILE}", 1234),
        (folder.votes, f"what a judge thinks {HOSTILE}", None),
    ):
        rows = shards.read(0).to_pylist()
        for row in rows[::2]:  # the others have none
            row |= {"reasoning": thought, "reasoning_tokens": tokens}
        shards.replace(0, pa.Table.from_pylist(rows, schema=shards.read(0).schema))

    kept, _ = read_excerpts(run)
    thoughts = [one.chosen.thought for one in kept] + [one.rejected.thought for one in kept]
    assert {one and (one.text, one.tokens) for one in thoughts} == {
        None, (f"what a policy thinks {HOSTILE}", 1234),
    }  # fmt: skip
    assert all("thinks" not in one.chosen.text for one in kept)

    page = render_report(run)
    parsed = _Page(page)  # nothing of what they hold is markup
    assert not parsed.tags & {"script", "img", "iframe", "i_judge"}
    for shown in ("what a policy thinks", "what a judge thinks"):
        folded = re.findall(
            r'<details class="thought"><summary>Thought[^<]*</summary>\s*<div class="text">'
            + shown,
            page,
        )
        assert len(folded) == page.count(shown) > 0
    assert "Thought, 1,234 tokens" in parsed.text


def test_prompts_are_counted_by_source(page: str, tmp_path: Path) -> None:
    assert "sources</summary>" not in page  # there is one
    run = write_run(tmp_path / "run", rounds=1, blocks=1, trained=False)
    rows = run.prompts.read(0).to_pylist()
    for place, row in enumerate(rows):
        row["source"] = "questions.jsonl" if place < 6 else f"<b>{place}</b>.csv"
    run.prompts.replace(0, pa.Table.from_pylist(rows, schema=PROMPT))
    parsed = _Page(render_report(run))
    assert "8 kept, of 3 sources" in parsed.text
    assert f"questions.jsonl6{percent(0.75)}" in parsed.text  # cells of a row of the table
    assert "<b>6</b>.csv" in parsed.text


def test_many_sources_are_added_up(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=1, blocks=8, trained=False)
    for block in run.prompts.indices():
        rows = run.prompts.read(block).to_pylist()
        named = [row | {"source": f"part-{row['row']:03d}.jsonl"} for row in rows]
        run.prompts.replace(block, pa.Table.from_pylist(named, schema=PROMPT))
    parsed = _Page(render_report(run))
    assert f"{8 * BLOCK - MOST_SOURCES} more{8 * BLOCK - MOST_SOURCES}" in parsed.text


def test_redact() -> None:
    config = {
        "engines": {"judge": {"api_key_env": "OPENAI_API_KEY", "max_tokens": 5}},
        "argilla": {"api_key": "abc", "url": "https://u:p@host/x?token=abc&page=2"},
        "list": ["sk-abcdefghijklmnopqrstuvwxyz", "plain"],
        "tokenizer": "folder",
    }
    assert redact(config) == {
        "engines": {"judge": {"api_key_env": "OPENAI_API_KEY", "max_tokens": 5}},
        "argilla": {"api_key": HIDDEN, "url": f"https://{HIDDEN}@host/x?token={HIDDEN}&page=2"},
        "list": [HIDDEN, "plain"],
        "tokenizer": "folder",
    }


def test_short_or_unrelated_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    monkeypatch.setenv("KEYBOARD_LAYOUT", "standard-german")
    assert hide_environment_secrets("EMPTY standard-german") == "EMPTY standard-german"


def test_length_bins_are_few_and_round() -> None:
    edges = length_bins([np.ones(501, np.int64), np.ones(30, np.int64)])
    assert len(edges) - 1 <= 26
    assert edges[1] == 50
    assert rebin(np.ones(501), edges).sum() == 501
    assert rebin(np.array([0, 0, 4]), length_bins([np.zeros(3)])).sum() == 4


def test_plots_of_nothing_and_of_much() -> None:
    empty = histogram(Words("empty", "Empty"), np.linspace(0, 1, 5), [Bars("a", np.zeros(4))])
    assert len(empty.rows) == 4
    steps = list(range(5_000))
    curve = lines(Words("long", "Long"), [Series("a", steps, [float(step) for step in steps])])
    assert len(curve.rows) <= 12
    assert curve.rows[-1] == ("4,999", "4,999")
    assert len(curve.svg) < 60_000


def test_policies_side_by_side(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert "The policies side by side" not in render_report(run)
    prompts = run.heldout.table().to_pylist()
    answers: dict[int, list[dict[str, Any]]] = {}
    for policy in (0, 2):
        rows = [candidates_of(prompt, policy)[policy] for prompt in prompts]
        answers[policy] = [
            row | {"sample_index": 0, "text": f"{HOSTILE} of policy {policy}"} for row in rows
        ]
        run.answers(policy).replace(0, pa.Table.from_pylist(answers[policy], schema=CANDIDATE))
    votes = [
        {
            "pair_id": f"{index}", "prompt_id": new["prompt_id"], "round": 1,
            "a_id": start["candidate_id"], "b_id": new["candidate_id"], "labeler": JUDGE,
            "order": "ab", "preference": ("b", "a", "tie", "invalid")[index],
            "prompt_tokens": 1, "completion_tokens": 1, "cost": 0.0,
        }
        for index, (start, new) in enumerate(zip(answers[0], answers[2], strict=True))
    ]  # fmt: skip
    run.match_votes(2, 0).replace(0, pa.Table.from_pylist(votes, schema=VOTE))

    shown = {one.prompt_id: one for one in read_side_by_side(run)}
    assert set(shown) == {prompt["prompt_id"] for prompt in prompts}
    for prompt, preferred in zip(prompts, ("new", "start", "tie", "invalid"), strict=True):
        one = shown[prompt["prompt_id"]]
        assert one.votes == ((JUDGE, preferred),)
        assert [answer.title for answer in one.answers] == [
            "The starting policy", "The policy of round 1",
        ]  # fmt: skip
        assert one.answers[1].text.endswith("of policy 2")
    parsed = _Page(render_report(run))
    assert "of policy 2" in parsed.text
    assert not parsed.tags & {"script", "img", "iframe", "object", "embed", "i_judge"}
