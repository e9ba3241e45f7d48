"""Names that become files stay in their folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from prefloop.data.names import name_problem
from prefloop.labelers.base import LabelerError
from prefloop.labelers.judges.folder import SHIPPED, load_judge
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import ConfigError, validate_config
from tests.helpers.runs import JUDGE

BAD = [
    "../out", "/etc/passwd", "a/b", "a\\b", "..", ".hidden", "a\x00b", "a\nb", "x" * 65, "", "  ",
    "a\u202eb", "\u4e00" * 90, "a/../b", "\udc80", "x\u2028y", "a..b",
]  # fmt: skip


@given(st.text(max_size=70))
@example("ordinary name (2)")
@example("..")
@example("0\xa0")
def test_a_name_without_a_problem_is_one_part_of_a_path(name: str) -> None:
    if name_problem(name) is None:
        assert Path(name).name == name
        assert (Path("/folder") / name).resolve().parent == Path("/folder")
        assert name.isprintable() or " " in name


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused_everywhere(name: str, tmp_path: Path) -> None:
    assert name_problem(name)
    good = {"prompts": {"train": {"path": "embedded:prompts"}}, "label": {"labelers": [JUDGE]}}
    with pytest.raises(ConfigError, match="name"):
        validate_config({**good, "label": {"labelers": [{**JUDGE, "name": name}]}}, "c.yaml")
    engines = {"default": {"type": "transformers"}, name: {"type": "transformers"}}
    with pytest.raises(ConfigError, match="engines"):
        validate_config({**good, "engines": engines}, "c.yaml")
    for command in (
        ["review", "user", "--", name],
        ["review", "push", str(tmp_path), f"--name={name}"],
    ):
        if name or command[1] == "user":
            assert CliRunner().invoke(app, command).exit_code != 0
    assert not any(tmp_path.iterdir())


def test_principles_stay_in_the_judges_folder(tmp_path: Path) -> None:
    judge = tmp_path / "judge"
    judge.mkdir()
    shipped = next(one for one in SHIPPED.iterdir() if (one / "principles.yaml").exists())
    (judge / "prompt.jinja").write_text((shipped / "prompt.jinja").read_text())
    settings = (shipped / "judge.yaml").read_text()
    (tmp_path / "secret.yaml").write_text("[key one, key two]")
    (judge / "linked.yaml").symlink_to(tmp_path / "secret.yaml")
    (judge / "own.yaml").write_text("[be kind]")

    def principles(file: str) -> tuple[str, ...]:
        lines = [one for one in settings.splitlines() if not one.startswith("principles:")]
        (judge / "judge.yaml").write_text("\n".join([*lines, f"principles: {file}"]))
        return load_judge(str(judge)).principles

    assert principles("own.yaml") == ("be kind",)
    for file in ("../secret.yaml", str(tmp_path / "secret.yaml"), "linked.yaml"):
        with pytest.raises(LabelerError, match="leads out of the judge's folder"):
            principles(file)
