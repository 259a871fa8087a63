"""The service as one ASGI application: the API, the pages, and the guard before them."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI
from sqlalchemy import Engine

from haq.service import pages, routes
from haq.service.answers import HANDLERS, refusal
from haq.service.guard import Guard
from haq.service.hooks import keep_delivering
from haq.service.pages.visitors import SignInFirst, sign_in_first
from haq.service.settings import Settings
from haq.service.shared import Service


def create_app(
    engine: Engine,
    settings: Settings,
    *,
    store_name: str,
    is_open: bool,
    only_loopback: bool = False,
) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        engine: The database, its tables up to date.
        settings: As of the workers.
        store_name: As ``migrate`` returned it.
        is_open: Whether everyone may do everything; see ``security.is_open``.
        only_loopback: Whether it is to answer only at names of this machine.
    """
    service = Service(engine, settings, store_name, is_open)

    app = _app(service)
    app.state.service = service
    for part in (routes.api, routes.operations, pages.router):
        app.include_router(part)
    for kind, handler in {**HANDLERS, SignInFirst: sign_in_first}.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(
        Guard,
        registry=service.metrics.registry,
        limits=settings.limits,
        only_loopback=only_loopback,
        refuse=refusal,
    )
    return app


def _app(service: Service) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Those that take long must leave threads for the others.
        current_default_thread_limiter().total_tokens = 40 + service.longest
        service.begin_loading()  # /readyz says when it is done
        over = threading.Event()
        if service.settings.hooks:
            told = (service.engine, service.settings, over)
            threading.Thread(target=keep_delivering, args=told, daemon=True).start()
        yield
        over.set()
        service.feed.end()

    return FastAPI(
        title="HAQ",
        summary="Searches for the bits of every layer, under a budget.",
        version="1",
        lifespan=lifespan,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
