"""The studio's web application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.middleware.gzip import GZipMiddleware

from service.http.edge.body_limits import LingeringClose
from service.http.edge.paths import Paths
from studio.adapters import pages as adapter_pages
from studio.adapters.catalogue import AdapterCatalogue
from studio.adapters.importing import Importer
from studio.config import StudioConfig
from studio.connection.own_service import OwnService
from studio.connection.service_connection import ServiceConnection
from studio.context import StudioContext, TrainingServices
from studio.datasets import bulk_pages
from studio.datasets import pages as dataset_pages
from studio.generate import composer, gallery_pages
from studio.generate import pages as generate_pages
from studio.generate.editing import pages as edit_pages
from studio.generate.gallery import Gallery
from studio.generate.generations import Generations
from studio.generate.grid import pages as grid_pages
from studio.generate.grid.grids import Grids
from studio.generate.viewing import origin
from studio.generate.viewing import pages as picture_pages
from studio.jobs import pages as job_pages
from studio.training import pages as train_pages
from studio.web import preferences
from studio.web.access import Access
from studio.web.error_pages import add_error_pages
from studio.web.guard import Guard
from studio.web.navigation import NAVIGATION
from studio.web.pages import Pages
from studio.web.static_files import StaticAssets

_PAGES = (
    preferences, composer, gallery_pages, picture_pages, origin, grid_pages, edit_pages, generate_pages, dataset_pages,
    bulk_pages, train_pages, job_pages, adapter_pages,
)  # fmt: skip


def create_app(config: StudioConfig) -> FastAPI:
    """Return the app; its own service, if it has one, runs as long as the app."""
    service: OwnService | ServiceConnection = (
        OwnService(config)
        if config.service_url is None
        else ServiceConnection(config.service_url, api_key=config.service_api_key, is_own=False)
    )
    connection = service if isinstance(service, ServiceConnection) else service.connection
    access = Access(config.token)

    gallery = Gallery(config.home / "gallery")
    generations = Generations(connection, gallery)
    grids = Grids(config.home / "grids", connection, gallery)
    training = TrainingServices(config)
    catalogue = AdapterCatalogue(
        config.adapters_uri, endpoint_url=config.adapters_endpoint_url, cache=config.home / "cache" / "adapters"
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        training.start()
        try:
            yield
        finally:
            await run_in_threadpool(training.close)
            await generations.close()
            await grids.close()
            await service.stop()

    app = FastAPI(title="Lithograph Studio", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.studio = StudioContext(
        config=config,
        access=access,
        service=connection,
        gallery=gallery,
        generations=generations,
        grids=grids,
        catalogue=catalogue,
        importer=Importer(config),
        training=training,
    )
    _add_pages(app, config, access)
    return app


def _add_pages(app: FastAPI, config: StudioConfig, access: Access) -> None:
    """Add the pages, and the middleware around them."""
    app.state.pages = Pages()
    app.add_middleware(Guard, config=config, access=access)
    app.add_middleware(LingeringClose)
    app.add_middleware(Paths)
    add_error_pages(app)
    app.mount("/static", GZipMiddleware(StaticAssets()), name="static")
    for page in _PAGES:
        app.include_router(page.router)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/")
    async def front() -> RedirectResponse:
        return RedirectResponse(NAVIGATION[0].path, status_code=303)
