"""The studio's pages, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.staticfiles import StaticFiles

from studio import adapter_pages, dataset_pages, generate_pages, job_pages, preferences, train_pages
from studio.access import Access
from studio.adapter_import import Importer
from studio.config import StudioConfig
from studio.drawings import Drawings
from studio.failures import add_failures
from studio.gallery import Gallery
from studio.guard import Guard
from studio.link import Link
from studio.navigation import NAVIGATION
from studio.own_service import OwnService
from studio.pages import STATIC_FOLDER, Pages
from studio.shelf import Shelf
from studio.state import Studio
from studio.workshop import Workshop

_PAGES = (preferences, generate_pages, dataset_pages, train_pages, job_pages, adapter_pages)


def create_app(config: StudioConfig) -> FastAPI:
    """The app; its own service, if it has one, runs as long as it does."""
    service: OwnService | Link = (
        OwnService(config)
        if config.service_url is None
        else Link(config.service_url, admin_key=config.service_admin_key, is_own=False)
    )
    link = service if isinstance(service, Link) else service.link
    access = Access(config.token)

    gallery = Gallery(config.home / "gallery")
    drawings = Drawings(link, gallery)
    workshop = Workshop(config)
    shelf = Shelf(
        config.adapters_uri, endpoint_url=config.adapters_endpoint_url, cache=config.home / "cache" / "adapters"
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        workshop.start()
        try:
            yield
        finally:
            await run_in_threadpool(workshop.close)
            await drawings.close()
            await service.stop()

    app = FastAPI(title="Lithograph Studio", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.studio = Studio(
        config=config,
        access=access,
        service=link,
        gallery=gallery,
        drawings=drawings,
        shelf=shelf,
        importer=Importer(config),
        workshop=workshop,
    )
    app.state.pages = Pages()
    app.add_middleware(Guard, config=config, access=access)
    add_failures(app)
    app.mount("/static", StaticFiles(directory=STATIC_FOLDER), name="static")
    for page in _PAGES:
        app.include_router(page.router)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/")
    async def front() -> RedirectResponse:
        return RedirectResponse(NAVIGATION[0].path, status_code=303)

    return app
