"""The wheel, installed beside a user's project that has packages named like the four rooms."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest

from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

ROOMS = ("data", "labelers", "training", "pipeline")

ELSEWHERE = {
    "prefloop.pipeline.review.server.argilla_lite.engine": "runs in the server's environment",
}
"""Modules that are not for import in prefloop's own environment."""

IMPORT_ALL = """
import importlib, json, pkgutil, sys
import prefloop

def fail(name):
    raise

skipped = set(sys.argv[1:])
names = [each.name for each in pkgutil.walk_packages(prefloop.__path__, "prefloop.", onerror=fail)]
files = {name: importlib.import_module(name).__file__ for name in names if name not in skipped}
files["prefloop"] = prefloop.__file__
rooms = sorted({"data", "labelers", "training", "pipeline"} & set(sys.modules))
print(json.dumps({"files": files, "rooms": rooms}))
"""

RULE = '''
"""The user's own rule: shorter is better. The quarter shows whose scores these are."""


def score(text, *, messages, reference, metadata):
    return 0.25 - len(text)
'''

CONFIG = """
run_dir: runs/small
seed: 3
block_size: 4
prompts:
  train: {path: "embedded:prompts", limit: 6}
  heldout: {path: "embedded:heldout", limit: 2}
sample: {n: 3, max_tokens: 40}
label:
  labelers:
    - {type: verifier, name: rule, function: "data.rules:score"}
filter: {filters: [{type: identical}]}
train: {batch_size: 2, learning_rate: 1.0e-4, accelerate: accelerate.yaml}
"""

ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_processes: 2
num_machines: 1
machine_rank: 0
use_cpu: true
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_cpu_ram_efficient_loading: false
"""


@dataclass(frozen=True)
class Project:
    """A user's folder, and the fresh environment in which the wheel is installed."""

    folder: Path
    environment: Path

    @property
    def python(self) -> str:
        return str(self.environment / "bin" / "python")

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment as a user does, from the project's folder."""
        program = self.environment / "bin" / command[0]
        return run([str(program), *command[1:]], self.folder)


def run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """What the command printed; nothing of the checkout is on its path."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=own, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build in: a build leaves folders behind, and what an older one left goes along."""
    copy = tmp_path_factory.mktemp("checkout") / "prefloop"
    ignored = shutil.ignore_patterns(
        ".*", "venv", "build", "dist", "runs", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(checkout, tmp_path_factory.mktemp("wheel"), "--wheel")[0]


def install(wheel: Path, project: Project) -> None:
    """Make the project's environment, with the wheel alone in it."""
    venv.create(project.environment, symlinks=True)
    run(
        [sys.executable, "-m", "pip", "--python", project.python, "--quiet", "install",
         "--no-index", "--no-deps", str(wheel)],
        project.folder,
    )  # fmt: skip


def trap(package: str) -> str:
    """A package of the user's that nothing of ours may import."""
    return f"raise ImportError('{package} of the user was imported')\n"


def built(source: Path, out: Path, *what: str) -> list[Path]:
    """What ``python -m build`` makes of ``source``, with the tools of this environment."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *what]
    run([*command, str(source)], out)
    return sorted(out.iterdir())


@pytest.fixture(scope="module")
def project(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder, environment = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("fresh")
    for room in ROOMS:
        (folder / room).mkdir()
        (folder / room / "__init__.py").write_text("" if room == "data" else trap(room))
    (folder / "data" / "rules.py").write_text(RULE)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "accelerate.yaml").write_text(ACCELERATE)

    made = Project(folder, environment)
    install(wheel, made)
    # Third-party packages come from the environment of the tests. The folders are plain entries of
    # sys.path, so its own .pth files, and with them an editable prefloop, do not count.
    paths = sysconfig.get_paths()
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    theirs = Path(made.call("python", "-c", asked).stdout.strip())
    (theirs / "third_party.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n")
    return made


@pytest.fixture(scope="module")
def finished(project: Project, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """One round, with a verifier of the user's and a launched training, where the user also has a
    package named like a library that we use."""
    folder = tmp_path_factory.mktemp("runs") / "project"
    shutil.copytree(project.folder, folder)
    (folder / "datasets").mkdir()
    (folder / "datasets" / "__init__.py").write_text(trap("datasets"))
    Project(folder, project.environment).call("prefloop", "run", "config.yaml")
    return RunDir(folder / "runs" / "small")


def files_in(package: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(package, followlinks=True):
        folders[:] = [each for each in folders if each != "__pycache__"]
        for file in files:
            yield str((Path(folder) / file).relative_to(package.parent))


def files_of(wheel: Path) -> tuple[set[str], str]:
    """The package's files, and the folder of the wheel's own records."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    [records] = {name.partition("/")[0] for name in names} - {"prefloop"}
    return {name for name in names if name.startswith("prefloop/")}, records


def test_the_wheel_holds_prefloop_whole_and_nothing_else(wheel: Path) -> None:
    files, records = files_of(wheel)
    assert records.startswith("prefloop-")
    assert records.endswith(".dist-info")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"{records}/top_level.txt").decode().split() == ["prefloop"]
    assert files == set(files_in(ROOT / "prefloop"))
    assert files >= {
        "prefloop/py.typed",
        "prefloop/data/embedded/prompts.jsonl",
        "prefloop/data/embedded/models/policy/model.safetensors",
        "prefloop/labelers/judges/shipped/pairwise/prompt.jinja",
        "prefloop/pipeline/templates/report.html.jinja",
        "prefloop/pipeline/review/server/requirements.txt",
    }


