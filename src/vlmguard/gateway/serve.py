"""Runs a gateway: one process, or several that share a socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType

from vlmguard.errors import ConfigError, MissingExtra
from vlmguard.gateway.app import SETTINGS_VARIABLE, create_app, from_environment
from vlmguard.gateway.gateway import Gateway
from vlmguard.gateway.logs import set_up_logs
from vlmguard.gateway.protocol import protocol_with
from vlmguard.gateway.settings import Settings

try:
    import uvicorn
    from starlette.applications import Starlette
    from uvicorn.supervisors import Multiprocess
except ImportError as error:  # pragma: no cover - tests run with the extra
    raise MissingExtra("the gateway", "serve") from error

_KEEP_ALIVE_S = 75  # longer than common load balancers keep idle connections


def listen(settings: Settings) -> socket.socket:
    """The socket of the gateway.

    Raises:
        ConfigError: the address is taken, or not one of this machine.
    """
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on {host!r}: {error}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is taken; stop what runs there, or choose another --port"
            ) from None
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    bound.set_inheritable(True)
    return bound


def url_of(bound: socket.socket) -> str:
    """The base URL for clients on this machine."""
    host, port = bound.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104  # compared, not bound
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    settings: Settings,
    gateway: Gateway,
    bound: socket.socket,
    *,
    add: Callable[[Starlette], None] | None = None,
) -> None:
    """Serve until told to stop; running answers are finished first.

    Args:
        settings: how.
        gateway: for a single process. Several make their own, and this one only checked that it
            can be made.
        bound: from `listen`.
        add: adds more to the application of a single process, e.g. a page.
    """
    _raise_file_limit()
    if settings.workers == 1:
        logs = set_up_logs(settings.log_level, form=settings.log_form)
        try:
            app = create_app(gateway)
            if add is not None:
                add(app)
            uvicorn.Server(make_config(settings, app)).run([bound])
        finally:
            logs.close()
        return
    asyncio.run(gateway.aclose())
    with _for_workers(settings):
        config = make_config(settings, f"{__name__}:worker_app")
        _Workers(config, sockets=[bound]).run()


def make_config(settings: Settings, app: object) -> uvicorn.Config:
    """How uvicorn runs the gateway.

    Args:
        settings: how many workers, and for how long they wait.
        app: the application; for several workers the name of what makes it.
    """
    several = settings.workers > 1
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # an application, or the name of what makes one
        factory=several,
        workers=settings.workers,
        http=protocol_with(
            header_timeout_s=settings.header_timeout_s, send_timeout_s=settings.send_timeout_s
        ),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.drain_s,
        timeout_worker_healthcheck=60,  # a busy machine takes a while to start one
    )


def worker_app() -> Starlette:
    """The application in a worker, whose server takes a Ctrl-C from here on.

    Raises:
        ConfigError: a setting is wrong.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return from_environment()


class _Workers(Multiprocess):
    """Processes that share a socket; SIGHUP goes on to them, who read their policies again."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self._interrupted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def run(self) -> None:
        """Serve until told to stop.

        Raises:
            KeyboardInterrupt: by a Ctrl-C, once all workers have ended.
        """
        super().run()
        if self._interrupted:
            raise KeyboardInterrupt

    def init_processes(self) -> None:
        # Workers inherit the mask. A Ctrl-C, which reaches all processes of a terminal, would end
        # those that are still importing with a traceback each.
        resource_tracker.ensure_running()  # once it runs, starting a process leaves the mask alone
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().init_processes()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._interrupted |= number == signal.SIGINT
        self.should_exit.set()
        for process in self.processes:
            # Whoever waits for a worker that is still starting has this for its answer.
            with contextlib.suppress(OSError):
                process.child_conn.send(True)  # noqa: FBT003  # the worker's answer to a ping

    def handle_hup(self) -> None:
        for process in self.processes:
            if process.pid is not None:
                os.kill(process.pid, signal.SIGHUP)


@contextlib.contextmanager
def _for_workers(settings: Settings) -> Iterator[None]:
    """What the workers find in their environment: settings, and a folder for shared numbers."""
    with tempfile.TemporaryDirectory(prefix="vlmguard-metrics-") as folder:
        os.environ[SETTINGS_VARIABLE] = settings.model_dump_json()
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).mkdir(parents=True, exist_ok=True)
        try:
            yield
        finally:
            del os.environ[SETTINGS_VARIABLE]


def _raise_file_limit() -> None:
    """A thousand streams are two thousand sockets; the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
