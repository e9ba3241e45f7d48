"""Set before anything imports torch or a library of the hub."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings

import prefloop  # noqa: F401  # sets what torch reads when it is imported
from tests.helpers.stores.azure_store import azure_server, azurite, make_container
from tests.helpers.stores.google_store import google_server
from tests.helpers.stores.object_store import make_bucket, s3_server
from tests.helpers.thinking_models import KINDS, make_thinking_model

os.environ.setdefault("TQDM_DISABLE", "1")
# Tiny models are no faster on more threads, and these wait for each other, five times as long where
# other tests are at work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes would compile all of it

# A failing property test prints the line that repeats it. None fails for being slow: the first call
# may import a library.
settings.register_profile("prefloop", print_blob=True, deadline=None)
settings.load_profile("prefloop")


_set_aside = [0]
"""How many modules there were each time that what there was was set aside."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with slow tests come first: one that is begun last leaves other cores idle.

    The fuzz takes minutes: it runs where it is asked for (``-m fuzz``)."""
    slow = {item.path for item in items if any(map(item.get_closest_marker, ("slow", "vllm")))}
    items.sort(key=lambda item: item.path not in slow)
    if "fuzz" in config.option.markexpr:
        return
    fuzz = [item for item in items if item.get_closest_marker("fuzz")]
    if fuzz:
        config.hook.pytest_deselected(items=fuzz)
        items[:] = [item for item in items if item not in fuzz]


def pytest_unconfigure() -> None:
    """What was set aside below is freed with the rest: libraries warn of what they find left."""
    gc.unfreeze()


def pytest_runtest_setup() -> None:
    """Set aside what is there where many modules were imported since this was done last.

    Each training and each engine that is closed has Python look for garbage in all that there is,
    and where all libraries are loaded, and thousands of tests, this takes half a second. What tests
    make is searched as ever.
    """
    if len(sys.modules) > _set_aside[-1] + 50:
        gc.collect()
        gc.freeze()
        _set_aside.append(len(sys.modules))


@pytest.fixture(scope="session", params=KINDS)
def thinking_model(request, tmp_path_factory) -> str:
    """A tiny model that thinks before it answers, of each kind (see ``thinking_models``)."""
    return make_thinking_model(tmp_path_factory.mktemp(request.param), **KINDS[request.param])


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """A server that speaks S3, started once, and what to have in the environment to talk to it."""
    with s3_server() as environment:
        yield environment


@pytest.fixture
def bucket(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The address of an empty bucket that this process, and those it starts, can write into; the
    working copies of runs there lie in a cache folder of the test's own."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_bucket(s3_environment["AWS_ENDPOINT_URL"], f"bucket-{uuid4().hex[:12]}")


@pytest.fixture(params=["s3", "gs", "az"])
def any_bucket(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """As ``bucket``, of each kind of store."""
    if request.param == "s3":
        yield request.getfixturevalue("bucket")
        return
    if request.param == "az" and not azurite():
        pytest.skip("Azurite is not installed (npm install --global azurite)")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = f"bucket-{uuid4().hex[:12]}"
    folder = tmp_path / "store"
    folder.mkdir()
    server = google_server if request.param == "gs" else azure_server
    with server(folder) as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        if request.param == "gs":
            yield f"gs://{name}"
        else:
            yield make_container(environment["AZURITE_BLOB_STORAGE_URL"], name)
