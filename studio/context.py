"""The context that all pages share: configuration, the service, and everything that the studio stores."""

from dataclasses import dataclass

from starlette.requests import Request

from studio.adapters.catalogue import AdapterCatalogue
from studio.adapters.importing import Importer
from studio.config import StudioConfig
from studio.connection.service_connection import ServiceConnection
from studio.datasets.bulk import CaptionHistory
from studio.datasets.datasets import Dataset, Datasets, Scans
from studio.datasets.describing import Describer
from studio.datasets.thumbnails import Thumbnails
from studio.datasets.uploads import UploadLimits
from studio.generate.gallery import Gallery
from studio.generate.generations import Generations
from studio.generate.grid.grids import Grids
from studio.jobs.executor import Executor, LocalExecutor
from studio.jobs.gauges import GaugeReader
from studio.jobs.queue import JobQueue
from studio.jobs.record import ExecutorName
from studio.training.boundary import Boundary
from studio.training.devices import LocalDevices
from studio.web.access import Access
from trainer.data.captioning.endpoint import EndpointSettings

_UNPACKED = 8
"""Largest ratio of an upload's unpacked size to its size; pictures hardly shrink in a zip."""


class TrainingServices:
    """All training services, below one home directory."""

    def __init__(self, config: StudioConfig) -> None:
        cache = config.home / "cache"
        self.datasets = Datasets(config.home / "datasets", config.picked_from)
        self.limits = UploadLimits(total_bytes=_UNPACKED * config.max_upload_mib * 2**20)
        self.scans = Scans(cache / "pictures")
        self.thumbnails = Thumbnails(cache / "thumbnails")
        self.devices = LocalDevices()
        self.gauges = GaugeReader()
        self.describer = Describer(_endpoint(config))
        self._changes = config.home / "captions"
        own = (config.adapters_uri, *filter(None, [config.adapters_endpoint_url]))
        self.boundary = Boundary(datasets=self.datasets, own=own, destinations=config.reachable)
        executors: dict[ExecutorName, Executor] = {
            "local": LocalExecutor(cache=cache / "training", adapters=config.adapters_uri, boundary=self.boundary)
        }
        if config.cluster is not None:
            from studio.jobs.cluster_executor import ClusterExecutor  # its client takes a second to import

            executors["kubernetes"] = ClusterExecutor(config.cluster)
        self._stop_jobs = config.stop_jobs
        self.jobs = JobQueue(config.home / "jobs", executors, parallel=config.parallel_jobs)

    def start(self) -> None:
        """Start running the queue."""
        self.devices.start()
        self.jobs.start()

    def history(self, dataset: Dataset) -> CaptionHistory:
        """Return the changes of a dataset's captions, which can be undone."""
        folder = dataset.folder
        return CaptionHistory(self._changes, folder, self.datasets.allowed, lambda: self.scans.forget(folder))

    def close(self) -> None:
        """Stop the queue; trainings continue, or are suspended."""
        self.jobs.close()
        if self._stop_jobs:
            self.jobs.suspend()
        self.scans.close()
        self.describer.close()
        self.devices.close()


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


def _endpoint(config: StudioConfig) -> EndpointSettings | None:
    if config.caption_endpoint is None or config.caption_model is None:
        return None
    return EndpointSettings(url=config.caption_endpoint, model=config.caption_model, key=config.caption_key)
