"""The house: who may import whom, how large a folder may be, and what a name stands for."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.processes.loading import loaded_by

ROOMS = {
    "data": set(),
    "labelers": {"data"},
    "training": {"data", "labelers"},
    "pipeline": {"data", "labelers", "training"},
}
"""The rooms, and those that each of them may import."""

ORDER = {
    "data": [
        "errors strict arrays hashing names utf8 yaml_files",
        "storage",
        "config protocol schemas shards quarantine packed_folder",
        "conversations",
        "embedded",
        "sources",
        "preferences prompts",
        "checks",
    ],
    "labelers": [
        "base people config refused_settings model_loading",
        "statistics",
        "judges scorers jury",
        "decisions",
        "factory",
    ],
    "training": [
        "errors method_names presets defaults config",
        "cluster",
        "inputs",
        "policy",
        "session",
        "trainers",
        "methods",
        "worker",
        "tiny",
    ],
    "pipeline": [
        "engines terminal blocking",
        "config",
        "machine",
        "executors",
        "remote",
        "run",
        "stages",
        "report checking",
        "tracking",
        "plan audit policies work final_evaluation loop redecide adoption label_data",
        "judging review relabel export publish sweep view",
        "results api starter",
        "commands",
    ],
}
"""What is in a room, floor by floor, the lowest first. What stands on a floor may import the floors
below it; modules of one floor may import each other too, folders of one floor may not."""

LARGEST_FOLDER = 16
MOST_PARAMETERS = 6

MANY_PARAMETERS = {
    **dict.fromkeys(
        [
            "pipeline.api.agreement",
            "pipeline.api.audit",
            "pipeline.api.compare",
            "pipeline.api.judge_eval",
            "pipeline.api.publish",
            "pipeline.api.relabel",
            "pipeline.api.train",
        ],
        "what a command does: one parameter for each of the command's options",
    ),
    "training.inputs.answers.read_answers": "what is read, as which tokens, how much, what it lost",
    "pipeline.engines.decoding.decoder.decode": "a batch, and what its engine knows of it",
    "pipeline.engines.policy_check.verify_policy": "how strict the check is, each with a default",
    "pipeline.review.server.argilla_lite.engine.DatabaseSearch.search": "Argilla's own signature",
}
"""Functions with more parameters, each with its reason."""


@dataclass(frozen=True)
class Module:
    """A module of the project. ``name`` is dotted, without ``prefloop``."""

    name: str
    path: Path

    @property
    def parts(self) -> list[str]:
        return self.name.split(".")

    @property
    def tree(self) -> ast.Module:
        return parsed(self.path)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def modules() -> dict[str, Module]:
    """Every module of the rooms by its name; a package is there by its own name."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path)
    return found


