"""The context that all pages share: configuration, the service, and everything that the studio stores."""

from dataclasses import dataclass

from starlette.requests import Request

from studio.adapters.catalogue import AdapterCatalogue
from studio.adapters.importing import Importer
from studio.config import StudioConfig
from studio.connection.service_connection import ServiceConnection
from studio.generate.gallery import Gallery
from studio.generate.generations import Generations
from studio.generate.grid.grids import Grids
from studio.training.services import TrainingServices
from studio.web.access import Access


@dataclass(frozen=True, kw_only=True)
class StudioContext:
    """One running studio."""

    config: StudioConfig
    access: Access
    service: ServiceConnection
    gallery: Gallery
    generations: Generations
    grids: Grids
    training: TrainingServices
    catalogue: AdapterCatalogue
    importer: Importer


def studio_of(request: Request) -> StudioContext:
    """Return the studio that handles a request."""
    studio: StudioContext = request.app.state.studio
    return studio
