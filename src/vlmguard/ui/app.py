"""The playground as an ASGI application, alone or beside others."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from typing import Any

from vlmguard.errors import ConfigError, MissingExtra
from vlmguard.ui.models import Models
from vlmguard.ui.settings import UiSettings

try:
    import gradio as gr
    import uvicorn
    from starlette.applications import Starlette
except ImportError as error:  # pragma: no cover - tests run with the extra
    raise MissingExtra("the playground", "ui") from error

from vlmguard.ui.audit_tab import audit_tab
from vlmguard.ui.compare_tab import compare_tab
from vlmguard.ui.guard_tab import guard_tab
from vlmguard.ui.reports_tab import reports_tab

_KEPT_S = 3600
_MOST_BYTES = 32 * 1024 * 1024
_HEAD = """
<div class="vg-head"><h1>VLMGuard-R1 playground</h1>
<p>A rewriter reads prompt and picture together, judges, and hands on a safer prompt.</p></div>
"""


def build(settings: UiSettings, models: Models) -> gr.Blocks:
    """The page.

    Raises:
        ConfigError: a model, policy or log that it offers cannot be opened.
    """
    # What visitors upload is deleted within two hours.
    with gr.Blocks(
        title="VLMGuard-R1 playground",
        analytics_enabled=False,
        delete_cache=(_KEPT_S, _KEPT_S),
        fill_width=True,
    ) as page:
        gr.HTML(_HEAD)
        with gr.Tabs():
            with gr.Tab("Guard"):
                guard_tab(models, settings)
            with gr.Tab("Compare"):
                compare_tab(models)
            if settings.audit is not None:
                with gr.Tab("Audit") as tab:
                    audit_tab(settings.audit, tab)
            if settings.reports is not None:
                with gr.Tab("Reports") as tab:
                    reports_tab(settings.reports, tab)
    built: gr.Blocks = page
    return built


def theme() -> gr.themes.Base:
    """Gradio's own look with the system's fonts: nothing is fetched."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif"]
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=sans,
        font_mono=["ui-monospace", "Consolas", "monospace"],
    ).set(
        # Gradio's grey on white, and white on its bright blue, are too faint to read.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
    )


def mount(app: Starlette, settings: UiSettings, *, path: str = "/playground") -> None:
    """Add the playground to an application, before its other routes.

    Args:
        app: opens and closes the playground with its own lifespan.
        settings: how it runs.
        path: below which it answers.

    Raises:
        ConfigError: a model, policy or log that it offers cannot be opened.
    """
    models = Models(settings.targets, settings.rewriters, any_model=settings.any_model)
    models.open_all()

    async def add() -> None:
        _add(app, settings, models, path)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(add())  # where no loop runs, Gradio makes one and never closes it
    else:
        _add(app, settings, models, path)
    # A catch-all of the application's own would hide what is mounted after it.
    app.router.routes.insert(0, app.router.routes.pop())
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(served: Any) -> AsyncIterator[Any]:
        async with inner(served) as state:
            try:
                yield state
            finally:
                await models.aclose()

    app.router.lifespan_context = lifespan


def _add(app: Starlette, settings: UiSettings, models: Models, path: str) -> None:
    shipped = files("vlmguard.ui")
    gr.mount_gradio_app(
        app,
        build(settings, models).queue(default_concurrency_limit=4),
        path=path,
        auth=settings.signs_in if settings.passwords is not None else None,
        footer_links=["settings"],
        run_history=False,
        show_error=True,
        max_file_size=_MOST_BYTES,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme(),
        css=shipped.joinpath("style.css").read_text("utf-8"),
        js=shipped.joinpath("names.js").read_text("utf-8"),
    )


def listen(host: str, port: int) -> socket.socket:
    """The socket of the page.

    Raises:
        ConfigError: the address is taken, or not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another --port"
        ) from None
    return bound


def create(settings: UiSettings) -> Starlette:
    """The playground as an application of its own.

    Raises:
        ConfigError: a model, policy or log that it offers cannot be opened.
    """
    app = Starlette()
    mount(app, settings, path="/")
    return app


def serve(app: Starlette, bound: socket.socket) -> None:
    """Serve an application until told to stop."""
    uvicorn.Server(_config(app)).run([bound])


@contextmanager
def serving(app: Starlette, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve an application in a thread, e.g. from a notebook; its URL.

    Raises:
        ConfigError: the address is taken, or the application does not start.
    """
    bound = listen(host, port)
    server = uvicorn.Server(_config(app))
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise ConfigError("the playground did not start; its log says why")
            time.sleep(0.01)
        yield f"http://{host}:{bound.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(10)
        bound.close()


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app, log_level="warning", server_header=False, timeout_graceful_shutdown=2
    )