def imported_names(tree: ast.Module) -> Iterator[str]:
    """What a module imports of the project, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            if name.startswith("prefloop."):
                yield name.removeprefix("prefloop.")


@cache
def imports(name: str) -> frozenset[str]:
    """The modules that the module ``name`` imports, each the longest name that is a module."""
    found = set()
    for imported in imported_names(modules()[name].tree):
        while imported not in modules() and "." in imported:
            imported = imported.rpartition(".")[0]
        assert imported in modules(), f"{name} imports prefloop.{imported}, which is not there"
        found.add(imported)
    return frozenset(found - {name})


def edges() -> Iterator[tuple[list[str], list[str]]]:
    """Every import between two modules, as the parts of the two names."""
    for name, module in modules().items():
        for imported in imports(name):
            yield module.parts, imported.split(".")


# The rooms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_runs_back(room: str) -> None:
    offences = {
        f"{'.'.join(one)} imports {'.'.join(other)}"
        for one, other in edges()
        if one[0] == room and other[0] not in ROOMS[room] | {room}
    }
    assert not offences


def test_the_check_itself_sees_imports() -> None:
    assert {"data.shards", "pipeline.run.context"} <= imports("pipeline.stages.write")
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import prefloop.data.shards"
    inner = "def f():\n    from prefloop.data import shards"
    assert [*imported_names(ast.parse(guarded))] == ["data.shards"]
    assert [*imported_names(ast.parse(inner))] == ["data.shards"]


def test_imports_are_absolute() -> None:
    relative = [
        name
        for name, module in modules().items()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter({name: imports(name) for name in modules()}).prepare()
    except CycleError as circle:
        pytest.fail(" is imported by ".join(circle.args[1]))


# The folders in the rooms -----------------------------------------------------------------------


@pytest.mark.parametrize("room", ROOMS)
def test_every_part_of_a_room_has_its_floor(room: str) -> None:
    parts = {parts[1] for name in modules() if (parts := name.split("."))[1:] and parts[0] == room}
    assert parts <= {part for floor in ORDER[room] for part in floor.split()}


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_runs_up_within_a_room(room: str) -> None:
    floor_of = {part: at for at, floor in enumerate(ORDER[room]) for part in floor.split()}

    def allowed(part: str, imported: str) -> bool:
        if floor_of[part] == floor_of[imported]:
            loose = not any((ROOT / room / one).is_dir() for one in (part, imported))
            return loose or part == imported
        return floor_of[part] > floor_of[imported]

    offences = {
        f"{'.'.join(one)} imports {'.'.join(other)}"
        for one, other in edges()
        if one[0] == other[0] == room and min(len(one), len(other)) > 1
        if not allowed(one[1], other[1])
    }
    assert not offences


def test_the_argilla_server_knows_nothing_of_the_project() -> None:
    """It runs in a virtual environment of its own."""
    server = "pipeline.review.server"
    offences = {
        (name, imported)
        for name in modules()
        if name.startswith(server)
        for imported in imports(name)
        if not imported.startswith(server) and imported != "pipeline.review.errors"
    }
    assert not offences


@pytest.mark.parametrize("room", [*ROOMS, "tests"])
def test_no_folder_is_too_large_to_look_through(room: str) -> None:
    sizes: dict[Path, int] = defaultdict(int)
    for path in (ROOT / room).rglob("*.py"):
        sizes[path.parent.relative_to(ROOT)] += path.name != "__init__.py"
    assert not {str(folder): size for folder, size in sizes.items() if size > LARGEST_FOLDER}


def test_prefloop_holds_the_front_door_and_the_links_only() -> None:
    found = {path.name for path in (ROOT / "prefloop").iterdir()} - {"__pycache__"}
    assert found == {"__init__.py", "__main__.py", "py.typed", *ROOMS}
    assert {str((ROOT / "prefloop" / room).readlink()) for room in ROOMS} == {
        f"../{room}" for room in ROOMS
    }


@pytest.mark.parametrize("room", ROOMS)
def test_tests_mirror_the_rooms(room: str) -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in _python_files(f"tests/{room}")}
    assert not {str(folder) for folder in folders if not (ROOT / folder).is_dir()}


def _python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


# Names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", ROOMS)
def test_no_two_modules_of_a_room_have_one_name(room: str) -> None:
    named = [path for path in _python_files(room) if path.stem not in ("__init__", "__main__")]
    assert not _twice((path.stem, str(path.relative_to(ROOT))) for path in named)


def test_no_two_public_types_have_one_name() -> None:
    assert not _twice(
        (kind, name) for name, module in modules().items() for kind in _public_types(module.tree)
    )


def test_the_check_itself_sees_types() -> None:
    source = "class A: ...\nclass _B: ...\nCd = int | str\nEf: TypeAlias = int\nMOST = 3\n_Gh = int"
    assert _public_types(ast.parse(source)) == ["A", "Cd", "Ef"]


def _public_types(tree: ast.Module) -> list[str]:
    """Classes, and names that are assigned and written as types are."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            found += [name for name in names if name != name.upper() and name[0].isupper()]
    return [name for name in found if not name.startswith("_")]


def _twice(named: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for name, place in named:
        places[name].append(place)
    return {name: found for name, found in places.items() if len(found) > 1}


# Functions --------------------------------------------------------------------------------------


def test_functions_take_few_parameters() -> None:
    found = {
        f"{name}.{function}": count
        for name, module in modules().items()
        if name.split(".")[:2] not in (["pipeline", "commands"], ["training", "tiny"])
        for function, count in _parameters(module.tree)
        if count > MOST_PARAMETERS
    }
    assert not {name: count for name, count in found.items() if name not in MANY_PARAMETERS}
    assert not MANY_PARAMETERS.keys() - found.keys(), "these need no exception any more"


def _parameters(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every function and method by its name, with the number of its parameters but ``self``."""

    def visit(node: ast.AST, outer: tuple[str, ...], method: bool) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                own = child.args
                given = [*own.posonlyargs, *own.args, *own.kwonlyargs, own.vararg, own.kwarg]
                static = any(
                    isinstance(each, ast.Name) and each.id == "staticmethod"
                    for each in child.decorator_list
                )
                count = sum(each is not None for each in given) - (method and not static)
                yield ".".join((*outer, child.name)), count
                yield from visit(child, (*outer, child.name), method=False)
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, (*outer, child.name), method=True)
            else:
                yield from visit(child, outer, method)

    return visit(tree, (), method=False)


# Libraries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    ["prefloop.pipeline.commands.app", "prefloop.pipeline.config", "prefloop.pipeline.run.status"],
)
def test_light_modules_do_not_load_heavy_libraries(module: str) -> None:
    heavy = {"torch", "transformers", "trl", "vllm", "datasets", "matplotlib", "openai", "ray"}
    assert not loaded_by(f"import {module}") & heavy
