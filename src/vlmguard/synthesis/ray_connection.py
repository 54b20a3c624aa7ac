"""A connection to a Ray cluster: made for a run, or found; told at once where there is none."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from vlmguard.errors import ConfigError, MissingExtra

_REACH_S = 10.0
_CALLS_AT_ONCE = 10_000  # of the hub; nearly all of them wait


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """Where a run goes, and what it takes there.

    Attributes:
        address: ``"auto"``, ``"host:port"`` or ``"ray://host:port"``; ``None`` starts Ray on this
            machine, for this run.
        workers: processes that take seeds through the stages, one CPU each.
        gpus: of each worker, for models that run in it.
    """

    address: str | None = None
    workers: int = 2
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers must be 1 or more, not {self.workers}")
        if self.gpus < 0:
            raise ConfigError(f"gpus must be 0 or more, not {self.gpus}")


class Connecting:
    """A connection to Ray, made, kept and ended by a thread of its own.

    Both take Ray many seconds in which it cannot be interrupted; a daemon thread is left behind by
    a process that ends. It is one thread for all of it, since on Linux the processes of a Ray end
    with the thread that started them.

    Args:
        cluster: which.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self._loop = asyncio.get_running_loop()
        self._made: asyncio.Future[Connection] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._over = threading.Event()
        threading.Thread(target=self._hold, name="ray connection", daemon=True).start()

    async def connection(self) -> Connection:
        """Wait for it; raises as `connect`."""
        return await self._made

    async def close(self) -> None:
        """End it, and wait until it has ended; at once if it is not there yet."""
        self._over.set()
        if self._made.done() and not self._made.cancelled() and self._made.exception() is None:
            await self._closed

    def _hold(self) -> None:
        try:
            connection = connect(self._cluster)
        except Exception as error:  # noqa: BLE001  # raised by whoever waits
            self._tell(self._made, error)
            return
        self._tell(self._made, connection)
        self._over.wait()
        try:
            connection.close()
        finally:
            self._tell(self._closed, None)

    def _tell(self, future: asyncio.Future[Any], value: object) -> None:
        def settle() -> None:
            if future.done():
                return
            if isinstance(value, Exception):
                future.set_exception(value)
            else:
                future.set_result(value)

        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(settle)


class Connection:
    """A connection to Ray that this run made, or found.

    Args:
        ray: the module.
        ours: whether it ends with the run.
    """

    def __init__(self, ray: Any, *, ours: bool) -> None:
        self._ray = ray
        self._ours = ours
        self._hub: Any = None

    def start_hub(self) -> Any:
        """The actor that this process talks to."""
        cluster = importlib.import_module("vlmguard.synthesis.ray_cluster")
        hub = self._ray.remote(cluster.Hub)
        self._hub = hub.options(num_cpus=0, max_concurrency=_CALLS_AT_ONCE).remote()
        return self._hub

    def close(self) -> None:
        """End the hub and, with it, the workers; and Ray itself, if it was started for this."""
        if self._hub is not None:
            self._ray.kill(self._hub)
        if self._ours:
            self._ray.shutdown()


def connect(cluster: RayCluster) -> Connection:
    """Join the cluster, or start one of one machine."""
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
        importlib.import_module("pyarrow")
    except ImportError:
        raise MissingExtra("the Ray runner", "ray") from None
    if ray.is_initialized():
        connection = Connection(ray, ours=False)
    else:
        _join(ray, cluster)
        connection = Connection(ray, ours=True)
    try:
        _require(ray.cluster_resources(), cluster)
    except ConfigError:
        connection.close()
        raise
    return connection


def _join(ray: Any, cluster: RayCluster) -> None:
    quietly = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cpus = max(os.cpu_count() or 1, cluster.workers)
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quietly)
        except Exception as error:  # Ray raises many kinds
            raise ConfigError(
                f"Ray could not be started on this machine: {_first_line(str(error))}. Is it too "
                "busy, or short of memory or disk? Its logs are in /tmp/ray/session_latest/logs"
            ) from error
        return
    _require_reachable(cluster.address)
    try:
        ray.init(address=cluster.address, **quietly)
    except Exception as error:  # Ray raises many kinds
        raise _unreachable(cluster.address, str(error)) from error


def _require_reachable(address: str) -> None:
    """Ray itself tries for minutes, and then ends the process."""
    split = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = split.port
    except ValueError as error:
        raise _unreachable(address, str(error)) from None
    if port is None:
        if address != "auto":
            raise ConfigError(
                f"not the address of a Ray cluster: {address!r}; name auto, host:6379 or "
                "ray://host:10001"
            )
        return
    try:
        socket.create_connection((split.hostname or "", port), timeout=_REACH_S).close()
    except OSError as error:
        raise _unreachable(address, str(error)) from None


def _unreachable(address: str, why: str) -> ConfigError:
    return ConfigError(
        f"there is no Ray cluster at {address!r}: {_first_line(why)}. Start one with: "
        "ray start --head, or leave the address out to start Ray on this machine for this run. If "
        "it is there, it may want its token: set RAY_AUTH_MODE=token"
    )


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0].rstrip(".")


def _require(resources: dict[str, float], cluster: RayCluster) -> None:
    """Refuse a cluster on which the run would wait for ever."""
    for what, name, needed in (
        ("CPU", "CPUs", cluster.workers),
        ("GPU", "GPUs", cluster.workers * cluster.gpus),
    ):
        found = resources.get(what, 0.0)
        if needed > found:
            raise ConfigError(
                f"the Ray cluster has {found:g} {name}, and {cluster.workers} workers need "
                f"{needed:g}: take fewer workers, or add nodes first"
            )
