"""The page in a real browser: hostile text stays text, filters and keys work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

import prefloop
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.synthetic_run import HOSTILE, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PICTURES = os.environ.get("PREFLOOP_PICTURES")
"""Folder for screenshots, for the documentation."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return write_run(tmp_path_factory.mktemp("browser") / "run")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=["file", "server"])
def address(request: pytest.FixtureRequest, run: RunDir, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield prefloop.view(run.root, html=tmp_path / "page.html").as_uri()
    else:
        with prefloop.view(run.root) as server:
            yield server.url


class Opened:
    """The page, and what it did that it should not."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.page: Page = browser.new_page(viewport={"width": 1440, "height": 900})
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.page.on("dialog", self._dialog)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("console", lambda said: self.faults.append(f"console: {said.text}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("#list li")
        self.page.wait_for_selector(".answers")

    def _dialog(self, dialog: Any) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def count(self, expected: str) -> None:
        from playwright.sync_api import expect

        expect(self.page.locator("#count")).to_have_text(expected)

    def pick(self, name: str, value: str) -> None:
        self.page.locator(f"select[name={name}]").select_option(value)


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Opened]:
    found = Opened(browser, address)
    yield found
    assert not found.faults
    begin = address.rpartition("/")[0] + "/"
    assert all(url.startswith((begin, "data:")) for url in found.asked)
    found.page.close()


def test_hostile_text_is_shown_and_never_run(opened: Opened) -> None:
    page = opened.page
    page.locator("input[name=search]").fill("fox 0. use")
    opened.count("1–6 of 6 pairs")
    for _ in range(6):
        page.keyboard.press("Escape")
        page.wait_for_selector(".vote")
        body = page.locator("main").inner_text()
        assert HOSTILE in page.locator(".turn .text").first.inner_text()
        assert HOSTILE in body
        page.keyboard.press("o")
        page.keyboard.press("j")
    assert page.locator("svg, img, main script, main i").count() == 0
    assert page.locator("script").count() == 2


def test_a_script_put_into_the_page_does_not_run(browser: Browser, address: str) -> None:
    """Even where text were made markup: the page's policy allows its own script alone."""
    opened = Opened(browser, address)
    opened.page.evaluate(
        """() => {
            document.getElementById("pair").innerHTML = "<img src=x onerror='window.ran = 1'>";
            const script = document.createElement("script");
            script.textContent = "window.ran = 2";
            document.body.append(script);
            return fetch("https://example.invalid/").catch(() => null);
        }"""
    )
    assert opened.page.evaluate("window.ran") is None
    assert opened.faults
    assert all("Content Security Policy" in fault for fault in opened.faults)
    opened.page.close()


def test_filters_narrow_the_list(opened: Opened) -> None:
    page = opened.page
    opened.count("1–50 of 144 pairs")
    opened.pick("fate", "length_ratio")
    opened.count("1–48 of 48 pairs")
    assert set(page.locator("#list .fate").all_inner_texts()) == {"length_ratio"}
    opened.pick("round", "1")
    opened.count("1–24 of 24 pairs")
    opened.pick("fate", "kept")
    page.locator("summary", has_text="Ranges").click()
    page.locator("input[name=margin_min]").fill("0.7")
    opened.count("1–12 of 12 pairs")
    opened.pick("split", "test")
    opened.count("1–2 of 2 pairs")
    page.locator("input[name=search]").fill("no such words")
    opened.count("No pair is like that")
    assert page.locator("main").inner_text() == ""
    page.get_by_role("button", name="Clear").click()
    opened.count("1–50 of 144 pairs")


def test_what_the_pair_strategy_did_not_choose_is_no_loss(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for folder in run.rounds():
        for part in folder.decisions.indices():
            rows = folder.decisions.read(part).to_pylist()
            for row in rows:
                row["reason"] = "pair_strategy" if row["reason"] == "tie" else row["reason"]
            folder.decisions.replace(part, pa.Table.from_pylist(rows, folder.decisions.schema))
    opened = Opened(browser, prefloop.view(run.root, html=tmp_path / "page.html").as_uri())
    opened.pick("fate", "dropped")
    opened.count("1–48 of 48 pairs")
    opened.pick("fate", "pair_strategy")
    opened.count("1–48 of 48 pairs")
    page = opened.page
    page.wait_for_function("() => !document.querySelector('#list .fate.dropped')")
    assert set(page.locator("#list .fate").all_inner_texts()) == {"not chosen"}
    said = page.locator("main > .line").inner_text()
    assert said.startswith("Not chosen by the pair strategy")
    opened.page.close()


def test_pairs_are_sorted(opened: Opened) -> None:
    page = opened.page
    opened.pick("fate", "kept")
    opened.pick("sort", "margin")
    page.get_by_label("highest first").check()
    opened.count("1–48 of 48 pairs")
    page.wait_for_function(
        """() => {
            const figures = [...document.querySelectorAll("#list .facts span:first-child")];
            const margins = figures.map((node) => Number(node.innerText.replace("margin ", "")));
            return margins.length === 48 && margins[0] === 1 && margins[47] === 0.25
                && margins.every((margin, at) => at === 0 || margin <= margins[at - 1]);
        }"""
    )


def test_the_keyboard_is_enough(opened: Opened) -> None:
    page = opened.page
    current = page.locator("#list button[aria-current=true]")

    def place() -> int:
        return int(
            current.evaluate("node => [...node.closest('ol').children].indexOf(node.parentNode)")
        )

    assert place() == 0
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert place() == 2
    page.keyboard.press("k")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("k")  # there is none before the first
    assert place() == 0
    for _ in range(50):
        page.keyboard.press("j")
    opened.count("51–100 of 144 pairs")
    page.wait_for_function("document.querySelector('#list button[aria-current=true]')")
    assert place() == 0
    page.keyboard.press("k")
    opened.count("1–50 of 144 pairs")
    page.wait_for_function(
        "document.querySelector('#list li:last-child button').ariaCurrent === 'true'"
    )
    page.keyboard.press("/")
    page.keyboard.type("fox 1. j?")  # keys are letters in a field
    assert page.evaluate("document.activeElement.name") == "search"
    assert page.locator("input[name=search]").input_value() == "fox 1. j?"
    opened.count("No pair is like that")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_differences_can_be_left_unmarked_and_folds_opened(opened: Opened) -> None:
    page = opened.page
    marked = """wanted => {
        const mark = document.querySelector(".chosen mark");
        return mark && getComputedStyle(mark).textDecorationLine.includes("underline") === wanted;
    }"""
    opened.pick("fate", "kept")
    opened.count("1–48 of 48 pairs")
    page.wait_for_function(marked, arg=True)
    page.locator("main").focus()
    page.keyboard.press("d")
    page.wait_for_function(marked, arg=False)
    assert page.locator("details[open] .ids").count() == 0
    page.keyboard.press("o")
    page.wait_for_selector("details[open] .ids >> text=policy@abc")
    page.keyboard.press("j")
    page.wait_for_selector("details[open] .ids")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_has_enough_contrast_and_every_part_a_name(
    browser: Browser, run: RunDir, tmp_path: Path, scheme: Any
) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    page.goto(prefloop.view(run.root, html=tmp_path / "page.html").as_uri())
    page.wait_for_selector(".answers")
    page.keyboard.press("o")
    lowest = page.evaluate(CONTRAST)
    assert lowest["ratio"] >= 4.5, lowest
    for role, name in (
        ("search", "Which pairs"), ("navigation", "Pairs"), ("main", "The pair"),
        ("region", "Prompt"), ("region", "Votes"),
    ):  # fmt: skip
        assert page.get_by_role(role, name=name).count() == 1  # type: ignore[arg-type]
    unnamed = "nodes => nodes.filter(n => !n.labels?.length && !n.ariaLabel).length"
    assert page.locator("input, select").evaluate_all(unnamed) == 0
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"pairs-{scheme}.png")
    page.close()


CONTRAST = """() => {
    const channels = (color) => {
        const canvas = document.createElement("canvas").getContext("2d");
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = (color) => {
        const [r, g, b] = color.slice(0, 3).map((value) => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const found = channels(getComputedStyle(at).backgroundColor);
            if (found[3] === 255) return found;
        }
        return [255, 255, 255, 255];
    };
    let lowest = { ratio: 99, text: "" };
    for (const node of document.querySelectorAll("body *")) {
        const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
        if (!own || !node.checkVisibility() || node.disabled) continue;
        const [one, other] = [light(channels(getComputedStyle(node).color)), light(paper(node))];
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (ratio < lowest.ratio) lowest = { ratio, text: node.outerHTML.slice(0, 200) };
    }
    return lowest;
}"""
"""The lowest contrast of a text with what is behind it, as WCAG counts it."""
