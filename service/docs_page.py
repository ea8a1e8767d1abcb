"""``/docs``: Swagger UI from installed files. FastAPI's own page loads it from a CDN, which a cluster may not reach."""

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles


def serve_docs(app: FastAPI) -> None:
    """Put the page in place of FastAPI's, and lead ``/`` to it."""
    routes = app.router.routes
    routes[:] = [route for route in routes if getattr(route, "path", None) not in ("/docs", "/redoc")]
    assets = Path(fastapi_offline.__file__).parent / "static"
    app.mount("/docs-assets", StaticFiles(directory=assets), name="docs-assets")
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Lithograph",
        swagger_js_url="docs-assets/swagger-ui-bundle.js",
        swagger_css_url="docs-assets/swagger-ui.css",
        swagger_favicon_url="docs-assets/favicon.png",
    )
    app.add_api_route("/docs", lambda: page, include_in_schema=False)
    app.add_api_route("/", lambda: RedirectResponse("docs"), include_in_schema=False)
