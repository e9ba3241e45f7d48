"""Pages of the docs site that are made from the code, or stand elsewhere in the repository.

MkDocs calls the functions named ``on_...`` while it builds (``hooks`` in mkdocs.yml).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

ELSEWHERE = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "measurements.md": "benchmarks/RESULTS.md",
}
"""Pages of the site that are other files of the repository."""

ROOMS = {
    "data": (
        "The nouns: prompts, candidates, votes, decisions, triples; reading and storing them.",
        ("schemas", "protocol", "errors", "prompts.load", "preferences.reader", "shards", "hashing",
         "prompts.dedup"),
    ),
    "labelers": (
        "Who prefers what, and what the votes add up to.",
        ("base", "factory", "judges.folder", "scorers.verifier", "scorers.reward_model",
         "decisions.pairs", "decisions.decide", "decisions.filters", "jury.rules",
         "jury.calibrator", "statistics.estimate", "statistics.winrate", "statistics.agreement",
         "statistics.dataset_accuracy", "statistics.review_draw"),
    ),
    "training": (
        "A round of training on what the labelers preferred.",
        ("config", "methods.offline", "methods.online", "methods.reinforcement", "methods.reward",
         "session.job", "session.fit", "session.method", "session.guards", "policy.checkpoints",
         "policy.logprobs", "trainers.losses"),
    ),
    "pipeline": (
        "The loop: engines, stages, the run directory, the report.",
        ("loop", "config", "engines.factory", "engines.settings", "run.run_dir", "run.models",
         "run.promotion", "run.round_guards", "redecide"),
    ),
}  # fmt: skip
"""What each room is for, and the modules of it that its page shows."""

_ROLE = re.compile(r":(?:py:)?(?:class|func|meth|mod|data|attr):(?=<code>)")
_LITERAL = re.compile(r"::(</p>\s*<(?:pre|div class=\"highlight))")


def api_page() -> str:
    """The public Python API: whatever ``prefloop.__all__`` has."""
    import prefloop

    public = [name for name in prefloop.__all__ if not name.startswith("_")]
    names = sorted(public, key=lambda name: (name[0].isupper(), name))  # calls before types
    rooms = "\n".join(f"- [{room}]({room}.md): {what}" for room, (what, _) in ROOMS.items())
    shown = "\n\n".join(
        f"::: prefloop.{name}\n    options:\n      heading_level: 2" for name in names
    )
    return (
        "# The Python API\n\n`import prefloop`: what the commands do, a call each, of the same "
        f"names.\n\n{shown}\n\n## The rooms\n\nWhat these calls are made of, room by room "
        f"([why rooms](../architecture.md)):\n\n{rooms}\n"
    )


def room_page(room: str) -> str:
    """The main modules of a room, from their docstrings."""
    what, modules = ROOMS[room]
    parts = [
        f"::: prefloop.{room}.{name}\n    options:\n      heading_level: 2" for name in modules
    ]
    return f"# prefloop.{room}\n\n{what}\n\n" + "\n\n".join(parts) + "\n"


def commands_page() -> str:
    """The help of every command."""
    import typer
    from typer.cli import get_docs_for_click

    from prefloop.pipeline.commands.app import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="prefloop")
    return get_docs_for_click(obj=command, ctx=context, name="prefloop", title="Every command")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    made = {"api/index.md": api_page(), "commands.md": commands_page()}
    made |= {f"api/{room}.md": room_page(room) for room in ROOMS}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for name, path in ELSEWHERE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between pages that stand in different folders of the repository meet here too."""
    del config, files
    origin = ELSEWHERE.get(page.file.src_uri)
    prefix = "docs/" if origin else ""
    if origin:
        to_docs = "../" * origin.count("/") + prefix
        markdown = markdown.replace(f"]({to_docs}", "](")
    for name, path in ELSEWHERE.items():
        markdown = markdown.replace(f"](../{path}", f"]({name}").replace(f"]({path}", f"]({name}")
    return markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings name things as Sphinx does; on a page, the name alone is what says something."""
    del page, config, files
    return _LITERAL.sub(r":\1", _ROLE.sub("", html))
