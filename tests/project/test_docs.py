"""The docs say what is so: made pages are current, examples work, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import TypeAdapter

from prefloop.labelers.config import LabelerConfig
from prefloop.labelers.judges.settings import JudgeSettings
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.engines.settings import EngineConfig
from prefloop.pipeline.label_data import label_config
from tests.helpers.markdown import Fenced, anchors, fenced, inline_code, relative_links
from tests.helpers.paths import ROOT

DOCS = ROOT / "docs"
HISTORY = ROOT / "CHANGELOG.md"
"""Names what is gone, too."""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCED = [block for page in PAGES for block in fenced(page)]
COMMAND_LINE = re.compile(r"^(?:\.venv/bin/)?prefloop (?P<arguments>.*)$")
OUR_PATH = re.compile(
    r"(?:data|labelers|training|pipeline|prefloop|tests|docs|examples|benchmarks)/[\w./-]*"
)
ENGINES = ("default", "policy", "judge", "server", "other")
"""Names of engines that parts of configs take for granted."""


def command_lines(block: Fenced) -> Iterator[list[str]]:
    for line in block.text.replace("\\\n", " ").splitlines():
        if found := COMMAND_LINE.match(line):
            words = shlex.split(found["arguments"], comments=True)
            yield words[: words.index(">")] if ">" in words else words


LINES = [
    pytest.param(words, id=f"{block}-{' '.join(words[:2])}")
    for block in FENCED
    if block.language in ("", "sh", "bash", "console")
    for words in command_lines(block)
]
INLINE_LINES = [
    pytest.param(code, id=f"{page.name}-{code}")
    for page in PAGES
    for code in dict.fromkeys(inline_code(page))
    if COMMAND_LINE.match(code)
]


def blocks_in(language: str) -> list[Any]:
    return [pytest.param(one, id=str(one)) for one in FENCED if one.language == language]


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that ``words`` name, and what is left for it."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def test_the_config_page_is_current() -> None:
    script = "import sys; sys.path.insert(0, 'docs'); import make_config as m; print(m.page())"
    made = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=DOCS.parent
    ).stdout
    assert made.strip() == (DOCS / "config.md").read_text(encoding="utf-8").strip(), (
        "run: python docs/make_config.py"
    )


def test_the_tables_on_choosing_are_current() -> None:
    """What `prefloop plan` says of the same runs today."""
    written = (DOCS / "choosing.md").read_text(encoding="utf-8")
    made = importlib.import_module("docs.make_tables").page(written)
    assert made == written, "run: python docs/make_tables.py"


@pytest.mark.parametrize("words", LINES)
def test_a_command_line_is_one_that_prefloop_takes(words: list[str]) -> None:
    command, rest = find_command(words)
    command.make_context("prefloop", list(rest))


@pytest.mark.parametrize("code", INLINE_LINES)
def test_a_command_in_prose_has_the_name_and_options_of_one(code: str) -> None:
    words = [word for word in shlex.split(code)[1:] if word != "..."]
    command, rest = find_command(words)
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known


@pytest.mark.parametrize("block", blocks_in("python"))
def test_python_in_the_docs_uses_what_there_is(block: Fenced) -> None:
    tree = ast.parse(block.text)
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), str(block), "exec"), names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = names.get(node.value.id)
            assert owner is None or hasattr(owner, node.attr), ast.unparse(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (called := _called(node.func, names)):
            positional = [None for _ in node.args]
            named = {each.arg: None for each in node.keywords if each.arg}
            inspect.signature(called).bind(*positional, **named)


def _called(function: ast.expr, names: dict[str, Any]) -> Any:
    """The function of ours that is called, if it is one."""
    found: Any = None
    if isinstance(function, ast.Name):
        found = names.get(function.id)
    elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        found = getattr(names.get(function.value.id), function.attr, None)
    ours = str(getattr(found, "__module__", "")).startswith("prefloop")
    return found if ours and inspect.isfunction(found) else None


def test_something_in_the_readme_is_run() -> None:
    assert any(block.runs for block in FENCED if block.page.name == "README.md")


@pytest.mark.slow
@pytest.mark.parametrize("block", [pytest.param(b, id=str(b)) for b in FENCED if b.runs])
def test_an_example_runs(block: Fenced, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", block.text], cwd=tmp_path, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("block", blocks_in("yaml"))
def test_yaml_in_the_docs_is_valid(block: Fenced) -> None:
    given = yaml.safe_load(block.text)
    if isinstance(given, list):
        given = {"label": {"labelers": given}}
    if "labelers" in given:
        label_config(given, {"path": "data.parquet"}, "out")
    elif "parser" in given or "kind" in given:
        TypeAdapter(JudgeSettings).validate_python(given)
    elif "type" in given:
        engines = given.pop("engines", {})
        TypeAdapter(dict[str, EngineConfig]).validate_python(engines)
        assert TypeAdapter(LabelerConfig).validate_python(given).engine in engines
    else:
        assert given.keys() <= RunConfig.model_fields.keys()
        validate_config(_completed(given), str(block))


def _completed(part: dict[str, Any]) -> dict[str, Any]:
    """A whole config around a part of one."""
    named = part.get("label", {}).get("jury", {}).get("reliability", {"verifier": 1})
    whole: dict[str, Any] = {
        "engines": {name: {"type": "transformers"} for name in ENGINES},
        "prompts": {"train": {"path": "embedded:prompts"}},
        "label": {"labelers": [{"type": "verifier", "name": name} for name in named]},
    }
    for key, value in part.items():
        whole[key] = {**whole.get(key, {}), **value} if isinstance(value, dict) else value
    return whole


@pytest.mark.parametrize("page", [*PAGES, HISTORY], ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    made = {DOCS / "commands.md", DOCS / "api"}  # by docs/make_site.py
    for link in relative_links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not made & {target, target.parent}:
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = [code for code in inline_code(page) if OUR_PATH.fullmatch(code)]
    missing = [code for code in named if "NAME" not in code and not (ROOT / code).exists()]
    assert not missing


def test_every_page_stands_in_the_site_s_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert pages <= set(re.findall(r": ([\w/-]+\.md)$", menu, re.M))


def test_every_page_is_linked_from_the_start_page() -> None:
    start = DOCS / "index.md"
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in relative_links(start)}
    assert {page for page in DOCS.rglob("*.md") if page != start} <= linked


def test_the_api_pages_name_modules_that_are_there() -> None:
    rooms = importlib.import_module("docs.make_site").ROOMS
    for room, (_, modules) in rooms.items():
        for module in modules:
            assert (ROOT / room / f"{module.replace('.', '/')}.py").is_file(), module


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "api" / "index.html").is_file()
