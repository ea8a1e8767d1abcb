"""What the pages share: configuration, the service, and everything that the studio remembers."""

from dataclasses import dataclass

from starlette.requests import Request

from studio.access import Access
from studio.adapter_import import Importer
from studio.config import StudioConfig
from studio.drawings import Drawings
from studio.gallery import Gallery
from studio.link import Link
from studio.shelf import Shelf
from studio.workshop import Workshop


@dataclass(frozen=True, kw_only=True)
class Studio:
    """One running studio."""

    config: StudioConfig
    access: Access
    service: Link
    gallery: Gallery
    drawings: Drawings
    workshop: Workshop
    shelf: Shelf
    importer: Importer


def studio_of(request: Request) -> Studio:
    """The one that answers a request."""
    studio: Studio = request.app.state.studio
    return studio