def test_a_source_distribution_gives_the_same_wheel(
    checkout: Path, wheel: Path, tmp_path: Path
) -> None:
    """Without options, ``build`` makes the wheel from the source distribution."""
    from_source, source = built(checkout, tmp_path)
    assert source.name.endswith(".tar.gz")
    assert files_of(from_source) == files_of(wheel)


def test_every_module_can_be_imported_beside_the_users_packages(project: Project) -> None:
    done = project.call("python", "-c", IMPORT_ALL, *ELSEWHERE)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rooms"] == []
    assert len(found["files"]) > 200
    installed = str(project.environment.resolve())
    for name, file in found["files"].items():
        assert file.startswith(installed), name


def test_a_verifier_is_the_users_own_function(finished: RunDir) -> None:
    votes = finished.round(0).votes.table()
    lengths = {
        row["candidate_id"]: len(row["text"])
        for row in finished.round(0).candidates.table().to_pylist()
    }
    assert len(votes)
    for vote in votes.to_pylist():
        assert vote["score_a"] == 0.25 - lengths[vote["a_id"]]


def test_training_was_launched_from_the_users_folder(finished: RunDir) -> None:
    [trained] = [note for note in finished.notes() if note["stage"] == "train"]
    assert trained["accelerate"]
    assert (finished.round(0).policy / "model.safetensors").is_file()
    assert finished.report.is_file()


def test_the_command_answers(project: Project) -> None:
    assert "Usage: prefloop [OPTIONS] COMMAND" in project.call("prefloop", "--help").stdout


def test_types_are_found(wheel: Path, tmp_path: Path) -> None:
    """Without third-party packages, in whose sources mypy would spend minutes."""
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", tmp_path / "fresh")
    install(wheel, project)
    file = project.folder / "typed.py"
    file.write_text(
        "import prefloop\n"
        "from prefloop.data.hashing import derive_seed\n\n"
        "reveal_type(derive_seed(1))\n"
        "reveal_type(prefloop.load_config('config.yaml').seed)\n"
        "reveal_type(prefloop.run('config.yaml'))\n"
    )
    done = run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", project.python,
         "--cache-dir", str(tmp_path / "cache"), file.name],
        project.folder,
    )  # fmt: skip
    revealed = re.findall(r'Revealed type is "([^"]+)"', done.stdout)
    assert revealed == ["int", "int", "prefloop.pipeline.results.Run"]


def test_one_version(wheel: Path, project: Project) -> None:
    _, records = files_of(wheel)
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{records}/METADATA").decode())
    printed = project.call("python", "-c", "import prefloop; print(prefloop.__version__)").stdout
    assert printed.strip() == metadata["Version"]
    assert project.call("prefloop", "--version").stdout.strip() == f"prefloop {metadata['Version']}"
