"""``/docs``: Swagger UI from installed files. FastAPI's own page loads it from a CDN, which a cluster may not reach."""

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles


def serve_docs(app: FastAPI) -> None:
    """Replace FastAPI's page, and redirect ``/`` to it."""
    routes = app.router.routes
    routes[:] = [route for route in routes if getattr(route, "path", None) not in ("/docs", "/redoc")]
    assets = Path(fastapi_offline.__file__).parent / "static"
    app.mount("/docs-assets", StaticFiles(directory=assets), name="docs-assets")

    # Relative addresses are right behind a proxy whose prefix is not configured, too.
    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        root = ".." if request.scope["raw_path"].endswith(b"/") else "."
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title="Lithograph",
            swagger_js_url=f"{root}/docs-assets/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs-assets/swagger-ui.css",
            swagger_favicon_url=f"{root}/docs-assets/favicon.png",
        )

    @app.get("/", include_in_schema=False)
    def front(request: Request) -> RedirectResponse:
        root = request.scope["root_path"]
        return RedirectResponse(f"{root}/docs" if root else "docs")
