"""The files that decide what a verifier's function says, found without running any of them."""

from __future__ import annotations

import site
import sys
import sysconfig
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import find_spec
from modulefinder import ModuleFinder
from pathlib import Path

from prefloop.labelers.scorers.function_process import search_here


def function_files(function: str) -> list[Path]:
    """The file that ``module:function`` is in, and those of modules of one's own that it imports,
    directly or through others: of the working directory and of other folders that Python looks in,
    but for what is installed. A module that is only named when the function is called is not seen.

    Empty where there is no such file: calling the function says what is wrong.
    """
    search_here()
    module = function.partition(":")[0]
    first, *rest = module.split(".")
    try:
        spec = find_spec(first)
        for end in range(len(rest)):
            name = ".".join((first, *rest[: end + 1]))
            spec = spec and PathFinder.find_spec(name, spec.submodule_search_locations)
    except (ImportError, ValueError, AttributeError):
        return []
    file = Path(spec.origin) if spec and spec.origin else None
    if file is None or not file.is_file():
        return []
    return sorted({file.resolve(), *_imported(module)})


def _imported(module: str) -> set[Path]:
    """The files that are read when one's own ``module`` is imported, its own among them."""
    finder = ModuleFinder(_own_folders(), excludes=["prefloop"])
    # Then what was found until then: importing it for real says what is wrong. What is in a folder
    # without __init__.py is no module to the finder (AttributeError), and is read no further.
    with suppress(ImportError, SyntaxError, ValueError, OSError, AttributeError):
        finder.import_hook(module)
    named = (getattr(found, "__file__", None) for found in finder.modules.values())
    files = [Path(name) for name in named if name]
    return {file.resolve() for file in files if file.suffix == ".py"}


def _own_folders() -> list[str]:
    found = sysconfig.get_paths()
    of_python = [found[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed = [
        Path(path).resolve()
        for path in (*of_python, *site.getsitepackages(), site.getusersitepackages())
    ]
    folders = [Path(entry).resolve() for entry in sys.path]
    return [
        str(folder)
        for folder in folders
        if folder.is_dir() and not any(folder.is_relative_to(path) for path in installed)
    ]
