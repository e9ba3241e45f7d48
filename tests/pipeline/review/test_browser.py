"""A person in a browser: signs in, reads, answers by keyboard."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from prefloop.pipeline.review.folder import ReviewFolder
from prefloop.pipeline.review.pull import pull
from prefloop.pipeline.review.push import PushOptions, push
from prefloop.pipeline.review.subjects import DatasetSubjects
from prefloop.pipeline.review.users import add_person
from tests.helpers.argilla_server import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PICTURES = os.environ.get("PREFLOOP_PICTURES")
"""Folder for screenshots, for the documentation."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


def test_a_person_answers_by_keyboard(argilla: Server, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    breaks = "document.title='broken'"
    evil = f'<img src=x onerror="{breaks}">'
    worse = f"<b>it</b> &lt;reflects&gt; <script>{breaks}</script>"
    rows = [
        {"prompt": "Why is the sky blue?", "chosen": f"Because of scattering. {evil}",
         "rejected": f"**Because** {worse} the sea.", "row": 1},
        {"prompt": "空はなぜ青いのですか？", "chosen": "散乱のためです。",
         "rejected": "海の色です。"},
    ]  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    folder = ReviewFolder(tmp_path / "review")
    name = f"browser-{tmp_path.name}"[:60]
    review = push(
        argilla.api, DatasetSubjects(str(file)), folder,
        PushOptions(name=name, n=2, strategy="random", overlap=1),
        source=str(file), is_run=False,
    )  # fmt: skip
    secret = json.loads(
        add_person(argilla.api, f"dora-{tmp_path.name}"[:40], "prefloop", tmp_path / "d.json")
        .read_text()
    )  # fmt: skip
    pictures = Path(PICTURES) if PICTURES else tmp_path
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{argilla.url}/sign-in")
        page.locator("input[name=Username]").fill(secret["username"])
        page.locator("input[name=Password]").fill(secret["password"])
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{argilla.url}/")
        expect(page.get_by_text(name)).to_be_visible(timeout=30_000)
        page.screenshot(path=pictures / "datasets.png")
        page.goto(f"{argilla.url}/dataset/{review.dataset_id}/annotation-mode")
        question = page.get_by_text("Which answer is better?")
        expect(question).to_be_visible(timeout=30_000)
        expect(page.get_by_text("A is better")).to_be_visible()
        page.wait_for_timeout(1_000)
        page.screenshot(path=pictures / "annotate.png")
        assert page.title() != "broken"
        # A model's output is text: neither in the page nor in a frame is it anything else.
        assert page.locator("img[src='x'], iframe, .sandbox, b:text-is('it')").count() == 0
        body = page.locator("body").inner_text().replace("\u2060", "")
        for text in (evil, worse, "**Because**"):
            assert text in body
        page.keyboard.press("1")  # the first label: A is better
        page.wait_for_timeout(500)
        page.screenshot(path=pictures / "answered.png")
        with page.expect_response(lambda answer: "/responses" in answer.url) as sent:
            page.keyboard.press("Enter")
        assert sent.value.ok, sent.value.text()
        browser.close()
    found = pull(argilla.api, folder)
    assert found.statuses == {"submitted": 1}
    [response] = folder.responses().to_pylist()
    assert (response["username"], response["verdict"]) == (secret["username"], "a")
