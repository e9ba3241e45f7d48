"""The whole way through a real Label Studio, in a browser too.

It is in an environment of its own: ``PREFLOOP_LABEL_STUDIO`` is the path of its command
(``pip install label-studio`` in a fresh virtual environment, ``bin/label-studio``).
``PREFLOOP_LABEL_STUDIO_URL`` is one that runs already, with the owner below."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from prefloop.pipeline import redecide as redeciding
from prefloop.pipeline.review.drawing import Drawing
from prefloop.pipeline.review.folder import ReviewFolder
from prefloop.pipeline.review.label_studio.importing import import_answers
from prefloop.pipeline.review.label_studio.tasks import export_tasks
from prefloop.pipeline.review.review_status import review_status
from prefloop.pipeline.review.subjects import RunSubjects
from tests.pipeline.review.decided_run import decided_run

COMMAND = os.environ.get("PREFLOOP_LABEL_STUDIO")
RUNNING = os.environ.get("PREFLOOP_LABEL_STUDIO_URL")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "0123456789abcdef0123456789abcdef01234567"
OWNER, PASSWORD = "owner@example.org", "owner-pass-1"
_START_S = 1_500
"""It makes its database first: minutes, on a busy machine."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3_000),
    pytest.mark.skipif(
        not (COMMAND or RUNNING), reason="PREFLOOP_LABEL_STUDIO names no label-studio"
    ),
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The owner of a server."""
    headers = {"Authorization": f"Token {TOKEN}"}
    if RUNNING:
        with httpx.Client(base_url=RUNNING, headers=headers, timeout=60) as client:
            yield client
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("label-studio")
    quiet = {"COLLECT_ANALYTICS": "False", "LATEST_VERSION_CHECK": "false", "SENTRY_DSN": "",
             "LABEL_STUDIO_BASE_DATA_DIR": str(home),
             "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true"}  # fmt: skip
    process = subprocess.Popen(
        [str(COMMAND), "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port),
         "--username", OWNER, "--password", PASSWORD, "--user-token", TOKEN],
        env=_without_ours() | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60
        ) as client:
            for _ in range(_START_S):
                assert process.poll() is None
                try:
                    if client.get("/api/current-user/whoami").is_success:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(1)
            yield client
    finally:
        process.terminate()
        process.wait()


def _without_ours() -> dict[str, str]:
    """The environment, in which it does not take our folders for modules of its own."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_whole_way(api: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redeciding, "write_report", lambda run: None)
    run = decided_run(tmp_path / "run")
    review = ReviewFolder(run.root / "review" / "label-studio")
    found = export_tasks(
        RunSubjects(run), review, Drawing(n=6, strategy="random"),
        overlap=2, source=str(run.root), is_run=True,
    )  # fmt: skip
    made = api.post(
        "/api/projects",
        json={"title": "pairs", "label_config": found.interface.read_text(encoding="utf-8"),
              "expert_instruction": found.instructions.read_text(encoding="utf-8"),
              "maximum_annotations": 2},
    )  # fmt: skip
    assert made.status_code == 201, made.text
    project = made.json()["id"]
    [file] = found.new
    files = {"file": (file.name, file.read_bytes(), "application/json")}
    sent = api.post(f"/api/projects/{project}/import", files=files)
    assert sent.json()["task_count"] == 6
    listed = api.get("/api/tasks", params={"project": project, "fields": "all"}).json()["tasks"]
    tasks = {task["data"]["pair_id"]: task["id"] for task in listed}
    bob = api.post(
        "/api/users", json={"email": f"{project}@example.org", "username": f"bob-{project}"}
    ).json()["id"]

    pairs = sorted(tasks)
    verdicts = dict(zip(pairs, ("a", "b", "tie", "both_bad", "a"), strict=False))
    for pair, verdict in verdicts.items():
        result = [
            {"from_name": "verdict", "to_name": "prompt", "type": "choices",
             "value": {"choices": [verdict]}},
            {"from_name": "reason", "to_name": "prompt", "type": "textarea",
             "value": {"text": ["so it is"]}},
        ]  # fmt: skip
        for person in ({}, {"completed_by": bob, "was_cancelled": verdict == "tie"}):
            answer = api.post(
                f"/api/tasks/{tasks[pair]}/annotations", json={"result": result, **person}
            )
            assert answer.status_code == 201, answer.text
    if CHROMIUM:
        _answer_by_keyboard(str(api.base_url), project, tasks[pairs[5]])
        verdicts[pairs[5]] = "b"

    for form in ("JSON", "JSON_MIN"):
        content = api.get(
            f"/api/projects/{project}/export",
            params={"exportType": form, "download_all_tasks": "true"},
        ).raise_for_status().content  # fmt: skip
        (export := tmp_path / f"{form}.json").write_bytes(content)
        taken = import_answers(review, [export], names={"1": "ann", str(bob): "bob"})
        assert taken.left_out == {}
        assert taken.statuses == {"submitted": len(verdicts) + 4, "discarded": 1}
        assert taken.people == {"ann": len(verdicts), "bob": 4}
        assert taken.new == (len(verdicts) + 5 if form == "JSON" else 0)
    responses = review.responses().to_pylist()
    assert {
        row["pair_id"]: row["verdict"] for row in responses if row["username"] == "ann"
    } == verdicts
    assert {row["reason"] for row in responses if row["username"] == "bob"} == {"so it is"}
    assert review_status(review).complete == 4


def _answer_by_keyboard(address: str, project: int, task: int) -> None:
    """What a model wrote is text, its spaces and lines as they are; key 2 says B."""
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as play:
        flags = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(f"{address}/user/login/")
        page.fill("input[name=email]", OWNER)
        page.fill("input[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "/user/login" not in url, wait_until="commit")
        page.goto(f"{address}/projects/{project}/data?task={task}&labeling=1")
        submit = page.get_by_test_id("bottombar-submit-button")
        submit.wait_for()
        text = page.locator(".lsf-richtext__container").first
        text.wait_for()
        assert text.evaluate("node => getComputedStyle(node).whiteSpace") == "pre-wrap"
        page.get_by_text("Both bad").wait_for()
        page.keyboard.press("2")
        expect(page.locator("input[type=radio]:checked")).to_have_count(1)
        with page.expect_response(
            lambda one: one.request.method == "POST" and "/annotations" in one.url
        ) as sent:
            submit.click()
        assert sent.value.status == 201
        browser.close()
