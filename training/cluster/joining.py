"""Joining a Ray cluster, for whatever is to be done on it."""

from __future__ import annotations

import logging
import os
from typing import Any

from prefloop.data.errors import PrefloopError


class ClusterError(PrefloopError):
    """A Ray cluster cannot be joined."""


_QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0"}


def join_cluster(address: str, key: str, *, working_dir: str | None = None) -> bool:
    """Join the cluster at ``address``, which stands in the config at ``key``; false where this
    process has joined one already.

    ``working_dir``: a folder to send to the workers. Raises :class:`ClusterError`.
    """
    ray = import_ray(key)
    if ray.is_initialized():
        return False
    ours = {name: word for name, word in _QUIET.items() if name not in os.environ}
    os.environ |= ours
    try:
        ray.init(
            address=address,
            runtime_env={"working_dir": working_dir} if working_dir else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({"include_dashboard": False} if address == "local" else {}),
        )
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ClusterError(
            f"no Ray cluster can be joined at {key} {address!r} "
            f"({next(iter(str(error).splitlines()), type(error).__name__)}): start one with "
            f"`ray start --head`, give HOST:PORT of one, or set {key}: local"
        ) from None
    finally:
        # What Ray itself sets stays: it says how clusters are talked to from now on.
        for name in ours:
            os.environ.pop(name, None)
    return True


def import_ray(key: str) -> Any:
    """The module; ``key`` of the config asks for it. Raises :class:`ClusterError` where it is not
    installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ClusterError(
            f"{key}: Ray cannot be imported ({error}): pip install 'prefloop[ray]'"
        ) from None
    return ray
